"""The weighted k-NN probe (Wu et al. 2018, arXiv 1805.01978, section 3.4)."""

import copy

import torch
from torch import Tensor

from unlabeled import distributed
from unlabeled.core.ranges import Count, SomeOf, Temperature
from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features, top1
from unlabeled.evaluation.knn import check_temperature, neighbours, sharded_neighbours, sum_votes
from unlabeled.evaluation.probe import Head, Score
from unlabeled.evaluation.probes.linear import unseen_class_notes

VOTES = 2**20  # sums of weights held at a time


class KNN:
    """Weighted k-NN with one score for each k. It has no parameters.

    ``distance``: ``cosine``, the similarity s is that of normalised features; ``euclidean``, s = −|q − b|².
    ``weights``: ``exp``, exp(s/temperature), which for squared distances is that of neighbourhood component analysis
    (Goldberger et al. 2004); ``uniform``, with ``temperature`` None. ``features``: the kind. ``shared``: all processes
    of torch.distributed make the same call and each searches a part of the bank.
    """

    def __init__(
        self,
        k: SomeOf[Count],
        temperature: Temperature | None,
        distance: str = "cosine",
        weights: str = "exp",
        features: str = "last",
        shared: bool = False,
    ) -> None:
        if not k or min(k) < 1:
            raise UserError(f"probe.knn.k is {k}; it needs one or more whole numbers of at least 1")
        _check_choice("distance", distance, DISTANCES)
        _check_choice("weights", weights, WEIGHTS)
        check_temperature(temperature, weights)
        self.k, self.temperature = sorted(set(k)), temperature
        self.distance, self.weights = distance, weights
        self.needs, self.kinds = 1, (features,)
        self.shared = shared

    def protocol(self, k: int) -> str:
        """Returns the name under which a score of this probe is reported."""
        temperature = "" if self.temperature is None else f"/T={self.temperature:g}"
        kind = "" if self.kinds == ("last",) else f"/features={self.kinds[0]}"
        return f"knn/{self.distance}-{self.weights}/k={k}{temperature}{kind}"

    def fit_predict(self, train: Features, test: Features, num_classes: int) -> list[Score]:
        """Returns one Score per k; features may have any length. Classes without a train image are never predicted.

        A k above the number of train images is reduced to that number; the score has the reduced k in its name, and a
        note.
        """
        bank, queries = train.of(self.kinds[0]).x, test.of(self.kinds[0]).x
        counts, notes = self._counts(len(bank))
        similarity, index = self._neighbours(queries, bank, counts[-1])
        if not bool(similarity.isfinite().all()):
            raise UserError("k-NN: squared distances of these features are infinite; distance=cosine takes any length")
        labels = train.labels[index]
        notes += unseen_class_notes(len(torch.unique(train.labels)), num_classes)
        scores = []
        for k in counts:  # the nearest k are the first k of the nearest max(k)
            predictions, log_probabilities = self.vote(similarity[:, :k], labels[:, :k], num_classes)
            score = top1(predictions, test.labels)
            scores.append(
                Score(
                    *(self.protocol(k), score, {"chosen_on": "nothing"}, list(notes), predictions, log_probabilities),
                    head=self._head(k, bank, train.labels),
                )
            )
        return scores

    def _head(self, k: int, bank: Tensor, labels: Tensor) -> Head:
        rule = {"k": k, "temperature": self.temperature, "distance": self.distance, "weights": self.weights}
        return Head("knn", self.kinds[0], {"bank": bank, "labels": labels}, rule)

    def within(self, bank: int) -> "KNN":
        """Returns the probe with each k that is above a number of images reduced to it."""
        other = copy.copy(self)
        other.k = sorted({min(k, bank) for k in self.k})
        return other

    def _counts(self, bank: int) -> tuple[list[int], list[str]]:
        """Returns the values of k that the bank allows, and a note on those that were reduced."""
        larger = [k for k in self.k if k > bank]
        said = f"probe.knn.k={','.join(map(str, larger))} is more than the {bank} labelled train images: k={bank}."
        return sorted({min(k, bank) for k in self.k}), [said] if larger else []

    def _neighbours(self, queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if not self.shared:
            return neighbours(queries, bank, k, distance=self.distance)
        processes, own = distributed.world_size(), distributed.rank()
        first, last = (len(bank) * number // processes for number in (own, own + 1))
        return sharded_neighbours(queries, bank[first:last], first, k, distance=self.distance)

    def vote(self, similarity: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """Returns the class int64 [Q] of most votes, the first among equals, and log shares of votes [Q, C]."""
        predictions, log_shares = [], torch.empty(len(labels), num_classes, device=labels.device)
        rows = max(1, VOTES // num_classes)
        parts = (torch.split(part, rows) for part in (similarity, labels, log_shares))
        for near, label, log_share in zip(*parts, strict=True):
            votes = sum_votes(self._weigh(near.double()), label, num_classes)
            predictions.append(votes.argmax(dim=1))
            log_share.copy_(votes.div_(votes.sum(dim=1, keepdim=True)).log_())
        return torch.cat(predictions), log_shares

    def _weigh(self, similarity: Tensor) -> Tensor:
        if self.temperature is None:
            return torch.ones_like(similarity)
        # relative to the nearest, which weighs 1: nothing overflows, and far features do not all weigh 0
        return ((similarity - similarity[:, :1]) / self.temperature).exp()


DISTANCES = ("cosine", "euclidean")

WEIGHTS = ("exp", "uniform")


def _check_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"probe.knn.{key} is {value!r}; allowed: {', '.join(allowed)}")

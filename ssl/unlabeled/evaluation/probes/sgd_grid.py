"""The published SGD recipe of linear probes on cached features, for a whole grid of heads in one pass."""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unlabeled.core.ranges import AtMostHalf, Count, LearningRate, PartialShare, Seed, SomeOf, WeightDecay
from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features, full_float32, top1
from unlabeled.evaluation.probe import Score
from unlabeled.evaluation.probes.linear import (
    best_position,
    check_at_least_1,
    check_grid,
    check_share,
    linear_head,
    predict,
    score_head,
    selection_notes,
    split_holdout,
    standardise,
)


class Head(NamedTuple):
    """One point of the grid."""

    features: str
    learning_rate: float
    weight_decay: float


class SGDGrid:
    """SGD with momentum at every learning rate, weight decay and kind of features at once.

    The best head is chosen on a part of train and refitted on all of it.

    The recipe of published linear probes (softmax cross entropy, cosine schedule per step) on features computed once,
    hence without random crops and flips, in float32. All heads of a kind of features are one matrix, with one product
    forward and one backward, on the same batches; each equals a head trained alone by torch.optim.SGD. As there, weight
    decay acts on the bias too. DINOv2 fits its grid in this way (facebookresearch/dinov2, eval/linear.py).
    """

    needs = 2

    def __init__(
        self,
        learning_rates: SomeOf[LearningRate],
        epochs: Count,
        batch_size: Count,
        weight_decays: SomeOf[WeightDecay],
        momentum: PartialShare,
        holdout: AtMostHalf,
        seed: Seed,
        features: SomeOf[str] = ("last",),
    ) -> None:
        self.learning_rates = check_grid("probe.linear_sgd.learning_rates", learning_rates)
        self.weight_decays = check_grid("probe.linear_sgd.weight_decays", weight_decays, included=True)
        self.epochs = check_at_least_1("probe.linear_sgd.epochs", epochs)
        self.batch_size = check_at_least_1("probe.linear_sgd.batch_size", batch_size)
        self.holdout = check_share("probe.linear_sgd.holdout", holdout)
        self.momentum, self.seed = momentum, seed
        self.kinds = tuple(dict.fromkeys(features))
        if not self.kinds:
            raise UserError("probe.linear_sgd.features is []; it needs one or more kinds, e.g. [last]")

    @property
    def protocol(self) -> str:
        """Returns the name of the score: all settings that are not chosen, and the choices besides learning rates."""
        decays = ",".join(f"{decay:g}" for decay in self.weight_decays)
        kinds = "" if self.kinds == ("last",) else f"/features={'+'.join(self.kinds)}"
        return f"linear/cached-sgd-grid-v2/epochs={self.epochs}/batch={self.batch_size}/wd={decays}{kinds}"

    def fit_predict(self, train: Features, test: Features, num_classes: int) -> list[Score]:
        """Returns one Score. Classes without a train image are never predicted."""
        with full_float32(train.x.device), torch.no_grad():
            classes, labels = torch.unique(train.labels, return_inverse=True)
            head, chosen, notes, spared = self._choose(train, labels, len(classes))
            seen, unknown = train.of(head.features).x, test.of(head.features).x
            x, test_x = standardise(seen, unknown, dtype=torch.float32)
            weight = self.fit(x, labels, len(classes), [head])[0]
            chosen |= {**head._asdict(), "epochs": self.epochs, "batch_size": self.batch_size}
            score = score_head(self.protocol, weight, test_x, test, classes, num_classes, chosen)
            score.head = linear_head(weight, seen, classes, head.features, spared)
        score.notes = notes + score.notes
        return [score]

    def fit(self, x: Tensor, labels: Tensor, num_classes: int, heads: list[Head]) -> Tensor:
        """Returns weights [H, C, D + 1] of heads on ``x`` [N, D + 1], all from zero and over the same batches."""
        # classes first: a softmax over the outer dimension takes a third of the time
        weight = x.new_zeros(num_classes * len(heads), x.shape[1])
        velocity = torch.zeros_like(weight)
        rates, decays = (
            x.new_tensor(values).repeat(num_classes)[:, None]
            for values in ([head.learning_rate for head in heads], [head.weight_decay for head in heads])
        )
        decayed, total = bool(decays.any()), self.epochs * math.ceil(len(x) / self.batch_size)
        for step, (batch, target) in enumerate(self._batches(x, labels)):
            residual = _softmax_minus_one_hot((weight @ batch.T).view(num_classes, len(heads), -1), target)
            velocity.addmm_(residual.view(len(weight), -1), batch, beta=self.momentum, alpha=1 / len(batch))
            if decayed:
                velocity.addcmul_(decays, weight)
            weight.addcmul_(rates * (0.5 * (1 + math.cos(math.pi * step / total))), velocity, value=-1)
        return weight.view(num_classes, len(heads), -1).transpose(0, 1).contiguous()

    def _batches(self, x: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields rows of ``x``, in memory that the next batch reuses, and their labels."""
        memory = x.new_empty(min(self.batch_size, len(x)), x.shape[1])
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.epochs):
            order = torch.randperm(len(x), generator=generator).to(x.device)
            for rows in torch.split(order, self.batch_size):
                yield torch.index_select(x, 0, rows, out=memory[: len(rows)]), labels[rows]

    def _choose(
        self, train: Features, labels: Tensor, num_classes: int
    ) -> tuple[Head, dict[str, Any], list[str], tuple[Tensor, Tensor] | None]:
        """Returns the best head, how it was chosen, notes, and its log probabilities and labels of the holdout."""
        heads = [Head(*point) for point in product(self.kinds, self.learning_rates, self.weight_decays)]
        if len(heads) == 1:
            return heads[0], {"chosen_on": "nothing"}, [], None
        fit, held = split_holdout(labels, self.holdout, self.seed)
        scores: dict[Head, float] = {}
        fitted: dict[Head, Tensor] = {}
        for kind in self.kinds:
            x = train.of(kind).x
            fit_x, held_x = standardise(x[fit], x[held], dtype=torch.float32)
            own = [head for head in heads if head.features == kind]
            weights = self.fit(fit_x, labels[fit], num_classes, own)
            scores |= {h: top1(predict(w, held_x), labels[held]) for h, w in zip(own, weights, strict=True)}
            fitted |= dict(zip(own, weights, strict=True))
        tried = {self._name(head): score for head, score in scores.items()}
        best, notes = self._best(scores)
        x = train.of(best.features).x
        _, held_x = standardise(x[fit], x[held], dtype=torch.float32)
        spared = (held_x @ fitted[best].T).log_softmax(dim=1), labels[held]
        return best, selection_notes(tried, self.holdout, len(held), self.seed), notes, spared

    def _best(self, scores: dict[Head, float]) -> tuple[Head, list[str]]:
        """Returns the best head, of equals the smallest learning rate, and a note if it is at an edge of the grid."""
        by_rate = [max(s for head, s in scores.items() if head.learning_rate == rate) for rate in self.learning_rates]
        position, notes = best_position(
            self.learning_rates, by_rate, "learning rate", "probe.linear_sgd.learning_rates"
        )
        of_rate = [head for head in scores if head.learning_rate == self.learning_rates[position]]
        return max(of_rate, key=scores.__getitem__), notes

    def _name(self, head: Head) -> str:
        """Names a head in the report: its learning rate, and what else differs."""
        kind = f"{head.features} " if len(self.kinds) > 1 else ""
        decay = f" wd={head.weight_decay:g}" if len(self.weight_decays) > 1 else ""
        return f"{kind}{head.learning_rate:g}{decay}"


def _softmax_minus_one_hot(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the gradient of the cross entropy by the logits [C, H, B]; ``labels`` [B]."""
    p = logits.flatten(1).softmax(dim=0).view_as(logits)
    target = labels.expand(1, logits.shape[1], -1)
    return p.scatter_add_(0, target, p.new_full(target.shape, -1.0))

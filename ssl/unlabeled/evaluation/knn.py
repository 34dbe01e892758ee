"""Weighted k-nearest-neighbour classification of frozen features (Wu et al. 2018, arXiv 1805.01978, section 3.4)."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features, Score, full_float32, top1

CHUNK_BYTES = 256 * 2**20  # similarities held at a time
SMALLEST_TEMPERATURE = 0.002  # the sum of exp(1/T) over many neighbours overflows float64 below about 0.0015


class KNN:
    """The probe: cosine similarity, weights exp(similarity/temperature), one score for each k. It has no parameters."""

    def __init__(self, k: list[int], temperature: float) -> None:
        if not k or min(k) < 1:
            raise UserError(f"probe.knn.k is {k}; it needs one or more whole numbers of at least 1")
        _check_temperature(temperature)
        self.k = sorted(set(k))
        self.needs = self.k[-1]
        self.temperature = temperature

    def protocol(self, k: int) -> str:
        """The name under which a score of this probe is reported."""
        return f"knn/cosine-exp/k={k}/T={self.temperature:g}"

    def fit_predict(self, train: Features, test: Features, num_classes: int) -> list[Score]:
        """One Score per k; the features may have any length, they are normalised here."""
        similarity, index = neighbours(normalize(test.x), normalize(train.x), self.k[-1])
        labels = train.labels[index]
        scores = []
        for k in self.k:  # the nearest k are the first k of the nearest max(k)
            votes = _votes(similarity[:, :k], labels[:, :k], self.temperature, num_classes)
            scores.append(Score(self.protocol(k), top1(votes.argmax(dim=1), test.labels), {"chosen_on": "nothing"}))
        return scores


def knn_scores(
    queries: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    k: int,
    temperature: float,
    num_classes: int,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Class scores [Q, C] float64: the sum of exp(similarity/temperature) over those of the k nearest in each class.

    ``queries`` [Q, D] and ``bank`` [N, D] have unit rows, ``bank_labels`` int64 [N] lie in [0, num_classes). Neither
    scaled nor normalised: a row sums to the total weight of its k neighbours. Among equally similar bank rows the first
    win, among equal class scores ``argmax`` takes the first class. At most ``chunk_bytes`` of similarities exist at a
    time, besides working memory of a small multiple of it. Raises UserError where k > N or a value is not finite.
    """
    _check_temperature(temperature)
    similarity, index = neighbours(queries, bank, k, chunk_bytes)
    return _votes(similarity, bank_labels.to(index.device)[index], temperature, num_classes)


def neighbours(queries: Tensor, bank: Tensor, k: int, chunk_bytes: int = CHUNK_BYTES) -> tuple[Tensor, Tensor]:
    """Similarity [Q, k] and bank row [Q, k] of the k nearest, nearest first and equal ones in bank order."""
    if not 1 <= k <= len(bank):
        raise UserError(
            f"probe.knn.k is {k}; with {len(bank)} labelled images to compare with, allowed: 1 to {len(bank)}"
        )
    if not (bool(queries.isfinite().all()) and bool(bank.isfinite().all())):
        raise UserError("k-NN was given features that are not finite: the network has diverged")
    dtype = torch.promote_types(queries.dtype, torch.float32)  # float16 → float32, float64 stays
    bank = bank.to(dtype)
    rows = max(1, chunk_bytes // (len(bank) * dtype.itemsize))
    with full_float32(bank.device):
        chunks = [_nearest(part.to(bank) @ bank.T, k) for part in torch.split(queries, rows)]
    similarity, index = zip(*chunks, strict=True)
    return torch.cat(similarity), torch.cat(index)


def _nearest(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, index = similarity.topk(min(k + 1, similarity.shape[1]))
    # topk may take any of several equal rows, and a collapsed network makes all of them equal
    tied = (
        values[:, k - 1] == values[:, -1] if values.shape[1] > k else torch.zeros_like(values[:, 0], dtype=torch.bool)
    )
    index = index[:, :k]
    if bool(tied.any()):
        index[tied] = _first_of_equals(similarity[tied], values[tied, k - 1 : k], k)
    index = index.sort(dim=1).values
    values, order = similarity.gather(1, index).sort(dim=1, descending=True, stable=True)
    return values, index.gather(1, order)


def _first_of_equals(similarity: Tensor, smallest: Tensor, k: int) -> Tensor:
    above, equal = similarity > smallest, similarity == smallest
    room = k - above.sum(dim=1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= room))
    return chosen.nonzero()[:, 1].view(len(similarity), k)


def _votes(similarity: Tensor, labels: Tensor, temperature: float, num_classes: int) -> Tensor:
    weights = (similarity.double() / temperature).exp()
    scores = weights.new_zeros(len(weights), num_classes)
    # one neighbour at a time: a scatter of all of them at once would add in an order that changes on a GPU
    for label, weight in zip(torch.split(labels, 1, dim=1), torch.split(weights, 1, dim=1), strict=True):
        scores.scatter_add_(1, label, weight)
    return scores


def _check_temperature(temperature: float) -> None:
    if not temperature >= SMALLEST_TEMPERATURE:
        raise UserError(f"probe.knn.temperature is {temperature}; allowed: at least {SMALLEST_TEMPERATURE}")

"""Weighted k-nearest-neighbour classification of frozen features (Wu et al. 2018, arXiv 1805.01978, section 3.4)."""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from unlabeled import distributed
from unlabeled.errors import UserError
from unlabeled.evaluation.features import all_finite, full_float32, unit_rows
from unlabeled.evaluation.top_k import sort_with_ties, top_k

CHUNK_BYTES = 128 * 2**20  # bytes of converted bank rows, and of similarities, held at a time
SMALLEST_TEMPERATURE = 0.002  # the sum of exp(1/T) over many neighbours overflows float64 below about 0.0015
# A matrix product has the same bits however it is divided if both sides are multiples of this: MKL's kernels work
# on tiles of up to 48 rows or columns and add up those at an edge in another order.
TILE = 48
DISTANCES = ("product", "cosine", "euclidean")
CENTRE_OF = 1000  # queries whose median becomes the origin for Euclidean distances


def knn_scores(
    queries: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    k: int,
    temperature: float,
    num_classes: int,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Returns class scores [Q, C] float64: the sum of exp(similarity/temperature) over the k nearest, per class.

    ``queries`` [Q, D] and ``bank`` [N, D] have unit rows, ``bank_labels`` int64 [N] lie in [0, num_classes). Neither
    scaled nor normalised: a row sums to the total weight of its k neighbours. Among equally similar bank rows the first
    win, among equal class scores ``argmax`` takes the first class. Memory: as ``neighbours``. Raises UserError where
    k > N or a value is not finite.
    """
    check_temperature(temperature, "exp")
    if bank_labels.shape != bank.shape[:1] or not _classes_below(num_classes, bank_labels):
        raise UserError(
            f"knn_scores: bank_labels must be int64 [{len(bank)}] in 0..{num_classes - 1}: a class for each bank row"
        )
    similarity, index = neighbours(queries, bank, k, chunk_bytes)
    weights = (similarity.double() / temperature).exp()
    if not bool(weights.isfinite().all()):
        raise UserError(f"knn_scores: exp(similarity/{temperature:g}) is infinite; rows must have length 1")
    return sum_votes(weights, bank_labels.to(index.device)[index], num_classes)


def neighbours(
    queries: Tensor, bank: Tensor, k: int, chunk_bytes: int = CHUNK_BYTES, distance: str = "product"
) -> tuple[Tensor, Tensor]:
    """Returns similarity [Q, k] and bank row [Q, k] of the k nearest, nearest first, equal ones in bank order.

    Exact. ``distance``: ``product``, the scalar product as it is; ``cosine``; ``euclidean``, minus its square, computed
    and returned in float64: features may lie anywhere and be as long as float64 can square. At most ``chunk_bytes`` of
    similarities exist at a time, and as much of the bank as it is compared, but of each at least a tile; no size
    changes a bit of the result on a CPU. Computed on the queries' device, the bank may lie elsewhere.
    Raises UserError where k > N, widths differ or a value is not finite.
    """
    _check_k(k, len(bank))
    _check_same_width(queries, bank)
    _check_finite(all_finite(queries) and all_finite(bank))
    similarity, index = _search(queries, bank, k, chunk_bytes, distance)
    _check_overflow(similarity, distance)
    return similarity, index


def sharded_neighbours(
    queries: Tensor,
    rows: Tensor,
    first_row: int,
    k: int,
    chunk_bytes: int = CHUNK_BYTES,
    distance: str = "product",
) -> tuple[Tensor, Tensor]:
    """Does the same with a bank divided among processes: ``rows`` [n, D] start at ``first_row`` of the bank.

    Every process calls it with the same queries and gets the whole result, that of one process with the whole bank, bit
    for bit on a CPU. The parts may be unequal, shorter than k or empty. Each process sends k neighbours per query.
    """
    device = _device_of_group(queries.device)
    _check_k(k, int(distributed.total(torch.tensor(len(rows), device=device))))
    broken = torch.tensor(not (all_finite(queries) and all_finite(rows)), dtype=torch.float32, device=device)
    _check_finite(not bool(distributed.maximum(broken)))  # raised on all processes, or the others would wait
    similarity, index = _search(queries, rows, min(k, len(rows)), chunk_bytes, distance)
    room = (0, k - similarity.shape[1])
    similarity = pad(similarity, room, value=-torch.inf)
    index = pad(index + first_row, room)  # padding is never chosen: all processes together have k finite similarities
    parts = max(1, chunk_bytes // (k * distributed.world_size() * 32))
    pairs = zip(torch.split(similarity, parts), torch.split(index, parts), strict=True)
    found = [_merged(*pair, k, device) for pair in pairs]
    similarity, index = torch.cat([values for values, _ in found]), torch.cat([rows for _, rows in found])
    _check_overflow(similarity, distance)
    return similarity, index


def _merged(similarity: Tensor, index: Tensor, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the k nearest [q, k] among the neighbours that all processes found."""
    similarities, rows = (
        torch.cat(torch.split(distributed.gather(part.to(device)).to(part.device), len(part)), dim=1)
        for part in (similarity, index)
    )
    return sort_with_ties(similarities, rows, k)


def _search(queries: Tensor, bank: Tensor, k: int, chunk_bytes: int, distance: str) -> tuple[Tensor, Tensor]:
    if distance not in DISTANCES:
        raise UserError(f"k-NN: distance={distance} is not known; allowed: {', '.join(DISTANCES)}")
    dtype = torch.promote_types(queries.dtype, torch.float32)  # float16 → float32, float64 stays
    centre = None
    if distance == "euclidean":
        # Squared lengths much larger than the distance cancel: hence float64, and an origin near the queries
        dtype, centre = torch.float64, _centre(queries)
    width = max(bank.shape[1], 512)  # room for the similarities of 512 queries
    most = _tiles(min(chunk_bytes // (width * dtype.itemsize), len(bank) + TILE - 1))
    rows = _tiles(min(chunk_bytes // (most * dtype.itemsize), len(queries) + TILE - 1))
    product = queries.new_empty(rows * most, dtype=dtype)  # once: new memory per block would cost a tenth of the time
    similarity, index = product.new_empty(len(queries), 0), queries.new_empty(len(queries), 0, dtype=torch.int64)
    with full_float32(queries.device):
        for first in range(0, len(bank), most):
            block = bank[first : first + most].to(queries.device, dtype)
            factor = _factor(block, distance, centre, bank=True)
            parts = [
                _nearest(part.to(dtype), block, factor, k, distance, centre, product)
                for part in torch.split(queries, rows)
            ]
            similarity = torch.cat([similarity, torch.cat([values for values, _ in parts])], dim=1)
            index = torch.cat([index, torch.cat([columns for _, columns in parts]) + first], dim=1)
            similarity, index = sort_with_ties(similarity, index, k) if first else (similarity, index)
    return similarity, index


def _centre(queries: Tensor) -> Tensor:
    """Returns the median [D] of some queries, float64: equal on all processes and robust to far queries."""
    few = queries[:: max(1, len(queries) // CENTRE_OF)].double()
    return few.median(dim=0).values if len(few) else few.sum(dim=0)


def _nearest(
    queries: Tensor, block: Tensor, factor: Tensor, k: int, distance: str, centre: Tensor | None, product: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the k nearest in one block of the bank; ``product`` is the buffer for the similarities."""
    left = _factor(queries, distance, centre, bank=False)
    similarity = product[: len(left) * len(factor)].view(len(left), len(factor))
    torch.mm(left, factor.T, out=similarity)
    similarity[:, len(block) :] = -torch.inf  # rows of padding
    return top_k(similarity[: len(queries)], min(k, len(block)))


def _factor(x: Tensor, distance: str, centre: Tensor | None, bank: bool) -> Tensor:
    """Returns the factor of the product that gives similarities, padded with rows of zeros to whole tiles."""
    if distance == "cosine":
        x = unit_rows(x)
    if centre is not None:
        x = x - centre
    if distance == "euclidean":  # −|q − b|² = 2q·b − |q|² − |b|², as one product
        length = x.square().sum(dim=1, keepdim=True)
        one = torch.ones_like(length)
        x = torch.cat([x, one, -length] if bank else [2 * x, -length, one], dim=1)
    left = -len(x) % TILE
    return pad(x, (0, 0, 0, left)) if left else x  # pad copies even by nothing


def _tiles(rows: int) -> int:
    """Rounds the number of rows down to whole tiles, at least one."""
    return max(rows // TILE, 1) * TILE


def sum_votes(weights: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Returns the sum [Q, C] of the ``weights`` [Q, k] of each class."""
    scores = weights.new_zeros(len(weights), num_classes)
    # one neighbour at a time: a scatter of all of them at once would add in an order that changes on a GPU
    for label, weight in zip(torch.split(labels, 1, dim=1), torch.split(weights, 1, dim=1), strict=True):
        scores.scatter_add_(1, label, weight)
    return scores


def _device_of_group(device: torch.device) -> torch.device:
    """Returns the device on which processes exchange tensors; NCCL takes none from the CPU."""
    if distributed.world_size() > 1 and torch.distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _check_finite(finite: bool) -> None:
    if not finite:
        raise UserError("k-NN was given features that are not finite: the network has diverged")


def _check_overflow(similarity: Tensor, distance: str) -> None:
    """Of squared distances the probe says more, and cosines cannot overflow."""
    if distance == "product" and not all_finite(similarity):
        raise UserError("k-NN was given features whose products overflow: the network has diverged, or give unit rows")


def _check_same_width(queries: Tensor, bank: Tensor) -> None:
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise UserError(f"k-NN: queries {list(queries.shape)} and bank {list(bank.shape)} must be [Q, D] and [N, D]")


def _classes_below(num_classes: int, labels: Tensor) -> bool:
    return not labels.is_floating_point() and (
        not len(labels) or (int(labels.min()) >= 0 and int(labels.max()) < num_classes)
    )


def _check_k(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise UserError(f"probe.knn.k is {k}; with {n} labelled images to compare with, allowed: 1 to {n}")


def check_temperature(temperature: float | None, weights: str) -> None:
    if weights == "uniform" and temperature is not None:
        raise UserError(f"probe.knn.temperature is {temperature}, and uniform weights have none: set it to null")
    if weights == "exp" and (temperature is None or not SMALLEST_TEMPERATURE <= temperature < math.inf):
        raise UserError(f"probe.knn.temperature is {temperature}; allowed: at least {SMALLEST_TEMPERATURE}")

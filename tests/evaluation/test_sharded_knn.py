"""Banks of which each process holds a part: the neighbours are those of one process, bit for bit."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.forked import spawn
from tests.group import leave
from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.knn import neighbours, sharded_neighbours
from unlabeled.evaluation.probes.knn import KNN

# Rows of each process; the bank has 500. The last of two processes has fewer rows than k, the third of four has none.
PARTS = {2: [[250, 250], [487, 13]], 4: [[125, 125, 125, 125], [3, 396, 0, 101]]}
K = 20


def data(kind: str) -> tuple[Tensor, Tensor]:
    """Queries and bank: ``plain``, or of few distinct values, so that neighbours tie within and across the parts."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(570, 24, generator=generator)
    if kind == "tied":
        x = torch.randint(-1, 2, (570, 3), generator=generator).float()
    return (x[:70].double(), x[70:].double()) if kind == "double" else (x[:70], x[70:])


def features() -> tuple[Features, Features]:
    queries, bank = data("plain")
    labels = [torch.arange(len(x)) % 7 for x in (bank, queries)]
    return Features(bank, labels[0], labels[0]), Features(queries, labels[1], labels[1])


def searched(rank: int, processes: int) -> list[tuple[Tensor, Tensor]]:
    results = []
    for parts in PARTS[processes]:
        first = sum(parts[:rank])
        for kind in ("plain", "tied", "double"):
            queries, bank = data(kind)
            for distance in ("product", "cosine", "euclidean"):
                rows = bank[first : first + parts[rank]]
                results.append(sharded_neighbours(queries, rows, first, K, 2**16, distance))
    return results


def one_of_several(rank: int, processes: int, folder: str) -> None:
    torch.set_num_threads(1)
    init = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=init, rank=rank, world_size=processes)
    (score,) = KNN([K], 0.1, shared=True).fit_predict(*features(), 7)
    with pytest.raises(UserError, match=r"probe\.knn\.k is 20; with 8 labelled images"):
        sharded_neighbours(*data("plain")[:1], data("plain")[1][: 8 // processes], 0, K)
    rows = data("plain")[1][:100].clone()
    rows[3] = torch.nan if rank == 1 else rows[3]
    with pytest.raises(UserError, match="not finite"):  # on all processes, so that none waits for another
        sharded_neighbours(data("plain")[0], rows, 100 * rank, K)
    torch.save((searched(rank, processes), score.log_probabilities), f"{folder}/{rank}.pt")
    leave()


@pytest.mark.parametrize("processes", [2, 4])
def test_every_process_gets_the_neighbours_of_one_process_with_the_whole_bank(processes: int, tmp_path: Path) -> None:
    spawn(one_of_several, (processes, str(tmp_path)), processes)
    (score,) = KNN([K], 0.1).fit_predict(*features(), 7)
    assert score.log_probabilities is not None
    expected = [
        neighbours(*data(kind), K, distance=distance)
        for _ in PARTS[processes]
        for kind in ("plain", "tied", "double")
        for distance in ("product", "cosine", "euclidean")
    ]
    for rank in range(processes):
        results, log_probabilities = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(log_probabilities, score.log_probabilities)
        for (similarity, index), (values, rows) in zip(results, expected, strict=True):
            assert torch.equal(index, rows)
            assert torch.equal(similarity, values)


def test_one_process_may_hold_the_bank_from_any_row_on() -> None:
    queries, bank = data("plain")
    similarity, index = sharded_neighbours(queries, bank, 1000, K)
    values, rows = neighbours(queries, bank, K)
    assert torch.equal(similarity, values)
    assert torch.equal(index, rows + 1000)

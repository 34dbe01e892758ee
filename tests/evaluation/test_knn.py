import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from unlabeled.errors import UserError
from unlabeled.evaluation import knn
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.knn import KNN, knn_scores


def unit(n: int, dim: int, seed: int) -> Tensor:
    return normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def loop(queries: Tensor, bank: Tensor, labels: Tensor, k: int, temperature: float, num_classes: int) -> Tensor:
    scores = torch.zeros(len(queries), num_classes, dtype=torch.float64)
    for i, query in enumerate(queries.tolist()):
        cosine = [sum(a * b for a, b in zip(query, row, strict=True)) for row in bank.tolist()]
        for j in sorted(range(len(bank)), key=lambda j: -cosine[j])[:k]:
            scores[i, labels[j]] += math.exp(cosine[j] / temperature)
    return scores


@pytest.mark.parametrize("k", [1, 5, 20, 200])
@pytest.mark.parametrize("temperature", [0.07, 0.1, 1.0])
def test_scores_equal_a_loop_over_all_neighbours(k: int, temperature: float) -> None:
    queries, bank = unit(13, 6, 0), unit(200, 6, 1)
    labels = torch.randint(4, (200,), generator=torch.Generator().manual_seed(2))
    expected = loop(queries, bank, labels, k, temperature, 4)
    torch.testing.assert_close(knn_scores(queries, bank, labels, k, temperature, 4), expected, rtol=1e-12, atol=0)
    single = knn_scores(queries.float(), bank.float(), labels, k, temperature, 4)
    torch.testing.assert_close(single, expected, rtol=3e-5, atol=0)


def test_classes_without_a_bank_row_score_zero() -> None:
    labels = torch.tensor([1, 5] * 10)
    scores = knn_scores(unit(3, 4, 0), unit(20, 4, 1), labels, 20, 0.1, 8)
    assert scores.shape == (3, 8)
    assert scores[:, [0, 2, 3, 4, 6, 7]].eq(0).all()
    assert scores[:, [1, 5]].gt(0).all()


@pytest.mark.parametrize("chunk_bytes", [1, 30 * 4 * 7, 2**20])
def test_the_chunk_size_does_not_change_the_scores(chunk_bytes: int) -> None:
    labels = torch.arange(30) % 3
    scores = [knn_scores(unit(50, 4, 0), unit(30, 4, 1), labels, 5, 0.1, 3, size) for size in (chunk_bytes, 2**28)]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-12, atol=0)


def test_no_more_similarities_exist_at_a_time_than_the_chunk_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    nearest = knn._nearest

    def spy(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
        sizes.append(similarity.numel() * similarity.element_size())
        return nearest(similarity, k)

    monkeypatch.setattr(knn, "_nearest", spy)
    knn_scores(unit(1000, 4, 0).float(), unit(300, 4, 1).float(), torch.zeros(300).long(), 5, 0.1, 1, 64 * 1024)
    assert max(sizes) <= 64 * 1024
    assert sum(sizes) == 1000 * 300 * 4


def test_among_equal_bank_rows_the_first_win() -> None:
    query = torch.tensor([[1.0, 0.0]])
    bank = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    labels = torch.tensor([0, 3, 1, 2, 2])
    scores = knn_scores(query, bank, labels, 2, 1.0, 4)
    torch.testing.assert_close(scores, torch.tensor([[0.0, math.e, 0.0, math.e]], dtype=torch.float64))
    assert scores.argmax(dim=1).tolist() == [1]


def test_a_collapsed_network_votes_with_the_first_k_rows() -> None:
    bank = torch.tensor([[1.0, 0.0]]).expand(500, 2)
    labels = torch.arange(500) // 5
    index = knn.neighbours(bank[:7], bank, 7)[1]
    assert index.tolist() == [list(range(7))] * 7
    assert knn_scores(bank[:7], bank, labels, 7, 0.1, 100).argmax(dim=1).tolist() == [0] * 7


def test_each_k_of_the_probe_scores_as_if_it_were_alone() -> None:
    # few distinct values, so that neighbours tie at every k
    x = torch.randint(-1, 2, (400, 3), generator=torch.Generator().manual_seed(0)).float() + 0.1
    labels = torch.randint(5, (400,), generator=torch.Generator().manual_seed(1))
    train, test = Features(x[:300], labels[:300], labels[:300]), Features(x[300:], labels[300:], labels[300:])
    together = KNN([200, 1, 20], 0.1).fit_predict(train, test, 5)
    alone = [KNN([k], 0.1).fit_predict(train, test, 5)[0] for k in (1, 20, 200)]
    assert together == alone
    assert [score.protocol for score in together] == [f"knn/cosine-exp/k={k}/T=0.1" for k in (1, 20, 200)]


def test_the_length_of_a_feature_does_not_matter_to_the_probe() -> None:
    x, labels = unit(60, 5, 0).float(), torch.arange(60) % 2
    x[:, 0] += labels
    scale = torch.linspace(0.1, 50, 60)[:, None]
    halves = [Features(v[:40], labels[:40], labels[:40]) for v in (x, x * scale)]
    tests = [Features(v[40:], labels[40:], labels[40:]) for v in (x, x * scale)]
    scores = [KNN([5], 0.1).fit_predict(a, b, 2)[0].top1 for a, b in zip(halves, tests, strict=True)]
    assert scores[0] == scores[1] > 60


def test_a_tiny_temperature_neither_overflows_nor_changes_the_nearest() -> None:
    queries, bank, labels = unit(20, 3, 0), unit(30, 3, 1), torch.arange(30)
    scores = knn_scores(queries, bank, labels, 30, 0.002, 30)
    assert scores.isfinite().all()
    assert torch.equal(scores.argmax(dim=1), (queries @ bank.T).argmax(dim=1))


def test_impossible_settings_name_the_key() -> None:
    with pytest.raises(UserError, match=r"probe\.knn\.k is 31.*30 labelled images.*1 to 30"):
        knn_scores(unit(2, 3, 0), unit(30, 3, 1), torch.arange(30), 31, 0.1, 30)
    with pytest.raises(UserError, match=r"probe\.knn\.temperature is 0"):
        KNN([5], 0.0)
    with pytest.raises(UserError, match=r"probe\.knn\.k is \[\]"):
        KNN([], 0.1)
    with pytest.raises(UserError, match="not finite"):
        knn_scores(torch.full((1, 3), math.nan), unit(30, 3, 1).float(), torch.arange(30), 5, 0.1, 30)

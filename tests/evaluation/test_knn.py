import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from unlabeled.errors import UserError
from unlabeled.evaluation import knn
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.knn import knn_scores
from unlabeled.evaluation.probes.knn import KNN
from unlabeled.evaluation.top_k import top_k


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", ["product", "cosine", "euclidean"])
def test_the_chunk_size_does_not_change_a_bit_of_the_result(dtype: torch.dtype, distance: str) -> None:
    queries, bank = unit(250, 20, 0).to(dtype), unit(700, 20, 1).to(dtype)
    whole = knn.neighbours(queries, bank, 60, 2**28, distance)
    for chunk_bytes in (1, 2**18, 2**20):
        cut = knn.neighbours(queries, bank, 60, chunk_bytes, distance)
        assert torch.equal(cut[0], whole[0])
        assert torch.equal(cut[1], whole[1])


def test_no_more_similarities_exist_at_a_time_than_the_chunk_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def spy(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
        sizes.append((similarity.shape[0], similarity.shape[1] // 48 * 48 * 4 * similarity.shape[0]))
        return top_k(similarity, k)

    monkeypatch.setattr("unlabeled.evaluation.knn.top_k", spy)
    knn_scores(unit(1000, 4, 0).float(), unit(300, 4, 1).float(), torch.zeros(300).long(), 5, 0.1, 1, 128 * 1024)
    assert max(size for _, size in sizes) <= 128 * 1024
    assert sum(rows for rows, _ in sizes) == 1000 * math.ceil(
        300 / 48
    )  # 128 KiB hold 48 bank rows as if of 512 numbers


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
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.top1 == theirs.top1
        for name in ("predictions", "log_probabilities"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
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
    with pytest.raises(UserError, match=r"probe\.knn\.distance is 'cos'; allowed: cosine, euclidean"):
        KNN([5], 0.1, distance="cos")
    with pytest.raises(UserError, match=r"probe\.knn\.weights is 'distance'; allowed: exp, uniform"):
        KNN([5], 0.1, weights="distance")
    with pytest.raises(UserError, match=r"temperature is 0\.1, and uniform weights have none: set it to null"):
        KNN([5], 0.1, weights="uniform")
    with pytest.raises(UserError, match="not finite"):
        knn_scores(torch.full((1, 3), math.nan), unit(30, 3, 1).float(), torch.arange(30), 5, 0.1, 30)


def probe_loop(train: Features, test: Features, k: int, classes: int, distance: str, weights: str) -> Tensor:
    """Shares of the votes [Q, classes], by the definition, in float64."""
    shares = torch.zeros(len(test.x), classes, dtype=torch.float64)
    for i, query in enumerate(test.x.double()):
        if distance == "cosine":
            similar = (train.x.double() @ query / (train.x.double().norm(dim=1) * query.norm())).tolist()
        else:
            similar = (-(train.x.double() - query).square().sum(dim=1)).tolist()
        for j in sorted(range(len(similar)), key=lambda j: -similar[j])[:k]:
            shares[i, train.labels[j]] += math.exp(similar[j] / 0.5) if weights == "exp" else 1
    return shares / shares.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("k", [1, 5, 20, 200])
@pytest.mark.parametrize("weights", ["exp", "uniform"])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_predictions_and_log_probabilities_are_those_of_a_loop_with_classes_missing_on_either_side(
    k: int, weights: str, distance: str
) -> None:
    names = torch.tensor([2, 3, 11, 40])  # train has 2, 3, 11; test 3, 11, 40
    y = torch.randint(3, (330,), generator=torch.Generator().manual_seed(0))
    x = unit(330, 6, 1) * (1 + torch.rand(330, 1, generator=torch.Generator().manual_seed(2)))
    train = Features(x[:300], names[y[:300]], y[:300])
    test = Features(x[300:], names[y[300:] + 1], y[300:])
    probe = KNN([k], 0.5 if weights == "exp" else None, distance, weights)
    (score,) = probe.fit_predict(train, test, 50)
    shares = probe_loop(train, test, k, 50, distance, weights)
    assert score.predictions is not None
    assert score.log_probabilities is not None
    assert score.log_probabilities.dtype == torch.float32
    torch.testing.assert_close(score.log_probabilities, shares.log().float(), rtol=1e-6, atol=1e-6)
    assert torch.equal(score.predictions, shares.argmax(dim=1))
    assert score.top1 == pytest.approx(100 * float((shares.argmax(dim=1) == test.labels).double().mean()))
    assert score.notes == ["47 of 50 classes have no train image and are never predicted."]
    temperature = "/T=0.5" if weights == "exp" else ""
    assert score.protocol == f"knn/{distance}-{weights}/k={k}{temperature}"


def test_far_features_still_vote_and_another_kind_of_features_is_named() -> None:
    x, labels = unit(60, 5, 0).float(), torch.arange(60) % 2
    far = Features(x, labels, labels, {"cls": 1000 * (x + labels[:, None])})
    (score,) = KNN([5], 0.1, "euclidean", features="cls").fit_predict(far, far, 2)
    assert score.top1 == 100  # exp(−distance²/T) of all but the image itself is 0 in any precision
    assert score.protocol == "knn/euclidean-exp/k=5/T=0.1/features=cls"


@pytest.mark.parametrize("distinct", [2, 30, 3000])
def test_the_k_largest_by_groups_are_those_of_a_stable_sort(distinct: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for width in (640, 1285, 3001):  # with and without a last group that is not full
        similarity = torch.randint(distinct, (70, width), generator=generator).double()
        for k in (1, 2, 10, 40, 600):
            values, columns = similarity.sort(dim=1, descending=True, stable=True)
            found = top_k(similarity, k)
            assert torch.equal(found[0], values[:, :k])
            assert torch.equal(found[1], columns[:, :k])


MEASURE = """
import resource, torch
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.probes.knn import KNN

torch.set_num_threads(1)
x, y = torch.randn(26_000, 128), torch.randint(1000, (26_000,))
train, test = Features(x[:20_000], y[:20_000], y[:20_000]), Features(x[20_000:], y[20_000:], y[20_000:])
few = test.rows(torch.arange(100))
KNN([20], 0.1).fit_predict(few, few, 1000)  # libraries are loaded, their own memory is taken
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
KNN([20, 200], 0.1).fit_predict(train, test, 1000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_the_peak_memory_is_bounded_by_a_chunk_and_the_results() -> None:
    """All similarities would take 458 MiB. benchmarks/probes.py measures 10,000 × 50,000."""
    output = subprocess.run([sys.executable, "-c", MEASURE], check=True, capture_output=True, text=True).stdout
    assert float(output) < 128 + 10 + 2 * 23 + 60  # similarities, bank, log-probabilities of both k, all else


def test_more_neighbours_than_there_are_images_become_all_of_them_in_one_column_that_says_so() -> None:
    x, labels = unit(20, 5, 0).float(), torch.arange(20) % 2
    bank = Features(x, labels, labels)
    first, whole = KNN([5, 50, 200], 0.1).fit_predict(bank, bank, 2)
    assert [first.protocol, whole.protocol] == ["knn/cosine-exp/k=5/T=0.1", "knn/cosine-exp/k=20/T=0.1"]
    assert whole.notes == ["probe.knn.k=50,200 is more than the 20 labelled train images: k=20."]
    (alone,) = KNN([20], 0.1).fit_predict(bank, bank, 2)
    assert torch.equal(whole.predictions, alone.predictions)  # type: ignore[arg-type]
    assert alone.notes == []

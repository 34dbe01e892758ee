"""k-NN of features that lie far from the origin, or are very long or very short."""

import pytest
import torch
from torch import Tensor

from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features, all_finite, unit_rows
from unlabeled.evaluation.knn import knn_scores, neighbours
from unlabeled.evaluation.probes.clustering import KMeans
from unlabeled.evaluation.probes.knn import KNN


def grid(side: int, dim: int) -> Tensor:
    """Points with whole coordinates, each with 2·dim neighbours at a distance of 1."""
    return torch.cartesian_prod(*[torch.arange(float(side))] * dim)


def nearest(queries: Tensor, bank: Tensor, k: int) -> Tensor:
    """Rows by the definition: differences first, in float64; equal ones by their number."""
    distance = (queries.double()[:, None] - bank.double()).square().sum(2)
    return distance.argsort(dim=1, stable=True)[:, :k]


@pytest.mark.parametrize("mean", [0.0, 5000.0, -1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_euclidean_neighbours_are_the_same_wherever_the_features_lie(mean: float, dtype: torch.dtype) -> None:
    bank = (grid(9, 3) + mean).to(dtype)
    queries = bank[::18] + 0.25  # a sum that float32 holds at 1e6 as well
    similarity, rows = neighbours(queries, bank, 5, distance="euclidean")
    assert torch.equal(rows, nearest(queries, bank, 5))
    exact = -(queries.double()[:, None] - bank.double()[rows]).square().sum(2)
    torch.testing.assert_close(similarity, exact, rtol=0, atol=1e-2 if abs(mean) > 1e5 else 1e-6)


def test_two_clouds_far_apart_have_each_their_own_neighbours() -> None:
    bank = torch.cat([grid(5, 3) - 20_000, grid(5, 3) + 20_000])
    rows = neighbours(bank + 0.125, bank, 3, distance="euclidean")[1]
    assert torch.equal(rows, nearest(bank + 0.125, bank, 3))


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_images_of_the_bank_find_themselves_however_long_their_features_are(scale: float, distance: str) -> None:
    x = torch.randn(300, 16, generator=torch.Generator().manual_seed(0)) * scale
    labels = torch.arange(300) % 10
    bank = Features(x, labels, labels)
    (score,) = KNN([1], 0.1, distance).fit_predict(bank, bank, 10)
    assert score.top1 == 100
    (wide,) = KNN([20], 0.1, distance).fit_predict(bank, bank, 10)
    assert wide.log_probabilities is not None
    assert not wide.log_probabilities.isnan().any()
    torch.testing.assert_close(wide.log_probabilities.double().exp().sum(1), torch.ones(300, dtype=torch.float64))


def test_cosine_neighbours_do_not_depend_on_the_length_to_the_bit() -> None:
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    expected = neighbours(x[:50], x[50:], 7, distance="cosine")
    for power in (-60, 60):
        found = neighbours(x[:50] * 2.0**power, x[50:], 7, distance="cosine")
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_rows_of_ordinary_length_are_scaled_by_the_bits_of_torch_and_zeros_stay() -> None:
    x = torch.randn(100, 33, generator=torch.Generator().manual_seed(0)) * torch.linspace(1e-4, 1e4, 100)[:, None]
    assert torch.equal(unit_rows(x), torch.nn.functional.normalize(x))
    assert torch.equal(unit_rows(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_finite_features_whose_sum_overflows_are_finite() -> None:
    largest = torch.full((4, 3), 3e38)
    assert largest.sum().isinf()
    assert all_finite(largest)
    assert not all_finite(torch.tensor([[3e38, 3e38], [float("nan"), 0.0]]))
    assert not all_finite(torch.tensor([[float("inf")]]))
    assert neighbours(largest, largest, 1, distance="cosine")[1].tolist() == [[0]] * 4


def test_squares_that_even_float64_cannot_hold_are_one_line() -> None:
    x = torch.randn(30, 4, dtype=torch.float64) * 1e200
    far = Features(x, torch.arange(30) % 3, torch.arange(30))
    with pytest.raises(UserError, match=r"squared distances of these features are infinite; distance=cosine"):
        KNN([5], 0.1, "euclidean").fit_predict(far, far, 3)


def test_what_knn_scores_is_given_must_fit() -> None:
    bank, labels = torch.eye(4), torch.arange(4)
    knn_scores(bank, bank, labels, 2, 0.1, 4)
    with pytest.raises(UserError, match=r"queries \[2, 3\] and bank \[4, 4\] must be \[Q, D\] and \[N, D\]"):
        knn_scores(torch.ones(2, 3), bank, labels, 2, 0.1, 4)
    for wrong in (labels[:3], labels - 1, labels + 1, labels.float()):
        with pytest.raises(UserError, match=r"bank_labels must be int64 \[4\] in 0\.\.3"):
            knn_scores(bank, bank, wrong, 2, 0.1, 4)
    with pytest.raises(UserError, match="rows must have length 1"):
        knn_scores(bank * 100, bank, labels, 2, 0.1, 4)


def test_k_means_on_features_that_are_not_finite_is_one_line() -> None:
    x = torch.randn(40, 4)
    x[7, 2] = float("nan")
    train, test = (
        Features(x, torch.arange(40) % 4, torch.arange(40)),
        Features(x[:5], torch.arange(5) % 4, torch.arange(5)),
    )
    with pytest.raises(UserError, match=r"^probe\.kmeans was given features that are not finite"):
        KMeans(None, "l2", 1, 10, 0).fit_predict(train, test, 4)


@pytest.mark.parametrize("length", [1e20, 1e38])
def test_products_that_overflow_are_one_line_and_no_neighbours(length: float) -> None:
    x = unit_rows(grid(3, 3) + 1) * length
    with pytest.raises(UserError, match=r"^k-NN was given features whose products overflow: the network has diverged"):
        neighbours(x, x, 2)


def test_a_distance_of_another_name_and_a_temperature_without_an_end_are_refused() -> None:
    x = unit_rows(grid(3, 3) + 1)
    with pytest.raises(UserError, match=r"distance=manhattan is not known; allowed: product, cosine, euclidean$"):
        neighbours(x, x, 2, distance="manhattan")
    for temperature in (float("inf"), float("nan"), 0.0, -1.0):
        with pytest.raises(UserError, match=rf"temperature is {temperature}"):
            knn_scores(x, x, torch.zeros(len(x), dtype=torch.int64), 2, temperature, 1)

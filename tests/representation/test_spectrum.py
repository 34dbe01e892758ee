import math

import pytest
import torch
from torch import Tensor

from unlabeled.representation.figures import spectrum_plot
from unlabeled.representation.measures import measure_warnings
from unlabeled.representation.spectrum import alpha_req, effective_rank, normalised_std, rankme, ranks


def gaussian(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rankme_by_loop(features: Tensor, epsilon: float) -> float:
    sigma = torch.linalg.svdvals(features.double()).tolist()
    p = [each / sum(sigma) + epsilon for each in sigma]
    return math.exp(-sum(each * math.log(each) for each in p if each > 0))


def power_law(n: int, d: int, alpha: float) -> Tensor:
    """Rows whose sample covariance has the eigenvalues i^−α to rounding, with a mean and a rotation."""
    left = torch.linalg.qr(gaussian(n, d) - gaussian(n, d).mean(0)).Q
    right = torch.linalg.qr(gaussian(d, d, 1)).Q
    scales = torch.arange(1, d + 1, dtype=torch.float64).pow(-alpha / 2) * (n - 1) ** 0.5
    rows: Tensor = left * scales @ right + 3
    return rows


@pytest.mark.parametrize(("n", "d"), [(90, 24), (24, 90)])
@pytest.mark.parametrize("epsilon", [1e-7, 1e-3])
def test_rankme_equals_the_papers_formula_on_either_side_of_the_matrix(n: int, d: int, epsilon: float) -> None:
    features = gaussian(n, d) + 2
    assert rankme(features, epsilon=epsilon) == pytest.approx(rankme_by_loop(features, epsilon), rel=1e-6)
    centred = features - features.mean(0)
    assert rankme(features, centred=True, epsilon=epsilon) == pytest.approx(rankme_by_loop(centred, epsilon), rel=1e-5)
    assert effective_rank(features) == pytest.approx(rankme_by_loop(centred, 0), rel=1e-6)


def test_ranks_gives_at_once_what_the_single_functions_give() -> None:
    features = gaussian(50, 20).float() + 1
    expected = rankme(features), rankme(features, centred=True), effective_rank(features)
    assert ranks(features) == pytest.approx(expected, rel=1e-12)


def test_the_rank_of_one_direction_is_one_and_of_equal_directions_their_number() -> None:
    line = torch.outer(gaussian(100, 1)[:, 0], gaussian(64, 1)[:, 0])
    assert rankme(line) == pytest.approx(1, abs=2e-3)
    assert effective_rank(line, centred=False) == pytest.approx(1, abs=1e-3)
    equal = torch.linalg.qr(gaussian(300, 64)).Q
    assert effective_rank(equal, centred=False) == pytest.approx(64, rel=1e-9)
    assert rankme(equal) == pytest.approx(64, rel=1e-4)


def test_the_papers_epsilon_adds_little_and_a_larger_one_passes_the_number_of_dimensions() -> None:
    isotropic = gaussian(4096, 512)
    assert 500 < rankme(isotropic) < 512
    assert rankme(isotropic, epsilon=1e-3) > 512


def test_rankme_of_few_isotropic_images_is_too_low_by_what_the_specification_says() -> None:
    for n, expected in ((256, 244), (1024, 673)):
        assert rankme(gaussian(n, 768)) == pytest.approx(expected, abs=1.5)


def test_a_mean_far_from_zero_halves_rankme_unless_it_is_taken_away() -> None:
    found = ranks(gaussian(8192, 512) + 5)
    assert found.rankme == pytest.approx(261.6, abs=0.5)
    assert found.rankme_centred == pytest.approx(508.0, abs=0.2)
    assert found.effective_rank == pytest.approx(508.0, abs=0.2)


def test_features_that_are_all_equal_have_rank_one_and_none_when_centred() -> None:
    constant = gaussian(1, 32).float().expand(200, 32)
    found = ranks(constant)
    assert found.rankme == pytest.approx(1, abs=1e-3)
    assert (found.rankme_centred, found.effective_rank) == (0, 0)
    assert ranks(torch.zeros(20, 8)) == (0, 0, 0)
    assert math.isnan(alpha_req(constant, (2, 20))[0])


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.5])
def test_alpha_req_recovers_a_power_law_exactly_and_says_that_the_line_fits(alpha: float) -> None:
    found, r_squared = alpha_req(power_law(400, 128, alpha))
    assert found == pytest.approx(alpha, abs=1e-6)
    assert r_squared == pytest.approx(1, abs=1e-9)


def test_alpha_req_of_samples_of_a_power_law_is_near_it() -> None:
    scales = torch.arange(1, 129, dtype=torch.float64).pow(-0.5)
    found, r_squared = alpha_req(gaussian(20_000, 128) * scales)
    assert found == pytest.approx(1, abs=0.02)
    assert r_squared > 0.999


def test_alpha_req_equals_the_weighted_least_squares_of_the_papers_code_and_its_window_stays() -> None:
    features, window = gaussian(300, 60) * torch.linspace(2, 0.1, 60, dtype=torch.float64), (11, 40)
    centred = features - features.mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred / 299).flip(0)
    index = torch.arange(11, 41, dtype=torch.float64).tolist()
    rows = [(-math.log(i), 1.0, 1 / i, math.log(float(values[int(i) - 1]))) for i in index]
    x = torch.tensor([[a, b] for a, b, _, _ in rows], dtype=torch.float64)
    w = torch.tensor([[w] for _, _, w, _ in rows], dtype=torch.float64)
    y = torch.tensor([[y] for *_, y in rows], dtype=torch.float64)
    expected = torch.linalg.solve(x.T @ (x * w), (w * x).T @ y)[0, 0]
    for _ in range(2):
        assert alpha_req(features, window)[0] == pytest.approx(float(expected), rel=1e-9)
    assert alpha_req(features, (1, 60))[0] != pytest.approx(float(expected), rel=1e-2)


def test_a_window_beyond_the_eigenvalues_is_refused() -> None:
    with pytest.raises(ValueError, match="have 63 eigenvalues"):
        alpha_req(gaussian(64, 200))


def test_the_std_of_normalised_isotropic_features_is_one_over_the_root_of_d_and_of_equal_ones_zero() -> None:
    assert normalised_std(gaussian(5000, 128)) == pytest.approx(128**-0.5, rel=2e-3)
    assert normalised_std(gaussian(1, 128).expand(50, 128)) == pytest.approx(0, abs=1e-12)
    rows = [(torch.tensor(row) / torch.tensor(row).norm()).tolist() for row in ([3.0, 4.0], [1.0, 0.0], [0.0, -2.0])]
    means = [sum(row[d] for row in rows) / 3 for d in range(2)]
    stds = [(sum((row[d] - means[d]) ** 2 for row in rows) / 3) ** 0.5 for d in range(2)]
    assert normalised_std(torch.tensor([[3.0, 4], [1, 0], [0, -2]])) == pytest.approx(sum(stds) / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("there", "said"),
    [(120, "the data have too few images for them"), (600, "give images=600"), (9000, "give images=1280")],
)
def test_more_images_are_asked_for_only_where_the_data_have_them(there: int, said: str) -> None:
    space = {"images": 120, "dimensions": 128, "lidar_images": 200, "alpha_window": [11, 100]}
    (warning,) = measure_warnings("backbone", space, [11, 100], there)
    assert warning.endswith(f"; {said}")


def test_a_collapsed_spectrum_is_drawn_without_the_line_that_it_is_too_short_for() -> None:
    values = torch.cat([torch.ones(5), torch.zeros(123)]).double()
    space = {"alpha": 1.0, "alpha_window": [11, 50], "alpha_r_squared": 1.0}
    figure = spectrum_plot({"features": values}, {"features": space})
    assert len(figure.axes[0].lines) == 1

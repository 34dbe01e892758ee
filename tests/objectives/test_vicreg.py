"""VICReg against the paper and closed forms; on several processes: test_losses_in_processes.py."""

import math

import pytest
import torch
from torch import Tensor, nn

from tests.objectives.two_views import (
    AT,
    PLAN,
    BatchNormBackbone,
    assert_bf16_within_a_hundredth,
    assert_same_loss_and_gradients,
    draw,
    drawn,
    make_batch,
    seen_by,
)
from unlabeled.errors import UserError
from unlabeled.objective import Plan
from unlabeled.objectives.vicreg import VICReg, vicreg_loss


def literal_vicreg_loss(z1: Tensor, z2: Tensor, invariance: float, variance: float, covariance: float) -> Tensor:
    """arXiv:2105.04906, eq. 1 to 6, with the official factors: half of the variances, all of the covariances."""
    images, width = z1.shape
    near = sum((z1[n, d] - z2[n, d]) ** 2 for n in range(images) for d in range(width)) / (images * width)
    total = invariance * near
    for z in (z1, z2):
        means = [sum(z[n, d] for n in range(images)) / images for d in range(width)]
        for i in range(width):
            for j in range(width):
                products = [(z[n, i] - means[i]) * (z[n, j] - means[j]) for n in range(images)]
                cov = sum(products) / (images - 1)
                if i == j:
                    spread = (cov + 1e-4) ** 0.5
                    total = total + variance * torch.clamp(torch.as_tensor(1 - spread), min=0) / width / 2
                else:
                    total = total + covariance * cov**2 / width
    assert isinstance(total, Tensor)
    return total


def make_objective(**changed: object) -> VICReg:
    torch.manual_seed(0)
    given = {"projection_layers": 3, "hidden_dim": 6, "projection_dim": 8}
    weights = {"invariance": 25.0, "variance": 25.0, "covariance": 1.0}
    return VICReg(BatchNormBackbone(), **{**given, **weights, **changed}).double()  # type: ignore[arg-type]


@pytest.mark.parametrize(("batch", "dim"), [(2, 3), (5, 4)])
@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_the_loss_and_its_gradients_equal_the_papers_loops(
    batch: int, dim: int, weights: tuple[float, float, float]
) -> None:
    assert_same_loss_and_gradients(vicreg_loss, literal_vicreg_loss, drawn("z1 z2", batch, dim), *weights)


def test_collapsed_embeddings_give_99_hundredths_of_the_variances_weight() -> None:
    z = torch.ones(8, 16)
    assert float(vicreg_loss(z, z, 25, 25, 1)) == pytest.approx(24.75, rel=1e-6)
    assert make_objective().collapsed_at(PLAN) == pytest.approx(24.75)


def test_uncorrelated_columns_of_unit_variance_give_0_and_each_term_its_closed_form() -> None:
    signs = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)  # var 4/3
    assert float(vicreg_loss(signs, signs, 25, 25, 1)) == pytest.approx(0, abs=1e-12)
    assert float(vicreg_loss(signs, signs + 0.5, 25, 25, 1)) == pytest.approx(25 * 0.25)
    small = 1 - math.sqrt(0.01 * 4 / 3 + 1e-4)
    assert float(vicreg_loss(0.1 * signs, 0.1 * signs, 25, 25, 0)) == pytest.approx(25 * small)
    column = signs[:, :1].expand(-1, 5)
    assert float(vicreg_loss(column, column, 0, 0, 1)) == pytest.approx(2 * 4 * (4 / 3) ** 2)  # 5 · 4 pairs / 5


def test_in_bfloat16_the_loss_is_float32_and_within_one_per_cent() -> None:
    assert_bf16_within_a_hundredth(vicreg_loss, [draw(64, 16), draw(64, 16, seed=1)], 25.0, 25.0, 1.0)


def test_the_objectives_loss_is_that_of_its_projections_and_its_metrics_are_the_terms() -> None:
    objective, batch = make_objective(), make_batch()
    z = [objective.projector(objective.backbone(view)) for view in batch.views]
    output = objective(batch, AT)
    torch.testing.assert_close(output.loss, vicreg_loss(z[0], z[1], 25, 25, 1), rtol=1e-12, atol=0)
    for name, only in (("invariance", (1, 0, 0)), ("variance", (0, 1, 0)), ("covariance", (0, 0, 1))):
        assert float(output.metrics[name]) == pytest.approx(float(vicreg_loss(z[0], z[1], *only).detach()))


def test_each_view_goes_through_the_network_alone_and_both_get_a_gradient() -> None:
    objective = make_objective()
    rows = [seen_by(module) for module in (objective.backbone, objective.projector)]
    objective(make_batch(), AT).loss.backward()
    assert rows == [[8, 8], [8, 8]]
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_the_expander_has_the_official_layers_and_biases() -> None:
    expander = make_objective().projector
    inner = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(module) for module in expander.children()] == [*inner, *inner, nn.Linear]
    assert [name for name, _ in expander.named_parameters() if name in ("0.bias", "3.bias", "6.bias")] == [
        "0.bias",
        "3.bias",
    ]


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(UserError, match=r"^objective\.projection_layers=0"):
        make_objective(projection_layers=0)
    with pytest.raises(UserError, match=r"^batch_size=1: "):
        make_objective().check(Plan(1, 1, 100, (2, 2)))
    with pytest.raises(ValueError, match=r"^vicreg_loss: a single image has no variance"):
        vicreg_loss(torch.ones(1, 4), torch.ones(1, 4), 25, 25, 1)

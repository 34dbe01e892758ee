"""Barlow Twins against the paper and closed forms; on several processes: test_losses_in_processes.py."""

from functools import partial

import pytest
import torch
from torch import Tensor

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
from unlabeled.objective import Plan, Progress
from unlabeled.objectives.barlow_twins import BarlowTwins, barlow_twins_loss
from unlabeled.optimizers import OptimizerConfig


def literal_barlow_twins_loss(z1: Tensor, z2: Tensor, weight: float) -> Tensor:
    """arXiv:2103.03230, eq. 1 and Algorithm 1, column by column; standardised as BatchNorm does it."""
    images, width = z1.shape

    def standard(z: Tensor, column: int) -> Tensor:
        mean = sum(z[n, column] for n in range(images)) / images
        variance = sum((z[n, column] - mean) ** 2 for n in range(images)) / images
        return torch.stack([(z[n, column] - mean) / (variance + 1e-5) ** 0.5 for n in range(images)])

    total = z1.new_zeros(())
    for i in range(width):
        for j in range(width):
            correlation = (standard(z1, i) * standard(z2, j)).sum() / images
            total = total + ((1 - correlation) ** 2 if i == j else weight * correlation**2)
    return total


def make_objective(**changed: object) -> BarlowTwins:
    torch.manual_seed(0)
    given = {"projection_layers": 3, "hidden_dim": 6, "projection_dim": 8, "off_diagonal_weight": 0.0051}
    rest = {"scale": 1.0, "bias_lr_factor": 0.024}
    return BarlowTwins(BatchNormBackbone(), **{**given, **rest, **changed}).double()  # type: ignore[arg-type]


@pytest.mark.parametrize(("batch", "dim"), [(2, 3), (5, 4)])
@pytest.mark.parametrize("weight", [0.0, 0.0051, 1.0])
def test_the_loss_and_its_gradients_equal_the_papers_double_loop(batch: int, dim: int, weight: float) -> None:
    assert_same_loss_and_gradients(barlow_twins_loss, literal_barlow_twins_loss, drawn("z1 z2", batch, dim), weight)


def test_the_loss_and_its_gradients_do_not_suffer_from_a_large_common_mean() -> None:
    """E[z²] − E[z]² of plain float32 would have lost all digits here."""
    z1, z2 = drawn("z1 z2", 6, 4)
    exact = torch.autograd.grad(literal_barlow_twins_loss(z1, z2, 0.1), [z1, z2])
    far = [(z.detach() + 1e3).float().requires_grad_() for z in (z1, z2)]
    found = torch.autograd.grad(barlow_twins_loss(far[0], far[1], 0.1), far)
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=2e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize("weight", [0.0051, 0.3])
def test_uncorrelated_equal_views_give_0_their_negation_4d_and_equal_columns_all_pairs(weight: float) -> None:
    signs = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)  # orthogonal
    near = pytest.approx
    assert float(barlow_twins_loss(signs, 7 * signs, weight)) == near(0, abs=1e-8)
    assert float(barlow_twins_loss(signs, -signs, weight)) == near(4 * 3, rel=1e-4)
    column = signs[:, :1].expand(-1, 5)
    assert float(barlow_twins_loss(column, column, weight)) == near(weight * 5 * 4, rel=1e-4)


@pytest.mark.parametrize("dim", [3, 64])
def test_collapsed_embeddings_give_the_width(dim: int) -> None:
    z = torch.ones(8, dim)
    assert float(barlow_twins_loss(z, z, 0.0051)) == pytest.approx(dim)
    assert make_objective(projection_dim=dim, scale=0.1).collapsed_at(PLAN) == pytest.approx(0.1 * dim)


def test_in_bfloat16_the_loss_is_float32_and_within_one_per_cent() -> None:
    assert_bf16_within_a_hundredth(barlow_twins_loss, [draw(64, 16), draw(64, 16) + draw(64, 16, seed=1)], 0.0051)


def test_the_objectives_loss_is_the_scaled_one_of_its_projections_and_its_metrics_are_those_of_the_matrix() -> None:
    objective, batch = make_objective(scale=0.1), make_batch()
    z = [objective.projector(objective.backbone(view)) for view in batch.views]
    output = objective(batch, AT)
    torch.testing.assert_close(output.loss, 0.1 * barlow_twins_loss(z[0], z[1], 0.0051), rtol=1e-12, atol=0)
    standard = [(each - each.mean(0)) / (each.var(0, unbiased=False) + 1e-5).sqrt() for each in z]
    matrix = standard[0].T @ standard[1] / 8
    off = matrix[~torch.eye(8, dtype=torch.bool)]
    assert float(output.metrics["diagonal_correlation"]) == pytest.approx(float(matrix.diagonal().mean().detach()))
    assert float(output.metrics["off_diagonal_correlation"]) == pytest.approx(float(off.detach().pow(2).mean().sqrt()))


def test_each_view_goes_through_the_network_alone_and_both_get_a_gradient() -> None:
    objective = make_objective()
    rows = [seen_by(module) for module in (objective.backbone, objective.projector)]
    objective(make_batch(), AT).loss.backward()
    assert rows == [[8, 8], [8, 8]]
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_biases_and_norms_have_their_own_rate() -> None:
    """0.0048 beside 0.2 for 256 images, in the README's run of 2048: 0.0384 beside 1.6."""
    objective = make_objective()
    recipe = OptimizerConfig(partial(torch.optim.SGD, momentum=0.9), 0.2, "linear", 0, 1e-6, False)
    optimizer = recipe.build(objective, 2048)
    recipe.set_step(optimizer, Progress(0, 100, 10, 0), 2048)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["lr"] == pytest.approx(0.0384 if parameter.ndim <= 1 else 1.6)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(objective.parameters()))
    assert make_objective(bias_lr_factor=1.0).lr_factors() == {}


def test_what_cannot_work_is_refused_by_its_key() -> None:
    with pytest.raises(UserError, match=r"^objective\.projection_layers=0"):
        make_objective(projection_layers=0)
    with pytest.raises(UserError, match=r"^batch_size=1: "):
        make_objective().check(Plan(1, 1, 100, (2, 2)))
    with pytest.raises(UserError, match="exactly 2"):
        make_objective().check(Plan(8, 1, 100, (2, 2, 2)))

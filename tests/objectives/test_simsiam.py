"""SimSiam against the paper, closed forms, and what its gradient and learning rate reach."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.objectives.two_views import (
    AT,
    PLAN,
    BatchNormBackbone,
    assert_bf16_within_a_hundredth,
    assert_same_loss_and_gradients,
    cosine,
    draw,
    drawn,
    make_batch,
    seen_by,
)
from unlabeled.errors import UserError
from unlabeled.objective import Progress
from unlabeled.objectives.simsiam import SimSiam, simsiam_loss
from unlabeled.optimizers import OptimizerConfig


def literal_simsiam_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """arXiv:2011.10566, eq. 1 to 4, without a gradient to z."""
    total = p1.new_zeros(())
    for p, z in ((p1, z2), (p2, z1)):
        for i in range(len(p)):
            total = total - 0.5 * cosine(p[i], z[i].detach()) / len(p)
    return total


def make_objective(**changed: object) -> SimSiam:
    torch.manual_seed(0)
    given = {"projection_layers": 3, "hidden_dim": 6, "projection_dim": 8, "predictor_dim": 2}
    constant = {"constant_predictor_rate": True}
    return SimSiam(BatchNormBackbone(), **{**given, **constant, **changed}).double()  # type: ignore[arg-type]


@pytest.mark.parametrize(("batch", "dim"), [(1, 4), (2, 3), (5, 8)])
def test_the_loss_and_its_gradients_equal_the_papers_loop(batch: int, dim: int) -> None:
    assert_same_loss_and_gradients(simsiam_loss, literal_simsiam_loss, drawn("p1 p2 z1 z2", batch, dim))


def test_equal_opposite_and_orthogonal_rows_give_minus_1_1_and_0() -> None:
    rows, other = torch.eye(4)[:2], torch.eye(4)[2:]
    for target, expected in ((rows, -1.0), (-rows, 1.0), (other, 0.0)):
        assert float(simsiam_loss(rows, 3 * rows, target, 0.1 * target)) == pytest.approx(expected, abs=1e-6)
    assert make_objective().collapsed_at(PLAN) == -1


def test_in_bfloat16_the_loss_is_float32_and_within_one_per_cent() -> None:
    p, z = [draw(32, 16, seed=seed) for seed in range(2)], [draw(32, 16, seed=seed) for seed in (1, 0)]
    assert_bf16_within_a_hundredth(simsiam_loss, [*p, *(a + b for a, b in zip(p, z, strict=True))])


def test_the_heads_have_the_official_layers_and_the_last_norm_has_no_parameters() -> None:
    objective = make_objective()
    inner = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(module) for module in objective.projector.children()] == [*inner, *inner, nn.Linear, nn.BatchNorm1d]
    assert [type(module) for module in objective.predictor.children()] == [*inner, nn.Linear]
    names = dict(objective.projector.named_parameters()) | {
        f"p.{name}": 0 for name, _ in objective.predictor.named_parameters()
    }
    hidden = [f"{place}.{kind}" for place in (0, 3) for kind in ("weight",)] + [
        f"{place}.{kind}" for place in (1, 4) for kind in ("weight", "bias")
    ]
    assert set(names) == {*hidden, "6.weight", "p.0.weight", "p.1.weight", "p.1.bias", "p.3.weight", "p.3.bias"}


def test_the_gradient_is_that_of_predictions_alone_with_projections_held() -> None:
    objective, batch = make_objective(), make_batch()
    held = copy.deepcopy(objective)
    z = [held.projector(held.backbone(view)) for view in batch.views]
    fixed = [each.detach() for each in copy.deepcopy([each.detach() for each in z])]
    p = [held.predictor(each) for each in z]
    loss = -0.5 * sum((cosine(p[0][i], fixed[1][i]) + cosine(p[1][i], fixed[0][i])) / 8 for i in range(8))
    loss.backward()  # type: ignore[union-attr]
    output = objective(batch, AT)
    output.loss.backward()
    torch.testing.assert_close(output.loss, loss, rtol=1e-12, atol=0)
    for (name, mine), theirs in zip(objective.named_parameters(), held.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=1e-12, msg=name)
    assert output.targets is not None
    assert not output.targets.requires_grad


def test_each_view_goes_through_the_network_alone() -> None:
    objective = make_objective()
    rows = [seen_by(module) for module in (objective.backbone, objective.projector, objective.predictor)]
    objective(make_batch(), AT)
    assert rows == [[8, 8], [8, 8], [8, 8]]


@pytest.mark.parametrize("constant", [True, False])
def test_the_predictors_rate_stays_at_the_peak_where_asked_for(constant: bool) -> None:
    objective = make_objective(constant_predictor_rate=constant)
    recipe = OptimizerConfig(partial(torch.optim.SGD, momentum=0.9), 0.05, "linear", 0, 1e-4, True)
    optimizer = recipe.build(objective, 512)
    recipe.set_step(optimizer, Progress(50, 100, 10, 0), 512)  # half of the cosine
    predictor = {id(parameter) for parameter in objective.predictor.parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["lr"] == pytest.approx(0.1 if constant and id(parameter) in predictor else 0.05)
            assert group["weight_decay"] == 1e-4


def test_the_spread_of_projections_is_one_for_even_rows_and_zero_for_equal_ones() -> None:
    objective = make_objective()
    objective.projector = nn.Identity()
    objective.predictor = nn.Identity()
    even = torch.cat([torch.eye(6), -torch.eye(6)]).double()
    objective.backbone = nn.Identity()  # type: ignore[assignment]
    for rows, expected in ((even, 1.0), (torch.ones(12, 6).double(), 0.0)):
        batch = make_batch(12)._replace(views=(rows, rows))
        assert float(objective(batch, AT).metrics["projection_std"]) == pytest.approx(expected, abs=1e-12)


def test_a_projector_without_layers_is_refused() -> None:
    with pytest.raises(UserError, match=r"^objective\.projection_layers=0"):
        make_objective(projection_layers=0)

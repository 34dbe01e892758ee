"""BYOL against the paper, closed forms, and the order of its steps."""

import copy
import math

import pytest
import torch
from torch import Tensor

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
    step,
)
from unlabeled.errors import UserError
from unlabeled.objective import Progress
from unlabeled.objectives.byol import BYOL, byol_loss


def literal_byol_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """arXiv:2006.07733, eq. 2 and its symmetric half: squared distances of unit rows, without a gradient to z."""
    total = p1.new_zeros(())
    for p, z in ((p1, z2), (p2, z1)):
        for i in range(len(p)):
            unit, target = p[i] / p[i].pow(2).sum().sqrt(), z[i].detach() / z[i].detach().pow(2).sum().sqrt()
            total = total + (unit - target).pow(2).sum() / len(p)
    return total


def make_objective(**changed: object) -> BYOL:
    torch.manual_seed(0)
    given = {"hidden_dim": 5, "projection_dim": 4, "last_bias": False, "momentum": 0.9, "final_momentum": 1.0}
    return BYOL(BatchNormBackbone(), **{**given, "evaluated": "online", **changed}).double()  # type: ignore[arg-type]


@pytest.mark.parametrize(("batch", "dim"), [(1, 4), (2, 3), (5, 8)])
def test_the_loss_and_its_gradients_equal_the_papers_loop(batch: int, dim: int) -> None:
    assert_same_loss_and_gradients(byol_loss, literal_byol_loss, drawn("p1 p2 z1 z2", batch, dim))


def test_equal_opposite_and_orthogonal_rows_give_0_8_and_4() -> None:
    rows, other = torch.eye(4)[:2], torch.eye(4)[2:]
    for target, expected in ((rows, 0.0), (-rows, 8.0), (other, 4.0)):
        assert float(byol_loss(rows, 3 * rows, target, 0.1 * target)) == pytest.approx(expected, abs=1e-6)
    collapsed = torch.ones(16, 8)
    assert float(byol_loss(collapsed, collapsed, collapsed, collapsed)) == pytest.approx(0, abs=1e-6)
    assert make_objective().collapsed_at(PLAN) == 0


def test_a_row_of_zeros_gives_a_finite_loss_and_gradient() -> None:
    p = torch.zeros(2, 3, requires_grad=True)
    loss = byol_loss(p, p, torch.ones(2, 3), torch.ones(2, 3))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 4
    assert p.grad is not None
    assert bool(p.grad.isfinite().all())


def test_in_bfloat16_the_loss_is_float32_and_within_one_per_cent() -> None:
    assert_bf16_within_a_hundredth(byol_loss, [draw(32, 16, seed=seed) for seed in range(4)])


def test_the_objectives_loss_is_that_of_predictions_and_of_the_target_networks_projections_of_the_other_view() -> None:
    objective, batch = make_objective(), make_batch()
    twin = copy.deepcopy(objective)
    p = [twin.predictor(twin.projector(twin.backbone(view))) for view in batch.views]
    z = [twin.target_projector(twin.target_backbone(view)) for view in batch.views]
    expected = sum((2 - 2 * cosine(p[0][i], z[1][i]) + 2 - 2 * cosine(p[1][i], z[0][i])) / 8 for i in range(8))
    output = objective(batch, AT)
    torch.testing.assert_close(output.loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(output.targets, z[1].detach())
    assert output.features.shape == (8, 6)


def test_the_target_network_follows_after_the_step_with_the_new_weights_and_rises_to_its_end() -> None:
    objective = make_objective(momentum=0.9, final_momentum=0.99)
    before = [parameter.clone() for parameter in objective.target_projector.parameters()]
    progress = Progress(5, 20, 5, 0)
    step(objective, progress=progress)
    momentum = 0.99 - 0.09 * (1 + math.cos(math.pi / 4)) / 2
    for old, new, online in zip(
        before, objective.target_projector.parameters(), objective.projector.parameters(), strict=True
    ):
        torch.testing.assert_close(new, momentum * old + (1 - momentum) * online, rtol=0, atol=1e-15)
    assert objective.scheduled_values(progress, PLAN)["momentum"] == pytest.approx(momentum)


def test_no_gradient_reaches_the_target_network_and_its_batchnorm_statistics_are_its_own() -> None:
    objective = make_objective()
    step(objective)
    target = [*objective.target_backbone.parameters(), *objective.target_projector.parameters()]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in target)
    online = [*objective.backbone.parameters(), *objective.projector.parameters(), *objective.predictor.parameters()]
    assert all(parameter.grad is not None for parameter in online)
    states = objective.backbone.state_dict(), objective.target_backbone.state_dict()
    assert int(states[1]["layers.2.num_batches_tracked"]) == 2
    step(objective, seed=2)
    ours, theirs = (state["layers.2.running_mean"] for state in states)
    assert not torch.equal(ours, theirs)  # after a step the networks differ


def test_each_view_goes_through_each_network_alone() -> None:
    objective = make_objective()
    rows = [seen_by(module) for module in (objective.backbone, objective.target_backbone, objective.predictor)]
    objective(make_batch(), AT)
    assert rows == [[8, 8], [8, 8], [8, 8]]


def test_projector_and_predictor_end_in_a_bias_only_where_asked_for() -> None:
    for last_bias in (False, True):
        heads = make_objective(last_bias=last_bias)
        assert [(heads.projector[3].bias is not None), (heads.predictor[3].bias is not None)] == [last_bias] * 2  # type: ignore[index]


def test_the_evaluated_network_is_the_online_one_or_the_target() -> None:
    online, target = make_objective(), make_objective(evaluated="target")
    assert online.product() is online.backbone
    assert target.product() is target.target_backbone
    with pytest.raises(UserError, match=r"^objective\.evaluated=teacher: allowed are online and target$"):
        make_objective(evaluated="teacher")
    with pytest.raises(UserError, match=r"^objective: momentum=1\.5"):
        make_objective(momentum=1.5)

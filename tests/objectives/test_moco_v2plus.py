"""MoCo v2+ as solo-learn has it: a queue for each view, the mean of both directions, a momentum that rises."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.objectives.two_views import AT, PLAN, BatchNormBackbone, make_batch, step
from unlabeled.errors import UserError
from unlabeled.objective import Progress
from unlabeled.objectives.moco import MoCo


def make_objective(**changed: object) -> MoCo:
    torch.manual_seed(0)
    given = {"projection_layers": 2, "projection_dim": 4, "temperature": 0.2, "momentum": 0.9, "queue_size": 12}
    given |= {"symmetric": True, "bn_splits": 1, "projection_hidden": 10, "final_momentum": 0.99}
    both = {"two_queues": True, "direction_mean": True}
    return MoCo(BatchNormBackbone(), **{**given, **both, **changed}).double()  # type: ignore[arg-type]


def literal(q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
    q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)
    total = q.new_zeros(())
    for i in range(len(q)):
        scores = torch.stack([q[i] @ k[i], *(q[i] @ key for key in queue)]) / 0.2
        total = total - F.log_softmax(scores, 0)[0] / len(q)
    return total


def test_the_loss_is_the_mean_of_both_directions_each_against_the_queue_of_its_keys_view() -> None:
    objective, batch = make_objective(), make_batch()
    assert objective.first_view_queue is not None
    twin, first, second = (
        copy.deepcopy(objective),
        objective.first_view_queue.keys.clone(),
        objective.queue.keys.clone(),
    )
    assert not torch.equal(first, second)
    q1, q2 = (twin.projector(twin.backbone(view)) for view in batch.views)
    k1, k2 = (twin.momentum_projector(twin.momentum_backbone(view)).detach() for view in batch.views)
    output = objective(batch, AT)
    expected = (literal(q1, k2, second) + literal(q2, k1, first)) / 2
    torch.testing.assert_close(output.loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(objective.queue.keys[:8], F.normalize(k2, dim=1))
    torch.testing.assert_close(objective.first_view_queue.keys[:8], F.normalize(k1, dim=1))
    assert objective.collapsed_at(PLAN) == pytest.approx(math.log(13))


def test_the_momentum_rises_to_its_end_by_half_a_cosine() -> None:
    objective, progress = make_objective(), Progress(5, 20, 5, 0)
    momentum = 0.99 - 0.09 * (1 + math.cos(math.pi / 4)) / 2
    assert objective.scheduled_values(progress, PLAN)["momentum"] == pytest.approx(momentum)
    step(objective)  # so that the networks differ
    before = [parameter.clone() for parameter in objective.momentum_projector.parameters()]
    online = [parameter.detach().clone() for parameter in objective.projector.parameters()]
    objective(make_batch(seed=2), progress)
    for old, new, student in zip(before, objective.momentum_projector.parameters(), online, strict=True):
        torch.testing.assert_close(new, momentum * old + (1 - momentum) * student, rtol=0, atol=1e-15)
    assert make_objective(final_momentum=None).scheduled_values(progress, PLAN)["momentum"] == 0.9


def test_the_projector_is_as_wide_as_given_and_each_queue_gets_a_batch_per_step() -> None:
    layers = [each for each in make_objective().projector.children() if isinstance(each, nn.Linear)]
    assert [(each.in_features, each.out_features) for each in layers] == [(6, 10), (10, 4)]
    values = make_objective(queue_size=64).scheduled_values(Progress(3, 20, 5, 0), PLAN)
    assert (values["queue_fill"], values["queue_age"]) == (24 / 64, 3)
    one = make_objective(queue_size=64, two_queues=False).scheduled_values(Progress(3, 20, 5, 0), PLAN)
    assert one["queue_fill"] == 48 / 64


def test_without_options_nothing_changes() -> None:
    plain = {"projection_hidden": None, "final_momentum": None, "two_queues": False, "direction_mean": False}
    objective = make_objective(**plain)
    torch.manual_seed(0)
    old = MoCo(BatchNormBackbone(), 2, 4, 0.2, 0.9, 12, True, 1).double()
    assert objective.state_dict().keys() == old.state_dict().keys()
    torch.testing.assert_close(objective(make_batch(), AT).loss, old(make_batch(), AT).loss, rtol=0, atol=0)


def test_options_for_both_directions_are_refused_without_them() -> None:
    for name in ("two_queues", "direction_mean"):
        only = {"two_queues": False, "direction_mean": False, "symmetric": False, name: True}
        with pytest.raises(
            UserError, match=rf"^objective\.{name}=true: it is for both directions: give objective\.symm"
        ):
            make_objective(**only)

"""NNCLR against the paper, closed forms, and the order of look-up and queue."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
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
from unlabeled.objective import Plan, Progress
from unlabeled.objectives.nnclr import NNCLR, nnclr_loss


def literal_nnclr_loss(neighbours: Tensor, predictions: Tensor, temperature: float) -> Tensor:
    """arXiv:2104.14548, eq. 2: the row's own column is the positive, all columns are candidates."""
    total = predictions.new_zeros(())
    for i in range(len(predictions)):
        scores = [(cosine(neighbours[i].detach(), p) / temperature).exp() for p in predictions]
        total = total - (scores[i] / sum(scores)).log() / len(predictions)
    return total


def make_objective(**changed: object) -> NNCLR:
    torch.manual_seed(0)
    given = {"projection_layers": 3, "hidden_dim": 7, "projection_dim": 4, "predictor_dim": 5, "temperature": 0.3}
    return NNCLR(BatchNormBackbone(), **{**given, "queue_size": 12, **changed}).double()  # type: ignore[arg-type]


@pytest.mark.parametrize(("batch", "dim"), [(2, 3), (5, 8)])
def test_the_loss_and_its_gradients_equal_the_papers_loop(batch: int, dim: int) -> None:
    assert_same_loss_and_gradients(nnclr_loss, literal_nnclr_loss, drawn("neighbours predictions", batch, dim), 0.3)


def test_equal_embeddings_give_ln_n_and_orthogonal_ones_their_closed_form() -> None:
    assert float(nnclr_loss(torch.ones(16, 8), torch.ones(16, 8), 0.1)) == pytest.approx(math.log(16), rel=1e-6)
    rows = torch.eye(4, dtype=torch.float64)
    expected = math.log(1 + 3 * math.exp(-1 / 0.5))
    assert float(nnclr_loss(3 * rows, 0.2 * rows, 0.5)) == pytest.approx(expected, abs=1e-12)
    assert make_objective().collapsed_at(PLAN) == pytest.approx(math.log(8))


def test_in_bfloat16_the_loss_is_float32_and_within_one_per_cent() -> None:
    assert_bf16_within_a_hundredth(nnclr_loss, [draw(32, 16, seed=seed) for seed in range(2)], 0.3)


def test_neighbours_are_looked_up_before_the_batch_enters_the_queue_and_the_first_views_projections_enter_it() -> None:
    objective, batch = make_objective(), make_batch()
    twin, keys = copy.deepcopy(objective), objective.queue.keys.clone()
    z = [twin.projector(twin.backbone(view)) for view in batch.views]
    p = [twin.predictor(each) for each in z]
    near = [torch.stack([keys[int((keys @ row).argmax())] for row in each.detach()]) for each in z]
    expected = (literal_nnclr_loss(near[0], p[1], 0.3) + literal_nnclr_loss(near[1], p[0], 0.3)) / 2
    output = objective(batch, AT)
    torch.testing.assert_close(output.loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(objective.queue.keys[:8], F.normalize(z[0].detach(), dim=1))
    torch.testing.assert_close(objective.queue.keys[8:], keys[8:], rtol=0, atol=0)
    assert output.features.shape == (8, 6)


def test_a_second_batch_replaces_the_oldest_and_evaluation_changes_nothing() -> None:
    objective = make_objective()
    objective(make_batch(), AT)
    first = objective.queue.keys.clone()
    objective(make_batch(seed=2), AT)
    torch.testing.assert_close(objective.queue.keys[4:8], first[4:8], rtol=0, atol=0)
    assert int(objective.queue.pointer) == 16 % 12
    before = objective.queue.keys.clone()
    objective.eval()(make_batch(seed=3), AT)
    torch.testing.assert_close(objective.queue.keys, before, rtol=0, atol=0)


def test_the_gradient_goes_through_predictions_alone_and_reaches_every_parameter() -> None:
    objective = make_objective()
    output = objective(make_batch(), AT)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())
    assert output.targets is not None
    assert not output.targets.requires_grad
    assert not objective.queue.keys.requires_grad


def test_each_view_goes_through_alone() -> None:
    objective = make_objective()
    rows = [seen_by(module) for module in (objective.backbone, objective.projector, objective.predictor)]
    objective(make_batch(), AT)
    assert rows == [[8, 8]] * 3


def test_the_heads_have_the_papers_layers() -> None:
    objective = make_objective()
    layer = [nn.Linear, nn.BatchNorm1d]
    assert [type(module) for module in objective.projector.children()] == [*layer, nn.ReLU, *layer, nn.ReLU, *layer]
    assert [type(module) for module in objective.predictor.children()] == [*layer, nn.ReLU, nn.Linear]


def test_the_schedule_says_how_much_of_the_queue_is_of_images() -> None:
    values = make_objective(queue_size=32).scheduled_values(Progress(3, 10, 5, 0), PLAN)
    assert values == {"temperature": 0.3, "queue_fill": 24 / 32, "queue_age": 3}


def test_what_cannot_work_is_refused_and_a_long_queue_is_warned_of() -> None:
    with pytest.raises(UserError, match=r"^objective\.projection_layers=0"):
        make_objective(projection_layers=0)
    with pytest.raises(UserError, match=r"^batch_size=1: "):
        make_objective().check(Plan(1, 1, 100, (2, 2)))
    assert [check.passed for check in make_objective(queue_size=200).plan_warnings(PLAN)] == [False]
    assert [check.passed for check in make_objective().plan_warnings(PLAN)] == [True]

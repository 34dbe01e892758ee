"""LeJEPA against the paper's statistic in loops, closed forms, and the draws of its directions."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.objectives.two_views import (
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
from unlabeled.objectives.lejepa import LeJEPA, invariance, sigreg

FIRST = Progress(0, 10, 5, 0)


def literal_sigreg(embeddings: Tensor, directions: Tensor) -> Tensor:
    """arXiv:2511.08544, Algorithm 1: Epps–Pulley along each direction, by the trapezoid rule on both halves."""
    rows, step = len(embeddings), 3 / 16
    total = embeddings.new_zeros(())
    for direction in directions.T:
        x = [row @ direction for row in embeddings]
        for knot in range(17):
            t = knot * step
            phi = math.exp(-t * t / 2)
            cos = sum(torch.cos(t * value) for value in x) / rows
            sin = sum(torch.sin(t * value) for value in x) / rows
            width = step if knot in (0, 16) else 2 * step
            total = total + rows * width * phi * ((cos - phi) ** 2 + sin**2) / directions.shape[1]
    return total


def literal_invariance(views: Tensor, large: int) -> Tensor:
    total = views.new_zeros(())
    for n in range(views.shape[1]):
        centre = sum(views[v, n] for v in range(large)) / large
        for v in range(len(views)):
            total = total + (centre - views[v, n]).pow(2).sum() / views.numel()
    return total


def unit_columns(*shape: int) -> Tensor:
    return F.normalize(draw(*shape, seed=9), dim=0)


def make_objective(**changed: object) -> LeJEPA:
    torch.manual_seed(0)
    given = {"embedding_dim": 5, "projection_layers": 3, "hidden_dim": 7, "projection_dim": 4, "directions": 6}
    return LeJEPA(BatchNormBackbone(), **{**given, "regularisation": 0.02, **changed}).double()  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "dim"), [(1, 3), (7, 4)])
def test_the_statistic_and_its_gradients_equal_the_papers_loop(rows: int, dim: int) -> None:
    assert_same_loss_and_gradients(sigreg, literal_sigreg, drawn("z", rows, dim), unit_columns(dim, 5))


@pytest.mark.parametrize("large", [1, 2, 3])
def test_the_invariance_and_its_gradients_equal_a_loop(large: int) -> None:
    assert_same_loss_and_gradients(invariance, literal_invariance, [draw(3, 4, 2).requires_grad_()], large)


def test_equal_views_have_no_distance_and_opposite_ones_their_square() -> None:
    z = draw(4, 3)
    assert float(invariance(torch.stack([z, z, z]), 2)) == 0
    assert float(invariance(torch.stack([z, -z]), 2)) == pytest.approx(float(z.square().mean()))
    assert float(invariance(torch.stack([z, -z]), 1)) == pytest.approx(float(4 * z.square().mean()) / 2)


def test_embeddings_of_0_give_the_least_of_equal_ones_and_normal_ones_far_less() -> None:
    phi = [math.exp(-((3 * k / 16) ** 2) / 2) for k in range(17)]
    per_row = sum(3 / 16 * (1 if k in (0, 16) else 2) * p * (1 - p) ** 2 for k, p in enumerate(phi))
    directions = unit_columns(4, 32)
    zero = float(sigreg(torch.zeros(64, 4), directions))
    assert zero == pytest.approx(64 * per_row, rel=1e-5)
    assert float(sigreg(torch.ones(64, 4), directions)) > zero
    assert float(sigreg(draw(4096, 4), directions)) < 0.01 * 4096 * per_row
    assert make_objective().collapsed_at(PLAN) == pytest.approx(0.02 * 2 * 8 * per_row)


def test_in_bfloat16_the_losses_are_float32_and_within_one_per_cent() -> None:
    assert_bf16_within_a_hundredth(sigreg, [2 * draw(64, 8)], unit_columns(8, 16))
    assert_bf16_within_a_hundredth(invariance, [draw(3, 32, 8)], 2)


def test_the_objectives_loss_is_both_terms_of_all_views_and_its_metrics_are_the_terms() -> None:
    objective, batch = make_objective(), make_batch(views=3)
    rows = [seen_by(module) for module in (objective.backbone, objective.projector)]
    z = objective.projector(objective.backbone(torch.cat(batch.views)))
    output = objective(batch, FIRST)
    near = literal_invariance(z.unflatten(0, (3, 8)), 3)
    normal = literal_sigreg(z, objective._directions(FIRST, torch.device("cpu")).double())
    torch.testing.assert_close(output.loss, near + 0.02 * normal, rtol=1e-9, atol=0)
    assert float(output.metrics["invariance"]) == pytest.approx(float(near.detach()))
    assert float(output.metrics["sigreg"]) == pytest.approx(float(normal.detach()))
    spread = z.detach().std(0, correction=0).square().mean().sqrt()
    assert float(output.metrics["embedding_std"]) == pytest.approx(float(spread), rel=1e-5)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())
    assert rows == [[24, 24], [24, 24]]


def test_views_of_the_first_views_size_give_the_centre() -> None:
    objective, batch = make_objective(), make_batch()
    small = tuple(view[:, :, :1] for view in batch.views)
    objective.backbone.forward = lambda images: draw(len(images), 6, seed=images.shape[-2])
    output = objective(batch._replace(views=(*batch.views, *small)), FIRST)
    features = torch.cat([draw(16, 6, seed=2), draw(16, 6, seed=1)])
    z = objective.projector(features).unflatten(0, (4, 8))
    assert float(output.metrics["invariance"]) == pytest.approx(float(literal_invariance(z, 2).detach()))


def test_directions_are_unit_columns_of_seed_and_step() -> None:
    objective, device = make_objective(), torch.device("cpu")
    drawn_at = [objective._directions(Progress(step, 10, 5, seed), device) for step, seed in ((0, 0), (1, 0), (0, 1))]
    again = objective._directions(FIRST, device)
    assert again.shape == (4, 6)
    torch.testing.assert_close(again.norm(dim=0), torch.ones(6))
    torch.testing.assert_close(again, drawn_at[0], rtol=0, atol=0)
    assert not torch.equal(drawn_at[0], drawn_at[1])
    assert not torch.equal(drawn_at[0], drawn_at[2])


def test_the_projector_begins_with_a_linear_layer_and_ends_in_one() -> None:
    objective = make_objective()
    layer = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    first, *others = objective.projector.children()
    assert isinstance(first, nn.Linear)
    assert first.weight.shape == (5, 6)
    assert [type(module) for module in others] == [*layer, *layer, nn.Linear]


def test_what_cannot_work_is_refused() -> None:
    for large in (0, 4, True):
        with pytest.raises(ValueError, match=rf"^invariance: large={large} must be a whole number from 1 to 3"):
            invariance(draw(3, 4, 2), large)
    with pytest.raises(UserError, match=r"^objective\.projection_layers=0"):
        make_objective(projection_layers=0)
    with pytest.raises(UserError, match=r"^views: the large views come first"):
        make_objective().check(Plan(8, 1, 100, (2, 4)))

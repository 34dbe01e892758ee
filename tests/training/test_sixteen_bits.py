"""Training in bfloat16 goes where training in float32 goes."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from sklearn.datasets import load_digits
from torch import Tensor

from tests.small import batch_of, members, small_objective
from unlabeled.objective import Output, Progress
from unlabeled.objectives import supcon
from unlabeled.views.key import ViewKey


@cache
def digits() -> Tensor:
    scans = torch.from_numpy(load_digits().images[:64] * 15.9).to(torch.uint8)
    return F.interpolate(scans[:, None].float(), (16, 16)).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


def step_of(name: str, half: bool) -> tuple[Tensor, Tensor]:
    """Loss, and the gradient of all of the backbone as one vector, at the weights of seed 0 or some steps later."""
    torch.manual_seed(0)
    config, objective = small_objective(name)
    views, ids = instantiate(config.views), torch.arange(len(digits()))

    def loss_at(step: int, half: bool) -> Tensor:
        made = views(digits(), ids, ViewKey(0, step, 0, len(ids)))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            output: Output = objective(batch_of(objective, digits(), ids, made), Progress(step, 100, 100, 0))
        return output.loss

    optimizer = torch.optim.SGD([each for each in objective.parameters() if each.requires_grad], lr=0.1)
    for step in range(STEPS_BEFORE.get(name, 0)):
        torch.autograd.backward(loss_at(step, False))
        optimizer.step()
        optimizer.zero_grad()
    loss = loss_at(STEPS_BEFORE.get(name, 0), half)
    torch.autograd.backward(loss)
    gradients = [each.grad.flatten() for each in objective.backbone.parameters() if each.grad is not None]
    return loss.detach(), torch.cat(gradients)


SCALE = {"simsiam": 1.0}  # a cosine, which is near 0 at the start: 1 % of its range
# At random weights their directions agree less, 0.90, 0.95 and 0.94: neighbours in a queue of random rows are random,
# predictions say nothing yet, and roundings choose another class for 2 of FixMatch's 64 images, so that most of the
# gradient cancels. After five steps it is 0.98, 0.97 and 0.99.
STEPS_BEFORE = {"nnclr": 5, "simsiam": 5, "fixmatch": 5}


class HeldNegatives:
    """Semi-hard mining that keeps the negatives that it chose first: roundings would choose others as near as they."""

    def __init__(self) -> None:
        self.chosen: Tensor | None = None

    def __call__(self, distances: Tensor, positives: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
        if self.chosen is None:
            farther = (distances[:, None] > distances[:, :, None]) & ~same[:, None]
            nearest = distances[:, None].masked_fill(~farther, float("inf")).argmin(2)
            farthest = distances.masked_fill(same, -float("inf")).argmax(1, keepdim=True)
            self.chosen = torch.where(farther.any(2), nearest, farthest)
        counted = positives & (~same).any(1, keepdim=True)
        apart = distances - distances.gather(1, self.chosen)
        return torch.where(counted, apart, 0.0), counted


@pytest.mark.parametrize("name", members("objective"))
def test_loss_and_gradient_in_bfloat16_are_those_in_float32_within_a_bound(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "triplet":
        expected = step_of(name, False)
        monkeypatch.setattr(supcon, "_semi_hard", HeldNegatives())
        assert torch.allclose(step_of(name, False)[1], expected[1])  # the same mining
    (full, full_gradient), (half, half_gradient) = step_of(name, False), step_of(name, True)
    assert half != full
    assert float(half) == pytest.approx(float(full), rel=0.01, abs=0.01 * SCALE.get(name, 0.0))
    assert float(F.cosine_similarity(half_gradient, full_gradient, dim=0)) > 0.95


def test_other_negatives_that_are_as_near_do_not_change_the_loss_of_triplets() -> None:
    (full, _), (half, _) = step_of("triplet", False), step_of("triplet", True)
    assert float(half) == pytest.approx(float(full), rel=0.01)

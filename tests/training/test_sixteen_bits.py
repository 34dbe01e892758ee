"""Training in bfloat16 goes where training in float32 goes."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from sklearn.datasets import load_digits
from torch import Tensor

from tests.small import members, small_objective
from unlabeled.data.support import NeedsSupport
from unlabeled.objective import Batch, Progress, Support
from unlabeled.views.key import ViewKey


@cache
def digits() -> Tensor:
    scans = torch.from_numpy(load_digits().images[:64] * 15.9).to(torch.uint8)
    return F.interpolate(scans[:, None].float(), (16, 16)).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


def first_step(name: str, half: bool) -> tuple[Tensor, Tensor]:
    """Loss, and the gradient of all of the backbone as one vector, at the first weights of seed 0."""
    torch.manual_seed(0)
    config, objective = small_objective(name)
    ids = torch.arange(len(digits()))
    views = instantiate(config.views)(digits(), ids, ViewKey(0, 0, 0, len(ids)))
    slots = ids % objective.support.classes_per_batch if isinstance(objective, NeedsSupport) else ids
    support = Support(digits(), ids, slots, views[:1]) if isinstance(objective, NeedsSupport) else None
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = objective(Batch(digits(), ids, ids, views, support), Progress(0, 3, 3, 0)).loss
    loss.backward()
    gradients = [each.grad.flatten() for each in objective.backbone.parameters() if each.grad is not None]
    return loss.detach(), torch.cat(gradients)


SCALE = {"simsiam": 1.0}  # a cosine, which is near 0 at the start: 1 % of its range
# NNCLR and triplets choose a neighbour or a negative, and roundings choose another of two near ones; SimSiam's gradient
# at the start, where predictions are random, is small beside the terms that cancel in it.
DIRECTION = {"nnclr": 0.85, "triplet": 0.7, "simsiam": 0.9}


@pytest.mark.parametrize("name", members("objective"))
def test_loss_and_gradient_in_bfloat16_are_those_in_float32_within_a_bound(name: str) -> None:
    (half, half_gradient), (full, full_gradient) = first_step(name, True), first_step(name, False)
    assert half != full
    assert float(half) == pytest.approx(float(full), rel=0.01, abs=0.01 * SCALE.get(name, 0.0))
    assert float(F.cosine_similarity(half_gradient, full_gradient, dim=0)) > DIRECTION.get(name, 0.95)

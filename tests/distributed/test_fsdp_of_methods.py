"""Every method computes with weights that are cut (FSDP2) what it does with whole ones; one process has all pieces."""

import copy
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from tests.small import batch_of, members, small_objective
from unlabeled.distributed.fsdp import shard
from unlabeled.objective import AfterBackward, Objective, Progress
from unlabeled.views.key import ViewKey


def whole(value: Any) -> Tensor:
    tensor: Tensor = value.full_tensor() if isinstance(value, DTensor) else value
    return tensor.detach()


def one_step(objective: Objective, config: Any) -> Tensor:
    """A step as training takes it: loss, gradients, what the method does to them, weights, what follows them."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8)
    ids, progress = torch.arange(16), Progress(0, 9, 3, 0)
    views = instantiate(config.views)(images, ids, ViewKey(0, 0, 0, 16))
    loss = objective(batch_of(objective, images, ids % 4, views), progress).loss
    torch.autograd.backward(loss)
    if isinstance(objective, AfterBackward):
        objective.after_backward(progress)
    torch.optim.SGD([each for each in objective.parameters() if each.requires_grad], lr=0.1).step()
    objective.after_step(progress)
    return torch.as_tensor(loss.detach())


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", members("objective"))
def test_a_step_with_cut_weights_is_the_step_with_whole_ones(name: str) -> None:
    torch.manual_seed(0)
    config, objective = small_objective(name)
    cut = copy.deepcopy(objective)
    shard(cut, init_device_mesh("cpu", (1,)))
    assert sum(isinstance(each, DTensor) for each in cut.parameters()) > 5
    torch.testing.assert_close(one_step(cut, config), one_step(objective, config), rtol=1e-5, atol=1e-6)
    mine: nn.Module = cut
    for (key, ours), theirs in zip(mine.named_parameters(), objective.parameters(), strict=True):
        torch.testing.assert_close(whole(ours), theirs.detach(), rtol=1e-4, atol=1e-5, msg=key)

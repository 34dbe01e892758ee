"""Optimizers skip a step by a flag: weights and state stay as they are, and what follows is as without it."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from unlabeled.optimizers import LARS, lars, skipping
from unlabeled.optimizers.skipping import can_skip, skip_if

Make = Callable[[Any], Optimizer]
MAKERS: dict[str, Make] = {
    "sgd": partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": partial(SGD, lr=0.1, momentum=0.9, nesterov=True),
    "without momentum": partial(SGD, lr=0.1, dampening=0.5),
    "adamw": partial(AdamW, lr=0.1, fused=True),
    "lars": partial(LARS, lr=0.1, weight_decay=0.01),
    "lars with a cap": partial(LARS, lr=0.1, clip=True, rate_in_momentum=True),
}


def train(network: nn.Module, optimizer: Optimizer, flags: list[float], gradients: list[list[Tensor]]) -> None:
    for flag, values in zip(flags, gradients, strict=True):
        for parameter, value in zip(network.parameters(), values, strict=True):
            parameter.grad = value * torch.nan if flag else value.clone()
        skip_if(optimizer, torch.tensor(flag))
        optimizer.step()


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (lars, skipping):
        monkeypatch.setattr(module, "few_launches", lambda device: True)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("flags", [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]])
def test_steps_that_are_skipped_leave_weights_and_state_and_the_others_are_as_without_them(
    name: str, flags: list[float]
) -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    theirs = copy.deepcopy(ours)
    gradients = [[torch.randn_like(each) for each in ours.parameters()] for _ in flags]
    taken = [values for flag, values in zip(flags, gradients, strict=True) if not flag]
    for network, given, chosen in ((ours, flags, gradients), (theirs, [0.0] * len(taken), taken)):
        optimizer = MAKERS[name](network.parameters())
        assert can_skip(optimizer)
        train(network, optimizer, given, chosen)
        state = optimizer.state_dict()["state"]
        if network is ours:
            mine = state
    assert all(torch.equal(*pair) for pair in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert mine.keys() == state.keys()
    for number, slots in state.items():
        assert all(torch.equal(mine[number][key], value) for key, value in slots.items()), number


def test_momenta_of_a_parameter_that_gets_its_first_gradient_later_are_those_of_plain_sgd() -> None:
    torch.manual_seed(0)
    ours = nn.Linear(3, 2)
    theirs, gradients = copy.deepcopy(ours), [torch.randn(2) for _ in range(3)]
    for network in (ours, theirs):
        optimizer = SGD(network.parameters(), lr=0.1, momentum=0.9)
        assert network is theirs or can_skip(optimizer)
        for step, gradient in enumerate(gradients):
            network.weight.grad = torch.ones(2, 3)
            network.bias.grad = None if step == 0 else gradient.clone()
            optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "make",
    [
        partial(SGD, lr=0.1, momentum=0.9, dampening=0.5),  # its first step differs from the others
        partial(SGD, lr=0.1, fused=False),
        partial(SGD, lr=0.1, foreach=True),
        partial(AdamW, lr=0.1),
        partial(torch.optim.RMSprop, lr=0.1),
    ],
)
def test_others_say_that_they_cannot_and_stay_as_they_are(make: Make) -> None:
    optimizer = make(nn.Linear(2, 2).parameters())
    before = copy.deepcopy(optimizer.state_dict())
    assert not can_skip(optimizer)
    assert optimizer.state_dict() == before

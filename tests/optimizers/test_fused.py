"""Optimizers that share kernels among tensors are the plain ones, on weights that are cut over processes too."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.small import composed
from unlabeled.backbones.resnet import ResNet
from unlabeled.optimizers import LARS, OptimizerConfig, lars

RATES = [0.1, 0.3, 0.2, 0.1, 0.0]


def adamw(name: str, **changed: Any) -> OptimizerConfig:
    config = composed(f"optimizer={name}").optimizer
    config.optimizer.update(changed)
    recipe: OptimizerConfig = instantiate(config)
    return recipe


RECIPES = {
    "adamw": adamw("adamw"),
    "adamw_mae": adamw("adamw_mae"),
    "lars": OptimizerConfig(partial(LARS, momentum=0.9), 0.3, "linear", 0, 1e-2, False),
}


def train(
    network: nn.Module, recipe: OptimizerConfig, optimizer: torch.optim.Optimizer | None = None
) -> torch.optim.Optimizer:
    optimizer = optimizer or recipe.build(network, 256)
    generator = torch.Generator().manual_seed(0)
    for lr in RATES:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        network(torch.randn(4, 3, 8, 8, generator=generator)).square().mean().backward()
        optimizer.step()
    return optimizer


def network() -> nn.Module:
    torch.manual_seed(0)
    return ResNet(10, 0.125, "cifar")


def assert_weights_alike(ours: nn.Module, theirs: nn.Module, tolerance: float) -> None:
    for mine, wanted in zip(ours.parameters(), theirs.parameters(), strict=True):
        value = mine.full_tensor() if isinstance(mine, DTensor) else mine
        torch.testing.assert_close(value, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["adamw", "adamw_mae"])
def test_fused_adamw_takes_the_steps_of_the_plain_one_within_a_few_roundings(name: str) -> None:
    fused, plain = network().double(), network().double()
    images = torch.randn(5, 4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for each, recipe in ((fused, adamw(name)), (plain, adamw(name, fused=False))):
        optimizer = recipe.build(each, 256)
        assert optimizer.param_groups[0]["fused"] == (each is fused)
        for some in images:
            optimizer.zero_grad()
            each(some).square().mean().backward()
            optimizer.step()
    assert_weights_alike(fused, plain, 1e-10)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_weights_that_are_cut_take_the_same_steps(name: str) -> None:
    whole, cut = network(), network()
    fully_shard(cut, mesh=init_device_mesh("cpu", (1,)))
    assert all(isinstance(each, DTensor) for each in cut.parameters())
    train(whole, RECIPES[name])
    optimizer = train(cut, RECIPES[name])
    assert_weights_alike(cut, whole, 1e-6)
    shaped = [slot for slots in optimizer.state.values() for slot in slots.values() if slot.dim()]
    assert all(isinstance(slot, DTensor) for slot in shaped)


def test_lars_on_all_weights_together_as_on_a_gpu_takes_the_steps_of_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one_by_one, together = network(), network()
    first = train(one_by_one, RECIPES["lars"])
    monkeypatch.setattr(lars, "_together", lambda parameters: [parameters] if parameters else [])
    calls: list[int] = []
    norms = lars._norms

    def counted(pieces: list[Tensor], cut: bool) -> Tensor:
        calls.append(len(pieces))
        return norms(pieces, cut)

    monkeypatch.setattr(lars, "_norms", counted)
    second = train(together, RECIPES["lars"])
    matrices = sum(each.ndim > 1 for each in together.parameters())
    assert calls == [2 * matrices] * len(RATES)  # weights and updates at once
    for mine, wanted in zip(together.parameters(), one_by_one.parameters(), strict=True):
        assert torch.equal(mine, wanted)
    assert [*first.state_dict()["state"][0]] == [*second.state_dict()["state"][0]] == ["momentum_buffer"]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("cut", [False, True])
def test_lars_with_few_launches_takes_the_steps_of_one_by_one_within_a_few_roundings(
    monkeypatch: pytest.MonkeyPatch, cut: bool
) -> None:
    one_by_one, at_once = network(), network()
    if cut:
        fully_shard(at_once, mesh=init_device_mesh("cpu", (1,)))
    first = train(one_by_one, RECIPES["lars"])
    monkeypatch.setattr(lars, "few_launches", lambda device: True)
    second = train(at_once, RECIPES["lars"])
    assert_weights_alike(at_once, one_by_one, 1e-6)
    states = [[*each.state_dict()["state"][0]] for each in (first, second)]
    assert states == [["momentum_buffer"]] * 2


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("adapt_all", [(False, False), (True, True), (False, True)])  # of two groups
@pytest.mark.parametrize("rate_in_momentum", [False, True])
def test_lars_of_every_kind_takes_the_same_steps_with_few_launches_also_where_a_norm_is_zero(
    clip: bool, adapt_all: tuple[bool, bool], rate_in_momentum: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [torch.zeros(3, 2), torch.ones(3, 2), torch.zeros(2, 2), torch.full((2000, 3), 0.5), torch.ones(4)]
    gradients = [torch.ones(3, 2), torch.zeros(3, 2), torch.zeros(2, 2), torch.full((2000, 3), 2.0), torch.ones(4)]
    made = []
    for at_once in (False, True):
        monkeypatch.setattr(lars, "few_launches", lambda device, at_once=at_once: at_once)
        weights = [nn.Parameter(each.clone()) for each in values]
        parts = zip((weights[:3], weights[3:]), adapt_all, strict=True)
        groups = [{"params": part, "adapt_all": every} for part, every in parts]
        optimizer = LARS(groups, 0.1, 0.9, 0.3, 0.02, clip=clip, rate_in_momentum=rate_in_momentum)
        for step in range(3):
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient / (step + 1)
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * step  # a warm-up starts at 0
            optimizer.step()
        made.append(weights)
    for mine, wanted in zip(made[1], made[0], strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-7)


def test_lars_with_few_launches_scales_by_one_where_a_norm_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [torch.zeros(3, 2), torch.ones(3, 2), torch.zeros(2, 2), torch.full((2000, 3), 0.5), torch.ones(4)]
    gradients = [torch.ones(3, 2), torch.zeros(3, 2), torch.zeros(2, 2), torch.full((2000, 3), 2.0), torch.ones(4)]
    made = []
    for at_once in (False, True):
        monkeypatch.setattr(lars, "few_launches", lambda device, at_once=at_once: at_once)
        weights = [nn.Parameter(each.clone()) for each in values]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        LARS(weights, 0.1, trust_coefficient=0.02).step()
        made.append(weights)
    for mine, wanted in zip(made[1], made[0], strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(made[1][0], torch.full((3, 2), -0.1))
    torch.testing.assert_close(made[1][1], torch.ones(3, 2))


def test_a_state_of_the_plain_adamw_goes_on_fused_with_the_settings_of_now() -> None:
    before, after = network(), network()
    state = train(before, plain := adamw("adamw", fused=False)).state_dict()
    after.load_state_dict(before.state_dict())
    optimizer = adamw("adamw", betas=[0.8, 0.99]).build(after, 256)
    optimizer.load_state_dict(copy.deepcopy(state))
    group = optimizer.param_groups[0]
    assert (group["fused"], list(group["betas"])) == (True, [0.8, 0.99])
    same: Tensor = optimizer.state[group["params"][0]]["exp_avg"]
    assert torch.equal(same, state["state"][0]["exp_avg"])
    continued = plain.build(before, 256)
    continued.load_state_dict(copy.deepcopy(state))
    group["betas"] = [0.9, 0.999]
    train(after, plain, optimizer)
    train(before, plain, continued)
    assert_weights_alike(after, before, 1e-4)


def test_lars_without_momentum_moves_by_the_rate_times_the_update() -> None:
    layer = nn.Linear(3, 2, bias=False).double()
    before, gradient = layer.weight.detach().clone(), torch.ones(2, 3, dtype=torch.float64)
    optimizer = LARS(layer.parameters(), lr=0.5, momentum=0.0, weight_decay=0.0)
    layer.weight.grad = gradient.clone()
    optimizer.step()
    moved = before - layer.weight.detach()
    assert float((moved / moved[0, 0]).sub(1).abs().max()) < 1e-6
    assert float(moved[0, 0]) > 0


def test_what_is_loaded_has_the_strides_of_its_weight() -> None:
    made = [nn.Conv2d(8, 4, 3).to(memory_format=torch.channels_last) for _ in range(2)]
    first, second = (adamw("adamw").build(each, 256) for each in made)
    made[0].weight.grad = torch.randn_like(made[0].weight)
    first.step()
    state = first.state_dict()
    for slots in state["state"].values():  # as FSDP gathers them
        slots.update({name: value.contiguous() for name, value in slots.items() if value.ndim == 4})
    second.load_state_dict(state)
    loaded = second.state[made[1].weight]
    assert loaded["exp_avg"].stride() == made[1].weight.stride()
    assert torch.equal(loaded["exp_avg"], first.state[made[0].weight]["exp_avg"])

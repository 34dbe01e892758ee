"""The recipe: peak rates, who is decayed, and the learning rate of each step in closed form."""

import inspect
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from unlabeled.commands.checks.foreign import FOREIGN
from unlabeled.errors import UserError
from unlabeled.objective import Progress
from unlabeled.optimizers import LARS, OptimizerConfig, parameter_groups


def recipe(**changed: Any) -> OptimizerConfig:
    given: dict[str, Any] = {
        "optimizer": partial(LARS, momentum=0.9),
        "lr": 0.3,
        "lr_scaling": "linear",
        "warmup_epochs": 10,
        "weight_decay": 1e-6,
        "decay_bias_and_norm": False,
    }
    return OptimizerConfig(**(given | changed))


def at(step: int, total_steps: int = 1000, steps_per_epoch: int = 10) -> Progress:
    return Progress(step, total_steps, steps_per_epoch, seed=0)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.frozen = nn.Linear(4, 2).requires_grad_(False)
        self.scale = nn.Parameter(torch.tensor(1.0))


@pytest.mark.parametrize(
    ("scaling", "lr", "batch_size", "peak"),
    [
        ("linear", 0.3, 4096, 4.8),
        ("square_root", 0.075, 4096, 4.8),
        ("linear", 0.3, 256, 0.3),
        ("linear", 0.3, 64, 0.075),
        ("square_root", 0.075, 256, 1.2),
        ("none", 0.3, 4096, 0.3),
    ],
)
def test_peak_rates(scaling: str, lr: float, batch_size: int, peak: float) -> None:
    assert recipe(lr=lr, lr_scaling=scaling).peak_lr(batch_size) == pytest.approx(peak, rel=1e-12)


def test_an_unknown_scaling_is_refused_by_its_key_with_what_is_allowed() -> None:
    message = r"^optimizer\.lr_scaling=sqrt is not one of linear, square_root, none$"
    with pytest.raises(UserError, match=message):
        recipe(lr_scaling="sqrt").peak_lr(256)


def test_the_rate_rises_from_zero_to_its_peak_and_falls_along_a_cosine_to_zero() -> None:
    rate = [recipe().lr_at(at(step), 4096) for step in range(1000)]
    assert rate[0] == 0
    assert rate[50] == pytest.approx(2.4)  # half of the warm-up of 100 steps
    assert rate[99] == pytest.approx(4.8 * 0.99)
    assert max(rate) == rate[100] == pytest.approx(4.8)
    assert rate[550] == pytest.approx(2.4)  # half of the cosine
    assert rate[400] == pytest.approx(4.8 * 0.5 * (1 + math.cos(math.pi / 3)))
    assert 0 < rate[999] < 4.8 * (math.pi / 2 / 900) ** 2 * 1.01


def test_without_a_warm_up_the_first_step_has_the_peak_rate() -> None:
    assert recipe(warmup_epochs=0).lr_at(at(0), 256) == pytest.approx(0.3)


def test_milestones_leave_a_tenth_each_from_the_first_step_of_their_epoch_on() -> None:
    steps = recipe(warmup_epochs=2, milestones=[12, 16])
    rate = [steps.lr_at(at(step, total_steps=200), 256) / 0.3 for step in (0, 10, 20, 119, 120, 159, 160, 199)]
    assert rate == pytest.approx([0, 0.5, 1, 1, 0.1, 0.1, 0.01, 0.01])
    assert recipe(warmup_epochs=0, milestones=[]).lr_at(at(999), 256) == pytest.approx(0.3)


def test_a_run_of_one_step_works_with_and_without_a_warm_up() -> None:
    assert recipe(warmup_epochs=0).lr_at(at(0, total_steps=1), 256) == pytest.approx(0.3)
    assert recipe().lr_at(at(0, total_steps=1), 256) == 0


def test_a_fraction_of_an_epoch_is_a_warm_up_too() -> None:
    part = recipe(warmup_epochs=0.25)  # 2.5 steps
    assert [part.lr_at(at(step), 256) / 0.3 for step in (0, 1, 2)] == pytest.approx([0, 0.4, 0.8])


def test_biases_and_norms_and_scalars_are_spared_from_decay_and_frozen_parameters_are_in_no_group() -> None:
    network = Network()
    decayed, spared = parameter_groups(network, 0.1, decay_bias_and_norm=False)
    assert decayed == {"params": [network.convolution.weight], "weight_decay": 0.1}
    assert spared["weight_decay"] == 0
    expected = [network.scale, network.convolution.bias, network.norm.weight, network.norm.bias]
    assert [id(parameter) for parameter in spared["params"]] == [id(parameter) for parameter in expected]


def test_one_group_holds_every_trained_parameter_where_all_are_decayed() -> None:
    network = Network()
    (group,) = parameter_groups(network, 0.1, decay_bias_and_norm=True)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in trained]
    assert len(trained) == 5
    assert group["weight_decay"] == 0.1


def test_the_optimizer_is_built_with_the_peak_rate_and_the_groups_decay() -> None:
    optimizer = recipe(weight_decay=0.01).build(Network(), 512)
    assert isinstance(optimizer, LARS)
    found = [(group["lr"], group["weight_decay"], group["momentum"]) for group in optimizer.param_groups]
    assert found == [(pytest.approx(0.6), 0.01, 0.9), (pytest.approx(0.6), 0.0, 0.9)]


def test_the_schedule_begins_and_ends_at_rates_that_the_batch_does_not_scale() -> None:
    """SwAV: 0.3, then 4.8 at its peak for 4096 images, then 0.0048."""
    ends = recipe(warmup_start_lr=0.3, final_lr=0.0048)
    rate = [ends.lr_at(at(step), 4096) for step in (0, 50, 100, 550, 1000)]
    assert rate == pytest.approx([0.3, (0.3 + 4.8) / 2, 4.8, (4.8 + 0.0048) / 2, 0.0048], rel=1e-12)
    tenths = recipe(warmup_epochs=2, milestones=[12], warmup_start_lr=0.1)
    assert [tenths.lr_at(at(step), 256) for step in (0, 10, 20, 130)] == pytest.approx([0.1, 0.2, 0.3, 0.03])


def test_ends_of_zero_leave_every_rate_as_it_was_bit_for_bit() -> None:
    for step in range(1000):
        warm = step / 100 if step < 100 else 0.5 * (1 + math.cos(math.pi * min(1.0, (step - 100) / 900)))
        assert recipe().lr_at(at(step), 4096) == 4.8 * warm


def test_a_last_rate_beside_milestones_is_refused() -> None:
    with pytest.raises(UserError, match=r"^optimizer\.final_lr=0\.01: optimizer\.milestones end"):
        recipe(milestones=[12], final_lr=0.01)


def test_weight_decay_rises_along_half_a_cosine_in_decayed_groups_alone() -> None:
    """DINO: from 0.04 to 0.4; biases and norms stay at 0."""
    rising, network = recipe(weight_decay=0.04, final_weight_decay=0.4), Network()
    optimizer = rising.build(network, 256)
    found = []
    for step in (0, 250, 500, 1000):
        rising.set_step(optimizer, at(step), 256)
        found.append([group["weight_decay"] for group in optimizer.param_groups])
    quarter = 0.4 - 0.36 * 0.5 * (1 + math.sqrt(0.5))
    assert [decay for decay, _ in found] == pytest.approx([0.04, quarter, 0.22, 0.4], rel=1e-12)
    assert [spared for _, spared in found] == [0, 0, 0, 0]
    assert recipe(weight_decay=0.04).weight_decay_at(at(700)) == 0.04


class WithFactors(Network):
    def lr_factors(self) -> dict[str, Any]:
        return {"convolution.weight": "constant", "norm.bias": 0.25}


def test_a_method_keeps_one_rate_at_the_peak_and_another_at_a_quarter_of_the_schedule() -> None:
    network = WithFactors()
    optimizer = recipe().build(network, 256)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    rates: dict[str, list[float]] = {}
    for step in (0, 50, 550):
        recipe().set_step(optimizer, at(step), 256)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                rates.setdefault(names[id(parameter)], []).append(group["lr"])
    usual = pytest.approx([0, 0.15, 0.15])
    assert rates["convolution.weight"] == pytest.approx([0.3, 0.3, 0.3])
    assert rates["norm.bias"] == pytest.approx([0, 0.0375, 0.0375])
    assert rates["convolution.bias"] == rates["norm.weight"] == rates["scale"] == usual
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 5
    assert [group["weight_decay"] for group in optimizer.param_groups if group.get("constant_lr")] == [1e-6]


def test_a_factor_for_a_parameter_that_is_not_there_is_refused() -> None:
    class Mistaken(Network):
        def lr_factors(self) -> dict[str, Any]:
            return {"head.weight": 0.5}

    with pytest.raises(UserError, match=r"^Mistaken\.lr_factors: head\.weight is no parameter$"):
        recipe().build(Mistaken(), 256)


def test_named_norms_are_decayed_and_adapted_as_weights_are_and_a_name_of_none_is_refused() -> None:
    network = Network()
    groups = parameter_groups(network, 0.1, False, ["norm.weight"])
    found = [(len(group["params"]), group["weight_decay"], group.get("adapt_all", False)) for group in groups]
    assert found == [(1, 0.1, False), (3, 0.0, False), (1, 0.1, True)]
    assert groups[2]["params"][0] is network.norm.weight
    with pytest.raises(UserError, match=r"^optimizer\.decayed_also=\['bn9'\]: no parameter's name ends in bn9$"):
        recipe(decayed_also=["bn9"]).build(network, 256)
    config = recipe(decayed_also=["norm.weight"], final_weight_decay=1e-3)
    optimizer = config.build(network, 256)
    config.set_step(optimizer, at(500), 256)
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    assert decays == pytest.approx([(1e-3 + 1e-6) / 2, 0.0, (1e-3 + 1e-6) / 2])


def test_decay_that_rises_spares_biases_and_norms_where_lars_adapts_all() -> None:
    network = Network()
    config = recipe(optimizer=partial(LARS, momentum=0.9, adapt_all=True), weight_decay=0.1, final_weight_decay=0.2)
    optimizer = config.build(network, 256)
    config.set_step(optimizer, at(500), 256)
    assert [group["weight_decay"] for group in optimizer.param_groups] == pytest.approx([0.15, 0.0])


def test_lars_decays_biases_and_norms_only_where_it_adapts_them() -> None:
    with pytest.raises(UserError, match=r"give optimizer\.optimizer\.adapt_all=true too, or false"):
        recipe(decay_bias_and_norm=True).build(Network(), 256)
    recipe(decay_bias_and_norm=True, optimizer=partial(LARS, momentum=0.9, adapt_all=True)).build(Network(), 256)


@pytest.mark.parametrize("target", [name for name in FOREIGN if name.startswith("torch.optim.")])
def test_keys_of_torchs_optimizers_are_their_arguments(target: str) -> None:
    named = inspect.signature(FOREIGN[target]).parameters
    assert set(named) <= set(inspect.signature(getattr(torch.optim, target.rpartition(".")[2])).parameters)

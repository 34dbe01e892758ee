"""The moving average follows parameters, and nothing else."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from unlabeled.backbones.transformer import DropPath
from unlabeled.objectives.parts import ema


def network(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()


def test_a_teacher_leaves_out_no_paths_whosever_layer_does_it() -> None:
    ours, others = DropPath(0.3), StochasticDepth(0.3, "row")
    ema.without_drop_path(nn.Sequential(ours, others))
    assert (ours.drop_prob, others.p) == (0.0, 0.0)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.99, 1.0])
def test_each_parameter_becomes_m_times_its_own_value_plus_the_rest_of_the_online_one(momentum: float) -> None:
    target, online = network(0), network(1)
    expected = [
        momentum * theirs.detach() + (1 - momentum) * ours.detach()
        for theirs, ours in zip(target.parameters(), online.parameters(), strict=True)
    ]
    before = [parameter.detach().clone() for parameter in online.parameters()]
    ema.update(target, online, momentum)
    for parameter, value in zip(target.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=0, atol=1e-15)
    assert all(torch.equal(a, b) for a, b in zip(online.parameters(), before, strict=True))


def test_buffers_of_the_target_stay_its_own() -> None:
    target, online = network(0), network(1)
    online(torch.randn(8, 3, dtype=torch.float64) + 5)
    ema.update(target, online, 0.0)
    assert torch.equal(target[1].running_mean, torch.zeros(4, dtype=torch.float64))  # type: ignore[arg-type]
    assert int(target[1].num_batches_tracked) == 0  # type: ignore[arg-type]
    assert float(online[1].running_mean.abs().max()) > 0.01  # type: ignore[operator]


def test_after_many_steps_the_distance_to_a_fixed_network_is_the_power_of_the_momentum() -> None:
    target, online = network(0), network(1)
    before = (target[0].weight - online[0].weight).detach()  # type: ignore[operator]
    for _ in range(50):
        ema.update(target, online, 0.9)
    after = (target[0].weight - online[0].weight).detach()  # type: ignore[operator]
    torch.testing.assert_close(after, before * 0.9**50, rtol=1e-10, atol=0)


def test_equal_weights_stay_equal_bit_for_bit() -> None:
    online = network(0).float()
    target = ema.frozen_copy(online)
    ema.update(target, online, 0.99)
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), online.parameters(), strict=True))


def test_a_frozen_copy_shares_no_memory_and_wants_no_gradient() -> None:
    online = network(0)
    target = ema.frozen_copy(online)
    assert not any(parameter.requires_grad for parameter in target.parameters())
    assert all(parameter.requires_grad for parameter in online.parameters())
    with torch.no_grad():
        online[0].weight.zero_()  # type: ignore[operator]
    assert float(target[0].weight.abs().sum()) > 0  # type: ignore[operator]


def test_networks_of_different_form_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        ema.update(network(0), network(1)[:1], 0.9)


def test_the_momentum_starts_at_its_value_is_half_way_in_the_middle_and_ends_at_one() -> None:
    assert ema.momentum_at(0.0, 0.99) == 0.99
    assert ema.momentum_at(0.5, 0.99) == pytest.approx(0.995, abs=1e-15)
    assert ema.momentum_at(1.0, 0.99) == 1.0
    assert ema.momentum_at(0.25, 0.9) == pytest.approx(1 - 0.1 * (1 + math.sqrt(0.5)) / 2, abs=1e-15)


def test_the_momentum_may_end_elsewhere_and_go_in_a_straight_line() -> None:
    """MoCo v2+ in solo-learn: 0.99 to 0.999 by a cosine; I-JEPA: 0.996 to 1 linearly."""
    assert [ema.momentum_at(share, 0.99, 0.999) for share in (0, 0.5, 1)] == pytest.approx([0.99, 0.9945, 0.999])
    quarter = 0.999 - 0.009 * (1 + math.sqrt(0.5)) / 2
    assert ema.momentum_at(0.25, 0.99, 0.999) == pytest.approx(quarter, abs=1e-15)
    line = [ema.momentum_at(share, 0.996, 1.0, "linear") for share in (0, 0.25, 1)]
    assert line == pytest.approx([0.996, 0.997, 1.0], abs=1e-15)


@pytest.mark.parametrize(("arguments", "message"), [((1.1,), "start=1.1"), ((0.9, -0.1), "end=-0.1")])
def test_a_momentum_out_of_its_range_is_refused_by_its_name(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^momentum_at: {message} must be at least 0 and at most 1$"):
        ema.momentum_at(0.5, *arguments)


def test_a_shape_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^momentum_at: shape=step is neither cosine nor linear$"):
        ema.momentum_at(0.5, 0.9, 1.0, "step")  # type: ignore[arg-type]

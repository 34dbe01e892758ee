"""LARS against a literal float64 loop of its formula."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unlabeled.optimizers import LARS

RATES = [0.1, 0.3, 0.5, 0.5, 0.4, 0.2, 0.1, 0.05, 0.01, 0.0]
Array = NDArray[np.float64]


def norm(values: Array) -> float:
    return float(np.sqrt((values**2).sum()))


def literal(weight: Array, gradients: Array, momentum: float, decay: float, trust: float) -> Array:
    """arXiv:1708.03888, algorithm 1, with the learning rate outside of the momentum as in MoCo v3 and BYOL."""
    buffer = np.zeros_like(weight)
    for gradient, lr in zip(gradients, RATES, strict=True):
        step = gradient
        if weight.ndim > 1:
            step = gradient + decay * weight
            local = trust * norm(weight) / norm(step) if norm(weight) > 0 and norm(step) > 0 else 1.0
            step = local * step
        buffer = momentum * buffer + step
        weight = weight - lr * buffer
    return weight


def train(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, gradients: Tensor, rates: list[float]) -> None:
    for gradient, lr in zip(gradients, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr
        parameter.grad = gradient.clone()
        optimizer.step()


def one_step(weight: Tensor, gradient: Tensor | None, **given: Any) -> Tensor:
    parameter = nn.Parameter(weight.clone())
    parameter.grad = gradient
    LARS([parameter], **({"lr": 1.0, "momentum": 0.0} | given)).step()
    return parameter.detach()


@pytest.mark.parametrize("shape", [(7,), (), (5, 4), (6, 3, 3, 3)])
@pytest.mark.parametrize(("momentum", "decay", "trust"), [(0.9, 1e-2, 0.001), (0.0, 0.0, 0.02), (0.5, 1e-6, 1.0)])
def test_ten_steps_with_a_changing_rate_equal_the_literal_loop(
    shape: tuple[int, ...], momentum: float, decay: float, trust: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, dtype=torch.float64, generator=generator)
    gradients = torch.randn((10, *shape), dtype=torch.float64, generator=generator)
    parameter = nn.Parameter(weight.clone())
    train(LARS([parameter], 0.1, momentum, decay, trust), parameter, gradients, RATES)
    expected = literal(weight.numpy(), gradients.numpy(), momentum, decay, trust)
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12, atol=1e-12)


def test_the_first_step_of_a_weight_has_the_length_of_trust_times_its_norm_whatever_the_gradient() -> None:
    weight = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for size in (1e-6, 1.0, 1e6):
        moved = one_step(weight, size * torch.ones_like(weight), trust_coefficient=0.02) - weight
        assert float(moved.norm()) == pytest.approx(0.02 * float(weight.norm()), rel=1e-9)


def test_biases_and_norms_take_a_plain_step_without_decay() -> None:
    bias, gradient = torch.tensor([2.0, -3.0]), torch.tensor([0.5, 0.25])
    assert torch.equal(one_step(bias, gradient, weight_decay=10.0), bias - gradient)


def test_a_zero_weight_takes_the_step_of_plain_gradient_descent() -> None:
    gradient = torch.tensor([[0.5, 0.25]])
    assert torch.equal(one_step(torch.zeros(1, 2), gradient, weight_decay=0.1), -gradient)


def test_a_zero_gradient_leaves_the_weight_without_decay_and_shrinks_it_by_trust_with_decay() -> None:
    weight = torch.tensor([[3.0, 4.0]])
    assert torch.equal(one_step(weight, torch.zeros(1, 2)), weight)
    shrunk = one_step(weight, torch.zeros(1, 2), weight_decay=0.5, trust_coefficient=0.01)
    torch.testing.assert_close(shrunk, 0.99 * weight)  # trust · ‖w‖/‖λw‖ · λw = trust · w
    assert torch.equal(one_step(torch.zeros(1, 2), torch.zeros(1, 2), weight_decay=0.5), torch.zeros(1, 2))


def test_a_parameter_without_a_gradient_stays_and_gets_no_state() -> None:
    frozen, trained = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([frozen, trained], lr=1.0, weight_decay=0.1)
    trained.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(frozen.detach(), torch.ones(2, 2))
    assert not torch.equal(trained.detach(), torch.ones(2, 2))
    assert list(optimizer.state) == [trained]


def test_each_group_has_its_own_decay_and_rate() -> None:
    weight = torch.tensor([[3.0, 4.0]])
    first, second = nn.Parameter(weight.clone()), nn.Parameter(weight.clone())
    groups: list[dict[str, Any]] = [{"params": [first], "weight_decay": 0.5}, {"params": [second], "lr": 0.25}]
    optimizer = LARS(groups, lr=1.0, momentum=0.0, trust_coefficient=0.01)
    first.grad, second.grad = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    optimizer.step()
    torch.testing.assert_close(first.detach(), 0.99 * weight)
    torch.testing.assert_close(second.detach(), weight - 0.25 * 0.01 * 5 * torch.tensor([[1.0, 0.0]]))


def test_a_saved_state_goes_on_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(4, 3, generator=generator), torch.randn(10, 4, 3, generator=generator)
    whole = nn.Parameter(start.clone())
    train(LARS([whole], 0.1, 0.9, 0.01), whole, gradients, RATES)
    half = nn.Parameter(start.clone())
    before = LARS([half], 0.1, 0.9, 0.01)
    train(before, half, gradients[:5], RATES[:5])
    state = copy.deepcopy(before.state_dict())
    rest = nn.Parameter(half.detach().clone())
    after = LARS([rest], 7.0, 0.5, 0.5)  # the hyper-parameters come with the state
    after.load_state_dict(state)
    train(after, rest, gradients[5:], RATES[5:])
    assert torch.equal(rest, whole)


def test_a_closure_is_called_with_gradients_on_and_its_value_returned() -> None:
    parameter = nn.Parameter(torch.tensor([2.0]))
    optimizer = LARS([parameter], lr=1.0, momentum=0.0)

    def closure() -> float:
        loss = (parameter**2).sum()
        parameter.grad = torch.autograd.grad(loss, parameter)[0]
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert parameter.item() == 2.0 - 4.0


def literal_clipped(weight: Array, gradients: Array, momentum: float, decay: float, trust: float) -> Array:
    """solo-learn, solo/utils/lars.py with clip_lr: neither scaled nor decayed where a norm is 0."""
    buffer = None
    for gradient, lr in zip(gradients, RATES, strict=True):
        step = gradient
        if weight.ndim > 1 and norm(weight) > 0 and norm(gradient) > 0:
            rate = trust * norm(weight) / (norm(gradient) + decay * norm(weight) + 1e-8)
            step = (gradient + decay * weight) * (1.0 if lr == 0 else min(rate / lr, 1.0))
        buffer = step if buffer is None else momentum * buffer + step
        weight = weight - lr * buffer
    return weight


@pytest.mark.parametrize("shape", [(7,), (5, 4), (6, 3, 3, 3)])
@pytest.mark.parametrize("size", [1e-3, 1.0])
@pytest.mark.parametrize(("momentum", "decay", "trust"), [(0.9, 1e-2, 0.02), (0.0, 0.0, 0.02), (0.5, 1e-4, 1.0)])
def test_with_a_cap_ten_steps_equal_solo_learns_loop(
    shape: tuple[int, ...], size: float, momentum: float, decay: float, trust: float
) -> None:
    """Small gradients meet the cap, large ones do not."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, dtype=torch.float64, generator=generator)
    gradients = size * torch.randn((10, *shape), dtype=torch.float64, generator=generator)
    parameter = nn.Parameter(weight.clone())
    train(LARS([parameter], 0.1, momentum, decay, trust, clip=True), parameter, gradients, RATES)
    expected = literal_clipped(weight.numpy(), gradients.numpy(), momentum, decay, trust)
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12, atol=1e-12)


def test_a_capped_weight_moves_no_faster_than_by_plain_gradient_descent() -> None:
    weight, gradient = torch.tensor([[3.0, 4.0]]), torch.tensor([[3e-4, 4e-4]])
    moved = one_step(weight, gradient, trust_coefficient=0.02, clip=True)
    torch.testing.assert_close(moved, weight - gradient, rtol=0, atol=1e-7)
    far = one_step(weight, 1e4 * gradient, lr=0.5, trust_coefficient=0.02, clip=True)
    torch.testing.assert_close(far, weight - 0.02 * weight)  # 0.5 · g · (0.02 · 5 / 5) / 0.5


def test_with_a_cap_a_zero_weight_and_a_zero_gradient_are_neither_scaled_nor_decayed() -> None:
    gradient, weight = torch.tensor([[0.5, 0.25]]), torch.tensor([[3.0, 4.0]])
    assert torch.equal(one_step(torch.zeros(1, 2), gradient, weight_decay=0.1, clip=True), -gradient)
    assert torch.equal(one_step(weight, torch.zeros(1, 2), weight_decay=0.5, clip=True), weight)


@pytest.mark.parametrize("shape", [(7,), (5, 4)])
@pytest.mark.parametrize("rate_in_momentum", [False, True])
def test_adapted_biases_and_a_rate_within_the_momentum_equal_the_literal_loop(
    shape: tuple[int, ...], rate_in_momentum: bool
) -> None:
    """As apex' LARC (SwAV), and as the code of PAWS and of SimCLR."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, dtype=torch.float64, generator=generator)
    gradients = torch.randn((10, *shape), dtype=torch.float64, generator=generator)
    parameter = nn.Parameter(weight.clone())
    given: dict[str, Any] = {"adapt_all": True, "rate_in_momentum": rate_in_momentum}
    train(LARS([parameter], 0.1, 0.9, 1e-2, 0.02, **given), parameter, gradients, RATES)
    expected, buffer = weight.numpy(), np.zeros(shape)
    for gradient, lr in zip(gradients.numpy(), RATES, strict=True):
        step = gradient + 1e-2 * expected
        step = step * 0.02 * norm(expected) / norm(step)
        buffer = 0.9 * buffer + (lr * step if rate_in_momentum else step)
        expected = expected - (buffer if rate_in_momentum else lr * buffer)
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12, atol=1e-12)


def test_one_group_may_have_its_biases_adapted_and_another_not() -> None:
    bias, gradient = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])
    pair = [nn.Parameter(bias.clone()), nn.Parameter(bias.clone())]
    for each in pair:
        each.grad = gradient.clone()
    groups: list[dict[str, Any]] = [{"params": pair[:1], "adapt_all": True}, {"params": pair[1:]}]
    LARS(groups, lr=1.0, momentum=0.0, trust_coefficient=0.02).step()
    torch.testing.assert_close(pair[0].detach(), bias - torch.tensor([0.0, 0.02 * 5]))
    torch.testing.assert_close(pair[1].detach(), bias - gradient)

"""Losses run in float32 under autocast, and in float64 where they are given float64."""

import pytest
import torch
from torch import Tensor

from unlabeled.objectives.parts.precision import full_precision

seen: list[torch.dtype] = []


@full_precision
def product(a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """A product whose dtype tells whether autocast was on."""
    result = a @ b * scale
    seen.append(result.dtype)
    return result.sum()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_run_in_float32_under_autocast_whatever_the_inputs(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(8, 64, generator=generator).to(dtype)
    b = torch.randn(64, 8, generator=generator).to(dtype)
    seen.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        positional, named = product(a, b), product(a, b=b, scale=2.0)
        assert (a @ b).dtype == torch.bfloat16  # autocast is on, and on again afterwards
    assert seen == [torch.float32, torch.float32]
    exact = (a.double() @ b.double()).sum()
    assert positional.dtype == torch.float32
    assert float(positional) == pytest.approx(float(exact), abs=1e-3)
    assert float(named) == pytest.approx(2 * float(exact), abs=2e-3)


def test_float64_stays_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, dtype=torch.float64, generator=generator) for size in ((8, 64), (64, 8)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = product(a, b)
    assert result.dtype == torch.float64
    assert torch.equal(result, (a @ b).sum())


def test_gradients_flow_back_to_16_bit_inputs_in_their_own_dtype() -> None:
    a = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    product(a, torch.full((3, 2), 2.0, dtype=torch.bfloat16)).backward()  # type: ignore[no-untyped-call]
    assert a.grad is not None
    assert a.grad.dtype == torch.bfloat16
    assert torch.equal(a.grad, torch.full((2, 3), 4.0, dtype=torch.bfloat16))


def test_the_name_and_the_docstring_of_the_loss_are_kept() -> None:
    assert product.__name__ == "product"
    assert str(product.__doc__).startswith("A product")


@full_precision
def sum_of_products(pairs: list[Tensor], others: list[Tensor] | None = None) -> Tensor:
    """Products of the tensors of a list with themselves; its dtype tells whether autocast was on."""
    return torch.stack([a @ a.T for a in (*pairs, *(others or []))]).sum()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_tensors_in_lists_are_lifted_too(dtype: torch.dtype) -> None:
    a = torch.arange(6.0).reshape(2, 3).to(dtype) / 7
    expected = 3 * (a.double() @ a.double().T).sum()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = sum_of_products([a, a], others=[a])
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)

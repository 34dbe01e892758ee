"""The sum over all candidates, block by block, is that over all at once."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unlabeled.objectives.parts import contrast
from unlabeled.objectives.simclr import nt_xent

QUERIES, KEYS, DIM = 7, 11, 5


def drawn() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, a key that each query leaves out, and a weight of each query in the loss."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(n, DIM, dtype=torch.float64, generator=generator) for n in (QUERIES, KEYS))
    left_out = torch.randint(KEYS, (QUERIES,), generator=generator)
    return queries.requires_grad_(), keys.requires_grad_(), left_out, torch.linspace(-1, 2, QUERIES).double()


@pytest.mark.parametrize("rows", [1, 3, QUERIES, 100])
@pytest.mark.parametrize("leaves_out", [False, True])
def test_values_and_both_gradients_are_those_of_the_whole_matrix_however_it_is_cut(
    monkeypatch: pytest.MonkeyPatch, rows: int, leaves_out: bool
) -> None:
    monkeypatch.setattr(contrast, "CPU_BLOCK", rows * KEYS)
    queries, keys, left_out, weight = drawn()
    whole = queries @ keys.T
    if leaves_out:
        whole = whole.scatter(1, left_out[:, None], float("-inf"))
    expected = whole.logsumexp(1)
    found = contrast.log_sum_exp(queries, keys, left_out if leaves_out else None)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    ours, theirs = (torch.autograd.grad((each * weight).sum(), [queries, keys]) for each in (found, expected))
    for mine, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-13)


def test_keys_without_a_gradient_may_be_written_to_before_backward() -> None:
    queries, keys, _, weight = drawn()
    expected = torch.autograd.grad(((queries @ keys.detach().T).logsumexp(1) * weight).sum(), queries)[0]
    queue = keys.detach().clone()
    found = contrast.log_sum_exp(queries, queue)
    queue.zero_()
    torch.testing.assert_close(torch.autograd.grad((found * weight).sum(), queries)[0], expected, rtol=0, atol=1e-13)


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes how many values the largest tensor has that is made."""

    values = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.values = max(self.values, made.numel())
        return made


def test_no_tensor_of_a_step_of_nt_xent_is_larger_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrast, "CPU_BLOCK", 2**13)
    z1, z2 = torch.randn(2, 256, 8).requires_grad_().unbind()
    with Largest() as largest:  # type: ignore[no-untyped-call]
        nt_xent(z1, z2, 0.1).backward()  # type: ignore[no-untyped-call]
    assert largest.values == 2**13  # of 2¹⁸ similarities

"""What the tests of methods with two views share: drawn tensors, a small network, batches, loops."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unlabeled.objective import Backbone, Batch, Objective, Plan, Progress

PLAN = Plan(8, 1, 100, (2, 2))
AT = Progress(0, 10, 5, 0)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def drawn(names: str, batch: int, dim: int) -> list[Tensor]:
    """One tensor [batch, dim] for each name, which wants a gradient."""
    return [draw(batch, dim, seed=number).requires_grad_() for number, _ in enumerate(names.split())]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.pow(2).sum().sqrt() * b.pow(2).sum().sqrt())


def assert_same_loss_and_gradients(
    ours: Callable[..., Tensor], literal: Callable[..., Tensor], inputs: list[Tensor], *more: Any
) -> None:
    """Both in float64; what gets no gradient gets none from either."""
    found, expected = ours(*inputs, *more), literal(*inputs, *more)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(loss, inputs, allow_unused=True) for loss in (found, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


class BatchNormBackbone(Backbone):
    """A BatchNorm shows which images go through together, and in which mode."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 6
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 6))

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features


def make_batch(images: int = 8, seed: int = 1, views: int = 2) -> Batch:
    made = tuple(draw(images, 3, 2, 2, seed=seed * 100 + number) for number in range(views))
    ids = torch.arange(images)
    return Batch(torch.zeros(images, 3, 2, 2, dtype=torch.uint8), ids, ids, made)


def seen_by(module: nn.Module) -> list[int]:
    """Rows of each forward from now on."""
    rows: list[int] = []
    module.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    return rows


def step(objective: Objective, seed: int = 1, lr: float = 0.1, progress: Progress = AT) -> None:
    """One step of plain gradient descent."""
    optimizer = torch.optim.SGD([each for each in objective.parameters() if each.requires_grad], lr=lr)
    objective(make_batch(seed=seed), progress).loss.backward()
    optimizer.step()
    objective.after_step(progress)


def assert_bf16_within_a_hundredth(loss: Callable[..., Tensor], inputs: list[Tensor], *more: Any) -> None:
    """Under autocast, of bfloat16 rows: float32, and 1 % from float64 of unrounded ones."""
    expected = loss(*inputs, *more)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(*(each.detach().bfloat16() for each in inputs), *more)
    assert found.dtype == torch.float32
    assert abs(float(found) - float(expected.detach())) < 0.01 * abs(float(expected.detach()))

"""What CUDA graphs need of a step, on a machine without a GPU: the same operations and shapes, at the same addresses.

A graph that was captured repeats its operations on its addresses, whatever the host would have decided. That nothing
waits for the device is in ``test_waiting.py`` and ``tests/benchmarks/test_launches.py``.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tests.small import members, small_objective, with_companions
from unlabeled.data.support import NeedsSupport
from unlabeled.distributed import batchnorm
from unlabeled.objective import AfterBackward, Batch, Objective, Progress, Support
from unlabeled.objectives.parts import masked_crops
from unlabeled.optimizers import lars
from unlabeled.views.pipeline import Views

BATCH, SUPPORT = 16, 4


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes each operation with the shapes and types of its tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        tensors = [each for each in pytree.tree_leaves((args, kwargs, made)) if isinstance(each, Tensor)]
        self.seen.append(f"{function} {[(list(each.shape), each.dtype) for each in tensors]}")
        return made


def batches(objective: Objective, views: Views) -> Iterator[Batch]:
    """Batches of other images in each step."""
    sizes, drawn, ids = views.sizes(20), torch.Generator().manual_seed(0), torch.arange(BATCH)
    labels, slots = ids % 3, torch.arange(2).repeat(SUPPORT // 2)
    while True:
        images = torch.zeros(BATCH, 3, 20, 20, dtype=torch.uint8)
        made = tuple(torch.randn(BATCH, 3, size, size, generator=drawn) for size in sizes)
        support = None
        if isinstance(objective, NeedsSupport):
            some = tuple(view[:SUPPORT] for view in made[: objective.support.views])
            support = Support(images[:SUPPORT], ids[:SUPPORT], slots, some, labels=slots)
        yield with_companions(objective, Batch(images, ids, labels, made, support))


def take_step(objective: Objective, optimizer: torch.optim.Optimizer, batch: Batch, progress: Progress) -> None:
    objective(batch, progress).loss.backward()
    if isinstance(objective, AfterBackward):
        objective.after_backward(progress)
    optimizer.step()
    optimizer.zero_grad()
    objective.after_step(progress)


def addresses(objective: Objective, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Of parameters, buffers (queues, teachers, statistics) and what the optimizer keeps."""
    held = dict(objective.named_parameters()) | dict(objective.named_buffers())
    for number, slots in enumerate(optimizer.state.values()):
        held |= {f"optimizer {number} {name}": slot for name, slot in slots.items() if isinstance(slot, Tensor)}
    return {name: tensor.data_ptr() for name, tensor in held.items()}


FIXED = [name for name in members("objective") if name != "ijepa"]  # its blocks: compile=graph is refused


@pytest.mark.parametrize("name", FIXED)
def test_each_step_runs_the_same_operations_on_the_same_shapes_and_keeps_its_state_in_place(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (batchnorm, lars, masked_crops):
        monkeypatch.setattr(module, "few_launches", lambda device: True)
    config, objective = small_objective(name)
    optimizer = instantiate(config.optimizer).build(objective, BATCH)
    given, runs = batches(objective, instantiate(config.views)), list[list[str]]()
    for step in range(12, 15):
        with Operations() as operations:
            take_step(objective, optimizer, next(given), Progress(step, 100, 10, 0))
        runs.append(operations.seen)
        if step == 12:  # the optimizer makes its state in the first step
            first = addresses(objective, optimizer)
    assert len(runs[1]) > 100
    assert runs[1] == runs[2]
    assert any(place.startswith("optimizer") for place in first)
    assert addresses(objective, optimizer) == first

"""The form of the check for a GPU: the device itself skips a bad step, and the host learns of it some steps later."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from unlabeled import distributed
from unlabeled.objective import Batch, Objective, Support
from unlabeled.optimizers.skipping import skip_if
from unlabeled.training.faults.selection import Bits, overwrite
from unlabeled.training.faults.snapshot import Snapshot, buffer_slots, copy_all, same_layout
from unlabeled.training.faults.verdict import not_finite

WINDOW = 8  # steps that the host may be ahead of what it knows
HELD = 2**30  # bytes of images that may be held for them: of a large batch the window is shorter, at least two steps


class JudgedStep(NamedTuple):
    """A step of which is known whether its loss and gradients were finite."""

    step: int  # steps taken before it
    batches: Sequence[Batch]  # without views
    bad: bool


class DeferredVerdicts:
    """Skips steps by a flag on the device, and hands the flags to the host one after the other, without making it wait.

    The optimizer reads the flag itself. What a forward or ``after_step`` wrote is overwritten by what was before. Of
    the first bad step that the host does not know of, the state before it is kept, to compute it again.

    Args:
        objective: of the run.
        optimizer: for which :func:`unlabeled.optimizers.skipping.can_skip` holds.
    """

    def __init__(self, objective: Objective, optimizer: Optimizer) -> None:
        self.optimizer, self.before_fault = optimizer, StateBeforeFault(objective)
        self._flag = torch.zeros(())
        self._unread: deque[tuple[int, Sequence[Batch], _OnItsWay]] = deque()
        self._window = 0  # steps; 0: not known yet

    @torch.no_grad()
    def judge(self, loss: Tensor, gradients: Sequence[Tensor]) -> None:
        """Finds out on the device whether the step is bad; the optimizer will skip it then."""
        self._flag = distributed.maximum(not_finite(loss, gradients))
        skip_if(self.optimizer, self._flag)

    def end_step(self, step: int, batches: Sequence[Batch], before: Snapshot) -> None:
        """Undoes what a bad step has written; must be called after the optimizer's step and ``after_step``."""
        before.restore_if(self._flag)
        self.before_fault.keep_if(self._flag)
        self._unread.append((step, batches, _OnItsWay(self._flag)))
        self._window = self._window or self._chosen_window(batches)

    def read(self, everything: bool) -> list[JudgedStep]:
        """Returns the oldest steps that were not yet returned, in their order.

        Args:
            everything: all of them, for which the host waits; otherwise those that are out of the window by now, and
                all if one of them was bad.
        """
        count = len(self._unread) if everything else max(0, len(self._unread) + 1 - self._window)
        steps = [self._next() for _ in range(count)]
        if any(each.bad for each in steps):
            steps += [self._next() for _ in range(len(self._unread))]
        return steps

    def _next(self) -> JudgedStep:
        step, batches, flag = self._unread.popleft()
        return JudgedStep(step, batches, flag.read())

    def _chosen_window(self, batches: Sequence[Batch]) -> int:
        """Returns that of the whole run, by the process with the largest images, so that all read at the same step."""
        size = sum(each.images.nbytes for batch in batches for each in _all_images(batch))
        if distributed.world_size() > 1:  # waits for the device, once
            size = int(distributed.maximum(torch.tensor(float(size), device=self._flag.device)))
        return max(2, min(WINDOW, HELD // max(1, size)))


class StateBeforeFault:
    """Holds weights and buffers as they were before the first bad step that the host does not know of."""

    def __init__(self, objective: Objective) -> None:
        self._objective, self._owners = objective, buffer_slots(objective)
        self._parameters = list(objective.parameters())
        self._copies: list[Tensor] = []
        self._found: Tensor | None = None  # float [], 1 once there is such a step
        self._bits = Bits(), Bits()  # of the copies, and of the tensors

    @torch.no_grad()
    def keep_if(self, flag: Tensor) -> None:
        """Copies the present state if ``flag``, float [], is 1 for the first time since :meth:`forget`.

        After a step that was skipped the state is that from before it.
        """
        now = self._current()
        if self._found is None or not same_layout(self._copies, now):
            self._copies, self._found = [torch.zeros_like(each) for each in now], torch.zeros_like(flag)
        overwrite(self._bits[0].of(self._copies), self._bits[1].of(now), flag > self._found)
        torch.maximum(self._found, flag, out=self._found)

    def forget(self) -> None:
        """Makes room for the next bad step."""
        if self._found is not None:
            self._found.zero_()

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Puts the state into the objective within the block; afterwards it is as before, bit for bit."""
        now = self._current()
        present = [each.detach().clone() for each in now]
        self._load(now, self._copies)
        try:
            yield
        finally:
            self._load(now, present)

    @torch.no_grad()
    def _load(self, tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        copy_all(tensors, values)
        # Whatever an objective has derived from its state, it is told that it is another one (SwAV.was_full).
        self._objective.load_state_dict(self._objective.state_dict())

    def _current(self) -> list[Tensor]:
        held = [owner[name] for owner, name in self._owners]
        return [*self._parameters, *(each for each in held if each is not None)]


class _OnItsWay:
    """A number that the device sends to the host, which waits only when it reads it."""

    def __init__(self, value: Tensor) -> None:
        self._value = value.to("cpu", non_blocking=True)  # pinned memory, where it comes from a GPU
        self._arrived = torch.cuda.Event() if value.is_cuda else None  # type: ignore[no-untyped-call]
        if self._arrived is not None:
            self._arrived.record()

    def read(self) -> bool:
        if self._arrived is not None:
            self._arrived.synchronize()
        return bool(self._value)


def _all_images(batch: Batch) -> list[Batch | Support]:
    return [batch, *(each for each in (batch.support, batch.companions) if each is not None)]

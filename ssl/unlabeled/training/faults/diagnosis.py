"""Finds the first tensor of a step that is not finite: computes the step again and checks each module's output."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from unlabeled.core.eager import eager_mode
from unlabeled.distributed.dtensor import local_shard
from unlabeled.objective import Batch, Objective, Output

if TYPE_CHECKING:
    from unlabeled.training.pretraining import Pretraining

WEIGHTS, VIEWS, OUTPUTS, GRADIENTS, NOWHERE = 0, 1, 2, 10**9, 10**9 + 1


class NonFiniteFinding(NamedTuple):
    """Describes the first bad tensor of a step."""

    place: int  # order in the step, from WEIGHTS to NOWHERE; OUTPUTS + n: the n-th module called
    name: str  # of the tensor, and how much of it is bad
    loss: float  # of the step, on this process

    def __str__(self) -> str:
        return self.name if self.name.startswith("the loss") else f"{self.name}; loss {self.loss:.4g}"


def find_non_finite(module: "Pretraining", batch: Batch, context: AbstractContextManager[Any]) -> NonFiniteFinding:
    """Computes a step again, forward and backward, and returns the first bad tensor.

    Buffers are changed as in any forward, and gradients remain: the caller must restore them. Collective: every process
    must call it and run all of it.

    Args:
        module: as it was before the step.
        batch: of the step, without views.
        context: for the forward, e.g. autocast.
    """
    weights = _in_weights(module.objective)
    with eager_mode(), _Watch(module.objective) as watch, context:  # compiled code hides the modules' outputs
        loss = module.output_of(batch).loss
    module.objective.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = _in_gradients(module.objective)
    place, name = weights or watch.first or gradients or (NOWHERE, "nothing when it was computed again")
    return NonFiniteFinding(place, name, float(loss.detach()))


class _Watch:
    """Records the first view or output in an objective's forward that is not finite."""

    def __init__(self, objective: Objective) -> None:
        self.objective, self.calls = objective, 0
        self.first: tuple[int, str] | None = None

    def __enter__(self) -> "_Watch":
        self._hooks = [self.objective.register_forward_pre_hook(self._views)]
        for name, module in self.objective.named_modules():
            self._hooks.append(module.register_forward_hook(partial(self._output, name)))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _views(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        batch: Batch = inputs[0]
        for number, view in enumerate(batch.views):
            self._note(VIEWS, f"view {number}{_bad_images(view, batch.ids)}", view)
        for number, view in enumerate(batch.support.views if batch.support is not None else ()):
            self._note(VIEWS, f"view {number} of the labelled images", view)
        for number, view in enumerate(batch.companions.views if batch.companions is not None else ()):
            self._note(VIEWS, f"view {number} of the companions", view)

    def _output(self, name: str, module: nn.Module, inputs: object, output: object) -> None:
        self.calls += 1
        if isinstance(output, Output):
            self._note(OUTPUTS + self.calls, "the loss of finite outputs", output.loss)
        for tensor in _tensors(output):
            self._note(OUTPUTS + self.calls, f"{name} output", tensor)

    def _note(self, place: int, name: str, tensor: Tensor) -> None:
        if self.first is None and _bad(tensor):
            self.first = (place, f"{name} {_share(tensor.detach())}")


def _in_weights(objective: Objective) -> tuple[int, str] | None:
    for name, value in objective.state_dict().items():
        if _bad(local_shard(value)):
            return WEIGHTS, f"{name} {_share(local_shard(value))} before the step"
    return None


def _in_gradients(objective: Objective) -> tuple[int, str] | None:
    """Finds the last parameter with a bad gradient: backward goes from the loss to the views, so it comes first."""
    for name, parameter in reversed(list(objective.named_parameters())):
        if parameter.grad is not None and _bad(local_shard(parameter.grad)):
            return GRADIENTS, f"the gradient of {name} {_share(local_shard(parameter.grad))}"
    return None


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for element in value.values() if isinstance(value, dict) else value:
            yield from _tensors(element)


def _bad(tensor: Tensor) -> bool:
    return not bool(tensor.isfinite().all())


def _share(tensor: Tensor) -> str:
    if tensor.dim() == 0:
        return f"is {float(tensor)}"
    return f"has {int((~tensor.isfinite()).sum()):,} non-finite of {tensor.numel():,} values"


def _bad_images(view: Tensor, ids: Tensor) -> str:
    """Names the first few bad images of a view [B, 3, h, w]."""
    bad = ids[~view.isfinite().flatten(1).all(1)].tolist()
    return f" of image {', '.join(map(str, bad[:3]))}{', …' if len(bad) > 3 else ''}" if bad else ""

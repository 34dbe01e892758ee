"""Counts the memory of a step before it is taken: the step runs on fake tensors, which have shapes and no values."""

import copy
import itertools
import weakref
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unlabeled.backbones.frozen import frozen_tensors
from unlabeled.data.companions import NeedsCompanions
from unlabeled.data.support import NeedsSupport
from unlabeled.distributed import local_only
from unlabeled.objective import Batch, Objective, Progress, Support

GIB = 2**30
SIZES, USABLE = (8, 24, 80), 0.95  # GB of usual GPUs, and the share that CUDA itself leaves
# What an allocator needs for each byte in use. GPU: our choice; CPU: 1.46 to 1.53 measured with keep_freed_memory,
# which every run on a CPU has, see docs/memory.md
FRAGMENTS = {"cuda": 1.1, "cpu": 1.5}


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one step on one process."""

    batch: int  # images
    network: int  # weights and buffers, a teacher's and a queue's too
    gradients: int
    optimizer: int  # its state
    inputs: int  # decoded images and their views
    activations: int  # saved by the forward pass for the backward pass, without weights and views
    peak: int  # the most that is in use at a time

    def needed(self, device: str) -> int:
        """Returns the peak with what an allocator loses to fragments on ``cuda`` or ``cpu``."""
        return int(self.peak * FRAGMENTS.get(device, FRAGMENTS["cuda"]))

    @property
    def fits(self) -> list[int]:
        """Returns those of :data:`SIZES`, in GB of a GPU, that are enough."""
        return [size for size in SIZES if self.needed("cuda") <= USABLE * size * GIB]

    def plain(self) -> dict[str, Any]:
        """Returns the values for JSON."""
        return asdict(self) | {"fits": self.fits}


def count_memory(
    objective: Objective, views: list[int], batch: int, precision: str, slots: float, image_size: int | None = None
) -> StepMemory:
    """Counts one step: forward, backward, gradients and optimizer state. Nothing is allocated, and nothing changes.

    What is counted are the tensors of Python's operations. Workspaces within a kernel, memory of CUDA itself and the
    images that a data set keeps in memory are not.

    Args:
        objective: of a run, on any device.
        views: height and width of each view of an image, pixels.
        batch: images on this process.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        slots: numbers that the optimizer keeps for each weight: 1 for momentum, 2 for Adam.
        image_size: of the decoded images; None: as the largest view.

    Raises:
        Exception: the objective reads values of tensors, which fake ones do not have; any kind.
    """
    channels = objective.backbone.channels
    with local_only(), ExitStack() as modes:
        modes.enter_context(torch.random.fork_rng(devices=[]))
        fake = modes.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        network = _fake_copy(objective, fake)
        images = torch.empty(batch, channels, *[image_size or max(views)] * 2, dtype=torch.uint8)
        given = _batch(network, images, views)
        parts = [*network.parameters(), *network.buffers(), *frozen_tensors(network)]
        beside = [each.views for each in (given.support, given.companions) if each is not None]
        held = _Live([*parts, images, *given.views, *itertools.chain(*beside)])
        saved = _Saved(held.known())
        modes.enter_context(held)
        with _autocast(precision), torch.autograd.graph.saved_tensors_hooks(saved.note, lambda tensor: tensor):
            loss = network(given, Progress(0, 1000, 100, 0)).loss
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        loss.backward()
    weights = _bytes(trained)
    total = sum(map(_size, _storages(parts)))
    inputs = held.start - total
    state = round(slots * weights)
    return StepMemory(batch, total, weights, state, inputs, saved.bytes, held.peak + state)


def optimizer_slots(optimizer: torch.optim.Optimizer) -> float:
    """Returns how many numbers an optimizer keeps for each weight: a mean where groups differ, as with Muon."""
    weights: list[int] = [sum(parameter.numel() for parameter in group["params"]) for group in optimizer.param_groups]
    slots: list[int] = [2 if "betas" in group else int(bool(group.get("momentum"))) for group in optimizer.param_groups]
    kept: int = sum(count * each for count, each in zip(weights, slots, strict=True))
    return kept / max(1, sum(weights))


def largest_batch(one: StepMemory, other: StepMemory, room: float, device: str) -> int:
    """Returns how many images fit into ``room`` bytes, by the line through two counts; 0: none."""
    each = (other.needed(device) - one.needed(device)) / (other.batch - one.batch)
    return max(0, int(one.batch + (room - one.needed(device)) / each))


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that are in use, and remembers the most."""

    def __init__(self, before: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[int, weakref.finalize[Any, Any]] = {}
        self.now = self.peak = 0
        for tensor in before:
            self._add(tensor)
        self.start = self.now

    def known(self) -> set[int]:
        return {*self._known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor):
                self._add(each)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = _size(storage)
        self.now += size
        self.peak = max(self.peak, self.now)
        self._known[key] = weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.now -= size


class _Saved:
    """Adds up the storages that autograd saves, but those that are there anyway."""

    def __init__(self, known: set[int]) -> None:
        self._known, self.bytes = known, 0

    def note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.bytes += _size(storage)
        return tensor


def _fake_copy(objective: Objective, mode: FakeTensorMode) -> Objective:
    """Copies an objective without its memory: a fake tensor for each weight and buffer."""
    known: dict[int, Any] = {}
    for each in [*objective.parameters(), *objective.buffers(), *frozen_tensors(objective)]:
        made = torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device="cpu")
        known[id(each)] = nn.Parameter(made, each.requires_grad) if isinstance(each, nn.Parameter) else made
    return copy.deepcopy(objective, known)


def _batch(objective: Objective, images: Tensor, sizes: list[int]) -> Batch:
    ids = torch.zeros(len(images), dtype=torch.long)
    batch = Batch(images, ids, ids, _views(len(images), images.shape[1], sizes), _support(objective, images, sizes))
    if not isinstance(objective, NeedsCompanions):
        return batch
    own = objective.companions.own(len(sizes))
    shown = _views(len(images), images.shape[1], sizes[own.start : own.stop])
    of_batch = batch.views[: objective.companions.of_batch(len(sizes))]
    return batch._replace(views=of_batch, companions=Batch(images.clone(), ids, ids, shown))


def _support(objective: Objective, images: Tensor, sizes: list[int]) -> Support | None:
    if not isinstance(objective, NeedsSupport):
        return None
    wanted = objective.support
    count = wanted.images_per_step
    slots = torch.arange(count) % wanted.classes_per_batch
    shown = _views(count, images.shape[1], sizes[: wanted.views])
    return Support(images[:1].expand(count, -1, -1, -1), slots, slots, shown, labels=slots)


def _views(count: int, channels: int, sizes: list[int]) -> tuple[Tensor, ...]:
    made = (torch.empty(count, channels, size, size) for size in sizes)
    return tuple(view.to(memory_format=torch.channels_last) for view in made)


def _autocast(precision: str) -> Any:
    kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.bfloat16}  # float16 has the size of bfloat16
    return torch.autocast("cpu", kinds[precision]) if precision in kinds else nullcontext()


def _storages(tensors: list[Any]) -> list[Any]:
    return [*{tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}.values()]


def _size(storage: Any) -> int:
    return int(storage.nbytes())


def _bytes(tensors: list[Any]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)

"""How many kernels one training step launches on a GPU, counted on a machine that has none.

    python benchmarks/launches.py                          the table of benchmarks/results/launches.md
    python benchmarks/launches.py swav_cifar10 mae         recipes, or objectives on a small network, by name

Tensors of the step are torch's fake ones with ``device="cuda"``: every operation is dispatched as on a GPU, and none is
computed. Tensors of the host are real. An operation counts as one kernel if it has a tensor on the device and is no view
of another; backward is counted on ``meta`` tensors, since autograd refuses fake GPUs. It is a count and no time.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from unlabeled.commands.build.run import build_backbone
from unlabeled.data.support import NeedsSupport
from unlabeled.objective import AfterBackward, Batch, Objective, Plan, Progress, Support
from unlabeled.objectives.moco import KeyQueue
from unlabeled.objectives.parts import ema
from unlabeled.objectives.swav import FeatureQueue
from unlabeled.training.pretraining import Pretraining
from unlabeled.views.key import ViewKey

CONF = Path(__file__).resolve().parents[1] / "conf"
FREE = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh", "set_"}
FREE |= {"resize_", "record_stream", "is_pinned", "device", "detach_"}
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_dim", "_unique2", "bincount", "is_nonzero"}
IN_PLACE = {"_fused_sgd_"}  # torch has no fake form of it; it returns nothing
PHASES = ("views", "forward", "loss", "backward", "updates", "optimizer", "guard")


@dataclass
class Counts:
    """Of one part of a step."""

    kernels: Counter[str] = field(default_factory=Counter)
    host: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    copies: int = 0  # from the host to the device, among the kernels

    @property
    def total(self) -> int:
        return sum(self.kernels.values())


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations; those with a tensor on the device ``cuda`` are not computed. Use it within :func:`fake_gpu`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase, self.exact = "views", 0
        self.counts = {phase: Counts() for phase in PHASES}
        self._pinned: dict[int, Tensor] = {}  # memory address → tensor, held so that no other takes its place

    @contextmanager
    def within(self, phase: str) -> Iterator[Counts]:
        before, self.phase = self.phase, phase
        try:
            yield self.counts[phase]
        finally:
            self.phase = before

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name, pinned = function._schema.name.partition("::")[2], kwargs.pop("pin_memory", None)
        given = [each for each in pytree.tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        target = kwargs.get("device")
        there = any(each.device.type != "cpu" for each in given)
        if name == "is_pinned":
            return given[0].untyped_storage().data_ptr() in self._pinned if not there else False
        if name == "_pin_memory":
            return self._pin(given[0].clone())
        if there or (target is not None and torch.device(target).type != "cpu"):
            self._note_kernel(function, name, given, args, kwargs)
            return None if name in IN_PLACE else function(*args, **kwargs)  # to the fake device
        if not self._is_view(function) and name not in FREE:
            self.counts[self._part()].host[name] += 1
        with unset_fake_temporarily():
            made = function(*args, **kwargs)
        return self._pin(made) if pinned else made

    def _pin(self, tensor: Tensor) -> Tensor:
        with unset_fake_temporarily():
            self._pinned[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def _part(self) -> str:
        """Losses are what runs with autocast off within a forward."""
        return "loss" if self.phase == "forward" and self.exact else self.phase

    @staticmethod
    def _is_view(function: Any) -> bool:
        aliases = [each.alias_info for each in function._schema.returns]
        return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)

    def _note_kernel(self, function: Any, name: str, given: list[Tensor], args: Any, kwargs: dict[str, Any]) -> None:
        counts = self.counts[self._part()]
        if wait := self._wait(name, given, args, kwargs):
            counts.waits[wait] += 1
        if not self._is_view(function) and name not in FREE and name not in WAITS:
            counts.kernels[name] += _slow_foreach(name, args)
            counts.copies += name in ("_to_copy", "copy_") and any(each.device.type == "cpu" for each in given)

    def _wait(self, name: str, given: list[Tensor], args: Any, kwargs: dict[str, Any]) -> str | None:
        on_gpu = any(each.device.type != "cpu" for each in given)
        if name in WAITS:
            return name if on_gpu else None
        if name in ("index", "index_put_") and args[1]:
            masks = [each for each in args[1] if each is not None and each.dtype in (torch.bool, torch.uint8)]
            return f"{name} by a mask" if masks else None
        if name == "_to_copy":
            source, to, free = (
                given[0],
                torch.device(kwargs.get("device") or given[0].device),
                kwargs.get("non_blocking"),
            )
        elif name == "copy_":
            source, to, free = args[1], args[0].device, kwargs.get("non_blocking") or (len(args) > 2 and args[2])
        else:
            return None
        if source.device.type == to.type:
            return None
        if to.type == "cpu" or not free:
            return f"{name} that blocks"
        pinned = source.untyped_storage().data_ptr() in self._pinned
        return None if pinned or (source.numel() == 1 and source.dim() == 0) else f"{name} from unpinned memory"


def _slow_foreach(name: str, args: Any) -> int:
    """One kernel for all tensors, or one each where lists differ in shape: there torch has no common kernel."""
    lists = [each for each in args if isinstance(each, list | tuple) and each and isinstance(each[0], Tensor)]
    if not name.startswith("_foreach") or len(lists) < 2:
        return 1
    return 1 if all(a.shape == b.shape for a, b in zip(*lists[:2], strict=True)) else len(lists[0])


@contextmanager
def fake_gpu() -> Iterator[Launches]:
    """Within it tensors can be made on ``cuda``; operations are counted, and run in autocast to bfloat16."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True), counted() as launches:
        warnings.simplefilter("ignore")  # torch says that there is no GPU
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            yield launches
        finally:
            torch.clear_autocast_cache()
            torch.set_autocast_enabled("cuda", before[0])
            torch.set_autocast_dtype("cuda", before[1])


@contextmanager
def counted() -> Iterator[Launches]:
    """Counts operations; knows losses by their context, in which autocast is off."""
    enter, leave = torch.autocast.__enter__, torch.autocast.__exit__

    def begin(context: torch.autocast) -> Any:
        launches.exact += 1
        return enter(context)

    def end(context: torch.autocast, *error: Any) -> Any:
        launches.exact -= 1
        return leave(context, *error)

    with (
        Launches() as launches,  # type: ignore[no-untyped-call]
        mock.patch.object(torch.autocast, "__enter__", begin),
        mock.patch.object(torch.autocast, "__exit__", end),
    ):
        yield launches


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["name=x", *overrides])


class Step:
    """One step of a recipe, part by part, without Lightning.

    Args:
        config: composed; a file of masks that is missing is left out.
        batch: images of a step; None: the recipe's, at most 512.
        pixels: height and width of the images in memory.
    """

    def __init__(self, config: DictConfig, batch: int | None, pixels: int) -> None:
        config.views.update({key: None for key in config.views if OmegaConf.is_missing(config.views, key)})
        self.config, self.pixels = config, pixels
        self.batch = batch or min(512, config.batch_size)
        objective: Objective = instantiate(config.objective, backbone=build_backbone(config.backbone, 0))
        plan = Plan(self.batch, 1, 10**6, ())
        guard: Any = None
        self.module = Pretraining(
            objective, instantiate(config.views), instantiate(config.optimizer), plan, 1, 100, 10, 0, 10, {}, guard
        )
        self.module.views.compiles = False  # no code is made for a device that is not there
        self.progress = Progress(50, 100, 10, 0)

    def run(self, launches: Launches, device: str) -> None:
        """Runs it once; the tensors of the device have no values."""
        module, objective = self.module, self.module.objective
        if next(objective.parameters()).device.type == "cpu":
            module.to(device)
        with launches.within("views"):
            images, ids = (torch.zeros(shape, dtype=kind).to(device) for shape, kind in self._images(self.batch))
            key = ViewKey(0, 50, 0, self.batch)
        launches.counts["views"] = Counts()
        with launches.within("views"):
            batch = Batch(images, ids, ids, (), self._support(device))
            views = module.views_of(batch, key)
            if batch.support is not None:
                support = module.views_of(
                    batch.support, key._replace(total=len(batch.support.images)), objective.support.views
                )
                batch = batch._replace(support=batch.support._replace(views=support))
        with launches.within("forward"), self._updates(launches):
            output = objective(batch._replace(views=views), self.progress)
        self._backward(launches, output.loss, device)
        if device != "meta":
            self._optimizer_step(launches)
        with launches.within("updates"):
            objective.after_step(self.progress)

    def _optimizer_step(self, launches: Launches) -> None:
        """Counts a second step, for which the optimizer's state is there."""
        with launches.within("optimizer"):
            optimizer = self.module.optimizer_config.build(self.module.objective, self.batch)
            for group in optimizer.param_groups:
                if group.get("foreach", False) is None and not group.get("fused"):
                    group["foreach"] = True  # what torch chooses on a GPU, and not for fake tensors
            optimizer.step()  # makes its state
            launches.counts["optimizer"] = Counts()
            optimizer.step()

    def _images(self, count: int) -> list[tuple[tuple[int, ...], torch.dtype]]:
        channels = self.module.views.channels
        return [((count, channels, self.pixels, self.pixels), torch.uint8), ((count,), torch.long)]

    def _support(self, device: str) -> Support | None:
        objective = self.module.objective
        if not isinstance(objective, NeedsSupport):
            return None
        count = objective.support.images_per_step
        images, ids = (torch.zeros(shape, dtype=kind).to(device) for shape, kind in self._images(count))
        return Support(images, ids, ids)

    def _backward(self, launches: Launches, loss: Tensor, device: str) -> None:
        objective = self.module.objective
        with launches.within("backward"):
            if device == "meta":
                loss.backward()  # type: ignore[no-untyped-call]
            else:
                for parameter in objective.parameters():
                    parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
            if isinstance(objective, AfterBackward):
                objective.after_backward(self.progress)

    @contextmanager
    def _updates(self, launches: Launches) -> Iterator[None]:
        """Counts what a forward updates as updates: momentum encoders and queues."""
        with ExitStack() as stack:
            for owner, name in ((ema, "update"), (KeyQueue, "enqueue"), (FeatureQueue, "enqueue")):
                stack.enter_context(mock.patch.object(owner, name, _within(launches, getattr(owner, name))))
            yield


def _within(launches: Launches, function: Any) -> Any:
    def counted(*args: Any, **kwargs: Any) -> Any:
        with launches.within("updates"):
            return function(*args, **kwargs)

    return counted


def count(config: DictConfig, batch: int | None = None, pixels: int = 32) -> dict[str, Counts]:
    """Returns the counts of the second step of a recipe, which has nothing to make that stays."""
    step = Step(config, batch, pixels)
    with fake_gpu() as launches:
        step.run(launches, "cuda")
        launches.counts = {phase: Counts() for phase in PHASES}
        step.run(launches, "cuda")
    return launches.counts


def count_backward(config: DictConfig, batch: int | None = None, pixels: int = 32) -> Counts:
    """Returns the counts of backward, on ``meta`` tensors and in float32: autocast knows no such device."""
    step = Step(config, batch, pixels)
    with mock.patch.object(torch, "autocast", lambda *given, **named: nullcontext()), Launches() as launches:  # type: ignore[no-untyped-call]
        step.run(launches, "meta")
    return launches.counts["backward"]

"""How many kernels one training step launches on a GPU, counted on a machine that has none.

    python benchmarks/launches.py swav_cifar10 mae_cifar10       a row of the table for each recipe

Tensors of the step are torch's fake ones with ``device="cuda"``: every operation is dispatched as on a GPU, and none is
computed. Tensors of the host are real. An operation counts as one kernel if it has a tensor on the device and is no
view of another; backward is counted on ``meta`` tensors, since autograd refuses fake GPUs. Views are counted
uncompiled; ``compiled_launches.py`` counts what inductor makes of them. It is a count and no time. The tables are in
benchmarks/results/launches.md.
"""

import argparse
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
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

from unlabeled.backbones.frozen import FrozenNetwork, NeedsTeacher
from unlabeled.commands.build.network import build_backbone, build_objective
from unlabeled.data.companions import NeedsCompanions
from unlabeled.data.support import NeedsSupport
from unlabeled.distributed import parts
from unlabeled.objective import AfterBackward, Batch, Objective, Plan, Progress, Support, WritesTrained
from unlabeled.objectives.moco import KeyQueue
from unlabeled.objectives.parts import ema
from unlabeled.objectives.swav import FeatureQueue
from unlabeled.optimizers.skipping import can_skip, skip_if
from unlabeled.training.faults.deferred import StateBeforeFault
from unlabeled.training.faults.snapshot import Snapshot
from unlabeled.training.faults.verdict import not_finite
from unlabeled.training.pretraining import Pretraining
from unlabeled.views import draw_ahead
from unlabeled.views.key import ViewKey

CONF = Path(__file__).resolve().parents[1] / "conf"
FREE = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh", "set_"}
FREE |= {"resize_", "record_stream", "is_pinned", "device", "detach_", "promote_types"}
FREE |= {"_record_function_enter_new", "_record_function_exit"}
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_dim", "_unique2", "bincount", "is_nonzero"}
KERNELS = {"normalise_parts": 2, "normalise_parts_backward": 4}  # of the project's own operators, see split_kernels.py
IN_PLACE = {"_fused_sgd_"}  # torch has no fake form of it; it returns nothing
PHASES = ("draws", "views", "forward", "loss", "backward", "updates", "optimizer", "faults")


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
    """Counts operations; those with a tensor on the device ``cuda`` are not computed. For :func:`fake_gpu`."""

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
            counts.kernels[name] += KERNELS.get(name) or _slow_foreach(name, args)
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
        return None if pinned or source.dim() == 0 else f"{name} from unpinned memory"


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
        return enter(context)  # type: ignore[no-untyped-call]

    def end(context: torch.autocast, *error: Any) -> Any:
        launches.exact -= 1
        return leave(context, *error)

    with (
        Launches() as launches,
        with_kernels(),
        mock.patch.object(torch.autocast, "__enter__", begin),
        mock.patch.object(torch.autocast, "__exit__", end),
    ):
        yield launches


def with_kernels() -> Any:
    """Lets split BatchNorm take its kernels; fake convolutions give no channels_last, which cuDNN's do."""
    return mock.patch.object(parts, "_has_kernels", mock.Mock(return_value=True))


def without_split_kernels() -> Any:
    """Lets split BatchNorm run between two copies."""
    return mock.patch.object(parts, "_has_kernels", mock.Mock(return_value=False))


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["name=x", *overrides])


def with_teacher(config: DictConfig) -> DictConfig:
    """Names a teacher where a recipe leaves it to the user."""
    if OmegaConf.is_missing(config.objective, "teacher"):
        config.objective.teacher = "a ResNet-50 with random weights"
    return config


def give_teacher(objective: Objective) -> None:
    """Hands over a ResNet-50 with random weights to an objective that needs a teacher."""
    if isinstance(objective, NeedsTeacher):
        network = build_backbone(composed("backbone=resnet50").backbone, 0)
        objective.take_teacher(FrozenNetwork(network), uses_labels=False)


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
        with mock.patch.object(torch.cuda, "is_available", mock.Mock(return_value=True)):  # as where it will run
            objective: Objective = build_objective(with_teacher(config), None, give_teacher)
        plan = Plan(self.batch, 1, 10**6, ())
        guard: Any = None
        self.module = Pretraining(
            objective, instantiate(config.views), instantiate(config.optimizer), plan, 1, 100, 10, 0, 10, {}, guard
        )
        self.module.views.compiles = False  # no code is made for a device that is not there
        self.progress = Progress(50, 100, 10, 0)
        self.before: Snapshot | None = None
        self.before_fault = StateBeforeFault(objective)

    def run(self, launches: Launches, device: str, step: int) -> None:
        """Runs it once; the tensors of the device have no values."""
        module, objective = self.module, self.module.objective
        if next(objective.parameters()).device.type == "cpu":
            module.to(device)
        with launches.within("views"):
            images, ids = (torch.zeros(shape, dtype=kind).to(device) for shape, kind in self._images(self.batch))
            support = self._support(device)
            key = ViewKey(0, step, 0, self.batch)
        launches.counts["views"] = Counts()
        with launches.within("views"):
            batch = Batch(images, ids, ids, (), support)
            views = module.views_of(batch, key, module.views_of_batch)
            if isinstance(objective, NeedsCompanions):
                shown = objective.companions.own(module.views.count)
                made = module.views_of(batch, key._replace(seed=1), shown.stop, shown.start)
                batch = batch._replace(companions=batch._replace(views=made))
            if batch.support is not None and isinstance(objective, NeedsSupport):
                own = key._replace(total=len(batch.support.images))
                made = module.views_of(batch.support, own, objective.support.views)
                batch = batch._replace(support=batch.support._replace(views=made))
        before = self._keep(launches)
        with launches.within("forward"), self._updates(launches):
            output = objective(batch._replace(views=views), self.progress)
        self._backward(launches, output.loss, device)
        with launches.within("faults"):
            loss = 0.0 + output.loss.detach()  # as the guard adds up those of a step
            flag = not_finite(loss, [each.grad for each in objective.parameters() if each.grad is not None])
        if device != "meta":
            self._optimizer_step(launches, flag)
        with launches.within("updates"):
            objective.after_step(self.progress)
        with launches.within("faults"):
            before.restore_if(flag)
            self.before_fault.keep_if(flag)

    def _keep(self, launches: Launches) -> Snapshot:
        """Saves what the forward may change, as the guard does."""
        objective = self.module.objective
        if self.before is None:
            written = objective.written_after_step() if isinstance(objective, WritesTrained) else ()
            self.before = Snapshot(objective, written)
        with launches.within("faults"):
            self.before.keep()
        return self.before

    def _optimizer_step(self, launches: Launches, flag: Tensor) -> None:
        """Counts a second step, for which the optimizer's state is there."""
        with launches.within("optimizer"):
            optimizer = self.module.optimizer_config.build(self.module.objective, self.batch)
            assert can_skip(optimizer)
            skip_if(optimizer, flag)
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
        return Support(images, ids, ids, labels=ids)

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
    """Returns the counts of the second step of a recipe, for which all that stays is made.

    What is drawn ahead in a thread is counted as ``draws``.
    """
    step = Step(config, batch, pixels)
    with fake_gpu() as launches, mock.patch.object(draw_ahead, "_begin", _drawn_now(launches)):
        step.run(launches, "cuda", 50)
        launches.counts = {phase: Counts() for phase in PHASES}
        step.run(launches, "cuda", 51)
    return launches.counts


def _drawn_now(launches: Launches) -> Any:
    def begin(groups: Any, key: ViewKey, images: int) -> Future[Any]:
        made: Future[Any] = Future()
        with launches.within("draws"):
            made.set_result(draw_ahead.draw(groups, key, images, True))
        return made

    return begin


def count_backward(config: DictConfig, batch: int | None = None, pixels: int = 32) -> int:
    """Returns the kernels of backward, on ``meta`` tensors and in float32: autocast knows no such device."""
    step = Step(config, batch, pixels)
    without = mock.patch.object(torch, "autocast", mock.Mock(side_effect=lambda *_, **__: nullcontext()))
    with without, Launches() as launches, with_kernels():
        step.run(launches, "meta", 50)
    kernels: int = launches.counts["backward"].total
    return kernels


def row(name: str, pixels: int) -> str:
    """Returns a row of the table for one recipe."""
    counts = count(composed(f"experiment={name}"), None, pixels)
    backward = count_backward(composed(f"experiment={name}"), None, pixels)
    kernels = [counts[phase].total for phase in ("views", "forward", "loss")]
    rest = [backward, counts["updates"].total, counts["optimizer"].total, counts["faults"].total]
    host = sum(sum(each.host.values()) for phase, each in counts.items() if phase != "draws")
    waits, copies = (
        sum(values) for values in zip(*[(sum(c.waits.values()), c.copies) for c in counts.values()], strict=True)
    )
    cells = [*kernels, *rest, sum(kernels + rest), host, sum(counts["draws"].host.values()), copies, waits]
    return f"| {name} | {' | '.join(f'{cell:,}' for cell in cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", help="of conf/experiment")
    columns = "recipe views forward loss backward updates optimizer faults all on_the_host drawn_ahead copies waits"
    print("| " + " | ".join(column.replace("_", " ") for column in columns.split()) + " |")
    print("|---|" + "---:|" * 12)
    for name in parser.parse_args().recipes:
        print(row(name, 256 if "imagenet" in name or "seer" in name else 32), flush=True)


if __name__ == "__main__":
    main()

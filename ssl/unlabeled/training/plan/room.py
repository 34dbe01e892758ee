"""Refuses a step that would fill the memory of a CPU machine: before anything is allocated for it."""

from pathlib import Path

import pytorch_lightning as pl

from unlabeled.core.reading import read_utf8
from unlabeled.distributed.fsdp import FullySharded
from unlabeled.errors import UserError
from unlabeled.training.plan.memory import GIB, StepMemory, count_memory, largest_batch, optimizer_slots
from unlabeled.training.pretraining import Pretraining

_LIKELY = 400  # bytes of activations for a byte of views, at most: ResNets at 32 pixels; then it is worth counting
_LARGE = 1 / 8  # share of the memory
_CGROUPS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def step_memory(
    trainer: pl.Trainer, module: Pretraining, image_size: int, batch: int | None = None
) -> StepMemory | str:
    """Counts the memory of a step on one process; the reason where that cannot be done.

    Args:
        trainer, module: of the run.
        image_size: of the decoded images, pixels.
        batch: images on a process; None: the run's.
    """
    if isinstance(trainer.strategy, FullySharded):
        return "with trainer.strategy=fsdp"
    optimizer = module.optimizer_config.build(module.objective, module.images_per_step)
    try:
        return count_memory(
            module.objective,
            list(module.plan.views),
            batch or module.batch_size // trainer.world_size,
            str(trainer.precision),
            optimizer_slots(optimizer),
            image_size,
        )
    except Exception as error:  # whatever an objective does with values that fake tensors do not have
        return f"{type(module.objective).__name__} cannot be counted ({type(error).__name__})"


def check_room(trainer: pl.Trainer, module: Pretraining, image_size: int) -> None:
    """Raises UserError, with a batch that fits, where a step needs more than this CPU machine has left.

    A small run is not counted, which takes a second or two.
    """
    if trainer.strategy.root_device.type != "cpu":
        return  # a GPU says by itself that it has too little, and nothing else suffers
    room = free_memory() / trainer.world_size
    batch = module.batch_size // trainer.world_size
    views = batch * sum(4 * module.views.channels * size**2 for size in module.plan.views)
    if views * _LIKELY < room * _LARGE:
        return
    whole = step_memory(trainer, module, image_size)
    if isinstance(whole, str) or whole.needed("cpu") <= room:
        return
    half = step_memory(trainer, module, image_size, max(1, batch // 2))
    fitting = 0 if isinstance(half, str) or batch < 2 else largest_batch(half, whole, room, "cpu")
    raise UserError(_too_large(module, trainer.world_size, whole, room, fitting * trainer.world_size))


def free_memory(root: Path = Path("/")) -> float:
    """Returns the bytes that a process may still get: of the machine, or of its container if that has fewer."""
    found = [float("inf")]
    for most, used in _CGROUPS:
        try:
            limit, now = (read_utf8(root / "sys/fs/cgroup" / name).strip() for name in (most, used))
            found += [float(limit) - float(now)] if limit != "max" else []
        except (OSError, ValueError):
            continue
    try:
        lines = read_utf8(root / "proc/meminfo").splitlines()
        found += [float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError):
        pass  # no Linux: no limit is known
    return min(found)


def _too_large(module: Pretraining, processes: int, memory: StepMemory, room: float, fitting: int) -> str:
    each = " a process" if processes > 1 else ""
    said = (
        f"batch_size={module.batch_size}: a step needs about {memory.needed('cpu') / GIB:,.0f} GiB{each}, and "
        f"{room / GIB:,.1f} GiB are free: "
    )
    if fitting < processes:
        return said + "not even one image fits: give a smaller backbone or smaller views"
    smaller = 2 ** (fitting.bit_length() - 1)
    parts = -(-module.batch_size // smaller)
    return (
        f"{said}give batch_size={smaller} (at most {fitting}), with accumulate={parts * module.accumulate} for as many "
        "images a step, or backbone.gradient_checkpointing=true"
    )

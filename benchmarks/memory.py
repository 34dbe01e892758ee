"""Counts the memory of a step of each recipe, and compares counts with measured peaks: writes docs/memory.md.

    OMP_NUM_THREADS=1 python benchmarks/memory.py

The counts need no memory and no GPU. A measured peak is the highest resident memory of a process of its own in three
steps on random images, without what it had after a small step: Python, libraries, compiled kernels.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script sees only its own folder

from benchmarks.launches import give_teacher, with_teacher
from unlabeled.commands.build.network import build_objective
from unlabeled.commands.config import conf_folder
from unlabeled.objective import Batch, Progress
from unlabeled.training.machine.allocation import keep_freed_memory
from unlabeled.training.plan.memory import GIB, StepMemory, count_memory, optimizer_slots

RESULTS = Path(__file__).parents[1] / "docs" / "memory.md"
# experiment, batch of one GPU
CASES = [("simclr_cifar10", 512), ("moco_v2_cifar10", 512), ("swav_cifar10", 256), ("mae_cifar10", 1024)]
CASES += [("paws_cifar10", 256), ("simclr_imagenet", 256), ("moco_v2_imagenet", 256), ("swav_imagenet", 64)]
CASES += [("moco_v3_imagenet_vit_small", 256), ("mae_imagenet_vit_base", 256)]
CASES += [("distill_imagenet", 256), ("fixmatch_cifar10", 448)]
CASES += [("supervised_cifar10", 512), ("supervised_imagenet", 256), ("dino_imagenet_vit_small", 64)]
CASES += [("scan_cifar10", 128), ("self_label_cifar10", 512)]
CASES += [("ibot_imagenet_vit_small", 64), ("dinov2_imagenet_vit_large", 64)]
CASES += [("simmim_imagenet_vit_base", 128), ("data2vec_imagenet_vit_base", 64)]
CASES += [("ijepa_imagenet_vit_huge", 32), ("dinov2_imagenet_vit_small", 64), ("paws_cifar10_suncet", 64)]
CASES += [("byol_imagenet", 128), ("simsiam_imagenet", 64), ("barlow_twins_imagenet", 128), ("vicreg_imagenet", 128)]
CASES += [("nnclr_imagenet", 128), ("lejepa_imagenet", 64), ("supcon_cifar10", 512)]
MEASURED = [("simclr_cifar10", 64, "32-true"), ("mae_cifar10", 64, "32-true"), ("swav_cifar10", 32, "32-true")]
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # bytes: glibc gives larger tensors back as soon as they are freed
PRECISIONS = ("32-true", "bf16-mixed")
HEAD = """# Memory of a step

Written by `benchmarks/memory.py`. `unlabeled plan …` prints the same count for any run: "about N GiB; fits 24/80 GB".

The step runs on fake tensors, which have shapes and no values: forward pass, loss, gradients, and the state of the
optimizer. *Activations* are what the forward pass keeps for the backward pass; they grow with the batch, all else does
not. *Peak* is the most that is in use at a time. Not counted: workspaces of kernels, CUDA's own memory (about 0.5 GiB),
images that are kept on the GPU (`memory_gib`), images and views of the next batch there, and what undoes bad steps
there: a second copy of the network, and the images of up to 8 steps or 1 GiB. A size fits if the peak and a tenth for
fragments take at most 95 % of it.

Autocast of a CPU decides what is bfloat16, which differs a little from CUDA's. On a GPU nothing was measured yet.
"""


def config_of(experiment: str, *overrides: str) -> Any:
    """The recipe, with images of 32 or 256 pixels."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = compose("train", ["name=x", f"experiment={experiment}", *overrides])
    config.data = {"image_size": 256 if "imagenet" in experiment else 32, "channels": 3}
    return config


def counted(config: Any, batch: int, precision: str) -> tuple[StepMemory, list[int]]:
    """The count of one step, and the sizes of the views."""
    views = list(instantiate(config.views).sizes(config.data.image_size))
    objective = build_objective(with_teacher(config), None, give_teacher)
    slots = optimizer_slots(instantiate(config.optimizer).build(objective, batch))
    return count_memory(objective, views, batch, precision, slots), views


def row(experiment: str, batch: int, *overrides: str) -> str:
    """A line of the table: both precisions."""
    config = config_of(experiment, *overrides)
    both = [counted(config, batch, precision) for precision in PRECISIONS]
    views = ", ".join(f"{both[0][1].count(size)} × {size}" for size in sorted({*both[0][1]}, reverse=True))
    cells = [f"`{' '.join([experiment, *overrides])}`", views, batch, f"{both[0][0].network / GIB:.2f}"]
    for memory, _ in both:
        fits = "/".join(map(str, memory.fits)) or "none"
        cells += [f"{memory.activations / GIB:.1f}", f"{memory.peak / GIB:.1f}", fits]
    cells.append(f"{(both[1][0].activations) / batch / 2**20:,.0f}")
    return "| " + " | ".join(map(str, cells)) + " |"


def measure(experiment: str, batch: int, precision: str, keep: bool) -> None:
    """Prints count and peak in GiB, for a process of its own."""
    if keep:
        keep_freed_memory()
    config = config_of(experiment)
    memory, views = counted(config, batch, precision)
    _steps(config, views, 4, precision, 1)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    base = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident memory counts from here on
    _steps(config, views, batch, precision, 3)
    print(json.dumps([memory.peak / GIB, (_resident("VmHWM") - base) / GIB]))


def _steps(config: Any, views: list[int], batch: int, precision: str, steps: int) -> None:
    objective = build_objective(config).to(memory_format=torch.channels_last)
    optimizer = instantiate(config.optimizer).build(objective, batch)
    images = torch.zeros(batch, 3, max(views), max(views), dtype=torch.uint8)
    ids = torch.arange(batch)
    made = [torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last) for size in views]
    given = Batch(images, ids, ids, tuple(made))
    for step in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision != "32-true"):
            loss = objective(given, Progress(step, 1000, 100, 0)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def measured_row(experiment: str, batch: int, precision: str) -> str:
    """A line of the second table: with malloc that returns at once what is freed, and with freed memory kept."""
    peaks = []
    for keep in ("", "keep"):
        command = [sys.executable, __file__, experiment, str(batch), precision, keep]
        environment = os.environ | ({} if keep else RETURNING)
        finished = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        peaks.append(json.loads(finished.stdout.splitlines()[-1]))
    (count, plain), (_, kept) = peaks
    cells = [f"`{experiment}`", batch, precision, f"{count:.2f}", f"{plain:.2f}", f"{plain / count:.2f}"]
    return "| " + " | ".join(map(str, [*cells, f"{kept:.2f}", f"{kept / count:.2f}"])) + " |"


def main() -> None:
    """Writes the page and prints it."""
    first = ["recipe", "views", "batch", "network"]
    first += [f"{part}, {kind}" for kind in ("fp32", "bf16") for part in ("activations", "peak", "fits GB")]
    first += ["MiB an image, bf16"]
    lines = [HEAD, "All in GiB, on one process.", "", "| " + " | ".join(first) + " |", "|" + "---|" * len(first)]
    for experiment, batch in CASES:
        lines.append(row(experiment, batch))
        print(lines[-1], flush=True)
    lines.append(row("mae_imagenet_vit_base", 256, "backbone=vit_large"))
    second = ["recipe", "batch", "precision", "counted", "measured", "×", "with freed memory kept", "×"]
    lines += ["", "## Counted and measured on a CPU", ""]
    lines += ["| " + " | ".join(second) + " |", "|" + "---|" * len(second)]
    for case in MEASURED:
        lines.append(measured_row(*case))
        print(lines[-1], flush=True)
    lines += [
        "",
        "A run on a CPU keeps freed memory in its process (`machine/allocation.py`), which is faster and takes more.",
        "For it a step is refused, before anything is allocated, where 1.5 times the count is more than the machine,",
        "or its container, has left; the line names a batch that fits.",
    ]
    RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1], int(sys.argv[2]), sys.argv[3], bool(sys.argv[4]))
    else:
        main()

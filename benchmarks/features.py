"""What each thing that was built for speed brings: with it and without it, in turn, on a CPU.

    taskset -c 0,1 env OMP_NUM_THREADS=2 python benchmarks/features.py
    python benchmarks/features.py --only contrast gather      those rows anew, whose name or setting has one of these

Numbers stay in outputs/benchmarks/features.json, and benchmarks/results/features_cpu.md is made of all that are there.
What is compared is timed in turn, A B A B …; memory is that of a process of its own.
"""

import argparse
import atexit
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script sees only its own folder

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from torch import Tensor

from benchmarks.features_page import page
from benchmarks.probes import in_turn, status
from unlabeled.backbones.resnet import ResNet
from unlabeled.commands.build.network import build_objective
from unlabeled.objective import Batch, Progress
from unlabeled.objectives.moco import queue_contrast
from unlabeled.objectives.simclr import nt_xent
from unlabeled.optimizers import LARS, lars
from unlabeled.training.machine.allocation import keep_freed_memory
from unlabeled.training.machine.compilation import compile_network

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "outputs" / "benchmarks" / "features.json"
CPU, THREADS = torch.device("cpu"), 2
LAYOUTS = (torch.contiguous_format, torch.channels_last)
Network = tuple[tuple[str, ...], int, int]  # overrides, pixels, images
THIN: Network = (("backbone=resnet_thin",), 32, 256)
RESNET18 = (("backbone=resnet18", "backbone.stem=cifar"), 32, 64)
RESNET50 = (("backbone=resnet50",), 96, 64)
TINY = "experiment=digits max_epochs=null max_steps=1 probe=none online_knn=null pictures=null num_workers=0"
Step = Callable[[], object]
Numbers = dict[str, list[list[float]]]  # unit → without it, with it


class Row(NamedTuple):
    """One feature in one setting; ``build(on)`` makes what is timed."""

    feature: str
    setting: str
    build: Callable[[bool], Step]
    repeats: int = 9
    apart: tuple[str, ...] = ()  # what is measured in a process for each: MiB; ms too where the process decides it
    first: bool = False  # the first step counts by itself


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[""], metavar="TEXT", help="none: only the page is written")
    parser.add_argument("--alone", nargs=2, metavar=("ROW", "ON"), help="only print what a process of its own takes")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    if arguments.alone:
        print(json.dumps(alone(ROWS[int(arguments.alone[0])], arguments.alone[1] == "1")))
        return
    keep_freed_memory()
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    numbers: dict[str, Numbers] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    names = [f"{row.feature} | {row.setting}" for row in ROWS]
    for number, name in enumerate(names):
        if any(text in name for text in arguments.only):
            print(name, flush=True)
            numbers[name] = measure(number, ROWS[number])
            KEPT.write_text(json.dumps(numbers, indent=1))
    written = page({name: numbers[name] for name in names if name in numbers})
    (ROOT / "benchmarks" / "results" / "features_cpu.md").write_text(written)
    print(written)


def measure(number: int, row: Row) -> Numbers:
    found: Numbers = {}
    if "ms" not in row.apart:
        steps = [row.build(False), row.build(True)]
        first = [[seconds(step)] for step in steps]
        found["ms"] = [[1000 * each for each in own] for own in in_turn(row.repeats, *steps)]
        found |= {"s, first step": first} if row.first else {}
    repeats = row.repeats if "ms" in row.apart else min(1, len(row.apart))  # memory does not vary
    rounds = [[in_a_process(number, on) for on in (False, True)] for _ in range(repeats)]
    return found | {unit: [[each[on][unit] for each in rounds] for on in (False, True)] for unit in row.apart}


def in_a_process(number: int, on: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "--alone", str(number), str(int(on))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return cast(dict[str, float], json.loads(done.stdout.splitlines()[-1]))


def alone(row: Row, on: bool, steps: int = 5) -> dict[str, float]:
    """Median of some steps after a first one, and the highest that memory was above what it was before them."""
    if on or row.feature != "freed memory kept":
        keep_freed_memory()
    step = row.build(on)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    step()
    times = [seconds(step) for _ in range(steps)]
    return {"ms": 1000 * statistics.median(times), "MiB": (status("VmHWM") - before) / 1024}


def seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def simclr(
    network: Network,
    overrides: tuple[str, ...] = (),
    half: bool = True,
    layout: torch.memory_format = torch.channels_last,
    compiled: bool = False,
) -> Step:
    """Forward and backward of SimCLR on two views of each image, weights as they began."""
    names, size, images = network
    torch.manual_seed(0)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        objective = build_objective(compose("train", ["name=x", "objective=simclr", *names, *overrides]))
    objective.to(memory_format=layout)
    if compiled:
        compile_network(objective, "default", CPU, 1, False)
    views = tuple(torch.randn(images, 3, size, size).contiguous(memory_format=layout) for _ in range(2))
    ids = torch.arange(images)
    batch = Batch(torch.empty(images, 0), ids, ids, views)

    def step() -> None:
        objective.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = objective(batch, Progress(0, 1, 1, 0)).loss
        loss.backward()

    return step


def whole_nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """:func:`nt_xent` as it is written: a matrix of all similarities, and cross-entropy."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    itself = torch.eye(len(z), dtype=torch.bool)
    positive = torch.arange(len(z)).roll(len(z1))
    return F.cross_entropy((z @ z.T / temperature).masked_fill(itself, float("-inf")), positive)


def whole_queue_contrast(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """:func:`queue_contrast` as in MoCo's Algorithm 1."""
    q, k = F.normalize(q, dim=1), F.normalize(k.detach(), dim=1)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


def pairs(images: int, on: bool) -> Step:
    z1, z2 = torch.randn(2, images, 128, generator=torch.Generator().manual_seed(0)).requires_grad_().unbind()
    loss = nt_xent if on else whole_nt_xent
    return lambda: torch.autograd.grad(loss(z1, z2, 0.1), [z1, z2])


def queue(on: bool) -> Step:
    q, k = torch.randn(2, 256, 128, generator=torch.Generator().manual_seed(0)).requires_grad_().unbind()
    keys = F.normalize(torch.randn(65_536, 128), dim=1)
    loss = queue_contrast if on else whole_queue_contrast
    return lambda: torch.autograd.grad(loss(q, k, keys, 0.1), q)


def weights() -> list[Tensor]:
    """Of a ResNet-50, with gradients."""
    parameters: list[Tensor] = list(ResNet(50, 1.0, "imagenet").parameters())
    for each in parameters:
        each.grad = torch.randn_like(each) / 100
    return parameters


def lars_steps(together: bool, on: bool) -> Step:
    if not on:
        parameters = weights()
        return partial(lars_as_written, parameters, [torch.zeros_like(each) for each in parameters])
    optimizer = LARS(weights(), lr=1e-6, weight_decay=1e-6)
    cut: Any = (lambda some: [some] if some else []) if together else lars._together

    def step() -> None:
        with patch.object(lars, "_together", cut):
            optimizer.step()

    return step


@torch.no_grad()
def lars_as_written(parameters: list[Tensor], momenta: list[Tensor]) -> None:
    for w, u in zip(parameters, momenta, strict=True):
        d = cast(Tensor, w.grad)
        if w.ndim > 1:
            d = d + 1e-6 * w
            weight, update = w.norm(), d.norm()
            d = d * torch.where((weight > 0) & (update > 0), 0.001 * weight / update, 1.0)
        u.mul_(0.9).add_(d)
        w.sub_(1e-6 * u)


def gather(images: int, on: bool) -> Step:
    held = torch.randint(256, (50_000, 3, 32, 32), dtype=torch.uint8)
    batches = itertools.cycle(torch.split(torch.randperm(len(held)), images)[:-1])
    taken = torch.empty(images, *held.shape[1:], dtype=held.dtype)
    return lambda: torch.index_select(held, 0, next(batches), out=taken) if on else held[next(batches)]


def command(on: bool) -> Step:
    """A whole run of one step, from Python's start to its end."""
    plain = (
        "import unlabeled.commands.importing as importing, contextlib; "
        "importing.heavy_imports = contextlib.nullcontext; "
    )
    code = f"{'' if on else plain}import runpy; runpy.run_path('train.py', run_name='__main__')"

    def step() -> None:
        with tempfile.TemporaryDirectory() as folder:
            given = [sys.executable, "-c", code, *TINY.split(), f"run_dir={folder}"]
            subprocess.run(given, check=True, cwd=ROOT, capture_output=True)

    return step


def switched(half: bool, layout: bool, network: Network, on: bool) -> Step:
    """``half`` and ``layout``: what is off where ``on`` is not."""
    return simclr(network, half=on or not half, layout=LAYOUTS[on or not layout])


def compiled(network: Network, on: bool) -> Step:
    folder = tempfile.TemporaryDirectory()  # nothing is there from an earlier run
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder.name
    atexit.register(folder.cleanup)
    return simclr(network, compiled=on)


SIZES = {"thin ResNet, 2 × 256 × 32 px": THIN, "ResNet-18, 2 × 64 × 32 px": RESNET18}
ROWS = [
    *(Row("bf16", name, partial(switched, True, False, n)) for name, n in SIZES.items()),
    *(Row("channels_last", name, partial(switched, False, True, n)) for name, n in SIZES.items()),
    *(Row("both of these", name, partial(switched, True, True, n)) for name, n in SIZES.items()),
    Row("freed memory kept", "thin ResNet, 2 × 256 × 32 px, bf16", lambda on: simclr(THIN), 4, ("ms", "MiB")),
    *(Row("compile", name, partial(compiled, n), 9, (), True) for name, n in SIZES.items()),
    Row(
        "gradient checkpointing",
        "ResNet-50, 2 × 64 × 96 px, bf16",
        lambda on: simclr(RESNET50, (f"backbone.gradient_checkpointing={str(on).lower()}",)),
        2,
        ("ms", "MiB"),
    ),
    Row("LARS", "ResNet-50, weights one by one (as on a CPU)", partial(lars_steps, False), 15),
    Row("LARS", "ResNet-50, weights all together (as on a GPU)", partial(lars_steps, True), 15),
    Row("fused AdamW", "ResNet-50", lambda on: torch.optim.AdamW(weights(), lr=1e-6, fused=on).step, 15),
    *(Row("contrast in blocks", f"NT-Xent, 2 × {b:,} × 128", partial(pairs, b), 7, ("MiB",)) for b in (256, 1024)),
    Row("contrast in blocks", "NT-Xent, 2 × 4,096 × 128", partial(pairs, 4096), 5, ("MiB",)),
    Row("contrast in blocks", "queue, 256 × 65,536 × 128", queue, 7, ("MiB",)),
    *(Row("gather", f"{b:,} of 50,000 × 3 × 32 × 32 bytes", partial(gather, b), 99) for b in (256, 1024)),
    Row("imports", "train.py experiment=digits max_steps=1, whole process", command, 5),
]

if __name__ == "__main__":
    main()

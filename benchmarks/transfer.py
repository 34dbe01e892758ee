"""What the transfer table costs when features are cached: five sets of 10,000 features, all protocols.

    taskset -c 0 env OMP_NUM_THREADS=1 python benchmarks/transfer.py

Made-up features of 512 numbers in as many classes as CIFAR-10, DTD, Flowers-102, CIFAR-100 and Pets have; 10,000 to
train on, 2,000 to test. Seconds of each protocol go to benchmarks/results/transfer_cpu.md.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from unlabeled.core.environment import machine
from unlabeled.data.sources.published_sets import PER_CLASS, TOP1
from unlabeled.downstream.protocols import PENALTIES, Judged, few_shots, linear, nearest_neighbours
from unlabeled.downstream.vision_task import VisionTask, vision_task
from unlabeled.evaluation.features import Features

PAGE = Path(__file__).parent / "results" / "transfer_cpu.md"
SETS = {"cifar10": 10, "oxford_iiit_pet": 37, "dtd": 47, "cifar100": 100, "flowers102": 102}
TRAIN, TEST, DIM = 10_000, 2_000, 512
FEW = (1, 2, 4, 8, 16)  # those of conf/transfer.yaml, as the other numbers below
LIMIT = 120  # seconds of all sets together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="only these, and no page")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [timed(name) for name in arguments.sets]
    if len(rows) == len(SETS):
        PAGE.write_text(page(rows, arguments.threads))


def timed(name: str) -> tuple[str, int, list[float], str]:
    """Returns a set's name, classes, seconds of the three kinds of protocol, and what was chosen."""
    task = made_up(name)
    seconds, found = [], []
    for protocol in protocols(task):
        start = time.perf_counter()
        found.append(protocol())
        seconds.append(time.perf_counter() - start)
    chosen = f"C = {found[0].facts['C']:.3g}, {found[0].value:.2f} %"
    print(f"{name}, {SETS[name]} classes: {', '.join(f'{each:.1f} s' for each in seconds)}; {chosen}", flush=True)
    return name, SETS[name], seconds, chosen


def protocols(task: VisionTask) -> list[Callable[[], Judged]]:
    """Returns the protocols with the settings of conf/transfer.yaml."""
    return [
        lambda: linear(task, PENALTIES, 1000),
        lambda: nearest_neighbours(task, 20, 0.07),
        lambda: [few_shots(task, count, 10, 4000.0, 1000, 0) for count in FEW][-1],
    ]


def made_up(name: str) -> VisionTask:
    """Positive, correlated features with a spectrum that falls as features' do; most of them separable."""
    classes = SETS[name]
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (TRAIN + TEST,), generator=generator)
    scale = torch.arange(1, DIM + 1).pow(-0.4)
    centres = 0.15 * torch.randn(classes, DIM, generator=generator)
    rotation = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator))[0]
    x = ((torch.randn(TRAIN + TEST, DIM, generator=generator) + centres[labels]) * scale @ rotation).relu_()
    ids = torch.arange(TRAIN + TEST)
    train, test = (Features(x[part], labels[part], ids[part]) for part in (slice(TRAIN), slice(TRAIN, None)))
    metric = PER_CLASS if name in ("flowers102", "oxford_iiit_pet") else TOP1
    return vision_task(name, metric, [str(each) for each in range(classes)], train, None, test, seed=0)


def page(rows: list[tuple[str, int, list[float], str]], threads: int) -> str:
    total = sum(sum(seconds) for _, _, seconds, _ in rows)
    lines = [
        "# Cost of the transfer table with cached features",
        "",
        f"{len(rows)} sets of {TRAIN:,} train and {TEST:,} test features of {DIM} numbers, made up, a fifth of train",
        f"held out: **{total:.0f} s** together on {threads} core{'s' if threads > 1 else ''}; the aim is {LIMIT} s.",
        f"{machine()['cpu']}. Written by `benchmarks/transfer.py`.",
        "",
        "| as many classes as | classes | linear, 45 values of C, s | k-NN, s | few images, 5 × 10 draws, s | linear |",
        "|---|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {name} | {classes} | {' | '.join(f'{each:.1f}' for each in seconds)} | {chosen} |"
        for name, classes, seconds, chosen in rows
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()

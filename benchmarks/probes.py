"""What the probes of cached features cost: k-NN beside the bare matrix product, L-BFGS, a grid of heads at once.

    taskset -c 0,1 env OMP_NUM_THREADS=2 python benchmarks/probes.py

50,000 made-up train and 10,000 test features of 512 numbers. What is compared is timed in turn within one process;
medians and the best go to benchmarks/results/probes_cpu.md. Peak memory is that of a process of its own.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor

from unlabeled.core.environment import machine, versions
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.probes.knn import KNN
from unlabeled.evaluation.probes.linear import standardise
from unlabeled.evaluation.probes.logistic import fit_logistic, logistic_loss
from unlabeled.evaluation.probes.sgd_grid import Head, SGDGrid

ROOT = Path(__file__).resolve().parents[1]
TRAIN, TEST, DIM, THREADS = 50_000, 10_000, 512, 2
C_PATH = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # that of conf/probe/linear.yaml
# DINOv2's, those of conf/probe/linear_sgd.yaml
RATES = [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timings of each, in turn")
    parser.add_argument("--peak-memory", nargs=2, type=int, metavar=("CLASSES", "K"), help="only print k-NN's, in MiB")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    if arguments.peak_memory:
        print(peak_memory(*arguments.peak_memory))
        return
    lines = [
        *header(arguments.repeats),
        *neighbours(arguments.repeats),
        *logistic(),
        *heads(arguments.repeats),
        *whole(),
    ]
    page = ROOT / "benchmarks" / "results" / "probes_cpu.md"
    page.write_text("\n".join([*lines, ""]))
    print(page.read_text())


def made_up(classes: int) -> tuple[Features, Features]:
    """Train and test: positive, correlated, with a spectrum that falls as features' do; half of them separable."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (TRAIN + TEST,), generator=generator)
    scale = torch.arange(1, DIM + 1).pow(-0.4)
    centres = 0.15 * torch.randn(classes, DIM, generator=generator)
    rotation = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator))[0]
    x = ((torch.randn(TRAIN + TEST, DIM, generator=generator) + centres[labels]) * scale @ rotation).relu_()
    ids = torch.arange(TRAIN + TEST)
    train, test = (Features(x[part], labels[part], ids[part]) for part in (slice(TRAIN), slice(TRAIN, None)))
    return train, test


def neighbours(repeats: int) -> list[str]:
    """k-NN, normalisation and votes included, beside nothing but the products of queries and bank."""
    lines = [
        "",
        "## k-NN",
        "",
        "| classes | k | best s | median s | product alone, best s | ratio | peak MiB |",
    ]
    lines.append("|---:|---:|---:|---:|---:|---:|---:|")
    for classes in (10, 1000):
        train, test = made_up(classes)
        for k in (20, 200):
            probe = KNN([k], 0.1)
            ours, bare = in_turn(
                repeats, partial(probe.fit_predict, train, test, classes), partial(products, test.x, train.x)
            )
            ratio = ratios(ours, bare)
            times = f"{min(ours):.2f} | {statistics.median(ours):.2f} | {min(bare):.2f} | {ratio:.2f}"
            lines.append(f"| {classes:,} | {k} | {times} | {in_a_process(classes, k):.0f} |")
    notes = [
        "Ratio: the median of those of neighbouring timings. Peak memory is what a fresh process takes beyond the",
        "features and all that it had after a first small call.",
    ]
    return [*lines, "", *notes]


def products(queries: Tensor, bank: Tensor) -> None:
    """Of 624 queries at a time: of the sizes tried the fastest."""
    for part in torch.split(queries, 624):
        part @ bank.T


def peak_memory(classes: int, k: int) -> float:
    x, labels = torch.randn(TRAIN + TEST, DIM), torch.randint(classes, (TRAIN + TEST,))
    train, test = (Features(x[part], labels[part], labels[part]) for part in (slice(TRAIN), slice(TRAIN, None)))
    few = test.rows(torch.arange(100))
    KNN([20], 0.1).fit_predict(few, few, classes)  # libraries are loaded
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: getrusage's is that of the parent, too
    before = status("VmRSS")
    KNN([k], 0.1).fit_predict(train, test, classes)
    return (status("VmHWM") - before) / 1024


def status(name: str) -> int:
    """Of this process, KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def in_a_process(classes: int, k: int) -> float:
    command = [sys.executable, __file__, "--peak-memory", str(classes), str(k)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def logistic() -> list[str]:
    """The path of L-BFGS with warm starts in float32, and what each loss is above the optimum in float64."""
    train, _ = made_up(10)
    single, double = (standardise(train.x, dtype=dtype)[0] for dtype in (torch.float32, torch.float64))
    lines = ["", "## L-BFGS", "", "One path over C with warm starts, 50,000 images, 10 classes, float32 products.", ""]
    lines += ["| C | s | iterations | loss | above the optimum |", "|---:|---:|---:|---:|---:|"]
    weight: Tensor | None = None
    for c in C_PATH:
        start = time.perf_counter()
        weight, iterations = fit_logistic(single, train.labels, c, 10, 1000, weight)
        seconds = time.perf_counter() - start
        exact, _ = fit_logistic(double, train.labels, c, 10, 1000, weight)
        loss, best = (logistic_loss(w, double, train.labels, c)[0] for w in (weight, exact))
        lines.append(f"| {c:g} | {seconds:.2f} | {iterations} | {loss:.6f} | {loss - best:.0e} |")
    return lines


def heads(repeats: int) -> list[str]:
    """One epoch of 13 learning rates as one matrix, beside torch.optim.SGD on 13 linear layers one after another."""
    train, _ = made_up(10)
    (x,) = standardise(train.x, dtype=torch.float32)
    bare = x[:, :-1].contiguous()
    grid = SGDGrid(RATES, 1, 256, [0.0], 0.9, 0.1, 0)
    points = [Head("last", rate, 0.0) for rate in RATES]
    together, apart = in_turn(
        repeats, partial(grid.fit, x, train.labels, 10, points), partial(one_by_one, bare, train.labels)
    )
    return [
        "",
        "## Grid of heads",
        "",
        "One epoch, 10 classes, batches of 256.",
        "",
        "| 13 learning rates | best s | median s |",
        "|---|---:|---:|",
        f"| in one pass | {min(together):.3f} | {statistics.median(together):.3f} |",
        f"| one by one (nn.Linear, torch.optim.SGD) | {min(apart):.3f} | {statistics.median(apart):.3f} |",
        "",
        f"Median of the ratios of neighbouring timings: {ratios(apart, together):.1f}.",
    ]


def one_by_one(x: Tensor, labels: Tensor) -> None:
    for rate in RATES:
        model = torch.nn.Linear(DIM, 10)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, -(-TRAIN // 256))
        for rows in torch.split(torch.randperm(len(x)), 256):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def whole() -> list[str]:
    """Each probe once, as conf/probe has it: choice on the holdout, refit and prediction of the test features."""
    train, test = made_up(10)
    lines = [
        "",
        "## Each probe as its yaml has it",
        "",
        "Once each, 10 classes.",
        "",
        "| probe | protocol | s |",
        "|---|---|---:|",
    ]
    total = 0.0
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        probes = {name: instantiate(compose(f"probe/{name}").probe)[name] for name in ("knn", "linear", "linear_sgd")}
    for name, probe in probes.items():
        start = time.perf_counter()
        scores = probe.fit_predict(train, test, 10)
        total += time.perf_counter() - start
        lines.append(f"| {name} | {', '.join(s.protocol for s in scores)} | {time.perf_counter() - start:.1f} |")
    return [*lines, f"| all | | {total:.1f} |"]


def in_turn(repeats: int, *works: Callable[[], object]) -> list[list[float]]:
    """Seconds of each, A B A B …, after one round that is not counted."""
    seconds: list[list[float]] = [[] for _ in works]
    for number in range(repeats + 1):
        for work, own in zip(works, seconds, strict=True):
            start = time.perf_counter()
            work()
            own += [time.perf_counter() - start] if number else []
    return seconds


def ratios(first: list[float], second: list[float]) -> float:
    return statistics.median([a / b for a, b in zip(first, second, strict=True)])


def header(repeats: int) -> list[str]:
    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    cpus = sorted(os.sched_getaffinity(0))
    return [
        f"# Cost of the probes: {machine()['cpu']}, {THREADS} threads on {len(cpus)} cores of {os.cpu_count()}",
        "",
        f"By `python benchmarks/probes.py`: {TRAIN:,} train and {TEST:,} test features of {DIM} numbers;",
        f"{repeats} timings of each, in turn. Other jobs ran on the machine meanwhile (load average "
        f"{os.getloadavg()[1]:.1f} when this began), so",
        "the best and the ratios say more than the medians.",
        f"Versions: {found}.",
    ]


if __name__ == "__main__":
    main()

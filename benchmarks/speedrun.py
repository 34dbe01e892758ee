"""Minutes of training until a probe reaches some accuracies, each from a run that was planned to be so long.

    python benchmarks/speedrun.py data.download=true                            on a GPU: five lengths, see --epochs
    python benchmarks/speedrun.py data=parquet data.path=FOLDER --epochs 50 100
    taskset -c 0,1 env OMP_NUM_THREADS=2 python benchmarks/speedrun.py data.path=FOLDER --cpu      on two cores
    python benchmarks/speedrun.py data.path=FOLDER --experiment cifar10_cpu --epochs 5 20 --targets 50 60

A learning rate falls to the end of its run, so that the state in the middle of a longer run says too little: every
length is a run of its own, judged at its last epoch. One that has its report is not trained again. The table goes to
benchmarks/results/EXPERIMENT_minutes.md.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal, NamedTuple

from unlabeled.core.environment import summarize_provenance

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TARGETS = [85.0, 90.0, 92.0]  # per cent
EPOCHS = [50, 100, 200, 400, 800]
CPU: dict[str, Any] = {
    "experiment": "cifar10_cpu_speedrun",
    "epochs": [6, 14],
    "targets": [60.0, 65.0],
    "probe": "knn",
    "seeds": [0, 1, 2],
}


class Reached(NamedTuple):
    """What a run of some length came to."""

    epochs: int
    minutes: float  # from the first step's data to the last checkpoint, start-up of the process left out
    images_per_second: float
    linear: float  # top-1 on the test images, per cent
    knn: float
    provenance: dict[str, Any]


Probe = Literal["linear", "knn"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of conf/train.yaml, before the options")
    parser.add_argument("--cpu", action="store_true", help="other values for what is not given: " + _told(CPU))
    parser.add_argument("--experiment", default="cifar10_speedrun")
    parser.add_argument("--epochs", type=int, nargs="+", default=EPOCHS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="each length is trained with each")
    parser.add_argument(
        "--probe", choices=["linear", "knn"], default="linear", help="whose accuracy the targets are of"
    )
    parser.add_argument("--targets", type=float, nargs="+", default=TARGETS, help="top-1 of the probe, per cent")
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs", help="folder of the runs")
    if "--cpu" in sys.argv[1:]:
        parser.set_defaults(**CPU)
    given = parser.parse_args()
    found = []
    for epochs in sorted(given.epochs):
        for seed in given.seeds:
            name = f"{given.experiment}_{epochs}_epochs" + (f"_seed{seed}" if seed else "")
            run_dir = given.runs.resolve() / name
            if not (run_dir / "report" / "results.json").exists():
                train(given.experiment, epochs, run_dir, [f"seed={seed}", *given.overrides])
            found.append(read(run_dir, epochs))
    path = RESULTS / f"{given.experiment}_minutes.md"
    path.write_text(page(given.experiment, found, given.targets, given.probe))
    print(path.read_text())


def _told(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {' '.join(map(str, v)) if isinstance(v, list) else v}" for key, v in values.items())


def train(experiment: str, epochs: int, run_dir: Path, overrides: Sequence[str]) -> None:
    """As a user does."""
    command = ["train.py", f"experiment={experiment}", f"max_epochs={epochs}", f"run_dir={run_dir}", *overrides]
    print("python", *command, flush=True)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def read(run_dir: Path, epochs: int) -> Reached:
    """From the report of a run that was not interrupted."""
    results = json.loads((run_dir / "report" / "results.json").read_text())
    training = results["provenance"]["training"]
    top1 = {row["protocol"]: row["top1"] for row in results["rows"] if row["features"] == "pretrained"}
    linear = next(value for name, value in top1.items() if name.startswith("linear"))
    knn = max(value for name, value in top1.items() if name.startswith("knn"))
    minutes = training["seconds_of_last_session"] / 60
    return Reached(epochs, minutes, training["images_per_second"], linear, knn, results["provenance"])


def by_length(found: Sequence[Reached]) -> list[list[Reached]]:
    """The runs of each number of epochs, the shortest first."""
    lengths = sorted({run.epochs for run in found})
    return [[run for run in found if run.epochs == epochs] for epochs in lengths]


def minutes_to(target: float, found: Sequence[Reached], probe: Probe = "linear") -> Reached | None:
    """The means of the shortest runs that reach ``target`` per cent on the mean of their seeds, or None."""
    means = [_mean(runs) for runs in by_length(found)]
    return min((run for run in means if getattr(run, probe) >= target), key=lambda run: run.minutes, default=None)


def _mean(runs: Sequence[Reached]) -> Reached:
    if len(runs) == 1:
        return runs[0]
    numbers: dict[str, Any] = {name: fmean(getattr(run, name) for run in runs) for name in NUMBERS}
    return runs[0]._replace(**numbers)


def page(experiment: str, found: Sequence[Reached], targets: Sequence[float], probe: Probe = "linear") -> str:
    """A line for each length, a sentence for each target, and what they were made with."""
    lengths = by_length(found)
    seeds = len(lengths[0])
    many = f"{seeds} seeds: mean ± deviation of the sample" if seeds > 1 else "one seed"
    lines = [
        f"# Accuracy and minutes of experiment={experiment}",
        "",
        f"`python benchmarks/speedrun.py`: every line is a run of its own, judged at its last epoch, {many}. Minutes",
        "are of training with reading the data, compiling and checkpoints; the probes afterwards are not in them.",
        "",
        "| epochs | minutes | images per second | linear | k-NN |",
        "|---:|---:|---:|---:|---:|",
    ]
    for runs in lengths:
        cells = [_cell([getattr(run, name) for run in runs], form) for name, form in NUMBERS.items()]
        lines.append(f"| {runs[0].epochs} | {' | '.join(cells)} |")
    lines.append("")
    for target in targets:
        first = minutes_to(target, found, probe)
        said = f"{first.minutes:.1f} minutes, {first.epochs} epochs" if first else "reached by none of these runs"
        lines.append(f"- {target:g} % {'k-NN' if probe == 'knn' else probe}: {said}")
    return "\n".join([*lines, "", *summarize_provenance([run.provenance for run in found])]) + "\n"


NUMBERS = {"minutes": ".1f", "images_per_second": ",.0f", "linear": ".2f", "knn": ".2f"}


def _cell(values: Sequence[float], form: str) -> str:
    mean = f"{fmean(values):{form}}"
    return mean if len(values) == 1 else f"{mean} ± {stdev(values):{form}}"


if __name__ == "__main__":
    main()

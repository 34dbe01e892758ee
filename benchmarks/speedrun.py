"""Minutes of training until a linear probe reaches 85, 90 and 92 %, each from a run that was planned to be so long.

    python benchmarks/speedrun.py data.download=true                            on a GPU: five lengths, see --epochs
    python benchmarks/speedrun.py data=parquet data.path=FOLDER --epochs 50 100
    python benchmarks/speedrun.py data.path=FOLDER --experiment cifar10_cpu --epochs 5 20 --targets 50 60       on a CPU

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
from typing import Any, NamedTuple

from unlabeled.core.environment import summarize_provenance

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TARGETS = [85.0, 90.0, 92.0]  # per cent


class Reached(NamedTuple):
    """What a run of some length came to."""

    epochs: int
    minutes: float  # from the first step's data to the last checkpoint, start-up of the process left out
    images_per_second: float
    linear: float  # top-1 on the test images, per cent
    knn: float
    provenance: dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of conf/train.yaml, before the options")
    parser.add_argument("--experiment", default="cifar10_speedrun")
    parser.add_argument("--epochs", type=int, nargs="+", default=[50, 100, 200, 400, 800])
    parser.add_argument("--targets", type=float, nargs="+", default=TARGETS, help="top-1 of the linear probe, per cent")
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs", help="folder of the runs")
    given = parser.parse_args()
    found = []
    for epochs in sorted(given.epochs):
        run_dir = given.runs.resolve() / f"{given.experiment}_{epochs}_epochs"
        if not (run_dir / "report" / "results.json").exists():
            train(given.experiment, epochs, run_dir, given.overrides)
        found.append(read(run_dir, epochs))
    path = RESULTS / f"{given.experiment}_minutes.md"
    path.write_text(page(given.experiment, found, given.targets))
    print(path.read_text())


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


def minutes_to(target: float, found: Sequence[Reached]) -> Reached | None:
    """The shortest run that reaches ``target`` per cent, or None."""
    return min((run for run in found if run.linear >= target), key=lambda run: run.minutes, default=None)


def page(experiment: str, found: Sequence[Reached], targets: Sequence[float]) -> str:
    """A line for each run, a sentence for each target, and what they were made with."""
    lines = [
        f"# Accuracy and minutes of experiment={experiment}",
        "",
        "`python benchmarks/speedrun.py`: every line is a run of its own, judged at its last epoch, one seed. Minutes",
        "are of training with reading the data, compiling and checkpoints; the probes afterwards are not in them.",
        "",
        "| epochs | minutes | images per second | linear | k-NN |",
        "|---:|---:|---:|---:|---:|",
    ]
    for run in found:
        numbers = f"{run.minutes:.1f} | {run.images_per_second:,.0f} | {run.linear:.2f} | {run.knn:.2f}"
        lines.append(f"| {run.epochs} | {numbers} |")
    lines.append("")
    for target in targets:
        first = minutes_to(target, found)
        said = f"{first.minutes:.1f} minutes, {first.epochs} epochs" if first else "reached by none of these runs"
        lines.append(f"- {target:g} % linear: {said}")
    return "\n".join([*lines, "", *summarize_provenance([run.provenance for run in found])]) + "\n"


if __name__ == "__main__":
    main()

"""Train SimCLR on CIFAR-10 with this project's views and with torchvision's, image by image, and compare their k-NN.

    python benchmarks/views_end_to_end.py FOLDER                     FOLDER holds train.parquet and test.parquet
    python benchmarks/views_end_to_end.py FOLDER --only torchvision  those runs alone

About an hour on one core. A run that has its report is not trained again. Once all have one, the table and the reports
behind it go to benchmarks/results/: what falls short stays in it as it is.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from unlabeled.core.environment import summarize_provenance

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PIPELINES = {"engine": "unlabeled.views.pipeline.Views", "torchvision": "tests.views.reference.TorchvisionViews"}
ALLOWED = 1.0  # points between the two means


class Run(NamedTuple):
    """One of the two pipelines with one seed."""

    pipeline: str
    seed: int
    folder: Path

    @property
    def report(self) -> Path:
        """Written when the run has been judged."""
        return self.folder / "report" / "results.json"


class Score(NamedTuple):
    """What a report says of the last epoch; top-1 on the test images in per cent, minutes of training."""

    top1: float
    random: float  # the same network at its start
    minutes: float
    protocol: str
    provenance: dict[str, Any]
    kept: str  # the report, from the folder of the table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.parquet and test.parquet")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs", help="folder of the runs")
    parser.add_argument("--only", choices=PIPELINES, help="train with this pipeline alone")
    parser.add_argument("--table", action="store_true", help="train nothing")
    given = parser.parse_args()
    runs = [
        Run(name, seed, given.runs.resolve() / f"views_{name}_{given.epochs}_epochs_seed{seed}")
        for seed in given.seeds
        for name in PIPELINES
    ]
    for run in runs:
        if not given.table and given.only in (None, run.pipeline) and not run.report.exists():
            train(run, given.epochs, given.data.resolve())
    missing = [str(run.folder) for run in runs if not run.report.exists()]
    if missing or len(given.seeds) < 2:
        print("no table:", f"no report in {', '.join(missing)}" if missing else "a deviation needs two seeds")
        return
    engine, torchvision = ([kept(run) for run in runs if run.pipeline == name] for name in PIPELINES)
    (RESULTS / "views_end_to_end.md").write_text(page(engine, torchvision, given.seeds, given.epochs))
    print((RESULTS / "views_end_to_end.md").read_text())


def train(run: Run, epochs: int, data: Path) -> None:
    """As a user does, but for what is drawn and judged on the way."""
    command = ["train.py", "experiment=cifar10_cpu", f"data.path={data}", f"seed={run.seed}", f"max_epochs={epochs}"]
    command += [f"name={run.folder.name}", f"run_dir={run.folder}", f"views._target_={PIPELINES[run.pipeline]}"]
    command += ["online_knn=null", "pictures=null"]
    print("python", *command, flush=True)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def kept(run: Run) -> Score:
    """The report's numbers, after copying it beside the table; minutes of all steps at the last session's speed."""
    copied = RESULTS / "views_end_to_end" / f"{run.pipeline}_seed{run.seed}.json"
    copied.parent.mkdir(exist_ok=True)
    shutil.copy(run.report, copied)
    results = json.loads(copied.read_text())
    knn = {row["features"]: row for row in results["rows"] if row["protocol"].startswith("knn")}
    provenance = results["provenance"]
    seconds = provenance["training"]["seconds_of_last_session"] / provenance["training"]["steps_of_last_session"]
    return Score(
        top1=knn["pretrained"]["top1"],
        random=knn["random init"]["top1"],
        minutes=seconds * provenance["checkpoint"]["total_steps"] / 60,
        protocol=knn["pretrained"]["protocol"],
        provenance=provenance,
        kept=str(copied.relative_to(RESULTS)),
    )


def page(engine: list[Score], torchvision: list[Score], seeds: list[int], epochs: int) -> str:
    """What was run, the table, what it says, and what it was made with; a score for each seed."""
    differences = [ours.top1 - theirs.top1 for ours, theirs in zip(engine, torchvision, strict=True)]
    lines = [
        "# SimCLR on CIFAR-10 with this project's views and with torchvision's",
        "",
        f"`python benchmarks/views_end_to_end.py FOLDER --seeds {' '.join(map(str, seeds))} --epochs {epochs}`",
        "",
        f"`experiment=cifar10_cpu` for {epochs} epochs with two pipelines of the same views: *engine*, this project's,",
        "and *torchvision*, whose own transforms draw and change PIL images one by one (`tests/views/reference.py`).",
        "Runs of one seed share their first weights and the order of images, and differ in what the views draw.",
        f"Test top-1 of the last epoch in per cent, {engine[0].protocol}; evaluation sees the same pixels in both.",
        "",
        "| seed | engine | torchvision | difference | random start | minutes, engine | minutes, torchvision |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for seed, ours, theirs in zip(seeds, engine, torchvision, strict=True):
        both = f"[{ours.top1:.2f}]({ours.kept}) | [{theirs.top1:.2f}]({theirs.kept}) | {ours.top1 - theirs.top1:+.2f}"
        random = " and ".join(sorted({f"{each.random:.2f}" for each in (ours, theirs)}))  # two: not judged alike
        lines.append(f"| {seed} | {both} | {random} | {ours.minutes:.1f} | {theirs.minutes:.1f} |")
    columns = [[each.top1 for each in engine], [each.top1 for each in torchvision], differences]
    minutes = [f"{mean(each.minutes for each in runs):.1f}" for runs in (engine, torchvision)]
    summary = " | ".join([*map(spread, columns), spread([each.random for each in engine]), *minutes])
    lines += [f"| mean ± deviation | {summary} |", "", verdict(differences), ""]
    return "\n".join([*lines, *summarize_provenance([each.provenance for each in engine + torchvision])]) + "\n"


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation (n − 1)."""
    return f"{mean(values):.2f} ± {stdev(values):.2f}"


def verdict(differences: Sequence[float]) -> str:
    """Whether the means are near enough, and how well that is known."""
    apart, error = mean(differences), stdev(differences) / len(differences) ** 0.5
    judged = "at most" if abs(apart) <= ALLOWED else "MORE THAN"
    return (
        f"Engine − torchvision: **{apart:+.2f}** points on average, with a standard error of {error:.2f} over "
        f"{len(differences)} pairs; {judged} {ALLOWED:g} point apart."
    )


if __name__ == "__main__":
    main()

"""Whether the health monitor names failures that were put into runs, and says nothing of healthy ones.

    taskset -c 0,1 env OMP_NUM_THREADS=2 python benchmarks/health.py FOLDER     train.parquet, test.parquet of CIFAR-10

The first 300 steps of the recipes ``*_cifar10_cpu``, each in a process of its own, spoilt as
``benchmarks/injected/failures.py`` does it, and healthy with three seeds: two hours. Distillation, SCAN and
self-labelling go on from runs that must be there first: ``benchmarks/injected/one_run.py`` says which. A run that is
there is not run again; the table is what :mod:`unlabeled.health` says of the numbers that the runs wrote. ``--full``
trains the recipes to their end as well, another hour.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script sees only its own folder

from benchmarks.injected.failures import ALL, FAILURES, FURTHER, Failure
from unlabeled.core.environment import versions
from unlabeled.health.diagnosis import Diagnosis
from unlabeled.health.folder import diagnose_run

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
STEPS, SEEDS = 300, (0, 1, 2)
LABELLED_OR_TAUGHT = ("distill", "fixmatch", "scan", "self_label")
MASKED = ("ijepa", "simmim", "data2vec")
METHODS = (*ALL, *FURTHER, "nnclr", "supcon", "triplet", "supervised", "lejepa", *MASKED, *LABELLED_OR_TAUGHT)
NAMES = {
    "simclr": "SimCLR",
    "moco_v2": "MoCo v2",
    "swav": "SwAV",
    "relicv2": "ReLICv2",
    "paws": "PAWS",
    "mae": "MAE",
    "simsiam": "SimSiam",
    "byol": "BYOL",
    "barlow_twins": "Barlow Twins",
    "vicreg": "VICReg",
    "dino": "DINO",
    "ibot": "iBOT",
    "dinov2": "DINOv2",
    "nnclr": "NNCLR",
    "supcon": "SupCon",
    "triplet": "Triplets",
    "supervised": "Supervised",
    "lejepa": "LeJEPA",
    "ijepa": "I-JEPA",
    "simmim": "SimMIM",
    "scan": "SCAN",
    "self_label": "Self-labelling",
    "distill": "Distillation",
    "fixmatch": "FixMatch",
    "data2vec": "data2vec",
}


class Job(NamedTuple):
    """One run."""

    objective: str
    failure: str
    seed: int
    steps: int  # 0: to the end of the recipe

    @property
    def folder(self) -> str:
        words = self.failure.replace(" ", "_").replace("-", "_")
        return f"{self.objective}_{words}_{self.seed}" + ("" if self.steps else "_full")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.parquet and test.parquet")
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs" / "health", help="folder of the runs")
    parser.add_argument("--full", action="store_true", help="healthy recipes to their end as well, one seed")
    parser.add_argument("--only", nargs="*", default=METHODS, choices=METHODS, help="methods that are run")
    arguments = parser.parse_args()
    data, runs = arguments.data.resolve(), arguments.runs.resolve()
    for job in jobs(arguments.full):
        if job.objective in arguments.only and job.folder not in kept():
            run(job, data, runs)
            keep(job, runs / job.folder)
    measure_cost(data, runs)
    (RESULTS / "health_cpu.md").write_text(page())
    print((RESULTS / "health_cpu.md").read_text())


def kept() -> dict[str, dict[str, Any]]:
    """What was found in each run that ended, by its folder."""
    path = RESULTS / "health_cpu.json"
    found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    return found


def keep(job: Job, folder: Path) -> None:
    found = {"steps": diagnose_run(folder).last_step, "findings": named(folder), "torch": versions()["torch"]}
    (RESULTS / "health_cpu.json").write_text(json.dumps(kept() | {job.folder: found}, indent=1) + "\n")


def jobs(full: bool) -> list[Job]:
    healthy = [Job(objective, "healthy", seed, STEPS) for seed in SEEDS for objective in METHODS]
    spoilt = [Job(objective, each.name, 0, steps_of(each)) for each in FAILURES for objective in each.objectives]
    return [*healthy, *spoilt, *([Job(objective, "healthy", 0, 0) for objective in ALL] if full else [])]


def steps_of(failure: Failure) -> int:
    """What is wrong with the images shows in the first step."""
    return 100 if failure.name in ("constant images", "not shuffled") else STEPS


def measure_cost(data: Path, runs: Path) -> None:
    """Ten epochs of SimCLR's recipe: the k-NN comes twice, the monitor as often as in any."""
    if (RESULTS / "health_cost.json").exists():
        return
    given = ["cifar10_cpu", str(data), str(runs / "cost"), "10"]
    command = [sys.executable, "-m", "benchmarks.injected.cost", *given]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    (RESULTS / "health_cost.json").write_text(done.stdout.splitlines()[-1] + "\n")


def run(job: Job, data: Path, runs: Path) -> None:
    folder = runs / job.folder
    if (folder / "done").exists():
        return
    given = (job.objective, job.failure, str(job.seed), str(job.steps), str(data), str(folder))
    print(*given[:4], flush=True)
    command = [sys.executable, "-m", "benchmarks.injected.one_run", *given]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    (folder / "done").write_text(done.stdout)


def page() -> str:
    """Both tables, of the runs that are kept."""
    found = kept()
    there = [job for job in jobs(True) if job.folder in found]
    healthy = [job for job in there if job.failure == "healthy"]
    spoilt = [job for job in there if job.failure != "healthy"]
    missing = [f"{NAMES[job.objective]} ({job.failure}, {job.seed})" for job in jobs(False) if job not in there]
    return "\n".join(
        [
            "# What the health monitor says of healthy and of spoilt runs",
            "",
            f"CIFAR-10, recipes `*_cifar10_cpu` (thin ResNet; small ViT: MAE, DINO, iBOT, DINOv2), first {STEPS} steps",
            "(100 where images are constant or not shuffled), on a CPU, in bfloat16; `benchmarks/health.py`.",
            f"Versions of torch: {', '.join(sorted({each['torch'] for each in found.values()}))}.",
            *(["Not run: " + ", ".join(missing) + "."] if missing else []),
            "",
            "## Spoilt",
            "",
            "| failure | method | findings, and after how many steps each was there |",
            "|---|---|---|",
            *[f"| {job.failure} | {NAMES[job.objective]} | {found[job.folder]['findings']} |" for job in spoilt],
            "",
            NOTES,
            "",
            "## Healthy",
            "",
            "| method | seed | steps | findings |",
            "|---|---:|---:|---|",
            *[healthy_line(job, found[job.folder]) for job in healthy],
            "",
            *cost_lines(RESULTS / "health_cost.json"),
        ]
    )


def cost_lines(path: Path) -> list[str]:
    """What watching takes of the time, where it was measured."""
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    monitor, probe = (f"{found[name]:.2%}" for name in ("HealthMonitor", "OnlineKNN"))
    line = (
        f"Of {found['seconds']:.0f} s for {found['steps']:,} steps of SimCLR's recipe (two cores, nothing beside it) "
        f"the monitor took {monitor} and the online k-NN {probe}, both at their default intervals."
    )
    return ["## Cost", "", line, ""]


def healthy_line(job: Job, found: dict[str, Any]) -> str:
    return f"| {NAMES[job.objective]} | {job.seed} | {found['steps']:,} | {found['findings']} |"


def named(folder: Path) -> str:
    """Every finding with the step at which it was made, in that order."""
    diagnosis, found = Diagnosis(diagnose_run(folder).facts), dict[str, int]()
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        metrics = json.loads(line)
        diagnosis.add(metrics.pop("step"), metrics)
        for finding in diagnosis.findings:
            grade = "" if finding.severity == "alarm" else f" ({finding.severity})"
            found.setdefault(finding.name + grade, diagnosis.last_step)
    ended = (folder / "done").read_text() if (folder / "done").exists() else ""
    stopped = ["the run stopped by itself"] if "stopped by itself" in ended else []
    return ", ".join([*(f"{name} {step}" for name, step in found.items()), *stopped]) or "none"


NOTES = """Failures are put in by `benchmarks/injected/failures.py`; the number is the step after which the monitor
said it, at the intervals of `conf/health/watch.yaml`. ReLICv2
without its predictor has no finding and none is due: there it is a choice (`objective.predictor`). MoCo without
shuffled BatchNorm is **not named**: in so few steps nothing that is measured tells it from a healthy run. Without its
stop-gradient MoCo collapses; PAWS, SwAV and ReLICv2 do not in so few steps, and are named by the gradient itself. Of
thirty times the learning rate most methods suffer little in 300 steps (MAE's loss is no worse): the size of the
updates names it. FixMatch's runs are planned for 8 epochs: what must last for 2 % of a run is named later in longer
ones."""

if __name__ == "__main__":
    main()

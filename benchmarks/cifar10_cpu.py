"""Train every ``*_cpu`` recipe on CIFAR-10, one after another, and write one table of what they reached.

    python benchmarks/cifar10_cpu.py FOLDER              FOLDER holds train.parquet and test.parquet

About two hours on two cores. A run that has its report is not trained again, so that the script goes on where it was
stopped. The table and the reports behind it go to benchmarks/results/: what falls short stays in it as it is.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from unlabeled.core.environment import summarize_provenance

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PLOTS = ("loss_curve", "feature_map", "confusion", "calibration")
ENDS = [f"({name}.png)" for name in PLOTS]


class Recipe(NamedTuple):
    """A run, and by how many points its network is to beat the same one with random weights."""

    method: str
    experiment: str
    protocol: str  # how the protocol that decides begins
    wanted: float


RECIPES = [
    Recipe("SimCLR", "cifar10_cpu", "knn", 10),
    Recipe("MoCo v2", "moco_v2_cifar10_cpu", "knn", 10),
    Recipe("SwAV", "swav_cifar10_cpu", "knn", 10),
    Recipe("ReLICv2", "relicv2_cifar10_cpu", "knn", 10),
    Recipe("BYOL", "byol_cifar10_cpu", "knn", 10),
    Recipe("SimSiam", "simsiam_cifar10_cpu", "knn", 10),
    Recipe("Barlow Twins", "barlow_twins_cifar10_cpu", "knn", 10),
    Recipe("VICReg", "vicreg_cifar10_cpu", "knn", 10),
    Recipe("NNCLR", "nnclr_cifar10_cpu", "knn", 10),
    Recipe("LeJEPA", "lejepa_cifar10_cpu", "knn", 10),
    Recipe("DINO", "dino_cifar10_cpu", "knn", 10),
    Recipe("PAWS (4,000 labels)", "paws_cifar10_cpu", "knn", 10),
    Recipe("SupCon (all labels)", "supcon_cifar10_cpu", "knn", 10),
    Recipe("Supervised (all labels)", "supervised_cifar10_cpu", "knn", 10),
    Recipe("Triplets (all labels)", "triplet_cifar10_cpu", "knn", 10),
    Recipe("MAE", "mae_cifar10_cpu", "linear", 5),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.parquet and test.parquet")
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs", help="folder of the runs")
    arguments = parser.parse_args()
    for recipe in RECIPES:
        train(recipe.experiment, arguments.data.resolve(), arguments.runs.resolve())
        keep_report(arguments.runs / recipe.experiment, RESULTS / recipe.experiment)
    found = [(recipe, read(RESULTS / recipe.experiment)) for recipe in RECIPES]
    (RESULTS / "cifar10_cpu.md").write_text(page(found))
    print((RESULTS / "cifar10_cpu.md").read_text())


def train(experiment: str, data: Path, runs: Path) -> None:
    """One recipe as a user runs it; ReLICv2's masks come first."""
    run_dir = runs / experiment
    if (run_dir / "report" / "results.json").exists():
        return
    more = []
    if experiment.startswith("relicv2"):
        masks = runs / "cifar10_masks.pt"
        if not masks.exists():
            execute("-m", "unlabeled.commands.saliency", "data=parquet", f"data.path={data}", f"out={masks}")
        more = [f"views.masks={masks}"]
    execute("train.py", f"experiment={experiment}", f"data.path={data}", f"run_dir={run_dir}", *more)


def execute(*command: str) -> None:
    print("python", *command, flush=True)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def keep_report(run_dir: Path, folder: Path) -> None:
    """Numbers, plots, configuration and metrics of a run; no weights, and no image of the data set."""
    folder.mkdir(parents=True, exist_ok=True)
    plots = [run_dir / "report" / f"{name}.png" for name in PLOTS]
    for path in [*plots, run_dir / "report" / "results.json", run_dir / "config.yaml", run_dir / "metrics.jsonl"]:
        shutil.copy(path, folder)
    text = (run_dir / "report" / "report.md").read_text()
    kept = [line for line in text.splitlines() if not line.startswith("![") or line.endswith(tuple(ENDS))]
    (folder / "report.md").write_text("\n".join(kept) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """The report of a run with its resolved configuration."""
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results | {"config": OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))}


def page(found: list[tuple[Recipe, dict[str, Any]]]) -> str:
    """The table, and what all its lines share."""
    lines = [
        "# CIFAR-10 on two CPU cores",
        "",
        "Test top-1 of the last epoch in per cent, of frozen features; made by `python benchmarks/cifar10_cpu.py`.",
        "Compare with the same network at its random start: the networks are thin, the runs short, and raw pixels",
        "depend on how a recipe normalises them. PAWS sees 4,000 labels, SupCon, triplets and supervised all,",
        "the others none.",
        "",
        "| method | recipe and report | backbone parameters | epochs | minutes of training | protocol | pretrained "
        "| random | gain | wanted | raw pixels | seed |",
        "|---|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for recipe, results in found:
        lines += rows(recipe, results)
    return "\n".join([*lines, "", *summarize_provenance([results["provenance"] for _, results in found])]) + "\n"


def rows(recipe: Recipe, results: dict[str, Any]) -> list[str]:
    """One line for each protocol; ``wanted`` stands at the one that decides."""
    score = {(row["features"], row["protocol"]): row["top1"] for row in results["rows"]}
    training, seed = results["provenance"]["training"], results["config"]["seed"]
    start = f"{recipe.method} | [{recipe.experiment}]({recipe.experiment}/report.md)"
    start += f" | {training['backbone_parameters']:,} | {results['config']['max_epochs']}"
    start += f" | {training['seconds_of_last_session'] / 60:.1f}"
    lines = []
    for protocol in [protocol for features, protocol in score if features == "pretrained"]:
        ours, random = score["pretrained", protocol], score["random init", protocol]
        wanted = f"≥ {recipe.wanted}" if protocol.startswith(recipe.protocol) else ""
        pixels = score.get(("raw pixels", protocol))
        numbers = f"{ours:.2f} | {random:.2f} | {ours - random:+.2f} | {wanted} | {pixels or float('nan'):.2f} | {seed}"
        lines.append(f"| {start} | {protocol} | {numbers} |".replace("nan", "–"))
    return lines


if __name__ == "__main__":
    main()

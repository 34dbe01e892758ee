"""Train every ``*_cpu`` recipe on CIFAR-10, one after another, and write one table of what they reached.

    python benchmarks/cifar10_cpu.py FOLDER                      FOLDER holds train.parquet and test.parquet
    python benchmarks/cifar10_cpu.py FOLDER --only ibot_cifar10_cpu dinov2_cifar10_cpu

About six hours on two cores. A run that has its report is not trained again, so that the script goes on where it was
stopped. The table and the reports behind it go to benchmarks/results/: what falls short stays in it as it is, and a
recipe without a report there is left out.
"""

import argparse
import json
import math
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
    protocol: str = ""  # how the protocol that decides begins
    wanted: float | None = None  # None: a comparison below decides
    name: str = ""  # of its folder, where it is not the experiment's
    more: tuple[str, ...] = ()  # overrides; {runs} is the folder of the runs

    @property
    def folder(self) -> str:
        return self.name or self.experiment


class Beside(NamedTuple):
    """A run's number, and one of another row or run that it is to beat by so many points."""

    folder: str
    protocol: str  # how it begins, as that of the other
    other: str
    features: str  # row of the other's report
    other_protocol: str
    wanted: float
    words: str


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
    Recipe("DINO, ViT-Ti", "dino_vit_tiny_cifar10_cpu", "knn", 10),
    Recipe("iBOT", "ibot_cifar10_cpu", "knn", 10),
    Recipe("DINOv2", "dinov2_cifar10_cpu", "knn", 10),
    Recipe("PAWS (4,000 labels)", "paws_cifar10_cpu", "knn", 10),
    Recipe("SupCon (all labels)", "supcon_cifar10_cpu", "knn", 10),
    Recipe("Supervised (all labels)", "supervised_cifar10_cpu", "knn", 10),
    Recipe("Triplets (all labels)", "triplet_cifar10_cpu", "knn", 10),
    Recipe("MAE", "mae_cifar10_cpu", "linear", 5),
    Recipe("I-JEPA", "ijepa_cifar10_cpu", "linear", 5),
    Recipe("SimMIM", "simmim_cifar10_cpu", "linear", 5),
    Recipe("data2vec", "data2vec_cifar10_cpu", "linear", 5),
    Recipe("SCAN, after SimCLR", "scan_cifar10_cpu", more=("weights={runs}/cifar10_cpu",)),
    Recipe("Self-labelling, after SCAN", "self_label_cifar10_cpu", more=("weights={runs}/scan_cifar10_cpu",)),
    Recipe("FixMatch (4,000 labels)", "fixmatch_cifar10_cpu"),
    Recipe(
        "The same labels alone",
        "fixmatch_cifar10_cpu",
        name="labels_alone_cifar10_cpu",
        more=("objective.unlabelled_weight=0", "batch_size=8", "max_epochs=null", "max_steps=20800"),
    ),
    Recipe("SimCLR, twice as wide", "cifar10_cpu", "knn", 10, "teacher_cifar10_cpu", ("backbone.width=0.5",)),
    Recipe("Distillation, after it", "distill_cifar10_cpu", more=("objective.teacher={runs}/teacher_cifar10_cpu",)),
]
KMEANS = ("scan_cifar10_cpu", "start", "kmeans", 5, "k-means of the features that SCAN began with")
BESIDE = [
    Beside("scan_cifar10_cpu", "clusters", *KMEANS),
    Beside("self_label_cifar10_cpu", "clusters", *KMEANS),
    Beside(
        *("fixmatch_cifar10_cpu", "classifier", "labels_alone_cifar10_cpu", "pretrained", "classifier", 10),
        "the same labels alone",
    ),
    Beside(
        *("distill_cifar10_cpu", "knn/cosine-exp/k=200", "cifar10_cpu", "pretrained", "knn/cosine-exp/k=200", 0),
        "SimCLR of the same network",
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.parquet and test.parquet")
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs", help="folder of the runs")
    parser.add_argument("--only", nargs="*", help="folders of the runs to train; all reports stay in the table")
    arguments = parser.parse_args()
    for recipe in RECIPES:
        if arguments.only is None or recipe.folder in arguments.only:
            train(recipe, arguments.data.resolve(), arguments.runs.resolve())
            keep_report(arguments.runs / recipe.folder, RESULTS / recipe.folder)
    found = [(recipe, read(RESULTS / recipe.folder)) for recipe in RECIPES if (RESULTS / recipe.folder).is_dir()]
    (RESULTS / "cifar10_cpu.md").write_text(page(found))
    print((RESULTS / "cifar10_cpu.md").read_text())


def train(recipe: Recipe, data: Path, runs: Path) -> None:
    """One recipe as a user runs it; ReLICv2's masks come first."""
    run_dir = runs / recipe.folder
    if (run_dir / "report" / "results.json").exists():
        return
    more = [each.format(runs=runs) for each in recipe.more]
    if recipe.experiment.startswith("relicv2"):
        masks = runs / "cifar10_masks.pt"
        if not masks.exists():
            execute("-m", "unlabeled.commands.saliency", "data=parquet", f"data.path={data}", f"out={masks}")
        more += [f"views.masks={masks}"]
    execute("train.py", f"experiment={recipe.experiment}", f"data.path={data}", f"run_dir={run_dir}", *more)


def execute(*command: str) -> None:
    print("python", *command, flush=True)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def keep_report(run_dir: Path, folder: Path) -> None:
    """Numbers, plots, configuration and metrics of a run; no weights, and no image of the data set."""
    folder.mkdir(parents=True, exist_ok=True)
    plots = [path for name in PLOTS if (path := run_dir / "report" / f"{name}.png").exists()]
    for path in [*plots, run_dir / "report" / "results.json", run_dir / "config.yaml", run_dir / "metrics.jsonl"]:
        shutil.copy(path, folder)
    text = (run_dir / "report" / "report.md").read_text()
    kept = [line for line in text.splitlines() if not line.startswith("![") or line.endswith(tuple(ENDS))]
    (folder / "report.md").write_text("\n".join(kept) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """The report of a run with its resolved configuration."""
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    reached = {name: max(line.get(name, 0) for line in lines) for name in ("step", "epoch")}
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    return results | {"config": config, "steps": reached["step"], "epochs": reached["epoch"]}


def page(found: list[tuple[Recipe, dict[str, Any]]]) -> str:
    """The table, the comparisons with other rows and runs, and what all lines share."""
    lines = [
        "# CIFAR-10 on two CPU cores",
        "",
        "Test top-1 of the last epoch in per cent, of frozen features; made by `python benchmarks/cifar10_cpu.py`.",
        "Compare with the same network at its random start: the networks are thin, the runs short, and raw pixels",
        "depend on how a recipe normalises them. PAWS and FixMatch see 4,000 labels, SupCon, triplets and supervised",
        "all, the others none.",
        "",
        "| method | recipe and report | backbone parameters | epochs | minutes of training | protocol | pretrained "
        "| random | gain | wanted | raw pixels | seed |",
        "|---|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for recipe, results in found:
        lines += rows(recipe, results)
    compared = comparisons({recipe.folder: (recipe, results) for recipe, results in found})
    return "\n".join([*lines, *compared, "", *summarize_provenance([each["provenance"] for _, each in found])]) + "\n"


def rows(recipe: Recipe, results: dict[str, Any]) -> list[str]:
    """One line for each protocol on all labels; ``wanted`` stands at those that decide."""
    score = {(row["features"], row["protocol"]): row["top1"] for row in results["rows"]}
    training, seed = results["provenance"]["training"], results["config"]["seed"]
    limits = [each for each in (results["config"]["max_epochs"], results.get("epochs")) if each]  # max_steps is one too
    epochs = f"{min(limits):.1f}".removesuffix(".0")
    start = f"{recipe.method} | [{recipe.folder}]({recipe.folder}/report.md)"
    start += f" | {training['backbone_parameters']:,} | {epochs}"
    start += f" | {_minutes(results):.1f}"
    lines = []
    for protocol in [each for features, each in score if features == "pretrained" and not each.endswith(" draws")]:
        decides = recipe.wanted is not None and protocol.startswith(recipe.protocol)
        ours = score["pretrained", protocol]
        random, pixels = (score.get((features, protocol), math.nan) for features in ("random init", "raw pixels"))
        wanted = f"≥ {recipe.wanted}" if decides else ""
        numbers = f"{ours:.2f} | {random:.2f} | {ours - random:+.2f} | {wanted} | {pixels:.2f} | {seed}"
        lines.append(f"| {start} | {protocol} | {numbers} |".replace("+nan", "–").replace("nan", "–"))
    return lines


def comparisons(found: dict[str, tuple[Recipe, dict[str, Any]]]) -> list[str]:
    """A table of those comparisons of which both reports are there."""
    lines = [
        "",
        "Compared with other rows and runs, with the minutes of each training:",
        "",
        "| method | protocol | minutes | top-1 | beside | protocol | minutes | top-1 | difference | wanted |",
        "|---|---|---:|---:|---|---|---:|---:|---:|---:|",
    ]
    head = len(lines)
    for each in BESIDE:
        if each.folder in found and each.other in found:
            (recipe, own), (_, other) = found[each.folder], found[each.other]
            protocol, ours = _score(own, "pretrained", each.protocol)
            beside, theirs = _score(other, each.features, each.other_protocol)
            cells = [recipe.method, protocol, f"{_minutes(own):.1f}", f"{ours:.2f}", each.words, beside]
            cells += [f"{_minutes(other):.1f}", f"{theirs:.2f}", f"{ours - theirs:+.2f}", f"> {each.wanted}"]
            lines.append(f"| {' | '.join(cells)} |")
    return lines if len(lines) > head else []


def _score(results: dict[str, Any], features: str, begins: str) -> tuple[str, float]:
    found = [row for row in results["rows"] if row["features"] == features and row["protocol"].startswith(begins)]
    return str(found[0]["protocol"]), float(found[0]["top1"])


def _minutes(results: dict[str, Any]) -> float:
    """Minutes of all steps; a run that was resumed has the time of its last session alone, at whose speed all count."""
    training = results["provenance"]["training"]
    last = float(training.get("steps_of_last_session", 1))
    share = max(1.0, float(results.get("steps", last)) / last)
    return float(training["seconds_of_last_session"]) * share / 60


if __name__ == "__main__":
    main()

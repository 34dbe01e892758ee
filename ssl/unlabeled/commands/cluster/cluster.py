"""``unlabeled cluster``: SCAN and self-labelling on from a pretrained run, two runs that go on where they stopped."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from unlabeled.commands.arguments.compose import composed
from unlabeled.commands.arguments.data_path import with_data_source
from unlabeled.commands.checks.former_run import open_run
from unlabeled.commands.command_line import Reader
from unlabeled.commands.config import check_command, conf_folder, one_line_errors, with_joined_options
from unlabeled.commands.train.stopping import stoppable
from unlabeled.commands.train.train import train
from unlabeled.core.escaping import for_shell
from unlabeled.core.parsing import parse_json
from unlabeled.core.places import checkpoint_path
from unlabeled.core.reading import read_bytes
from unlabeled.core.writing import write_atomic
from unlabeled.errors import UserError

OWN = ("run", "out", "clusters", "scan", "self_label")
OF_STEPS = ("experiment", "name", "run_dir", "weights", "weights_of", "plan_only", "preview", "replay", "resume")
STEPS = {"scan": "SCAN", "self_label": "Self-labelling"}
REPORT, RESULTS, PAGE = Path("report") / "report.html", Path("report") / "results.json", "clusters.html"
COLUMNS = ("clusters of", "accuracy", "NMI", "ARI", "accuracy, matched on test")
WORDS = (
    "Accuracy: each cluster is named by the class it has in the training images, one to one where there are as many"
    " classes. NMI and ARI compare the clusters of test images with their classes. k-means is that of the features that"
    " the first training began with. The reports show the images of which each cluster is most certain."
)

Log = Callable[[str], None]


class Clustered(NamedTuple):
    """What came of both trainings."""

    table: list[list[str]]  # k-means at the start, then each step; empty without labelled test images
    page: Path  # with links to the reports, which show the clusters
    runs: list[Path]


def main(arguments: Sequence[str]) -> None:
    """The command.

    Args:
        arguments: what stands behind ``unlabeled cluster``.
    """
    conf, arguments = conf_folder(), with_joined_options(arguments)
    if {"--help", "-h"} & {*arguments}:
        print(Reader(conf, "cluster", []).help())
        return
    own = [each for each in arguments if each.split("=")[0] in OWN]
    with one_line_errors(conf, "cluster", own):
        config = composed("cluster", own)
        check_command(config, conf / "cluster.yaml")
        others = [each for each in arguments if each not in own]
        keys: Any = OmegaConf.to_container(config)
        command = for_shell(["unlabeled", "cluster", *arguments])
        with stoppable(lambda number: f"stopped; the same command goes on:\n  {command}"):
            cluster(keys, others, command, print)


def cluster(keys: dict[str, Any], others: Sequence[str], command: str, log: Log) -> Clustered:
    """Trains both steps, each on from the one before, and writes the page.

    Args:
        keys: of ``conf/cluster.yaml``.
        others: overrides of both trainings.
        command: that goes on with it.
        log: takes lines.

    Raises:
        UserError: a mistake, before anything is trained.
        SystemExit: stopped by a signal, after the state was written.
    """
    path, others = checkpoint_path(keys["run"], None), with_data_source(others)
    out = Path(keys["out"]).expanduser() if keys["out"] else Path(keys["run"]).expanduser() / "clusters"
    before, configs = str(keys["run"]), list[DictConfig]()
    for step in STEPS:
        if keys[step] is not None:
            configs.append(_config(keys, step, before, out, others))
            before = str(configs[-1].run_dir)
    _with_parts_of(path, configs, others, log)
    if not any(each.startswith("batch_size=") for each in others):
        _fit_batches(configs)
    for config in configs:
        check_command(config, conf_folder() / "train.yaml")
        _train(config, command, log)
    return _written(out, [Path(config.run_dir) for config in configs], log)


def _config(keys: dict[str, Any], step: str, weights: str, out: Path, others: Sequence[str]) -> DictConfig:
    """Composes one of the trainings; its data and backbone are filled in later."""
    for key in OF_STEPS:
        if any(each.lstrip("+").split("=")[0] == key for each in others):
            raise UserError(f"{key}: unlabeled cluster gives it to its trainings; leave it out")
    own = [f"experiment={keys[step]}"]
    if not _names_data(others):  # they are the run's, but for single keys
        own, others = [*own, "data=digits"], [each for each in others if not each.startswith("data.")]
    config = composed("train", [*own, *others])
    wanted = {"scan": "SCAN", "self_label": "SelfLabel"}[step]
    if str(config.objective.get("_target_")).rpartition(".")[2] != wanted:
        raise UserError(f"{step}={keys[step]}: is no experiment with objective={step}; give one that has it")
    if config.trainer.devices not in (1, "auto") or config.trainer.num_nodes != 1:
        raise UserError("trainer.devices: unlabeled cluster takes one process; for several give train.py twice")
    config.trainer.devices, config.objective.clusters = 1, keys["clusters"]
    config.update({"run_dir": str(out / step), "name": f"{out.name}/{step}", "weights": weights})
    return config


def _names_data(others: Sequence[str]) -> bool:
    return any(each.startswith("data=") for each in others)


def _with_parts_of(path: Path, configs: Sequence[DictConfig], others: Sequence[str], log: Log) -> None:
    """Gives the trainings the images, the backbone, and of the views the size, mean and std of the pretrained run.

    Its file is data and runs nothing. What ``others`` say stays as it is.

    Raises:
        UserError: the checkpoint does not say them, or ``others`` name another size.
    """
    from unlabeled.commands.from_file import data_of, part_of
    from unlabeled.weights.load import read_checkpoint

    own, single = read_checkpoint(path).config, [each for each in others if each.startswith("data.")]
    given = configs[0].data if _names_data(others) and configs else OmegaConf.from_dotlist(single).get("data")
    data = data_of(given, own, path)
    backbone, views = part_of(own, "backbone", path), part_of(own, "views", path)
    if backbone is None or views is None or data is None:
        raise UserError(f"run={path}: does not say what it was made with; give the folder of a run")
    for config in configs:
        _fit_views(config.views, views, [each.partition("=")[0] for each in others], log)
        config.backbone = backbone
        config.data = data


def _fit_views(views: DictConfig, of_run: DictConfig, given: Sequence[str], log: Log) -> None:
    """Gives views the size, mean and std of the run's, and lengths within them in proportion to the size."""
    if views.size != of_run.size and {"views", "views.size"} & {*given}:
        raise UserError(
            f"views.size={views.size}: the run saw images of {of_run.size} pixels: give scan=… and self_label=… with"
            f" such views, or views.size={of_run.size}, or leave views.size out"
        )
    if views.size != of_run.size:
        log(f"images of {of_run.size} pixels are trained on, as in the run, where the recipe has {views.size}")
    for operation in (each for group in views.groups for each in group.operations):
        for name in (name for name in ("size", "padding") if name in operation):
            operation[name] = max(1, round(operation[name] * of_run.size / views.size))
    views.size = of_run.size
    for name in ("mean", "std"):
        if not {"views", f"views.{name}"} & {*given}:
            views[name] = of_run[name]


def _fit_batches(configs: Sequence[DictConfig]) -> None:
    """Makes the batches no larger than the images: the second training is not to fail when the first is done."""
    from unlabeled.commands.build.run import build_splits
    from unlabeled.data.order import DEFAULT_BATCH_SIZE, batch_size_for

    images = len(build_splits(configs[0]).train)
    for config in configs:
        if config.batch_size > images:
            config.batch_size = batch_size_for(DEFAULT_BATCH_SIZE, images)


def _train(config: DictConfig, command: str, log: Log) -> None:
    """Trains a step to its end, unless it has ended and is the same."""
    run_dir = Path(config.run_dir)
    try:
        if (run_dir / REPORT).exists() and open_run(config):
            log(f"{run_dir} has ended; its report is {run_dir / REPORT}")
            return
        train(config, command, log)
    except UserError as error:
        said, other, _ = str(error).partition("; give another name=…, or resume=override")
        if not other:
            raise
        raise UserError(f"{said}; give another out=…, or remove that folder") from error


def _written(out: Path, runs: list[Path], log: Log) -> Clustered:
    from unlabeled.pages.parts import Part, sheet, text_table
    from unlabeled.pages.template import shared

    table = _table(runs)
    for line in [COLUMNS, *table] if table else []:
        log("  ".join(cell.ljust(width) for cell, width in zip(line, (34, 8, 5, 5, 5), strict=True)).rstrip())
    links = [shared().link(f"{run.name}/{REPORT}", f"{STEPS[run.name]}: report") for run in runs]
    parts = [Part("", shared().paragraphs([WORDS], "quiet"))]
    parts += [Part("", text_table(COLUMNS, table))] if table else []
    parts.append(Part("", shared().paragraphs(links)))
    write_atomic(out / PAGE, sheet("Clusters without labels", [], "", parts))
    log(f"the page is {out / PAGE}")
    return Clustered(table, out / PAGE, runs)


def _table(runs: Sequence[Path]) -> list[list[str]]:
    """Of each run its own clusters, and before them k-means of what the first began with."""
    rows = {run: _rows(run / RESULTS) for run in runs}
    kmeans = [row for row in rows[runs[0]] if row["features"] == "start" and row["protocol"].startswith("kmeans/")]
    table = [_line("k-means of the features at the start", row) for row in kmeans]
    for run, found in rows.items():
        own = [row for row in found if row["features"] == "pretrained" and row["protocol"].startswith("clusters/")]
        table += [_line(STEPS[run.name], row) for row in own]
    return table


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        return list(parse_json(read_bytes(path))["rows"])
    except (OSError, ValueError, KeyError, TypeError):
        return []  # nothing was evaluated


def _line(name: str, row: dict[str, Any]) -> list[str]:
    numbers = row["metrics"]
    shown = [f"{row['top1']:.2f}", f"{numbers['nmi']:.3f}", f"{numbers['ari']:.3f}"]
    return [name, *shown, f"{numbers['matched_on_test_top1']:.2f}"]

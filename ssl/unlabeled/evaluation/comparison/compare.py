"""Compares two runs on the same test images: ``python eval_linear.py compare=[RUN_A,RUN_B]``; reads the runs only."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from unlabeled.core.writing import check_folder, kept_anyway, write_atomic
from unlabeled.errors import UserError
from unlabeled.evaluation.comparison.comparison import PRETRAINED, ProtocolComparison, RunGroup, comparison_markdown
from unlabeled.evaluation.comparison.evaluated_run import EvaluatedRun, read_evaluated_run
from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.predictions import Predictions, count_interval, gives, read_predictions
from unlabeled.evaluation.statistics import (
    Right,
    holm_correction,
    mean_over_seeds,
    paired_difference,
    paired_draws_difference,
    welch_test,
)

USAGE = "compare=[RUN_A,RUN_B], or several seeds of each: compare=[[A0,A1,A2],[B0,B1,B2]]"


def compare(given: Any, folder: str | None = None) -> str:
    """Compares two runs, or two sets of seeds, writes ``compare.md`` into ``folder``, and returns its text.

    Args:
        given: two folders of runs or reports, or two lists of them.
        folder: made where it does not exist; None: ``outputs/compare-A-B``, by the first run of each side.

    Raises:
        UserError: a run has no report or no predictions, or the two were evaluated on other images or other labels.
    """
    a, b = (_side(names) for names in _two(given))
    _check_same_images([*a.runs, *b.runs], [*a.predictions, *b.predictions])
    path = Path(folder or f"outputs/compare-{a.runs[0].name}-{b.runs[0].name}") / "compare.md"
    check_folder("report_dir", path.parent, [path.name])
    both = [protocol for protocol in a.protocols() if protocol in b.protocols()]
    if not both:
        raise UserError(f"compare: no protocol is in both: {', '.join(a.protocols())}; {', '.join(b.protocols())}")
    found = [_compare(a, b, protocol) for protocol in both]
    corrected = iter(holm_correction([each.difference.p for each in found if each.difference.p is not None]))
    for each in found:
        each.p = None if each.difference.p is None else next(corrected)
    text = comparison_markdown(a, b, found)
    kept_anyway(path.parent, lambda folder: write_atomic(folder / path.name, text))
    return f"{text}\nthis is in {path}"


def _two(given: Any) -> list[list[str]]:
    """Returns the two sides as lists of folders."""
    sides = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else []
    lists = [[side] if isinstance(side, str) else list(side) for side in sides if isinstance(side, str | Sequence)]
    if len(lists) != 2 or not all(lists) or not all(isinstance(name, str) for names in lists for name in names):
        raise UserError(f"compare={given}: give {USAGE}")
    if {1} < {len(lists[0]), len(lists[1])}:
        raise UserError("compare: one run on one side and several on the other; a test over seeds takes two of each")
    folders = [Path(name).resolve() for names in lists for name in names]
    twice = [str(folder) for folder in dict.fromkeys(folders) if folders.count(folder) > 1]
    if twice:
        raise UserError(f"compare: {twice[0]} is given twice")
    return lists


def _side(names: Sequence[str]) -> RunGroup:
    runs = [read_evaluated_run(Path(name)) for name in names]
    for run in runs:
        if run.problem:
            raise UserError(f"compare: {run.folder}: {run.problem}")
        if not any(row.features == PRETRAINED for row in run.rows):
            raise UserError(f"compare: {run.folder}: its report has no row of pretrained features")
    seeds = [run.seed for run in runs if run.seed is not None]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"compare: {', '.join(names)} share a seed ({seeds}); give runs of different seeds")
    return RunGroup(runs, [read_predictions(run.report) for run in runs])


def _check_same_images(runs: list[EvaluatedRun], predictions: list[Predictions]) -> None:
    for run, found in zip(runs[1:], predictions[1:], strict=True):
        where = f"compare: {runs[0].folder} and {run.folder} were evaluated"
        for split in ("test", "train"):
            ours, theirs = (each.data()[f"{split}_labels_sha256"] for each in (runs[0], run))
            if ours != theirs:
                raise UserError(f"{where} on other {split} data: {_described(runs[0])}; {_described(run)}")
        prints = [each.data()["test_fingerprint"] for each in (runs[0], run)]
        if None not in prints and prints[0] != prints[1]:
            raise UserError(f"{where} on other or moved files of test images; evaluate one again on the other's data")
        if not torch.equal(predictions[0].ids, found.ids):
            raise UserError(f"{where} on other test images (ids differ), though their labels agree")
        if not torch.equal(predictions[0].labels, found.labels):
            raise UserError(f"{where} with other labels of the test images")


def _described(run: EvaluatedRun) -> str:
    known = run.data()
    return f"{known['description']} (labels {str(known['test_labels_sha256'])[:12]})"


def _compare(a: RunGroup, b: RunGroup, protocol: str) -> ProtocolComparison:
    ours, theirs = a.rows(protocol), b.rows(protocol)
    if len(ours) > 1:
        difference = welch_test([row.top1 for row in ours], [row.top1 for row in theirs])
        return ProtocolComparison(protocol, _seeds(ours), _seeds(theirs), difference, "Welch's t, over seeds")
    row, other = ours[0], theirs[0]
    cells = [_with_interval(each, len(a.predictions[0].labels)) for each in (row, other)]
    if not (row.draws or other.draws):
        difference = paired_difference(_right(a, protocol), _right(b, protocol))
        return ProtocolComparison(protocol, cells[0], cells[1], difference, "McNemar, exact")
    if min(len(row.draws), len(other.draws)) < 2:
        raise UserError(f"compare: {protocol}: a test over draws of labels takes two of each run")
    if _same_draws(row, other):
        paired = paired_draws_difference(row.draws, other.draws)
        return ProtocolComparison(protocol, cells[0], cells[1], paired, "paired t, over the same draws of labels")
    return ProtocolComparison(
        protocol, cells[0], cells[1], welch_test(row.draws, other.draws), "Welch's t, over draws of labels"
    )


def _same_draws(row: Row, other: Row) -> bool:
    """Whether both were given the same labelled images in every draw."""
    ours, theirs = (one.chosen.get("labels") for one in (row, other))
    if not isinstance(ours, list) or not isinstance(theirs, list) or len(ours) != len(row.draws):
        return False
    given = [[each.get("sha256") if isinstance(each, dict) else None for each in lists] for lists in (ours, theirs)]
    return None not in given[0] and given[0] == given[1]


def _right(side: RunGroup, protocol: str) -> Right:
    known = side.predictions[0].classes.get((PRETRAINED, protocol))
    if known is None:
        raise UserError(f"compare: {side.runs[0].report} holds no predictions of {protocol}; evaluate that run again")
    if not gives(known, side.predictions[0].labels, side.rows(protocol)[0].top1):
        raise UserError(
            f"compare: {side.runs[0].report}: its predictions of {protocol} are of another evaluation than its numbers,"
            " which was stopped while it wrote them; evaluate that run again"
        )
    right: Right = (known == side.predictions[0].labels).numpy()
    return right


def _with_interval(row: Row, n: int) -> str:
    low, high = row.interval or count_interval(row, n)
    return f"{row.top1:.2f} ({low:.2f} to {high:.2f})"


def _seeds(rows: Sequence[Row]) -> str:
    found = mean_over_seeds([row.top1 for row in rows])
    return f"{found.mean:.2f} ± {found.deviation:.2f} (n = {found.n})"

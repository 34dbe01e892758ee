"""What a training says at its end: the results that count and what to do next; and what every logger gets of it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from unlabeled.commands.arguments.typed import typed_command, without_name
from unlabeled.core.escaping import for_shell
from unlabeled.core.parsing import parse_json
from unlabeled.core.reading import read_bytes
from unlabeled.core.run_config import read_yaml
from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate_probes import OWN_ANSWERS, Row
from unlabeled.evaluation.heads.kept import FOLDER as HEADS
from unlabeled.evaluation.provenance import read_json
from unlabeled.health.folder import diagnose_run, losses_of

FIRST = (*OWN_ANSWERS, "linear")  # protocols whose score a sweep compares, the first that is among the probes
NEARLY_ALL = 99.0  # per cent of the test images from which on a baseline cannot be passed by much; our choice
SHOWN = 3  # failed checks of the plan
SHOWN_AFTER = 100  # steps after which the monitor names most injected failures, benchmarks/results/health_cpu.md
FEW = " per class/"  # in protocols with few labels
BASELINES = {"start": "at the start", "random init": "random network", "raw pixels": "raw pixels"}


def scores(rows: Sequence[Row]) -> dict[str, float]:
    """``score/PROTOCOL`` → top-1 of the pretrained features, per cent; names that all loggers can have."""
    return {f"score/{row.protocol.replace('=', '')}": row.top1 for row in _pretrained(rows)}


def score(rows: Sequence[Row]) -> float | None:
    """What a sweep maximises: the linear probe's top-1, of other probes the first; None where nothing was evaluated."""
    row = _first(rows)
    return None if row is None else row.top1


def training_of(run_dir: Path) -> dict[str, Any]:
    """``training.json``; empty where no step was taken, or nobody wrote one."""
    return read_json(run_dir / "training.json")


def tell(
    run_dir: Path,
    rows: Sequence[Row],
    log: Callable[[str], None],
    one_of_many: bool = False,
    pages: Sequence[Path] = (),
) -> None:
    """Three results, and what to do next.

    Args:
        run_dir: of the run that has ended.
        rows: of its report; none where nothing was evaluated.
        say: gets it line by line.
        one_of_many: a job of a sweep, after which the next one comes.
        pages: of a run without labelled test images: to look through them, and the report.
    """
    log("")
    for line in (_without_labels(pages) if pages else _quality(rows), _doubt(rows), _health(run_dir), _speed(run_dir)):
        if line:
            log(line)
    if one_of_many:
        return
    log("next:")
    for what, command in _next(run_dir, rows, pages):
        log(f"  {what:<26}  {command}")


def _without_labels(pages: Sequence[Path]) -> str:
    explore, report = pages
    return f"no labelled test images: {report} has rank, invariances and clusters, {explore} every image"


def _quality(rows: Sequence[Row]) -> str:
    best = _first(rows)
    if best is None:
        return "nothing was evaluated: no probe, or no labelled test images"
    lines = [f"{best.top1:.1f} % of {best.n_test:,} test images by {best.protocol.split('/')[0]}{_beside(best, rows)}"]
    few = [row for row in _pretrained(rows) if FEW in row.protocol]
    if few:
        least = min(few, key=lambda row: row.n_train)
        number = least.protocol.partition(FEW)[0].rpartition("/")[2]
        labels = "label" if number == "1" else "labels"
        lines.insert(0, f"with {number} {labels} a class {least.top1:.1f} %{_beside(least, rows)}")
    return "\n".join(lines)


def _beside(row: Row, rows: Sequence[Row]) -> str:
    others = {each.features: each.top1 for each in rows if each.protocol == row.protocol}
    found = [f"{name} {others[features]:.1f}" for features, name in BASELINES.items() if features in others]
    return f" ({', '.join(found)})" if found else ""


def _doubt(rows: Sequence[Row]) -> str:
    best = _first(rows)
    if best is None:
        return ""
    names = {"random init": "a random network", "raw pixels": "raw pixels"}
    beside = [row for row in rows if row.features in names and row.protocol == best.protocol]
    reached = " and ".join(names[row.features] for row in beside if best.top1 <= row.top1)
    if not reached:
        return ""
    if best.top1 >= NEARLY_ALL:
        few = f"its {best.n_test:,} images are too easy or too few to tell features apart"
        return f"no better than {reached}, which nothing can be in this test: {few}"
    return f"no better than {reached}: train for longer, or look at the views (unlabeled preview)"


def _health(run_dir: Path) -> str:
    """What is wrong with the run, the most serious first; that nothing is only where plan, loss and monitor agree."""
    findings = _findings(run_dir)
    if findings is None:
        return ""
    wrong = [*findings, *_loss_rose(run_dir), *_failed_checks(run_dir)]
    if not wrong:
        steps = diagnose_run(run_dir).last_step
        early = f"no warning yet: most failures show after {SHOWN_AFTER} steps, this run has {steps:,}"
        return early if steps < SHOWN_AFTER else "healthy: nothing to warn of"
    more = f"and {len(findings) - 1} more: unlabeled health {run_dir}" if len(findings) > 1 else ""
    return "\n".join([*([f"{findings[0]}{f' ({more})' if more else ''}"] if findings else []), *wrong[len(findings) :]])


def warnings_of(run_dir: Path) -> list[str]:
    """Everything that is wrong with a run, a sentence each, the most serious first."""
    return [*(_findings(run_dir) or []), *_loss_rose(run_dir), *_failed_checks(run_dir)]


def _findings(run_dir: Path) -> list[str] | None:
    """Of the health monitor, without notes; None for a run of no step, which has written no metrics."""
    try:
        findings = diagnose_run(run_dir).findings
    except UserError:
        return None
    return [f"{each.severity}: {each.sentence}" for each in findings if each.severity != "note"]


def _loss_rose(run_dir: Path) -> list[str]:
    """Of the first and the last tenth of what was written, at least three records each."""
    losses = losses_of(run_dir)
    few = max(3, len(losses) // 10)
    if len(losses) < 2 * few:
        return []
    first, last = fmean(losses[:few]), fmean(losses[-few:])
    if last <= first:
        return []
    return [f"warning: the loss rose from {first:.3g} at the beginning to {last:.3g} at the end"]


def _failed_checks(run_dir: Path) -> list[str]:
    """Of the plan that was made before the first step; none where there is no plan, or nobody can read it."""
    try:
        checks = parse_json(read_bytes(run_dir / "plan.json"))["checks"]
        failed = [f"{check['name']}: {check['found']}; {check['remedy']}" for check in checks if not check["passed"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    more = [f"warning: {len(failed) - SHOWN} more checks of the plan failed: {run_dir / 'plan.json'}"]
    return [f"warning: a check of the plan failed: {each}" for each in failed[:SHOWN]] + more * (len(failed) > SHOWN)


def _speed(run_dir: Path) -> str:
    training = training_of(run_dir)
    if not training:
        return ""
    seconds, steps = training["seconds_of_last_session"], training["steps_of_last_session"]
    return f"{training['images_per_second']:,.0f} images/s, {steps:,} steps in {seconds:,.0f} s"


def _next(run_dir: Path, rows: Sequence[Row], pages: Sequence[Path]) -> list[tuple[str, str]]:
    report, named = for_shell([str(run_dir / "report" / "report.html")]), for_shell([f"run={run_dir}"])
    lines = [("look at the report", f"open {report}")] if rows or pages else []
    lines += [("look through the images", f"open {for_shell([str(pages[0])])}")] if pages else []
    if not (rows and _has_own_data(run_dir)):
        lines.append(("evaluate it on your labels", f"unlabeled evaluate {named} data=FOLDER"))
    if (run_dir / "report" / HEADS).is_dir():
        lines.append(("classify other images", f"unlabeled predict {named} data=FOLDER out=predictions.csv"))
        lines.append(("fine-tune it on the labels", f"unlabeled finetune {named}"))
    lines.append(("get the features of images", f"unlabeled embed {named} data=FOLDER out=features.parquet"))
    lines.append(("use it elsewhere", f"unlabeled export {named} to=safetensors"))
    longer = [each for each in without_name() if not each.startswith(("max_epochs=", "max_steps=", "resume="))]
    lines.append(("train it for longer", typed_command([*longer, "max_epochs=MORE", "resume=override"])))
    return lines


def _has_own_data(run_dir: Path) -> bool:
    """Whether the run's images are the user's own, which have a path, and no data set that everybody has."""
    try:
        return "path" in read_yaml(run_dir / "config.yaml")["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _pretrained(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.features == "pretrained"]


def _first(rows: Sequence[Row]) -> Row | None:
    known = _pretrained(rows)
    whole = [row for row in known if FEW not in row.protocol and not row.draws] or known
    first = [row for name in FIRST for row in whole if row.protocol.split("/")[0].startswith(name)]
    return next(iter([*first, *whole]), None)

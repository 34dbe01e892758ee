"""Formats the plan for a terminal of 100 columns."""

import textwrap
from datetime import datetime, timedelta

from unlabeled.data.lists.left_out import lines
from unlabeled.objective import Check
from unlabeled.training.plan.plan import RunPlan

WIDTH, LABEL, COLUMN = 100, 19, 11
SHOWN = 8  # failed checks in full; the others are in plan.json


def format_plan(plan: RunPlan, name: str) -> str:
    """Returns the plan as text: at most 40 lines for methods with up to ten scheduled values and ten parts."""
    failed = [check for check in plan.checks if not check.passed]
    told = [
        f"plan of {name}: {plan.steps:,} steps, {plan.epochs:.4g} epochs of {plan.steps_per_epoch:,} steps, "
        f"{plan.images:,} images",
        *_data(plan),
        _line("batch", _batch(plan)),
        *(_row(label, values) for label, values in plan.schedule.items()),
        *_parameters(plan),
        _line("a step", _step(plan)),
        *_memory(plan),
        _line("time", _time(plan)),
        _line("checks", f"{len(plan.checks) - len(failed)} passed, {len(failed)} failed"),
    ]
    told += [line for check in failed[:SHOWN] for line in _failed(check)]
    return "\n".join(told)


def _line(label: str, value: str) -> str:
    return f"  {label:<{LABEL}}{value}"


def _data(plan: RunPlan) -> list[str]:
    """Lists the data found, the files that were left out, and warnings about the data."""
    found = _wrapped("data", "; ".join(plan.data)) + _wrapped("left out", "; ".join(lines(plan.left_out)))
    for warning in plan.data_warnings[:SHOWN]:
        found += textwrap.wrap(f"  WARNING: {warning}", WIDTH, subsequent_indent="    ")
    return found


def _wrapped(label: str, text: str) -> list[str]:
    """Returns text under one label, on as many lines as needed."""
    return [_line("" if number else label, line) for number, line in enumerate(textwrap.wrap(text, WIDTH - LABEL - 2))]


def _batch(plan: RunPlan) -> str:
    parts = [f"{plan.batch_size:,} images"]
    if plan.processes > 1:
        parts.append(f"{plan.batch_size_per_process:,} on each of {plan.processes} processes")
    if plan.accumulate > 1:
        parts.append(f"{plan.accumulate} batches a step, {plan.batch_size * plan.accumulate:,} images")
    return ", ".join([*parts, plan.device, plan.precision])


def _row(label: str, values: list[float]) -> str:
    if label == "share":
        return _line("of the run", "".join(f"{f'{value:.0%}':>{COLUMN}}" for value in values))
    return _line(label.replace("_", " "), "".join(f"{_number(label, value):>{COLUMN}}" for value in values))


def _number(label: str, value: float) -> str:
    if label == "step":
        return f"{value:,.0f}"
    return f"{value:.0%}" if label == "queue_fill" else f"{value:.5g}" if label == "momentum" else f"{value:.3g}"


def _parameters(plan: RunPlan) -> list[str]:
    """Lists the parameters, trained ones first."""
    groups = {
        "trained": [f"{part.name} {part.trained:,}" for part in plan.parameters if part.trained],
        "not trained": [
            f"{part.name} {part.parameters - part.trained:,}"
            for part in plan.parameters
            if part.parameters > part.trained
        ],
    }
    found = []
    for label, parts in groups.items():
        found += _wrapped(label, ", ".join(parts))
    return found


def _step(plan: RunPlan) -> str:
    if plan.trial is None:
        return f"not tried: {plan.not_tried}"
    per_second = plan.batch_size * plan.accumulate / plan.trial.seconds_per_step
    memory = plan.trial.peak_memory_bytes
    each = " a process" if plan.processes > 1 else ""
    room = "" if memory is None else f", peak memory {memory / 2**30:.1f} GiB{each}"
    first = plan.trial.first_step_seconds
    return f"{plan.trial.seconds_per_step:.3g} s, {per_second:,.0f} images/s{room}; the first took {first:.3g} s"


def _memory(plan: RunPlan) -> list[str]:
    """The count of ``unlabeled plan``, and which GPUs have so much memory."""
    if plan.memory is None:
        return [] if plan.not_counted is None else [_line("memory", f"not counted: {plan.not_counted}")]
    shown = {name: plan.memory[name] / 2**30 for name in ("peak", "activations", "network")}
    sizes = "/".join(map(str, plan.memory["fits"]))
    fits = f"fits {sizes} GB" if sizes else "does not fit 80 GB"
    each = " a process" if plan.processes > 1 else ""
    held = f"activations {shown['activations']:.3g}, network {shown['network']:.2g}"
    return [_line("memory", f"about {shown['peak']:.3g} GiB{each} ({held}); {fits}")]


def _time(plan: RunPlan) -> str:
    begun = f"from step {plan.step:,} on, " if plan.step else ""
    if plan.seconds_left is None or plan.ends is None:
        return f"{begun}{plan.steps - plan.step:,} steps left"
    ends = datetime.fromisoformat(plan.ends)
    left = timedelta(seconds=round(plan.seconds_left))
    return f"{begun}{left}, waiting for data, probes and checkpoints not counted; ends {ends:%a %d %b %H:%M}"


def _failed(check: Check) -> list[str]:
    return textwrap.wrap(f"  FAILED: {check.name}: {check.found}; {check.remedy}", WIDTH, subsequent_indent="    ")

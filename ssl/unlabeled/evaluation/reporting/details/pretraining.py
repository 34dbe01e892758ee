"""How the evaluated network was pretrained, as a reader asks for it: from the run's files alone."""

from collections.abc import Mapping, Sequence
from typing import Any

Values = Mapping[str, Any]


def pretraining_facts(provenance: Values) -> list[tuple[str, str]]:
    """Returns pairs of what and how: method, network, data, epochs, batch, rate, time, speed, machine, start.

    What the provenance does not hold is left out; nothing at all where the checkpoint is of no run of this project.
    """
    config, training = _values(provenance, "run_config"), _values(provenance, "training")
    if not config:
        return []
    checkpoint, plan = _values(provenance, "checkpoint"), _values(provenance, "plan")
    found = {
        "method": _class(config.get("objective")),
        "network": _network(config, training),
        "data": "; ".join(str(line) for line in plan.get("data") or [])
        or str(_values(config, "data").get("path") or ""),
        "length": _length(checkpoint),
        "batch": _batch(config),
        "optimizer": _optimizer(_values(config, "optimizer")),
        "arithmetic": str(training.get("precision") or ""),
        "time": _time(training),
        "machine": _machine(training, plan),
        "start": _start(checkpoint),
        "seed": str(config.get("seed", "")),
        "views": _views(_values(config, "views")),
    }
    return [(what, text) for what, text in found.items() if text]


def plan_sentences(plan: Values) -> list[str]:
    """Says what the run's plan had checked: how many checks passed, and each that did not with its remedy."""
    checks = [each for each in plan.get("checks") or [] if isinstance(each, Mapping)]
    failed = [each for each in checks if not each.get("passed")]
    told = [f"Not {each.get('name')}: {each.get('found')}; {each.get('remedy')}." for each in failed]
    passed = len(checks) - len(failed)
    return [f"{passed} of {len(checks)} checks passed before the first step.", *told] if checks else []


def _values(values: Values, key: str) -> Values:
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def _class(values: Any) -> str:
    target = values.get("_target_") if isinstance(values, Mapping) else None
    return str(target or "").rpartition(".")[2]


def _network(config: Values, training: Values) -> str:
    counts = [
        f"{training[key]:,} parameters{suffix}"
        for key, suffix in (("backbone_parameters", ""), ("parameters", " with all of the method's"))
        if isinstance(training.get(key), int)
    ]
    return ", ".join([_class(config.get("backbone")), *counts])


def _length(checkpoint: Values) -> str:
    step, each = checkpoint.get("step"), checkpoint.get("steps_per_epoch")
    if not step:
        return ""
    epochs = f"{step / each:.4g} epochs, " if each else ""
    return f"{epochs}{step:,} of {checkpoint.get('total_steps') or step:,} steps"


def _batch(config: Values) -> str:
    size, parts = config.get("batch_size"), config.get("accumulate") or 1
    if not isinstance(size, int) or not isinstance(parts, int):  # a file of anybody may hold anything
        return ""
    return f"{size:,} images" + (f", in {parts} parts" if parts > 1 else "")


def _optimizer(optimizer: Values) -> str:
    known = [("lr", "learning rate"), ("lr_scaling", "scaling"), ("warmup_epochs", "warm-up epochs")]
    known += [("weight_decay", "weight decay"), ("milestones", "steps down at")]
    told = [f"{name} {optimizer[key]}" for key, name in known if optimizer.get(key) is not None]
    return ", ".join([_class(optimizer.get("optimizer")), *told])


def _time(training: Values) -> str:
    seconds, speed = training.get("seconds_of_last_session"), training.get("images_per_second")
    steps = training.get("steps_of_last_session")
    if not isinstance(seconds, int | float) or not isinstance(speed, int | float) or not isinstance(steps, int):
        return ""
    return f"{duration(seconds)} for the {steps:,} steps of the last session, {speed:,} images per second"


def duration(seconds: float) -> str:
    """Formats seconds as a reader says them: "46 min 47 s", "3 h 5 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h" * bool(hours), f"{minutes} min" * bool(minutes), f"{rest} s" * (not hours)]
    return " ".join(part for part in parts if part)


def _machine(training: Values, plan: Values) -> str:
    machine, processes = _values(training, "machine"), training.get("processes")
    names = machine.get("gpus") or ([machine["cpu"]] if machine.get("cpu") else [])
    told = [", ".join(map(str, dict.fromkeys(names))), str(plan.get("device") or "")]
    told += [f"{processes} processes"] if isinstance(processes, int) and processes > 1 else []
    return "; ".join(part for part in told if part)


def _start(checkpoint: Values) -> str:
    start = checkpoint.get("started_from")
    if not isinstance(start, Mapping):
        return f"weights of {start}" if start else "random weights"
    return f"weights of {start.get('origin') or start.get('path') or 'another run'}"


def _views(views: Values) -> str:
    groups = [each for each in views.get("groups") or [] if isinstance(each, Mapping)]
    return "; ".join(f"{each.get('count', 1)} × {_operations(each.get('operations') or [])}" for each in groups)


def _operations(operations: Sequence[Any]) -> str:
    return ", ".join(_class(each) + (f" {each['size']}" if "size" in each else "") for each in operations)

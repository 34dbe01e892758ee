"""The model card of exported weights: what they are, how good, how to load them, and what was checked.

The Hugging Face Hub requires the YAML at the top and the name README.md.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from unlabeled.core.escaping import escaped, in_markdown, in_table
from unlabeled.core.run_config import to_yaml
from unlabeled.weights.checkpoint import Checkpoint
from unlabeled.weights.classifier import LinearClassifier
from unlabeled.weights.preprocess import Preprocess
from unlabeled.weights.targets import ExportedModel

MARK, EARLIER_MARK = "Written by `unlabeled export`", "Written by `python -m unlabeled."  # of an export, now and before
TRAINING = ("objective", "optimizer", "views", "batch_size", "accumulate", "max_epochs", "max_steps", "seed")
# Paths and addresses may contain names of people and machines, and keys: only their last part is shown.
_PLACE = re.compile(r"(?<![\w/])(?:\w+://|~|\.{0,2}/)[^\s,;'\"]+")


@dataclass(frozen=True)
class CardFacts:
    """Everything that a card states."""

    to: str
    written: ExportedModel
    checkpoint: Checkpoint
    spec: Mapping[str, Any]  # of the backbone
    preprocess: Preprocess
    parameters: int
    num_features: int
    data: str  # one line
    measured: Mapping[str, float]  # largest relative difference by kind of images
    tolerance: float
    rows: Sequence[Mapping[str, Any]]  # of results.json
    results_note: str  # explains the results, or why there are none
    training: Mapping[str, Any]  # training.json
    versions: Mapping[str, str]
    classifier: LinearClassifier | None = None


def write_card(facts: CardFacts) -> str:
    """Returns the whole page as markdown."""
    objective = class_name((facts.checkpoint.config or {}).get("objective"))
    name = (facts.checkpoint.config or {}).get("name") or facts.checkpoint.path.stem
    parts = [
        _front_matter(facts, objective),
        f"# {in_markdown(name)}",
        f"{_article(class_name(facts.spec))} pretrained {_labels(facts.checkpoint)}"
        f"{f' by {objective}' if objective else ''}, "
        f"exported by `to={facts.to}`: images in, {facts.num_features} features out, no classifier."
        if facts.classifier is None
        else f"with a classifier, exported by `to={facts.to}`: images in, logits of {len(facts.classifier.classes)} "
        f"classes out, whose softmax are calibrated probabilities. The classifier is `{facts.classifier.protocol}`, "
        "fitted with labels; `config.json` names its classes.",
        "## How to use it",
        _images(facts.preprocess),
        _loading(facts.written, facts.preprocess.size),
        "## What it is",
        _table({"what": "value"} | _identity(facts, objective)),
        *[f"Note: {in_markdown(without_paths(note))}." for note in facts.checkpoint.notes],
        _settings("Backbone", dict(facts.spec)),
        *_training(facts),
        "## Evaluation",
        _evaluation(facts),
        "## Checked",
        _checked(facts),
        "## Licence",
        "To be filled in by whoever publishes these weights, here and at the top; the licence of the images counts.",
        f"{MARK}.",
    ]
    return "\n\n".join(parts) + "\n"


def class_name(node: Any) -> str:
    """Returns ``SimCLR`` of ``{_target_: unlabeled.objectives.simclr.SimCLR, …}``, "" where nothing is known."""
    target = node.get("_target_", "") if isinstance(node, Mapping) else ""
    return re.sub(r"\W", "", str(target).rpartition(".")[2])


def without_paths(value: Any) -> Any:
    """Cuts every path and address in plain values down to its last part."""
    if isinstance(value, Mapping):
        return {key: without_paths(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(each) for each in value]
    return _PLACE.sub(_last_part, value) if isinstance(value, str) else value


def _last_part(place: re.Match[str]) -> str:
    parts = re.sub(r"^\w+://[^/]*", "", re.split(r"[?#]", place[0])[0]).rstrip("/").split("/")
    return parts[-1] or "…"


def _labels(checkpoint: Checkpoint) -> str:
    return "WITH the labels of its images" if checkpoint.uses_labels else "without labels"


def _article(name: str) -> str:
    return f"{'An' if name[:1] in 'AEIOU' else 'A'} {name}"


def _front_matter(facts: CardFacts, objective: str) -> str:
    kind = "supervised-learning" if facts.checkpoint.uses_labels else "self-supervised-learning"
    task = "image-feature-extraction" if facts.classifier is None else "image-classification"
    tags = [kind, task, *([objective.lower()] if objective else [])]
    lines = [
        f"library_name: {facts.written.library}",
        f"pipeline_tag: {task}",
        "license: unknown # to be filled in",
        "tags:",
        *(f"  - {tag}" for tag in dict.fromkeys(tags)),
    ]
    return "\n".join(["---", *lines, "---"])


def _loading(written: ExportedModel, size: int) -> str:
    imports, _, rest = written.load.partition("\n\n")
    code = f'{imports}\n\nfolder = "."  # where this page lies\n{rest}\n{written.use}'
    notes = "".join(f"\n- {note}" for note in written.notes)
    return f"`images` are now float32 [B, 3, {size}, {size}]:\n\n```python\n{code}\n```" + (
        f"\n{notes}" if notes else ""
    )


def _images(preprocess: Preprocess) -> str:
    normal = "values in [0, 1], not normalised"
    if preprocess.mean is not None and preprocess.std is not None:
        normal = f"values in [0, 1], minus {list(preprocess.mean)}, divided by {list(preprocess.std)}"
    return (
        f"RGB, {preprocess.size} × {preprocess.size} pixels; the central {100 * preprocess.crop:g} % of the shorter "
        f"side, resized ({preprocess.interpolation}, antialiased); {normal}.\n\n```python\n{preprocess.snippet()}\n```"
    )


def _identity(facts: CardFacts, objective: str) -> dict[str, Any]:
    progress = facts.checkpoint.progress
    step, total, per_epoch = (progress.get(name, 0) for name in ("step", "total_steps", "steps_per_epoch"))
    steps = f"{step:,} of {total:,}" if total else "not known"
    epochs = f"{step / per_epoch:g}" if per_epoch else "not known"
    return {
        "objective": objective or "not known: the checkpoint does not say",
        "backbone": class_name(facts.spec),
        "parameters": f"{facts.parameters:,}",
        "features": facts.num_features,
        "weights": f"{facts.checkpoint.layout}: {facts.checkpoint.part}",
        "data": without_paths(facts.data),
        "epochs": epochs,
        "optimizer steps": steps,
        "checkpoint's SHA-256": facts.checkpoint.sha256,
        **_origin("started from", facts.checkpoint.weights),
        **_origin("learned from", facts.checkpoint.teacher),
    }


def _origin(what: str, weights: Mapping[str, Any]) -> dict[str, Any]:
    """What the run started from, where not from random weights; the teacher that it learned from, if any."""
    if not weights:
        return {}
    origin = without_paths(str(weights.get("origin", "not known")))
    return {what: f"{origin} ({weights.get('layout')}), SHA-256 {weights.get('sha256')}"}


def _training(facts: CardFacts) -> list[str]:
    config = facts.checkpoint.config or {}
    chosen = {key: config[key] for key in TRAINING if config.get(key) is not None}
    if not chosen:
        return []
    known = {
        key: facts.training[key] for key in ("precision", "processes", "images_per_second") if key in facts.training
    }
    return ["## Training", _settings("As `python train.py` had it", chosen | known)]


def _settings(title: str, values: Mapping[str, Any]) -> str:
    text = to_yaml(_literal(without_paths(_without_conversion(values)))).strip()
    return f"{title}:\n\n```yaml\n{text}\n```"


def _literal(value: Any) -> Any:
    """Removes line breaks, which could end the block, and everything that YAML would resolve."""
    if isinstance(value, Mapping):
        return {_literal(key): _literal(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_literal(each) for each in value]
    return escaped(value).replace("${", "$ {") if isinstance(value, str) else value


def _without_conversion(value: Any) -> Any:
    """Leaves out the keys that only Hydra reads."""
    if isinstance(value, Mapping):
        return {key: _without_conversion(each) for key, each in value.items() if key != "_convert_"}
    return [_without_conversion(each) for each in value] if isinstance(value, list | tuple) else value


def _evaluation(facts: CardFacts) -> str:
    if not facts.rows:
        return facts.results_note
    lines = [
        ["features", "protocol", "top-1, %", "95 % interval", "test images"],
        ["---", "---", "---:", "---:", "---:"],
    ]
    for row in facts.rows:
        interval = "–" if not row.get("interval") else "{:.2f} to {:.2f}".format(*row["interval"])
        lines.append(
            [
                in_table(row["features"]),
                f"`{in_table(row['protocol'])}`",
                "–" if row["top1"] is None else f"{row['top1']:.2f}",  # null: the probe has failed
                interval,
                f"{row['n_test']:,}",
            ]
        )
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{facts.results_note}\n\n{table}\n\nNumbers of different protocols are not comparable."


def _checked(facts: CardFacts) -> str:
    packages = dict(facts.versions) | {name: metadata.version(name) for name in facts.written.packages}
    measured = {"images": "largest difference"} | {name: f"{value:.1e}" for name, value in facts.measured.items()}
    return (
        "After writing, the lines above were run, and their features compared with those of the network that was "
        "trained: float32, evaluation mode, on a CPU. The largest absolute difference over the root mean square of the "
        f"features, of which at most {facts.tolerance:g} is allowed:\n\n{_table(measured)}\n\n"
        f"Versions: {', '.join(f'{name} {version}' for name, version in packages.items())}."
    )


def _table(values: Mapping[str, Any]) -> str:
    """Formats a table of two columns; the first pair is the head."""
    rows = [f"| {key} | {in_table(value)} |" for key, value in values.items()]
    return "\n".join([rows[0], "| --- | --- |", *rows[1:]])

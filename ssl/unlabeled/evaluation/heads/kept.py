"""Keeps the classifiers of a report in ``heads/``, a file each: tensors, and all else as JSON, never code.

A file holds the weights with the statistics that features are standardised by, or for k-NN the rule; the names of the
classes; the temperature of the probabilities; and what the classifier said of held-out images. The features and
labels that k-NN compares with are in ``bank-KIND.safetensors``, one for all k.
"""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlabeled.core.parsing import parse_json
from unlabeled.core.reading import require_regular
from unlabeled.core.writing import save_safetensors
from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.heads.calibration import Calibration, calibrate
from unlabeled.evaluation.probe import Head

FOLDER, ENDING = "heads", ".safetensors"
BANK = ("bank", "labels")  # tensors of a k-NN head that several heads share
MOST_BANK = 2 * 2**30  # bytes of the features that k-NN compares with: a million images of 512 features
ORDER = ("finetune", "classifier", "linear/cached-lbfgs", "linear", "knn")  # which head predicts where none is named
TYPES: dict[str, Any] = {"kind": str, "protocol": str, "features": str, "classes": list, "settings": dict}
TYPES |= {"temperature": float, "smoothing": float, "checkpoint": str, "views": dict, "precision": str}
TYPES |= {"images_per_pass": int, "top1": float | None, "n_train": int}
SHAPES = {
    "linear": {"weight", "mean", "scale", "columns"},
    "knn": {"bank", "labels"},
    "network": {"columns"},
}
SETTINGS = {"linear": set[str](), "knn": {"k", "temperature", "distance", "weights"}, "network": {"pooling"}}


@dataclass(frozen=True)
class HeadContext:
    """What decides the features that heads were fitted on, and what they are of."""

    classes: Sequence[str]  # names, in the order of labels
    checkpoint: str  # SHA-256 of the file
    views: Mapping[str, Any]  # Views.evaluation()
    precision: str
    images_per_pass: int


@dataclass(frozen=True)
class KeptHead:
    """A classifier read from a report."""

    head: Head
    protocol: str
    context: HeadContext
    calibration: Calibration
    top1: float | None  # per cent of the report's test images; None where there were none
    n_train: int
    path: Path

    @property
    def short(self) -> str:
        """Returns the first word of the protocol: linear, knn, finetune."""
        return self.protocol.split("/")[0]


def write_heads(folder: Path, rows: Sequence[Row], context: HeadContext, stay: Sequence[str] = ()) -> list[str]:
    """Writes the heads of all rows that have one into ``folder``, in place of earlier ones.

    Heads of the protocols in ``stay`` are left: the report still has their numbers, of the same checkpoint.

    Returns:
        Sentences on what is not kept.

    Raises:
        Unwritable: a file cannot be written.
    """
    kept = [(row, row.head) for row in rows if row.head is not None]
    banks = {head.features: head for _, head in kept if head.kind == "knn"}
    large = {name for name, head in banks.items() if _size(head) > MOST_BANK}
    names = {f"bank-{name}{ENDING}" for name in banks if name not in large}
    for name in names:
        _save(folder / name, {key: banks[name[5 : -len(ENDING)]].tensors[key] for key in BANK}, {})
    for row, head in kept:
        if head.kind == "knn" and head.features in large:
            continue
        own = {key: value for key, value in head.tensors.items() if key not in BANK or head.kind != "knn"}
        found = calibrate(head)
        _save(folder / file_name(row.protocol), own | found.tensors(), _described(row, head, found, context))
        names.add(file_name(row.protocol))
    left = {file_name(protocol) for protocol in stay}
    banks_stay = any(protocol.startswith("knn") for protocol in stay)
    for earlier in folder.glob(f"*{ENDING}"):
        if earlier.name not in names | left and not (banks_stay and earlier.name.startswith("bank-")):
            earlier.unlink()
    sizes = (_size(banks[name]) / 2**30 for name in sorted(large))
    return [f"k-NN is not kept to predict with: its features take {gib:.1f} GiB" for gib in sizes]


def file_name(protocol: str) -> str:
    """Returns the name of a protocol's file."""
    name = re.sub(r"[^\w.,=+%-]+", "-", protocol)
    return name[:180] + (hashlib.sha256(name.encode()).hexdigest()[:8] if len(name) > 180 else "") + ENDING


def read_head(folder: Path, wanted: str | None) -> KeptHead:
    """Reads the head of a protocol, named whole or by its first words; None: the first of :data:`ORDER`.

    Args:
        folder: of the heads, in a report's.
        wanted: e.g. ``linear`` or ``knn``.

    Raises:
        UserError: there is none, or the file is damaged.
    """
    files = sorted(path for path in folder.glob(f"*{ENDING}") if not path.name.startswith("bank-"))
    if not files:
        raise UserError(f"{folder}: holds no heads; unlabeled evaluate writes them beside its report")
    notes = {path: _notes(path) for path in files}
    protocols = {str(each.get("protocol")): path for path, each in notes.items()}
    begin = next((each for each in ORDER if any(name.startswith(each) for name in protocols)), "")
    name = wanted or begin
    found = [name] if name in protocols else sorted(each for each in protocols if each.startswith(name))
    if not found:
        raise UserError(f"head={wanted}: this report has none of it; {_instead(name, sorted(protocols))}")
    return _read(protocols[found[0]], notes[protocols[found[0]]])


def _instead(name: str, protocols: list[str]) -> str:
    """Says what may be meant: the kinds, as they may be typed, or the whole protocols of the kind that was named."""
    kind = name.partition("/")[0]
    kinds = dict.fromkeys(each.partition("/")[0] for each in protocols)
    listed = [each for each in protocols if each.startswith(f"{kind}/")] or [*kinds]
    close = difflib.get_close_matches(name, listed, n=1)
    return f"{f'did you mean {close[0]}? ' if close else ''}there are {', '.join(listed)}"


def _described(row: Row, head: Head, found: Calibration, context: HeadContext) -> dict[str, Any]:
    own: dict[str, Any] = {"kind": head.kind, "features": head.features, "settings": head.settings}
    own |= {"protocol": row.protocol, "top1": row.top1 if row.n_test else None, "n_train": row.n_train}
    own |= {"temperature": found.temperature, "smoothing": found.smoothing}
    passes = head.settings.get("images_per_pass", context.images_per_pass)
    own |= {"classes": list(context.classes), "checkpoint": context.checkpoint, "views": dict(context.views)}
    return own | {"precision": head.settings.get("precision", context.precision), "images_per_pass": passes}


def _size(head: Head) -> int:
    return head.tensors["bank"].numel() * head.tensors["bank"].element_size()


def _save(path: Path, tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> None:
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    save_safetensors(path, plain, {"head": json.dumps(described)})


def _notes(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        require_regular(path)
        with safe_open(path, "pt") as file:
            found = parse_json((file.metadata() or {})["head"])
        if not isinstance(found, dict):
            raise ValueError("its description is no table")
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise _damaged(path, error) from error
    return found


def _read(path: Path, notes: dict[str, Any]) -> KeptHead:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        _check(notes)
        tensors = load_file(path)
        calibration = Calibration.of(notes["temperature"], notes["smoothing"], tensors)
        if notes["kind"] == "knn":
            bank = path.with_name(f"bank-{os.path.basename(notes['features'])}{ENDING}")
            require_regular(bank)
            tensors |= load_file(bank)
        own = {name: value for name, value in tensors.items() if not name.startswith("held_")}
        _check_tensors(notes, own)
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise _damaged(path, error) from error
    head = Head(notes["kind"], notes["features"], own, notes["settings"])
    context = HeadContext(*(notes[key] for key in ("classes", "checkpoint", "views", "precision", "images_per_pass")))
    return KeptHead(head, notes["protocol"], context, calibration, notes["top1"], notes["n_train"], path)


def _check(notes: Mapping[str, Any]) -> None:
    """Raises ValueError for a description that is not one of ours."""
    wrong = [key for key, kind in TYPES.items() if not isinstance(notes.get(key), kind)]
    if wrong or notes["kind"] not in SHAPES or not all(isinstance(name, str) for name in notes["classes"]):
        raise ValueError(f"its description lacks {', '.join(wrong) or 'a known kind'}")
    if not 0 < notes["temperature"] < torch.inf or notes["images_per_pass"] < 1:
        raise ValueError("its numbers are out of range")
    for name in ("drop_path", "dropout"):
        rate = notes["settings"].get(name, 0.0)
        if not isinstance(rate, int | float) or not 0 <= rate < 1:
            raise ValueError(f"its {name} is out of range")


def _check_tensors(notes: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    missing = SHAPES[notes["kind"]] - set(tensors)
    if missing:
        raise ValueError(f"has no tensor {', '.join(sorted(missing))}")
    labels = tensors["labels" if notes["kind"] == "knn" else "columns"]
    if labels.ndim != 1:
        raise ValueError("its classes are no list")
    if notes["kind"] == "linear" and tensors["weight"].shape != (len(labels), len(tensors["mean"]) + 1):
        raise ValueError("its weight does not fit its features and classes")
    if notes["kind"] == "knn" and (tensors["bank"].ndim != 2 or len(tensors["bank"]) != len(labels)):
        raise ValueError("its features do not fit its labels")
    if lacking := SETTINGS[notes["kind"]] - set(notes["settings"]):
        raise ValueError(f"its settings lack {', '.join(sorted(lacking))}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(notes["classes"]):
        raise ValueError("has classes without a name")


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: damaged ({error}); unlabeled evaluate writes it anew")

"""Loads backbone weights from a file: every tensor finds its place, or nothing is loaded and the error says why."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlabeled.core.file_config import KINDS, as_data
from unlabeled.core.phrases import shorten_list
from unlabeled.core.reading import open_regular
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, ContinuesAnother, Objective
from unlabeled.weights.checkpoint import Checkpoint
from unlabeled.weights.geometry import check_geometry, mismatch_remedy
from unlabeled.weights.layouts import CheckpointLayout, placed_layouts, recognize_layout, strip_wrappers
from unlabeled.weights.names.mapping import map_key
from unlabeled.weights.names.transformers import join_attention
from unlabeled.weights.positions import add_class_position, fit_all_positions, fit_positions
from unlabeled.weights.safe_load import read_tensors


@dataclass
class _Division:
    """The tensors of a file, divided by their relation to a backbone."""

    found: dict[str, Tensor] = field(default_factory=dict)  # by the backbone's names
    paths: dict[str, str] = field(default_factory=dict)  # the same names → paths in the file
    unknown: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a file of tensors and plain values, of ``torch.save`` or safetensors; never runs code from it.

    Raises:
        UserError: no such file, not a checkpoint, damaged, a pickle that would have to run code, or a checkpoint of a
            run with an invalid ``config`` or ``progress``.
    """
    content = read_tensors(path)
    with open_regular(path) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return checkpoint_of(content, path, sha256)


def checkpoint_of(content: Any, path: Path, sha256: str) -> Checkpoint:
    """Makes a checkpoint of what a file holds. Raises UserError as :func:`read_checkpoint`."""
    try:
        tensors = dict(_flat(content)) if isinstance(content, dict) else {}
    except RecursionError:
        raise UserError(f"checkpoint={path}: is nested too deeply for a checkpoint") from None
    if not tensors:
        raise UserError(f"checkpoint={path}: holds no state_dict")
    inner = content.get("state_dict", content)
    layout, own = _layout(tensors), content.get("product")
    ours = layout.name == "own run"
    product = _product(own, path, tensors) if ours and own is not None else "backbone"
    return Checkpoint(
        path=path,
        sha256=sha256,
        state_dict=inner if isinstance(inner, dict) else content,
        config=_config(content.get("config"), path) if ours else None,
        progress=_progress(content.get("progress", {}), path) if ours else {},
        tensors=tensors,
        layout=layout.name,
        part=_of_product(layout, product).part,
        weights=_weights(content.get("weights"), path) if ours else {},
        teacher=_weights(content.get("teacher"), path) if ours else {},
        product=product,
        uses_labels=ours and content.get("uses_labels") is True,
        classes=_classes(content.get("classes", []), path) if ours else [],
    )


def _classes(names: Any, path: Path) -> list[str]:
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return names
    raise UserError(f"checkpoint={path}: its classes are no names")


def _layout(tensors: Mapping[str, Tensor]) -> CheckpointLayout:
    return recognize_layout([strip_wrappers(name) for name in tensors])


def _product(product: Any, path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Returns the name of the network that a run of ours is evaluated by, if there are tensors of it."""
    if isinstance(product, str) and any(f"objective.{product}." in strip_wrappers(name) for name in tensors):
        return product
    raise UserError(f"checkpoint={path}: its product is no network of its objective")


def _of_product(layout: CheckpointLayout, product: str) -> CheckpointLayout:
    """Returns the layout in which another network of our objective than its backbone is the one to load."""
    if layout.name != "own run" or product == "backbone":
        return layout
    where = f"{layout.backbone.removesuffix('backbone.')}{product}."
    return replace(layout, backbone=where, part=f"the objective's {product}, as the method says")


def _config(config: Any, path: Path) -> dict[str, Any] | None:
    """Returns the file's configuration as data, with today's names of its targets."""
    if config is None:
        return None
    found: Any = as_data(config, f"checkpoint={path}")
    if not isinstance(found, dict) or not all(isinstance(found.get(part, {}), dict | None) for part in KINDS):
        raise UserError(f"checkpoint={path}: its config is no configuration of a run")
    return found


def _progress(progress: Any, path: Path) -> dict[str, int]:
    counts = isinstance(progress, dict) and all(isinstance(key, str) and type(n) is int for key, n in progress.items())
    if not counts:
        raise UserError(f"checkpoint={path}: its progress is not that of a run")
    return dict(progress)


def _weights(weights: Any, path: Path) -> dict[str, Any]:
    found: Any = {} if weights is None else as_data(weights, f"checkpoint={path}")
    if not isinstance(found, dict):
        raise UserError(f"checkpoint={path}: its record of weights that it was given is no table")
    return found


def load_backbone(path: Path | Checkpoint, backbone: Backbone, any_size: bool = False) -> Backbone:
    """Loads every tensor of ``backbone`` from a checkpoint of this project or of those in :mod:`weights.layouts`.

    Args:
        path: of a file, or the result of :func:`read_checkpoint`; its ``left_out`` and ``notes`` are filled.
        backbone: of the same architecture; changed in place and returned.
        any_size: whether a ViT may be for images of another size: its positions are then interpolated, with a note.

    Raises:
        UserError: a tensor is missing, has another shape, or belongs neither to the backbone nor to another known part;
            the message lists all of them. Or the weights fit but belong to another network. Nothing is loaded then.
    """
    checkpoint = read_checkpoint(path) if isinstance(path, Path) else path
    wanted = backbone.state_dict()
    layout, division = _divide_best(checkpoint, wanted)
    _check_any_known(division, checkpoint, wanted)
    checkpoint.left_out, checkpoint.notes = division.left_out, _fill_counters(division.found, wanted)
    add_class_position(division.found, backbone)
    resized = fit_positions(division.found, wanted, backbone) if any_size else None
    if resized is not None:
        checkpoint.notes.append(resized)
    if layout.views:
        checkpoint.notes.append(
            f"{layout.name} prepares images as views={layout.views} does, not by ImageNet's mean and std"
        )
    if layout.name == "Hugging Face transformers" and layout.backbone.endswith(("vit.", "beit.")):
        checkpoint.notes.append(
            "which mean and std the images had, its preprocessor_config.json says (0.5 for many ViT and BEiT): compare"
            " them with views.mean and views.std"
        )
    problems = _problems(division.found, wanted, division.paths)
    problems += [f"unknown {path}" for path in division.unknown]
    problems += [f"{path} a second time" for path in division.doubled]
    if problems:
        advice = mismatch_remedy(division.found, wanted, division.unknown)
        raise UserError(
            f"checkpoint={checkpoint.path} ({checkpoint.layout}) does not fit the backbone: "
            f"{'; '.join(problems)}{advice}"
        )
    check_geometry(checkpoint, division.found, backbone, resized is not None)
    backbone.load_state_dict(division.found)
    return backbone


def load_objective(checkpoint: Checkpoint, objective: Objective, any_size: bool = False) -> Objective:
    """Loads every tensor of ``objective``, backbone and heads, from a checkpoint of this project.

    Args:
        checkpoint: of a run of the same method, or of one that ``objective`` goes on from.
        objective: changed in place and returned.
        any_size: whether ViTs, teachers too, may be for images of another size: see :func:`load_backbone`.

    Raises:
        UserError: as :func:`load_backbone`.
    """
    prefix = "objective."
    tensors = {key: value for key, value in checkpoint.state_dict.items() if isinstance(value, Tensor)}
    found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    found = objective.from_another(found) if isinstance(objective, ContinuesAnother) else found
    wanted = objective.state_dict()
    if any_size:
        fit_all_positions(found, wanted, objective)
    problems = _problems(found, wanted, {}) + [f"unknown {key}" for key in found if key not in wanted]
    if problems:
        raise UserError(
            f"checkpoint={checkpoint.path} does not fit the objective: {'; '.join(problems)}; give a run of the same"
            " method, with the same heads"
        )
    objective.load_state_dict(found)
    return objective


def _flat(content: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yields every tensor with the keys and positions that lead to it."""
    if isinstance(content, Tensor):
        yield path, content
    elif isinstance(content, Mapping | list | tuple):
        items = content.items() if isinstance(content, Mapping) else enumerate(content)
        for key, value in items:
            yield from _flat(value, f"{path}.{key}" if path else str(key))


def _divide(tensors: Mapping[str, Tensor], layout: CheckpointLayout, wanted: Mapping[str, Tensor]) -> _Division:
    division = _Division()
    names = {strip_wrappers(name): name for name in wanted}  # a backbone may have a part named module
    for path, tensor in tensors.items():
        name = strip_wrappers(path)
        inside = name.startswith(layout.backbone)
        own_name = map_key(name.removeprefix(layout.backbone), names) if inside else None
        ours = None if own_name is None else names[own_name]
        part = layout.name_part(name)
        if ours is not None and ours in division.found:
            division.doubled.append(path)
        elif ours is not None:
            division.found[ours], division.paths[ours] = tensor, path
        elif part is not None and not (inside and layout.name == "own run"):
            division.left_out[part] = division.left_out.get(part, 0) + 1
        else:
            division.unknown.append(path)
    return division


def _divide_best(checkpoint: Checkpoint, wanted: Mapping[str, Tensor]) -> tuple[CheckpointLayout, _Division]:
    """Divides by the layout of the file, or where that finds nothing by the one that finds most, for the error."""
    tensors = join_attention(checkpoint.tensors, wanted)
    layout = _of_product(_layout(checkpoint.tensors), checkpoint.product)
    division = _divide(tensors, layout, wanted)
    if division.found:
        return layout, division
    others = ((other, _divide(tensors, other, wanted)) for other in placed_layouts())
    return max(((layout, division), *others), key=lambda pair: len(pair[1].found))


def _check_any_known(division: _Division, checkpoint: Checkpoint, wanted: Mapping[str, Tensor]) -> None:
    if not division.found:
        raise UserError(
            f"checkpoint={checkpoint.path}: no tensor has a name that the backbone knows; the file holds "
            f"{shorten_list([*checkpoint.tensors], 5)}, the backbone {shorten_list([*wanted], 5)}; give the backbone "
            "of the file, or rename its tensors: docs/weights.md lists the layouts that are known"
        )


def _fill_counters(found: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Fills BatchNorm's batch counters, missing in old files and those of apex: evaluation does not read them."""
    counters = [name for name in wanted if name.endswith(".num_batches_tracked")]
    if not counters or any(name in found for name in counters):
        return []
    found.update({name: torch.zeros_like(wanted[name]) for name in counters})
    return [f"num_batches_tracked of {len(counters)} BatchNorms is not in the file and was set to 0"]


def _problems(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], paths: Mapping[str, str]) -> list[str]:
    problems = [f"missing {key}" for key in wanted if key not in found]
    problems += [
        f"{paths.get(key, key)} holds {_kind(found[key])} instead of {_kind(wanted[key])}"
        for key in wanted
        if key in found and not _fits(found[key], wanted[key])
    ]
    return problems + [
        f"{paths.get(key, key)} has shape {list(found[key].shape)} instead of {list(wanted[key].shape)}"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]


def _fits(found: Tensor, wanted: Tensor) -> bool:
    """Checks that a tensor can be copied without loss: a cast would cut numbers, an empty tensor would be skipped."""
    stored = found.layout == torch.strided and not found.is_meta and not found.is_quantized
    return stored and (found.is_floating_point() or not wanted.is_floating_point()) and not found.is_complex()


def _kind(tensor: Tensor) -> str:
    extra = "" if tensor.layout == torch.strided else " sparse"
    return ("no values, " if tensor.is_meta else "") + str(tensor.dtype).removeprefix("torch.") + extra

"""Weights for other libraries: ``python -m unlabeled.weights.export run=outputs/NAME to=timm``.

What is written is loaded again in the target library, by the very lines that the model card shows, and stays only if
its features are ours.
"""

import copy
import difflib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from unlabeled.build import build_backbone, build_splits, fill_in
from unlabeled.config import run_module
from unlabeled.data.module import DataModule
from unlabeled.data.source import Splits
from unlabeled.errors import UserError
from unlabeled.evaluation.report import versions
from unlabeled.views.pipeline import Views
from unlabeled.weights.card import MARK, Facts, card, class_name
from unlabeled.weights.load import Checkpoint, load_backbone, read_checkpoint
from unlabeled.weights.preprocess import read_preprocess
from unlabeled.weights.targets import (
    WRITERS,
    Source,
    Written,
    count_parameters,
    reload,
    require_packages,
)

TOLERANCE = 1e-5  # largest absolute difference of features, over the root mean square of ours
GENERATED = 8  # images
FILES = {"README.md", "config.json", "model.safetensors", "model.pth", "model.onnx", "model.onnx.data"}  # of any target


def export(config: DictConfig, resolved: dict[str, Any]) -> None:
    """Write, load again, compare, and only then put the folder in its place.

    Args:
        config: as composed from ``conf/export.yaml``.
        resolved: the same as plain values.

    Raises:
        UserError: the target cannot have this backbone, or its features differ; nothing is left behind.
    """
    to = resolved["to"]
    _check(to, resolved["data_images"])
    path = checkpoint_path(resolved["run"], resolved["checkpoint"])
    checkpoint = read_checkpoint(path)
    filled = fill_in(config, checkpoint, needs=("views", "backbone"))
    out = Path(resolved["out"] or _beside(path) / "export" / to).expanduser().resolve()
    check_replaceable(out)
    source = open_source(filled, checkpoint)
    splits, why_not = find_data(filled, resolved["data_images"])
    batches = images_to_compare(source, splits, resolved["data_images"])
    with unfinished(out) as folder:
        written = write(to, source, folder)
        measured = compare(to, source.backbone, reloaded(to, written, folder), batches)
        facts = _facts(to, source, written, checkpoint, measured, splits)
        (folder / "README.md").write_text(card(facts), encoding="utf-8")
    worst = max(measured.values())
    print(f"{out} holds {', '.join(sorted(each.name for each in out.iterdir()))}")
    print(f"features of the reloaded model differ by at most {worst:.1e} of their scale ({', '.join(measured)})")
    if why_not:
        print(f"not compared on images of the data: {why_not}")


def _check(to: str, data_images: int) -> None:
    if to not in WRITERS:
        close = difflib.get_close_matches(to, WRITERS, n=1)
        suggestion = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"to={to}: no such target; {suggestion}(allowed: {', '.join(WRITERS)})")
    if data_images < 0:
        raise UserError(f"data_images={data_images}: must be at least 0, which leaves the data alone")
    require_packages(to)


def checkpoint_path(run: str | None, checkpoint: str | None) -> Path:
    """The file that the command names: the last state of a run, or any checkpoint."""
    if (run is None) == (checkpoint is None):
        raise UserError("give either run=outputs/NAME or checkpoint=FILE")
    return Path(checkpoint).expanduser() if checkpoint else Path(str(run)).expanduser() / "checkpoints" / "last.ckpt"


def _beside(path: Path) -> Path:
    """The folder of the run that a checkpoint is of, or the checkpoint's own."""
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def open_source(config: DictConfig, checkpoint: Checkpoint) -> Source:
    """The backbone with its weights, built from the checkpoint's own configuration."""
    preprocess = read_preprocess(config.views)
    spec: Any = OmegaConf.to_container(config.backbone, resolve=True)
    backbone = load_backbone(checkpoint, build_backbone(config.backbone, config.seed)).float().eval()
    if backbone.image_size not in (None, preprocess.size):
        raise UserError(
            f"views.size={preprocess.size}: this backbone takes images of {backbone.image_size} pixels alone"
        )
    return Source(backbone, spec, preprocess)


def find_data(config: DictConfig, wanted: int) -> tuple[Splits | None, str]:
    """The run's data if it is there, or why not. Nothing is downloaded for this."""
    if config.data is None or not wanted:
        return None, "no data=… is known" if config.data is None else "data_images=0"
    config = copy.deepcopy(config)
    if "download" in config.data:
        config.data.download = False
    try:
        return build_splits(config), ""
    except InstantiationException as error:
        if not isinstance(error.__cause__, UserError | OSError):
            raise
        return None, " ".join(str(error.__cause__).split())


def images_to_compare(source: Source, splits: Splits | None, wanted: int) -> dict[str, Tensor]:
    """Batches by what they are, float32 [B, 3, size, size] each, as evaluation sees images."""
    views = source.preprocess.views()
    made = views.plain(generated(GENERATED, source.preprocess.size))
    batches = {f"{GENERATED} generated": made, "one generated": made[:1]}
    if splits is not None:
        split = "train" if splits.test is None else "test"
        seen = _of_data(splits, views, wanted)
        batches |= {f"{len(seen)} of the data ({split})": seen} if len(seen) else {}
    return batches


def generated(count: int, size: int) -> Tensor:
    """Coloured clouds of all scales with some noise, uint8 [count, 3, size, size]; always the same."""
    generator = torch.Generator().manual_seed(0)
    clouds = torch.zeros(count, 3, size, size)
    for cells in (2, 5, 11, 23, size):
        coarse = torch.randn(count, 3, cells, cells, generator=generator)
        clouds += F.interpolate(coarse, (size, size), mode="bilinear") / cells**0.5
    contrast = torch.linspace(20, 120, count)[:, None, None, None]
    return (127.5 + contrast * clouds).clamp(0, 255).to(torch.uint8)


def _of_data(splits: Splits, views: Views, wanted: int) -> Tensor:
    """Some images, evenly spaced; those that cannot be decoded are left out."""
    source = splits.train if splits.test is None else splits.test
    positions = torch.arange(min(wanted, len(source))) * len(source) // max(1, min(wanted, len(source)))
    data = DataModule(splits, 1, 0, 0.0, 0)
    seen = [views.plain(batch.images, batch.sizes) for batch in data.batches(source, positions, 1)]
    return torch.cat(seen) if seen else torch.zeros(0)


def write(to: str, source: Source, folder: Path) -> Written:
    """Let the target write its files.

    Raises:
        UserError: it has no such network.
    """
    try:
        return WRITERS[to](source, folder)
    except UserError:
        raise
    except Exception as error:  # of somebody else's exporter, which may raise anything
        raise UserError(f"to={to}: {_kind(source)} could not be written: {_first_line(error)}") from error


def reloaded(to: str, written: Written, folder: Path) -> Callable[[Tensor], Tensor]:
    """The files as the target library reads them.

    Raises:
        UserError: it does not.
    """
    try:
        return reload(written, folder)
    except Exception as error:  # of somebody else's loader
        raise UserError(
            f"to={to}: what was written could not be loaded: {_first_line(error)}; nothing is kept"
        ) from error


def _kind(source: Source) -> str:
    return class_name(source.spec)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@torch.inference_mode()
def compare(
    to: str, ours: nn.Module, theirs: Callable[[Tensor], Tensor], batches: Mapping[str, Tensor]
) -> dict[str, float]:
    """Largest absolute difference of features, over the root mean square of ours, for each batch.

    The root mean square and not the largest feature: one large feature would hide the others.

    Raises:
        UserError: one is above the tolerance, or not a number.
    """
    measured = {}
    for name, images in batches.items():
        wanted, given = ours(images), theirs(images)
        if given.shape != wanted.shape:
            raise UserError(f"to={to}: features are {list(given.shape)} and not {list(wanted.shape)}; nothing is kept")
        scale = wanted.double().square().mean().sqrt().item()
        difference = (given.double() - wanted.double()).abs().max().item()
        measured[name] = difference / scale if scale else difference
        if not measured[name] <= TOLERANCE:
            raise UserError(
                f"to={to}: on {name} image(s) the reloaded model's features differ by {measured[name]:.1e} of their "
                f"scale, at most {TOLERANCE:g} is allowed; nothing is kept"
            )
    return measured


def check_replaceable(out: Path) -> None:
    """Raise UserError if ``out`` is a file, or a folder with anything but an earlier export."""
    if out.is_file():
        raise UserError(f"out={out}: is a file; give the name of a folder, which may be new")
    held = sorted(each.name for each in out.iterdir()) if out.is_dir() else []
    readme = out / "README.md"
    ours = readme.is_file() and MARK in readme.read_text(encoding="utf-8", errors="replace")
    foreign = [name for name in held if not ours or name not in FILES]
    if foreign:
        raise UserError(f"out={out}: holds {foreign[0]}, which is of no earlier export; give another folder")


@contextmanager
def unfinished(out: Path) -> Iterator[Path]:
    """A new folder that becomes ``out`` at the end, or goes, whatever happens; an earlier ``out`` stays until then."""
    anchor = next(parent for parent in out.parents if parent.is_dir())
    folder, old = (anchor / f".{out.name}.{os.getpid()}.{end}" for end in ("unfinished", "old"))
    folder.mkdir()
    try:
        yield folder
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            os.rename(out, old)
        os.rename(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _facts(
    to: str,
    source: Source,
    written: Written,
    checkpoint: Checkpoint,
    measured: Mapping[str, float],
    splits: Splits | None,
) -> Facts:
    run = _beside(checkpoint.path)
    results = _read_json(run / "report" / "results.json")
    judged = results.get("provenance", {}).get("checkpoint", {}).get("sha256")
    rows = results.get("rows", []) if judged == checkpoint.sha256 else []
    noted = results.get("provenance", {}).get("data", {}).get("description") if rows else None
    kind = class_name((checkpoint.config or {}).get("data")) or "not known"
    return Facts(
        to=to,
        written=written,
        checkpoint=checkpoint,
        spec=source.spec,
        preprocess=source.preprocess,
        parameters=count_parameters(source.backbone),
        num_features=source.backbone.num_features,
        data=splits.description if splits is not None else noted or kind,
        measured=measured,
        tolerance=TOLERANCE,
        rows=rows,
        results_note=_results_note(results, bool(rows)),
        training=_read_json(run / "training.json"),
        versions=versions(),
    )


def _results_note(results: Mapping[str, Any], same: bool) -> str:
    if same:
        return f"By `eval_linear.py` on frozen features, {results['provenance'].get('date', '')[:10]}."
    return "Of another checkpoint than this one, so left out." if results else "None yet."


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content


if __name__ == "__main__":
    run_module("export", export)

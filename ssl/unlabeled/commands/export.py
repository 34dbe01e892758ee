"""Weights for other libraries: ``unlabeled export run=outputs/NAME to=timm``.

What is written is loaded again in the target library, by the very lines that the model card shows, and stays only if
its features are ours.
"""

import difflib
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from unlabeled.commands.build.export import ExportInputs, build_export_inputs
from unlabeled.commands.config import run_module
from unlabeled.core.environment import versions
from unlabeled.core.places import checkpoint_path, folder_of
from unlabeled.core.reading import read_utf8
from unlabeled.core.writing import check_folder, make_folder, one_line, write_atomic
from unlabeled.data.source import Splits
from unlabeled.errors import UserError
from unlabeled.evaluation.comparison.evaluated_run import evaluated_rows
from unlabeled.evaluation.heads.kept import ENDING, file_name
from unlabeled.evaluation.provenance import read_json
from unlabeled.weights.card import EARLIER_MARK, MARK, CardFacts, class_name, write_card
from unlabeled.weights.checkpoint import Checkpoint
from unlabeled.weights.classifier import joined
from unlabeled.weights.feature_comparison import TOLERANCE, feature_differences, images_to_compare
from unlabeled.weights.load import read_checkpoint
from unlabeled.weights.preprocess import read_preprocess
from unlabeled.weights.targets import (
    WRITERS,
    ExportedModel,
    ExportSource,
    count_parameters,
    reload_export,
    require_packages,
)

FILES = {"README.md", "config.json", "model.safetensors", "model.pth", "model.onnx", "model.onnx.data"}  # of any target
FILES |= {"model.pt2"}


def export(config: Any, resolved: dict[str, Any], log: Callable[[str], None] = print) -> Path:
    """Write, load again, compare, and only then put the folder in its place, which is returned.

    Args:
        config: as composed from ``conf/export.yaml``.
        resolved: the same as plain values.
        say: what was written, line by line.

    Raises:
        UserError: the target cannot have this backbone, or its features differ; nothing is left behind.
    """
    _check(resolved["to"], resolved["data_images"])
    try:
        return _export(config, resolved, resolved["to"], log)
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        raise SystemExit(130) from None


def _export(config: Any, resolved: dict[str, Any], to: str, log: Callable[[str], None]) -> Path:
    path = checkpoint_path(resolved["run"], resolved["checkpoint"])
    name = to if config.head is None else f"{to}-{file_name(config.head).removesuffix(ENDING)}"
    out = Path(resolved["out"] or folder_of(path) / "export" / name).expanduser()
    check_folder("out", out)
    out = out.resolve()
    check_replaceable(out)
    checkpoint = read_checkpoint(path)
    exported = build_export_inputs(config, checkpoint)
    source = open_source(exported)
    batches = images_to_compare(source.preprocess.views(), exported.splits, resolved["data_images"])
    with unfinished(out) as folder, silence():
        written = write(to, source, folder)
        measured = feature_differences(
            to, joined(source.backbone, source.classifier), reloaded(to, written, folder), batches
        )
        facts = _facts(to, source, written, checkpoint, measured, exported.splits)
        write_atomic(folder / "README.md", write_card(facts))
    worst = max(measured.values())
    log(f"{out} holds {', '.join(sorted(each.name for each in out.iterdir()))}")
    log(f"{source.result} of the reloaded model differ by at most {worst:.1e} of their scale ({', '.join(measured)})")
    if exported.why_no_data:
        log(f"not compared on images of the data: {exported.why_no_data}")
    return out


def _check(to: str, data_images: int) -> None:
    if to not in WRITERS:
        close = difflib.get_close_matches(to, WRITERS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"(allowed: {', '.join(WRITERS)})"
        raise UserError(f"to={to}: no such target; {hint}")
    if data_images < 0:
        raise UserError(f"data_images={data_images}: must be at least 0, which leaves the data alone")
    require_packages(to)


def open_source(exported: ExportInputs) -> ExportSource:
    """The backbone and how its images are prepared.

    Raises:
        UserError: the two do not fit.
    """
    backbone, preprocess = exported.backbone.float().eval(), read_preprocess(exported.views)
    if backbone.channels != 3:
        raise UserError(f"backbone.channels={backbone.channels}: an export is for images of three colours alone")
    if backbone.image_size not in (None, preprocess.size):
        raise UserError(
            f"views.size={preprocess.size}: this backbone takes images of {backbone.image_size} pixels alone"
        )
    return ExportSource(backbone, exported.values, preprocess, exported.classifier)


def write(to: str, source: ExportSource, folder: Path) -> ExportedModel:
    """Let the target write its files.

    Raises:
        UserError: it has no such network, or its exporter fails.
    """
    with foreign(to, f"{class_name(source.spec)} could not be written"):
        return WRITERS[to](source, folder)


def reloaded(to: str, written: ExportedModel, folder: Path) -> Callable[[Tensor], Tensor]:
    """The files as the target library reads them: a function from images to features.

    Raises:
        UserError: it does not read them; so does the function where the library cannot run them.
    """
    with foreign(to, "what was written could not be loaded, nothing is kept"):
        features = reload_export(written, folder)

    def guarded(images: Tensor) -> Tensor:
        with foreign(to, "what was written does not run, nothing is kept"):
            return features(images)

    return guarded


@contextmanager
def foreign(to: str, problem: str) -> Iterator[None]:
    """Somebody else's code, which may raise anything: a UserError that says it in one line, with its cause."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"to={to}: {problem}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@contextmanager
def silence() -> Iterator[None]:
    """Of what libraries say of each node and file, and of deprecations within them."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "timm")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def check_replaceable(out: Path) -> None:
    """Raise UserError if ``out`` is a file, or a folder with anything but an earlier export."""
    held = sorted(each.name for each in out.iterdir()) if os.path.isdir(out) else []
    readme = out / "README.md"
    ours = os.path.isfile(readme) and _is_card(read_utf8(readme, "replace"))
    foreign = [name for name in held if not ours or name not in FILES]
    if foreign:
        raise UserError(f"out={out}: holds {foreign[0]}, which is of no earlier export; give another folder")


def _is_card(text: str) -> bool:
    return MARK in text or EARLIER_MARK in text


@contextmanager
def unfinished(out: Path) -> Iterator[Path]:
    """A new folder that becomes ``out`` at the end, or goes, whatever happens; an earlier ``out`` stays until then."""
    anchor = next(parent for parent in out.parents if os.path.isdir(parent))
    folder, old = (anchor / f".{out.name}.{os.getpid()}.{end}" for end in ("unfinished", "old"))
    with one_line(out):
        folder.mkdir()
    try:
        yield folder
        make_folder(out.parent)
        with one_line(out):
            if os.path.isdir(out):
                os.rename(out, old)
        _put(folder, out)
    finally:
        if os.path.isdir(old) and not os.path.lexists(out):  # stopped between the two
            _put(old, out)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _put(folder: Path, out: Path) -> None:
    with one_line(out):
        os.rename(folder, out)


def _facts(
    to: str,
    source: ExportSource,
    written: ExportedModel,
    checkpoint: Checkpoint,
    measured: Mapping[str, float],
    splits: Splits | None,
) -> CardFacts:
    run = folder_of(checkpoint.path)
    results = read_json(run / "report" / "results.json")
    stored = results.get("provenance", {}).get("checkpoint")
    evaluated = stored.get("sha256") if isinstance(stored, Mapping) else None
    rows = results.get("rows", []) if evaluated == checkpoint.sha256 and evaluated_rows(results) is not None else []
    noted = results.get("provenance", {}).get("data", {}).get("description") if rows else None
    kind = class_name((checkpoint.config or {}).get("data")) or "not known"
    return CardFacts(
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
        training=read_json(run / "training.json"),
        versions=versions(),
        classifier=source.classifier,
    )


def _results_note(results: Mapping[str, Any], same: bool) -> str:
    if same:
        return f"By `eval_linear.py` on frozen features, {results['provenance'].get('date', '')[:10]}."
    return "Of another checkpoint than this one, so left out." if results else "None yet."


if __name__ == "__main__":
    run_module("export", export)

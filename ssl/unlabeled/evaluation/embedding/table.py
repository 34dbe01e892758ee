"""Where the features of a data set go: into a file beside the table that will be made of it, or into memory."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unlabeled.core.parsing import parse_json
from unlabeled.core.reading import read_bytes
from unlabeled.core.writing import check_file, write_atomic
from unlabeled.data.source import Source
from unlabeled.distributed import rank, world_size
from unlabeled.errors import UserError
from unlabeled.evaluation.embedding.embeddings import Embeddings
from unlabeled.evaluation.embedding.formats import check_ending, rows_file, save
from unlabeled.evaluation.embedding.part_file import PartFile, other_settings
from unlabeled.evaluation.embedding.pool import rows_in_memory
from unlabeled.evaluation.embedding.progress import ImageProgress
from unlabeled.evaluation.embedding.rows import Chunk, Floats, Ints
from unlabeled.evaluation.embedding.stream import Embedder, Images, Take, stream

REFUSED = -1  # what the first process tells the others where it has raised


@dataclass(frozen=True)
class Written:
    """What came of an extraction into a file."""

    files: list[Path]  # empty: the table was there already
    shape: tuple[int, int]
    counts: dict[str, int]  # rows of each split
    corrupt: int
    images_per_second: float


class _PartRows:
    """The rows of a table that a part file holds."""

    def __init__(self, part: PartFile, sources: Mapping[str, Source]) -> None:
        self.part, self.named = part, _Names(sources)
        self.classes, self.counts = self.named.classes, dict.fromkeys(sources, 0)
        for rows, _ in part.chunks():
            for number, name in enumerate(sources):
                self.counts[name] += int((self.named.split_of(rows) == number).sum())

    @property
    def shape(self) -> tuple[int, int]:
        return sum(self.counts.values()), self.part.width

    def chunks(self) -> Iterator[Chunk]:
        for rows, x in self.part.chunks():
            yield self.named.chunk(rows, x)


class _Names:
    """What is known of an image by its number, all splits behind one another."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self.splits, self.sources = list(sources), list(sources.values())
        self.starts = np.cumsum([0, *(len(source) for source in self.sources)])
        self.classes = next((source.classes for source in self.sources if source.classes), [])

    def split_of(self, rows: Ints) -> Ints:
        return np.searchsorted(self.starts, rows, side="right").astype(np.int64) - 1

    def chunk(self, rows: Ints, x: Floats) -> Chunk:
        splits = self.split_of(rows)
        inside = (rows - self.starts[splits]).tolist()
        sources = [self.sources[split] for split in splits]
        labels = np.array([int(source.labels[row]) for source, row in zip(sources, inside, strict=True)], np.int64)
        names = [source.name(row) for source, row in zip(sources, inside, strict=True)]
        return Chunk(names, labels, [self.splits[split] for split in splits], x)


def embed_in_memory(embedder: Embedder, images: Images, log: Callable[[str], None]) -> Embeddings:
    """Computes features of all images. Raises UserError as :func:`unlabeled.evaluation.embedding.stream.stream`."""
    named = _Names(images.sources)
    chunk = named.chunk(*rows_in_memory(embedder, images, log))
    return Embeddings(chunk.x, list(chunk.names), chunk.labels, list(chunk.splits), named.classes)


def embed_to_file(
    out: Path, embedder: Embedder, images: Images, provenance: Mapping[str, Any], log: Callable[[str], None]
) -> Written:
    """Writes features of all images as a table; ``out.json`` beside it says how they were made.

    What is computed goes into ``.NAME.part`` first: killed and called again it goes on. A table that was made with the
    same settings is left as it is.

    Args:
        out: its ending says the format.
        embedder: makes the features.
        images: of all splits.
        provenance: plain values that are told of, and decide no number.
        log: takes lines on progress.

    Raises:
        UserError: the table is there and was made otherwise, or cannot be written.
    """
    settings = json.loads(json.dumps(embedder.settings() | images.settings()))
    part, done = _agreed(out, settings, images)
    if done is None:
        return Written([], (0, 0), {}, 0, 0.0)
    total, before = sum(images.batches()), sum(images.batches()[:done])
    progress = ImageProgress(total, before, log if rank() == 0 else _silent)
    if done and rank() == 0:
        log(f"goes on after {before:,} of {total:,} images")
    try:
        stream(embedder, images, _into(part, progress), done)
        record = {**provenance, "settings": settings, "shape": embedder.shape}
        return _finished(out, part, images, record, progress.speed())
    finally:
        progress.close()
        if part is not None:
            part.close()


def _into(part: PartFile | None, progress: ImageProgress) -> Take:
    def take(kept: NDArray[np.bool_], x: Floats | None) -> None:
        assert part is not None  # as it is with the first process
        part.append(kept, x)
        progress(len(kept))

    return take


def _finished(out: Path, part: PartFile | None, images: Images, record: dict[str, Any], speed: float) -> Written:
    """Makes the table of the part file, and the record of it, by the first process."""
    if part is None:
        return Written([], (0, 0), {}, 0, 0.0)
    rows = _PartRows(part, images.sources)
    corrupt = sum(images.batches()) - rows.shape[0]
    files = save(out, rows)
    about = {"rows": rows.shape[0], "features": rows.shape[1], "splits": rows.counts, "corrupt_images": corrupt}
    write_atomic(record_file(out), json.dumps({**about, "classes": rows.classes, **record}, indent=1) + "\n")
    part.close(remove=True)
    return Written([*files, record_file(out)], rows.shape, rows.counts, corrupt, speed)


def record_file(out: Path) -> Path:
    """Returns the file that says how a table was made."""
    return out.with_name(f"{out.name}.json")


def part_path(out: Path) -> Path:
    """Returns the file of what has been computed of a table so far."""
    return out.with_name(f".{out.name}.part")


def check_out(out: Path) -> None:
    """Raises UserError, before the work, for an output that cannot be written."""
    check_file("out", out)
    check_ending(out)
    for beside in (record_file(out), part_path(out), rows_file(out)):
        if beside is not None:
            check_file("out", beside)


def _agreed(out: Path, settings: dict[str, Any], images: Images) -> tuple[PartFile | None, int | None]:
    """Opens the part file in the first process, and tells all how many batches are done; None where all are."""
    if world_size() == 1:
        part = _open(out, settings, images)
        return part, None if part is None else part.done
    part, told = None, list[Any]([None])
    try:
        if rank() == 0:
            part = _open(out, settings, images)
            told = [None if part is None else part.done]
    except UserError:
        told = [REFUSED]
        raise
    finally:
        torch.distributed.broadcast_object_list(told)
    if told[0] == REFUSED:  # the first process has said why
        raise SystemExit(2)
    return part, told[0]


def _open(out: Path, settings: dict[str, Any], images: Images) -> PartFile | None:
    """Opens the part file; returns None where the table is there already. Raises UserError where another is."""
    if None in settings["data"].values():  # nobody can say whether these are the images of before
        part_path(out).unlink(missing_ok=True)
    record = _settings_of(out)
    if not os.path.exists(out):
        record_file(out).unlink(missing_ok=True)
    elif record is None and not os.path.exists(part_path(out)):
        raise UserError(f"out={out}: is there, and nothing says how it was made; remove it, or give another name")
    elif record is not None and (record != settings or None in settings["data"].values()):
        raise UserError(
            f"out={out}: is there, made with {other_settings(record, settings)}; remove it, or give another name"
        )
    elif record is not None:
        return None
    return PartFile(part_path(out), settings, images.batches())


def _settings_of(out: Path) -> dict[str, Any] | None:
    """Reads the settings of the table that is there; None where there is none, or no whole record of it."""
    beside, file = rows_file(out), record_file(out)
    if not os.path.exists(out) or not os.path.isfile(file) or (beside is not None and not os.path.exists(beside)):
        return None
    try:
        found = parse_json(read_bytes(file))
    except (OSError, ValueError):
        return None
    settings = found.get("settings") if isinstance(found, dict) else None
    return settings if isinstance(settings, dict) else None


def _silent(line: str) -> None:
    """Prints nothing: the first process says it."""

"""Reads chunks that Lightning's ``litdata.optimize`` wrote, by index, in any order; litdata is not needed.

A chunk holds the number of items n, n + 1 offsets, and the items; an item holds the sizes of its leaves, and the
leaves. Numbers are uint32 (litdata 0.2, ``streaming/item_loader.py``, PyTreeLoader).
"""

import mmap
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from unlabeled.core.parsing import parse_json
from unlabeled.core.phrases import one_line
from unlabeled.core.ranges import Channels, Classes, Count, Decoder, FilePath, Pixels
from unlabeled.core.reading import name_inside
from unlabeled.data.decode import check_image_size, describe_size
from unlabeled.data.decoding import MOST_PIXELS, Bits, Decoding
from unlabeled.data.lists.index import IndexNote, load_or_build
from unlabeled.data.source import Splits
from unlabeled.data.sources.columns import (
    MAX_CLASSES,
    ColumnData,
    count_classes,
    require_labels_below,
    require_same_split,
)
from unlabeled.data.sources.files import file_stamps, is_file, is_url, map_paths, open_file
from unlabeled.data.sources.records import RecordSource, labels_of
from unlabeled.errors import UserError

_ENCODED = ("jpeg", "bytes", "image", "file")  # beginnings of format names of leaves with encoded images


@dataclass
class _Leaves:
    """Positions of the image and the label in an item."""

    number: int
    image: int
    label: int | None


def litdata(
    path: FilePath,
    train: FilePath = "train",
    test: FilePath | None = None,
    image_size: Pixels = 256,
    square: bool = False,
    image_field: str | None = None,
    label_field: str | None = None,
    num_classes: Classes | None = None,
    index: FilePath | None = None,
    channels: Channels = 3,
    bits: Bits = 8,
    max_pixels: Count = MOST_PIXELS,
    decode: Decoder = "auto",
) -> Splits:
    """Reads images from the folders ``train`` and ``test`` of ``path``, local or a URL; "." is ``path`` itself.

    An item is a dict or a tuple; ``image_field`` and ``label_field`` are the name, or the position from 0, of the field
    with the encoded image and with the class number. None: the only field of its kind; ``label_field="none"``: no
    labels. Labels are integers from 0, -1 where there is none; classes are their numbers, up to the greatest label of
    train or ``num_classes``. Images are whole or ``square``, see :func:`unlabeled.data.decode.to_rgb`.

    The items are listed once, see :func:`unlabeled.data.lists.index.load_or_build`. Of truncated chunks the items
    before the cut are used; ``Splits.corrupt`` names the chunks.

    Raises UserError for missing chunks or fields, compressed chunks, and labels outside the classes.
    """
    check_image_size(image_size)
    decoding = Decoding(channels, bits, max_pixels, decode)
    if test is not None and label_field == "none":
        raise UserError("data.label_field=none leaves nothing to test with: give data.test=null too")
    table = _read(path, train, "data.train", image_field, label_field, index)
    classes = count_classes(table, num_classes) if int(table.labels.max()) >= 0 or num_classes else []
    source = RecordSource(table.encoded, table.labels, classes, image_size, square)
    kind, problems = f"{len(classes)} classes, {describe_size(image_size, square)}", table.encoded.note["problems"]
    if test is None:
        return decoding.of(Splits(source, None, f"{len(source):,} images from {path}, no test split, {kind}", problems))
    other = _read(path, test, "data.test", image_field, label_field, index)
    require_same_split(table, other)
    require_labels_below(len(classes), other, "the classes of train")
    held_out = RecordSource(other.encoded, other.labels, classes, image_size, square)
    counts = f"{len(source):,} train and {len(held_out):,} test images from {path}"
    splits = Splits(source, held_out, f"{counts}, {kind}", problems + other.encoded.note["problems"])
    return decoding.of(splits.judged())


def _read(path: str, split: str, key: str, image: str | None, label: str | None, place: str | None) -> ColumnData:
    base = os.path.expanduser(path).rstrip("/")
    file = f"{base}/index.json" if split == "." else f"{base}/{split}/index.json"
    if not is_file(file):
        raise UserError(f"{key}={split}: {file} does not exist; give a folder that litdata.optimize filled")
    try:
        with open_file(file) as stream:
            content = parse_json(stream.read())
        leaves = _leaves(content["config"], file, image, label)
        names = [name_inside(each["filename"], file) for each in content["chunks"]]
    except UserError:  # a ValueError too
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise UserError(
            f"{key}={split}: {file} is not what litdata.optimize writes ({type(error).__name__}: "
            f"{one_line(error)[:200]}); fetch the folder again"
        ) from error
    paths = [f"{file.removesuffix('index.json')}{name}" for name in names]
    if not paths:
        raise UserError(f"{key}={split}: {file} lists no chunk; give a folder that litdata.optimize filled")
    try:
        files = file_stamps(paths)
    except OSError as error:
        raise UserError(f"{key}={split}: a chunk that {file} lists cannot be read ({one_line(error)})") from error
    wanted: IndexNote = {"of": file, "leaves": vars(leaves)}
    listed = load_or_build(
        wanted, place, lambda note: bool(note["files"] == files), lambda: _scan(files, leaves), is_url(file)
    )
    for problem in listed.note["problems"]:
        print(f"litdata: {problem}")
    if not len(listed):
        raise UserError(f"{key}={split}: {file} lists no whole item; give a folder that litdata.optimize filled")
    starts = np.searchsorted(listed.numbers("file"), np.arange(len(paths))).tolist()
    return ColumnData(paths, starts, listed, labels_of(listed), None)


def _leaves(config: IndexNote, file: str, image: str | None, label: str | None) -> _Leaves:
    """Finds the leaves. Raises UserError for items not readable by index, and for missing or ambiguous fields."""
    for key in ("compression", "encryption"):
        if config.get(key):
            raise UserError(f"{file}: {key}={config[key]} cannot be read by index; optimize again without {key}")
    formats, spec = config["data_format"], parse_json(config["data_spec"])[1]
    if config.get("item_loader", "PyTreeLoader") != "PyTreeLoader" or len(spec["children_spec"]) != len(formats):
        raise UserError(f"{file}: its items are no plain dict or tuple of an image and a label; optimize it again so")
    named = parse_json(spec["context"] or "null")
    names = [str(name) for name in named] if isinstance(named, list) else [str(place) for place in range(len(formats))]
    encoded = [place for place, kind in enumerate(formats) if kind.startswith(_ENCODED)]
    numbers = [place for place, kind in enumerate(formats) if kind == "int"]
    fields = ", ".join(f"{name}: {kind}" for name, kind in zip(names, formats, strict=True))
    found = _place(image, names, encoded, f"{file}: data.image_field={image or 'null'}", fields)
    if label == "none" or (label is None and not numbers):
        return _Leaves(len(formats), found, None)
    return _Leaves(
        len(formats), found, _place(label, names, numbers, f"{file}: data.label_field={label or 'null'}", fields)
    )


def _place(field: str | None, names: list[str], fitting: list[int], given: str, fields: str) -> int:
    chosen = fitting if field is None else [place for place in fitting if names[place] == field]
    if len(chosen) != 1:
        raise UserError(f"{given} is not one field of the right kind (encoded images, integers); there are {fields}")
    return chosen[0]


def _scan(files: list[list[Any]], leaves: _Leaves) -> tuple[dict[str, np.ndarray | list[bytes]], IndexNote]:
    """Scans all chunks once; of local ones only the pages that hold sizes and labels."""
    problems: list[str] = []
    parts = map_paths(lambda path: _scan_chunk(path, leaves, problems), [file[0] for file in files])
    offset, size, label = np.concatenate(parts, 1)
    file = np.repeat(np.arange(len(parts)), [part.shape[1] for part in parts])
    columns: dict[str, np.ndarray | list[bytes]] = {"file": file, "offset": offset, "size": size, "label": label}
    return columns, {"files": files, "problems": sorted(problems)}


def _scan_chunk(path: str, leaves: _Leaves, problems: list[str]) -> np.ndarray:
    """Returns offset, size and label of each image, int64 [3, items]."""
    content = _content(path)
    count = int(content[:4].view(np.uint32)[0]) if len(content) >= 4 else 0
    table = np.zeros(1, np.int64)
    if len(content) >= 8 + 4 * count:
        table = content[4 : 8 + 4 * count].view(np.uint32).astype(np.int64)
    whole = int((table[1:] <= len(content)).sum())
    if whole < count or len(content) < 8:
        problems.append(f"{path}: cut short at byte {len(content):,}; {whole:,} whole items are used")
    starts = table[:whole]
    if whole and (int(starts[0]) < 8 + 4 * count or bool((np.diff(table[: whole + 1]) < 4 * leaves.number).any())):
        problems.append(f"{path}: its table of items is damaged; none of {count:,} items is used")
        return np.zeros((3, 0), np.int64)
    sizes = _gathered(content, starts, 4 * leaves.number, np.uint32)
    begins = starts[:, None] + 4 * leaves.number + np.cumsum(sizes, 1) - sizes
    if whole and bool((begins[:, -1] + sizes[:, -1] != table[1 : whole + 1]).any()):
        raise UserError(f"{path}: its items are not of the kind that index.json says; optimize it again")
    image, label = leaves.image, leaves.label
    if label is not None and whole and int(begins[:, label].max()) + 8 > len(content):
        raise UserError(f"{path}: its labels are not those that index.json says; optimize it again")
    labels = np.full(whole, -1) if label is None else _gathered(content, begins[:, label], 8, np.int64)[:, 0]
    wrong = np.flatnonzero((labels < -1) | (labels >= MAX_CLASSES))
    if len(wrong):
        raise UserError(f"{path} row {wrong[0]}: label {labels[wrong[0]]} is outside 0..{MAX_CLASSES - 1}; mend it")
    return np.stack([begins[:, image], sizes[:, image], labels])


def _content(path: str) -> np.ndarray:
    """Returns all bytes of a file, uint8: mapped where the file is local."""
    with open_file(path) as file:
        near = not is_url(path) and file.seek(0, 2) > 0
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if near else file.read(), np.uint8)


def _gathered(content: np.ndarray, starts: np.ndarray, width: int, kind: type[np.generic]) -> np.ndarray:
    """Gathers numbers of ``width`` bytes from each start, int64 [starts, width / size of one]."""
    found = content[starts[:, None] + np.arange(width)].reshape(len(starts), width)
    return np.ascontiguousarray(found).view(kind).astype(np.int64)

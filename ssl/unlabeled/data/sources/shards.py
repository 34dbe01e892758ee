"""Reads tar shards in WebDataset's layout, ``KEY.jpg`` beside ``KEY.cls`` or ``KEY.json``: by index, in any order."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from unlabeled.core.parsing import parse_json
from unlabeled.core.phrases import one_line, shorten_list
from unlabeled.core.ranges import Channels, Classes, Count, Decoder, FilePath, Pixels
from unlabeled.core.reading import open_regular
from unlabeled.data.decode import check_image_size, describe_size
from unlabeled.data.decoding import MOST_PIXELS, Bits, Decoding
from unlabeled.data.lists.index import Index, IndexNote, load_or_build
from unlabeled.data.lists.left_out import LeftOut, leave_out, lines, sum_counts
from unlabeled.data.source import Splits
from unlabeled.data.sources.columns import MAX_CLASSES
from unlabeled.data.sources.files import file_stamps, is_url, map_paths, match_files, open_file
from unlabeled.data.sources.members import Records
from unlabeled.data.sources.records import RecordSource, labels_of
from unlabeled.data.sources.tar import DamagedTar, TarMember, members
from unlabeled.errors import UserError


@dataclass
class _Scanned:
    """Contents of one shard: one row an image."""

    rows: np.ndarray  # int64 [n, 3]: offset, size, label
    names: list[bytes]
    problems: list[str]
    left_out: LeftOut


def shards(
    path: FilePath,
    train: FilePath = "train*.tar",
    test: FilePath | None = None,
    image_size: Pixels = 256,
    labels: str = "cls",
    square: bool = False,
    num_classes: Classes | None = None,
    index: FilePath | None = None,
    channels: Channels = 3,
    bits: Bits = 8,
    max_pixels: Count = MOST_PIXELS,
    decode: Decoder = "auto",
) -> Splits:
    """Reads images from the tar files ``train`` and ``test``: names or patterns in ``path``, a folder, URL or prefix.

    A record is the members of one KEY (the name up to its file name's first dot), anywhere in the shard; its
    image is the first member whose extension Pillow reads, see :class:`unlabeled.data.sources.members.Records`. Labels
    are integers from 0: ``cls`` of the member ``KEY.cls``, ``json:FIELD`` of that field in ``KEY.json``, ``none``
    nowhere; a record without it is unlabelled. Class names are their numbers, up to the greatest label of train or
    ``num_classes``, and those of ``pack.json`` in a folder that ``unlabeled pack`` wrote. Images are whole or
    ``square``, see :func:`unlabeled.data.decode.to_rgb`.

    The shards are scanned once and listed in ``index``, see :func:`unlabeled.data.lists.index.load_or_build`. Of
    truncated or damaged shards the records before the damage are used; ``Splits.corrupt`` names the shards.

    Raises UserError for missing shards, no images, and labels that are no class numbers.
    """
    check_image_size(image_size)
    decoding = Decoding(channels, bits, max_pixels, decode)
    if labels not in ("cls", "none") and not (labels.startswith("json:") and len(labels) > 5):
        raise UserError(f"data.labels={labels} is not known: give cls, json:FIELD or none")
    if test is not None and labels == "none":
        raise UserError("data.labels=none leaves nothing to test with: give data.test=null too")
    if num_classes is not None and not 1 <= num_classes <= MAX_CLASSES:
        raise UserError(f"data.num_classes={num_classes} is not a number of classes: give 1..{MAX_CLASSES}, or null")
    found = match_files(path, train, "data.train", "tar")
    held_out = [] if test is None else match_files(path, test, "data.test", "tar")
    if shared := set(found) & set(held_out):
        raise UserError(f"{min(shared)} is matched by data.train and by data.test: tests need images not trained on")
    listed = _listed(found, labels, index, f"data.train={train}")
    greatest = int(labels_of(listed).max())
    classes = [str(label) for label in range(num_classes or greatest + 1)]
    if num_classes is None and classes:
        classes = names_of_classes(path, greatest + 1) or classes
    source = _source(listed, classes, image_size, square)
    kind = f"{_count(classes)}, {describe_size(image_size, square)}"
    if test is None:
        counts = f"{len(source):,} images in {len(found):,} shards from {path}, no test split"
        return decoding.of(Splits(source, None, f"{counts}, {kind}", _problems(listed), listed.note["left_out"]))
    other = _listed(held_out, labels, index, f"data.test={test}")
    counts = (
        f"{len(source):,} train and {len(other):,} test images in {len(found) + len(held_out):,} shards from {path}"
    )
    tests = _source(other, classes, image_size, square)
    left_out = sum_counts([listed.note["left_out"], other.note["left_out"]])
    splits = Splits(source, tests, f"{counts}, {kind}", _problems(listed) + _problems(other), left_out)
    return decoding.of(splits.judged())


def names_of_classes(path: str, least: int) -> list[str] | None:
    """Returns the names in the ``pack.json`` of a local pack, if there are at least so many, else None."""
    try:
        with open_regular(Path(path).expanduser() / "pack.json") as file:
            names = parse_json(file.read())["classes"]
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None
    are_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if are_names and len(set(names)) == len(names) >= least else None


def _source(listed: Index, classes: list[str], image_size: int, square: bool) -> RecordSource:
    labels = labels_of(listed)
    source = RecordSource(listed, labels, classes, image_size, square)
    wrong = (labels >= len(classes)).nonzero().flatten().tolist()
    if wrong:
        label = int(labels[wrong[0]])
        raise UserError(
            f"{source.name(wrong[0])}: label {label} is outside 0..{len(classes) - 1}, the classes of train or"
            f" data.num_classes; mend the shard, or give data.num_classes={label + 1} or more"
        )
    return source


def _problems(listed: Index) -> list[str]:
    problems: list[str] = listed.note["problems"]
    for problem in problems:
        print(f"shards: {problem}")
    return problems


def _listed(paths: list[str], labels: str, place: str | None, key: str) -> Index:
    try:
        files = file_stamps(paths)
    except OSError as error:
        raise UserError(f"{key}: a shard cannot be read ({one_line(error)}); mend it or leave it out") from error
    wanted: IndexNote = {"of": f"{len(paths)} shards, {os.path.dirname(paths[0])}", "paths": paths, "labels": labels}
    far = any(map(is_url, paths))
    listed = load_or_build(
        wanted, place, lambda note: bool(note["files"] == files), lambda: _scan(files, labels), always=far
    )
    if not len(listed):
        reasons = listed.note["problems"][:1] + lines(listed.note["left_out"])
        reason = f": {'; '.join(reasons)}" if reasons else ""
        raise UserError(f"{key}: no image in {shorten_list(paths)}{reason}; give shards with members like KEY.jpg")
    return listed


def _scan(files: list[list[Any]], labels: str) -> tuple[dict[str, np.ndarray | list[bytes]], IndexNote]:
    """Scans all shards once from beginning to end; of local ones the headers alone."""
    paths = [file[0] for file in files]
    if len(paths) > 1 or is_url(paths[0]):
        print(f"listing the images of {len(paths):,} shards, once: {shorten_list(paths[:1])} …")
    parts = map_paths(lambda path: _scan_shard(path, labels), paths)
    rows = np.concatenate([part.rows for part in parts])
    columns: dict[str, np.ndarray | list[bytes]] = {
        "file": np.repeat(np.arange(len(parts)), [len(part.rows) for part in parts]),
        "offset": rows[:, 0],
        "size": rows[:, 1],
        "label": rows[:, 2],
        "name": [name for part in parts for name in part.names],
    }
    problems = [problem for part in parts for problem in part.problems]
    return columns, {"files": files, "problems": problems, "left_out": sum_counts(part.left_out for part in parts)}


def _scan_shard(path: str, labels: str) -> _Scanned:
    """Finds the image of each record, in the shard's order, with the label, which may stand anywhere in the shard."""
    scan, problems, links = Records(labels, path), list[str](), list[bytes]()
    try:
        for member, file in _members(path, problems, links):
            scan.add(member, lambda size, file=file, member=member: _content(file, member, size))  # type: ignore[misc]
    except OSError as error:  # it may pass, and what is listed now is kept
        raise UserError(f"{path}: cannot be read ({one_line(error)}); mend it or leave it out, or try again") from error
    for name in links:
        leave_out(scan.left_out, "links in a shard, which are not followed", name)
    rows, names = scan.found()
    return _Scanned(rows, names, problems, scan.left_out)


def _members(path: str, problems: list[str], links: list[bytes]) -> Iterator[tuple[TarMember, IO[bytes]]]:
    """Yields whole members with the file that holds them; a damaged or cut end is added to ``problems``."""
    with open_file(path) as file:
        length, count = file.seek(0, os.SEEK_END), 0
        try:
            for count, member in enumerate(members(file, length, links), 1):  # noqa: B007
                yield member, file
        except DamagedTar as error:
            file.seek(0)
            packed = file.read(2) in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5")
            problem = "compressed, unpack it first" if packed else str(error)
            problems.append(f"{path}: {problem}; {count:,} whole members are used")


def _content(file: IO[bytes], member: TarMember, most: int) -> bytes:
    file.seek(member.offset)
    return file.read(min(member.size, most))


def _count(classes: list[str]) -> str:
    return f"{len(classes)} classes" if classes else "no labels"

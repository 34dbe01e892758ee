"""Finds the members of a tar shard that are images, and the label of each."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from unlabeled.core.parsing import parse_json
from unlabeled.core.phrases import one_line
from unlabeled.core.reading import shown_path
from unlabeled.data.lists.left_out import LeftOut, leave_out
from unlabeled.data.lists.pictures import looks_like_image, readable_extensions
from unlabeled.data.sources.columns import MAX_CLASSES
from unlabeled.data.sources.tar import TarMember
from unlabeled.errors import UserError

_LONGEST = 2**24  # most bytes of a member with a label; json files hold captions and boxes too
_BEGINNING = 2**20  # bytes read to recognise a member without an extension
_OTHER = "members that are no image and no label"
_FURTHER = "further images of a record"

Read = Callable[[int], bytes]  # the content of a member, at most so many bytes


@dataclass(slots=True)
class _Record:
    """The members that share one key."""

    key: bytes
    seen: set[bytes] = field(default_factory=set)  # extensions
    label: int | None = None
    has_image: bool = False


@dataclass(slots=True)
class _Dotted:
    """An image with a dot in its name; whether it is another kind of picture (x.seg.png) is decided at the end."""

    row: int
    record: _Record
    middle: bytes  # between the first dot and the last
    member: TarMember


class Records:
    """Sorts the members of one shard, which may come in any order.

    The key of a member is its name up to the first dot, as in WebDataset. A record is the members of one key; a second
    ``KEY.jpg`` begins another one. Its image is the first member whose name is the key and an extension of Pillow, in
    any letter case, or has no extension and the content of an image. Where a record has none, its images are those with
    more dots in their names (``frame.1.5.jpg``, label in ``frame.1.5.cls`` or ``frame.cls``), except kinds of pictures
    that other records have in addition to their image (``x.seg.png``).

    Args:
        labels: ``cls``, ``json:FIELD`` or ``none``, see :func:`unlabeled.data.sources.shards.shards`.
        path: of the shard, for errors.
    """

    def __init__(self, labels: str, path: str) -> None:
        self.labels, self.path, self.left_out, self.names = labels, path, LeftOut(), list[bytes]()
        self._suffix = {"cls": b"cls", "none": None}.get(labels, b"json")
        self._extensions = {extension[1:].encode() for extension in readable_extensions()}
        self._records: dict[bytes, _Record] = {}
        self._rows: list[tuple[TarMember, _Record]] = []
        self._dotted: list[_Dotted] = []
        self._labels: dict[bytes, int] = {}  # labels by dotted names, without the extension

    def add(self, member: TarMember, read: Read) -> None:
        """Takes the next member. Raises UserError for a label that is no class number."""
        folder, _, name = member.name.rpartition(b"/")
        if name.startswith(b"."):
            leave_out(self.left_out, "hidden members", member.name)
            return
        stem, _, extension = name.partition(b".")
        record, last = self._record(folder + b"/" + stem, extension), extension.rpartition(b".")[2].lower()
        if self._suffix is not None and last == self._suffix:
            label = _label(read(_LONGEST), self.labels, f"{self.path}/{shown_path(member.name)}")
            if b"." in extension:
                self._labels[member.name.rpartition(b".")[0]] = label
            else:
                record.label = label
        elif last in self._extensions and b"." in extension:
            self._dotted.append(_Dotted(len(self._rows), record, extension.rpartition(b".")[0], member))
            self._rows.append((member, record))
        elif last in self._extensions or (not extension and member.size and looks_like_image(read(_BEGINNING))):
            self._add_image(member, record)
        else:
            leave_out(self.left_out, _OTHER, member.name)

    def found(self) -> tuple[np.ndarray, list[bytes]]:
        """Returns offset, size and label (-1: none) of each image, int64 [n, 3], and the names, in shard order."""
        kinds = {dotted.middle for dotted in self._dotted if dotted.record.has_image}
        further = {each.row: each for each in self._dotted if each.record.has_image or each.middle in kinds}
        own = {each.row: each.member.name.rpartition(b".")[0] for each in self._dotted}
        rows, used = [], set[bytes]()
        for number, (member, record) in enumerate(self._rows):
            if number in further:
                leave_out(self.left_out, _FURTHER, member.name)
                continue
            label = self._labels.get(own[number]) if number in own else None
            used |= {own[number]} if label is not None else set()
            record.has_image = True
            label = record.label if label is None else label
            rows.append([member.offset, member.size, -1 if label is None else label])
            self.names.append(member.name)
        self._count_lone_labels(used)
        return np.array(rows, np.int64).reshape(-1, 3), self.names

    def _record(self, key: bytes, extension: bytes) -> _Record:
        record = self._records.get(key)
        if record is None or extension in record.seen:
            self._count_lone(record)
            record = self._records[key] = _Record(key)
        record.seen.add(extension)
        return record

    def _add_image(self, member: TarMember, record: _Record) -> None:
        if record.has_image:
            leave_out(self.left_out, _FURTHER, member.name)
            return
        record.has_image = True
        self._rows.append((member, record))

    def _count_lone(self, record: _Record | None) -> None:
        if record is not None and record.label is not None and not record.has_image:
            leave_out(self.left_out, "labels without an image", record.key.removeprefix(b"/"))

    def _count_lone_labels(self, used: set[bytes]) -> None:
        for record in self._records.values():
            self._count_lone(record)
        for name in self._labels.keys() - used:
            leave_out(self.left_out, "labels without an image", name)


def _label(content: bytes, labels: str, name: str) -> int:
    """Returns the class number in a member; -1 where its field is missing or null."""
    try:
        value = content.decode().strip() if labels == "cls" else parse_json(content).get(labels[5:])
        label = -1 if value is None else int(value)
        if value is not None and (isinstance(value, float | bool) or not 0 <= label < MAX_CLASSES):
            raise ValueError(f"{value} is outside 0..{MAX_CLASSES - 1}")
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{name}: no class number ({one_line(error)[:200]}): mend it, or give data.labels=none, or the field that "
            "has it"
        ) from error
    return label

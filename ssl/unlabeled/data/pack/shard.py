"""Writes one shard of a pack, and the record of what is in it; checks a shard against its record."""

import hashlib
import json
import tarfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from unlabeled.core.parsing import parse_json
from unlabeled.core.reading import open_regular, read_bytes
from unlabeled.core.writing import replacing, write_atomic
from unlabeled.data.pack.images import Encoding, encode, member_name
from unlabeled.data.source import CorruptImage, Source

_BLOCK, _PIECE = 512, 2**22  # bytes: of a tar file, and read at a time


@dataclass(frozen=True)
class ShardPlan:
    """What is to be in a shard: the images from ``first`` up to ``last`` of a split."""

    name: str  # of the file
    split: str
    first: int
    last: int


@dataclass(frozen=True)
class ShardRecord:
    """What is in a shard."""

    name: str
    split: str
    first: int
    last: int
    images: int
    bytes: int
    sha256: str
    seconds: float  # of the process that wrote it
    corrupt: list[str] = field(default_factory=list)  # name and reason of each image that is left out


def write_shard(
    plan: ShardPlan, source: Source, folder: str, out: Path, encoding: Encoding, quality: int
) -> ShardRecord:
    """Writes ``out/NAME`` whole or not at all, and then its record.

    Args:
        folder: the common folder of all names, which is cut off.
        encoding, quality: see :func:`unlabeled.data.pack.images.encode`.

    Raises:
        Unwritable: it cannot be written.
    """
    started, images, corrupt, path = time.perf_counter(), 0, list[str](), out / plan.name
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        for index in range(plan.first, plan.last):
            try:
                data = encode(source, index, encoding, quality)
            except CorruptImage as error:
                corrupt.append(str(error))
                continue
            name = member_name(source.name(index).removeprefix(folder), index, encoding)
            _add(file, name, data)
            if (label := int(source.labels[index])) >= 0:
                _add(file, f"{name.rpartition('.')[0]}.cls", str(label).encode())
            images += 1
        file.write(bytes(2 * _BLOCK))  # the mark of the end
    size, digest = path.stat().st_size, sha256_of(path)
    record = ShardRecord(
        **asdict(plan),
        images=images,
        bytes=size,
        sha256=digest,
        seconds=round(time.perf_counter() - started, 3),
        corrupt=corrupt,
    )
    write_atomic(record_path(out, plan.name), json.dumps(asdict(record)) + "\n")
    return record


def record_path(out: Path, name: str) -> Path:
    """Returns where the record of a shard is until the pack is complete."""
    return out / "records" / f"{name}.json"


def read_record(path: Path) -> ShardRecord | None:
    """Returns a record, or None where there is none that is whole."""
    try:
        return ShardRecord(**parse_json(read_bytes(path)))
    except (OSError, ValueError, TypeError):
        return None


def matches(record: ShardRecord, out: Path) -> bool:
    """Whether the shard has the size and the checksum of its record."""
    path = out / record.name
    try:
        return path.stat().st_size == record.bytes and sha256_of(path) == record.sha256
    except OSError:
        return False


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file. Raises OSError."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _add(file: IO[bytes], name: str, data: bytes) -> None:
    """Appends a member; its header has no time and no owner, so that equal images give equal shards."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    file.write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
    file.write(data)
    file.write(bytes(-len(data) % _BLOCK))

"""Packs a data set: shards by shards in worker processes, what a killed pack has written is kept."""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from unlabeled.core.parsing import parse_json
from unlabeled.core.writing import Unwritable, write_atomic
from unlabeled.data.decoding import channels_of
from unlabeled.data.fingerprint import fingerprint
from unlabeled.data.loaders import IgnoreSignals
from unlabeled.data.pack.images import Encoding
from unlabeled.data.pack.shard import ShardPlan, ShardRecord, matches, read_record, record_path, write_shard
from unlabeled.data.source import CorruptImage, Source, Splits, common_folder
from unlabeled.errors import UserError

REPORT, BEGUN, CHECKSUMS = "pack.json", "pack_begun.json", "SHA256SUMS"
_EVERY = 30.0  # seconds between two lines about the progress where there is no terminal


@dataclass(frozen=True)
class Packed:
    """What came of a pack."""

    records: list[ShardRecord]
    seconds: float  # of this call
    written: int  # shards of them that this call wrote
    damaged: list[str]  # shards that did not match their checksum, and were written again

    @property
    def images(self) -> int:
        return sum(record.images for record in self.records)

    @property
    def bytes(self) -> int:
        return sum(record.bytes for record in self.records)

    @property
    def corrupt(self) -> list[str]:
        return [line for record in self.records for line in record.corrupt]


def pack(
    splits: Splits,
    out: Path,
    encoding: Encoding,
    quality: int,
    shard_images: int,
    workers: int,
    log: Callable[[str], None] = print,
) -> Packed:
    """Writes every split of a data set as ``out/SPLIT-000000.tar``, …, which ``data=shards`` reads.

    Labels are in ``KEY.cls``, names of classes and the checksum of each shard in ``out/pack.json``, checksums also in
    ``out/SHA256SUMS``. Corrupt images are left out and listed. Called again after it was killed it keeps the shards
    that match their checksums and writes the others.

    Args:
        splits: decoded and resized as they are to be stored.
        out: a folder, new or of the same pack.
        encoding: ``jpeg``, of ``quality``; ``png`` or ``raw`` without loss.
        shard_images: images in a shard.
        workers: processes, each writes a shard at a time; 0: in this one.
        log: takes lines about the progress.

    Raises:
        UserError: the folder holds another pack, or it cannot be written, or no image can be decoded.
    """
    started, sources = time.monotonic(), _named(splits)
    _check(sources, out, _settings(sources, encoding, quality, shard_images))
    plans = [plan for name, source in sources.items() for plan in _plans(name, len(source), shard_images)]
    work = _Work(plans, sources, out, encoding, quality, _known(out))
    records, written, damaged = list[ShardRecord](), 0, list[str]()
    for number, (record, new, error) in enumerate(_with_progress(work, workers, log), 1):
        if error:
            raise Unwritable(f"{error}; the same command goes on from {number - 1} of {len(plans)} shards")
        records.append(record)
        written += new
        damaged += [record.name] if new and record.name in work.known else []
    if not any(record.images for record in records):
        reason = next((line for record in records for line in record.corrupt), "there is none")
        raise UserError(f"none of the images can be decoded ({reason}): point data.path=… at images")
    packed = Packed(records, round(time.monotonic() - started, 2), written, damaged)
    _finish(out, packed, splits, _settings(sources, encoding, quality, shard_images))
    return packed


def check_pack(out: Path) -> tuple[int, list[str]]:
    """Compares the shards of a pack with their checksums: how many there are, and the names of those that differ.

    Raises UserError where there is no pack, or it is not complete.
    """
    records = _known(out) if (out / REPORT).is_file() else {}
    if not records:
        raise UserError(f"out={out}: there is no {REPORT} in it: give the folder of a pack that is complete")
    return len(records), [name for name, record in records.items() if not matches(record, out)]


def _named(splits: Splits) -> dict[str, Source]:
    """The splits by a name that no pattern of another split matches."""
    return {
        name if name in ("train", "test") else f"other-{name.replace('/', '-')}": source
        for name, source in splits.every().items()
    }


def _plans(split: str, count: int, size: int) -> list[ShardPlan]:
    firsts = range(0, count, size)
    return [ShardPlan(f"{split}-{k:06d}.tar", split, first, min(first + size, count)) for k, first in enumerate(firsts)]


def _settings(sources: dict[str, Source], encoding: Encoding, quality: int, shard_images: int) -> dict[str, Any]:
    """What decides the bytes of a shard."""
    one = next(iter(sources.values()))
    return {
        "image_size": one.image_size,
        "square": one.square,
        "encoding": encoding,
        "quality": quality if encoding == "jpeg" else None,
        "shard_images": shard_images,
        "splits": {
            name: [len(source), fingerprint(source, moved=True) or _seen(source)] for name, source in sources.items()
        },
    }


def _seen(source: Source) -> str:
    """Hashes labels and some images of a source without files, so that two sets of one length are told apart."""
    digest = hashlib.sha256(source.labels.numpy().tobytes())
    for index in sorted({0, len(source) // 2, len(source) - 1} & {*range(len(source))}):
        with suppress(CorruptImage):
            digest.update(source.decode(index).numpy().tobytes())
    return digest.hexdigest()


def _check(sources: dict[str, Source], out: Path, settings: dict[str, Any]) -> None:
    """Raises UserError for images that a shard cannot hold, and where ``out`` holds something else."""
    channels = channels_of(next(iter(sources.values())))
    if channels != 3:
        raise UserError(f"data.channels={channels}: a pack holds images of 3 channels")
    begun = _read(out / REPORT) or _read(out / BEGUN)
    if begun is None:
        if any(out.glob("*.tar")):
            raise UserError(
                f"out={out}: there are tar files in it that no pack wrote; give another folder, or a new one"
            )
        write_atomic(out / BEGUN, json.dumps({"settings": settings}, indent=1) + "\n")
        return
    before = begun.get("settings", {})
    other = [key for key in settings if before.get(key) != settings[key]]
    if other:
        told = ", ".join(f"{key} ({before.get(key)})" if key != "splits" else "images" for key in other)
        raise UserError(f"out={out}: holds a pack with another {told}; give another out=…, or remove that folder")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = parse_json(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _known(out: Path) -> dict[str, ShardRecord]:
    """Records of the shards that were written, whether or not they are still whole."""
    found: dict[str, ShardRecord] = {}
    for values in (_read(out / REPORT) or {}).get("shards", []):
        with suppress(TypeError):
            record = ShardRecord(**values)
            found[record.name] = record
    for path in sorted((out / "records").glob("*.json")):
        if (own := read_record(path)) is not None:
            found[own.name] = own
    return found


class _Work(Dataset[tuple[ShardRecord | None, bool, str]]):
    """Each shard: its record, whether it was written now, and the line of an error."""

    def __init__(
        self,
        plans: list[ShardPlan],
        sources: dict[str, Source],
        out: Path,
        encoding: Encoding,
        quality: int,
        known: dict[str, ShardRecord],
    ) -> None:
        self.plans, self.sources, self.out, self.known = plans, sources, out, known
        self.folders = {name: common_folder(source) for name, source in sources.items()}
        self.encoding, self.quality = encoding, quality

    def __len__(self) -> int:
        return len(self.plans)

    def __getitem__(self, number: int) -> tuple[Any, bool, str]:
        plan = self.plans[number]
        record = self.known.get(plan.name)
        same = record is not None and (record.first, record.last) == (plan.first, plan.last)
        if record is not None and same and matches(record, self.out):
            return record, False, ""
        source, folder = self.sources[plan.split], self.folders[plan.split]
        try:
            return write_shard(plan, source, folder, self.out, self.encoding, self.quality), True, ""
        except Unwritable as error:
            return None, False, str(error)


def _with_progress(work: _Work, workers: int, log: Callable[[str], None]) -> Iterable[tuple[ShardRecord, bool, str]]:
    """Yields the results in order; a bar on a terminal, else a line from time to time."""
    workers = min(workers, len(work))
    loader: DataLoader[Any] = DataLoader(
        work,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=IgnoreSignals(),
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        generator=torch.Generator(),  # without it the workers' seeds are drawn from the global random state
    )
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(loader, "Packing", len(work), console=Console(stderr=True), transient=True)
        return
    said = time.monotonic()
    for number, each in enumerate(loader, 1):
        yield each
        if time.monotonic() - said > _EVERY:
            said = time.monotonic()
            log(f"{number} of {len(work)} shards")


def _finish(out: Path, packed: Packed, splits: Splits, settings: dict[str, Any]) -> None:
    """Writes the report, with the records of all shards, and the checksums; removes what a killed pack needs."""
    report = {
        "data": splits.description,
        "settings": settings,
        "classes": splits.train.classes,
        "images": packed.images,
        "bytes": packed.bytes,
        "seconds": packed.seconds,
        "corrupt": packed.corrupt,
        "shards": [asdict(record) for record in packed.records],
    }
    sums = "".join(f"{record.sha256}  {record.name}\n" for record in packed.records)
    write_atomic(out / CHECKSUMS, sums)
    write_atomic(out / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    for record in packed.records:
        record_path(out, record.name).unlink(missing_ok=True)
        for unfinished in out.glob(f".{record.name}.*.tmp"):  # of a pack that was killed
            unfinished.unlink(missing_ok=True)
    (out / BEGUN).unlink(missing_ok=True)
    shutil.rmtree(out / "records", ignore_errors=True)


def _as_is(found: Any) -> Any:
    return found

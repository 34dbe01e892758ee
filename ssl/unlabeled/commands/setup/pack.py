"""``unlabeled pack data=PATH out=FOLDER``: a data set once as tar shards of images that are decoded and resized."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from unlabeled.commands.build.run import build_splits
from unlabeled.commands.config import run_module
from unlabeled.data.pack.pack import Packed, check_pack, pack
from unlabeled.errors import UserError

NAMED = 5  # corrupt images in the output; pack.json has all


def pack_data(config: Any, resolved: dict[str, Any], log: Callable[[str], None] = print) -> Packed | None:
    """Packs, or with ``check=true`` compares a pack with its checksums.

    Args:
        config: as composed from ``conf/pack.yaml``.
        resolved: the same as plain values.
        log: takes lines.

    Raises:
        UserError: a mistake, or shards that do not match their checksums.
    """
    out = Path(resolved["out"]).expanduser()
    if resolved["check"]:
        _check(out, log)
        return None
    if resolved["image_size"] is not None:
        config.data.image_size = resolved["image_size"]
    splits = build_splits(config)
    encoding, quality, shard_images = (resolved[key] for key in ("encoding", "quality", "shard_images"))
    packed = pack(splits, out, encoding, quality, shard_images, resolved["num_workers"], log)
    _tell(out, packed, log)
    return packed


def _check(out: Path, log: Callable[[str], None]) -> None:
    count, damaged = check_pack(out)
    if damaged:
        raise UserError(
            f"out={out}: {len(damaged)} of {count} shards do not match their checksums ({', '.join(damaged[:NAMED])}); "
            "the command that packed them writes these again"
        )
    log(f"{out}: {count} shards, all match their checksums")


def _tell(out: Path, packed: Packed, log: Callable[[str], None]) -> None:
    if packed.damaged:
        log(f"{len(packed.damaged)} shards did not match their checksums and were written again: {packed.damaged[0]} …")
    for line in packed.corrupt[:NAMED]:
        log(f"corrupt, left out: {line}")
    new = "" if packed.written == len(packed.records) else f", {packed.written} of them now"
    log(
        f"{out}: {packed.images:,} images in {len(packed.records)} shards{new}, {packed.bytes / 1e6:,.1f} MB, "
        f"{packed.seconds:,.1f} s, {len(packed.corrupt)} corrupt images left out; unlabeled train data={out} reads it"
    )


if __name__ == "__main__":
    run_module("pack", pack_data)

"""Inspects a data set: ``unlabeled inspect data=…`` prints and writes inspect.json, .md, a picture.

Every image of both splits is decoded once, as training would decode it. But for the speed the report is a function of
the data and of ``limit`` and ``near_distance``; the number of workers does not show in it.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from unlabeled.commands.build.run import build_splits
from unlabeled.commands.config import run_module
from unlabeled.core.environment import versions
from unlabeled.core.writing import kept_anyway, save_picture, write_atomic
from unlabeled.data.inspect.data_summary import summarize_data
from unlabeled.data.inspect.decode_speed import decode_speed
from unlabeled.data.inspect.duplicates import (
    ExactDuplicates,
    ImageHashes,
    NearDuplicates,
    find_duplicates,
    find_equal,
    find_near,
)
from unlabeled.data.inspect.perceptual import Ints
from unlabeled.data.inspect.picture import draw_pairs
from unlabeled.data.inspect.survey import Survey, survey
from unlabeled.data.inspect.text import format_report
from unlabeled.data.source import Source, Splits
from unlabeled.errors import UserError

ASPECTS = {"up to 1:2": 0.5, "up to 3:4": 0.75, "up to 1:1": 1 - 1e-9, "1:1": 1.0, "up to 4:3": 4 / 3, "up to 2:1": 2.0}
WIDER = "wider"  # than the last of these; each ends at its width : height
MOST_DISTANCE = 11  # bits; beyond it most of what is found is chance, and the search takes long
NAMED = 1000  # of the images too plain to compare
PAIRS = 24  # in the picture


@dataclass
class InspectedSplit:
    """One split and what was seen of it."""

    name: str
    source: Source
    looked_at: Ints  # positions [n]
    survey: Survey

    def labels(self) -> Ints:
        """Of the images that could be decoded, [M]."""
        labels: Ints = self.source.labels.numpy()[self.survey.ids]
        return labels


def inspect_data(config: Any, resolved: dict[str, Any]) -> None:
    """Look, write and print.

    Args:
        config: as composed from ``conf/inspect.yaml``.
        resolved: the same as plain values.
    """
    _check(resolved)
    try:
        _inspect(build_splits(config), resolved, Path(resolved["out"]).expanduser())
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        raise SystemExit(130) from None


def _check(settings: dict[str, Any]) -> None:
    distance, limit = settings["near_distance"], settings["limit"]
    if settings["num_workers"] < 0:
        raise UserError(f"num_workers={settings['num_workers']}: must be at least 0, which decodes in this process")
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit}: must be at least 1, or null to look at all images")
    if distance is not None and not 0 <= distance <= MOST_DISTANCE:
        raise UserError(f"near_distance={distance}: must lie between 0 and {MOST_DISTANCE}, or be null")
    if not settings["images_per_second"] > 0:
        raise UserError(f"images_per_second={settings['images_per_second']}: must be greater than 0")


def _inspect(splits: Splits, settings: dict[str, Any], out: Path) -> None:
    started = time.monotonic()
    sources = {"train": splits.train} | ({} if splits.test is None else {"test": splits.test})
    for name in splits.others:
        print(f"data.test={name}: of several test sets the first is looked at; give each alone to look at it")
    seen = [_look(name, source, settings["limit"], settings["num_workers"]) for name, source in sources.items()]
    speed = {"looking_seconds": time.monotonic() - started} | decode_speed(
        seen[0].source, seen[0].survey.ids, settings["images_per_second"]
    )
    images = find_duplicates([split.survey for split in seen], [split.labels() for split in seen])
    exact, distance = find_equal(images), settings["near_distance"]
    near = None if distance is None else find_near(images, exact, distance)
    report = {
        "data": splits.description,
        "understood": summarize_data(splits),
        "left_out": splits.left_out,
        "damaged": splits.corrupt,
        "warnings": splits.warnings,
        "settings": {"limit": settings["limit"], "near_distance": distance},
        "splits": {split.name: describe_split(split) for split in seen},
        "duplicates": describe_duplicates(seen, images, exact, near),
        "normalisation": _normalisation(seen[0].survey),
        "speed": speed | {"seconds": time.monotonic() - started},
        "versions": versions(),
    }
    print(format_report(report, most=20))
    kept_anyway(out, lambda folder: _write(report, seen, near, folder))
    print(f"\n{out / 'inspect.md'} and inspect.json list everything")


def _write(report: dict[str, Any], seen: list[InspectedSplit], near: NearDuplicates | None, out: Path) -> None:
    write_atomic(out / "inspect.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_atomic(
        out / "inspect.md", format_report(report, most=200) + _picture(seen, near, out / "near_duplicates.png")
    )


def _look(name: str, source: Source, limit: int | None, workers: int) -> InspectedSplit:
    count = len(source) if limit is None else min(limit, len(source))
    positions = np.arange(count) * len(source) // count
    return InspectedSplit(name, source, positions, survey(source, positions, workers, f"Looking at {name}"))


def describe_split(split: InspectedSplit) -> dict[str, Any]:
    """Count, corrupt files, sizes, modes and classes of a split, as plain values."""
    source, seen = split.source, split.survey
    plain = seen.ids[seen.plain].tolist()
    return {
        "images": len(source),
        "looked_at": len(split.looked_at),
        "decoded": len(seen.ids),
        "corrupt": [{"index": index, "reason": reason} for index, reason in seen.corrupt.items()],
        "kinds": dict(sorted(seen.kinds.items(), key=lambda kind: (-kind[1], kind[0]))),
        **_sizes(seen, source.image_size),
        "stored_bytes": seen.stored_bytes,
        "decoded_bytes": seen.decoded_bytes,
        "plain": {"count": len(plain), "images": [source.name(index) for index in plain[:NAMED]]},
        "classes": class_counts(source.labels, source.classes),
    }


def _sizes(seen: Survey, image_size: int) -> dict[str, Any]:
    if not len(seen.sizes):
        return {"height": None, "width": None, "aspect": {}, "smaller": None, "image_size": image_size}
    height, width = seen.sizes.T
    bins = np.bincount(np.searchsorted(list(ASPECTS.values()), width / height), minlength=len(ASPECTS) + 1)
    return {
        "height": _spread(height),
        "width": _spread(width),
        "aspect": dict(zip([*ASPECTS, WIDER], bins.tolist(), strict=True)),
        "smaller": float((seen.sizes.min(1) < image_size).mean()),
        "image_size": image_size,
    }


def _spread(values: Any) -> dict[str, float]:
    return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}


def class_counts(labels: Tensor, names: list[str]) -> dict[str, Any] | None:
    """How many images each class has, those not looked at too; None where nothing is labelled."""
    if not names:
        return None
    counts = labels[labels >= 0].bincount(minlength=len(names)).numpy()
    present = counts[counts > 0]
    return {
        "labelled": int(counts.sum()),
        "unlabelled": int((labels < 0).sum()),
        "empty": [name for name, count in zip(names, counts, strict=True) if not count],
        **_spread(counts),
        "imbalance": float(present.max() / present.min()) if len(present) else None,  # of the classes not empty
        "counts": dict(zip(names, counts.tolist(), strict=True)),
    }


def describe_duplicates(
    seen: list[InspectedSplit], images: ImageHashes, exact: ExactDuplicates, near: NearDuplicates | None
) -> dict[str, Any]:
    """Groups of equal images and pairs of similar ones with names and labels, as plain values."""
    groups = zip(exact.groups, exact.conflicts, strict=True)
    return {
        "exact": {
            "repeated": exact.repeated,
            "conflicts": sum(exact.conflicts),
            "groups": [{"conflict": bad, "images": [_named(seen, k) for k in group]} for group, bad in groups],
        },
        "near": near
        and {
            "pairs": near.count,
            "test_images": near.test_images,
            "conflicts": near.conflicts,
            "listed": [_pair(seen, images.labels, *pair) for pair in near.pairs.tolist()],
        },
    }


def _pair(seen: list[InspectedSplit], labels: Ints, a: int, b: int, bits: int) -> dict[str, Any]:
    conflict = bool(labels[a] != labels[b] and min(labels[a], labels[b]) >= 0)
    return {"bits": bits, "conflict": conflict, "images": [_named(seen, a), _named(seen, b)]}


def _where(seen: list[InspectedSplit], k: int) -> tuple[InspectedSplit, int]:
    """Split and position of the k-th of all decoded images."""
    first = len(seen[0].survey.ids)
    split, row = (seen[0], k) if k < first else (seen[1], k - first)
    return split, int(split.survey.ids[row])


def _named(seen: list[InspectedSplit], k: int) -> dict[str, Any]:
    split, index = _where(seen, k)
    label = int(split.source.labels[index])
    return {
        "split": split.name,
        "index": index,
        "name": split.source.name(index),
        "class": split.source.classes[label] if label >= 0 else None,
    }


def _normalisation(seen: Survey) -> dict[str, Any]:
    mean, std = seen.mean_and_std()
    if not seen.pixels:
        return {"mean": None, "std": None, "pixels": 0}
    return {"mean": mean, "std": std, "pixels": seen.pixels}


def _picture(seen: list[InspectedSplit], near: NearDuplicates | None, path: Path) -> str:
    """Draw the first near duplicates, those between train and test before others; returns how markdown shows it."""
    path.unlink(missing_ok=True)  # of an earlier look
    if near is None or not len(near.pairs):
        return ""
    first = len(seen[0].survey.ids)
    across = (near.pairs[:, 0] < first) & (near.pairs[:, 1] >= first)
    pairs = near.pairs[np.argsort(~across, kind="stable")[:PAIRS]]
    images = [[split.source.decode(index) for split, index in (_where(seen, a), _where(seen, b))] for a, b, _ in pairs]
    save_picture(path, draw_pairs(images))
    return f"\n![the first near duplicates, those between train and test before others]({path.name})\n"


if __name__ == "__main__":
    run_module("inspect", inspect_data)

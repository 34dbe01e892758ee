"""Features and thumbnails of images, in one pass over the files, or thumbnails beside a table of features."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlabeled.core.escaping import escaped
from unlabeled.data.memory import ArraySource, decode_all
from unlabeled.data.source import Source
from unlabeled.errors import UserError
from unlabeled.evaluation.embedding.embeddings import Embeddings
from unlabeled.evaluation.embedding.progress import ImageProgress
from unlabeled.evaluation.embedding.stream import Embedder, Images
from unlabeled.evaluation.exploring.thumbnails import Thumbnails, thumbnail_size, thumbnails
from unlabeled.evaluation.features import Features, Transform, extract_each


@dataclass(frozen=True)
class Explored:
    """N images: what a network makes of them, and how they look."""

    embeddings: Embeddings
    thumbnails: Thumbnails  # uint8 [N, t, t, 3]
    total: int  # images of the data set, of which N were drawn
    ids: list[int]  # of each its position in its split


def look_at(embedder: Embedder, images: Images, most: int, seed: int, log: Callable[[str], None]) -> Explored:
    """Computes features and thumbnails of all images, or of ``most`` of them, drawn at random.

    Raises:
        UserError: a feature is not finite, or no image of a split can be decoded.
    """
    total, chosen = _drawn(images.sources, most, seed)
    side = thumbnail_size(min(total, most))
    rows: list[Features] = []
    small: list[Thumbnails] = []
    progress = ImageProgress(min(total, most), 0, log)
    view = partial(_with_thumbnails, embedder.view, small, side)
    kinds = list(dict.fromkeys(["last", embedder.kind]))
    parts, ids = [], list[int]()
    try:
        for split, source, positions in chosen:
            rows.clear()

            def found(features: Features) -> None:
                rows.append(replace(features, x=embedder.vectors(features), others={}))
                progress(len(features.ids))

            batches = _batches(images, source, positions)
            extract_each(embedder.network, batches, view, embedder.device, embedder.precision, kinds, found)
            if rows:
                parts.append(_named(split, source, rows))
            ids += [number for features in rows for number in features.ids.tolist()]
    finally:
        progress.close()
    if not parts:
        raise UserError("data: none of the images that were drawn can be decoded: mend the files that are listed")
    return Explored(_joined(parts, images.sources), np.concatenate(small), total, ids)


def _drawn(sources: dict[str, Source], most: int, seed: int) -> tuple[int, list[tuple[str, Source, Tensor]]]:
    """Returns the number of all images, and of each split those that are drawn, in order."""
    sizes = [len(source) for source in sources.values()]
    drawn = np.sort(np.random.default_rng(seed).permutation(sum(sizes))[:most])
    starts = np.cumsum([0, *sizes])
    found = []
    for number, (split, source) in enumerate(sources.items()):
        inside = drawn[(drawn >= starts[number]) & (drawn < starts[number + 1])] - starts[number]
        if len(inside):
            found.append((split, source, torch.from_numpy(inside)))
    return sum(sizes), found


def _batches(images: Images, source: Source, positions: Tensor) -> Any:
    decoded = decode_all(source, 0) if isinstance(source, ArraySource) else source  # which copies nothing
    return images.data.batches(decoded, positions, images.batch_size)


def _with_thumbnails(
    view: Transform, small: list[Thumbnails], side: int, images: Tensor, sizes: Tensor | None
) -> Tensor:
    small.append(thumbnails(images, sizes, side))
    return view(images, sizes)


def _named(split: str, source: Source, rows: Sequence[Features]) -> Embeddings:
    ids = torch.cat([features.ids for features in rows]).tolist()
    labels = np.array([int(source.labels[row]) for row in ids], np.int64)
    x = torch.cat([features.x for features in rows]).numpy()
    return Embeddings(x, [source.name(row) for row in ids], labels, [split] * len(ids), source.classes)


def _joined(parts: Sequence[Embeddings], sources: dict[str, Source]) -> Embeddings:
    classes = next((source.classes for source in sources.values() if source.classes), [])
    return Embeddings(
        np.concatenate([part.x for part in parts]),
        [name for part in parts for name in part.names],
        np.concatenate([part.labels for part in parts]),
        [split for part in parts for split in part.splits],
        classes,
    )


def look_beside(table: Embeddings, images: Images, most: int, seed: int, log: Callable[[str], None]) -> Explored:
    """Makes thumbnails of the images that a table of features is of, found by their names.

    Raises:
        UserError: an image of the table is not among them, or cannot be decoded.
    """
    drawn = np.sort(np.random.default_rng(seed).permutation(len(table))[:most])
    chosen = table.rows(drawn)
    side = thumbnail_size(len(chosen))
    made, ids = np.zeros((len(chosen), side, side, 3), np.uint8), [0] * len(chosen)
    progress = ImageProgress(len(chosen), 0, log)
    try:
        for source, wanted in _found(chosen, images.sources):
            for number, row in wanted.items():
                ids[row] = number
            for batch in _batches(images, source, torch.tensor(list(wanted))):
                rows = [wanted[number] for number in batch.ids.tolist()]
                made[rows] = thumbnails(batch.images, batch.sizes, side)
                progress(len(rows))
    finally:
        progress.close()
    return Explored(chosen, made, len(table), ids)


def _found(table: Embeddings, sources: dict[str, Source]) -> Iterator[tuple[Source, dict[int, int]]]:
    """Yields each source with position → row of the table; images of one name stand in the order of the data."""
    left: dict[str, list[int]] = {}
    for row, name in enumerate(table.names):
        left.setdefault(name, []).append(row)
    for source in sources.values():
        wanted = {number: left[name].pop(0) for number in range(len(source)) if left.get(name := source.name(number))}
        if wanted:
            yield source, wanted
    missing = [name for name, rows in left.items() if rows]
    if missing:
        raise UserError(
            f"embeddings: {len(missing):,} of {len(table):,} images are not in the data ({escaped(missing[0])}); give "
            "data=… that the table was made of"
        )

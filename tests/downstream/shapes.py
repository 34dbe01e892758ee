"""Images of coloured shapes on textured backgrounds with their label maps or boxes, made from a seed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

KINDS = ("disc", "square", "triangle")  # classes 1, 2, 3; the background is 0


def textured(draw: np.random.Generator, size: int) -> Image.Image:
    """A background of smooth and of fine noise."""
    coarse = Image.fromarray(draw.integers(40, 150, (6, 6, 3), np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    fine = draw.integers(-18, 19, (size, size, 3))
    return Image.fromarray((np.asarray(coarse, np.int64) + fine).clip(0, 255).astype(np.uint8))


def outline(kind: int, left: int, top: int, side: int) -> list[tuple[int, int]]:
    if kind == 1:
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        half = side / 2
        return [(round(left + half + half * np.cos(a)), round(top + half + half * np.sin(a))) for a in angles]
    if kind == 2:
        return [(left, top), (left + side, top), (left + side, top + side), (left, top + side)]
    return [(left + side // 2, top), (left + side, top + side), (left, top + side)]


def scene(seed: int, size: int = 64) -> tuple[Image.Image, Image.Image, list[tuple[int, list[tuple[int, int]]]]]:
    """An image, its label map, and the class and outline of each shape; a later shape hides an earlier one."""
    draw = np.random.default_rng(seed)
    image, labels = textured(draw, size), Image.new("L", (size, size), 0)
    shapes = []
    for _ in range(int(draw.integers(1, 4))):
        kind, side = int(draw.integers(1, 4)), int(draw.integers(size // 5, size // 2))
        left, top = (int(draw.integers(0, size - side)) for _ in range(2))
        colour = tuple(int(c) for c in draw.integers(0, 256, 3))
        points = outline(kind, left, top, side)
        ImageDraw.Draw(image).polygon(points, fill=colour)
        ImageDraw.Draw(labels).polygon(points, fill=kind)
        shapes.append((kind, points))
    return image, labels, shapes


def write_shapes(folder: Path, train: int, test: int, size: int = 64) -> Path:
    """Images and label maps as ``unlabeled segment`` reads them."""
    for split, first, count in (("train", 0, train), ("test", train, test)):
        for part in ("images", "masks"):
            (folder / split / part).mkdir(parents=True, exist_ok=True)
        for seed in range(first, first + count):
            image, labels, _ = scene(seed, size)
            image.save(folder / split / "images" / f"{seed:05}.png")
            labels.save(folder / split / "masks" / f"{seed:05}.png")
    (folder / "classes.txt").write_text("\n".join(("background", *KINDS)) + "\n")
    return folder


def write_coco(folder: Path, train: int, val: int, size: int = 128, masks: bool = True) -> Path:
    """Images and COCO's json as ``unlabeled detect`` reads them; categories 10, 20, 30.

    The box of a shape is that of what can be seen of it; its mask is given as run lengths where a later shape hides a
    part, else as a polygon.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for split, first, count in (("train", 0, train), ("val", train, val)):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for seed in range(first, first + count):
            image, _, shapes = scene(seed, size)
            image.save(folder / "images" / f"{seed:05}.png")
            images.append({"id": seed, "file_name": f"{seed:05}.png", "height": size, "width": size})
            for kind, points, seen in visible(shapes, size):
                row = {"id": len(annotations) + 1, "image_id": seed, "category_id": 10 * kind, "iscrowd": 0}
                annotations.append(row | as_coco(points, seen, masks))
        categories = [{"id": 10 * kind, "name": name} for kind, name in enumerate(KINDS, 1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def visible(shapes: list[tuple[int, list[tuple[int, int]]]], size: int) -> Iterator[tuple[int, Any, np.ndarray]]:
    """The class of each shape of which a quarter can be seen, its outline (none if a part is hidden), and its mask."""
    drawn = []
    for _, points in shapes:
        mask = Image.new("1", (size, size), 0)
        ImageDraw.Draw(mask).polygon(points, fill=1)
        drawn.append(np.asarray(mask))
    for place, (kind, points) in enumerate(shapes):
        hidden = np.zeros((size, size), bool) | np.any(drawn[place + 1 :], axis=0)
        seen = drawn[place] & ~hidden
        if seen.sum() * 4 >= drawn[place].sum():
            yield kind, None if (drawn[place] & hidden).any() else points, seen


def as_coco(points: Any, seen: np.ndarray, masks: bool) -> dict[str, Any]:
    """Box, area and mask of a shape."""
    rows, columns = (np.flatnonzero(seen.any(axis)) for axis in (1, 0))
    left, top = int(columns[0]), int(rows[0])
    row: dict[str, Any] = {"bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]}
    row["area"] = int(seen.sum())
    if masks and points is not None:
        row["segmentation"] = [[float(each) for point in points for each in point]]
    elif masks:
        row["segmentation"] = {"size": list(seen.shape), "counts": run_lengths(seen)}
    return row


def run_lengths(mask: np.ndarray) -> list[int]:
    """Pixels of columns: first of the background, then of the object, in turn."""
    flat = mask.T.flatten().astype(np.int64)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, len(flat)]).tolist()
    return [0, *runs] if flat[0] else runs

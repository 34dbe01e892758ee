"""Images of coloured shapes on textured backgrounds with their label maps, made from a seed."""

from pathlib import Path

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

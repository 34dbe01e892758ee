"""Masks of COCO annotations: polygons, and run lengths, plain or compressed. Each is checked before it is drawn.

Run lengths count pixels of columns, from the top left: first of the background, then of the object, in turn.
Compressed, each number is written in characters of five bits, and from the third on less the one two places before
(COCO's ``maskApi.c``).
"""

from importlib.util import find_spec
from typing import Any

import numpy as np

from unlabeled.errors import UserError

Runs = list[int]


def problem_of(given: Any, height: int, width: int) -> str | None:
    """Returns what is wrong with an annotation's ``segmentation``, None for a right one or none at all."""
    if given is None or given == []:
        return None
    if isinstance(given, list):
        return next((each for polygon in given if (each := _problem_of_polygon(polygon, height, width))), None)
    if not isinstance(given, dict) or not isinstance(given.get("counts"), str | list):
        return "its segmentation is neither polygons nor run lengths"
    if given.get("size") != [height, width]:
        return f"its run lengths are of an image of size {given.get('size')}, the image has {[height, width]}"
    runs = _runs(given["counts"])
    if runs is None or sum(runs) != height * width:
        return f"its run lengths do not count the {height * width:,} pixels of the image"
    return None


def _problem_of_polygon(given: Any, height: int, width: int) -> str | None:
    try:
        points = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        return "a polygon of it is no list of numbers"
    if points.ndim != 1 or len(points) < 6 or len(points) % 2:
        return f"a polygon of it has {points.size} numbers: at least 6 are needed, and an even number"
    most = 2 * max(height, width)  # what is drawn takes memory by the length of its border
    if not bool((np.abs(points) <= most).all()):
        return "a polygon of it is far outside the image"
    return None


def _runs(counts: str | list[Any]) -> Runs | None:
    """Returns the run lengths as numbers, None where they are none."""
    if isinstance(counts, str):
        return _uncompressed(counts)
    right = all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in counts)
    return counts if right else None


def _uncompressed(text: str) -> Runs | None:
    runs: Runs = []
    value = place = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or place > 8:
            return None
        value |= (bits & 31) << 5 * place
        place += 1
        if bits & 32:  # more characters of this number follow
            continue
        if bits & 16:  # it is negative
            value -= 1 << 5 * place
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        if runs[-1] < 0:
            return None
        value = place = 0
    return None if place else runs


def mask_of(given: Any, height: int, width: int) -> np.ndarray:
    """Returns uint8 [height, width], 1 inside, of a ``segmentation`` in which :func:`problem_of` finds nothing."""
    if isinstance(given, dict):
        runs = _runs(given["counts"])
        assert runs is not None
        values = np.arange(len(runs), dtype=np.uint8) % 2
        return np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)
    return _filled(given or [], height, width)


def _filled(polygons: list[Any], height: int, width: int) -> np.ndarray:
    """Fills polygons by pycocotools, on whose pixels COCO's numbers rest."""
    if not polygons:
        return np.zeros((height, width), np.uint8)
    tools = coco_masks()
    runs = tools.frPyObjects([[float(each) for each in polygon] for polygon in polygons], height, width)
    filled: np.ndarray = tools.decode(tools.merge(runs))
    return filled


def coco_masks() -> Any:
    """Returns ``pycocotools.mask``. Raises UserError where it is not installed."""
    require_pycocotools()
    from pycocotools import mask

    return mask


def require_pycocotools() -> None:
    """Raises UserError where pycocotools is not installed."""
    if find_spec("pycocotools") is None:
        raise UserError('pycocotools, which measures boxes and masks, is missing: pip install "unlabeled[detection]"')

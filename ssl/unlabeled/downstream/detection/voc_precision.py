"""Pascal VOC 2007's average precision of boxes, which tables of VOC07 report: eleven points of recall.

Everingham et al. 2010, The PASCAL Visual Object Classes Challenge, section 4.2. Official code: VOCdevkit
(VOCevaldet.m); detectron2 (evaluation/pascal_voc_evaluation.py), by which MoCo's table is made.
"""

from collections.abc import Sequence

import numpy as np

from unlabeled.downstream.detection.annotated.images import DetectionImages
from unlabeled.downstream.detection.average_precision import AveragePrecision, Detections

OVERLAPS = [percent / 100 for percent in range(50, 100, 5)]
POINTS = 11  # of recall: 0, 0.1, … 1


def voc_average_precision(images: DetectionImages, found: Sequence[Detections]) -> AveragePrecision:
    """Measures the boxes of all images, one element for each image and in their order.

    A detection belongs to the object of its class that it overlaps most, if their overlap is above the threshold. The
    surest one of an object is right, each further one is wrong, and one of a difficult object counts neither way; that
    it belongs to a difficult object keeps it from every other one, where COCO's rule looks for another.

    Args:
        images: with their objects; a difficult one is marked as a crowd.
        found: of each image.

    Returns:
        AP, AP50, AP75 and AP of each class in per cent; not a number for sizes, which VOC does not tell apart.
    """
    table = np.array([_of_class(images, found, label) for label in range(1, len(images.classes) + 1)])
    known = table[~np.isnan(table[:, 0])]
    means = known.mean(0) if len(known) else np.full(len(OVERLAPS), np.nan)
    none = float("nan")
    own = tuple(float(each) for each in table.mean(1))
    return AveragePrecision(float(means.mean()), float(means[0]), float(means[5]), none, none, none, own)


def _of_class(images: DetectionImages, found: Sequence[Detections], label: int) -> list[float]:
    """Returns a class's average precision at each overlap, per cent; not numbers where it has no object."""
    things = [[thing for thing in picture.things if thing.label == label] for picture in images.pictures]
    wanted = sum(not thing.crowd for own in things for thing in own)
    if not wanted:
        return [float("nan")] * len(OVERLAPS)
    nearest: list[tuple[float, float, tuple[int, int], bool]] = []  # of each detection: score, overlap, object, counts
    for image, (own, answer) in enumerate(zip(things, found, strict=True)):
        boxes = np.array([thing.box for thing in own]).reshape(-1, 4)
        for row in np.flatnonzero(answer.labels == label):
            overlaps = _overlaps(boxes, answer.boxes[row])
            at = int(overlaps.argmax()) if own else -1
            overlap = float(overlaps[at]) if own else -1.0
            nearest.append((float(answer.scores[row]), overlap, (image, at), not own or not own[at].crowd))
    nearest.sort(key=lambda each: -each[0])
    return [100 * eleven_points(_right(nearest, least), wanted) for least in OVERLAPS]


def _right(nearest: Sequence[tuple[float, float, tuple[int, int], bool]], least: float) -> np.ndarray:
    """Returns bool [N]: whether each detection that counts is right, the surest first."""
    taken: set[tuple[int, int]] = set()
    right = []
    for _, overlap, thing, counts in nearest:
        if overlap <= least:
            right.append(False)
        elif counts:
            right.append(thing not in taken)
            taken.add(thing)
    return np.array(right, bool)


def _overlaps(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Returns intersection over union of each box [N, 4] with one [4]."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    common = sides.clip(min=0).prod(1)
    whole = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - common
    overlaps: np.ndarray = common / whole.clip(min=np.finfo(float).tiny)
    return overlaps


def eleven_points(right: np.ndarray, wanted: int) -> float:
    """Returns the mean over eleven recalls of the best precision from there on.

    Args:
        right: bool [N], whether each detection that counts is right, the surest first.
        wanted: number of objects, at least 1.
    """
    hits = right.cumsum()
    precision = hits / np.arange(1, len(right) + 1)
    reached = [hits * (POINTS - 1) >= place * wanted for place in range(POINTS)]  # whole numbers: no rounding of 3/10
    return float(np.mean([precision[at].max(initial=0) for at in reached]))

"""Pascal VOC 2007's average precision: counted by hand, and equal to a plain loop over random boxes."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.downstream.detection.test_average_precision import found, split, thing
from unlabeled.downstream.detection.average_precision import detections
from unlabeled.downstream.detection.voc_precision import eleven_points, voc_average_precision


def test_eleven_points_are_the_best_precisions_from_each_recall_on() -> None:
    """Three of four objects are found: precision 1 up to recall 1/4, 2/3 up to 1/2, 3/5 up to 3/4, then 0."""
    right = np.array([True, False, True, False, True])
    assert eleven_points(right, 4) == pytest.approx((3 * 1 + 3 * 2 / 3 + 2 * 3 / 5) / 11)
    assert eleven_points(np.array([True] * 3 + [False] * 9), 10) == pytest.approx(4 / 11)  # 3/10 reaches 0.3
    assert eleven_points(np.array([], bool), 4) == 0


def test_vocs_average_precision_is_the_one_counted_by_hand() -> None:
    """Two objects; the surest box is right, the next is wrong, the third overlaps the second object by 0.64.

    At 0.5, 0.55 and 0.6 precision is 1 up to recall 1/2 (six points) and 2/3 up to 1 (five). At the others six points.
    """
    images = split([thing(0, 0, 50, 50), thing(60, 60, 70, 70)])
    answers = found(([0, 0, 50, 50], 0.9), ([0, 60, 10, 70], 0.8), ([60, 60, 68, 68], 0.7))
    measured = voc_average_precision(images, [answers])
    loose, strict = (6 + 5 * 2 / 3) / 11, 6 / 11
    assert measured.ap50 == pytest.approx(100 * loose)
    assert measured.ap75 == pytest.approx(100 * strict)
    assert measured.ap == pytest.approx(100 * (3 * loose + 7 * strict) / 10)
    assert [*measured.classes] == [pytest.approx(measured.ap)]
    assert math.isnan(measured.small)
    assert math.isnan(measured.large)


def test_a_difficult_object_counts_neither_way_and_a_second_box_of_an_object_is_wrong() -> None:
    images = split([thing(0, 0, 20, 20), thing(50, 50, 90, 90, crowd=True)])
    hard = ([50.0, 50, 90, 90], 0.9)
    right, again = ([0.0, 0, 20, 20], 0.8), ([0.0, 0, 20, 20], 0.95)
    assert voc_average_precision(images, [found(hard, right)]).ap == pytest.approx(100)
    assert voc_average_precision(images, [found(again, right)]).ap == pytest.approx(100)  # wrong after all recall
    missed = split([thing(0, 0, 20, 20), thing(60, 60, 70, 70)])
    twice = found(again, right, ([60, 60, 70, 70], 0.7))
    assert voc_average_precision(missed, [twice]).ap == pytest.approx(100 * (6 + 5 * 2 / 3) / 11)
    alone = split([thing(50, 50, 90, 90, crowd=True)])
    assert math.isnan(voc_average_precision(alone, [found(hard)]).ap)


def test_vocs_average_precision_equals_a_loop_over_boxes_written_from_the_rule() -> None:
    draw = torch.Generator().manual_seed(0)
    pictures, answers = [], []
    for _ in range(12):
        corners = torch.randint(0, 60, (4, 2), generator=draw)
        boxes = torch.cat([corners, corners + torch.randint(10, 40, (4, 2), generator=draw)], 1).double()
        labels, hard = torch.randint(1, 3, (4,), generator=draw), torch.rand(4, generator=draw) < 0.3
        rows = zip(boxes.tolist(), labels.tolist(), hard.tolist(), strict=True)
        pictures.append([thing(*box, label=label, crowd=crowd) for box, label, crowd in rows])
        again = torch.cat([boxes, boxes]) + torch.randint(-5, 6, (8, 4), generator=draw)
        answer = {"boxes": again, "labels": labels.repeat(2), "scores": torch.rand(8, generator=draw)}
        answers.append(detections(answer))
    images = split(*pictures, classes=2)
    measured = voc_average_precision(images, answers)
    literal = [[loop(images, answers, label, least / 100) for least in range(50, 100, 5)] for label in (1, 2)]
    assert measured.classes == pytest.approx([100 * sum(each) / 10 for each in literal])
    assert measured.ap50 == pytest.approx(50 * (literal[0][0] + literal[1][0]))
    assert measured.ap75 == pytest.approx(50 * (literal[0][5] + literal[1][5]))
    assert 5 < measured.ap < measured.ap50 < 100


def loop(images: Any, answers: Any, label: int, least: float) -> float:
    """VOCevaldet.m, step by step: each detection takes the object that it overlaps most."""
    every = []
    for image, answer in enumerate(answers):
        for box, own, score in zip(answer.boxes, answer.labels, answer.scores, strict=True):
            if own == label:
                every.append((score, image, box))
    every.sort(key=lambda each: -each[0])
    used, hits, misses, points = set(), 0, 0, []
    objects = sum(1 for each in images.pictures for one in each.things if one.label == label and not one.crowd)
    for _, image, (left, top, right, bottom) in every:
        best, which = -1.0, None
        for one in images.pictures[image].things:
            if one.label != label:
                continue
            a, b, c, d = one.box
            wide, high = min(right, c) - max(left, a), min(bottom, d) - max(top, b)
            common = wide * high if wide > 0 and high > 0 else 0.0
            overlap = common / ((right - left) * (bottom - top) + (c - a) * (d - b) - common)
            if overlap > best:
                best, which = overlap, one
        if which is not None and best > least:
            if which.crowd:
                continue
            if id(which) in used:
                misses += 1
            else:
                hits += 1
                used.add(id(which))
        else:
            misses += 1
        points.append((hits, hits / (hits + misses)))
    return (
        sum(
            max((precision for count, precision in points if 10 * count >= tenth * objects), default=0.0)
            for tenth in range(11)
        )
        / 11
    )

"""Every strategy chooses what a loop in float64 chooses, written from its paper."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from unlabeled.commands.checks.places import ASK_A_CLASSIFIER
from unlabeled.commands.keys import Strategy
from unlabeled.errors import UserError
from unlabeled.evaluation.selection.k_center import k_center_rows
from unlabeled.evaluation.selection.nearest import Ints
from unlabeled.evaluation.selection.strategies import NEED_LABELS, STRATEGIES, Candidates, choose, margins
from unlabeled.evaluation.selection.typicality import typical_rows
from unlabeled.evaluation.uncertainty.members import pool_members

LABELLED = np.array([31, 4, 17])


def members() -> Tensor:
    """Of five classifiers, 37 images and four classes, float64, [S, N, C]."""
    logits = 2 * torch.randn(5, 37, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return logits.log_softmax(dim=2)


def candidates(seed: int = 0, labelled: Ints = LABELLED) -> Candidates:
    x = np.random.default_rng(2).standard_normal((40, 5)).astype(np.float32)
    return Candidates(x / np.linalg.norm(x, axis=1, keepdims=True), labelled, pool_members(members()), seed)


def literal_scores(strategy: str) -> list[float]:
    found = []
    for image in range(37):
        p = [[math.exp(members()[s, image, c]) for c in range(4)] for s in range(5)]
        mean = [sum(p[s][c] for s in range(5)) / 5 for c in range(4)]
        total = -sum(value * math.log(value) for value in mean)
        first, second = sorted(mean, reverse=True)[:2]
        shared = -sum(value * math.log(value) for row in p for value in row) / 5
        found.append({"entropy": total, "margin": second - first, "mutual_information": total - shared}[strategy])
    return found


@pytest.mark.parametrize("strategy", NEED_LABELS)
def test_the_most_uncertain_images_are_those_of_a_literal_loop(strategy: str) -> None:
    scores = literal_scores(strategy)
    order = sorted(range(37), key=lambda image: -scores[image])
    unlabelled = [row for row in range(40) if row not in LABELLED]
    assert choose(strategy, candidates(), 37).tolist() == [unlabelled[image] for image in order]


def test_strategies_without_a_classifier_are_the_functions_of_their_papers_on_features_of_length_one() -> None:
    ours = candidates(seed=3)
    typical = typical_rows(ours.x, 6, LABELLED.tolist(), 3)
    assert choose("typical", ours, 6).tolist() == typical.tolist()
    assert choose("k_center", ours, 6).tolist() == k_center_rows(ours.x, 6, LABELLED.tolist())[0].tolist()


def test_random_draws_each_image_equally_often_and_none_twice() -> None:
    counts = np.zeros(40)
    for seed in range(400):
        drawn = choose("random", candidates(seed), 10)
        assert len({*drawn.tolist()}) == 10
        counts[drawn] += 1
    assert counts[LABELLED].sum() == 0
    others = np.delete(counts, LABELLED)
    assert abs(others - 400 * 10 / 37).max() < 5 * math.sqrt(400 * 10 / 37)


def test_equal_scores_come_in_random_order_as_files_may_be_sorted_by_class() -> None:
    alike = pool_members(torch.zeros(2, 37, 4).log_softmax(dim=2))
    first = choose("entropy", Candidates(candidates().x, LABELLED, alike, 0), 37)
    again = choose("entropy", Candidates(candidates().x, LABELLED, alike, 0), 37)
    other = choose("entropy", Candidates(candidates().x, LABELLED, alike, 1), 37)
    assert first.tolist() == again.tolist() != other.tolist()
    assert first.tolist() != sorted(first.tolist())


def test_margins_of_one_class_and_of_equal_classes() -> None:
    assert margins(torch.zeros(2, 1)).tolist() == [1, 1]
    assert margins(torch.full((1, 4), math.log(0.25))).tolist() == [0]


def test_more_images_than_are_left_are_refused() -> None:
    with pytest.raises(UserError, match="n=38: allowed: 1 to 37"):
        choose("margin", candidates(), 38)


def test_the_names_of_the_command_line_are_those_that_there_are() -> None:
    assert Strategy.__args__ == tuple(STRATEGIES)  # type: ignore[attr-defined]
    assert ASK_A_CLASSIFIER == NEED_LABELS

"""The loop of active learning: who sees which label, what a round measures, and what labels are saved."""

from functools import cache

import pytest
import torch

from unlabeled.evaluation.features import Features
from unlabeled.evaluation.probes.logistic import LogisticRegressionProbe
from unlabeled.evaluation.selection.classifier import LabelClassifier
from unlabeled.evaluation.selection.course import Course, Schedule, run_course
from unlabeled.evaluation.selection.oracle import Oracle
from unlabeled.evaluation.selection.savings import labels_needed, labels_saved, savings
from unlabeled.evaluation.selection.strategies import STRATEGIES
from unlabeled.evaluation.statistics import mean_over_seeds

SCHEDULE = Schedule(6, 4, 4)
CLASSIFIER = LabelClassifier([0.01, 1.0], 5.0, 0.2, 3, 0, 100)


@cache
def images(count: int, seed: int) -> Features:
    """Three overlapping clouds in five dimensions."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    x = 1.5 * torch.eye(3, 5)[labels] + torch.randn(count, 5, generator=generator)
    return Features(x, labels, torch.arange(count))


def course(strategy: str, oracle: Oracle | None = None) -> Course:
    return run_course(strategy, images(90, 0), images(60, 1), 3, CLASSIFIER, SCHEDULE, 7, oracle)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_strategy_sees_a_label_before_it_asks(strategy: str) -> None:
    truth, first = images(90, 0).labels, course(strategy)
    for done, count in enumerate(SCHEDULE.counts):
        known = torch.zeros(90, dtype=torch.bool)
        known[first.asked[:count]] = True
        lies = torch.where(known, truth, (truth + 1) % 3)  # every label that was not asked for is another one
        again = course(strategy, Oracle(lies))
        after = ([*SCHEDULE.counts, 0][done + 1]) or count
        assert again.asked[:after] == first.asked[:after]
        assert again.top1[: done + 1] == first.top1[: done + 1]
    assert len({*first.asked}) == len(first.asked) == SCHEDULE.counts[-1]


def test_the_pool_that_strategies_are_given_holds_no_label() -> None:
    class Looking(LabelClassifier):
        seen: list[Features]

        def score(self, labelled, test, num_classes):  # type: ignore[no-untyped-def]
            self.seen.append(labelled)
            return super().score(labelled, test, num_classes)

    looking, oracle = Looking([1.0], 5.0, 0.2, 3, 0, 100), Oracle(images(90, 0).labels)
    looking.seen = []
    run_course("margin", images(90, 0), images(60, 1), 3, looking, SCHEDULE, 7, oracle)
    for seen, count in zip(looking.seen, SCHEDULE.counts, strict=True):
        assert seen.ids.tolist() == oracle.asked[:count]
        assert torch.equal(seen.labels, images(90, 0).labels[seen.ids])


def test_a_round_measures_the_linear_probe_on_the_labels_so_far() -> None:
    found, pool = course("entropy"), images(90, 0)
    for count, top1, c in zip(found.counts, found.top1, found.c, strict=True):
        probe = LogisticRegressionProbe([0.01, 1.0], 0.2, 0, 100)
        (score,) = probe.fit_predict(pool.rows(torch.tensor(found.asked[:count])), images(60, 1), 3)
        assert (top1, c) == (score.top1, score.chosen["C"])


def test_all_strategies_but_typical_begin_with_the_images_of_random() -> None:
    random = course("random")
    for strategy in ("entropy", "margin", "mutual_information", "k_center"):
        assert course(strategy).asked[:6] == random.asked[:6]
        assert course(strategy).asked[6:10] != random.asked[6:10]


def test_one_label_of_each_class_and_labels_of_one_class_alone_are_enough_for_a_round() -> None:
    pool, test = images(90, 0), images(60, 1)
    singles = pool.rows(torch.stack([(pool.labels == label).nonzero()[0, 0] for label in range(3)]))
    assert CLASSIFIER.score(singles, test, 3).chosen["C"] == 5
    of_one = pool.rows((pool.labels == 1).nonzero().flatten()[:4])
    share = 100 * float((test.labels == 1).double().mean())
    assert CLASSIFIER.score(of_one, test, 3).top1 == pytest.approx(share)
    assert CLASSIFIER.pool(of_one, test.x, 1.0).scores["entropy"].abs().max() == 0


def test_a_label_is_told_once_and_written_down() -> None:
    oracle = Oracle(torch.tensor([5, 6, 7]))
    assert oracle.ask([2, 0]).tolist() == [7, 5]
    assert oracle.asked == [2, 0]
    for again in ([0], [1, 1]):
        with pytest.raises(ValueError, match="asked for twice"):
            oracle.ask(again)


def line(*top1: float, seed: int = 0, strategy: str = "margin") -> Course:
    return Course(strategy, seed, [10, 20, 30, 40], list(top1))


def test_labels_needed_are_read_off_the_line_between_two_rounds_after_the_last_fall_below() -> None:
    assert labels_needed(line(50, 60, 80, 90), 70) == 25
    assert labels_needed(line(50, 75, 65, 90), 70) == pytest.approx(32)  # a lucky second round does not count
    assert labels_needed(line(80, 90, 90, 95), 70) == 10


def test_labels_saved_are_those_before_randoms_last_and_negative_the_other_way_round() -> None:
    ours, random = line(50, 70, 80, 90), line(40, 50, 60, 75)
    assert labels_saved(ours, random) == 40 - 25
    assert labels_saved(random, ours) == -15
    assert labels_saved(random, random) == 0


def test_savings_are_paired_by_seed_and_their_intervals_are_those_of_student() -> None:
    ours = [line(50, 60, 70, 80), line(52, 62, 75, 85, seed=1)]
    random = [line(50, 55, 60, 70, strategy="random"), line(52, 60, 66, 75, seed=1, strategy="random")]
    found = savings(ours, random)
    assert found.saved == mean_over_seeds([10, 10])
    assert found.last_gain == mean_over_seeds([10, 10])
    assert found.gain == mean_over_seeds([25 / 4, 21 / 4])
    assert found.top1[1] == mean_over_seeds([60, 62])
    with pytest.raises(ValueError, match="other seeds"):
        savings(ours[:1], random[1:])


def test_random_that_got_to_the_same_accuracy_as_early_saves_and_costs_nothing() -> None:
    flat = line(50, 80, 80, 80)
    assert labels_saved(flat, flat) == 0
    assert labels_saved(line(50, 60, 70, 80), flat) == -20
    assert labels_saved(flat, line(50, 60, 70, 80)) == 20

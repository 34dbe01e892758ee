"""The transfer protocols against scikit-learn, and the table's ranks and tests against loops."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import binomtest  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from unlabeled.data.sources.published_sets import PER_CLASS, TOP1
from unlabeled.downstream.protocols import PENALTIES, Judged, few_shots, linear, nearest_neighbours
from unlabeled.downstream.transfer_report import as_latex, as_markdown
from unlabeled.downstream.transfer_table import TaskResult, TransferTable, headline
from unlabeled.downstream.vision_task import METRICS, VisionTask, few_of_each_class, vision_task
from unlabeled.evaluation.features import Features

CLASSES = ["a", "b", "c", "d"]


def features(count: int, seed: int) -> Features:
    """Four overlapping clouds of which the last has few images."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(torch.tensor([0.4, 0.3, 0.2, 0.1]), count, replacement=True, generator=draw)
    centres = 1.2 * torch.eye(4, 6)
    x = centres[labels] + torch.randn(count, 6, generator=draw) + 3.0
    return Features(x, labels, torch.arange(count))


@pytest.fixture(params=[TOP1, PER_CLASS])
def task(request: pytest.FixtureRequest) -> VisionTask:
    return vision_task("clouds", request.param, CLASSES, features(150, 0), features(80, 1), features(400, 2), 0)


def test_c_is_chosen_on_validation_and_the_classifier_fitted_on_both_is_scikit_learns(task: VisionTask) -> None:
    penalties = [1e-3, 1e-2, 1e-1, 1.0, 10.0]
    found = linear(task, penalties, max_iter=2000)
    measure = balanced_accuracy_score if task.metric == PER_CLASS else lambda y, p: float((y == p).mean())
    scores = []
    for c in penalties:
        fitted = LogisticRegression(C=c, tol=1e-10, max_iter=5000).fit(task.train.x.double(), task.train.labels)
        scores.append(100 * measure(task.validation.labels.numpy(), fitted.predict(task.validation.x.double())))
    assert list(found.facts["validation"].values()) == pytest.approx(scores, abs=1e-3)
    best = penalties[int(np.argmax(scores))]
    assert found.facts["C"] == best
    both = task.everything
    final = LogisticRegression(C=best, tol=1e-10, max_iter=5000).fit(both.x.double(), both.labels)
    assert found.predictions is not None
    assert found.predictions.tolist() == final.predict(task.test.x.double()).tolist()
    assert found.value == pytest.approx(100 * measure(task.test.labels.numpy(), found.predictions.numpy()))


def test_there_are_45_values_of_c_from_1e_6_to_1e5() -> None:
    assert len(PENALTIES) == 45
    assert PENALTIES[0] == pytest.approx(1e-6)
    assert PENALTIES[-1] == pytest.approx(1e5)
    assert np.allclose(np.diff(np.log10(PENALTIES)), 11 / 44)


def test_few_images_are_drawn_of_each_class_and_other_seeds_draw_others(task: VisionTask) -> None:
    labels = torch.tensor([0] * 9 + [1] * 2 + [2] * 5)
    rows = few_of_each_class(labels, 3, seed=4)
    assert labels[rows].tolist() == [0] * 3 + [1] * 2 + [2] * 3
    assert rows.tolist() == few_of_each_class(labels, 3, seed=4).tolist()
    assert len({tuple(few_of_each_class(labels, 3, seed=each).tolist()) for each in range(9)}) > 3
    found = few_shots(task, 4, draws=3, c=10.0, max_iter=500, seed=0)
    assert found.value == pytest.approx(np.mean(found.draws))
    scale = task.train.x.double().norm(dim=1).mean()
    few = task.train.rows(few_of_each_class(task.train.labels, 4, seed=1))
    fitted = LogisticRegression(C=10.0, tol=1e-10, max_iter=5000).fit(few.x.double() / scale, few.labels)
    predictions = torch.from_numpy(fitted.predict(task.test.x.double() / scale))
    assert found.draws[1] == pytest.approx(task.measure(predictions, task.test.labels))


def test_neighbours_are_those_of_train_and_validation_together(task: VisionTask) -> None:
    found = nearest_neighbours(task, k=5, temperature=0.07)
    bank, queries = (torch.nn.functional.normalize(each.x.double(), dim=1) for each in (task.everything, task.test))
    near, rows = (queries @ bank.T).topk(5)
    votes = torch.zeros(len(queries), 4, dtype=torch.float64)
    votes.scatter_add_(1, task.everything.labels[rows], (near / 0.07).exp())
    assert found.predictions is not None
    assert (found.predictions == votes.argmax(dim=1)).float().mean() > 0.995  # float32 orders a few ties otherwise
    assert found.value == pytest.approx(task.measure(found.predictions, task.test.labels))
    neighbours = KNeighborsClassifier(
        5, metric="cosine", algorithm="brute", weights=lambda far: np.exp((1 - far) / 0.07)
    )
    theirs = neighbours.fit(task.everything.x.double(), task.everything.labels).predict(task.test.x.double())
    assert (found.predictions.numpy() == theirs).mean() > 0.995


@pytest.mark.parametrize(("metric", "theirs"), [(TOP1, accuracy_score), (PER_CLASS, balanced_accuracy_score)])
def test_the_metrics_of_a_data_set_are_scikit_learns(metric: str, theirs: Callable[..., float]) -> None:
    labels, predictions = (features(300, seed).labels for seed in (5, 6))
    assert METRICS[metric](predictions, labels) == pytest.approx(100 * theirs(labels, predictions))


def test_without_a_published_validation_split_a_fifth_of_each_class_is_held_out() -> None:
    train = features(200, 3)
    task = vision_task("clouds", TOP1, CLASSES, train, None, features(50, 4), seed=0)
    assert not task.published
    counts = train.labels.bincount()
    assert task.validation.labels.bincount().tolist() == [round(0.2 * int(n)) for n in counts]
    assert sorted([*task.train.ids.tolist(), *task.validation.ids.tolist()]) == list(range(200))


def made_table() -> TransferTable:
    """Two data sets of 200 images; the first network is right where the other is wrong on many of the first set."""
    labels = torch.zeros(200, dtype=torch.long)
    right = {"ours": (190, 150), "theirs": (120, 152)}
    tasks = []
    for place, name in enumerate(("sharks", "rays & co")):
        judged = {}
        for network, counts in right.items():
            predictions = (torch.arange(200) >= counts[place]).long()
            draws = [50.0 + place, 52.0 + place]
            judged[network] = [
                Judged("linear", counts[place] / 2, predictions),
                Judged("1 a class", 51.0 + place, None, draws),
                Judged("2 a class", 61.0 + place, None, draws),
            ]
        facts = {"description": "d", "classes": 2, "train": 9, "validation": 2, "test": 200}
        tasks.append(TaskResult(name, TOP1, facts | {"published_validation": False}, labels, judged))
    return TransferTable(["ours", "theirs"], [*tasks, TaskResult("lost", problem="lost is not in data.root=x")])


def test_mean_rank_wins_and_losses_are_counted_by_the_paired_test() -> None:
    ours, theirs = made_table().summaries("linear")
    assert (ours.mean, theirs.mean) == (85.0, 68.0)
    assert (ours.rank, theirs.rank) == (1.5, 1.5)
    assert binomtest(70, 70).pvalue * 2 < 0.05 < binomtest(0, 2).pvalue
    assert (theirs.wins, theirs.losses) == (1, 0)
    assert made_table().summaries("1 a class")[1].rank == 1.5  # equals share the mean of their ranks
    assert made_table().summaries("1 a class")[1].wins is None


def test_the_tables_have_every_number_and_name_what_could_not_be_had() -> None:
    table = made_table()
    assert headline(table) == (
        "ours has 85.00 % on average over 2 data sets, by linear probes; it is surely better than theirs (68.00 %) "
        "on 1 and worse on 0. 1 could not be had."
    )
    text = as_markdown(table)
    assert "| sharks | top-1 | 95.00* | 60.00 |" in text
    assert "| mean |  | 85.00* | 68.00 |" in text
    assert "| linear | theirs | 1 | 0 | +17.00 |" in text
    assert "| lost | lost is not in data.root=x |" in text
    assert r"ours & 95.0 & 75.0 & 85.0 & 1.50 \\" in as_latex(table)
    assert r" & sharks & rays \& co & mean & rank \\" in as_latex(table)
    nothing = TransferTable(["ours"], [TaskResult("lost", problem="gone")])
    assert "None of the data sets could be had" in as_markdown(nothing)
    assert as_latex(nothing).startswith("%")

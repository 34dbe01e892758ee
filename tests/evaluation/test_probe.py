import pytest
import torch
from torch import Tensor

from unlabeled.evaluation.evaluate_probes import chance_rows, evaluate_probes
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.probe import MEAN_PER_CLASS, imbalanced, mean_per_class, notes_on_labels
from unlabeled.evaluation.probes.knn import KNN
from unlabeled.evaluation.reporting.results_table import accuracy_grid, accuracy_table, other_metrics


def labels(*counts: int) -> Tensor:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def test_each_class_counts_alike_and_those_without_images_do_not() -> None:
    truth = labels(6, 0, 2)
    predictions = torch.tensor([0, 0, 0, 1, 1, 1, 2, 0])
    assert mean_per_class(predictions, truth) == pytest.approx(100 * (3 / 6 + 1 / 2) / 2)


@pytest.mark.parametrize(("counts", "expected"), [((4, 2), False), ((5, 2), True), ((5, 0, 5), False), ((7,), False)])
def test_more_than_two_to_one_is_imbalanced(counts: tuple[int, ...], expected: bool) -> None:
    assert imbalanced(labels(*counts)) == expected


class Table(torch.nn.Module):
    """A network that is not asked."""


def judged(test: Tensor, probes: dict[str, object], classes: int) -> list:  # type: ignore[type-arg]
    train = labels(*[20] * classes)
    generator = torch.Generator().manual_seed(0)
    of = {"train": train, "test": test}

    def look(network: torch.nn.Module, split: str, kinds: object) -> Features:
        y = of[split]
        x = torch.eye(classes)[y] + torch.randn(len(y), classes, generator=generator)
        return Features(x, y, torch.arange(len(y)))

    said: list[str] = []
    rows = evaluate_probes(Table(), None, look, probes, classes, raw_pixels=False, log=said.append)  # type: ignore[arg-type]
    return [rows, said]


def test_the_mean_over_classes_stands_beside_top1_of_every_probe_and_of_chance_where_classes_are_imbalanced() -> None:
    test = labels(30, 10, 10)
    rows, _ = judged(test, {"knn": KNN([5], 0.1)}, 3)
    assert [row.features for row in rows] == ["pretrained", "chance", "chance"]
    assert rows[0].metrics[MEAN_PER_CLASS] == pytest.approx(mean_per_class(rows[0].predictions, test))
    assert rows[0].metrics[MEAN_PER_CLASS] != pytest.approx(rows[0].top1)
    assert [row.metrics[MEAN_PER_CLASS] for row in rows[1:]] == [pytest.approx(100 / 3), pytest.approx(100 / 3)]
    _, lines = accuracy_grid(rows)
    assert [line.name for line in lines][-3:] == [
        "pretrained, mean over classes",
        "chance: largest class of test, mean over classes",
        "chance: uniform guess, mean over classes",
    ]
    assert f"{rows[0].metrics[MEAN_PER_CLASS]:.2f}" in accuracy_table(rows)
    assert not [title for usual in (True, False) for title in other_metrics(rows, usual).titles if "per class" in title]


def test_where_classes_are_alike_nothing_is_added() -> None:
    rows, said = judged(labels(10, 12, 20), {"knn": KNN([5], 0.1)}, 3)
    assert [MEAN_PER_CLASS in row.metrics for row in rows] == [False] * 3
    assert "mean over classes" not in accuracy_table(rows)
    assert not [line for line in said if "class" in line]
    assert chance_rows(labels(4, 4), 2)[0].metrics == {}


def test_one_class_alone_and_classes_without_images_are_said() -> None:
    one = "All 4 labelled train images are of one class, dog: there is nothing to tell apart."
    assert notes_on_labels(torch.tensor([1, 1, -1, 1, 1]), ["cat", "dog"], "train") == [one]
    gaps = "5 of 8 classes have no test image: 1, 2, 3, 5, 6."
    assert notes_on_labels(torch.tensor([0, 4, 7]), 8, "test") == [gaps]
    many = "9 of 12 classes have no test image: 1, 2, 3, 5, 6, …."
    assert notes_on_labels(torch.tensor([0, 4, 7]), 12, "test") == [many]
    assert notes_on_labels(torch.tensor([0, 1]), 2, "train") == []
    assert notes_on_labels(torch.tensor([-1]), 2, "train") == []
    rows, said = judged(labels(10), {"knn": KNN([5], 0.1)}, 2)
    note = "All 10 labelled test images are of one class, 0: there is nothing to tell apart."
    assert note in said
    assert [note in row.notes for row in rows] == [True, False, False]  # chance needs no doubt

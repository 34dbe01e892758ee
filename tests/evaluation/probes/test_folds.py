"""Cross-validation classifies each image once, by what was fitted on the others."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import unlabeled
from tests.commands.test_predict import CHOSEN, CPU, NETWORK
from tests.small import composed
from unlabeled.commands.build.network import build_backbone
from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.probes.folds import CrossValidated, assign_folds
from unlabeled.evaluation.probes.knn import KNN
from unlabeled.evaluation.probes.logistic import LogisticRegressionProbe
from unlabeled.evaluation.statistics import accuracy_interval


def features(n: int = 60) -> Features:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    return Features(torch.randn(n, 4, generator=generator) + torch.eye(4)[labels], labels, torch.arange(n))


def nearest_other(x: Tensor, labels: Tensor, fold: Tensor, row: int) -> int:
    """The label of the most similar image of another fold, by a loop."""
    unit = x.double() / x.double().norm(dim=1, keepdim=True)
    others = [other for other in range(len(x)) if fold[other] != fold[row]]
    return int(labels[max(others, key=lambda other: float(unit[row] @ unit[other]))])


def test_each_image_gets_the_class_of_its_nearest_image_in_another_fold() -> None:
    train = features()
    (score,) = CrossValidated(KNN([1], 0.1), 5, 0).fit_predict(train, train, 3)
    fold = assign_folds(train.labels, 5, 0)
    wanted = torch.tensor([nearest_other(train.x, train.labels, fold, row) for row in range(60)])
    assert score.predictions is not None
    assert torch.equal(score.predictions, wanted)
    assert score.protocol == "knn/cosine-exp/k=1/T=0.1/5 folds"
    assert score.top1 == pytest.approx(100 * float((wanted == train.labels).double().mean()))
    assert score.n_train == 48
    assert sum(score.chosen["fold_top1"]) / 5 == pytest.approx(score.top1)
    assert score.notes[0].startswith("Cross-validated: each of 60 images is classified once")


def test_folds_have_equal_parts_of_each_class_and_depend_on_the_seed() -> None:
    labels = torch.tensor([0] * 11 + [1] * 7 + [2] * 5)
    fold = assign_folds(labels, 4, 0)
    for label in range(3):
        counts = fold[labels == label].bincount(minlength=4)
        assert int(counts.max() - counts.min()) <= 1
    whole = fold.bincount(minlength=4)
    assert int(whole.max() - whole.min()) <= 1
    assert torch.equal(fold, assign_folds(labels, 4, 0))
    assert not torch.equal(fold, assign_folds(labels, 4, 1))


def test_the_head_that_is_kept_is_fitted_on_all_images() -> None:
    train, probe = features(), LogisticRegressionProbe([0.1], 0.1, 0, 100)
    (score,) = CrossValidated(probe, 5, 0).fit_predict(train, train, 3)
    (whole,) = probe.fit_predict(train, train, 3)
    assert score.head is not None
    assert whole.head is not None
    assert torch.equal(score.head.tensors["weight"], whole.head.tensors["weight"])


@pytest.fixture
def hundred(tmp_path: Path) -> Path:
    """A hundred images in two folders, without a test split: noise that is brighter in one of them."""
    generator = torch.Generator().manual_seed(1)
    for number in range(100):
        pixels = torch.randint(0, 200, (8, 8, 3), generator=generator) + 55 * (number % 2)
        folder = tmp_path / "photos" / ("bright" if number % 2 else "dark")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{number}.png")
    return tmp_path / "photos"


def test_a_hundred_images_without_a_test_split_have_an_accuracy_with_an_interval(hundred: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save(build_backbone(composed(*CHOSEN).backbone, 0).state_dict(), file)
    given: dict[str, Any] = {"cache_gib": 0, **NETWORK, **CPU}
    with pytest.raises(UserError, match="no test split to evaluate on; give folds=5"):
        unlabeled.evaluate(file, data=hundred, probe="quick", **given)
    flat = next(hundred.iterdir())
    with pytest.raises(UserError, match=rf"^data\.path={flat}: these images have no labels, which an evaluation needs"):
        unlabeled.evaluate(file, data=flat, probe="few_labels", **given)
    results = unlabeled.evaluate(file, data=hundred, probe=["knn", "linear", "few_labels"], folds=5, **given)
    row = results["linear"]
    assert (row.protocol, row.n_train, row.n_test) == ("linear/cached-lbfgs-v1/5 folds", 80, 100)
    assert row.interval == accuracy_interval(round(row.top1), 100)
    assert results.row("linear", "raw pixels").top1 > 90  # the mean tells the two apart
    assert [each.protocol for each in results.rows if "per class" in each.protocol] == []
    found = unlabeled.predict(file, hundred, **NETWORK, **CPU)
    assert found.classes == ["bright", "dark"]
    with pytest.raises(UserError, match="folds=5: these data have a test split"):
        unlabeled.evaluate(file, data="digits", folds=5, probe="quick", **given)


@pytest.mark.parametrize("n", range(20, 32))
def test_every_fold_has_the_same_k_which_the_smallest_allows(n: int) -> None:
    train = features(n)
    scores = CrossValidated(KNN([20, 200], 0.1), 5, 0).fit_predict(train, train, 3)
    least = n - -(-n // 5)
    expected = sorted({min(20, least), min(200, least)})
    assert [score.chosen["of_each_fold"] and score.protocol for score in scores] == [
        f"knn/cosine-exp/k={k}/T=0.1/5 folds" for k in expected
    ]

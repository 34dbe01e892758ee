"""Recall at k, mAP and mAP at R against literal loops and scikit-learn; top-5 against scikit-learn."""

import pytest
import torch
from sklearn.metrics import average_precision_score, top_k_accuracy_score
from torch.nn.functional import normalize

from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.probe import Score, add_metrics, top5
from unlabeled.evaluation.probes import retrieval
from unlabeled.evaluation.probes.retrieval import Retrieval, rank_metrics

AT = [1, 3, 10]


def data(n: int, classes: int, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, 6, generator=generator)
    return Features(centres[labels] + 1.5 * torch.randn(n, 6, generator=generator), labels, torch.arange(n))


def literal(queries: Features, gallery: Features) -> dict[str, float]:
    """Every query alone, in float64, from the definitions."""
    found: dict[str, list[float]] = {name: [] for name in (*(f"recall_at_{k}" for k in AT), "map", "map_at_r")}
    rows = normalize(gallery.x.double())
    for query, label in zip(normalize(queries.x.double()), queries.labels, strict=True):
        order = sorted(range(len(rows)), key=lambda row: -float(query @ rows[row]))
        hits = [bool(gallery.labels[row] == label) for row in order]
        for k in AT:
            found[f"recall_at_{k}"].append(float(any(hits[:k])))
        at = [sum(hits[: i + 1]) / (i + 1) if hit else 0.0 for i, hit in enumerate(hits)]
        found["map"].append(sum(at) / max(1, sum(hits)))
        found["map_at_r"].append(sum(at[: sum(hits)]) / max(1, sum(hits)))
    return {name: 100 * sum(values) / len(values) for name, values in found.items()}


@pytest.mark.parametrize("chunk", [1, 500, 2**24])
def test_every_number_is_that_of_a_literal_loop_however_the_queries_are_divided(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "CHUNK", chunk)
    train, test = data(110, 7), data(60, 7)
    test.x += torch.randn(60, 6, generator=torch.Generator().manual_seed(5))
    (score,) = Retrieval(AT, 10_000).fit_predict(train, test, 7)
    expected = literal(test, train)
    assert score.top1 == pytest.approx(expected.pop("recall_at_1"))
    assert score.metrics == pytest.approx(expected)
    assert score.predictions is not None
    assert float((score.predictions == test.labels).double().mean()) * 100 == pytest.approx(score.top1)
    assert (score.protocol, score.notes) == ("retrieval/cosine/test-in-train", [])


def test_average_precision_is_that_of_scikit_learn() -> None:
    train, test = data(80, 4, seed=3), data(30, 4, seed=4)
    gallery, queries = normalize(train.x.double()), normalize(test.x.double())
    each = [
        average_precision_score((train.labels == label).numpy(), (gallery @ query).numpy())
        for query, label in zip(queries, test.labels, strict=True)
    ]
    found = rank_metrics(queries, test.labels, gallery, train.labels)["map"]
    assert found == pytest.approx(100 * sum(each) / 30)


def test_an_image_whose_class_has_no_train_image_finds_nothing_and_is_counted() -> None:
    train, test = data(40, 3), data(20, 3, seed=1)
    test.labels[5] = 3
    (score,) = Retrieval(AT, 10_000).fit_predict(train, test, 4)
    assert score.notes == ["The classes of 1 test images have no train image: they find nothing."]
    expected = literal(test, train)
    assert score.top1 == pytest.approx(expected.pop("recall_at_1"))
    assert score.metrics == pytest.approx(expected)


def test_rankings_of_fewer_queries_are_spread_evenly_and_counted() -> None:
    train, test = data(50, 3), data(100, 3, seed=1)
    (score,) = Retrieval([1], 30).fit_predict(train, test, 3)
    assert score.chosen == {"chosen_on": "nothing", "queries": 100, "queries_of_map": 25}
    some = slice(None, None, 4)
    of_25 = rank_metrics(normalize(test.x[some]), test.labels[some], normalize(train.x), train.labels)
    assert score.metrics == pytest.approx(of_25)


def test_features_of_a_diverged_network_are_refused() -> None:
    test = data(20, 2)
    test.x[3, 2] = torch.nan
    with pytest.raises(UserError, match=r"probe\.retrieval"):
        Retrieval([1], 10).fit_predict(test, test, 2)


def test_top_5_is_that_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(1)
    scores, labels = torch.randn(300, 25, generator=generator), torch.randint(25, (300,), generator=generator)
    expected = top_k_accuracy_score(labels.numpy(), scores.numpy(), k=5, labels=range(25))
    assert top5(scores.log_softmax(dim=1), labels) == pytest.approx(100 * expected)


def test_of_equal_classes_the_first_five_count_and_one_without_probability_never_does() -> None:
    equal = torch.zeros(8, 30)
    assert top5(equal, torch.arange(8)) == pytest.approx(100 * 5 / 8)
    votes = torch.full((2, 30), -torch.inf)
    votes[:, 7] = 0.0
    assert top5(votes, torch.tensor([7, 0])) == 50


@pytest.mark.parametrize(("classes", "expected"), [(19, []), (20, ["top5"])])
def test_top_5_is_given_from_20_classes_on(classes: int, expected: list[str]) -> None:
    labels = torch.arange(classes)
    score = Score("linear", 0.0, predictions=labels, log_probabilities=torch.eye(classes).log())
    add_metrics(score, labels)
    assert [*score.metrics] == expected

"""Which labels are used, and that no other is; means and deviations over draws."""

import hashlib
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from unlabeled.data.labels import LabelSelection
from unlabeled.data.memory import ArraySource
from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.probe import Score
from unlabeled.evaluation.probes.few_labels import FewLabels
from unlabeled.evaluation.probes.knn import KNN
from unlabeled.evaluation.probes.logistic import LogisticRegressionProbe
from unlabeled.evaluation.probes.paws_nn import AllSupports

CONF = Path(__file__).parents[3] / "conf"


def data(n: int, seed: int, classes: int = 4) -> Features:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 6, generator=torch.Generator().manual_seed(99))
    x = centres[torch.arange(n) % classes] + torch.randn(n, 6, generator=generator)
    return Features(x, torch.arange(n) % classes, torch.arange(n))


def source_of(features: Features) -> ArraySource:
    images = torch.zeros(len(features.labels), 3, 1, 1, dtype=torch.uint8)
    return ArraySource(images, features.labels, list("abcd"), "made up")


def path(key: str = "k") -> LogisticRegressionProbe:
    return LogisticRegressionProbe([0.01, 0.1, 1.0], 0.2, 0, 1000)


class Seen:
    """A classifier that keeps what it was given."""

    needs = 1

    def __init__(self) -> None:
        self.given: list[Features] = []

    def fit_predict(self, train: Features, test: Features, num_classes: int) -> list[Score]:
        self.given.append(train)
        return [Score("seen", 50.0 + len(self.given), metrics={"nll": float(len(self.given))})]


def prepared(probe: FewLabels, train: Features) -> FewLabels:
    probe.prepare(source_of(train))
    return probe


def test_the_classifier_sees_the_listed_images_of_each_draw_and_no_other() -> None:
    train, seen = data(200, 0), Seen()
    probe = prepared(FewLabels(seen, None, [1, 5], [0.2], [], draws=3, seed=7), train)
    scores = probe.fit_predict(train, data(40, 1), 4)
    choices = [LabelSelection(None, None, k, 7 + draw, "k") for k in (1, 5) for draw in range(3)]
    choices += [LabelSelection(None, 0.2, None, 7 + draw, "k") for draw in range(3)]
    lists = [choice.of(source_of(train)) for choice in choices]
    assert [given.ids.tolist() for given in seen.given] == [each.ids.tolist() for each in lists]
    assert [len(given.ids) for given in seen.given] == [4] * 3 + [20] * 3 + [40] * 3
    recorded = [each for score in scores for each in score.chosen["labels"]]
    assert [each["sha256"] for each in recorded] == [each.sha256 for each in lists]
    assert [each["images"] for each in recorded] == [4] * 3 + [20] * 3 + [40] * 3
    assert [score.n_train for score in scores] == [4, 20, 40]
    assert [each["percent_of_train"] for each in recorded] == [2] * 3 + [10] * 3 + [20] * 3
    assert [each["seed"] for each in recorded] == [7, 8, 9] * 3
    assert [score.protocol for score in scores] == [
        "seen/1 per class/3 draws",
        "seen/5 per class/3 draws",
        "seen/20%/3 draws",
    ]


def test_labels_and_features_of_images_that_are_not_listed_change_nothing() -> None:
    train, test = data(200, 0), data(100, 1)
    probe = prepared(FewLabels(path(), None, [5], [], [], draws=2, seed=0), train)
    (score,) = probe.fit_predict(train, test, 4)
    listed = torch.cat([LabelSelection(None, None, 5, seed, "k").of(source_of(train)).ids for seed in (0, 1)])
    others = ~torch.isin(train.ids, listed)
    spoilt = Features(train.x.clone(), train.labels.clone(), train.ids)
    spoilt.x[others], spoilt.labels[others] = 1e3, 0
    (again,) = probe.fit_predict(spoilt, test, 4)
    assert (again.draws, again.chosen) == (score.draws, score.chosen)


def test_the_score_is_the_mean_of_the_draws_and_each_is_the_classifier_alone_on_its_list() -> None:
    train, test = data(400, 0), data(100, 1)
    (score,) = prepared(FewLabels(path(), None, [5], [], [], draws=3, seed=0), train).fit_predict(train, test, 4)
    alone = []
    for seed in range(3):
        ids = LabelSelection(None, None, 5, seed, "k").of(source_of(train)).ids
        alone += path().fit_predict(train.rows(ids), test, 4)
    tops = [each.top1 for each in alone]
    assert score.draws == tops
    assert len(set(tops)) > 1
    assert score.top1 == pytest.approx(statistics.mean(tops))
    assert score.metrics["deviation"] == pytest.approx(statistics.stdev(tops))
    assert score.chosen["of_each_draw"] == [each.chosen for each in alone]
    assert score.protocol == "linear/cached-lbfgs-v1/5 per class/3 draws"
    for name in ("predictions", "log_probabilities"):
        assert torch.equal(getattr(score, name), getattr(alone[0], name))


def test_metrics_are_means_too_and_one_draw_has_no_deviation() -> None:
    train, test = data(200, 0), data(40, 1)
    (score,) = prepared(FewLabels(Seen(), None, [2], [], [], 3, 0), train).fit_predict(train, test, 4)
    assert (score.top1, score.draws) == (52, [51, 52, 53])
    assert score.metrics == {"nll": 2, "deviation": 1}
    (one,) = prepared(FewLabels(Seen(), None, [2], [], [], 1, 0), train).fit_predict(train, test, 4)
    assert (one.protocol, one.draws, one.metrics) == ("seen/2 per class", [], {"nll": 1})


def test_where_a_class_has_one_image_the_classifier_of_singles_is_asked() -> None:
    train, test, few, single = data(200, 0), data(40, 1), Seen(), Seen()
    probe = prepared(FewLabels(few, single, [2], [0.001, 0.5], [], 1, 0), train)
    probe.fit_predict(train, test, 4)
    assert [len(given.ids) for given in single.given] == [4]
    assert [len(given.ids) for given in few.given] == [8, 100]


def test_a_list_from_a_file_is_one_draw_recorded_by_its_hashes_and_its_true_size(tmp_path: Path) -> None:
    train, test, seen = data(200, 0), data(40, 1), Seen()
    file = tmp_path / "1percent.txt"
    file.write_text("".join(f"made up image {id}\n" for id in range(30)))
    probe = prepared(FewLabels(seen, None, [], [], [str(file)], draws=3, seed=0), train)
    (score,) = probe.fit_predict(train, test, 4)
    assert seen.given[0].ids.tolist() == list(range(30))
    assert score.protocol == "seen/1percent.txt=30 labels"
    (recorded,) = score.chosen["labels"]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert recorded == {
        "images": 30,
        "classes": 4,
        "sha256": digest,  # the file names images as this project does, so both are equal
        "percent_of_train": 15,
        "file": str(file),
        "file_sha256": digest,
    }


def test_a_list_of_all_labels_is_refused_whatever_it_is_called(tmp_path: Path) -> None:
    train = data(200, 0)
    file = tmp_path / "1percent.txt"
    file.write_text("".join(f"{id}\n" for id in range(200)))
    message = r"1percent\.txt is all 200 labelled train images, not few of them: take probe=linear$"
    with pytest.raises(UserError, match=rf"^probe\.few_labels: .*{message}"):
        prepared(FewLabels(Seen(), None, [], [], [str(file)], 1, 0), train)
    with pytest.raises(UserError, match=r"per_class=50, fraction=None is all 200 labelled train images"):
        prepared(FewLabels(Seen(), None, [50], [], [], 1, 0), train)
    with pytest.raises(UserError, match=r"probe\.few_labels\.per_class=51: class a has 50 labelled images"):
        prepared(FewLabels(Seen(), None, [51], [], [], 1, 0), train)


def test_listed_images_that_could_not_be_decoded_are_said_to_be_missing() -> None:
    train = data(200, 0)
    probe = prepared(FewLabels(Seen(), None, [], [0.5], [], 2, 0), train)
    (score,) = probe.fit_predict(train.rows(torch.arange(20, 200)), data(10, 1), 4)
    lists = [LabelSelection(None, 0.5, None, seed, "k").of(source_of(train)).ids for seed in (0, 1)]
    gone = sum(int((ids < 20).sum()) for ids in lists)
    assert score.notes == [f"{gone} of the listed images could not be decoded and were left out."]
    with pytest.raises(
        UserError, match=r"probe\.few_labels: none of the images listed for 50% is in the training split"
    ):
        probe.fit_predict(Features(train.x, train.labels, train.ids + 1000), data(10, 1), 4)


@pytest.mark.parametrize("classifier", [KNN([1, 3], 0.1), AllSupports(0.1)])
def test_neighbours_are_classifiers_too(classifier: Any) -> None:
    train, test = data(200, 0), data(100, 1)
    scores = prepared(FewLabels(classifier, None, [5], [], [], 2, 0), train).fit_predict(train, test, 4)
    expected = {
        KNN: ["knn/cosine-exp/k=1/T=0.1/5 per class/2 draws", "knn/cosine-exp/k=3/T=0.1/5 per class/2 draws"],
        AllSupports: ["soft_nn/T=0.1/5 per class/2 draws"],
    }
    assert [score.protocol for score in scores] == expected[type(classifier)]
    assert all(score.top1 > 50 for score in scores)


def test_the_yaml_builds_and_scores_every_setting_of_the_digits() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["name=x", "probe=few_labels", "probe.few_labels.draws=2"])
    probe: FewLabels = instantiate(config.probe.few_labels)
    train, test = data(1600, 0), data(100, 1)
    scores = prepared(probe, train).fit_predict(train, test, 4)
    settings = [score.protocol.removeprefix("linear/cached-lbfgs-v1/") for score in scores]
    assert settings == [
        f"{name}/2 draws" for name in ("1 per class", "2 per class", "5 per class", "10 per class", "1%", "10%")
    ]
    assert [each["C"] for each in scores[0].chosen["of_each_draw"]] == [5.0, 5.0]
    assert scores[0].chosen["of_each_draw"][0]["chosen_on"] == "nothing"
    assert scores[1].chosen["of_each_draw"][0]["holdout_images"] == 4
    assert scores[-1].top1 > scores[0].top1
    assert probe.needs == 1


def test_impossible_settings_name_the_key() -> None:
    with pytest.raises(UserError, match=r"probe\.few_labels\.draws=0: must be at least 1"):
        FewLabels(Seen(), None, [1], [], [], 0, 0)
    with pytest.raises(
        UserError, match=r"probe\.few_labels: give one or more of per_class, fractions and labels_files"
    ):
        FewLabels(Seen(), None, [], [], [], 1, 0)
    with pytest.raises(UserError, match=r"probe\.few_labels\.labels_files=.*: two have the same name"):
        FewLabels(Seen(), None, [], [], ["a/1percent.txt", "b/1percent.txt"], 1, 0)


def test_settings_that_draw_the_same_lists_are_one_column_which_says_so() -> None:
    train, test, seen = data(200, 0), data(40, 1), Seen()
    probe = prepared(FewLabels(seen, None, [1, 5], [0.01, 0.1], [], draws=2, seed=0), train)
    scores = probe.fit_predict(train, test, 4)
    assert [score.protocol for score in scores] == ["seen/1 per class/2 draws", "seen/5 per class/2 draws"]
    assert [score.notes for score in scores] == [
        ["1% of the labels is the same lists here: one column."],
        ["10% of the labels is the same lists here: one column."],
    ]
    assert len(seen.given) == 4


def test_of_twenty_images_the_settings_that_can_be_drawn_are_scored_and_the_others_named() -> None:
    train, test = data(20, 0), data(8, 1)
    probe = prepared(FewLabels(Seen(), None, [1, 2, 5, 10], [0.01, 0.1, 0.4], [], draws=1, seed=0), train)
    scores = probe.fit_predict(train, test, 4)
    assert [score.protocol for score in scores] == ["seen/1 per class", "seen/2 per class"]
    assert scores[0].notes == [
        "1% of the labels is the same lists here: one column.",
        "10% of the labels is the same lists here: one column.",
        "5 per class was left out: probe.few_labels: per_class=5, fraction=None is all 20 labelled train images, not"
        " few of them: take probe=linear.",
        "10 per class was left out: probe.few_labels.per_class=10: class a has 5 labelled images; give no more than"
        " that.",
    ]
    assert scores[1].notes == ["40% of the labels is the same lists here: one column."]

"""What holds of every probe in ``conf/probe`` that looks at features: none of the field's silent mistakes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from tests.small import composed, members
from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.probe import Score, kinds_of
from unlabeled.evaluation.probes.few_labels import FewLabels

CLASSES = 6  # of which the last but one has no image to train on
WITHOUT = 4
# need a list of labels, or the run's classifier, first: tests/evaluation/probes/test_paws_nn.py, test_own_classifier.py
PREPARED = ("paws_nn", "classifier")
SMALLER: dict[str, Any] = {
    "k": [5],
    "epochs": 3,
    "draws": 2,
    "members": 3,
    "samples": 4,
    "per_class": [2],
    "c": [0.01, 0.1],
}


def settings_of(name: str) -> dict[str, Any]:
    chosen: Any = OmegaConf.to_container(composed(f"probe={name}", "data=digits").probe, resolve=True)
    return dict(chosen)


def of_yaml(name: str) -> dict[str, Any]:
    """The probes of one yaml with less to do."""
    chosen = settings_of(name)
    for settings in chosen.values():
        settings.update({key: value for key, value in SMALLER.items() if key in settings})
    probes = {key: instantiate(settings) for key, settings in chosen.items()}
    for probe in probes.values():
        if isinstance(probe, FewLabels):
            probe.prepare(Listed())  # type: ignore[arg-type]
    return probes


def feature_probes() -> list[str]:
    names = [name for name in members("probe") if name not in ("none", "standard", "full", *PREPARED)]
    return [name for name in names if not any(".recipes." in each["_target_"] for each in settings_of(name).values())]


class Listed:
    """The source whose labelled images are few_labels' to choose from."""

    def __init__(self) -> None:
        self.classes = [str(label) for label in range(CLASSES)]
        self.labels = features(400, 1, [0, 1, 2, 3, 5], ()).labels
        self.labels = torch.where(self.labels == CLASSES - 1, WITHOUT, self.labels)  # no class in the middle is empty

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"images/{index}"


def features(n: int, seed: int, classes: list[int], kinds: tuple[str, ...]) -> Features:
    """Clouds about the classes' own centres, which overlap; the further kinds are of other widths."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(classes)[torch.randint(len(classes), (n,), generator=generator)]
    centres = torch.randn(CLASSES, 12, generator=torch.Generator().manual_seed(0))
    x = centres[labels] + torch.randn(n, 12, generator=generator)
    others = {kind: torch.cat([x, x[:, :4]], 1) for kind in kinds if kind != "last"}
    return Features(x, labels, torch.arange(n), others)


def scores_of(name: str, test_labels: Tensor | None = None) -> tuple[list[Score], Features]:
    found, test = [], features(90, 2, list(range(CLASSES)), ())
    for probe in of_yaml(name).values():
        kinds = kinds_of(probe)
        train = features(400, 1, [0, 1, 2, 3, 5], kinds)
        test = features(90, 2, list(range(CLASSES)), kinds)
        if test_labels is not None:
            test = Features(test.x, test_labels, test.ids, test.others)
        found += probe.fit_predict(train, test, CLASSES)
    return found, test


@pytest.mark.parametrize("name", feature_probes())
def test_predictions_are_reproducible_say_the_accuracy_and_never_see_the_test_labels(name: str) -> None:
    scores, test = scores_of(name)
    torch.manual_seed(99)
    again, _ = scores_of(name, (test.labels + 1) % CLASSES)
    assert scores
    assert len({score.protocol for score in scores}) == len(scores)
    for score, other in zip(scores, again, strict=True):
        assert score.predictions is not None
        assert score.predictions.dtype == torch.int64
        assert torch.equal(score.predictions, other.predictions)  # type: ignore[arg-type]
        assert other.chosen == score.chosen, "a hyper-parameter was chosen on the test labels"
        right = 100 * float((score.predictions == test.labels).double().mean())
        assert right == pytest.approx(score.draws[0] if score.draws else score.top1, abs=1e-9)
        if score.draws:
            assert score.top1 == pytest.approx(sum(score.draws) / len(score.draws))
        assert score.top1 > 100 / CLASSES + 15


@pytest.mark.parametrize("name", feature_probes())
def test_a_class_without_train_images_is_never_predicted_and_has_no_probability(name: str) -> None:
    for score in scores_of(name)[0]:
        assert score.predictions is not None
        assert WITHOUT not in score.predictions.tolist()
        if score.log_probabilities is not None:
            p = score.log_probabilities.double().exp()
            assert p.shape == (90, CLASSES)
            assert torch.allclose(p.sum(1), torch.ones(90, dtype=torch.float64), atol=1e-5)
            assert float(p[:, WITHOUT].max()) == 0
            assert torch.equal(p.argmax(1), score.predictions)


@pytest.mark.parametrize("name", feature_probes())
def test_labelled_images_that_were_used_are_counted_as_such(name: str) -> None:
    for score in scores_of(name)[0]:
        listed = score.chosen.get("images") or next((each["images"] for each in score.chosen.get("labels", [])), None)
        if listed is not None:
            assert score.n_train == listed < 400
        else:
            assert score.n_train in (None, 400)


def test_what_is_written_down_of_a_probe_is_plain_json(tmp_path: Path) -> None:
    import json

    for name in feature_probes():
        for score in scores_of(name)[0]:
            assert json.loads(json.dumps([score.chosen, score.notes, score.metrics])) is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", feature_probes())
def test_features_that_are_not_finite_are_one_line_wherever_they_stand(name: str, value: float) -> None:
    for number, probe in enumerate(of_yaml(name).values()):
        train = features(400, 1, [0, 1, 2, 3, 5], kinds_of(probe))
        test = features(90, 2, list(range(CLASSES)), kinds_of(probe))
        broken = test if number % 2 else train
        for x in (broken.x, *broken.others.values()):
            x[:: len(x) // 40, 0] = value  # many, so that some are among the images of few_labels
        with pytest.raises(UserError, match="not finite") as refusal:
            probe.fit_predict(train, test, CLASSES)
        assert "\n" not in str(refusal.value)

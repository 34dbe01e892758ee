"""``unlabeled finetune``: a folder that predict, embed, evaluate and load take as a run."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import unlabeled
from tests.commands.test_predict import CHOSEN, CPU, NETWORK
from tests.small import composed
from unlabeled.commands.build.network import build_backbone
from unlabeled.commands.entry_points.run_from_python import Run
from unlabeled.core.places import run_folder
from unlabeled.errors import UserError
from unlabeled.evaluation.predictions import read_predictions

QUICK = {"least_steps": 2, "recipe.training.epochs": 1, "recipe.training.warmup_epochs": 0}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.save(build_backbone(composed(*CHOSEN).backbone, 0).state_dict(), file)
    return file


@pytest.fixture(scope="module")
def thirty(weights: Path) -> Path:
    """The numbers of thirty digits of the training split."""
    file = weights.parent / "thirty.txt"
    file.write_text("\n".join(map(str, range(30))))
    return file


def finetune(weights: Path, data: Any = "digits", **keys: Any) -> Run:
    return unlabeled.finetune(weights, data, **NETWORK, **CPU, **(QUICK | keys))


@pytest.fixture(scope="module")
def tuned(weights: Path, thirty: Path) -> Run:
    return finetune(weights, labels=thirty, out=weights.parent / "thirty")


def test_a_mistake_in_the_recipe_is_named_by_the_key_that_can_be_typed(weights: Path) -> None:
    with pytest.raises(UserError, match=r"^recipe\.training\.warmup_epochs=2: must be less than epochs=1"):
        finetune(weights, **{"recipe.training.epochs": 1, "recipe.training.warmup_epochs": 2})


def test_a_run_that_has_not_been_fine_tuned_says_which_command_does_it(tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/last.ckpt").touch()
    with pytest.raises(UserError, match=rf"no such folder; unlabeled finetune run={tmp_path}/run makes it"):
        run_folder("run", str(tmp_path / "run/finetuned"))


def test_what_is_kept_predicts_what_was_measured_and_loads_as_a_network(tuned: Run, weights: Path) -> None:
    assert tuned.results is not None
    row = tuned.results["finetune"]
    assert (row.n_train, row.n_test) == (30, 450)
    assert row.protocol.startswith("finetune/own/labels=list/30 labels")
    low, high = row.interval or (100, 0)
    assert low < row.top1 < high
    found = unlabeled.predict(tuned, risk=0.9, **CPU)
    known = read_predictions(tuned.folder / "report")
    assert torch.equal(found.numbers, known.classes["pretrained", row.protocol])
    assert torch.equal(found.numbers, row.predictions if row.predictions is not None else known.labels)
    assert found.limit is not None
    assert found.limit.images == 10  # one of each class
    facts = json.loads((tuned.folder / "finetune.json").read_text())
    assert (facts["top1"], facts["labels"]["images"]) == (row.top1, 30)
    x = unlabeled.embed(tuned, "digits", **CPU).x
    assert x.shape == (1797, unlabeled.load(tuned).num_features)
    start = unlabeled.embed(weights, "digits", **NETWORK, **CPU).x
    assert np.abs(x - start).max() > 1e-3
    folder = unlabeled.export(tuned, "safetensors", head="finetune", data_images=0)
    assert json.loads((folder / "config.json").read_text())["id2label"]["9"] == "9"


def test_fine_tuned_networks_are_averaged_with_others_and_with_their_own_dropout_at_work(
    tuned: Run, weights: Path, thirty: Path
) -> None:
    other = finetune(weights, labels=thirty, out=weights.parent / "dropout", **{"recipe.dropout": 0.5})
    one, two = (unlabeled.predict(run, **CPU) for run in (tuned, other))
    both = unlabeled.predict(tuned, members=[other], **CPU)
    with pytest.raises(UserError, match=r"^members=.*: is the run itself; give runs of other seeds"):
        unlabeled.predict(tuned, members=[tuned], **CPU)
    with pytest.raises(UserError, match=r"^members: .*nowhere: no such folder"):
        unlabeled.predict(tuned, members=[weights.parent / "nowhere"], **CPU)
    torch.testing.assert_close(both.probabilities, (one.probabilities + two.probabilities) / 2)
    assert torch.equal(both.numbers, both.probabilities.argmax(1))
    sampled = unlabeled.predict(other, samples=3, **CPU)
    assert sampled.mutual_information is not None
    assert float(sampled.mutual_information.min()) >= 0 < float(sampled.mutual_information.mean())
    assert torch.equal(unlabeled.predict(other, samples=3, **CPU).probabilities, sampled.probabilities)
    lines = list(csv.DictReader(sampled.save(weights.parent / "x.csv", top=1).open()))
    assert float(lines[0]["mutual_information"]) == pytest.approx(float(sampled.mutual_information[0]), rel=1e-4)
    assert len(lines[0]) == 8
    with pytest.raises(UserError, match=r"^samples: nothing in this network is random"):
        unlabeled.predict(tuned, samples=3, **CPU)


def test_a_folder_of_classes_without_a_test_split_is_trained_on_and_names_its_classes(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for label, level in (("day", 200), ("night", 30)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (9, 8), (level, level, 9 * number)).save(tmp_path / "photos" / label / f"{number}.png")
    many = {"least_steps": 40, "recipe.augmentation.flip": 0.0, "holdout": None}
    run = finetune(weights, "photos", out=tmp_path / "out", **many)
    assert run.results is None
    monkeypatch.chdir(weights.parent)  # from any folder the images are the same
    found = unlabeled.predict(run, **CPU)  # the images that it was trained on
    assert found.classes == ["day", "night"]
    assert found.predicted == found.labels == ["day"] * 4 + ["night"] * 4
    with pytest.raises(UserError, match=r"holds a network already; give another folder"):
        finetune(weights, tmp_path / "photos", out=tmp_path / "out")


def test_images_without_labels_are_refused(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "flat" / f"{number}.png")
    with pytest.raises(UserError, match="data: no training image has a label"):
        finetune(weights, tmp_path / "flat", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()

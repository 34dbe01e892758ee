"""``unlabeled predict`` and ``unlabeled.predict``: the report's predictions to the bit, and a row for every image."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import unlabeled
from tests.commands.test_unlabeled_command import printed
from tests.small import composed
from unlabeled.commands.build.classify import Prediction
from unlabeled.commands.build.network import build_backbone
from unlabeled.commands.build.other_images import with_all_images
from unlabeled.commands.classify.predict import introduced
from unlabeled.commands.config import conf_folder, with_moved_data
from unlabeled.data.identity import identity_of, shared_images
from unlabeled.data.memory import ArraySource
from unlabeled.data.sources.digits import digits
from unlabeled.data.sources.folder import folder
from unlabeled.errors import UserError
from unlabeled.evaluation.heads.calibration import calibrate, threshold
from unlabeled.evaluation.heads.kept import HeadContext, KeptHead
from unlabeled.evaluation.predictions import read_predictions
from unlabeled.evaluation.probe import Head
from unlabeled.evaluation.uncertainty.calibration import ece
from unlabeled.training.same_data import DATA_FILES
from unlabeled.weights import Checkpoint

CHOSEN = ["data=digits", "backbone=resnet_thin", "backbone.width=0.125", "views=simclr_small", "views.size=8"]
NETWORK: dict[str, Any] = {"backbone": "resnet_thin", "backbone.width": 0.125, "views": "simclr_small", "views.size": 8}
CPU: dict[str, Any] = {"accelerator": "cpu", "num_workers": 0}
SHAPE = {key: value for key, value in NETWORK.items() if key != "views"}
TINY: dict[str, Any] = {"epochs": 1, "batch_size": 32, "images_per_pass": 32, "milestones": None}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network that has been evaluated on digits, with three kinds of heads."""
    file = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.save(build_backbone(composed(*CHOSEN).backbone, 0).state_dict(), file)
    probes: dict[str, Any] = {
        "probe": ["knn", "linear", "finetune_swav_1percent"],
        "probe.finetune_swav_1percent.fraction": 0.2,
    }
    tiny = {f"probe.finetune_swav_1percent.training.{key}": value for key, value in TINY.items()}
    unlabeled.evaluate(file, data="digits", cache_gib=0, **NETWORK, **CPU, **probes, **tiny)
    return file


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Without classes: three images, one of them with a name that a spreadsheet would compute, and one that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "=1+1.png", "c.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)).save(folder / name)
    (folder / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    return folder


def predict(weights: Path, data: Any = None, **keys: Any) -> Any:
    return unlabeled.predict(weights, data, **NETWORK, **CPU, **keys)


@pytest.mark.parametrize("head", ["linear", "knn/cosine-exp/k=20/T=0.1", "knn/cosine-exp/k=200/T=0.1", "finetune"])
def test_the_test_images_have_the_predictions_and_the_calibration_of_the_report(weights: Path, head: str) -> None:
    report = weights.parent / "report"
    known = read_predictions(report)
    (key,) = [each for each in known.classes if each[0] == "pretrained" and each[1].startswith(head)]
    found = predict(weights, "digits", head=head)
    assert torch.equal(found.numbers, known.classes[key])
    assert found.predicted[:20] == [str(number) for number in known.classes[key][:20].tolist()]
    assert torch.equal(torch.tensor([int(label) for label in found.labels]), known.labels)
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(450, dtype=torch.float64))
    rows = json.loads((report / "results.json").read_text())["rows"]
    (metrics,) = [row["metrics"] for row in rows if (row["features"], row["protocol"]) == key]
    if head == "finetune":
        assert "temperature" not in metrics
    else:
        assert ece(found.probabilities.log(), known.labels) == pytest.approx(metrics["ece_after_temperature"], abs=1e-9)


def test_a_risk_lets_the_least_certain_abstain(weights: Path) -> None:
    found = predict(weights, "digits", head="knn/cosine-exp/k=20/T=0.1", risk=0.85)  # random features: 14 % are right
    assert found.limit is not None
    assert 0 < int(found.abstains.sum()) < 450
    assert bool((found.confidence[~found.abstains] >= found.limit.confidence).all())
    right = torch.tensor([label == name for label, name in zip(found.labels, found.predicted, strict=True)])
    assert right[~found.abstains].double().mean() > right.double().mean()
    with pytest.raises(UserError, match="risk: this head was not tried on held-out images"):
        predict(weights, "digits", head="finetune", risk=0.2)


@pytest.mark.parametrize(("wrong", "risk"), [(0, None), (1, None), (0, 0.05), (1, 0.05)])
def test_the_command_says_what_few_held_out_images_are_worth(wrong: int, risk: float | None) -> None:
    log_p = torch.tensor([[0.9, 0.1]] * 7, dtype=torch.float64).log()
    found = calibrate(Head("linear", "last", {}, {}, (log_p, torch.tensor([wrong] + [0] * 6))))
    assert (found.temperature == 1) == (wrong == 0)
    context = HeadContext(["a", "b"], "", {}, "32-true", 256)
    kept = KeptHead(Head("linear", "last", {}, {}), "linear", context, found, 90.0, 63, Path("linear"))
    limit = None if risk is None else threshold(found, risk)
    line, *more = introduced(kept, limit).splitlines()
    assert ", 2 classes, 90.0 % of the report's test images; " in line
    assert ", 2 classes, no test images; " in introduced(replace(kept, top1=None), limit)
    assert line.endswith("on 7 held-out images" + ", none of them wrong, so that it is not below 1" * (1 - wrong))
    if limit is not None:
        assert bool((found.confidence < limit.confidence).all())
        assert more == [
            f"no risk so small can be promised with 95 % certainty from 7 held-out images, {wrong} of them wrong: all "
            "abstain; give a larger risk, or a classifier of more labels"
        ]


def test_the_command_writes_a_row_for_every_image_and_says_why_one_has_no_class(
    weights: Path, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [f"{key}={value}" for key, value in {**NETWORK, **CPU}.items()]
    code, out = printed(
        capfd,
        monkeypatch,
        "predict",
        f"checkpoint={weights}",
        f"data={photos}",
        "out=x.csv",
        "top=3",
        "head=linear",
        *given,
    )
    assert code == 0, out
    assert "4 images; 1 could not be decoded" in out
    with (tmp_path / "x.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [Path(row["name"]).name for row in rows]
    assert names == ["=1+1.png", "a.png", "b.png", "c.png"]
    assert rows[2]["reason"].endswith("b.png: not an image that Pillow can read")
    assert [row["predicted"] == "" for row in rows] == [False, False, True, False]
    found = predict(weights, photos, head="linear")
    assert rows[1]["predicted"] == found.predicted[1]
    assert float(rows[1]["probability"]) == pytest.approx(float(found.confidence[1]), rel=1e-5)
    assert float(rows[1]["entropy"]) == pytest.approx(float(found.entropy[1]), rel=1e-5)
    likely = [float(rows[1][column]) for column in ("probability", "probability_2", "probability_3")]
    assert likely == sorted(likely, reverse=True)
    assert "class_4" not in rows[1]


def test_the_command_names_the_split_that_it_predicts_and_the_other_one(
    weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [f"{key}={value}" for key, value in {**NETWORK, **CPU}.items()]
    asked = ["predict", f"checkpoint={weights}", f"out={tmp_path}/x.csv", "head=linear", "data=digits", *given]
    for options, line in (([], "test split; split=train"), (["split=train"], "train split; split=test")):
        code, out = printed(capfd, monkeypatch, *asked, *options)
        assert code == 0, out
        assert f"these are the images of its {line} takes the others" in out


def test_labelled_images_that_the_run_was_trained_on_are_counted_wherever_they_lie_now(tmp_path: Path) -> None:
    for number in range(8):
        place = tmp_path / f"run/{number % 2}/{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(place)
    known = identity_of(folder(f"{tmp_path}/run", holdout=None).train)
    assert known is not None
    shutil.copytree(tmp_path / "run/0", tmp_path / "others/new names")
    Image.new("RGB", (8, 8), (99, 0, 0)).save(tmp_path / "others/new names/new.png")
    (tmp_path / "others/new names/empty.png").touch()
    assert shared_images(folder(f"{tmp_path}/others").train, known) == 4
    assert shared_images(folder(f"{tmp_path}/run").train, known) == 8
    first, source = SimpleNamespace(path=tmp_path / "run/checkpoints/last.ckpt"), folder(f"{tmp_path}/others").train
    known.write(tmp_path / "run" / DATA_FILES)
    images = SimpleNamespace(splits=SimpleNamespace(train=source, test=None))
    prediction = Prediction([], images, source, first)  # type: ignore[arg-type]
    assert (prediction.split(), prediction.trained_on()) == ("", 4)


def test_images_that_are_not_the_runs_are_all_taken_and_its_own_that_have_moved_keep_their_test_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [f"classes/{number % 2}/{number}" for number in range(30)] + ["other/a"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), 9 * int(name[-1], 16), 0)).save(tmp_path / f"{name}.png")
    run = tmp_path / "run"
    chosen = composed("data=folder", f"data.path={tmp_path}/classes", "data.holdout=0.3")
    own: Any = OmegaConf.to_container(chosen.data)
    before = identity_of(folder(own["path"], holdout=0.3).train)
    assert before is not None
    run.mkdir()
    before.write(run / DATA_FILES)
    shutil.move(tmp_path / "classes", tmp_path / "moved")
    checkpoint = Checkpoint(run / "checkpoints/last.ckpt", "", {}, {"data": own}, {}, {}, "own run", "")

    def named(**given: Any) -> Any:
        config = OmegaConf.create({"data": {key: str(value) for key, value in given.items()}})
        return OmegaConf.to_container(with_all_images(config, checkpoint).data)

    assert named(path=tmp_path / "moved") == {"path": str(tmp_path / "moved")}
    assert named(path=own["path"]) == {"path": own["path"]}
    assert named(path=tmp_path / "other", holdout=0.5) == {"path": str(tmp_path / "other"), "holdout": "0.5"}
    assert capsys.readouterr().out == ""
    for other in ("other", "other/a.png"):
        assert named(path=tmp_path / other) == {"path": str(tmp_path / other), "holdout": None}
        assert "so all are taken; its data.holdout=0.3 counts only if it is given" in capsys.readouterr().out
    (tmp_path / "moved/0/0.png").write_bytes(b"another")  # a changed image is enough: it may be any folder
    (tmp_path / "moved/0/2.png").write_bytes(b"another")
    assert named(path=tmp_path / "moved")["holdout"] is None


def test_keys_of_the_runs_data_may_be_typed_beside_the_place_of_its_images() -> None:
    typed = ["run=x", "data.path=y", "data.holdout=null"]
    added = ["run=x", "+data.path=y", "+data.holdout=null"]
    assert with_moved_data(conf_folder() / "predict.yaml", typed) == added
    assert with_moved_data(conf_folder() / "predict.yaml", ["data=y", *typed]) == ["data=y", *typed]


def test_one_image_images_from_memory_and_images_none_of_which_can_be_read(weights: Path, photos: Path) -> None:
    pixels = [Image.open(photos / "a.png"), np.array(Image.open(photos / "c.png"))]
    found = predict(weights, pixels, head="linear")
    assert (len(found), found.labels) == (2, ["", ""])
    alone = predict(weights, photos / "a.png", head="linear")
    assert alone.predicted == found.predicted[:1]
    torch.testing.assert_close(alone.probabilities, found.probabilities[:1])
    for name in ("=1+1.png", "a.png", "c.png"):
        (photos / name).unlink()
    nothing = predict(weights, photos, head="linear")
    assert (nothing.predicted, len(nothing.reasons[0]) > 0) == ([""], True)
    assert not bool(nothing.abstains.any())


def test_a_formula_in_a_name_or_a_class_is_text_in_the_table(weights: Path, tmp_path: Path) -> None:
    found = predict(weights, "digits", head="linear")
    object.__setattr__(found, "names", ["=cmd()", *found.names[1:]])
    object.__setattr__(found, "classes", [f"@{name}" for name in found.classes])
    found.save(tmp_path / "x.csv", top=1)
    with (tmp_path / "x.csv").open() as file:
        first = next(csv.DictReader(file))
    assert (first["name"], first["predicted"]) == ("'=cmd()", f"'{found.predicted[0]}")


def test_heads_of_other_weights_or_other_views_are_refused(weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    torch.save(build_backbone(composed(*CHOSEN).backbone, 1).state_dict(), other)
    with pytest.raises(UserError, match="was fitted on features of other weights than"):
        predict(other, "digits", report_dir=weights.parent / "report")
    with pytest.raises(UserError, match=r"was fitted on images prepared by other views; give the views=…"):
        unlabeled.predict(weights, "digits", **CPU, **{**NETWORK, "views.size": 16})


def test_a_network_that_a_probe_has_fine_tuned_is_exported_with_its_classifier(weights: Path, tmp_path: Path) -> None:
    found = predict(weights, "digits", head="finetune").probabilities[:8]
    folder = unlabeled.export(
        weights, "torch_export", head="finetune", out=tmp_path / "x", data_images=0, views=NETWORK["views"], **SHAPE
    )
    model = torch.export.load(folder / "model.pt2").module()
    test = digits(8).test
    assert isinstance(test, ArraySource)
    images = unlabeled.load(weights, **NETWORK).transform(test.images[:8])
    torch.testing.assert_close(model(images).double().softmax(1), found, rtol=1e-4, atol=1e-6)

"""The field's silent failures of evaluations: each is an error here, or stands in the report."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import InstantiationException
from PIL import Image

from tests.small import composed
from unlabeled.commands.build.evaluation import build_evaluation, complete_config
from unlabeled.commands.build.network import build_backbone
from unlabeled.commands.build.run import build_data
from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate import evaluate
from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.weights import read_checkpoint

CHOSEN = [
    "data=digits",
    "backbone=resnet_thin",
    "backbone.width=0.125",
    "views=simclr_small",
    "views.size=8",
    "cache_gib=0",
]


def stored(folder: Path, seed: int = 1, change: Any = None, *chosen: str) -> Path:
    """A backbone's weights in a file, changed as the caller likes."""
    state = build_backbone(composed(*CHOSEN, *chosen).backbone, seed).state_dict()
    if change is not None:
        change(state)
    torch.save(state, folder / "weights.pt")
    return folder / "weights.pt"


def judged(path: Path, *given: str) -> tuple[list[Row], Path]:
    checkpoint = read_checkpoint(path)
    evaluation = build_evaluation(complete_config(composed(*CHOSEN, *given), checkpoint), None, "cpu")
    report = path.parent / "report"
    return evaluate(evaluation, checkpoint, report, "a test"), report


def renamed(state: dict[str, Any]) -> None:
    state["layer9.0.conv1.weight"] = state.pop("layer4.0.conv1.weight")


def reshaped(state: dict[str, Any]) -> None:
    state["layer1.0.bn1.weight"] = torch.ones(3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("layer3.0.bn2.running_mean"), "missing layer3.0.bn2.running_mean"),
        (renamed, "unknown layer9.0.conv1.weight"),
        (reshaped, r"layer1.0.bn1.weight has shape \[3\] instead of \[8\]"),
    ],
)
def test_weights_that_do_not_load_whole_are_refused_before_an_image_is_read(
    change: Any, named: str, tmp_path: Path
) -> None:
    """A head on a random backbone: mmselfsup #330; `strict=False` unread: solo-learn main_linear.py."""
    with pytest.raises(UserError, match=named):
        judged(stored(tmp_path, 1, change), "probe=knn")
    assert not (tmp_path / "report").exists()


def test_a_network_that_was_never_trained_is_called_so_on_every_page(tmp_path: Path) -> None:
    """Evaluations of a random network that nobody noticed: mmselfsup #88, #724."""
    note = "The pretrained weights are those of the random initialisation: nothing was learnt."
    rows, report = judged(stored(tmp_path, 0), "probe=knn", "probe.knn.k=[5]")
    assert [row.notes for row in rows if row.features == "pretrained"] == [[note]]
    assert note in (report / "report.html").read_text()
    assert note in (report / "report.md").read_text()


def test_one_per_cent_of_the_labels_is_one_per_cent_and_the_report_says_how_many(tmp_path: Path) -> None:
    """1 % runs on all labels or on 10 %: solo-learn main_linear.py, suncet #10."""
    few = ["probe=few_labels", "probe.few_labels.per_class=[2]", "probe.few_labels.fractions=[0.1]"]
    rows, report = judged(stored(tmp_path), *few, "probe.few_labels.draws=2", "probe.few_labels.classifier.c=[1.0]")
    labels = build_data(composed(*CHOSEN)).splits.train.labels
    tenth = sum(max(1, round(0.1 * int(count))) for count in labels.bincount())
    found = {row.protocol.split("/")[2]: row for row in rows if row.features == "pretrained"}
    assert {name: row.n_train for name, row in found.items()} == {"2 per class": 20, "10%": tenth}
    for row in found.values():
        assert [each["images"] for each in row.chosen["labels"]] == [row.n_train] * 2
        assert len({each["sha256"] for each in row.chosen["labels"]}) == 2
        assert row.top1 == pytest.approx(sum(row.draws) / 2)
    results = json.loads((report / "results.json").read_text())
    assert {row["n_train"] for row in results["rows"] if row["features"] == "pretrained"} == {20, tenth}
    with pytest.raises(UserError, match="is all 1,347 labelled train images, not few of them"):
        judged(stored(tmp_path), *few, "probe.few_labels.fractions=[1.0]")


def test_a_list_of_labels_in_another_order_or_of_other_images_is_seen_in_its_hash(tmp_path: Path) -> None:
    few = ["probe=few_labels", "probe.few_labels.per_class=[2]", "probe.few_labels.fractions=[]"]
    hashes = []
    for seed in (0, 0, 1):
        rows, _ = judged(stored(tmp_path), *few, "probe.few_labels.draws=1", f"probe.few_labels.seed={seed}")
        hashes.append(next(row.chosen["labels"][0]["sha256"] for row in rows if row.features == "pretrained"))
    assert hashes[0] == hashes[1] != hashes[2]


def test_every_number_carries_its_protocol_checkpoint_data_transform_seed_and_versions(tmp_path: Path) -> None:
    """`Which protocol was it?`: solo-learn #221, #385; dinov2 #106."""
    path = stored(tmp_path)
    rows, report = judged(path, "probe=quick")
    results = json.loads((report / "results.json").read_text())
    told = results["provenance"]
    assert all(row["protocol"] for row in results["rows"])
    assert told["checkpoint"]["sha256"] == read_checkpoint(path).sha256
    assert told["checkpoint"]["layout"]
    assert len(told["data"]["train_fingerprint"]) == len(told["data"]["test_labels_sha256"]) == 64
    assert told["views"] == {"size": 8, "crop": 1.0, "interpolation": "bilinear", "mean": None, "std": None} | {
        key: told["views"][key] for key in ("crop", "interpolation", "mean", "std")
    }
    assert told["settings"]["seed"] == 0
    assert {"torch", "torchvision", "Pillow"} <= told["versions"].keys()
    assert told["git"].keys() == {"commit", "dirty"}
    page = (report / "report.html").read_text().replace("<wbr>", "")
    assert told["checkpoint"]["sha256"] in page
    for row in rows:
        if row.features == "pretrained":
            assert row.protocol in page
            assert row.interval is not None
            assert row.interval[0] < row.top1 < row.interval[1]


def test_batchnorm_does_not_move_while_it_is_judged(tmp_path: Path) -> None:
    """Running statistics that go on moving in `frozen` backbones: lightly #1438, #1440, PR #1444."""
    path = stored(tmp_path)
    checkpoint = read_checkpoint(path)
    given = ["probe=linear_moco", "probe.linear_moco.training.epochs=1"]
    evaluation = build_evaluation(complete_config(composed(*CHOSEN, *given), checkpoint), None, "cpu")
    evaluate(evaluation, checkpoint, tmp_path / "report", "a test")
    after = evaluation.backbone.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in torch.load(path).items())


def test_test_classes_in_another_order_than_trains_are_refused(tmp_path: Path) -> None:
    """Train 59 %, test 2.5 %: CMC #21, mmselfsup #92."""
    for split, classes in (("train", ["cat", "dog"]), ("test", ["cat", "eel"])):
        for name in classes:
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "0.png")
    with pytest.raises(InstantiationException, match=r"is a class that .* lacks|has no class"):
        judged(stored(tmp_path), "data=folder", f"data.path={tmp_path}", "probe=knn")


def test_images_that_could_not_be_read_are_counted_and_named_in_the_report(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number in range(12):
            place = tmp_path / "images" / split / f"class{number % 2}"
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(place / f"{number}.png")
    (tmp_path / "images" / "test" / "class0" / "0.png").write_bytes(b"no image")
    given = ["data=folder", f"data.path={tmp_path}/images", "data.image_size=8", "probe=knn", "probe.knn.k=[3]"]
    rows, report = judged(stored(tmp_path), *given, "num_workers=0")
    assert {row.n_test for row in rows} == {11}
    told = json.loads((report / "results.json").read_text())["provenance"]["data"]
    assert told["corrupt_images"] == 1
    assert "0.png" in told["corrupt_names"][0]


def test_another_stem_than_the_runs_is_refused_although_its_name_is_the_same(tmp_path: Path) -> None:
    """CIFAR's stem chosen by the name of a data set: solo-learn methods/base.py."""
    with pytest.raises(UserError, match="conv1"):
        judged(stored(tmp_path), "backbone.stem=imagenet", "probe=knn")

"""``unlabeled transfer`` on a small run: a choice, a folder, a set of torchvision, missing ones, and the page."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import unlabeled
from tests.commands.test_from_python import KEYS
from tests.downstream.shapes import write_shapes
from unlabeled.commands.evaluate.own_data_keys import with_folder, with_sets
from unlabeled.data.sources.published_sets import TOP1
from unlabeled.downstream.protocols import PENALTIES, few_shots, linear, nearest_neighbours
from unlabeled.downstream.vision_task import vision_task
from unlabeled.evaluation.features import Features

SMALL: dict[str, Any] = {"num_workers": 0, "accelerator": "cpu", "c": [0.01, 1.0], "few": [1, 2], "draws": 2, "k": 5}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unlabeled.train(
        out=tmp_path_factory.mktemp("transfer") / "run",
        **{key: value for key, value in KEYS.items() if key != "probe.knn.k"} | {"probe": "none"},
    ).folder


def test_every_kind_of_data_set_is_a_line_and_one_that_is_missing_says_why(run: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for kind, shade in (("dark", 40), ("light", 200)):
            for number in range(count):
                pixels = Image.fromarray((shade + noise.integers(0, 20, (12, 12, 3))).astype(np.uint8))
                for name in ("shades", "tones"):
                    path = tmp_path / name / split / kind / f"{number}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    pixels.save(path)
    for split in ("train", "test"):  # as CIFAR-10 lies in parquet files
        files = sorted((tmp_path / "shades" / split).rglob("*.png"))
        images = [{"bytes": file.read_bytes(), "path": None} for file in files]
        table = pa.table({"image": images, "label": [int(file.parent.name == "light") for file in files]})
        (tmp_path / "cifar").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "cifar" / f"{split}.parquet")
    base = tmp_path / "root" / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for place, split in enumerate(("train", "val", "test")):
        names = [f"{kind}/{kind}_{place}{number}.png" for kind in ("banded", "dotted") for number in range(3)]
        for name in names:
            (base / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (90 * ("banded" in name), 0, 0)).save(base / "images" / name)
        (base / "labels" / f"{split}1.txt").write_text("\n".join(names) + "\n")
    sets = ["digits", tmp_path / "shades", "dtd", "food101", "nowhere", tmp_path / "tones", tmp_path / "cifar"]
    found = unlabeled.transfer(run, sets, root=tmp_path / "root", against=[run], out=tmp_path / "page", **SMALL)
    assert [task.name for task in found.tasks] == ["digits", "shades", "dtd", "food101", "nowhere", "tones", "cifar"]
    assert [task.problem is None for task in found.tasks] == [True, True, True, False, False, True, True]
    assert (
        found.values("linear")[1].tolist() == found.values("linear")[3].tolist() == found.values("linear")[4].tolist()
    )
    assert "download=true" in str(found.tasks[3].problem)
    assert "no such file or folder, and no data set" in str(found.tasks[4].problem)
    assert found.networks == [str(run), "random init", f"{run} (2)"]
    assert found.protocols == ["linear", "k-NN 5", "1 a class", "2 a class"]
    assert repr(found.tasks[0]).startswith(f"digits, top-1: {run} linear {found.values('linear')[0, 0]:.2f} %, k-NN 5")
    assert repr(found.tasks[4]) == f"nowhere: {found.tasks[4].problem}"
    first, _, again = found.summaries("linear")
    assert (again.mean, again.wins, again.losses) == (first.mean, 0, 0)
    assert found.tasks[2].facts["published_validation"]
    assert not found.tasks[1].facts["published_validation"]
    assert found.page == tmp_path / "page" / "transfer.html"
    values = json.loads((tmp_path / "page" / "transfer.json").read_text())
    assert values["tasks"][0]["judged"]["random init"]["linear"]["value"] == found.values("linear")[0, 1]
    assert "food101" in found.page.read_text()
    assert (tmp_path / "page" / "few_images.png").stat().st_size > 3000
    assert "tabular" in (tmp_path / "page" / "transfer.tex").read_text()


def test_data_is_typed_as_a_list_or_as_one_name() -> None:
    assert with_sets(["run=a", "data=[b,c]"]) == ["run=a", "sets=[b,c]"]
    assert with_sets(["data=b", "k=3"]) == ["sets=[b]", "k=3"]
    assert with_sets(["data="]) == ["sets=[]"]
    assert with_folder(["data=a/b", "k=3"]) == with_folder(["data.path=a/b", "k=3"]) == ["folder=a/b", "k=3"]


def test_a_segmentation_has_a_row_for_each_network_and_protocol_and_a_page(run: Path, tmp_path: Path) -> None:
    folder = write_shapes(tmp_path / "shapes", 12, 3, size=32)
    few: dict[str, Any] = {"steps": 30, "batch_size": 4, "warmup_steps": 3, "size": 16, "lr": 0.01, "shown": 2}
    few["finetune_steps"] = 8
    found = unlabeled.segment(run, folder, out=tmp_path / "page", accelerator="cpu", finetune=True, **few)
    protocols = ("linear", "k-NN 30 of patches", "fine-tuned, dilated FCN")
    assert [*found.found] == [(name, protocol) for name in ("run", "random init") for protocol in protocols]
    assert found.classes == ["background", "disc", "square", "triangle"]
    pixels = 3 * 32 * 32
    assert all(int(each.counts.sum()) == pixels for each in found.found.values())
    assert all(each.pixel_accuracy > 40 for each in found.found.values())  # most of it is background
    values = json.loads((tmp_path / "page" / "segment.json").read_text())
    assert values["found"]["random init / linear"]["mean_iou"] == found.found["random init", "linear"].mean_iou
    assert found.page is not None
    assert "k-NN 30 of patches" in found.page.read_text()
    assert (tmp_path / "page" / "segmented.png").stat().st_size > 2000
    tuned = values["provenance"]["fine_tuning"]
    assert (tuned["steps"], tuned["lr"], tuned["momentum"]) == (8, 0.003, 0.9)
    again = unlabeled.segment(run, folder, out=tmp_path / "again" / "segment", accelerator="cpu", **few)
    without = [row for row in found.rows if "fine-tuned" not in row[1]]
    assert again.rows == without
    assert repr(again).count("\n") == 5
    assert "segmentation" in (tmp_path / "again" / "tasks.html").read_text()
    given = unlabeled.segment(unlabeled.load(run), folder, out=tmp_path / "given", accelerator="cpu", **few)
    assert [row[1:] for row in given.rows] == [row[1:] for row in without[:2]]
    assert {name for name, _ in given.found} == {"ResNet"}
    with pytest.raises(unlabeled.UserError, match=r"out: a network that is given has no folder; give out=FOLDER"):
        unlabeled.segment(unlabeled.load(run), folder)
    with pytest.raises(unlabeled.UserError, match=r"random=true: a network that is given has no random start"):
        unlabeled.segment(unlabeled.load(run), folder, out=tmp_path / "x", random=True)
    with pytest.raises(unlabeled.UserError, match=r"finetune_warmup_steps=8: must be less than finetune_steps=8"):
        unlabeled.segment(
            run, folder, out=tmp_path / "x", accelerator="cpu", **few, finetune=True, finetune_warmup_steps=8
        )
    (folder / "classes.txt").write_text("background\ndisc\n")
    with pytest.raises(
        unlabeled.UserError, match=r"classes.txt names 2 classes, and the label maps have numbers up to 3"
    ):
        unlabeled.segment(run, folder, out=tmp_path / "x", accelerator="cpu", **few)
    with pytest.raises(unlabeled.UserError, match=r"data=.*: no such folder"):
        unlabeled.segment(run, tmp_path / "nowhere", out=tmp_path / "x")


def test_weights_of_a_library_need_a_folder_for_the_page_and_an_empty_list_is_refused(run: Path) -> None:
    with pytest.raises(unlabeled.UserError, match=r"give out=FOLDER"):
        unlabeled.transfer("timm:resnet18", ["digits"])
    with pytest.raises(
        unlabeled.UserError, match=r"none of the data sets could be had; dtd: .*set root=.*download=true"
    ):
        unlabeled.transfer(run, "dtd", root=run, **SMALL)
    assert not (run / "transfer").exists()
    with pytest.raises(unlabeled.UserError, match=r"data: has no default"):
        unlabeled.transfer(run, [])


def test_five_sets_of_ten_thousand_cached_features_take_less_than_two_minutes() -> None:
    """One set of them, with time for five: 10,000 rows of 128 features in ten classes, all protocols."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (12_000,), generator=draw)
    x = torch.randn(10, 128, generator=draw)[labels] * 0.4 + torch.randn(12_000, 128, generator=draw)
    features = Features(x, labels, torch.arange(12_000))
    train, test = features.rows(torch.arange(10_000)), features.rows(torch.arange(10_000, 12_000))
    task = vision_task("clouds", TOP1, list("abcdefghij"), train, None, test, seed=0)
    start = time.process_time()
    linear(task, PENALTIES, 1000)
    nearest_neighbours(task, 20, 0.07)
    for count in (1, 2, 4, 8, 16):
        few_shots(task, count, 10, 4000.0, 1000, 0)
    assert time.process_time() - start < 24

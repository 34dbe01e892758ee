"""A run without labels ends with a page and a report, and ``explore`` makes the same page of its features."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import unlabeled
from tests.browser import browser
from unlabeled.commands.arguments.compose import composed
from unlabeled.commands.train.ending import tell
from unlabeled.commands.train.train import Trained, train
from unlabeled.data.labels import LabelSelection
from unlabeled.errors import UserError

NAME = "<img src=x onerror=alert(1)>.png"
QUICK = [
    "backbone=resnet_thin",
    "backbone.width=0.125",
    "views=simclr_small",
    "views.size=16",
    *("max_steps=2", "batch_size=8", "num_workers=0", "plan=null", "pictures=null", "online_knn=null"),
    *("trainer.accelerator=cpu", "trainer.precision=32-true"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several sizes in a flat folder, the first of them twice."""
    folder = tmp_path_factory.mktemp("flat")
    (folder / "photos").mkdir()
    generator = np.random.default_rng(0)
    for number in range(24):
        pixels = generator.integers(0, 256, (20 + number % 3, 24, 3), np.uint8)
        for name in [NAME, "twin.png"] if number == 0 else [f"{number}.png"]:
            Image.fromarray(pixels).save(folder / "photos" / name)
    return folder


def trained(folder: Path, name: str, *more: str) -> tuple[Trained, list[str]]:
    said: list[str] = []
    data = ["data=folder", f"data.path={folder}/photos", "data.image_size=16"]
    config = composed("train", [*data, *QUICK, f"run_dir={folder}/{name}", *more])
    return train(config, "the command", said.append), said


@pytest.fixture(scope="module")
def ended(folder: Path) -> Trained:
    return trained(folder, "run")[0]


class Painted:
    """Labelled images named from another folder, as ``data.path=../photos`` names them."""

    square, image_size, classes = True, 8, ["one"]

    def __init__(self, files: list[Path]) -> None:
        self.names = [os.path.relpath(file) for file in files]
        self.labels = torch.zeros(len(files), dtype=torch.long)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def decode(self, index: int) -> torch.Tensor:
        raise AssertionError


def about(page: Path) -> Any:
    found = re.search(r'id="about">(.*?)</script>', page.read_text())
    assert found is not None
    return json.loads(found[1])


def blocks(page: Path) -> list[str]:
    """Numbers and pictures of a page."""
    return re.findall(r'<script type="text/plain"[^>]*>([^<]*)<', page.read_text())


def test_a_run_without_labels_ends_with_both_pages_and_says_so(ended: Trained, folder: Path) -> None:
    page, report = folder / "run" / "explore.html", folder / "run" / "report" / "report.html"
    assert ended.pages == [page, report]
    said: list[str] = []
    tell(ended.run_dir, ended.rows, said.append, pages=ended.pages)
    assert said[1] == f"no labelled test images: {report} has rank, invariances and clusters, {page} every image"
    assert [line.split("open ")[1] for line in said if "open " in line] == [str(report), str(page)]
    assert not any("nothing" in line for line in said if "healthy" not in line)


def test_the_report_has_curves_health_measures_and_pictures_and_no_name_is_markup(ended: Trained) -> None:
    text = ended.pages[1].read_text()
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    for title in ("Loss while training", "Spectrum", "Invariances", "Rank and invariance", "Clusters"):
        assert title in titles
    assert {"Health", "Warnings"} & {*titles}
    assert titles[-5:] == ["Nearest images", "Outliers", "Near duplicates", "What to label first", "Provenance"]
    assert "&lt;img src=x onerror=alert(1)&gt;.png" in text
    assert "<img src=x" not in text
    assert re.search(r"\d+ of 128 dimensions are used|\d+ of \d+ dimensions are used", text)


def test_explore_of_the_run_and_of_its_table_of_features_is_the_page_of_its_end(ended: Trained, folder: Path) -> None:
    again = unlabeled.explore(ended.run_dir, out=folder / "again.html", batch_size=8, num_workers=0)
    assert blocks(again) == blocks(ended.pages[0])
    table = unlabeled.embed(ended.run_dir, batch_size=8, num_workers=0).save(folder / "features.parquet")
    from unlabeled.commands.features.explore import explore

    keys = [f"embeddings={table}", "data=folder", f"data.path={folder}/photos", "data.image_size=16"]
    config = composed("explore", [*keys, "num_workers=0", f"out={folder}/table.html"])
    said: list[str] = []
    assert blocks(explore(config, dict(config), said.append)) == blocks(ended.pages[0])
    assert said[-1].startswith(f"the page is {folder}/table.html, ")
    found = about(again)
    assert found["root"] == f"{folder}/photos/"
    assert sorted(found["names"]) == sorted(path.name for path in (folder / "photos").iterdir())


def test_a_selection_of_the_page_is_a_data_set_and_a_list_of_labels(ended: Trained, folder: Path) -> None:
    from unlabeled.data.sources.folder import folder as read

    found = about(ended.pages[0])
    names = [found["root"] + name for name in found["names"][3:9]]
    (folder / "selection.txt").write_text("".join(f"{name}\n" for name in names))
    source = read(str(folder / "selection.txt")).train
    assert [source.name(row) for row in range(len(source))] == names
    labelled = Painted(sorted((folder / "photos").iterdir()))
    chosen = LabelSelection(str(folder / "selection.txt"), None, None, 0, "probe.few_labels").of(labelled)
    assert sorted(f"{folder}/photos/{name}" for name in chosen.names) == sorted(names)


def test_a_run_says_what_it_lacks_where_no_pages_are_wanted_and_too_few_images_are_not_measured(
    folder: Path, tmp_path: Path
) -> None:
    without, said = trained(folder, "without", "explore_images=0")
    assert without.pages == []
    assert said == [
        f"no probe, or no test split: nothing is evaluated; the trained state is {folder}/without/checkpoints/last.ckpt"
    ]
    assert not (folder / "without" / "explore.html").exists()
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (20, 20), (40 * number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
    few, said = trained(tmp_path, "few", "batch_size=2")
    assert [line for line in said if line.startswith("rank and invariance are not measured: ")]
    assert "Clusters" in few.pages[1].read_text()


def test_images_in_memory_and_a_network_are_explored_too_and_what_is_given_twice_is_refused(
    ended: Trained, folder: Path
) -> None:
    pictures = [Image.new("RGB", (20, 20), (40 * number, 0, 0)) for number in range(5)]
    page = unlabeled.explore(unlabeled.load(ended.run_dir), pictures, out=folder / "memory.html", clusters=2)
    assert about(page)["names"] == [f"image {number}" for number in range(5)]
    for given in ({"data": folder / "photos", "embeddings": "x.npy"}, {"data": pictures, "data.path": "x"}):
        with pytest.raises(UserError):
            unlabeled.explore(ended.run_dir, **given, out=folder / "x.html")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_the_report_asks_for_nothing_and_is_as_wide_as_the_screen(ended: Trained, width: int, dark: bool) -> None:
    with browser() as window:
        window.open(ended.pages[1], width, dark)
        assert window.complaints() == []
        assert window.requests() == [ended.pages[1].as_uri()]
        assert window.run("return document.documentElement.scrollWidth") <= width

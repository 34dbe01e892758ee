"""``unlabeled label`` and ``unlabeled active`` on a small run: lists that are read again, a page, its numbers."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import unlabeled
from tests.commands.test_from_python import KEYS
from unlabeled.evaluation.selection.typicality import typical_rows

SMALL: dict[str, Any] = {"num_workers": 0, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unlabeled.train(
        out=tmp_path_factory.mktemp("label") / "run",
        **{key: value for key, value in KEYS.items() if key != "probe.knn.k"} | {"probe": "none"},
    ).folder


def test_the_first_list_is_of_typical_images_and_the_next_has_none_of_them(run: Path, tmp_path: Path) -> None:
    first = unlabeled.label(run, n=6, out=tmp_path / "first.txt", **SMALL)
    vectors = unlabeled.embed(run, num_workers=0, accelerator="cpu", normalize=True)
    x = vectors.x[[split == "train" for split in vectors.splits]]
    assert first.ids == typical_rows(x, 6).tolist()
    assert (
        (tmp_path / "first.txt").read_text().splitlines()
        == first.names
        == [f"digits train image {i}" for i in first.ids]
    )
    for strategy in ("margin", "typical"):
        second = unlabeled.label(run, n=9, strategy=strategy, labels=tmp_path / "first.txt", **SMALL)
        assert len({*second.ids} - {*first.ids}) == 9


def test_a_list_of_photographs_is_filled_in_and_asks_for_the_next(run: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    out = tmp_path / "first.csv"
    unlabeled.label(run, tmp_path / "photos", n=4, strategy="k_center", out=out, **SMALL)
    rows = list(csv.reader(out.open()))
    assert rows[0] == ["path", "label"]
    assert all((tmp_path / path).is_file() and label == "" for path, label in rows[1:])
    out.write_text("path,label\n" + "".join(f"{path},{'ab'[place % 2]}\n" for place, (path, _) in enumerate(rows[1:])))
    left = unlabeled.label(run, tmp_path / "photos", n=8, strategy="entropy", labels=out, **SMALL)
    asked = {Path(path).name for path, _ in rows[1:]}
    assert {Path(name).name for name in left.names} == {f"{number}.png" for number in range(12)} - asked
    with pytest.raises(unlabeled.UserError, match=r"n=10: only 9 images have no label yet; give a smaller n"):
        unlabeled.label(run, tmp_path / "photos", n=10, labels=out, **SMALL)


def test_a_strategy_that_asks_a_classifier_says_what_to_do_where_nothing_is_labelled(run: Path) -> None:
    with pytest.raises(
        unlabeled.UserError, match=r"strategy=margin: .* give labels=FILE .* or strategy=typical or k_ce"
    ):
        unlabeled.label(run, strategy="margin")


def test_the_page_has_a_curve_with_random_beside_it_and_the_lists_of_every_round(run: Path) -> None:
    found = unlabeled.active(run, strategy=["margin"], start=12, step=8, rounds=3, seeds=2, pool_images=200, **SMALL)
    assert found.counts == [12, 20, 28]
    assert [(each.strategy, each.seed) for each in found.courses] == [
        (strategy, seed) for seed in (0, 1) for strategy in ("random", "margin")
    ]
    folder = found.page.parent
    assert folder == run / "active"
    values = json.loads((folder / "active.json").read_text())
    ours = values["strategies"]["margin"]
    assert ours["saved"]["mean"] == found.savings["margin"].saved.mean
    asked = [name for names in ours["seeds"]["1"]["rounds"] for name in names]
    assert (folder / "lists" / "margin_seed1.txt").read_text().splitlines() == asked
    assert [len(names) for names in ours["seeds"]["1"]["rounds"]] == [12, 8, 8]
    page = found.page.read_text()
    assert found.headline in page
    assert f"Of the 28 labels by which random reaches {found.savings['random'].top1[-1].mean:.2f} %: " in page
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert (folder / "active.png").stat().st_size > 5000
    assert found.table in (folder / "active.md").read_text()

"""An evaluation adds to the report of a run: what it did not measure again stays, with its day and its predictions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import unlabeled
from tests.commands.test_from_python import KEYS
from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.predictions import read_predictions, write_predictions
from unlabeled.evaluation.reporting.earlier import read_earlier
from unlabeled.evaluation.reporting.report import write_report

LABELS, IDS = torch.tensor([0, 1, 1]), torch.tensor([4, 5, 6])


def facts(sha256: str = "a", date: str = "2026-11-01T00:00:00", **data: Any) -> dict[str, Any]:
    prints = {"train_fingerprint": "t", "test_fingerprint": "s", "description": "three images"}
    known = prints | {"train_labels_sha256": "x", "test_labels_sha256": "y"} | data
    checkpoint = {"path": "run/last.ckpt", "sha256": sha256, "step": 30, "encoder": "backbone"}
    settings = {"precision": "32-true", "seed": 0, "probe": {}}
    return {"date": date, "checkpoint": checkpoint, "data": known, "views": {"size": 8}, "settings": settings}


def row(protocol: str, top1: float, day: str = "2026-11-01T00:00:00") -> Row:
    return Row("pretrained", protocol, top1, n_train=9, n_test=3, measured=day, predictions=torch.tensor([0, 1, 0]))


def write(folder: Path, rows: list[Row], about: dict[str, Any]) -> list[Row]:
    """As the evaluation does."""
    earlier = read_earlier(folder, rows, about, LABELS, IDS)
    whole = [*rows, *earlier.rows]
    write_report(folder, whole, about, earlier=earlier)
    write_predictions(folder, whole, LABELS, IDS)
    return whole


def test_rows_of_the_same_checkpoint_and_images_stay_unless_they_are_measured_again(tmp_path: Path) -> None:
    write(tmp_path, [row("linear", 60.0), row("knn", 50.0)], facts())
    day = "2026-11-02T00:00:00"
    found = write(tmp_path, [row("knn", 51.0, day)], facts(date=day))
    assert [(each.protocol, each.top1, each.measured) for each in found] == [
        ("knn", 51.0, day),
        ("linear", 60.0, "2026-11-01T00:00:00"),
    ]
    assert read_predictions(tmp_path).classes["pretrained", "linear"].tolist() == [0, 1, 0]
    assert "Measured earlier, of the same checkpoint and images: linear on 2026-11-01." in (
        (tmp_path / "report.md").read_text()
    )
    again = write(tmp_path, [row("knn", 52.0, day)], facts(date=day))
    assert [each.protocol for each in again] == ["knn", "linear"]


@pytest.mark.parametrize(
    "other",
    [facts("b"), facts(test_fingerprint="z"), facts() | {"views": {"size": 9}}],
    ids=["checkpoint", "data", "view"],
)
def test_rows_of_something_else_stand_in_a_list_of_their_own_and_come_back(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    write(tmp_path, [row("linear", 60.0)], facts())
    assert [each.protocol for each in write(tmp_path, [row("knn", 51.0)], other)] == ["knn"]
    stored = json.loads((tmp_path / "results.json").read_text())
    assert [each["rows"][0]["top1"] for each in stored["earlier"]] == [60.0]
    assert not read_earlier(tmp_path, [row("knn", 52.0)], other, LABELS, IDS).moved
    assert read_earlier(tmp_path, [row("knn", 52.0)], facts(), LABELS, IDS).moved
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text().replace("<wbr>", "")
        assert "Earlier evaluations" in text
        assert "60.00" in text
    back = write(tmp_path, [row("knn", 40.0)], facts())
    assert [(each.protocol, each.top1) for each in back] == [("knn", 40.0), ("linear", 60.0)]
    stored = json.loads((tmp_path / "results.json").read_text())
    assert [each["rows"][0]["top1"] for each in stored["earlier"]] == [51.0]


def test_a_damaged_report_is_replaced_and_stored_predictions_of_other_images_are_not_taken(tmp_path: Path) -> None:
    write(tmp_path, [row("linear", 60.0)], facts())
    found = read_earlier(tmp_path, [], facts(), LABELS, IDS + 1)
    assert [each.predictions for each in found.rows] == [None]
    (tmp_path / "predictions.safetensors").write_bytes(b"damaged")
    assert read_earlier(tmp_path, [], facts(), LABELS, IDS).rows[0].predictions is None
    (tmp_path / "results.json").write_text('{"rows": 3}')
    assert [each.protocol for each in write(tmp_path, [row("knn", 51.0)], facts())] == ["knn"]


def test_a_smaller_evaluation_of_a_run_leaves_its_numbers_and_classifiers(tmp_path: Path) -> None:
    keys = {key: value for key, value in KEYS.items() if key != "probe.knn.k"} | {"probe": "quick"}
    run = unlabeled.train(out=tmp_path / "run", **keys)
    results = tmp_path / "run" / "report" / "results.json"
    before = json.loads(results.read_text())["rows"]
    heads = sorted(path.name for path in (tmp_path / "run" / "report" / "heads").iterdir())
    unlabeled.evaluate(run.folder, probe="knn", num_workers=0, accelerator="cpu")
    after = json.loads(results.read_text())["rows"]
    numbers = [{(each["features"], each["protocol"]): each["top1"] for each in rows} for rows in (before, after)]
    assert numbers[0] == numbers[1]
    assert heads == sorted(path.name for path in (tmp_path / "run" / "report" / "heads").iterdir())
    predicted = unlabeled.predict(run.folder, head="linear", num_workers=0, accelerator="cpu")
    assert len(predicted.names) == 450


@pytest.mark.parametrize(
    "changed",
    [
        {"earlier": [{"rows": []}, 3, {"rows": [3]}, {"rows": [{}], "checkpoint": 7}]},
        {"provenance": {"checkpoint": "x"}},
    ],
)
def test_a_report_of_anybody_may_hold_anything_and_the_new_one_is_written(
    changed: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path, [row("linear", 60.0)], facts())
    stored = json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(stored | changed))
    assert "knn" in [each.protocol for each in write(tmp_path, [row("knn", 50.0)], facts())]

"""One page of all tasks: its lines, published numbers beside them, and what differs."""

import json
from pathlib import Path
from typing import Any

import pytest

from unlabeled.downstream.all_tasks import read_lines, write_all_tasks
from unlabeled.downstream.published import Asked, published_for

RESNET50 = {"_target_": "unlabeled.backbones.resnet.ResNet", "depth": 50, "width": 1, "stem": "imagenet"}
BYOL = {"objective": {"_target_": "unlabeled.objectives.byol.BYOL"}, "backbone": RESNET50, "batch_size": 4096}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder with results of three commands, of two states."""
    rows = [
        {"features": features, "protocol": "linear/x", "top1": top1}
        for features, top1 in (("pretrained", 70.0), ("random init", 40.0), ("raw pixels", 30.0))
    ]
    known = {
        "ours_protocol": "linear/x",
        "published": 74.3,
        "source": "a paper",
        "differs": ["100 epochs instead of 1000"],
    }
    facts: dict[str, Any] = {"checkpoint": {"sha256": "a" * 64, "path": "x"}, "data": {"description": "photos"}}
    write(tmp_path / "report/results.json", {"rows": rows, "references": [known], "provenance": facts})
    judged = {name: {"linear": {"value": value}} for name, value in (("run", 75.0), ("random init", 20.0))}
    write(
        tmp_path / "transfer/transfer.json",
        {
            "networks": ["run", "random init"],
            "tasks": [{"name": "food101", "metric": "top-1", "judged": judged}, {"name": "dtd", "problem": "gone"}],
            "provenance": {"checkpoints": [{"path": "x", "sha256": "b" * 64}], "settings": {}},
        },
    )
    write(
        tmp_path / "segment/segment.json",
        {
            "classes": ["a", "b"],
            "found": {"run / linear": {"mean_iou": 55.0}, "random init / linear": {"mean_iou": 60.0}},
            "provenance": {
                "checkpoint": {"path": "x", "sha256": "b" * 64},
                "images": {"train": 3, "test": 2},
                "settings": {"folder": "maps/shapes", "size": 64},
            },
        },
    )
    precision = {"bbox": {"ap": 41.0, "ap50": 60.0}}
    write(
        tmp_path / "detect/detect.json",
        {
            "classes": ["a"],
            "found": {"run": precision, "random init": {"bbox": {"ap": None}}},
            "provenance": {
                "checkpoints": [{"path": "x", "sha256": "b" * 64}],
                "images": {"train": 3, "val": 2},
                "settings": {"folder": "boxes"},
            },
        },
    )
    write(tmp_path / "config.yaml", BYOL)  # JSON is YAML
    return tmp_path


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def test_every_number_of_the_network_is_a_line_with_random_weights_and_published_numbers_beside(folder: Path) -> None:
    assert write_all_tasks(folder) == folder / "tasks.html"
    lines = json.loads((folder / "tasks.json").read_text())["lines"]
    assert [(line["task"], line["data"], line["value"], line["random"]) for line in lines] == [
        ("classification", "photos", 70.0, 40.0),
        ("transfer", "food101", 75.0, 20.0),
        ("segmentation", "shapes", 55.0, 60.0),
        ("detection", "boxes", 41.0, None),
    ]
    assert [[each["value"] for each in line["published"]] for line in lines] == [[74.3], [75.3], [], []]
    page, text = (folder / "tasks.html").read_text(), (folder / "tasks.md").read_text()
    assert (
        "4 numbers of classification, detection, segmentation, transfer; 2 of 3 are above those of random weights."
        in page
    )
    assert 'href="segment/segment.html"' in page
    assert "of the state aaaaaaaa; 100 epochs instead of 1000" in text
    assert "| 75.00 | 20.00 | 75.3 (BYOL (arXiv 2006.07733), table 3, linear evaluation) |" in text


def test_without_a_task_beside_classification_there_is_no_such_page_and_a_damaged_result_gives_no_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "segment/segment.json").write_text("{")
    (folder / "detect/detect.json").unlink()
    assert [line.task for line in read_lines(folder)] == ["classification", "transfer"]
    assert "segment.json is damaged" in capsys.readouterr().out
    (folder / "transfer/transfer.json").unlink()
    assert write_all_tasks(folder) is None
    assert not (folder / "tasks.html").exists()


def test_published_numbers_are_those_of_the_method_the_architecture_and_the_data_set() -> None:
    def values(task: str, data: str, protocol: str, config: Any, weights: str = "x", **settings: Any) -> list[float]:
        return [each.value for each in published_for(Asked(task, data, protocol, config, weights, settings))]

    assert values("transfer", "flowers102", "linear", BYOL) == [96.1]
    assert values("transfer", "flowers102", "k-NN 20", BYOL) == []
    assert values("transfer", "flowers102", "linear", BYOL | {"backbone": RESNET50 | {"depth": 18}}) == []
    assert values("transfer", "flowers102", "linear", {}) == []
    assert values("segmentation", "ade20k", "linear", {}, "timm:vit_base_patch14_dinov2.lvd142m") == [47.3]
    vit = {"_target_": "unlabeled.backbones.vit.ViT", "width": 768, "depth": 12, "patch_size": 16}
    mae = {"objective": {"_target_": "unlabeled.objectives.mae.MAE"}, "backbone": vit}
    assert values("segmentation", "ade20k", "fine-tuned, simple pyramid", mae) == [48.1]
    (found,) = published_for(Asked("segmentation", "ade20k", "fine-tuned", mae, "x", {"size": 224}))
    assert "size 224 instead of 512" in found.differs
    assert "UperNet" in found.differs[0]


@pytest.mark.parametrize(
    "name", ["report/results.json", "transfer/transfer.json", "segment/segment.json", "detect/detect.json"]
)
@pytest.mark.parametrize(
    "content", [{"networks": [], "found": {}, "rows": [{}]}, {"provenance": 3, "rows": 3, "networks": "x"}]
)
def test_a_file_of_another_version_is_left_out_with_a_warning_and_hides_no_other(
    name: str, content: Any, folder: Path
) -> None:
    whole = len(list(read_lines(folder)))
    write(folder / name, content)
    with pytest.warns(UserWarning, match=rf"{name}: is not as this version writes it"):
        assert 0 < len(list(read_lines(folder))) < whole

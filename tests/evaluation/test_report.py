import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from unlabeled.evaluation.figures import feature_map, loss_curve, read_metrics
from unlabeled.evaluation.judge import Row
from unlabeled.evaluation.report import label_hash, machine, versions, write_report
from unlabeled.evaluation.results_table import table

CHOSEN = {"C": 0.1, "chosen_on": "train", "holdout": 0.1, "holdout_top1": {"0.1": 70.123456789012}}
HASH_OF_1_2 = "0c730b69905c5ef7a4ca5269f72365400bde2dd2c04eaf9bbb3d1c4a265a0131"
ROWS = [
    Row("pretrained", "knn/k=20", 81.25, {}, [], 500, 100),
    Row("pretrained", "linear", 200 / 3, CHOSEN, ["The best C is at an edge."], 500, 100),
    Row("random init", "knn/k=20", 30.0, {}, [], 500, 100),
    Row("raw pixels", "linear", 40.0, CHOSEN, [], 500, 100),
    Row("chance", "chance/majority-class", 12.0, {}, [], 0, 100),
    Row("chance", "chance/uniform", 10.0, {}, [], 0, 100),
]


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_each_protocol_has_a_column_and_what_was_not_measured_stays_empty() -> None:
    lines = cells(table(ROWS))
    assert lines[0] == ["top-1, %", "knn/k=20", "linear"]
    assert lines[2:] == [
        ["pretrained", "81.25", "66.67"],
        ["random init", "30.00", "–"],
        ["pretrained − random init", "+51.25", "–"],
        ["raw pixels", "–", "40.00"],
        ["chance: largest class of test", "12.00", "12.00"],
        ["chance: uniform guess", "10.00", "10.00"],
    ]
    assert len({len(line) for line in table(ROWS).splitlines()}) == 1


def test_results_come_back_from_strict_json_unrounded(tmp_path: Path) -> None:
    provenance = {"checkpoint": {"path": tmp_path / "last.ckpt", "epoch": 3}, "loss": float("nan"), "seeds": (0, 1)}
    write_report(tmp_path / "report", ROWS, provenance)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    results = json.loads((tmp_path / "report" / "results.json").read_text(), parse_constant=refuse)
    assert [Row(**row) for row in results["rows"]] == ROWS
    assert results["provenance"] == {
        "checkpoint": {"path": str(tmp_path / "last.ckpt"), "epoch": 3},
        "loss": None,
        "seeds": [0, 1],
    }
    assert sorted(p.name for p in (tmp_path / "report").iterdir()) == ["report.md", "results.json"]


def test_the_report_says_how_the_numbers_came_about(tmp_path: Path) -> None:
    provenance = {"checkpoint": {"sha256": "abc123"}, "data": "a | b"}
    text = write_report(tmp_path, ROWS, provenance, feature_map=tmp_path / "map.png").read_text()
    assert table(ROWS) in text
    assert "The last epoch was judged" in text
    assert "chosen on 10 % of train" in text
    assert "The test set was used once" in text
    assert "500 labelled train images, 100 labelled test images" in text
    assert "standard error of up to 4.90 points" in text  # 100 * sqrt(0.4 * 0.6 / 100)
    assert "  - Note: The best C is at an edge." in text
    assert "holdout_top1 = {0.1: 70.1235}" in text
    assert "| checkpoint.sha256 | abc123 |" in text
    assert "| data | a \\| b |" in text
    assert "](map.png)" in text


def metrics(path: Path, extra: str = "") -> Path:
    lines = [{"step": s, "epoch": s / 10, "train/loss": 5 - s / 20} for s in range(50)]
    lines += [{"step": s, "epoch": s / 10, "probe/knn_top1": 10.0 + s} for s in range(0, 50, 10)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + extra)
    return path


def test_torn_lines_are_left_out_and_a_resumed_run_overwrites_its_steps(tmp_path: Path) -> None:
    extra = '{"step": 48, "tra{"step": 47}\n{"step": 49, "train/loss": 1.5}\n7\n{"step": 50, "train/lo'
    lines = read_metrics(metrics(tmp_path / "metrics.jsonl", extra))
    assert [line["step"] for line in lines] == list(range(50))
    assert lines[49]["train/loss"] == 1.5
    assert lines[49]["epoch"] == 4.9
    assert lines[10] == {"step": 10, "epoch": 1.0, "train/loss": 4.5, "probe/knn_top1": 20.0}


def test_the_loss_curve_has_a_second_panel_only_where_knn_was_measured(tmp_path: Path) -> None:
    both = metrics(tmp_path / "both.jsonl", '{"step": 60, "epoch": 6, "train/loss": NaN}\n')
    loss_curve(both, tmp_path / "both.png", collapsed_at=6.2)
    only = tmp_path / "only.jsonl"
    only.write_text('{"step": 0, "train/loss": 2.0}\n{"step": 1, "train/loss": 1.0}\n')
    loss_curve(only, tmp_path / "only.png")
    with Image.open(tmp_path / "both.png") as tall, Image.open(tmp_path / "only.png") as short:
        assert tall.height == 2 * short.height
        colours = {colour for _, colour in tall.convert("RGB").getcolors(100_000) or []}
        assert (0xD5, 0x5E, 0x00) in colours  # the dashed line of collapse
    text = write_report(tmp_path / "report", ROWS, {}, metrics=both).read_text()
    assert "](loss_curve.png)" in text


@pytest.mark.parametrize(("n", "classes"), [(3, 2), (40, 10), (50, 30)])
def test_the_feature_map_is_the_same_each_time_and_leaves_the_random_state(
    n: int, classes: int, tmp_path: Path
) -> None:
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(0))
    labels, names = torch.arange(n) % classes, [f"class {i}" for i in range(classes)]
    before = torch.get_rng_state()
    for name in ("a.png", "b.png"):
        feature_map(x, labels, names, tmp_path / name)
    assert torch.equal(torch.get_rng_state(), before)
    with Image.open(tmp_path / "a.png") as first, Image.open(tmp_path / "b.png") as second:
        assert first.tobytes() == second.tobytes()
        assert len(first.convert("RGB").getcolors(100_000) or []) > 10


@pytest.mark.parametrize("x", [torch.ones(60, 8), torch.randn(60, 1), torch.zeros(60, 8)])
def test_a_collapsed_network_still_gets_its_map(x: torch.Tensor, tmp_path: Path) -> None:
    feature_map(x, torch.arange(60) % 3, ["a", "b", "c"], tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as image:
        assert image.size == (1200, 900)


def test_the_label_hash_is_that_of_little_endian_int64() -> None:
    # printf '\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0' | sha256sum
    assert label_hash(torch.tensor([1, 2])) == HASH_OF_1_2
    assert label_hash(torch.tensor([1, 2], dtype=torch.int32)) == HASH_OF_1_2
    assert label_hash(torch.tensor([2, 1])) != HASH_OF_1_2


def test_versions_and_machine_name_what_decides_a_number() -> None:
    assert versions()["torch"] == torch.__version__
    assert versions()["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(versions()) == {"python", "torch", "torchvision", "pytorch-lightning", "scikit-learn", "Pillow"}
    assert set(machine()) == {"system", "cpus", "cpu", "gpus"}
    assert machine()["cpus"] >= 1


def test_importing_the_evaluation_loads_neither_sklearn_nor_matplotlib() -> None:
    code = (
        "import sys, unlabeled.evaluation.report, unlabeled.evaluation.linear, unlabeled.evaluation.knn\n"
        "print(sorted({'sklearn', 'matplotlib', 'hydra', 'pytorch_lightning'} & set(sys.modules)))"
    )
    source = str(Path(__file__).parents[2] / "ssl")
    result = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": source}, capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr

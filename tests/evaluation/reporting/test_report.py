import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.ImageColor import getrgb

from unlabeled.core.environment import git_state, hash_labels, machine, versions
from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.reporting.chosen import chosen_settings, chosen_tables
from unlabeled.evaluation.reporting.figures import (
    draw_feature_map,
    label_curve,
    loss_curve,
    place_features,
    read_metrics,
)
from unlabeled.evaluation.reporting.report import write_report
from unlabeled.evaluation.reporting.results_table import (
    accuracy_table,
    format_gain,
    other_metrics,
    paired_p,
    short_names,
)
from unlabeled.evaluation.reporting.run_summary import format_reference, headline, report_warnings
from unlabeled.pages.palette import PALETTE
from unlabeled.pages.plots import figure_as_svg

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
    lines = cells(accuracy_table(ROWS))
    assert lines[0] == ["top-1, %", "knn/k=20", "linear"]
    assert lines[2:] == [
        ["pretrained", "81.25", "66.67"],
        ["random init", "30.00", "–"],
        ["pretrained − random init", "+51.25", "–"],
        ["raw pixels", "–", "40.00"],
        ["pretrained − raw pixels", "–", "+26.67"],
        ["chance: largest class of test", "12.00", "12.00"],
        ["chance: uniform guess", "10.00", "10.00"],
    ]
    assert len({len(line) for line in accuracy_table(ROWS).splitlines()}) == 1


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
    names = sorted(p.name for p in (tmp_path / "report").iterdir())
    assert names == ["report.html", "report.md", "results.json"]


def test_the_report_says_how_the_numbers_came_about(tmp_path: Path) -> None:
    provenance = {"checkpoint": {"sha256": "abc123"}, "data": "a | b"}
    text = write_report(tmp_path, ROWS, provenance).with_suffix(".md").read_text()
    assert accuracy_table(ROWS) in text
    assert "The last epoch was evaluated" in text
    assert "chosen on 10 % of train" in text
    assert "The test set was used once" in text
    assert "500 labelled train images, 100 labelled test images" in text
    assert "standard error of up to 4.90 points" in text  # 100 * sqrt(0.4 * 0.6 / 100)
    assert "- The best C is at an edge. (pretrained, linear)" in text
    assert "holdout_top1 = {0.1: 70.1235}" in text
    assert "| checkpoint.sha256 | abc123 |" in text
    assert "| data | a \\| b |" in text


def test_the_page_leads_to_the_configuration_of_its_run_where_that_lies_beside_it(tmp_path: Path) -> None:
    run = tmp_path / "a run"
    about = {"checkpoint": {"path": run / "checkpoints" / "last.ckpt"}, "run_config": {"batch_size": 8}}
    assert "config.yaml</a>" not in write_report(run / "report", ROWS, about).read_text()
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("batch_size: 8\n")
    assert '<a href="../config.yaml">' in write_report(run / "report", ROWS, about).read_text()
    assert '<a href="../../a%20run/config.yaml">' in write_report(tmp_path / "b" / "c", ROWS, about).read_text()


def mapped(x: torch.Tensor, labels: torch.Tensor, classes: list[str], seed: int = 0) -> Any:
    return draw_feature_map(place_features(x, seed), labels, classes)


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
    loss_curve(both, collapsed_at=6.2).savefig(tmp_path / "both.png")
    only = tmp_path / "only.jsonl"
    only.write_text('{"step": 0, "train/loss": 2.0}\n{"step": 1, "train/loss": 1.0}\n')
    loss_curve(only).savefig(tmp_path / "only.png")
    with Image.open(tmp_path / "both.png") as tall, Image.open(tmp_path / "only.png") as short:
        assert tall.height == 2 * short.height
        colours = {colour for _, colour in tall.convert("RGB").getcolors(100_000) or []}
        assert getrgb(PALETTE[3]) in colours  # the dashed line of collapse
    text = write_report(tmp_path / "report", ROWS, {}, metrics=both).with_suffix(".md").read_text()
    assert "](loss_curve.png)" in text


@pytest.mark.parametrize(("n", "classes"), [(3, 2), (40, 10), (50, 30)])
def test_the_feature_map_is_the_same_each_time_and_leaves_the_random_state(n: int, classes: int) -> None:
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(0))
    labels, names = torch.arange(n) % classes, [f"class {i}" for i in range(classes)]
    before = torch.get_rng_state()
    first, second = (figure_as_svg(mapped(x, labels, names), "map") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == second
    assert first.count("<use ") >= n


@pytest.mark.parametrize("x", [torch.ones(60, 8), torch.randn(60, 1), torch.zeros(60, 8)])
def test_a_collapsed_network_still_gets_its_map(x: torch.Tensor) -> None:
    assert "PCA of 60 test features" in figure_as_svg(mapped(x, torch.arange(60) % 3, ["a", "b", "c"]), "map")


def test_the_map_says_by_which_method_it_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlabeled.evaluation.reporting.figures.find_spec", lambda name: None)
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    assert "t-SNE of 60 test features" in figure_as_svg(mapped(x, torch.arange(60) % 3, ["a", "b", "c"]), "map")


def test_umap_maps_a_thousand_features_or_more_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, int]] = []

    class UMAP:
        def __init__(self, **settings: int) -> None:
            asked.append(settings)

        def fit_transform(self, x: Any) -> Any:
            return x[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    monkeypatch.setattr("unlabeled.evaluation.reporting.figures.find_spec", lambda name: name == "umap")
    x = torch.randn(2500, 6, generator=torch.Generator().manual_seed(0))
    assert "UMAP of 1,000 test features" in figure_as_svg(
        mapped(x, torch.arange(2500) % 3, ["a", "b", "c"], seed=7), "map"
    )
    assert asked == [{"random_state": 7, "n_jobs": 1}]


def test_a_plot_takes_its_colours_from_the_page_and_refers_to_nothing_outside() -> None:
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    drawn = figure_as_svg(mapped(x, torch.arange(40) % 10, [f"${i}_2$ <b>" for i in range(10)]), 'a "map"')
    assert 'aria-label="a &quot;map&quot;"' in drawn
    assert "var(--ink)" in drawn
    assert "var(--colour-9)" in drawn
    assert "$3_2$ &lt;b&gt;" in drawn  # a name is no formula
    assert "<metadata" not in drawn
    assert set(re.findall(r"https?://[^\"]+", drawn)) == {"http://www.w3.org/1999/xlink"}  # a name, not an address


def test_intervals_and_deviations_stand_beside_their_numbers() -> None:
    rows = [
        Row("pretrained", "knn", 80.0, interval=(78.123, 81.999), draws=[79.0, 80.0, 81.0], n_test=100),
        Row("random init", "knn", 82.5, n_test=100),
    ]
    lines = cells(accuracy_table(rows))
    assert lines[2] == ["pretrained", "80.00 ± 1.00 [78.12, 82.00]"]  # the sample deviation of the three
    assert lines[4] == ["pretrained − random init", "−2.50"]
    assert (
        headline(rows)
        == "80.00 % ± 1.00 [78.12, 82.00] of 100 test images by k-NN; −2.50 points against random weights."
    )
    assert report_warnings(rows, {}) == ["Pretrained features are no better than those of random weights (knn)."]


def test_the_headline_says_the_gain_over_everything_that_is_to_be_beaten() -> None:
    kinds = {"pretrained": 60.0, "random init": 30.0, "raw pixels": 61.5, "start": 59.0}
    rows = [Row(kind, "knn/cosine-exp/k=20/T=0.07", top1, n_test=9) for kind, top1 in kinds.items()]
    assert headline(rows) == (
        "60.00 % of 9 test images by k-NN 20; +30.00 points against random weights, −1.50 points against raw pixels, "
        "+1.00 points against the weights at the start."
    )


def test_protocols_have_short_names_and_no_two_of_them_the_same() -> None:
    knn = "knn/cosine-exp/k={}/T={}"
    few = "linear/cached-lbfgs-v1/{}/3 draws"
    names = short_names([knn.format(20, 0.07), knn.format(20, 0.1), knn.format(200, 0.1), few.format("1 per class")])
    assert list(names.values()) == ["k-NN 20, T=0.07", "k-NN 20, T=0.1", "k-NN 200", "1 label a class"]
    others = ["linear/cached-lbfgs-v1", few.format("5 per class"), few.format("10%"), "linear/mae-bn-lars", "kmeans/x"]
    assert list(short_names(others).values()) == [
        "linear",
        "5 labels a class",
        "10% of labels",
        "linear, mae bn lars",
        "k-means",
    ]


def test_a_difference_has_the_p_of_the_paired_test_and_is_called_gain_or_loss_only_where_it_is_sure() -> None:
    labels = torch.zeros(20, dtype=torch.long)

    def right(first: int, last: int) -> torch.Tensor:
        return torch.tensor([0 if first <= n < last else 1 for n in range(20)])

    ours = Row("pretrained", "linear", 50.0, predictions=right(0, 10))
    for other, expected in (
        (Row("raw pixels", "linear", 0.0, predictions=right(0, 0)), ("+50.00", ("p = 0.002",), "gain")),  # 2 / 2¹⁰
        (Row("raw pixels", "linear", 100.0, predictions=right(0, 20)), ("−50.00", ("p = 0.002",), "loss")),
        (Row("raw pixels", "linear", 45.0, predictions=right(0, 9)), ("+5.00", ("p = 1",), "")),
        (Row("raw pixels", "linear", 45.0), ("+5.00", (), "gain")),
    ):
        cell = format_gain(ours, other, labels)
        assert (cell.number, cell.more, cell.kind) == expected
    drawn = (
        Row("pretrained", "few", 52.0, draws=[50.0, 52.0, 54.0]),
        Row("raw pixels", "few", 49.0, draws=[48.0, 49.0, 50.0]),
    )
    t = 3 * 3**0.5  # differences 2, 3, 4: mean 3, deviation 1
    assert paired_p(*drawn, labels) == pytest.approx(1 - t / (2 + t * t) ** 0.5, abs=1e-9)  # of two degrees of freedom


def test_what_was_chosen_is_a_table_with_a_line_for_each_kind_of_features() -> None:
    tried = {"0.1": 70.0}
    rows = [
        Row("pretrained", "linear", 50.0, {"C": 0.1, "holdout": 0.1, "tried": tried}),
        Row("raw pixels", "linear", 40.0, {"C": 1.0, "holdout": 0.1}),
    ]
    (table,) = chosen_tables(rows)
    assert (table.common, table.keys) == ([("holdout", "0.1")], ["C"])
    assert table.lines == [("pretrained", ["0.1"]), ("raw pixels", ["1"])]
    assert [(name, json.loads(text)) for name, text in table.folded] == [("tried", {"pretrained": {"tried": tried}})]
    draws = [{"C": 0.1, "seed": 0, "tried": tried}, {"C": 1.0, "seed": 0, "tried": tried}]
    (of_draws,) = chosen_tables(
        [Row("pretrained", "few", 50.0, {"of_each_draw": draws}), Row("raw pixels", "few", 9.0)]
    )
    assert (of_draws.keys, of_draws.lines[0]) == (["C", "seed"], ("pretrained", ["0.1, 1", "0"]))


def test_the_headline_takes_the_best_known_protocol_and_not_the_best_number() -> None:
    assert headline(ROWS).startswith("66.67 % of 100 test images by linear; +26.67 points")  # k-NN is at 81.25
    assert headline(ROWS[4:]) == "No pretrained features were evaluated."


def test_a_note_of_several_rows_is_said_once_and_whatever_else_is_to_be_doubted_is_said() -> None:
    rows = [Row("pretrained", protocol, 50.0, notes=["Nothing was learnt."]) for protocol in ("knn", "linear")]
    provenance = {"git": {"commit": "abc", "dirty": True}, "data": {"corrupt_images": 2}}
    reference = {"name": "MAE", "protocol": "linear", "differs": ["100 epochs"], "published": 67.8, "ours": None}
    assert report_warnings(rows, provenance, [reference]) == [
        "Nothing was learnt. (pretrained, knn; pretrained, linear)",
        "MAE: differs from what was published in 1 thing listed below.",
        "The code had changes that are in no commit.",
        "2 images could not be decoded and were left out.",
    ]
    assert format_reference(reference) == ["MAE", "linear", "–", "67.80", "–", "–", "100 epochs", ""]


def test_what_was_chosen_in_each_draw_is_folded_and_not_lost(tmp_path: Path) -> None:
    lists = [{"sha256": "abc", "holdout": 0.2} for _ in (0, 1)]
    rows = [
        Row("pretrained", "few", 50.0, {"labels": lists, "C": 5.0, "tried": {"5": 1.0}}, draws=[49.0, 51.0], n_test=9)
    ]
    assert chosen_settings(rows) == [("pretrained", "few", "C = 5, tried = {5: 1}", {"labels": lists})]
    page = write_report(tmp_path, rows, {})
    assert "few: C = 5, tried = {5: 1}; labels of each draw: in results.json" in page.with_suffix(".md").read_text()
    assert "chosen on 20 % of train" in page.read_text()
    assert "<summary>labels and tried</summary>" in page.read_text()


def test_a_doubt_of_many_rows_names_the_first_few() -> None:
    rows = [Row("pretrained", f"p{n}", 50.0, notes=["Doubt."]) for n in range(6)]
    assert report_warnings(rows, {}) == [
        "Doubt. (pretrained, p0; pretrained, p1; pretrained, p2; pretrained, p3; and 2 more)"
    ]


def test_further_metrics_have_a_column_each_and_a_group_of_lines_for_each_protocol() -> None:
    rows = [
        Row("pretrained", "kmeans", 30.0, metrics={"nmi": 0.12345}),
        Row("pretrained", "linear", 50.0, metrics={"aurc_entropy": 0.01, "ece": 0.1, "nmi": 0.5}),
        Row("random init", "linear", 40.0, metrics={"ece": 0.25}),
    ]
    usual = other_metrics(rows, usual=True)
    assert usual.titles == ["NMI", "ECE"]
    assert {name: [(line.name, *map(str, line.cells)) for line in lines] for name, lines in usual.groups.items()} == {
        "kmeans": [("pretrained", "0.1235", "–")],
        "linear": [("pretrained", "0.5", "0.1"), ("random init", "–", "0.25")],
    }
    others = other_metrics(rows, usual=False)
    assert others.titles == ["AURC entropy"]
    assert [(line.name, *map(str, line.cells)) for line in others.groups["linear"]] == [("pretrained", "0.01")]


def test_the_commit_is_that_of_the_code_and_nobodys_else(tmp_path: Path) -> None:
    def git(*command: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", "-C", str(tmp_path), *identity, *command], check=True, capture_output=True)
        return done.stdout.decode().strip()

    assert git_state(tmp_path) == {"commit": None, "dirty": None}
    git("init")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    assert git_state(tmp_path / "code") == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "code" / "a.py").write_text("2")
    assert git_state(tmp_path / "code")["dirty"] is True
    (tmp_path / "installed").mkdir()  # in the repository, unknown to it
    (tmp_path / "installed" / "b.py").write_text("1")
    assert git_state(tmp_path / "installed") == {"commit": None, "dirty": None}


def test_without_git_the_report_says_that_the_commit_is_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state() == {"commit": None, "dirty": None}
    text = write_report(tmp_path, ROWS, {"git": git_state()}).with_suffix(".md").read_text()
    assert "| git.commit | unknown |" in text


def test_the_label_hash_is_that_of_little_endian_int64() -> None:
    # printf '\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0' | sha256sum
    assert hash_labels(torch.tensor([1, 2])) == HASH_OF_1_2
    assert hash_labels(torch.tensor([1, 2], dtype=torch.int32)) == HASH_OF_1_2
    assert hash_labels(torch.tensor([2, 1])) != HASH_OF_1_2


def test_versions_and_machine_name_what_decides_a_number() -> None:
    assert versions()["torch"] == torch.__version__
    assert versions()["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(versions()) == {"python", "torch", "torchvision", "pytorch-lightning", "scikit-learn", "Pillow"}
    assert set(machine()) == {"system", "cpus", "cpu", "gpus"}
    assert machine()["cpus"] >= 1


def test_importing_the_evaluation_loads_neither_sklearn_nor_matplotlib() -> None:
    code = (
        "import sys, unlabeled.evaluation.reporting.report, unlabeled.evaluation.knn"
        ", unlabeled.evaluation.probes.logistic, unlabeled.evaluation.probes.sgd_grid\n"
        "print(sorted({'sklearn', 'matplotlib', 'hydra', 'pytorch_lightning'} & set(sys.modules)))"
    )
    source = str(Path(__file__).parents[3] / "ssl")
    result = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": source}, capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_accuracy_by_labels_has_a_point_for_each_number_of_labels_and_the_range_of_its_draws() -> None:
    rows = [
        Row("pretrained", "linear/cached-lbfgs-v1/1 per class/3 draws", 60.0, n_train=10, draws=[50.0, 60.0, 70.0]),
        Row("pretrained", "linear/cached-lbfgs-v1/5 per class/3 draws", 80.0, n_train=50, draws=[79.0, 80.0, 81.0]),
        Row("pretrained", "linear/cached-lbfgs-v1", 90.0, n_train=1000),
        Row("raw pixels", "linear/cached-lbfgs-v1/1 per class/3 draws", 40.0, n_train=10),
    ]
    figure = label_curve(rows)
    assert figure is not None
    axes: Any = figure.axes[0]
    ours, pixels = [bars.lines[0] for bars in axes.containers]
    assert ours.get_xydata().tolist() == [[10, 60], [50, 80], [1000, 90]]
    assert pixels.get_xydata().tolist() == [[10, 40]]
    (bars,) = axes.containers[0].lines[2]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[50, 70], [79, 81], [90, 90]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["pretrained", "raw pixels"]
    assert label_curve(rows[2:]) is None


def test_features_that_do_not_beat_raw_pixels_are_doubted() -> None:
    rows = [Row("pretrained", "knn", 80.0, n_test=100), Row("raw pixels", "knn", 95.0, n_test=100)]
    assert report_warnings(rows, {}) == ["Pretrained features are no better than raw pixels (knn)."]

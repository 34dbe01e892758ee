import csv
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from tests.conftest import Script
from unlabeled.commands.table import folders_as_override, group_by_config, make_table
from unlabeled.errors import UserError
from unlabeled.evaluation.comparison.table_text import as_csv, as_latex, as_markdown, escape_latex
from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.reporting.report import write_report
from unlabeled.evaluation.statistics import accuracy_interval

KNN, LINEAR = "knn/cosine-exp/k=20/T=0.1", "linear/cached-lbfgs-v1"
DATA = {"description": "toy, 100 test images", "train_labels_sha256": "aaaaaaaaaa", "test_labels_sha256": "bbbbbbbbbb"}
CONFIG: dict[str, Any] = {
    "seed": 0,
    "name": "x",
    "run_dir": "x",
    "num_workers": 2,
    "max_epochs": 10,
    "objective": {"_target_": "unlabeled.objectives.simclr.SimCLR", "temperature": 0.1},
    "backbone": {"_target_": "unlabeled.backbones.resnet.ResNet", "depth": 18},
    "views": {"size": 32, "mean": [0.5], "std": None, "evaluation_crop": 1.0, "evaluation_interpolation": "bicubic"},
}


def run(
    folder: Path,
    scores: dict[str, float],
    seed: int = 0,
    temperature: float = 0.1,
    data: dict[str, str] = DATA,
    transform: dict[str, Any] | None = None,
    step: int = 50,
    random: float = 20.0,
) -> Path:
    """A folder as train.py leaves it, as far as the table looks."""
    rows = [Row("pretrained", protocol, top1, n_test=100) for protocol, top1 in scores.items()]
    rows += [Row("random init", KNN, random, n_test=100), Row("raw pixels", KNN, 30.0, n_test=100)]
    rows += [Row("chance", "chance/majority-class", 12.0), Row("chance", "chance/uniform", 10.0)]
    objective = {**CONFIG["objective"], "temperature": temperature}
    config = {**CONFIG, "seed": seed, "name": folder.name, "run_dir": str(folder), "num_workers": seed}
    provenance: dict[str, Any] = {"checkpoint": {"step": step}, "data": data}
    provenance |= {} if transform is None else {"views": transform}
    write_report(folder / "report", rows, provenance)
    (folder / "config.yaml").write_text(json.dumps({**config, "objective": objective}))
    return folder


def cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("| ---")]


def table(*folders: Path, baselines: bool = False) -> list[list[str]]:
    return cells(as_markdown(make_table(folders, baselines)))


def between(top1: float) -> str:
    low, high = accuracy_interval(round(top1), 100)
    return f"({low:.2f} to {high:.2f})"


def test_seeds_of_one_configuration_share_a_line_with_mean_and_deviation(tmp_path: Path) -> None:
    runs = [run(tmp_path / f"simclr-seed{i}", {KNN: 60.0 + 2 * i, LINEAR: 70.0}, seed=i) for i in range(3)]
    found = table(*runs, run(tmp_path / "other", {KNN: 50.0}, temperature=0.5))
    assert found == [
        ["top-1, %", "seeds", KNN, LINEAR],
        ["simclr", "3", "**62.00 ± 2.00**", "70.00 ± 0.00"],
        ["other", "1", f"50.00 {between(50)}", "–"],
    ]


def test_a_protocol_measured_on_fewer_seeds_says_on_how_many(tmp_path: Path) -> None:
    scores = [{KNN: 60.0, LINEAR: 70.0}, {KNN: 62.0, LINEAR: 72.0}, {KNN: 64.0}]
    runs = [run(tmp_path / f"seed{i}", each, seed=i) for i, each in enumerate(scores)]
    assert table(*runs)[1][2:] == ["62.00 ± 2.00", "71.00 ± 1.41 (n = 2)"]
    assert table(*runs[1:])[1][2:] == ["63.00 ± 1.41", f"72.00 {between(72)} (n = 1)"]


def test_numbers_of_other_data_or_another_transform_never_share_a_column(tmp_path: Path) -> None:
    here = run(tmp_path / "here", {KNN: 60.0})
    seen = {"size": 64, "crop": 1.0, "interpolation": "bicubic", "mean": [0.5], "std": None}
    larger = run(tmp_path / "larger", {KNN: 61.0}, transform=seen, temperature=0.2)
    elsewhere = run(tmp_path / "elsewhere", {KNN: 62.0}, data={**DATA, "test_labels_sha256": "c" * 64}, temperature=0.3)
    text = as_markdown(make_table([here, larger, elsewhere]))
    found = cells(text)
    assert found[0][2:] == [f"{KNN} (a)", f"{KNN} (b)", f"{KNN} (c)"]
    assert [[cell[:5] for cell in line[2:]] for line in found[1:]] == [
        ["60.00", "–", "–"],
        ["–", "61.00", "–"],
        ["–", "–", "62.00"],
    ]
    assert "**" not in text
    assert "- (b) toy, 100 test images; test labels bbbbbbbb; seen with crop 1.0" in text
    assert "size 64" in text
    assert "- (c) toy, 100 test images; test labels cccccccc" in text


def test_equal_images_share_a_column_wherever_they_lie_and_changed_ones_do_not(tmp_path: Path) -> None:
    prints = {"train_fingerprint": "t" * 64, "test_fingerprint": "e" * 64}
    here = run(tmp_path / "a-seed0", {KNN: 60.0}, data={**DATA, **prints, "description": "toy from /here"})
    there = run(tmp_path / "a-seed1", {KNN: 62.0}, 1, data={**DATA, **prints, "description": "toy from /there"})
    changed = run(tmp_path / "b", {KNN: 50.0}, 0, 0.2, data={**DATA, **prints, "test_fingerprint": "f" * 64})
    text = as_markdown(make_table([here, there, changed]))
    assert [line[2:] for line in cells(text)[1:]] == [["61.00 ± 1.41", "–"], ["–", f"50.00 {between(50)}"]]
    assert "- (a) toy from /here; test labels bbbbbbbb; test images eeeeeeee; seen with crop 1.0, interp" in text
    assert "- (b) toy, 100 test images; test labels bbbbbbbb; test images ffffffff; seen with crop 1.0, interp" in text


def test_a_half_written_report_does_not_kill_the_table_and_is_marked_with_its_reason(tmp_path: Path) -> None:
    good = [run(tmp_path / f"a-seed{i}", {KNN: 60.0 + i}, seed=i) for i in range(2)]
    torn = run(tmp_path / "a-seed2", {KNN: 60.0}, seed=2)
    (torn / "report" / "results.json").write_text('{"rows": [{"features": "pretr')
    alone = run(tmp_path / "b", {KNN: 60.0}, temperature=0.9)
    (alone / "report" / "results.json").write_text('{"rows": [{"features": "pretrained"}], "provenance": {}}')
    unjudged = tmp_path / "c"
    (unjudged / "checkpoints").mkdir(parents=True)
    (unjudged / "checkpoints" / "last.ckpt").touch()
    text = as_markdown(make_table([*good, torn, alone, unjudged, tmp_path / "gone"]))
    assert cells(text)[1:] == [
        ["a", "2 + 1 ✗", "60.50 ± 0.71"],
        ["b", "1 ✗", "✗"],
        ["c", "1 ✗", "✗"],
        ["gone", "1 ✗", "✗"],
    ]
    assert f"- {torn}: ✗, {torn}/report/results.json is damaged (JSONDecodeError); unlabeled evaluate run=" in text
    assert f"- {alone}: ✗, {alone}/report/results.json is damaged (TypeError)" in text
    assert f"- {unjudged}: ✗, not evaluated yet; unlabeled evaluate run={unjudged} writes its report" in text
    assert f"- {tmp_path / 'gone'}: ✗, no such folder" in text


@pytest.mark.parametrize(
    "content", ["[]", "3", '{"rows": 3, "provenance": {}}', '{"rows": [7], "provenance": {}}', "\xff"]
)
def test_whatever_stands_in_a_report_costs_its_own_line_alone(content: str, tmp_path: Path) -> None:
    good, bad = run(tmp_path / "good", {KNN: 60.0}), run(tmp_path / "bad", {KNN: 50.0}, temperature=0.2)
    (bad / "report" / "results.json").write_bytes(content.encode("latin-1"))
    (bad / "config.yaml").write_text("]: no yaml [")
    assert [line[0] for line in table(good, bad)[1:]] == ["good", "bad"]
    assert table(good, bad)[2][2] == "✗"


def test_a_probe_without_a_number_is_a_failed_cell(tmp_path: Path) -> None:
    bad = run(tmp_path / "bad", {KNN: 60.0, LINEAR: math.nan})  # null in results.json
    text = as_markdown(make_table([bad]))
    assert cells(text)[1][2:] == [f"60.00 {between(60)}", "✗"]
    assert f"- {bad}: ✗, {LINEAR} gave no number" in text


def test_folders_that_are_no_runs_are_named_and_left_out(tmp_path: Path) -> None:
    good = run(tmp_path / "good", {KNN: 60.0})
    (tmp_path / "inspect-digits").mkdir()
    (tmp_path / "notes.txt").touch()
    text = as_markdown(make_table([good, tmp_path / "inspect-digits", tmp_path / "notes.txt", good]))
    assert len(cells(text)) == 2
    assert f"- left out, no runs: {tmp_path}/inspect-digits, {tmp_path}/notes.txt" in text
    with pytest.raises(UserError, match="no run among"):
        make_table([tmp_path / "inspect-digits"])


def test_a_second_run_of_a_seed_is_not_counted_as_another(tmp_path: Path) -> None:
    runs = [run(tmp_path / name, {KNN: top1}, seed=0) for name, top1 in (("one", 60.0), ("copy", 62.0))]
    text = as_markdown(make_table(runs))
    assert cells(text)[1][1:] == ["1", f"60.00 {between(60)}"]
    assert f"- {tmp_path / 'copy'}: left out, a run of its configuration and seed is in the table" in text


def test_a_run_judged_half_way_is_not_averaged_with_finished_ones(tmp_path: Path) -> None:
    runs = [run(tmp_path / f"x-seed{i}", {KNN: 60.0 + i}, seed=i, step=50 if i else 20) for i in range(3)]
    assert [line[1] for line in table(*runs)[1:]] == ["1", "2"]


def test_reports_without_a_configuration_stand_alone(tmp_path: Path) -> None:
    runs = [run(tmp_path / f"x{i}", {KNN: 60.0 + i}) for i in range(2)]
    for each in runs:
        (each / "config.yaml").unlink()
    assert [line[:2] for line in table(*runs)[1:]] == [["x0", "1"], ["x1", "1"]]


def test_the_provenance_may_say_the_configuration_of_a_report_that_lies_elsewhere(tmp_path: Path) -> None:
    paths = []
    for seed in range(2):
        folder = tmp_path / f"again{seed}"
        write_report(
            folder, [Row("pretrained", KNN, 60.0, n_test=100)], {"run_config": {**CONFIG, "seed": seed}, "data": DATA}
        )
        paths.append(folder)
    assert table(*paths)[1][:2] == ["again", "2"]


def test_lines_of_one_name_are_told_apart_by_what_their_configurations_differ_in(tmp_path: Path) -> None:
    runs = [run(tmp_path / part / "same", {KNN: 60.0}, temperature=t) for part, t in (("a", 0.1), ("b", 0.5))]
    names = [line[0] for line in table(*runs)[1:]]
    assert names == ["same (objective.temperature=0.1)", "same (objective.temperature=0.5)"]


def test_lines_that_differ_in_a_key_that_is_not_shown_have_their_folder_and_the_highest_is_bold(tmp_path: Path) -> None:
    runs = [run(tmp_path / part / "same", {KNN: top1}) for part, top1 in (("a", 60.0), ("b", 70.0), ("c", 50.0))]
    for number, folder in enumerate(runs):
        config = json.loads((folder / "config.yaml").read_text())
        config |= {"a": int(number > 0), "b": int(number > 0), "c": int(number > 0), "d": number}
        (folder / "config.yaml").write_text(json.dumps(config))
    lines = table(*runs)[1:]
    assert len({line[0] for line in lines}) == 3
    assert [line[2].startswith("**") for line in lines] == [False, True, False]


def test_a_run_may_be_given_by_its_report_and_only_once(tmp_path: Path) -> None:
    folder = run(tmp_path / "simclr", {KNN: 60.0})
    assert table(folder / "report", folder / "report")[1][:2] == ["simclr", "1"]
    assert [len(runs) for runs in group_by_config([])] == []


def test_baselines_stand_below_in_every_column_of_their_data(tmp_path: Path) -> None:
    runs = [run(tmp_path / f"x-seed{i}", {KNN: 60.0, LINEAR: 70.0}, seed=i, random=20.0 + i) for i in range(2)]
    assert table(*runs, baselines=True)[2:] == [
        ["random init", "2", "20.50 ± 0.71", "–"],
        ["raw pixels", "–", f"30.00 {between(30)}", "–"],
        ["chance: largest class of test", "–", "12.00", "12.00"],
        ["chance: uniform guess", "–", "10.00", "10.00"],
    ]


def test_csv_holds_every_number_unrounded_with_its_state(tmp_path: Path) -> None:
    runs = [run(tmp_path / f"a,seed{i}", {KNN: 100 * (1 + i) / 3}, seed=i) for i in range(2)]
    torn = run(tmp_path / "b", {KNN: 1.0}, temperature=0.2)
    (torn / "report" / "results.json").write_text("{")
    other = run(tmp_path / "c", {LINEAR: 70.0}, temperature=0.3)
    found = list(csv.DictReader(io.StringIO(as_csv(make_table([*runs, torn, other])))))
    assert [(line["run"], line["protocol"], line["state"]) for line in found] == [
        ("a,", KNN, "measured"),
        ("a,", LINEAR, "not measured"),
        ("b", KNN, "failed"),
        ("b", LINEAR, "failed"),
        ("c", KNN, "not measured"),
        ("c", LINEAR, "measured"),
    ]
    assert float(found[0]["top1"]) == 50.0
    assert float(found[0]["deviation"]) == pytest.approx(100 / 3 / math.sqrt(2))
    assert found[0]["seeds"] == "2"
    assert (found[2]["top1"], found[2]["seeds"]) == ("", "0")
    assert json.loads(found[0]["transform"])["size"] == 32
    assert found[0]["test_labels_sha256"] == "bbbbbbbbbb"


def test_latex_is_a_tabular_of_booktabs_with_all_text_escaped(tmp_path: Path) -> None:
    a = run(tmp_path / "mine_50%&#1", {KNN: 60.0})
    b = run(tmp_path / "b", {KNN: 50.0}, temperature=0.2)
    lines = as_latex(make_table([a, b])).splitlines()
    assert lines[1] == r"\begin{tabular}{lrr}"
    assert lines[2:5] == [r"  \toprule", rf"  top-1, \% & seeds & {KNN} \\", r"  \midrule"]
    assert lines[5] == rf"  mine\_50\%\&\#1 & 1 & \textbf{{60.00 {between(60)}}} \\"
    assert lines[7:9] == [r"  \bottomrule", r"\end{tabular}"]
    assert escape_latex("a_b ~^\\ {x} $5 – ✗ ±") == (
        r"a\_b \textasciitilde{}\textasciicircum{}\textbackslash{} \{x\} \$5 -- $\times$ $\pm$"
    )


def test_a_bar_in_a_name_does_not_break_markdown(tmp_path: Path) -> None:
    text = as_markdown(make_table([run(tmp_path / "a|b", {KNN: 60.0})]))
    assert "| a\\|b | 1 |" in text


def test_folders_are_given_without_a_key_as_a_shell_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1").mkdir()
    assert folders_as_override(["a", "lr=0.1", "format=csv"]) == ["format=csv", 'runs=["a","lr=0.1"]']
    assert folders_as_override(['q"\\', "--cfg", "job"]) == ["--cfg", "job", 'runs=["q\\"\\\\"]']
    assert folders_as_override(["runs=[a]"]) == ["runs=[a]"]
    parsed = OverridesParser.create().parse_override(folders_as_override(["a${oc.env:HOME}"])[0])
    assert OmegaConf.create({"runs": parsed.value()}).runs[0] == "a${oc.env:HOME}"
    with pytest.raises(SystemExit) as stopped:
        folders_as_override(["a", "runs=[b]"])
    assert stopped.value.code == 2
    assert "give one of the two" in capsys.readouterr().err


def command(tmp_path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "unlabeled.commands.table", *arguments], cwd=tmp_path, capture_output=True, text=True
    )


def test_the_command_prints_or_writes_the_table_and_refuses_in_one_line(tmp_path: Path) -> None:
    for name in ("lr=0.1, b", "two"):
        run(tmp_path / "outputs" / name, {KNN: 60.0}, temperature=len(name))
    printed = command(tmp_path, "outputs/lr=0.1, b", "outputs/two")
    assert [line[0] for line in cells(printed.stdout)] == ["top-1, %", "lr=0.1, b", "two"], printed.stderr
    written = command(tmp_path, "outputs/two", "out=new/table.tex")
    assert written.returncode == 0, written.stderr
    assert (tmp_path / "new" / "table.tex").read_text().startswith("% \\usepackage{booktabs}")
    refused = command(tmp_path, "outputs/two", "formt=csv")
    assert refused.returncode == 2
    assert "did you mean format?" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_sweep_over_seeds_becomes_one_line(script: Script, tmp_path: Path) -> None:
    tiny = ["data=digits", "backbone=resnet_thin", "backbone.width=0.125", "optimizer=sgd", "views.size=16"]
    tiny += ["max_epochs=1", "batch_size=256", "probe=knn", "probe.knn.k=[20]", "online_knn=null", "num_workers=0"]
    finished = script("train.py", "-m", *tiny, "trainer.accelerator=cpu", "seed=0,1")
    assert finished.returncode == 0, finished.stderr
    runs = sorted((tmp_path / "outputs").glob("simclr*"))
    rows = [json.loads((run / "report" / "results.json").read_text())["rows"][0] for run in runs]
    a, b = (row["top1"] for row in rows)
    found = table(*sorted((tmp_path / "outputs").iterdir()))
    assert found == [
        ["top-1, %", "seeds", KNN],
        ["simclr-resnet_thin-digits", "2", f"{(a + b) / 2:.2f} ± {abs(a - b) / math.sqrt(2):.2f}"],
    ]


def test_a_random_network_of_each_data_set_is_in_its_own_column(tmp_path: Path) -> None:
    other = {**DATA, "description": "other", "test_labels_sha256": "cccccccccc"}
    runs = [run(tmp_path / "a", {KNN: 60.0}, random=20.0), run(tmp_path / "b", {KNN: 70.0}, data=other, random=25.0)]
    assert [cell.split()[0] for cell in table(*runs, baselines=True)[2][2:]] == ["20.00", "25.00"]


def test_a_name_that_begins_with_a_bracket_is_no_argument_of_the_line_before(tmp_path: Path) -> None:
    lines = as_latex(make_table([run(tmp_path / "[b]run", {KNN: 60.0})])).splitlines()
    assert lines[5].startswith("  {}[b]run & 1")


def test_runs_that_differ_in_clipping_are_two_lines_and_in_what_is_free_one(
    tmp_path: Path,
) -> None:
    found: list[Path] = []
    for seed, changed in ((0, {}), (1, {"views.compile": True}), (0, {"trainer.gradient_clip_val": 1.0})):
        folder = run(tmp_path / str(len(found)), {KNN: 50.0}, seed)
        config = OmegaConf.create(json.loads((folder / "config.yaml").read_text()))
        for key, value in ({"trainer.gradient_clip_val": None, "trainer.sync_batchnorm": True} | changed).items():
            OmegaConf.update(config, key, value, force_add=True)
        (folder / "config.yaml").write_text(json.dumps(OmegaConf.to_container(config)))
        found.append(folder)
    table = make_table(found)
    assert [line.seeds for line in table.lines if not line.baseline] == [2, 1]

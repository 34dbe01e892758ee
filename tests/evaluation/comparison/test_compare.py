import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor

from tests.conftest import ROOT
from unlabeled.core.environment import hash_labels
from unlabeled.errors import UserError
from unlabeled.evaluation.comparison.compare import compare
from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.predictions import NAME, add_intervals, read_predictions, write_predictions
from unlabeled.evaluation.reporting.report import write_report
from unlabeled.evaluation.statistics import accuracy_interval, draws_interval

N = 400
LABELS, IDS = torch.arange(N) % 10, torch.arange(N) + 7
CONFIG = "seed: {seed}\nname: x\nobjective:\n  temperature: {temperature}\nviews:\n  size: 32\nnum_workers: {seed}\n"


def answers(wrong: slice) -> Tensor:
    found = LABELS.clone()
    found[wrong] = (found[wrong] + 1) % 10
    return found


def row(protocol: str, wrong: slice, **more: Any) -> Row:
    found = answers(wrong)
    top1 = 100 * float((found == LABELS).double().mean())
    return Row("pretrained", protocol, top1, n_test=N, predictions=found, **more)


def judged(
    folder: Path,
    rows: list[Row],
    seed: int = 0,
    temperature: float = 0.1,
    labels: Tensor = LABELS,
    print_: str | None = None,
) -> str:
    """The folder of a run that was judged."""
    report = folder / "report"
    described = {"description": "toy", "train_labels_sha256": "t", "test_labels_sha256": hash_labels(labels)}
    described |= {} if print_ is None else {"test_fingerprint": print_}
    write_report(report, rows, {"data": described})
    write_predictions(report, rows, labels, IDS)
    (folder / "config.yaml").write_text(CONFIG.format(seed=seed, temperature=temperature))
    return str(folder)


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """A is wrong on 40 images, B on those and 20 more (protocol knn), and on other ones (linear)."""
    a = [row("knn", slice(0, 40)), row("linear", slice(0, 30)), row("a-alone", slice(0, 1))]
    b = [row("linear", slice(10, 42)), row("knn", slice(0, 60)), row("b-alone", slice(0, 1))]
    return [judged(tmp_path / "a", a), judged(tmp_path / "b", b, temperature=0.2)]


def test_two_runs_are_told_apart_in_words_by_a_paired_test_of_each_protocol(two: list[str], tmp_path: Path) -> None:
    text = compare(two, str(tmp_path / "out"))
    assert "- knn: A is better by 5.0 points (3.2 to 7.5), p < 0.001" in text  # 20 images to none: p = 2 · 2^-20
    assert "- linear: no difference shown, A − B is +0.5 points (" in text
    line = next(line for line in text.splitlines() if line.startswith("| linear"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[4:6] == ["12", "10"]
    assert float(cells[8]) == pytest.approx(stats.binomtest(12, 22).pvalue, rel=0.01)
    assert (tmp_path / "out" / "compare.md").read_text() in text
    assert "The runs differ in objective.temperature." in text  # and not in the number of workers


def test_what_only_one_report_has_is_named_and_not_compared(two: list[str], tmp_path: Path) -> None:
    text = compare(two, str(tmp_path / "out"))
    assert "Only in A, so not compared: a-alone." in text
    assert "Only in B, so not compared: b-alone." in text
    assert "| a-alone" not in text


def test_p_is_corrected_for_the_number_of_protocols(tmp_path: Path) -> None:
    a = [row(f"p{i}", slice(0, 40)) for i in range(3)]
    b = [row("p0", slice(0, 46)), row("p1", slice(0, 40)), row("p2", slice(0, 41))]
    text = compare([judged(tmp_path / "a", a), judged(tmp_path / "b", b)], str(tmp_path / "out"))
    assert f"- p0: no difference shown, A − B is +1.5 points (+0.5 to +3.2), p = {3 * 2 / 2**6:.3f}" in text
    assert "corrected for 3 protocols (Holm)" in text
    assert "configurations agree." in text


def test_nothing_of_the_runs_is_changed(two: list[str], tmp_path: Path) -> None:
    def state() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for run in two for path in Path(run).rglob("*") if path.is_file()}

    before = state()
    compare(two, str(tmp_path / "out"))
    assert state() == before


def test_several_seeds_are_compared_by_welchs_test_of_their_means(tmp_path: Path) -> None:
    wrong = {"a": [40, 44, 36], "b": [80, 100]}
    sides = [
        [judged(tmp_path / f"{side}{i}", [row("knn", slice(0, w))], seed=i) for i, w in enumerate(each)]
        for side, each in wrong.items()
    ]
    text = compare(sides, str(tmp_path / "out"))
    a, b = [90.0, 89.0, 91.0], [80.0, 75.0]
    line = next(line for line in text.splitlines() if line.startswith("| knn"))
    assert "| 90.00 ± 1.00 (n = 3) | 77.50 ± 3.54 (n = 2) | +12.50 (" in line
    p = float(line.strip("| ").split("|")[-1])
    assert p == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue, rel=0.02)
    assert "Welch's t, over seeds" in line


def test_few_label_scores_are_compared_over_their_draws(tmp_path: Path) -> None:
    a, b = [50.0, 52.0, 51.0], [44.0, 47.0, 45.0]
    runs: list[str] = []
    for each in (a, b):
        few = Row("pretrained", "k", sum(each) / 3, n_test=N, draws=each, predictions=answers(slice(0, 200)))
        runs.append(judged(tmp_path / f"run{len(runs)}", [few]))
    text = compare(runs, str(tmp_path / "out"))
    low, high = draws_interval(a, N)
    assert f"| k | 51.00 ({low:.2f} to {high:.2f}) |" in text
    assert float(text.split("| Welch's t, over draws of labels | ")[1].split(" ")[0]) == pytest.approx(
        stats.ttest_ind(a, b, equal_var=False).pvalue, rel=0.02
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("{a}", "give compare=[RUN_A,RUN_B]"),
        (["{a}"], "give compare=[RUN_A,RUN_B]"),
        (["{a}", "{b}", "{b}"], "give compare=[RUN_A,RUN_B]"),
        (["{a}", []], "give compare=[RUN_A,RUN_B]"),
        ([3, "{a}"], "give compare=[RUN_A,RUN_B]"),
        (["{a}", "{a}"], "is given twice"),
        (["{a}", ["{b}", "{c}"]], "two of each"),
        ([["{a}", "{c}"], ["{b}", "{d}"]], "share a seed"),
        (["{a}", "{nothing}"], "no such folder"),
        (["{a}", "{raw}"], "unlabeled evaluate run="),
        (["{a}", "{begun}"], "the run has not come to one"),
        (["{a}", "{damaged}"], "results.json is damaged"),
        (["{a}", "{without}"], "predictions.safetensors: no such file"),
        (["{a}", "{torn}"], "predictions.safetensors: damaged"),
        (["{a}", "{labels}"], "on other test data"),
        (["{a}", "{ids}"], "on other test images"),
        (["{prints}", "{moved}"], "on other or moved files of test images"),
        (["{a}", "{other}"], "no protocol is in both: knn; linear"),
    ],
)
def test_what_cannot_be_compared_costs_one_line(given: Any, words: str, tmp_path: Path) -> None:
    rows = [row("knn", slice(0, 40))]
    for name in ("a", "b", "c", "d", "damaged", "without", "torn", "ids"):
        judged(tmp_path / name, rows)
    judged(tmp_path / "labels", rows, labels=(LABELS + 1) % 10)
    judged(tmp_path / "other", [row("linear", slice(0, 40))])
    for name in ("prints", "moved"):
        judged(tmp_path / name, rows, print_=name)
    (tmp_path / "raw" / "checkpoints").mkdir(parents=True)
    (tmp_path / "raw" / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "begun").mkdir()
    (tmp_path / "damaged" / "report" / "results.json").write_text('{"rows": [{"featu')
    (tmp_path / "without" / "report" / NAME).unlink()
    (tmp_path / "torn" / "report" / NAME).write_bytes(b"\x00" * 20)
    write_predictions(tmp_path / "ids" / "report", rows, LABELS, IDS + 1)

    def filled(part: Any) -> Any:
        if isinstance(part, str):
            return str(tmp_path / part.strip("{}"))
        return [filled(each) for each in part] if isinstance(part, list) else part

    with pytest.raises(UserError) as refused:
        compare(filled(given), str(tmp_path / "out"))
    assert words in str(refused.value)
    assert not (tmp_path / "out").exists()


def run_script(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    monkeypatch.setattr(sys, "argv", ["eval_linear.py", *overrides])
    runpy.run_path(str(ROOT / "eval_linear.py"), run_name="__main__")


def test_the_command_compares_and_takes_no_other_key(
    two: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_script(monkeypatch, "compare=[a,b/report]")
    assert "knn: A is better by 5.0 points" in capsys.readouterr().out
    assert (tmp_path / "outputs" / "compare-a-b" / "compare.md").is_file()
    with pytest.raises(SystemExit):
        run_script(monkeypatch, "compare=[a,b]", "probe=knn")
    assert "leave out probe=knn" in capsys.readouterr().err


def test_predictions_come_back_as_they_were(tmp_path: Path) -> None:
    logs = torch.randn(N, 10).log_softmax(1)
    logs[:, 3] = -math.inf  # a class without a train image
    rows = [
        row("knn", slice(0, 40), log_probabilities=logs),
        row("linear", slice(0, 3)),
        Row("chance", "x", 1.0),
    ]
    path = write_predictions(tmp_path, rows, LABELS, IDS)
    found = read_predictions(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    assert torch.equal(found.labels, LABELS)
    assert torch.equal(found.ids, IDS)
    assert set(found.classes) == {("pretrained", "knn"), ("pretrained", "linear")}
    assert torch.equal(found.classes["pretrained", "knn"], answers(slice(0, 40)))
    assert list(found.log_probabilities) == [("pretrained", "knn")]
    torch.testing.assert_close(found.log_probabilities["pretrained", "knn"], logs, rtol=1e-3, atol=1e-6)


def test_log_probabilities_that_take_too_much_room_are_left_out_and_predictions_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unlabeled.evaluation.predictions.MOST_BYTES", 2 * N * 10)
    logs = torch.zeros(N, 10)
    rows = [row(name, slice(0, 1), log_probabilities=logs) for name in ("first", "second")]
    write_predictions(tmp_path, rows, LABELS, IDS)
    found = read_predictions(tmp_path)
    assert [protocol for _, protocol in found.log_probabilities] == ["first"]
    assert {protocol for _, protocol in found.classes} == {"first", "second"}


def test_two_rows_of_one_name_and_predictions_of_other_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"two rows are pretrained\|knn"):
        write_predictions(tmp_path, [row("knn", slice(0, 1)), row("knn", slice(0, 2))], LABELS, IDS)
    with pytest.raises(ValueError, match=r"400 predictions of 399"):
        write_predictions(tmp_path, [row("knn", slice(0, 1))], LABELS[1:], IDS[1:])


def test_every_measured_row_gets_its_interval_and_a_row_that_contradicts_itself_a_note(tmp_path: Path) -> None:
    few = Row("pretrained", "few", 51.0, draws=[50.0, 52.0], predictions=answers(slice(0, 200)))
    false = Row("pretrained", "false", 99.0, predictions=answers(slice(0, 40)))
    rows = [row("knn", slice(0, 40)), few, false, Row("chance", "chance/uniform", 10.0)]
    add_intervals(rows, LABELS)
    assert rows[0].interval == accuracy_interval(360, 400)
    assert rows[1].interval == draws_interval([50.0, 52.0], 400)
    assert rows[2].interval is None
    assert "predictions kept give 90.00 %" in rows[2].notes[0]
    assert (rows[3].interval, rows[3].notes) == (None, [])
    write_report(tmp_path, rows, {})
    assert json.loads((tmp_path / "results.json").read_text())["rows"][0]["interval"] == [*accuracy_interval(360, 400)]


def test_predictions_of_another_evaluation_than_the_numbers_are_not_compared(tmp_path: Path) -> None:
    a, b = (judged(tmp_path / name, [row("knn", slice(0, 40))]) for name in "ab")
    write_predictions(tmp_path / "a" / "report", [row("knn", slice(0, 200))], LABELS, IDS)  # it was killed before this
    with pytest.raises(UserError, match=r"its predictions of knn are of another evaluation than its numbers"):
        compare([a, b], str(tmp_path / "out"))


def test_scores_of_the_same_few_labels_are_compared_in_pairs_and_of_others_not(tmp_path: Path) -> None:
    scores, lists = ([50.2, 55.9, 61.1], [49.1, 54.9, 59.9]), (["x", "y", "z"], ["x", "y", "z"], ["x", "y", "w"])
    runs: list[str] = []
    for each, names in zip((*scores, scores[1]), lists, strict=True):
        chosen = {"labels": [{"sha256": name} for name in names]}
        few = Row("pretrained", "k", sum(each) / 3, chosen, n_test=N, draws=each, predictions=answers(slice(0, 200)))
        runs.append(judged(tmp_path / f"run{len(runs)}", [few]))
    text = compare(runs[:2], str(tmp_path / "out"))
    p = float(text.split("| paired t, over the same draws of labels | ")[1].split(" ")[0])
    assert p == pytest.approx(stats.ttest_rel(*scores).pvalue, rel=0.02)
    assert "Welch's t, over draws of labels" in compare(runs[::2], str(tmp_path / "out2"))


def test_probes_of_other_settings_are_named(tmp_path: Path) -> None:
    runs = []
    for c in (1.0, 10.0):
        runs.append(judged(tmp_path / f"c{c}", [row("linear", slice(0, 40))]))
        results = json.loads((tmp_path / f"c{c}/report/results.json").read_text())
        results["provenance"]["settings"] = {"precision": "32-true", "probe": {"linear": {"c": [c]}, f"k{c}": {}}}
        (tmp_path / f"c{c}/report/results.json").write_text(json.dumps(results))
    assert "- The probes had other settings: probe.linear.c." in compare(runs, str(tmp_path / "out"))
    same = judged(tmp_path / "same", [row("linear", slice(0, 40))])
    assert "other settings" not in compare([runs[0], same], str(tmp_path / "out2"))  # of one they are not known

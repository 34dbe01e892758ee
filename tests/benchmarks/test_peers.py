"""What benchmarks/peers.py makes of the answers of other libraries; the libraries themselves are not run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import peers
from benchmarks.peer_drivers.harness import Clock, Job
from benchmarks.peer_pages import OURS, Record, best_setting, page, ratios, rounds, spread


def step(library: str, number: str, seconds: float, workers: int = 2, views: str = "torchvision") -> Record:
    found: dict[str, Any] = {"step": seconds, "first_step": 30 * seconds, "memory_mib": 1000 * seconds}
    return Record(library, "thin", number, workers, views, 10, found)


RECORDS = [
    step(OURS, "1", 0.2),
    step("lightly", "choice", 0.1),
    step("lightly", "1", 0.4),
    step(OURS, "2", 0.3),
    step("lightly", "2", 0.3),
    step("lightly", "3", 9.0),
    Record(OURS, "knn", "1", 0, "", 1000, {"knn": 3.0, "correct": 5012.0}),
    Record("lightly", "knn", "1", 0, "", 1000, {"knn": 6.0, "differ": 2}),
    Record(OURS, "linear", "1", 0, "", 10, {"grid": 0.1, "one_rate": 0.03, "one_by_one": 0.9}),
    Record("solo-learn", "linear", "1", 0, "", 10, {"one_rate": 0.5}),
]


def test_a_ratio_is_of_neighbouring_processes_and_a_trial_of_settings_counts_in_no_round() -> None:
    found = rounds(RECORDS, "thin")
    assert list(found["lightly"]) == ["1", "2", "3"]
    assert ratios(found["lightly"], found[OURS], "step") == pytest.approx([2.0, 1.0])


def test_a_spread_is_the_median_and_the_range_and_nothing_measured_is_said_to_be_unmeasured() -> None:
    assert spread([3.0, 1.0, 1.5]) == "1.50 (1.00 to 3.00)"
    assert spread([2.0]) == "2.00 (once)"
    assert spread([]) == "unmeasured"


def test_a_library_gets_the_setting_that_was_fastest_when_all_were_tried() -> None:
    tried = [step("b", "choice", 0.4, 0), step("b", "choice", 0.3, 2, "kornia"), step("b", "1", 0.1, 0)]
    assert best_setting(tried, "b", "thin") == (2, "kornia")


def test_the_page_holds_each_table_and_says_what_is_unmeasured() -> None:
    text = page(RECORDS, {OURS: "commit 1234567"}, "a CPU", "cpu")
    assert "| thin ResNet-10, width ¼ | unlabeled | none | torchvision | 0.250 (0.200 to 0.300) | 1,024 |" in text
    assert "| 1.50 (1.00 to 2.00) |" in text
    assert "| ResNet-18 | unmeasured |" in text
    assert "| 1,000 | lightly | 6.00 (once) | 2.00 (once) | 2 |  |" in text
    assert "| torch, one by one | 0.900 (once) | 9.0 (once) |" in text
    assert "| solo-learn, 13 × one rate | 6.500 (once) | 65.0 (once) |" in text
    assert "No GPU was at hand" in text
    on_a_gpu = page([], {}, "a GPU", "cuda")
    assert "at least 4 at 32 px" in on_a_gpu
    assert "No GPU" not in on_a_gpu


def test_a_driver_is_answered_once_with_the_mean_of_the_steps_after_the_warm_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 5.0, 7.0, 10.0])  # start, step 1, step 2 (warm), step 5
    monkeypatch.setattr("benchmarks.peer_drivers.harness.time.perf_counter", lambda: next(now))
    monkeypatch.setattr("benchmarks.peer_drivers.harness.time.time", lambda: 104.5)
    clock = Clock(Job("thin", "", warm_up=2, steps=3, started=100.0))
    for _ in range(7):
        clock.tick()
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line.removeprefix("RESULT "))
    assert found["step"] == pytest.approx(1.0)
    assert found["first_step"] == pytest.approx(4.5)
    assert found["memory_mib"] > 10


def test_predictions_are_compared_one_by_one_or_by_what_the_library_says_it_shares(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.pt", tmp_path / "theirs.pt"
    torch.save(torch.tensor([0, 1, 2, 3]), ours)
    torch.save(torch.tensor([0, 1, 3, 3]), theirs)
    assert peers.compared({}, theirs, ours) == {"differ": 1}
    assert peers.compared({"same": 9997.999}, theirs, ours) == {"differ": 2}
    assert peers.compared({}, tmp_path / "none.pt", ours) == {}


def test_rounds_go_on_where_they_stopped_and_one_that_was_broken_off_does_not_count(tmp_path: Path) -> None:
    session = peers.Session(tmp_path, "cpu")
    assert session.next_round("thin") == "1"
    session.file.write_text("\n".join(json.dumps(vars(record)) for record in RECORDS))
    assert session.records() == RECORDS
    assert session.next_round("thin") == "4"
    both = [library for library in peers.LIBRARIES if library.name in (OURS, "lightly")]
    assert session.whole_rounds("thin", both) == {"1", "2"}
    assert session.whole_rounds("knn", both) == {"1"}

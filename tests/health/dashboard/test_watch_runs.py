"""Folders of runs as the page lists them: whole, growing, cut back, half-written, damaged, killed."""

import json
import math
import os
import random
import socket
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from unlabeled.health.dashboard.curves import KEPT, Curve, CurveSummary, RunCurves
from unlabeled.health.dashboard.documents import flatten
from unlabeled.health.dashboard.growing import BLOCK, LONGEST
from unlabeled.health.dashboard.listing import RunListing, find_runs
from unlabeled.health.dashboard.verdict import classify_run

CONFIG = "name: x\nmax_epochs: 4\nmax_steps: null\nobjective:\n  _target_: unlabeled.objectives.swav.SwAV\n"
NOW = 1_800_000_000.0
GONE = 4_194_304 + 7  # above the largest number of a process on Linux


def state(**other: Any) -> dict[str, Any]:
    here = {"pid": os.getpid(), "host": socket.gethostname(), "seconds_per_step": 0.1, "updated": NOW - 1}
    return {"state": "running", "step": 120, "total_steps": 400, "steps_per_epoch": 100, **here} | other


def lines(steps: range) -> str:
    return "".join(json.dumps({"step": s, "epoch": s / 100, "train/loss": 5 - s / 100}) + "\n" for s in steps)


def make_run(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    named = {"config": "config.yaml", "metrics": "metrics.jsonl"}
    for name, content in ({"config": CONFIG, "metrics": lines(range(10, 130, 10))} | files).items():
        (folder / named.get(name, f"{name}.json")).write_text(content)
    return folder


def listed(root: Path) -> dict[str, dict[str, Any]]:
    """By name. What the server would send."""
    runs: dict[str, dict[str, Any]] = json.loads(json.dumps(RunListing(root).changes(""), allow_nan=False))["runs"]
    return {run["name"]: run for run in runs.values()}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (state(), "running"),
        (state(updated=NOW - 59), "running"),
        (state(updated=NOW - 61), "silent"),
        (state(updated=NOW - 61, seconds_per_step=20), "running"),  # steps are long
        (state(pid=GONE, updated=NOW - 5), "running"),  # perhaps of a container: it wrote just now
        (state(pid=GONE, updated=NOW - 9), "killed"),
        (state(pid=GONE, updated=NOW - 9, host="another"), "running"),
        (state(pid=GONE, updated=NOW - 900, host="another"), "silent"),
        (state(state="finished", updated=0), "finished"),
        (state(state="interrupted", pid=GONE), "interrupted"),
        (state(state="failed", error="<b>"), "failed"),
        (state(state=["running"]), "unknown"),
        ({"state": "running"}, "silent"),
        (state(pid="7", updated="yesterday", step=None, seconds_per_step=math.nan), "silent"),
    ],
)
def test_whether_a_run_lives_is_told_by_its_process_and_by_its_last_word(said: dict[str, Any], expected: str) -> None:
    assert classify_run(said, NOW).state == expected


def test_a_killed_process_is_noticed_though_nobody_has_fetched_it() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # it has ended, and stays to be fetched
    verdict = classify_run(state(pid=child, updated=NOW - 9), NOW)
    os.waitpid(child, 0)
    assert verdict.state == "killed"
    assert verdict.sentence.startswith(f"Stopped without a word after step 120: process {child} is gone")


def test_a_run_is_listed_with_all_that_its_files_say(tmp_path: Path) -> None:
    finding = {"name": "rank", "severity": "warning", "since": 40, "last": 120, "sentence": "The rank falls."}
    worse = finding | {"severity": "alarm", "sentence": "It has collapsed."}
    past = worse | {"sentence": "A step was too large.", "holds": False}
    metrics = lines(range(10, 130, 10)) + json.dumps({"step": 100, "epoch": 1.0, "probe/knn_top1": 31.5}) + "\n"
    now = state(updated=time.time(), images_per_second=812.5, seconds_left=28.0, sessions=2)
    health = json.dumps({"findings": [past, finding, worse], "facts": {"collapsed_at": 4.6}})
    make_run(tmp_path / "sweep" / "lr=0.1", metrics=metrics, state=json.dumps(now), health=health)
    run = listed(tmp_path)["sweep/lr=0.1"]
    assert (run["state"], run["step"], run["total"], run["steps_per_epoch"]) == ("running", 120, 400, 100)
    assert run["loss"]["points"] == [[s, 5 - s / 100] for s in range(10, 130, 10)]
    assert run["loss"]["last"] == 3.8
    assert run["probes"] == [
        {"name": "probe/knn_top1", "points": [[100, 31.5]], "first": 31.5, "last": 31.5, "any": True}
    ]
    assert (run["images_per_second"], run["seconds_left"], run["sessions"]) == (812.5, 28.0, 2)
    assert [each["sentence"] for each in run["findings"]] == [
        "It has collapsed.",
        "The rank falls.",
        "A step was too large.",
    ]
    assert [each["past"] for each in run["findings"]] == [False, False, True]
    assert (run["about"], run["problems"]) == ("SwAV", [])


def test_of_a_run_without_state_the_plan_or_the_configuration_gives_the_steps(tmp_path: Path) -> None:
    make_run(tmp_path / "old", training=json.dumps({"images_per_second": 700.0}))
    check = {"passed": False, "found": "optimizer.warmup_epochs=3 of 4 epochs", "remedy": "give 0.4"}
    plan = {"steps": 390, "seconds_left": 135.0, "checks": [check, check | {"passed": True}, 7]}
    make_run(tmp_path / "planned", plan=json.dumps(plan))
    (tmp_path / "plan_only").mkdir()
    (tmp_path / "plan_only" / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "plan_only" / "config.yaml").write_text(CONFIG)
    runs = listed(tmp_path)
    assert (runs["old"]["state"], runs["old"]["step"], runs["old"]["total"]) == ("finished", 120, 400)
    assert runs["old"]["images_per_second"] == 700.0
    assert (runs["planned"]["state"], runs["planned"]["total"]) == ("running", 390)
    assert runs["planned"]["seconds_left"] == 135.0
    assert runs["planned"]["doubts"] == ["optimizer.warmup_epochs=3 of 4 epochs: give 0.4"]
    assert (runs["plan_only"]["state"], runs["plan_only"]["step"], runs["plan_only"]["total"]) == ("planned", 0, 390)


DAMAGES = {
    "half a configuration": ({"config": CONFIG + "views: {size: [1,"}, "config.yaml cannot be read"),
    "a list for a configuration": ({"config": "- 1\n"}, "config.yaml cannot be read: it holds no keys"),
    "the first bytes of a configuration": ({"config": "name: half_wr"}, "config.yaml names no objective"),
    "half a state": ({"state": '{"state": "runn'}, "state.json cannot be read"),
    "no state but a number": ({"state": "7"}, "state.json cannot be read"),
    "health of zeros": ({"health": "\0" * 300}, "health.json cannot be read"),
    "a deep plan": ({"plan": "[" * 100_000}, "plan.json cannot be read"),
    "a line of another": (
        {"metrics": lines(range(10, 40, 10)) + "\0\1{\n[]\n" + lines(range(50, 60, 10))},
        "has 2 lines",
    ),
    "half a line": (
        {"metrics": lines(range(10, 40, 10)) + '{"step": 40, "ep', "state": '{"state": "interrupted"}'},
        "within a line",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_listed_with_what_is_wrong_and_hides_no_other(tmp_path: Path, damage: str) -> None:
    files, said = DAMAGES[damage]
    make_run(tmp_path / "damaged", **files)
    make_run(tmp_path / "whole", state=json.dumps(state(state="finished")))
    runs = listed(tmp_path)
    assert runs["whole"]["problems"] == []
    assert len(runs["damaged"]["problems"]) == 1
    assert said in runs["damaged"]["problems"][0]
    assert runs["damaged"]["loss"]["points"][0] == [10, 4.9]


def test_a_fine_tuned_network_is_finished_though_its_configuration_names_no_objective(tmp_path: Path) -> None:
    for name, files in {
        "tuned": {"config.yaml": "seed: 0\n", "finetune.json": "{}"},
        "half": {"config.yaml": "seed: 0\n"},
    }.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
    runs = listed(tmp_path)
    assert (runs["tuned"]["state"], runs["tuned"]["problems"]) == ("finished", [])
    assert "names no objective" in runs["half"]["problems"][0]


def test_values_of_any_type_and_no_file_at_all_hide_nothing(tmp_path: Path) -> None:
    strange = {"state": "running", "step": "7", "total_steps": math.inf, "pid": -1, "host": [1], "updated": {}}
    odd = {"findings": [3, {"sentence": None}, {"sentence": ["x"], "severity": 9, "since": "y"}], "facts": 5}
    make_run(tmp_path / "odd", state=json.dumps(strange), health=json.dumps(odd), training="null", plan='{"steps": []}')
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    (tmp_path / "folders" / "config.yaml").mkdir(parents=True)
    (tmp_path / "folders" / "metrics.jsonl").mkdir()
    os.mkfifo(tmp_path / "folders" / "state.json")
    make_run(tmp_path / "loop", config="a: &a\n  b: *a\nc: &c [*c, *c]\nobjective: {}\n")
    runs = listed(tmp_path)
    assert runs["odd"]["findings"] == [
        {"severity": "note", "sentence": "['x']", "since": None, "last": None, "past": False}
    ]
    assert runs["empty"]["state"] == "damaged"
    assert runs["empty"]["problems"] == ["config.yaml is missing"]
    assert runs["folders"]["problems"] == [
        "metrics.jsonl is no file",
        "config.yaml is no file",
        "state.json is no file",
    ]
    listing = RunListing(tmp_path)
    listing.changes("")
    assert all(listing.detail(address) for address in ("odd", "empty", "folders", "loop"))


def test_links_that_lead_out_are_neither_followed_nor_read(tmp_path: Path) -> None:
    outside = make_run(tmp_path / "outside" / "run", config="secret: 1\nobjective: {}\n")
    root = tmp_path / "root"
    inner = make_run(root / "inner")
    (root / "elsewhere").symlink_to(outside)
    (root / "again").symlink_to(inner)
    (root / "linked").mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        (root / "linked" / name).symlink_to(outside / name)
    listing = RunListing(root)
    answer = listing.changes("")
    assert answer["addresses"] == ["inner", "linked"]
    assert answer["notes"] == ["elsewhere is a link that leads out of this folder: not followed"]
    problems = answer["runs"]["linked"]["problems"]
    assert [problem.partition(" ")[0] for problem in problems] == ["metrics.jsonl", "config.yaml"]
    assert all("leads out" in problem for problem in problems)
    assert listing.detail("elsewhere") is None
    detail = listing.detail("linked")
    assert detail is not None
    assert (detail["config"], detail["curves"]) == ({}, {})


def test_runs_are_found_at_any_depth_but_not_within_what_belongs_to_one(tmp_path: Path) -> None:
    for name in ("a", "b/c/d", "b/run/nested", "b/run"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "config.yaml").write_text(CONFIG)
    for name in ("a/wandb/run-1/files", "a/report", ".hidden", "b/logs"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / ("config.yaml" if name != "b/logs" else "x.txt")).write_text(CONFIG)
    found, notes = find_runs(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a", "b/c/d", "b/run", "b/run/nested"]
    assert notes == []
    assert list(RunListing(tmp_path / "a").changes("")["addresses"]) == ["."]


def test_only_what_has_changed_is_sent_again(tmp_path: Path) -> None:
    made = [make_run(tmp_path / name, state=json.dumps(state(state="finished"))) for name in ("a", "b")]
    listing = RunListing(tmp_path)
    first = listing.changes("")
    assert set(first["runs"]) == {"a", "b"}
    assert listing.changes(first["token"])["runs"] == {}
    with (made[1] / "metrics.jsonl").open("a") as file:
        file.write(lines(range(130, 140, 10)))
    second = listing.changes(first["token"])
    assert set(second["runs"]) == {"b"}
    assert second["runs"]["b"]["loss"]["last"] == 3.7
    for strange in (first["token"] + "9" * 9000, "-1", "x"):
        assert set(listing.changes(strange)["runs"]) in (set(), {"a", "b"})
    assert set(RunListing(tmp_path).changes(first["token"])["runs"]) == {"a", "b"}  # of a server started anew


@pytest.mark.parametrize("reader", [CurveSummary, RunCurves])
def test_metrics_are_read_on_where_reading_stopped_and_anew_when_a_resume_cut_them(
    tmp_path: Path, reader: type[CurveSummary] | type[RunCurves]
) -> None:
    path = tmp_path / "metrics.jsonl"
    growing = reader(path)

    def steps() -> list[int]:
        growing.update()
        curve = growing.loss if isinstance(growing, CurveSummary) else growing.curves.get("train/loss", Curve())
        return list(curve.steps)

    assert steps() == []
    text = lines(range(10, 60, 10))
    path.write_text(text[:-20])
    assert (steps(), growing.half) == ([10, 20, 30, 40], True)
    path.write_text(text)
    assert (steps(), growing.half) == ([10, 20, 30, 40, 50], False)
    path.write_text(lines(range(10, 30, 10)))  # cut back
    assert steps() == [10, 20]
    path.write_text(lines(range(10, 30, 10)).replace("4.8", "4.7") + lines(range(30, 90, 10)))  # and longer than before
    assert steps() == list(range(10, 90, 10))
    path.unlink()
    assert steps() == []


def test_reading_fast_gives_what_json_gives(tmp_path: Path) -> None:
    generator = random.Random(0)
    made: list[dict[str, Any]] = []
    for step in range(1, 300):
        value = generator.choice([generator.gauss(0, 1), 1e-7, -2.5e30, math.nan, math.inf, 3])
        extra = {"probe/knn_top1": value} if step % 20 == 0 else {"a": 1, "train/loss": value, "b": 2}
        made.append({"step": step, "epoch": step / 7, **(extra if step % 3 else {"health/x": 1.0})})
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in made))
    fast, slow, every = CurveSummary(path), CurveSummary(path), RunCurves(path)
    slow._take_quickly = lambda block: False  # type: ignore[method-assign]
    for growing in (fast, slow, every):
        growing.update()
    for name, curve in {"train/loss": fast.loss, **fast.probes}.items():
        expected = [(each["step"], float(each[name])) for each in made if name in each]
        assert repr(list(zip(curve.steps, curve.values, strict=True))) == repr(expected)
        other = every.curves[name]
        assert repr(list(other.values)) == repr(list(curve.values))
    assert repr(list(slow.loss.values)) == repr(list(fast.loss.values))
    assert (fast.step, fast.steps_per_epoch, fast.damaged) == (slow.step, slow.steps_per_epoch, 0) == (299, 7, 0)


def test_a_thinned_curve_keeps_extremes_gaps_and_the_limit() -> None:
    generator = random.Random(1)
    values = [generator.gauss(0, 1) for _ in range(5_000)]
    values[1_234], values[4_321] = 50.0, -60.0
    curve = Curve()
    curve.extend(range(5_000), values)
    thin = curve.downsample(200)
    assert len(thin) <= 200
    assert [step for step, _ in thin] == sorted(step for step, _ in thin)
    assert {(1_234, 50.0), (4_321, -60.0)} <= set(thin)
    curve.extend([5_000], [math.nan])
    assert (5_000, None) in curve.downsample(200)
    assert len(curve.downsample(200)) <= 200
    assert curve.last is None


def test_a_very_long_curve_takes_bounded_memory_and_keeps_its_extremes() -> None:
    curve = Curve()
    for start in range(0, 200_000, 100):
        curve.extend(range(start, start + 100), [99.0 if s == 777 else s / 200_000 for s in range(start, start + 100)])
    assert len(curve.values) <= KEPT + 100
    assert max(curve.values) == 99.0
    assert curve.steps[-1] > 199_000


def test_a_tree_of_values_is_flat_by_dotted_names() -> None:
    tree = {"a": {"b": [1, 2], "c": [{"d": None}, {"d": "x"}]}, "e": {}, "f": 1e-4}
    assert flatten(tree) == {"a.b": "[1, 2]", "a.c.0.d": "null", "a.c.1.d": "x", "e": "{}", "f": "0.0001"}


def test_a_link_that_cannot_be_followed_and_a_number_without_a_limit_hide_no_run(tmp_path: Path) -> None:
    for name in ("good", "huge"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("max_epochs: 1.0e+299\nobjective: {}\n")
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0}\n')
    (tmp_path / "huge" / "state.json").write_text('{"steps_per_epoch": 1e299}')
    (tmp_path / "loop").symlink_to("loop")
    listing = RunListing(tmp_path)
    found = listing.changes("")
    assert {*found["addresses"]} == {"good", "huge"}
    assert [note for note in found["notes"] if note.startswith("loop is a link that cannot be followed")]
    json.dumps([found, listing.detail("huge")], allow_nan=False)


def test_a_file_without_line_ends_is_read_in_parts_and_the_lines_behind_it_are_found(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("objective: {}\n")
    with (tmp_path / "metrics.jsonl").open("wb") as file:
        file.truncate(3 * LONGEST * BLOCK + 5)
        file.seek(0, 2)
        file.write(b'\n{"step": 7, "train/loss": 1.0}\n')
    summary = CurveSummary(tmp_path / "metrics.jsonl")
    tracemalloc.start()
    begun = time.process_time()
    for _ in range(10):
        summary.update()
    assert tracemalloc.get_traced_memory()[1] < 5 * LONGEST * BLOCK
    tracemalloc.stop()
    assert time.process_time() - begun < 10
    assert summary.shown.step == 7
    assert summary.damaged == 4  # three parts, and what is left of it

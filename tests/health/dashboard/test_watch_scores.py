"""What the page adds to the curves: final scores, meanings with healthy values, times, pictures, keys to compare."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tests.health.dashboard.test_watch_runs import CONFIG, lines, make_run, state
from unlabeled.health.dashboard.documents import compared_settings
from unlabeled.health.dashboard.listing import RunListing
from unlabeled.health.dashboard.meanings import GROUPS, MEANINGS, describe, meaning_of
from unlabeled.health.dashboard.run_files import STEPS, pictures_by_kind
from unlabeled.health.dashboard.scores import final_scores, read_results, short_name
from unlabeled.health.facts import RunFacts
from unlabeled.health.rules import RULES
from unlabeled.health.signals import MetricRecord

ROOT = Path(__file__).parents[3]
FACTS = RunFacts("SimCLR", None, 1_000, 128)
NO_RULE = "system/machine_memory"  # our choice


@pytest.mark.parametrize(
    ("protocol", "name"),
    [
        ("knn/cosine-exp/k=20/T=0.07", "k-NN 20"),
        ("linear/cached-lbfgs-v1", "linear"),
        ("linear/cached-lbfgs-v1/5 per class/3 draws", "5 labels a class"),
        ("linear/cached-lbfgs-v1/1 per class/3 draws", "1 label a class"),
        ("knn/cosine-exp/k=5/T=0.1/10 per class/3 draws", "k-NN 5, 10 labels a class"),
        ("kmeans/l2/k=10/hungarian-on-train", "k-means 10"),
        ("mc-dropout/linear/p=0.1/S=8", "mc dropout"),
    ],
)
def test_a_protocol_has_a_short_name_for_its_column(protocol: str, name: str) -> None:
    assert short_name(protocol) == name


def test_scores_are_those_of_the_pretrained_features_and_damaged_rows_are_left_out() -> None:
    good = {"features": "pretrained", "protocol": "linear/x", "top1": 71.5}
    rows: list[Any] = [good, {**good, "features": "raw pixels"}, {**good, "top1": "70"}, {**good, "protocol": None}, 7]
    assert final_scores({"rows": rows}) == [("linear/x", "linear", 71.5)]
    assert [final_scores(each) for each in ({}, {"rows": 3})] == [[], []]
    text = json.dumps({"rows": rows, "provenance": {"command": "unlabeled evaluate run=x", "config": {"a": 1}}})
    assert read_results(text.encode()) == {
        "scores": [("linear/x", "linear", 71.5)],
        "command": "unlabeled evaluate run=x",
    }


def unhealthy(metric: str, value: float) -> bool:
    """Whether a rule of the monitor says so."""
    record = MetricRecord({metric: value}, {}, {metric: value}, {metric: value}, FACTS)
    return any(rule.holds(each, FACTS) for rule in RULES for each in rule.values(record).values())


def test_the_healthy_band_of_a_metric_ends_where_the_monitor_finds_it_unhealthy() -> None:
    checked = 0
    for metric in [each.name for each in MEANINGS if each.name != NO_RULE]:
        metric += "projector" if metric.endswith("/") else ""
        told = describe([metric], {"features": 128})[metric]
        for bound, outside in ((told["low"], -1), (told["high"], 1)):
            if bound is None:
                continue
            assert not unhealthy(metric, bound + 1e-9 * (-outside)), metric
            assert unhealthy(metric, bound + outside * (1 if metric.endswith("finite") else 1e-6)), metric
            checked += 1
    assert checked == 13


def test_a_methods_own_bounds_are_drawn_and_said() -> None:
    signs = [{"metric": "teacher_entropy", "at_least": 1.5, "at_most": float("inf")}, 3]
    told = describe(["train/teacher_entropy", "train/loss"], {"signs": signs})
    assert (told["train/teacher_entropy"]["low"], told["train/teacher_entropy"]["high"]) == (1.5, None)
    assert told["train/teacher_entropy"]["sentence"].endswith("Healthy: at least 1.5.")
    assert told["train/loss"]["sentence"] == meaning_of("train/loss").sentence


def test_every_metric_that_our_runs_wrote_has_a_group_and_a_sentence_of_its_own() -> None:
    files = sorted((ROOT / "benchmarks" / "results").glob("*/metrics.jsonl"))
    names = {name for file in files for name in json.loads("{" + _last_of_each(file) + "}")}
    assert len(names) > 30
    for name in names - {"step", "epoch"}:
        assert meaning_of(name).group in GROUPS
        assert meaning_of(name).name not in ("", "train/", "health/"), name
    assert meaning_of("health/planned/anything").group == "plan"
    assert meaning_of("mine").group == "training"


def _last_of_each(file: Path) -> str:
    """The names of all values, as JSON without braces."""
    names = {name for line in file.read_text().splitlines() for name in json.loads(line)}
    return ", ".join(f"{json.dumps(name)}: 0" for name in sorted(names))


def test_pictures_are_sorted_by_kind_and_step_and_of_many_some_over_the_whole_run_are_shown(
    tmp_path: Path,
) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "preview").mkdir()
    (tmp_path / "preview" / "views.png").touch()
    for step in (0, 5, *range(10, 10 * STEPS, 5)):
        (tmp_path / "pictures" / f"feature_map-step-{step:08d}.png").touch()
    found = pictures_by_kind(tmp_path)
    assert found["preview/views"] == [(None, "preview/views.png")]
    steps = [step for step, _ in found["feature_map"]]
    assert len(steps) == STEPS
    assert (steps[0], steps[-1]) == (0, 10 * STEPS - 5)
    assert steps == sorted(steps)  # type: ignore[type-var]


def test_a_class_is_compared_by_its_name_and_what_names_a_run_is_not_compared() -> None:
    tree = {"name": "a", "run_dir": "b", "objective": {"_target_": "unlabeled.x.SwAV", "_convert_": "all", "t": 0.1}}
    assert compared_settings(tree) == {"objective": "SwAV", "objective.t": "0.1"}
    assert compared_settings({}) == {}


def test_times_are_those_of_the_run_and_a_step_that_was_repeated_counts_once(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", state=json.dumps(state(started=100.0, updated=220.0, sessions=1)))
    listing = RunListing(tmp_path)
    listing.changes("")
    detail = listing.detail("run")
    assert detail is not None
    assert detail["seconds"] == [(0, 0.0), (120, 120.0)]  # by the mean speed
    marks = [(10, 5.0), (20, 9.0), (30, 14.0), (20, 21.0), (40, 30.0)]  # resumed after step 10
    (folder / "system.jsonl").write_text("".join(f'{{"step": {s}, "seconds": {t}, "cpu": 0.5}}\n' for s, t in marks))
    detail = listing.detail("run")
    assert detail is not None
    assert detail["seconds"] == [(0, 0.0), (10, 5.0), (20, 21.0), (40, 30.0)]
    assert detail["curves"]["system/cpu"] == [(10, 0.5), (20, 0.5), (40, 0.5)]
    assert detail["meanings"]["system/cpu"]["group"] == "system"
    assert (detail["ends"]["train/loss"], detail["settings"]["objective"]) == ([4.9, 3.8], "SwAV")


def test_of_a_long_file_some_lines_are_shown_at_once_and_all_when_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unlabeled.health.dashboard.dashboard_run.AT_ONCE", 10_000)
    text = lines(range(10, 40_000, 10)).replace('{"step": 20000, "epoch": 200.0, "train/loss": -195.0}\n', "damaged\n")
    make_run(tmp_path / "long", metrics=text, state=json.dumps(state()))
    listing = RunListing(tmp_path)
    monkeypatch.setattr(listing, "_reader", True)  # no thread: read on below
    first = listing.changes("")["runs"]["long"]
    assert first["reading"]
    assert (first["loss"]["points"][0], first["loss"]["last"]) == ((10, 4.9), 5 - 399.9)
    steps = [step for step, _ in first["loss"]["points"]]
    assert len(steps) > 40
    assert max(after - before for before, after in itertools.pairwise(steps)) < 1_500
    while listing.runs["long"].summary.behind:
        listing.runs["long"].read_on()
    last = listing.changes("")["runs"]["long"]
    assert not last["reading"]
    assert (last["loss"]["points"][0], last["loss"]["points"][-1]) == ((10, 4.9), (39_990, 5 - 399.9))
    assert last["problems"] == ["metrics.jsonl has 1 line that cannot be read"]


def test_of_very_many_runs_an_answer_has_some_and_the_next_ones_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(9):
        (tmp_path / f"run{number}").mkdir()
        (tmp_path / f"run{number}" / "config.yaml").write_text(CONFIG)
    for name, value in {"FEW": 4, "PATIENCE": -1.0}.items():
        monkeypatch.setattr(f"unlabeled.health.dashboard.listing.{name}", value)
    listing = RunListing(tmp_path)
    answers = [listing.changes("")]
    assert len(answers[0]["addresses"]) == 9
    while len(answers) < 3:
        answers.append(listing.changes(answers[-1]["token"]))
    assert [len(answer["runs"]) for answer in answers] == [4, 4, 1]
    assert {address for answer in answers for address in answer["runs"]} == set(answers[0]["addresses"])

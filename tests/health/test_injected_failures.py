"""Failures that are seen in the first steps, put into small runs on the digits; later ones: benchmarks/health.py."""

import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.injected.failures import FAILURES, FURTHER, Failure
from tests.small import small_run
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run

AT_ONCE = {
    "no stop-gradient": "gradient-reaches-targets",
    "no normalisation": "embeddings-not-normalised",
    "frozen teacher": "teacher-is-frozen",
    "constant images": "images-are-equal",
    "not shuffled": "not-shuffled",
    "no Sinkhorn": "codes-not-balanced",
    "no certain image": "no-certain-image",
    "teacher sees nothing": "teacher-says-nothing",
}
CASES = [
    (failure, objective)
    for failure in FAILURES
    for objective in failure.objectives
    if failure.name in AT_ONCE
    and objective != "paws"  # paws needs a list of labels
    # without a teacher there is no other network that a gradient could reach: SimSiam's collapse shows later
    and (failure.name, objective) != ("no stop-gradient", "simsiam")
]


RATES = {"ijepa": 1.0}  # its gradients are small, and a teacher must move by what float32 can show


def names_of(objective: str, failure: Failure | None, run_dir: Path) -> list[str]:
    """Findings of six steps."""
    own = ["data=digits", "batch_size=32", "max_steps=6", "num_workers=0", "pictures=null", "optimizer=sgd"]
    own += [
        f"optimizer.lr={RATES.get(objective, 0.01)}",
        "optimizer.warmup_epochs=0",
        "log_every_n_steps=1",
        "trainer.precision=32-true",
    ]
    config = small_run(objective, run_dir, *own, "health.every_n_steps=2", "health.probe_every_n_steps=6")
    with ExitStack() as stack:
        if failure is not None:
            failure.before(stack)
        resolved = open_run(config)
        run = build_run(config, resolved)
        if failure is not None:
            failure.after(run)
        run.fit(resolved)
    findings = json.loads((run_dir / "health.json").read_text())["findings"]
    return [finding["name"] for finding in findings]


@pytest.mark.parametrize(
    ("failure", "objective"), CASES, ids=[f"{failure.name}, {objective}" for failure, objective in CASES]
)
def test_a_failure_that_shows_at_once_is_named(failure: Failure, objective: str, tmp_path: Path) -> None:
    assert AT_ONCE[failure.name] in names_of(objective, failure, tmp_path)


@pytest.mark.parametrize(
    ("name", "objective", "finding"),
    [
        ("one cluster for all", "scan", "clusters-not-used"),
        ("one class for all", "fixmatch", "one-class-for-all"),
    ],
)
def test_a_failure_that_lasts_is_named(
    name: str, objective: str, finding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unlabeled.health.rules.PINNED_STEPS", 3)
    spoilt = next(each for each in FAILURES if each.name == name)
    assert finding in names_of(objective, spoilt, tmp_path)


HEALTHY = ["simclr", "moco_v2", "moco_v3", "swav", "relicv2", "mae", *FURTHER]
HEALTHY += ["nnclr", "supcon", "triplet", "supervised", "lejepa", "ijepa", "simmim", "data2vec"]
HEALTHY += ["scan", "distill", "fixmatch", "suncet"]


@pytest.mark.parametrize("objective", HEALTHY)
def test_a_run_without_a_failure_has_no_finding(objective: str, tmp_path: Path) -> None:
    assert names_of(objective, None, tmp_path) == []
    signs = json.loads((tmp_path / "health.json").read_text())["facts"]["signs"]
    written = (tmp_path / "metrics.jsonl").read_text()
    assert [sign["metric"] for sign in signs if f'"train/{sign["metric"]}"' not in written] == []

"""The monitor in real runs on the digits."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.faulty import config_of, run_of, same, state_of
from unlabeled.errors import UserError
from unlabeled.evaluation.features import state_hash
from unlabeled.health.folder import diagnose_run
from unlabeled.objectives.moco import MoCo
from unlabeled.objectives.parts import ema
from unlabeled.objectives.simclr import SimCLR

OFTEN = ("health.every_n_steps=2", "health.probe_every_n_steps=4", "health.images=64")


def frozen(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """A moving average that does not move."""


def findings_of(run_dir: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run_dir / "health.json").read_text())["findings"]
    return found


def test_a_run_that_is_watched_ends_with_the_bits_of_one_that_is_not(tmp_path: Path) -> None:
    watched = run_of(config_of(tmp_path / "a", MoCo, *OFTEN))
    alone = run_of(config_of(tmp_path / "b", MoCo, "health=none"))
    assert state_hash(watched.module) == state_hash(alone.module)
    assert same(state_of(tmp_path / "a"), state_of(tmp_path / "b"))
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    looks = [line["step"] for line in lines if "health/embedding_std" in line]
    probes = [line["step"] for line in lines if "health/feature_rankme" in line]
    assert (looks, probes) == ([1, 2, 4, 6, 8], [2, 4, 8])
    assert findings_of(tmp_path / "a") == []
    assert not (tmp_path / "b" / "health.json").exists()


def test_its_folder_gives_the_diagnosis_of_the_running_monitor_also_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ema, "update", frozen)
    run_of(config_of(tmp_path / "once", MoCo, *OFTEN))
    assert capsys.readouterr().out.count("alarm: The teacher has not changed at all, since step 2") == 1
    run_of(config_of(tmp_path / "twice", MoCo, *OFTEN, "max_steps=5"))
    run_of(config_of(tmp_path / "twice", MoCo, *OFTEN, "resume=override"))
    once, twice = (findings_of(tmp_path / name) for name in ("once", "twice"))
    assert [finding["name"] for finding in once] == ["teacher-is-frozen"]
    assert once == twice == [finding._asdict() for finding in diagnose_run(tmp_path / "once").findings]


def test_health_stop_ends_a_collapsed_run_in_one_line_and_watch_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # every loss stands at its value at collapse, whatever it is
    monkeypatch.setattr("unlabeled.health.rules.PINNED", 1e9)
    monkeypatch.setattr("unlabeled.health.rules.PINNED_STEPS", 3)
    overrides = ("checkpoint_every_n_steps=2", *OFTEN)
    with pytest.raises(UserError, match=r"step 4, health=stop: The loss stands at the value .* health=watch"):
        run_of(config_of(tmp_path, SimCLR, *overrides, "health=stop"))
    assert findings_of(tmp_path)[0]["collapse"]
    run_of(config_of(tmp_path, SimCLR, *overrides))
    assert state_of(tmp_path)["progress"]["step"] == 8


@pytest.mark.parametrize("damage", ["cut", "no health.json", "noise"])
def test_a_cut_line_or_a_missing_file_leaves_the_rest_of_a_folder_readable(tmp_path: Path, damage: str) -> None:
    lines = [json.dumps({"step": step, "train/loss": 5.0}) for step in range(10, 200, 10)]
    (tmp_path / "training.json").write_text(json.dumps({"collapsed_at": 5.0}))
    text = "\n".join(lines)
    (tmp_path / "metrics.jsonl").write_text({"cut": text[:-8], "noise": text + "\n[1]\nnull\n"}.get(damage, text))
    diagnosis = diagnose_run(tmp_path)
    assert [(finding.name, finding.since) for finding in diagnosis.findings] == [("loss-at-collapse", 10)]
    assert "loss alone" in diagnosis.describe()


def test_what_is_no_run_or_cannot_be_read_is_one_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no metrics.jsonl in it; give the folder of a run"):
        diagnose_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    strange = '{"facts": {"signs": [{"a": 1}]}}'
    for text, error in (("{", "cannot be read"), ("[]", "another version"), (strange, "another version")):
        (tmp_path / "health.json").write_text(text)
        with pytest.raises(UserError, match=rf"health.json: (is of )?{error}"):
            diagnose_run(tmp_path)

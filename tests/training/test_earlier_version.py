"""Runs of version 0.1, whose modules had other names, are resumed and evaluated as they are."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import Script

STORED = Path(__file__).with_name("run_of_version_0_1")  # two steps of SimCLR on digits, made by version 0.1
COMMAND = ["experiment=digits", "name=earlier", "max_epochs=null", "max_steps=4", "checkpoint_every_n_steps=2"]
COMMAND += ["backbone.width=0.0625", "objective.projection_dim=8", "online_knn=null", "pictures=null", "plan=null"]
COMMAND += ["probe=none", "health=none", "num_workers=0", "batch_size=64"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(STORED, tmp_path / "run"))


def test_a_run_of_an_earlier_version_is_resumed_from_its_step_with_its_weights(run: Path, script: Script) -> None:
    before = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    finished = script("train.py", *COMMAND, f"run_dir={run}", "resume=same")
    assert finished.returncode == 0, finished.stderr
    after = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert (before["global_step"], after["global_step"]) == (2, 4)
    assert before["state_dict"].keys() == after["state_dict"].keys()
    assert after["state_dict"]["objective.backbone.bn1.num_batches_tracked"] == 4


def test_another_value_is_refused_with_the_key_that_differs_alone(run: Path, script: Script) -> None:
    finished = script("train.py", *COMMAND, f"run_dir={run}", "optimizer.lr=0.2")
    assert finished.returncode == 2
    assert "holds a run with another optimizer.lr;" in finished.stderr


def test_a_checkpoint_of_an_earlier_version_is_evaluated_whole(run: Path, script: Script) -> None:
    finished = script("eval_linear.py", f"run={run}", "probe=knn", "cache_gib=0", "num_workers=0")
    assert finished.returncode == 0, finished.stderr
    rows = json.loads((run / "report" / "results.json").read_text())["rows"]
    assert {row["features"] for row in rows} >= {"pretrained", "random init", "raw pixels"}

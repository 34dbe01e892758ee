"""``benchmarks/gpu_check.sh`` runs through all of its parts on a CPU, so that it works the first time on a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ENVIRONMENT, ROOT

PARTS = ["tests", "simclr_32", "methods_32", "photographs", "speedrun", "choices_32", "lightly"]
ROWS = ["simclr_32_eager", "moco_32", "swav_32"]
ROWS += [f"{name}_{origin}" for name in ("resnet50_224", "mae_vit_base_224") for origin in ("pack", "memory")]


def check(*arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | ENVIRONMENT | {"PYTHON": sys.executable}
    command = [str(ROOT / "benchmarks/gpu_check.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)


def test_the_dry_run_has_a_result_of_every_part(tmp_path: Path) -> None:
    finished = check("--dry-run", "--out", str(tmp_path))
    assert finished.returncode == 0, finished.stderr
    for part in PARTS:
        found = json.loads((tmp_path / f"{part}.part.json").read_text())
        assert found["code"] == 0, (tmp_path / f"{part}.log").read_text()[-2000:]
    for row in ROWS:
        result = json.loads((tmp_path / f"{row}.json").read_text())
        assert (result["small"], result["device"]) == (True, "cpu")
        assert result["images_per_second"] > 0
        assert 0 < result["efficiency"] < 2
    assert json.loads((tmp_path / "simclr_32_eager_launches.json").read_text())["per_step"]["host_operations"] > 100
    assert json.loads((tmp_path / "pack.json").read_text())["images"] == 24
    assert json.loads((tmp_path / "speedrun.json").read_text())["top1"]
    assert "| speedrun | 0 |" in (tmp_path / "summary.md").read_text()


def test_without_time_every_part_says_so_and_a_mistake_is_one_line(tmp_path: Path) -> None:
    finished = check("--dry-run", "--out", str(tmp_path), "--seconds", "5")
    assert finished.returncode == 0
    assert finished.stdout.count("no time left\n") == len(PARTS)
    assert finished.stdout.count("| no time left |") == len(PARTS)
    for arguments, line in ((["--fast"], "error: --fast: no such option; (allowed: "), ([], "error: --out: give a")):
        finished = check(*arguments)
        assert finished.returncode == 2
        assert finished.stderr.startswith(line)
        assert len(finished.stderr.splitlines()) == 1

"""One row, in a process of its own: ``python -m benchmarks.pretraining.measure ROW.json RESULT.json REPEATS``.

Twice the run that ``train.py`` would make: with a clock around each part of a step, then in turn with its limit.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import torch
from hydra import compose, initialize_config_dir

from benchmarks.pretraining.limit import InTurn
from benchmarks.pretraining.phases import Phases
from benchmarks.pretraining.rows import Row
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.commands.config import check_keys
from unlabeled.core.environment import machine, versions
from unlabeled.training.run import Run

CONF = Path(__file__).resolve().parents[2] / "conf"
WARM = 2  # steps before anything is timed
# Probes are not pretraining; what an epoch costs once is timed by itself and charged for an epoch's images.
NO_PROBE = ("probe=none", "online_knn=null", "pictures=null", "plan=null")
ALONE = ("name=benchmark", *NO_PROBE, "max_epochs=null", "checkpoint_every_n_epochs=1000000")


class Watch(Protocol):
    """What looks at a run."""

    def attach(self, run: Run) -> None: ...


def measure(row: Row, repeats: int) -> dict[str, Any]:
    """All numbers of a row, as plain values."""
    with tempfile.TemporaryDirectory() as folder:
        phases = Phases(WARM, max(row.steps, 10))  # every tenth step is logged
        run = fit(row.overrides, Path(folder) / "phases", phases.steps_needed, phases)
        peak = peak_bytes(run.trainer.strategy.root_device)
        turns = InTurn(WARM, row.steps, repeats, row.settle)
        fit(row.overrides, Path(folder) / "in_turn", turns.steps_needed, turns)
    device = run.trainer.strategy.root_device
    return {
        "row": asdict(row),
        "images_per_step": run.module.images_per_step,
        "run": turns.run,
        "limit": turns.limit,
        "phases": phases.per_step,
        "checkpoint": phases.checkpoint,
        "step": phases.step,
        "view_pixels": turns.view_pixels,
        "peak_bytes": peak,
        "watts": turns.watts,
        "precision": run.trainer.precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "machine": machine(),
        "date": datetime.now().isoformat(timespec="seconds"),
    }


def fit(overrides: Sequence[str], run_dir: Path, steps: int, watch: Watch) -> Run:
    """What ``train.py`` does with these overrides, for a number of steps, watched."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [*ALONE, *overrides, f"run_dir={run_dir}", f"max_steps={steps}"])
    check_keys(config, CONF / "train.yaml")
    resolved = open_run(config)
    run = build_run(config, resolved)
    watch.attach(run)
    run.fit(resolved)
    return run


def peak_bytes(device: torch.device) -> int:
    """Most memory so far: of the GPU what tensors took, on a CPU the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


def main(row_file: str, result_file: str, repeats: str) -> None:
    given = json.loads(Path(row_file).read_text())
    row = Row(**given | {"overrides": tuple(given["overrides"])})
    Path(result_file).write_text(json.dumps(measure(row, int(repeats)), indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

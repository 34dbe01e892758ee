"""What a network's features are like, without labels: ``unlabeled represent run=outputs/NAME``."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unlabeled.commands.arguments.typed import typed_command
from unlabeled.commands.build.representation import build_analysis_subject
from unlabeled.commands.config import run_module
from unlabeled.core.environment import git_state, machine, versions
from unlabeled.core.writing import check_folder, kept_anyway
from unlabeled.data.fingerprint import fingerprint
from unlabeled.evaluation.provenance import checkpoint_provenance
from unlabeled.representation.analysis import AnalysisSubject, Settings, analyse
from unlabeled.representation.report_files import NAME, measures_table, write_analysis
from unlabeled.weights import Checkpoint, checkpoint_path, folder_of, read_checkpoint


def represent(config: Any, resolved: dict[str, Any]) -> None:
    """Look at one checkpoint and write what was found.

    Args:
        config: as composed from ``conf/representation.yaml``.
        resolved: the same as plain values.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    path = checkpoint_path(resolved["run"], resolved["checkpoint"])
    out = Path(resolved["out"] or folder_of(path) / "report").expanduser()
    check_folder("out", out, [f"{NAME}.json", f"{NAME}.md"])
    checkpoint = read_checkpoint(path)
    subject, built = build_analysis_subject(config, checkpoint)
    settings = Settings(
        resolved["images"],
        resolved["lidar_images"],
        resolved["lidar_views"],
        resolved["alpha_window"],
        resolved["batch_size"],
        built["seed"],
    )
    analysis = analyse(subject, settings, print)
    asked = {
        "command": typed_command(),
        "date": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 1),
    }
    print(f"\n{measures_table(analysis)}\n")
    for note in analysis.notes:
        print(f"note: {note}")
    told = asked | protocol(subject, checkpoint, built)
    kept_anyway(out, lambda folder: write_analysis(folder, analysis, told))
    print(f"the whole is in {out / f'{NAME}.md'}, with its pictures")


def protocol(subject: AnalysisSubject, checkpoint: Checkpoint, built: dict[str, Any]) -> dict[str, Any]:
    """All that decides the numbers: nested dicts of plain values."""
    return {
        "checkpoint": checkpoint_provenance(checkpoint),
        "data": {
            "description": subject.data.splits.description,
            "split": built["split"],
            "fingerprint": fingerprint(subject.source, moved=True),
            "corrupt_images": len(subject.data.corrupt),
        },
        "transform": subject.views.evaluation(),
        "views": built["views"]["groups"][0],
        "seed": built["seed"],
        "batch_size": built["batch_size"],
        "precision": "32-true, measures in float64",
        "device": str(subject.device),
        "git": git_state(),
        "versions": versions(),
        "machine": machine(),
    }


if __name__ == "__main__":
    run_module("representation", represent)

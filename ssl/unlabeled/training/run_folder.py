"""Checks, before data is read, that a run can write all its files into its folder."""

from pathlib import Path

from unlabeled.core.writing import check_folder

FILES = (
    "config.yaml",
    "metrics.jsonl",
    "metrics.csv",
    "state.json",
    "system.jsonl",
    "plan.json",
    "health.json",
    "training.json",
    "labels.txt",
    "wandb_run_id",
    "lock",
)
FOLDERS = {
    "checkpoints": ("last.ckpt", "last.partial"),
    "report": ("results.json", "report.md", "report.html", "predictions.safetensors", "least_sure.csv"),
    "preview": ("index.html", "views.png"),
    "pictures": (),
    "faults": (),
    "tensorboard": (),
    "wandb": (),
}


def check_run_folder(run_dir: Path) -> None:
    """Raises UserError for a folder that cannot be written to, or that has a subfolder where a file must be written."""
    check_folder("run_dir", run_dir, FILES)
    for name, files in FOLDERS.items():
        check_folder("run_dir", run_dir / name, files)

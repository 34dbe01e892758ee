"""What a run's numbers say of its health: ``unlabeled health run=outputs/digits``."""

from pathlib import Path
from typing import Any

from unlabeled.commands.config import run_module
from unlabeled.health.folder import diagnose_run


def health_command(config: Any, resolved: dict[str, Any]) -> None:
    """Print the diagnosis; exit status 1 where there is an alarm.

    Args:
        config: as composed from ``conf/health.yaml``.
        resolved: the same as plain values.
    """
    diagnosis = diagnose_run(Path(resolved["run"]).expanduser())
    print(diagnosis.describe())
    if any(finding.severity == "alarm" and finding.holds for finding in diagnosis.findings):
        raise SystemExit(1)


if __name__ == "__main__":
    run_module("health", health_command)

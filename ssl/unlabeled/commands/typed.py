"""What was typed to start this process."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

SCRIPTS = ("train.py", "eval_linear.py")  # at the top of a checkout


def typed_command(arguments: Sequence[str] | None = None) -> str:
    """The command, to be shown and typed again.

    Args:
        arguments: to show in place of those that were typed, without the name of a command within ``unlabeled``.
    """
    if Path(sys.argv[0]).name in SCRIPTS:
        return " ".join(["python", sys.argv[0], *(sys.argv[1:] if arguments is None else arguments)])
    start = ["python", "-m", "unlabeled"] if Path(sys.argv[0]).name == "__main__.py" else ["unlabeled"]
    return shlex.join([*start, *sys.argv[1:2], *(without_name() if arguments is None else arguments)])


def without_name() -> list[str]:
    """What was typed behind the script, or behind the name of a command within ``unlabeled``."""
    return sys.argv[1:] if Path(sys.argv[0]).name in SCRIPTS else sys.argv[2:]

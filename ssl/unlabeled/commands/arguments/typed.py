"""What was typed to start this process."""

import sys
from collections.abc import Sequence
from pathlib import Path

from unlabeled.core.escaping import for_shell

SCRIPTS = ("train.py", "eval_linear.py")  # at the top of a checkout


def typed_command(arguments: Sequence[str] | None = None) -> str:
    """The command, to be shown and typed again.

    Args:
        arguments: to show in place of those that were typed, without the name of a command within ``unlabeled``.
    """
    program = Path(sys.argv[0])
    if program.name in SCRIPTS:
        return for_shell(["python", sys.argv[0], *(sys.argv[1:] if arguments is None else arguments)])
    start = ["python", "-m", "unlabeled"] if program.name == "__main__.py" else ["unlabeled"]
    name = [program.stem.partition("_")[0]] if _is_module() else sys.argv[1:2]
    return for_shell([*start, *name, *(without_name() if arguments is None else arguments)])


def without_name() -> list[str]:
    """What was typed behind the script, or behind the name of a command within ``unlabeled``."""
    return sys.argv[1:] if Path(sys.argv[0]).name in SCRIPTS or _is_module() else sys.argv[2:]


def _is_module() -> bool:
    """Whether it was ``unlabeled represent``, say, which is ``unlabeled represent``."""
    program = Path(sys.argv[0])
    return program.suffix == ".py" and program.parent.name == Path(__file__).parents[1].name

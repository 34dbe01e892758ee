"""Self-supervised pretraining of image backbones, evaluated beside baselines, with intervals.

What stands in ``__all__`` is imported when it is asked for: ``import unlabeled`` takes milliseconds and no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unlabeled.commands.entry_points.from_python import (
        active,
        embed,
        evaluate,
        explore,
        export,
        finetune,
        label,
        load,
        predict,
        train,
    )
    from unlabeled.errors import UserError

__version__ = "0.1.0"
__all__ = [
    "UserError",
    "__version__",
    "active",
    "embed",
    "evaluate",
    "explore",
    "export",
    "finetune",
    "label",
    "load",
    "predict",
    "train",
]

_COMMANDS = ("active", "embed", "evaluate", "explore", "export", "finetune", "label", "load", "predict", "train")
_HOMES = dict.fromkeys(_COMMANDS, "unlabeled.commands.entry_points.from_python")
_HOMES["UserError"] = "unlabeled.errors"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

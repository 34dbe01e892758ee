"""Self-supervised pretraining of image backbones, evaluated beside baselines, with intervals.

What stands in ``__all__`` is imported when it is asked for: ``import unlabeled`` takes milliseconds and no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unlabeled.commands.entry_points.features_from_python import cluster, detect, embed, explore, segment, transfer
    from unlabeled.commands.entry_points.from_python import evaluate, export, train
    from unlabeled.commands.entry_points.labels_from_python import active, finetune, label, predict
    from unlabeled.commands.entry_points.run_from_python import load
    from unlabeled.errors import UserError

__version__ = "0.1.0"
__all__ = [
    "UserError",
    "__version__",
    "active",
    "cluster",
    "detect",
    "embed",
    "evaluate",
    "explore",
    "export",
    "finetune",
    "label",
    "load",
    "predict",
    "segment",
    "train",
    "transfer",
]

_CALLS = {
    "from_python": ("evaluate", "export", "train"),
    "features_from_python": ("cluster", "detect", "embed", "explore", "segment", "transfer"),
    "run_from_python": ("load",),
    "labels_from_python": ("active", "finetune", "label", "predict"),
}
_HOMES = {name: f"unlabeled.commands.entry_points.{module}" for module, names in _CALLS.items() for name in names}
_HOMES["UserError"] = "unlabeled.errors"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

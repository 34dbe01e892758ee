"""The commands from Python: their keys are keywords, their mistakes :class:`UserError`, what they write is returned.

The same configuration gives the same folder and the same bits as on the command line. What embeds images is in
:mod:`features_from_python`, what has to do with labels in :mod:`labels_from_python`.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlabeled.commands.arguments.compose import composed, overrides_of
from unlabeled.commands.arguments.data_path import with_data_source
from unlabeled.commands.config import conf_folder, user_errors
from unlabeled.commands.entry_points.run_from_python import (
    Run,
    Weights,
    as_found,
    kind_of,
    path_of,
    refuse,
    silent,
)
from unlabeled.core.escaping import for_shell

if TYPE_CHECKING:
    from unlabeled.evaluation.reporting.results import Results

NO_TRAINING = {"preview": "unlabeled preview", "plan_only": "unlabeled plan", "replay": "unlabeled train replay=FILE"}
NO_JUDGING = {
    "compare": "unlabeled compare A B",
    "ensemble": "unlabeled evaluate ensemble=[A,B]",
    "self_test": "unlabeled evaluate self_test=true",
}


def train(*, out: "str | os.PathLike[str] | None" = None, overrides: Sequence[str] = (), **keys: Any) -> Run:
    """Pretrain a backbone and evaluate it: ``unlabeled train``.

    Args:
        out: the run's folder, ``run_dir``; a run that is there already goes on.
        overrides: ``key=value`` each, as on the command line.
        keys: the same as keywords; ``optimizer={"lr": 0.1}`` is ``optimizer.lr=0.1``. ``data`` may be a folder,
            ``weights`` a :class:`Run`.

    Raises:
        UserError: a mistake, with the line that the command would print.
        KeyboardInterrupt: Ctrl-C; the state is written, and the same call goes on.
    """
    from unlabeled.commands.train.picks import completed
    from unlabeled.commands.train.train import train as pretrain
    from unlabeled.evaluation.reporting.results import Results

    if isinstance(keys.get("weights"), Run):
        keys["weights"] = path_of(keys["weights"])
    given = overrides_of(({} if out is None else {"run_dir": out}) | keys) + list(overrides)
    refuse(given, NO_TRAINING)
    config = composed("train", given := completed(given, log=silent))
    with as_found(), user_errors(conf_folder(), "train", given):
        try:
            trained = pretrain(config, for_shell(["unlabeled", "train", *given]), silent)
        except SystemExit:  # stopped by a signal; what it said is printed
            raise KeyboardInterrupt from None
    report = trained.run_dir / "report" / "report.html"
    return Run(trained.run_dir, Results(trained.rows, report) if trained.rows else None)


def evaluate(run: Weights, *, overrides: Sequence[str] = (), **keys: Any) -> "Results":
    """Evaluate a frozen backbone: ``unlabeled evaluate``.

    Args:
        run: its folder or a file of weights.
        overrides, keys: as in :func:`train`; ``data`` may be a folder of labelled images.

    Raises:
        UserError: a mistake, with the line that the command would print.
    """
    from unlabeled.commands.evaluate.evaluate import evaluate_checkpoint

    given = overrides_of({kind_of(run): path_of(run)} | keys) + list(overrides)
    refuse(given, NO_JUDGING)
    config = composed("eval_linear", given := with_data_source(given))
    with as_found(), user_errors(conf_folder(), "eval_linear", given):
        results = evaluate_checkpoint(config, for_shell(["unlabeled", "evaluate", *given]), silent)
    assert results is not None
    return results


def export(run: Weights, to: str, *, overrides: Sequence[str] = (), **keys: Any) -> Path:
    """Write a backbone for another library and make sure that it gives the same features there: ``unlabeled export``.

    Args:
        run: its folder or a file of weights.
        to: timm, torchvision, safetensors, huggingface, onnx or torch_export.
        overrides, keys: as in :func:`train`; ``out`` is the folder, ``head`` a classifier of the report to go with it.

    Returns:
        The folder.

    Raises:
        UserError: a mistake, with the line that the command would print.
    """
    given = overrides_of({kind_of(run): path_of(run), "to": to} | keys) + list(overrides)
    config = composed("export", given := with_data_source(given))
    with as_found(), user_errors(conf_folder(), "export", given):
        from omegaconf import OmegaConf

        from unlabeled.commands.export import export as write

        plain: Any = OmegaConf.to_container(config)
        return write(config, plain, silent)

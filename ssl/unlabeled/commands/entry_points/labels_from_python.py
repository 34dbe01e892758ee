"""What has to do with labels, from Python: :func:`predict`, :func:`finetune`, :func:`label` and :func:`active`."""

import os
from collections.abc import Sequence
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
    silent,
    source_of,
)
from unlabeled.core.escaping import for_shell
from unlabeled.errors import UserError

if TYPE_CHECKING:
    from unlabeled.evaluation.heads.predicted import Predicted
    from unlabeled.evaluation.selection.active_result import Active
    from unlabeled.evaluation.selection.wanted import Wanted


def predict(run: Weights, data: Any = None, *, overrides: Sequence[str] = (), **keys: Any) -> "Predicted":
    """Predicts the classes of images, as ``unlabeled predict`` does.

    Args:
        run: its folder or a file of weights, evaluated before: its report keeps the classifiers.
        data: as in :func:`embed`; of a data set with a test split that one, unless ``split="train"``.
        overrides, keys: as in :func:`train`; ``head``, ``risk``, ``report_dir``; ``members``, further runs whose
            probabilities are averaged with those of the first, and ``samples``, predictions with dropout at work.

    Returns:
        Names, classes and calibrated probabilities; ``.save("predictions.csv")`` writes them. Of several members
        ``mutual_information`` says how far they disagree.

    Raises:
        UserError: a mistake, with the line that the command would print.
    """
    named = data is None or isinstance(data, str | os.PathLike)
    images = {"data": data} if named and data is not None else {}
    if isinstance(keys.get("members"), list | tuple):
        keys["members"] = [path_of(each) for each in keys["members"]]
    given = with_data_source([*overrides_of({kind_of(run): path_of(run)} | images | keys), *overrides])
    config = composed("predict", given)
    if config.out is not None:
        raise UserError('out: what is returned has .save("predictions.csv")')
    if not named and config.get("data") is not None:
        raise UserError("data: images are given already; leave the keys of data out")
    with as_found(), user_errors(conf_folder(), "predict", given):
        from unlabeled.commands.build.classify import build_prediction
        from unlabeled.commands.checks.classifiers import check_risk
        from unlabeled.evaluation.embedding.given_images import given_splits
        from unlabeled.evaluation.heads.predicted import joined

        check_risk({key: config[key] for key in ("risk", "members", "samples")})
        prediction = build_prediction(config, None if named else given_splits(data))
        return joined(list(prediction.parts()))


def finetune(run: Weights, data: Any = None, *, out: Any = None, overrides: Sequence[str] = (), **keys: Any) -> Run:
    """Trains the whole network on labels and keeps it, as ``unlabeled finetune`` does.

    Args:
        run: as in :func:`load`.
        data: labelled images, as in :func:`train`; None: the run's own.
        out: the new folder.
        overrides, keys: as in :func:`train`; ``labels``, ``holdout``, ``refit``, ``recipe``.

    Returns:
        The folder as a run, for :func:`predict`, :func:`embed` and :func:`export`; ``results["finetune"]`` where there
        are labelled test images.

    Raises:
        UserError: a mistake, with the line that the command would print.
    """
    named = {name: value for name, value in (("data", data), ("out", out)) if value is not None}
    given = with_data_source([*overrides_of(source_of(run) | named | keys), *overrides])
    config = composed("finetune", given)
    with as_found(), user_errors(conf_folder(), "finetune", given):
        from omegaconf import OmegaConf

        from unlabeled.commands.checks.places import check_places
        from unlabeled.commands.classify.finetune import finetune as train_on_labels
        from unlabeled.evaluation.reporting.results import Results

        plain: Any = OmegaConf.to_container(config)
        check_places("finetune", plain)
        folder, row = train_on_labels(config, plain, silent)
    return Run(folder, Results([row], folder / "finetune.json") if row.n_test else None)


def label(
    run: Weights, data: "str | os.PathLike[str] | None" = None, *, overrides: Sequence[str] = (), **keys: Any
) -> "Wanted":
    """Choose the images of a pool to label next: ``unlabeled label``.

    Args:
        run: what :func:`load` takes.
        data: the pool: a folder or a list by its path, or a choice such as ``"digits"``. None: the run's own images.
        overrides, keys: as in :func:`train`; ``n``, ``strategy``, ``labels``; with ``out`` the list is written too.

    Returns:
        ``names`` of the images, the most wanted first.

    Raises:
        UserError: a mistake, with the line that the command would print.
    """
    images = {} if data is None else {"data": data}
    given = with_data_source([*overrides_of(source_of(run) | images | keys), *overrides])
    config = composed("label", given)
    with as_found(), user_errors(conf_folder(), "label", given):
        from omegaconf import OmegaConf

        from unlabeled.commands.checks.places import check_list_out, check_strategy
        from unlabeled.commands.labelling.label import label as choose

        plain: Any = OmegaConf.to_container(config)
        check_strategy(plain)
        if plain["out"] is not None:
            check_list_out(plain["out"])
        return choose(config, plain, silent)


def active(run: Weights, *, overrides: Sequence[str] = (), **keys: Any) -> "Active":
    """Run active learning on a labelled set and write its page: ``unlabeled active``.

    Args:
        run: its folder or a file of weights.
        overrides, keys: as in :func:`train`; ``strategy``, ``start``, ``step``, ``rounds``, ``seeds``, ``out``.

    Returns:
        ``courses`` with the accuracy of each round, ``savings`` of each strategy, ``page``.

    Raises:
        UserError: a mistake, with the line that the command would print.
    """
    given = with_data_source(overrides_of({kind_of(run): path_of(run)} | keys) + list(overrides))
    config = composed("active", given)
    with as_found(), user_errors(conf_folder(), "active", given):
        from omegaconf import OmegaConf

        from unlabeled.commands.checks.places import check_places
        from unlabeled.commands.labelling.active import active as learn

        plain: Any = OmegaConf.to_container(config)
        check_places("active", plain)
        return learn(config, plain, silent, for_shell(["unlabeled", "active", *given]))

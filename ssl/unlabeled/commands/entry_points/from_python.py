"""The commands from Python: their keys are keywords, their mistakes :class:`UserError`, what they write is returned.

The same configuration gives the same folder and the same bits as on the command line.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlabeled.commands.arguments.compose import composed, overrides_of
from unlabeled.commands.arguments.data_path import with_data_source
from unlabeled.commands.config import conf_folder, user_errors
from unlabeled.core.escaping import for_shell
from unlabeled.core.parsing import parse_json
from unlabeled.core.reading import read_utf8
from unlabeled.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from unlabeled.evaluation.embedding.embeddings import Embeddings
    from unlabeled.evaluation.embedding.stream import Embedder, Images
    from unlabeled.evaluation.heads.predicted import Predicted
    from unlabeled.evaluation.reporting.results import Results
    from unlabeled.evaluation.selection.active_result import Active
    from unlabeled.evaluation.selection.wanted import Wanted
    from unlabeled.health.diagnosis import Finding
    from unlabeled.weights.pretrained import Pretrained

NO_TRAINING = {"preview": "unlabeled preview", "plan_only": "unlabeled plan", "replay": "unlabeled train replay=FILE"}
LOADED = ("run", "checkpoint", "weights", "backbone", "views")  # what decides a backbone
NO_JUDGING = {
    "compare": "unlabeled compare A B",
    "ensemble": "unlabeled evaluate ensemble=[A,B]",
    "self_test": "unlabeled evaluate self_test=true",
}


@dataclass(frozen=True)
class Run:
    """A run that has been trained to its end, in its folder."""

    folder: Path
    results: "Results | None"  # None: no probe, or no labelled test images

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """What ``metrics.jsonl`` holds: a dict a line, with ``step``, ``epoch`` and values by name."""
        return [parse_json(line) for line in read_utf8(self.folder / "metrics.jsonl").splitlines()]

    @property
    def findings(self) -> "list[Finding]":
        """What is unhealthy, most serious first; ``finding.sentence`` says it."""
        from unlabeled.health.folder import diagnose_run

        return diagnose_run(self.folder).findings

    @property
    def report(self) -> Path | None:
        """The page; None where nothing was evaluated and none was made of the images."""
        page = self.folder / "report" / "report.html"
        return self.results.report if self.results is not None else page if page.is_file() else None

    @cached_property
    def backbone(self) -> "Pretrained":
        """The trained backbone, as :func:`load` gives it."""
        return load(self.folder)


Weights = str | os.PathLike[str] | Run


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
        keys["weights"] = _path(keys["weights"])
    given = overrides_of(({} if out is None else {"run_dir": out}) | keys) + list(overrides)
    _refuse(given, NO_TRAINING)
    config = composed("train", given := completed(given, log=_silent))
    with _as_found(), user_errors(conf_folder(), "train", given):
        try:
            trained = pretrain(config, for_shell(["unlabeled", "train", *given]), _silent)
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

    given = overrides_of({_kind(run): _path(run)} | keys) + list(overrides)
    _refuse(given, NO_JUDGING)
    config = composed("eval_linear", given := with_data_source(given))
    with _as_found(), user_errors(conf_folder(), "eval_linear", given):
        results = evaluate_checkpoint(config, for_shell(["unlabeled", "evaluate", *given]), _silent)
    assert results is not None
    return results


def load(run: Weights, *, overrides: Sequence[str] = (), **keys: Any) -> "Pretrained":
    """A backbone with its weights, in eval mode: an ``nn.Module`` with ``transform``, ``num_features``, ``image_size``.

    Args:
        run: its folder, a file of weights, of this project or official, or ``"timm:NAME"``,
            ``"torchvision:NAME[:WEIGHTS]"`` or ``"hf:ORG/NAME"``.
        overrides, keys: ``backbone=…`` and ``views=…`` for files that do not say what they are.

    Raises:
        UserError: not every tensor finds its place, or the file does not say what it is.
    """
    given = overrides_of(_source(run) | keys) + list(overrides)
    config = composed("embed", given)
    _refuse_all_but(given, LOADED)
    with user_errors(conf_folder(), "embed", given):
        from unlabeled.commands.build.embedding import build_pretrained
        from unlabeled.weights.starting.named import read_named

        return build_pretrained(config, read_named(config.run, config.checkpoint, config.weights))


def embed(
    model: "Weights | nn.Module", data: Any = None, *, overrides: Sequence[str] = (), **keys: Any
) -> "Embeddings":
    """Computes features of images, those that ``unlabeled embed`` writes.

    Args:
        model: what :func:`load` takes or gives, or any module from images [B, C, h, w] to features [B, D] whose
            ``transform`` makes its input of a Pillow image.
        data: a folder, a list or an image by its path, a choice such as ``"digits"``, or images: a list of Pillow
            images, arrays [H, W, 3] and uint8 tensors [3, H, W], or several in one array. None: the run's own.
        overrides, keys: as in :func:`train`; ``features``, ``pooling``, ``normalize``, ``batch_size``.

    Raises:
        UserError: a mistake, with the line that the command would print.
    """
    given, named = _given(model, data, keys, overrides)
    config = composed("embed", given)
    if config.out is not None:
        raise UserError('out: what is returned has .save("features.parquet")')
    _check_given(config, model, named)
    with _as_found(), user_errors(conf_folder(), "embed", given):
        from unlabeled.evaluation.embedding.table import embed_in_memory

        return embed_in_memory(*_built(config, model, None if named else data), _silent)


def explore(
    model: "Weights | nn.Module", data: Any = None, *, out: Any = None, overrides: Sequence[str] = (), **keys: Any
) -> Path:
    """Makes a page to look through images without labels: ``unlabeled explore``.

    Args:
        model, data: as :func:`embed` takes them.
        out: the page; None: explore.html in the run's folder, or here.
        overrides, keys: as in :func:`train`; ``images``, ``clusters``, ``label_next``.

    Returns:
        The page.

    Raises:
        UserError: a mistake, with the line that the command would print.
    """
    own = {} if out is None else {"out": out}
    given, named = _given(model, data, own | keys, overrides)
    config = composed("explore", given)
    _check_given(config, model, named)
    if config.embeddings is not None:
        raise UserError("embeddings: a network is given already; leave it out")
    with _as_found(), user_errors(conf_folder(), "explore", given):
        from omegaconf import OmegaConf

        from unlabeled.commands.features.explore import as_embedding, explore_built, page_path

        plain: Any = OmegaConf.to_container(config)
        built = _built(as_embedding(config), model, None if named else data)
        page = page_path(plain, Path(config.run).expanduser() if config.run else Path())
        return explore_built(page, *built, _origin(model), plain, _silent)


def _given(model: Any, data: Any, keys: dict[str, Any], overrides: Sequence[str]) -> tuple[list[str], bool]:
    """What is given to a command that embeds, and whether the images are named: by a place, a choice, or the run."""
    named = data is None or isinstance(data, str | os.PathLike)
    weights = _source(model) if isinstance(model, str | os.PathLike | Run) else {}
    images = {"data": data} if named and data is not None else {}
    return with_data_source([*overrides_of(weights | images | keys), *overrides]), named


def _check_given(config: Any, model: Any, named: bool) -> None:
    if not named and config.get("data") is not None:
        raise UserError("data: images are given already; leave the keys of data out")
    of_file = isinstance(model, str | os.PathLike | Run)
    if not of_file and (unused := [key for key in LOADED if config.get(key)]):
        raise UserError(f"{unused[0]}: a network is given already; leave it out")


def _built(config: Any, model: Any, images: Any) -> "tuple[Embedder, Images]":
    from unlabeled.commands.build.embedding import build_of_checkpoint, build_of_module
    from unlabeled.evaluation.embedding.given_images import given_splits
    from unlabeled.weights.starting.named import read_named

    splits = None if images is None else given_splits(images)
    if isinstance(model, str | os.PathLike | Run):
        return build_of_checkpoint(config, read_named(config.run, config.checkpoint, config.weights), splits)
    return build_of_module(config, _module(model), splits)


def _origin(model: Any) -> str:
    return _path(model) if isinstance(model, str | os.PathLike | Run) else type(model).__name__


def predict(run: Weights, data: Any = None, *, overrides: Sequence[str] = (), **keys: Any) -> "Predicted":
    """Predicts the classes of images, as ``unlabeled predict`` does.

    Args:
        run: its folder or a file of weights, evaluated before: its report keeps the classifiers.
        data: as in :func:`embed`; of a data set with a test split that one, unless ``split="train"``.
        overrides, keys: as in :func:`train`; ``head``, ``risk``, ``report_dir``.

    Returns:
        Names, classes and calibrated probabilities; ``.save("predictions.csv")`` writes them.

    Raises:
        UserError: a mistake, with the line that the command would print.
    """
    named = data is None or isinstance(data, str | os.PathLike)
    images = {"data": data} if named and data is not None else {}
    given = with_data_source([*overrides_of({_kind(run): _path(run)} | images | keys), *overrides])
    config = composed("predict", given)
    if config.out is not None:
        raise UserError('out: what is returned has .save("predictions.csv")')
    if not named and config.get("data") is not None:
        raise UserError("data: images are given already; leave the keys of data out")
    with _as_found(), user_errors(conf_folder(), "predict", given):
        from unlabeled.commands.build.classify import build_prediction
        from unlabeled.evaluation.embedding.given_images import given_splits
        from unlabeled.evaluation.heads.predicted import joined

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
    given = with_data_source([*overrides_of(_source(run) | named | keys), *overrides])
    config = composed("finetune", given)
    with _as_found(), user_errors(conf_folder(), "finetune", given):
        from omegaconf import OmegaConf

        from unlabeled.commands.checks.places import check_places
        from unlabeled.commands.classify.finetune import finetune as train_on_labels
        from unlabeled.evaluation.reporting.results import Results

        plain: Any = OmegaConf.to_container(config)
        check_places("finetune", plain)
        folder, row = train_on_labels(config, plain, _silent)
    return Run(folder, Results([row], folder / "finetune.json") if row.n_test else None)


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
    given = overrides_of({_kind(run): _path(run), "to": to} | keys) + list(overrides)
    config = composed("export", given := with_data_source(given))
    with user_errors(conf_folder(), "export", given):
        from omegaconf import OmegaConf

        from unlabeled.commands.export import export as write

        plain: Any = OmegaConf.to_container(config)
        return write(config, plain, _silent)


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
    given = with_data_source([*overrides_of(_source(run) | images | keys), *overrides])
    config = composed("label", given)
    with _as_found(), user_errors(conf_folder(), "label", given):
        from omegaconf import OmegaConf

        from unlabeled.commands.checks.places import check_strategy
        from unlabeled.commands.labelling.label import label as choose

        plain: Any = OmegaConf.to_container(config)
        check_strategy(plain)
        return choose(config, plain, _silent)


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
    given = with_data_source(overrides_of({_kind(run): _path(run)} | keys) + list(overrides))
    config = composed("active", given)
    with _as_found(), user_errors(conf_folder(), "active", given):
        from omegaconf import OmegaConf

        from unlabeled.commands.checks.places import check_places
        from unlabeled.commands.labelling.active import active as learn

        plain: Any = OmegaConf.to_container(config)
        check_places("active", plain)
        return learn(config, plain, _silent, for_shell(["unlabeled", "active", *given]))


def _module(model: Any) -> "nn.Module":
    from torch import nn

    if not isinstance(model, nn.Module):
        raise UserError(f"{type(model).__name__}: give a run, a file of weights, or a network")
    return model


def _path(run: Any) -> str:
    return os.fspath(run.folder if isinstance(run, Run) else run)


def _kind(run: Any) -> str:
    return "checkpoint" if os.path.isfile(Path(_path(run)).expanduser()) else "run"


def _source(run: Any) -> dict[str, str]:
    """The key that names what a backbone is loaded from."""
    in_library = ":" in _path(run) and not os.path.exists(Path(_path(run)).expanduser())
    return {"weights" if in_library else _kind(run): _path(run)}


def _refuse_all_but(overrides: Sequence[str], keys: Sequence[str]) -> None:
    for each in overrides:
        key = each.lstrip("+~").split("=")[0]
        if not each.startswith("--") and key.split(".")[0].split("@")[0] not in keys:
            raise UserError(f"{key}: decides nothing of a backbone that is loaded; allowed: {', '.join(keys)}")


def _refuse(overrides: Sequence[str], elsewhere: dict[str, str]) -> None:
    for key, command in elsewhere.items():
        if any(each.lstrip("+").split("=")[0] == key for each in overrides):
            raise UserError(f"{key}: gives nothing back to Python; call {command} in a shell")


def _silent(line: str) -> None:
    """What is returned is not printed."""


@contextmanager
def _as_found() -> Iterator[None]:
    """What a run sets for the whole process is put back: random states, a log level, filters of warnings."""
    import torch

    lightning = logging.getLogger("pytorch_lightning")
    level = lightning.level
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices), warnings.catch_warnings():
            yield
    finally:
        lightning.setLevel(level)

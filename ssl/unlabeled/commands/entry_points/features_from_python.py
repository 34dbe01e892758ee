"""Features of images from Python: :func:`embed`, :func:`explore`, :func:`cluster`, :func:`segment` and others."""

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlabeled.commands.arguments.compose import composed, overrides_of
from unlabeled.commands.arguments.data_path import with_data_source
from unlabeled.commands.config import conf_folder, user_errors
from unlabeled.commands.entry_points.run_from_python import (
    LOADED,
    Run,
    Weights,
    as_found,
    path_of,
    silent,
    source_of,
)
from unlabeled.core.escaping import for_shell
from unlabeled.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from unlabeled.commands.build.transfer import Network
    from unlabeled.commands.cluster.cluster import Clustered
    from unlabeled.downstream.detection.detect_report import Detection
    from unlabeled.downstream.segmentation.segment_report import Segmentation
    from unlabeled.downstream.transfer_table import TransferTable
    from unlabeled.evaluation.embedding.embeddings import Embeddings
    from unlabeled.evaluation.embedding.stream import Embedder, Images
    from unlabeled.weights.pretrained import Pretrained


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
    with as_found(), user_errors(conf_folder(), "embed", given):
        from unlabeled.evaluation.embedding.table import embed_in_memory

        return embed_in_memory(*_built(config, model, None if named else data), silent)


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
    with as_found(), user_errors(conf_folder(), "explore", given):
        from omegaconf import OmegaConf

        from unlabeled.commands.checks.places import check_page_out
        from unlabeled.commands.features.explore import as_embedding, explore_built, page_path

        plain: Any = OmegaConf.to_container(config)
        if plain["out"] is not None:
            check_page_out(plain["out"])
        built = _built(as_embedding(config), model, None if named else data)
        page = page_path(plain, Path(config.run).expanduser() if config.run else Path())
        return explore_built(page, *built, _origin(model), plain, silent)


def cluster(run: Weights, *, overrides: Sequence[str] = (), **keys: Any) -> "Clustered":
    """Clusters the images of a pretrained run without labels: ``unlabeled cluster``.

    Args:
        run: its folder.
        overrides, keys: as in :func:`train`, for both trainings; ``clusters``, ``scan``, ``self_label``, ``out``.

    Returns:
        ``table`` with accuracy, NMI and ARI where test images have labels, ``page``, and the folders ``runs``.

    Raises:
        UserError: a mistake, with the line that the command would print.
        KeyboardInterrupt: Ctrl-C; the state is written, and the same call goes on.
    """
    from unlabeled.commands.cluster.cluster import OWN
    from unlabeled.commands.cluster.cluster import cluster as train_both

    given = overrides_of({"run": path_of(run)} | keys) + list(overrides)
    own = [each for each in given if each.split("=")[0] in OWN]
    config = composed("cluster", own)
    with as_found(), user_errors(conf_folder(), "cluster", own):
        from omegaconf import OmegaConf

        from unlabeled.commands.checks.places import check_places

        plain: Any = OmegaConf.to_container(config)
        check_places("cluster", plain)
        try:
            command = for_shell(["unlabeled", "cluster", *given])
            return train_both(plain, [each for each in given if each not in own], command, silent)
        except SystemExit:  # stopped by a signal; what it said is printed
            raise KeyboardInterrupt from None


def _given(model: Any, data: Any, keys: dict[str, Any], overrides: Sequence[str]) -> tuple[list[str], bool]:
    """What is given to a command that embeds, and whether the images are named: by a place, a choice, or the run."""
    named = data is None or isinstance(data, str | os.PathLike)
    weights = source_of(model) if isinstance(model, str | os.PathLike | Run) else {}
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


def _module(model: Any) -> "nn.Module":
    from torch import nn

    if not isinstance(model, nn.Module):
        raise UserError(f"{type(model).__name__}: give a run, a file of weights, or a network")
    return model


def _origin(model: Any) -> str:
    return path_of(model) if isinstance(model, str | os.PathLike | Run) else type(model).__name__


def transfer(run: "Weights | Pretrained", data: Any, *, overrides: Sequence[str] = (), **keys: Any) -> "TransferTable":
    """Judges frozen features on several data sets and writes their page: ``unlabeled transfer``.

    Args:
        run: its folder, a file of weights, a name such as ``"timm:resnet50"``, or what :func:`load` returned (then
            ``out`` is needed, and no random network stands beside).
        data: a list of names of torchvision's data sets, choices such as ``"digits"``, folders and files; or one.
        overrides, keys: as in :func:`train`; ``against``, ``root``, ``download``, ``few``, ``draws``, ``out``.

    Returns:
        ``.tasks`` with each data set's numbers, ``.summaries("linear")``, ``.page``.

    Raises:
        UserError: a mistake, with the line that the command would print.
    """
    keys = {"sets": [data] if isinstance(data, str | os.PathLike) else [*data]} | keys
    table: TransferTable = _judged("transfer", "unlabeled.commands.evaluate.transfer", run, keys, overrides)
    return table


def segment(run: "Weights | Pretrained", data: Any, *, overrides: Sequence[str] = (), **keys: Any) -> "Segmentation":
    """Judges dense features by semantic segmentation and writes the page: ``unlabeled segment``.

    Args:
        run: as :func:`transfer` takes it.
        data: folder of images and label maps.
        overrides, keys: as in :func:`train`; ``steps``, ``size``, ``finetune``, ``out``.

    Returns:
        ``.found`` with a confusion matrix for each network and protocol (``.mean_iou``), ``.page``.

    Raises:
        UserError: a mistake, with the line that the command would print.
    """
    keys = {"folder": data} | keys
    found: Segmentation = _judged("segment", "unlabeled.commands.evaluate.segment", run, keys, overrides)
    return found


def detect(run: Weights, data: Any, *, overrides: Sequence[str] = (), **keys: Any) -> "Detection":
    """Trains and measures a detector from the weights, beside one from random weights: ``unlabeled detect``.

    Args:
        run: its folder, a file of weights, or a name such as ``"torchvision:resnet50"``.
        data: folder of images with boxes, in COCO's form or Pascal VOC's.
        overrides, keys: as in :func:`train`; ``detection="r50_c4_voc"``, ``against``, ``random``, ``out``.

    Returns:
        ``.found`` with the average precision of each detector (``.precision["bbox"].ap50``), ``.page``.

    Raises:
        UserError: a mistake, with the line that the command would print.
    """
    keys = {"folder": data} | keys
    found: Detection = _judged("detect", "unlabeled.commands.evaluate.detect", run, keys, overrides)
    return found


def _judged(name: str, module: str, run: "Weights | Pretrained", keys: dict[str, Any], overrides: Sequence[str]) -> Any:
    """Does a command that takes a network and data of its own, silently."""
    of_file = isinstance(run, str | os.PathLike | Run)
    given = [*overrides_of((source_of(run) if of_file else {}) | keys), *overrides]
    config = composed(name, given)
    with as_found(), user_errors(conf_folder(), name, given):
        from omegaconf import OmegaConf

        from unlabeled.commands.checks.places import check_places

        plain: Any = OmegaConf.to_container(config)
        loaded = None if of_file else _loaded(run, plain, given)
        check_places(name, plain | ({"weights": GIVEN} if loaded else {}))
        command = for_shell(["unlabeled", name, *given])
        return getattr(import_module(module), name)(config, plain, silent, command, loaded)


GIVEN = "timm:given"  # stands for a network that is not named, where places are checked


def _loaded(network: Any, keys: dict[str, Any], given: Sequence[str]) -> "Network":
    """Returns a network of :func:`load` as the commands take it, its weights apart from the user's."""
    import copy

    from unlabeled.commands.build.transfer import Network
    from unlabeled.weights.pretrained import Pretrained

    if not isinstance(network, Pretrained):
        raise UserError(f"{type(network).__name__}: give a run, a file of weights, or what unlabeled.load returned")
    if unused := [key for key in LOADED if keys.get(key)]:
        raise UserError(f"{unused[0]}: a network is given already; leave it out")
    if keys["out"] is None:
        raise UserError("out: a network that is given has no folder; give out=FOLDER")
    if any(each.lower() == "random=true" for each in given):
        raise UserError("random=true: a network that is given has no random start; give the run itself")
    return Network(type(network.backbone).__name__, copy.deepcopy(network.backbone), network.transform.views)

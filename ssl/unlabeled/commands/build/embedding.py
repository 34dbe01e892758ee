"""From a composed configuration to what :mod:`unlabeled.evaluation.embedding` needs."""

import os
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image

from unlabeled.commands.arguments.compose import composed
from unlabeled.commands.arguments.data_path import with_data_source
from unlabeled.commands.build.evaluation import complete_config
from unlabeled.commands.build.network import build_backbone
from unlabeled.commands.build.other_images import with_all_images
from unlabeled.commands.build.run import build_data
from unlabeled.commands.build.trainer import resolve_precision
from unlabeled.data.module import DataModule
from unlabeled.data.source import Splits
from unlabeled.distributed.launch import local_rank
from unlabeled.errors import UserError
from unlabeled.evaluation.embedding.stream import Embedder, Images
from unlabeled.evaluation.features import Transform
from unlabeled.views.pipeline import Views
from unlabeled.weights import Checkpoint, load_backbone
from unlabeled.weights.preprocess import read_preprocess
from unlabeled.weights.pretrained import Pretrained
from unlabeled.weights.starting.named import named_as_given


def build_of_checkpoint(
    config: DictConfig, checkpoint: Checkpoint, given: Splits | None = None
) -> tuple[Embedder, Images]:
    """Builds a checkpoint's backbone with its weights, and the images; what is left open comes from its own run.

    Args:
        config: as composed from ``conf/embed.yaml``.
        checkpoint: that the weights are of.
        given: images in place of a data set that is named.

    Raises:
        UserError: as the evaluation.
    """
    needs = ("views", "backbone") if given else ("data", "views", "backbone")
    with named_as_given(checkpoint, config.weights):
        named = with_all_images(with_folder(config, checkpoint), checkpoint)
        filled = complete_config(named, checkpoint, needs)
        network = build_backbone(filled.backbone, filled.seed)
        backbone = load_backbone(checkpoint, network, any_size=config.weights is not None)
    views: Views = instantiate(filled.views)
    views.compiles = False
    backbone.check_size(views.size)
    images = build_images(filled, given)
    views.require_channels(images.data.splits.train)
    return _embedder(config, backbone, views.evaluation_view, views.evaluation()), images


def build_pretrained(config: DictConfig, checkpoint: Checkpoint) -> Pretrained:
    """Builds a checkpoint's backbone with its weights and its transform; needs no images.

    Args:
        config: as composed from ``conf/embed.yaml``.
        checkpoint: that the weights are of.

    Raises:
        UserError: as :func:`build_of_checkpoint`.
    """
    with named_as_given(checkpoint, config.weights):
        filled = complete_config(config, checkpoint, ("views", "backbone"))
        network = build_backbone(filled.backbone, filled.seed)
        backbone = load_backbone(checkpoint, network, any_size=config.weights is not None).float()
    views: Any = OmegaConf.to_container(filled.views, resolve=True)
    preprocess = read_preprocess(views)
    backbone.check_size(preprocess.size)
    return Pretrained(backbone, preprocess)


def build_of_module(config: DictConfig, network: nn.Module, given: Splits | None = None) -> tuple[Embedder, Images]:
    """Prepares a network that says by its ``transform`` how images are prepared, and the images.

    Raises:
        UserError: it has none, or no data are given.
    """
    transform = getattr(network, "transform", None)
    if not callable(transform):
        raise UserError(
            f"{type(network).__name__}: has no transform; set model.transform to what makes an input of a Pillow image"
        )
    if given is None and not config.get("data"):
        raise UserError("data: a network does not say what it was made with: give a folder, a choice, or images")
    images = build_images(config, given)
    if isinstance(network, Pretrained):
        views = network.transform.views
        return _embedder(config, network.backbone, views.evaluation_view, views.evaluation()), images
    return _embedder(config, network, _by_image(transform), repr(transform)), images


def build_images(config: DictConfig, given: Splits | None) -> Images:
    """Opens all splits; none is decoded into memory."""
    if given is not None:
        data = DataModule(given, config.batch_size, 0, 0, config.seed)
    else:
        data = build_data(OmegaConf.create({**config, "memory_gib": 0.0}))
    return Images(data, config.batch_size)


def _embedder(config: DictConfig, network: nn.Module, view: Transform, described: Any) -> Embedder:
    gpu = config.accelerator != "cpu" and torch.cuda.is_available()
    return Embedder(
        network,
        view,
        described,
        torch.device(f"cuda:{local_rank()}" if gpu else "cpu"),
        resolve_precision(config.precision, config.accelerator),
        config.features,
        config.pooling,
        config.normalize,
    )


def with_folder(config: DictConfig, checkpoint: Checkpoint) -> DictConfig:
    """Lets ``data.path=…`` alone name images for a run whose own data have no path, as they have moved for others."""
    given: Any = OmegaConf.to_container(config.data) if config.get("data") else {}
    own = (checkpoint.config or {}).get("data") or {}
    if set(given) != {"path"} or "path" in own:
        return config
    place = os.path.abspath(os.path.expanduser(given["path"]))
    chosen = composed("embed", with_data_source([f"data={place}"]), asked=False)
    return OmegaConf.create({**config, "data": chosen.data})


def _by_image(transform: Any) -> Transform:
    """Applies somebody's own transform of Pillow images to uint8 images on a common canvas."""

    def view(images: Tensor, sizes: Tensor | None) -> Tensor:
        frames = [images.shape[-2:]] * len(images) if sizes is None else sizes.tolist()
        pictures = (
            to_pil_image(image[:, :height, :width].cpu()) for image, (height, width) in zip(images, frames, strict=True)
        )
        made = [transform(picture) for picture in pictures]
        if not all(isinstance(each, Tensor) and each.dim() == 3 for each in made):
            raise UserError("model.transform: must make a tensor [C, h, w] of a Pillow image")
        return torch.stack(made).to(images.device)

    return view

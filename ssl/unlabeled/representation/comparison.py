"""Compares two networks layer by layer, on the same images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from unlabeled.data.module import DataModule
from unlabeled.data.source import Source
from unlabeled.evaluation.features import extract, full_float32
from unlabeled.objective import Backbone, Batch
from unlabeled.representation.analysis import check_size, choose_images
from unlabeled.representation.cka import CKA
from unlabeled.representation.layers import Layers
from unlabeled.views.pipeline import Views
from unlabeled.weights import Checkpoint


@dataclass(frozen=True)
class ComparedNetwork:
    """One loaded network, with the preprocessing of its images."""

    name: str
    backbone: Backbone
    views: Views
    checkpoint: Checkpoint | None  # None: randomly initialised
    seed: int  # of the random initialisation


@dataclass(frozen=True)
class LayerSimilarities:
    """CKA between the layers of two networks, and within each, float64 on the CPU."""

    first: Tensor  # [A, A]
    second: Tensor  # [B, B]
    across: Tensor  # [A, B]
    layers: tuple[list[str], list[str]]
    images: int


def compare(
    first: ComparedNetwork,
    second: ComparedNetwork,
    data: DataModule,
    source: Source,
    images: int,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> LayerSimilarities:
    """Compares the layers of two networks on the same batches of images; neither network changes.

    Args:
        first, second: the networks.
        data: serves ``source``.
        source: the split.
        images: how many images of the split to use, at most all; at least 4.
        batch_size: at least 4.
        seed: of the choice of images.
        device: for the computation.

    Raises:
        UserError: a backbone has no layers, or takes images of another size.
    """
    layers = [Layers(side.backbone) for side in (first, second)]
    for side in (first, second):
        check_size(side.backbone, side.views)
    positions = choose_images(source, images, seed)
    size = min(batch_size, len(positions))
    alone, across = [CKA(), CKA()], CKA()
    with full_float32(device), layers[0].recording(), layers[1].recording():
        for batch in data.batches(source, positions, size):
            for side in (first, second):
                forward_layers(side, batch, device)
            taken = [each.taken() for each in layers]
            for gathered, outputs in zip(alone, taken, strict=True):
                gathered.update(outputs, outputs)
            across.update(*taken)
    return LayerSimilarities(
        alone[0].matrix(), alone[1].matrix(), across.matrix(), (layers[0].names, layers[1].names), across.images
    )


def forward_layers(side: ComparedNetwork, batch: Batch, device: torch.device) -> None:
    """Runs one forward pass, whose outputs are recorded by hooks."""
    extract(side.backbone, [batch], side.views.evaluation_view, device)

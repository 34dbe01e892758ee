"""Checks that two networks give the same features on the same images, within a tolerance."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.data.module import DataModule
from unlabeled.data.source import Splits
from unlabeled.errors import UserError
from unlabeled.views.pipeline import Views

TOLERANCE = 1e-5  # largest absolute difference of features, over the root mean square of ours
GENERATED = 8  # images


def images_to_compare(views: Views, splits: Splits | None, wanted: int) -> dict[str, Tensor]:
    """Returns batches keyed by their kind, float32 [B, 3, size, size] each, as evaluation prepares images."""
    made = views.evaluation_view(generate_images(GENERATED, views.size))
    batches = {f"{GENERATED} generated": made, "one generated": made[:1]}
    if splits is not None:
        split = "train" if splits.test is None else "test"
        seen = _of_data(splits, views, wanted)
        batches |= {f"{len(seen)} of the data ({split})": seen} if len(seen) else {}
    return batches


def generate_images(count: int, size: int) -> Tensor:
    """Generates coloured clouds of all scales with noise, uint8 [count, 3, size, size]; always the same."""
    generator = torch.Generator().manual_seed(0)
    clouds = torch.zeros(count, 3, size, size)
    for cells in (2, 5, 11, 23, size):
        coarse = torch.randn(count, 3, cells, cells, generator=generator)
        clouds += F.interpolate(coarse, (size, size), mode="bilinear") / cells**0.5
    contrast = torch.linspace(20, 120, count)[:, None, None, None]
    return (127.5 + contrast * clouds).clamp(0, 255).to(torch.uint8)


def _of_data(splits: Splits, views: Views, wanted: int) -> Tensor:
    """Takes some images of the data, evenly spaced; those that cannot be decoded are left out."""
    source = splits.train if splits.test is None else splits.test
    positions = torch.arange(min(wanted, len(source))) * len(source) // max(1, min(wanted, len(source)))
    data = DataModule(splits, 1, 0, 0.0, 0)
    seen = [views.evaluation_view(batch.images, batch.sizes) for batch in data.batches(source, positions, 1)]
    return torch.cat(seen) if seen else torch.zeros(0)


@torch.inference_mode()
def feature_differences(
    to: str, ours: nn.Module, theirs: Callable[[Tensor], Tensor], batches: Mapping[str, Tensor]
) -> dict[str, float]:
    """Returns for each batch the largest absolute difference of features over the root mean square of ours.

    The scale is the root mean square, because a single large feature would hide the differences of the others.

    Raises:
        UserError: a difference is above the tolerance or not a number, or our features are all 0 or not finite.
    """
    measured = {}
    for name, images in batches.items():
        wanted, given = ours(images), theirs(images)
        if given.shape != wanted.shape:
            raise UserError(f"to={to}: features are {list(given.shape)} and not {list(wanted.shape)}; nothing is kept")
        scale = wanted.double().square().mean().sqrt().item()
        if not 0 < scale < math.inf:
            raise UserError(f"to={to}: on {name} image(s) the checkpoint's own features are all 0, or not finite")
        difference = (given.double() - wanted.double()).abs().max().item()
        measured[name] = difference / scale
        if not measured[name] <= TOLERANCE:
            raise UserError(
                f"to={to}: on {name} image(s) the reloaded model's features differ by {measured[name]:.1e} of their "
                f"scale, at most {TOLERANCE:g} is allowed; nothing is kept"
            )
    return measured

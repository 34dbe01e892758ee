"""Pictures of what the networks saw: training images with their views, and thumbnails of test images."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from unlabeled.data.padding import pad_to_largest
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.reporting.details.image_cache import Decode
from unlabeled.evaluation.reporting.details.points import SIDE
from unlabeled.pages.section import to_uint8
from unlabeled.views.key import ViewKey
from unlabeled.views.pipeline import Views

IMAGES, MOST = 6, 8  # training images that are shown, and most views of each (our choice)


@torch.no_grad()
def view_pictures(decode: Decode, views: Views, train: Features, seed: int) -> dict[str, Tensor]:
    """Returns random labelled training images and their views as columns [n, 3, h, w] in [0, 1], small ones enlarged.

    Backgrounds are not removed: a report is of any images, and the run's masks are of its own and may be gone.

    Args:
        decode: gives images of the train split.
        views: of the run.
        train: features of the training images.
        seed: of the choice of images, and of the draws.
    """
    ids = train.ids.cpu()[torch.randperm(len(train.ids), generator=torch.Generator().manual_seed(seed))[:IMAGES]]
    images, sizes = pad_to_largest(decode("train", ids.tolist()))
    made = views.without_masks()(images, ids, ViewKey(seed, 0, 0, len(ids)), min(MOST, views.count), sizes)
    columns = {"image": views.shown(views.evaluation_view(images, sizes))}
    columns |= {f"view {number}, {each.shape[-1]} pixels": views.shown(each) for number, each in enumerate(made, 1)}
    size = max(each.shape[-1] for each in columns.values())
    return {name: interpolate(each.cpu(), (size, size)) for name, each in columns.items()}


def shrunken(images: list[Tensor], views: Views) -> Tensor:
    """Returns decoded images as evaluation sees them, as thumbnails of the map: uint8 [n, 3, 32, 32]."""
    padded, sizes = pad_to_largest(images)
    pixels = views.shown(views.evaluation_view(padded, sizes)).cpu()
    return to_uint8(interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True))

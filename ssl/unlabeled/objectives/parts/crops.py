"""Several crops of an image, of which the large ones come first (multi-crop, arXiv:2006.09882)."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from unlabeled.errors import UserError
from unlabeled.objective import Plan


def by_resolution(backbone: Callable[[Tensor], Tensor], views: Sequence[Tensor]) -> Tensor:
    """Returns features of all views, [V·B, F] in order; adjacent views of equal size share one forward.

    As facebookresearch/swav (resnet50.py, forward) and facebookresearch/dino (utils.py, MultiCropWrapper) have it.
    """
    groups = itertools.groupby(views, key=lambda view: view.shape[-2:])
    return torch.cat([backbone(torch.cat(list(group))) for _, group in groups])


def large_crops(sizes: Sequence[int]) -> int:
    """Returns how many crops there are of the first one's size, in pixels."""
    return sum(size == sizes[0] for size in sizes)


def check_large_first(plan: Plan) -> None:
    """Raises UserError unless two or more large views come first, and all others are smaller."""
    plan.needs_views(2)
    sizes = list(plan.views)
    large = large_crops(sizes)
    if large < 2 or sizes[:large] != [sizes[0]] * large or max(sizes) > sizes[0]:
        raise UserError(f"views: two or more large views come first, then small ones; here {sizes} pixels")


def crop_pairs(teacher: int, student: int) -> Iterator[tuple[int, int]]:
    """Yields (teacher's crop, student's crop) of all pairs of different crops, the teacher's being the first ones."""
    return ((i, v) for i in range(teacher) for v in range(student) if v != i)

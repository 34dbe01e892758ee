"""Views whose crops are small at the start of a run and grow: progressive resizing."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from unlabeled.errors import UserError
from unlabeled.objective import Progress
from unlabeled.views.operations import Operation
from unlabeled.views.pipeline import ViewGroup, Views


class Phase(NamedTuple):
    """Views from a share of the run on."""

    begins: float  # share of the run that is done
    views: Views


class ProgressiveViews:
    """Chooses the views of a step: small crops first, which take less time, and the full size at the end.

    Progressive resizing (Howard 2018, fast.ai's entry to DAWNBench; Tan and Le 2021, EfficientNetV2, arXiv:2104.00298,
    section 4). What is drawn does not depend on it: a box is the same, and is resized to fewer pixels.

    Args:
        views: at full size.
        sizes: pairs of a share of the run and ``views.size`` from then on, pixels. Crops of other sizes shrink alike.

    Raises:
        UserError: shares do not begin at 0 or do not grow, sizes do not grow or do not end at ``views.size``, or a
            group has no crop that resizes.
    """

    def __init__(self, views: Views, sizes: Sequence[tuple[float, int]]) -> None:
        _check(sizes, views.size)
        self.phases = [Phase(begins, resized(views, size)) for begins, size in sizes]

    def at(self, progress: Progress) -> Views:
        """Returns the views of a step."""
        begun = (phase.views for phase in reversed(self.phases) if progress.fraction >= phase.begins)
        return next(begun)


def resized(views: Views, size: int) -> Views:
    """Returns the same views at another size; every crop is larger or smaller by the same factor."""
    if size == views.size:
        return views
    groups = [
        replace(group, operations=[_resized(step, size / views.size) for step in group.operations])
        for group in views.groups
    ]
    for group in groups:
        _require_resize(group)
    normal = None if views.mean is None else list(views.mean), None if views.std is None else list(views.std)
    evaluation = views.evaluation_crop, views.evaluation_interpolation
    made = Views(size, groups, *normal, *evaluation, views.masks, views.compiles, views.channels)
    made.block = views.block
    return made


def _resized(step: Operation, factor: float) -> Operation:
    if not getattr(step, "crops", False):
        return step
    made = copy.copy(step)
    made.size = max(1, round(step.size * factor))  # type: ignore[attr-defined]
    return made


def _require_resize(group: ViewGroup) -> None:
    """A crop that only cuts would show less of an image, and not the same in fewer pixels."""
    if any(getattr(step, "crops", False) and getattr(step, "framed", False) for step in group.operations):
        return
    names = ", ".join(type(step).__name__ for step in group.operations)
    raise UserError(
        f"progressive_resizing: a group of views has no RandomResizedCrop, only {names}: leave the key out, or give"
        " other views"
    )


def _check(sizes: Sequence[tuple[float, int]], full: int) -> None:
    given = f"progressive_resizing={[list(pair) for pair in sizes]}"
    begins, pixels = [pair[0] for pair in sizes], [pair[1] for pair in sizes]
    if not sizes or begins[0] != 0:
        raise UserError(f"{given}: the first pair must begin at share 0 of the run, as [[0,{max(1, full // 2)}],…]")
    for name, values in (("shares of the run", begins), ("sizes", pixels)):
        if any(later <= earlier for earlier, later in pairwise(values)):
            raise UserError(f"{given}: the {name} must grow from pair to pair")
    if pixels[-1] != full:
        raise UserError(f"{given}: the last size must be views.size={full}, with which features are evaluated")

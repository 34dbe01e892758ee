"""Views whose crops are small at the start of a run and grow: progressive resizing."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor

from unlabeled.errors import UserError
from unlabeled.views.key import ViewKey
from unlabeled.views.operations import Operation
from unlabeled.views.pipeline import ViewGroup, Views


class Phase(NamedTuple):
    """Views from a share of the run on."""

    begins: float  # share of the run that is done
    views: Views


class ProgressiveViews(Views):
    """Makes small views in the first steps of a run, which take less time, and those of full size at its end.

    Progressive resizing (Howard 2018, fast.ai's entry to DAWNBench; Tan and Le 2021, EfficientNetV2, arXiv:2104.00298,
    section 4). What is drawn does not depend on it: a box is the same, and is resized to fewer pixels. All else, such
    as the view of evaluation, is that of the full size.

    Args:
        full: the views at full size.
        sizes: pairs of a share of the run and ``views.size`` from then on, pixels. Crops of other sizes shrink alike.
        steps: of the run.
        accumulate: batches in a step.

    Raises:
        UserError: shares do not begin at 0 or do not grow, sizes do not grow or do not end at ``views.size``, or a
            group has no crop that resizes.
    """

    def __init__(self, full: Views, sizes: Sequence[tuple[float, int]], steps: int, accumulate: int = 1) -> None:
        check_sizes(sizes, full.size)
        super().__init__(**full.arguments())
        self.block, self.full, self.steps, self.accumulate = full.block, full, steps, accumulate
        self.phases = [Phase(begins, resized(full, size)) for begins, size in sizes]

    def at(self, step: int) -> Views:
        """Returns the views of a step, counted from 0."""
        share = step / self.steps
        return next(phase.views for phase in reversed(self.phases) if share >= phase.begins)

    def sizes(self, image_size: int) -> list[int]:
        return self.full.sizes(image_size)

    def uncompiled(self) -> "ProgressiveViews":
        made = copy.copy(self)
        made.compiles = False
        made.phases = [phase._replace(views=phase.views.uncompiled()) for phase in self.phases]
        return made

    def forward(self, images: Tensor, ids: Tensor, key: ViewKey, *given: Any, **more: Any) -> tuple[Tensor, ...]:
        """Makes the views of the step that the key has, see :meth:`Views.forward`."""
        made: tuple[Tensor, ...] = self.at(key.step // self.accumulate)(images, ids, key, *given, **more)
        return made


def resized(views: Views, size: int) -> Views:
    """Returns the same views at another size; crops, borders and covered squares change by the same factor.

    What an operation measures in pixels it names in its ``in_pixels``.
    """
    if size == views.size:
        return views
    groups = [
        replace(group, operations=[_resized(step, size / views.size) for step in group.operations])
        for group in views.groups
    ]
    for group in groups:
        _require_resize(group)
    return views.changed(size=size, groups=groups)


def _resized(step: Operation, factor: float) -> Operation:
    lengths = getattr(step, "in_pixels", ())
    made = copy.copy(step) if lengths else step
    for name in lengths:
        length = getattr(step, name)
        setattr(made, name, max(1, round(length * factor)) if length else 0)
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


def check_sizes(sizes: Sequence[tuple[float, int]], full: int) -> None:
    """Raises UserError unless shares and sizes grow from share 0 to the full size."""
    given = f"progressive_resizing={[list(pair) for pair in sizes]}"
    begins, pixels = [pair[0] for pair in sizes], [pair[1] for pair in sizes]
    if not sizes or begins[0] != 0:
        raise UserError(f"{given}: the first pair must begin at share 0 of the run, as [[0,{max(1, full // 2)}],…]")
    for name, values in (("shares of the run", begins), ("sizes", pixels)):
        if any(later <= earlier for earlier, later in pairwise(values)):
            raise UserError(f"{given}: the {name} must grow from pair to pair")
    if pixels[-1] != full:
        raise UserError(f"{given}: the last size must be views.size={full}, with which features are evaluated")

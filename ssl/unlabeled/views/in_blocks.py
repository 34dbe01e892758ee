"""Makes views in blocks of images that stay in the caches of a CPU; ``at_once.py`` has the form for a GPU.

Crops, and what comes before them, go view by view and block by block. What comes after them takes all views of a group
and two blocks together where images are small: on few small images a call costs more than its work, and torch does not
share so little work among threads.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from unlabeled.views.draw_ahead import DrawnGroup
from unlabeled.views.key import ViewKey
from unlabeled.views.operations import Operation, Parameters

SMALL = 64**2  # pixels up to which a view is small
TOGETHER = 2  # blocks of small views

Block = tuple[slice, Tensor]  # rows of the batch, and their images as floats
Step = tuple[Operation, Parameters]


def make_in_blocks(
    blocks: Iterator[Block],
    groups: Sequence[DrawnGroup],
    key: ViewKey,
    batch: Parameters,
    finish: Callable[[Tensor], Tensor],
    small: bool,
) -> tuple[Tensor, ...]:
    """Makes the views of all groups, float32 [B, C, h, w] each.

    Args:
        blocks: of all images, in order.
        groups: what views to make.
        key: of the draws.
        batch: ``ids`` [B], and ``sizes`` [B, 2] where images differ in size.
        finish: what comes after the operations; may overwrite the images.
        small: whether views of several blocks are processed together.
    """
    drawn = [sample(group, key, batch) for group in groups]
    parts: list[list[Tensor]] = [[] for group in groups for _ in group.views]
    while some := list(islice(blocks, TOGETHER if small else 1)):
        made = [
            view for group, own in zip(groups, drawn, strict=True) for view in apply(group, own, some, finish, small)
        ]
        for part, view in zip(parts, made, strict=True):
            part.append(view)
    return tuple(part[0] if len(part) == 1 else torch.cat(part) for part in parts)


def sample(group: DrawnGroup, key: ViewKey, batch: Parameters) -> list[Parameters]:
    """Draws for the whole global batch; returns for each operation its parameters [views, B, …] of this process."""
    rows = slice(key.first, key.first + len(batch["ids"]))
    of_views = []
    for number in group.views:
        generator = key.generator(number)
        of_views.append([operation.sample(key.total, generator) for operation in group.operations])
    repeated = {name: each.expand(len(group.views), *each.shape) for name, each in batch.items()}
    return [
        {name: torch.stack([view[name][rows] for view in same]) for name in same[0]} | repeated
        for same in zip(*of_views, strict=True)
    ]


def apply(
    group: DrawnGroup,
    drawn: Sequence[Parameters],
    blocks: Sequence[Block],
    finish: Callable[[Tensor], Tensor],
    small: bool,
) -> Sequence[Tensor]:
    """Returns the views of some blocks, [n, C, h, w] each."""
    views, steps = len(group.views), list(zip(group.operations, drawn, strict=True))
    cut = next((number for number, step in enumerate(group.operations, 1) if getattr(step, "crops", False)), len(steps))
    cropped = [[_cropped(images, steps[:cut], view, rows) for rows, images in blocks] for view in range(views)]
    rows = slice(blocks[0][0].start, blocks[-1][0].stop)
    if small:
        joined = torch.cat([part for parts in cropped for part in parts])
        return finish(_changed(joined, steps[cut:], slice(0, views), rows)).chunk(views)
    made = (_changed(part, steps[cut:], slice(view, view + 1), rows) for view, (part,) in enumerate(cropped))
    return [finish(each) for each in made]


def _cropped(images: Tensor, steps: Sequence[Step], view: int, rows: slice) -> Tensor:
    """Applies the operations as far as the crop; ``images`` stay as they are, since other views use them too."""
    if not any(getattr(operation, "crops", False) for operation, _ in steps[:1]):
        images = images.clone()
    return _changed(images, steps, slice(view, view + 1), rows)


def _changed(images: Tensor, steps: Sequence[Step], views: slice, rows: slice) -> Tensor:
    for operation, parameters in steps:
        own = {name: values[views, rows].flatten(0, 1) for name, values in parameters.items()}
        images = operation.apply(images, own)
    return images

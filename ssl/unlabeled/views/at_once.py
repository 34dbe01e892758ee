"""Makes all views of a group at once, of all images, with shapes that never change: few launches, and no wait.

This is the form for a GPU; ``pipeline.py`` has the one for a CPU. Every operation runs on all images, and what is not
wanted is dropped, as a GPU computes it in less time than a launch takes. Nothing depends on a value on the host, so
that all of it can be compiled and captured. Rows are [images · views], all views of an image beside each other.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from unlabeled.views.draw_ahead import DrawAhead, DrawnGroup, draw
from unlabeled.views.key import ViewKey
from unlabeled.views.merged_groups import merge_groups
from unlabeled.views.operations import Operation, Parameters

Compile = bool | Literal["auto"]  # auto: on a GPU, and if it fails as without
GRAPHS = 64  # of one function; torch's limit of 8 would stop a run with many groups
BLOCK = (
    1 << 26
)  # pixels of all views of a group that are made together: bounds the memory, 0.8 GB for each copy of them


class AtOnce:
    """Holds what stays from step to step: compiled functions, and the draws of the next step."""

    def __init__(self) -> None:
        self._compiled: dict[tuple[object, ...], Callable[..., Tensor]] = {}
        self._ahead = DrawAhead()
        self._joined: dict[tuple[object, ...], tuple[Sequence[DrawnGroup], list[DrawnGroup]]] = {}
        self.compiling_failed = False

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return AtOnce, ()

    def make(
        self,
        images: Tensor,
        groups: Sequence[DrawnGroup],
        key: ViewKey,
        batch: Parameters,
        normal: Tensor | None,
        compiles: Compile,
        block: int | None,
    ) -> tuple[Tensor, ...]:
        """Makes the views of all groups, float32 [B, C, h, w] each, in channels_last.

        Args:
            images: uint8 [B, C, H, W].
            groups: what views to make.
            key: of the draws.
            batch: ``ids`` [B], and ``sizes`` [B, 2] where images differ in size.
            normal: [2, C, 1, 1], mean and deviation; None: views stay in [0, 1].
            compiles: whether to compile.
            block: images that are processed together; None: as many as the memory allows.
        """
        pinned, made, groups = images.device.type == "cuda", dict[int, Tensor](), self.merged(groups)
        draws = self._ahead.take(groups, key, len(images)) if pinned else draw(groups, key, len(images), False)
        for group, drawn in zip(groups, draws.parameters(images.device), strict=True):
            views, parts = len(group.views), []
            for rows in _blocks(images, group, block):
                own = slice(rows.start * views, rows.stop * views)
                mine = [{name: values[own] for name, values in each.items()} for each in drawn]
                some = {name: each[rows] for name, each in batch.items()}
                parts.append(self._make(images[rows], group, mine, some, normal, compiles))
            joined = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
            made |= zip(group.views, joined.permute(0, 1, 4, 2, 3).unbind(0), strict=True)
        return tuple(made[number] for number in sorted(made))

    def merged(self, groups: Sequence[DrawnGroup]) -> list[DrawnGroup]:
        """Joins groups once: compiled functions and draws belong to a list of operations, which must stay the same."""
        key = tuple((id(group.operations), group.views) for group in groups)
        if key not in self._joined:
            self._joined[key] = groups, merge_groups(groups)  # keeps the operations, so that no others get their ids
        return self._joined[key][1]

    def _make(
        self,
        images: Tensor,
        group: DrawnGroup,
        drawn: Sequence[Parameters],
        batch: Parameters,
        normal: Tensor | None,
        compiles: Compile,
    ) -> Tensor:
        views = len(group.views)
        wanted = [step for step in zip(group.operations, drawn, strict=True) if not _changes_nothing(step[0])]
        while any(_on_host(step) for step, _ in wanted):  # as far as the last of them nothing can be compiled
            (operation, parameters), *wanted = wanted
            images = _apply(images, operation, parameters, views, batch)
        sizes = {name: each for name, each in batch.items() if name == "sizes"}
        operations, own = [step for step, _ in wanted], [parameters for _, parameters in wanted]
        if compiles and not self.compiling_failed:
            try:
                compiled = self._function(group, operations, bool(sizes))
                return compiled(images, own, normal=normal, batch=sizes)
            except Exception as error:
                if compiles != "auto":
                    raise
                self.compiling_failed = True
                print(f"views are not compiled, which is slower: {str(error).strip().splitlines()[0][:200]}")
        return make_views(images, operations, own, views, normal, sizes)

    def _function(self, group: DrawnGroup, operations: Sequence[Operation], sized: bool) -> Callable[..., Tensor]:
        """Compiles one function for each group at its first use; canvases of images of several sizes may change."""
        key = (id(group.operations), len(group.views), sized)
        if key not in self._compiled:
            import torch._dynamo.config

            torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
            views = len(group.views)

            def function(images: Tensor, drawn: list[Parameters], normal: Tensor | None, batch: Parameters) -> Tensor:
                return make_views(images, operations, drawn, views, normal, batch)

            self._compiled[key] = torch.compile(function, fullgraph=True, dynamic=None if sized else False)
        return self._compiled[key]


def _blocks(images: Tensor, group: DrawnGroup, block: int | None) -> Iterator[slice]:
    """Yields rows whose floats are no larger than four times the group's views of the batch, or than ``BLOCK``."""
    pixels = images.shape[2] * images.shape[3]
    sides = [getattr(step, "size", None) for step in group.operations if getattr(step, "crops", False)]
    views = len(group.views) * (sides[-1] ** 2 if sides and sides[-1] else pixels)
    limit = int(min(BLOCK, len(images) * views) / max(views, pixels / 4))
    step = block or (len(images) if limit >= len(images) else 1 << max(0, limit.bit_length() - 1))
    for start in range(0, len(images), step):
        yield slice(start, min(start + step, len(images)))


def _on_host(operation: Operation) -> bool:
    return getattr(operation, "draws_on_host", False)


def _changes_nothing(operation: Operation) -> bool:
    return getattr(operation, "changes_nothing", False)


@runtime_checkable
class MakesViews(Protocol):
    """An operation that makes several views of each image at once."""

    def make_views(self, images: Tensor, parameters: Parameters, views: int) -> Tensor:
        """Maps uint8 [n, C, H, W] and parameters of [n · views] rows → float32 [n · views, C, h, w]."""
        ...


def make_views(
    images: Tensor,
    operations: Sequence[Operation],
    drawn: Sequence[Parameters],
    views: int,
    normal: Tensor | None,
    batch: Parameters,
) -> Tensor:
    """Applies the operations to all views of all images, then normalises.

    Args:
        images: uint8 [n, C, H, W]; or float [n · views, C, H, W], to which earlier operations were applied.
        operations: in order.
        drawn: for each operation its parameters, [n · views] rows.
        views: of each image.
        normal: [2, C, 1, 1], mean and deviation; None: no change.
        batch: ``sizes`` of the n images, or nothing.

    Returns:
        float32 [views, n, h, w, C].
    """
    for operation, parameters in zip(operations, drawn, strict=True):
        images = _apply(images, operation, parameters, views, batch)
    return _in_order(_normalised(as_floats(images, views), normal), views)


def _apply(images: Tensor, operation: Operation, parameters: Parameters, views: int, batch: Parameters) -> Tensor:
    if not images.is_floating_point() and isinstance(operation, MakesViews):
        return operation.make_views(images, parameters | batch, views)
    repeated = {name: each.repeat_interleave(views, 0) for name, each in batch.items()}
    return operation.apply(as_floats(images, views), parameters | repeated)


def as_floats(images: Tensor, views: int) -> Tensor:
    """Maps uint8 [n, C, H, W] → float32 [n · views, C, H, W] in [0, 1], each image so many times; floats stay."""
    if images.is_floating_point():
        return images
    return images[:, None].expand(-1, views, -1, -1, -1).flatten(0, 1).float().div_(255)


def _normalised(images: Tensor, normal: Tensor | None) -> Tensor:
    if normal is None:
        return images
    mean, deviation = normal.unbind(0)
    return images.sub(mean).div_(deviation)


def _in_order(images: Tensor, views: int) -> Tensor:
    """Maps [n · views, C, h, w] → [views, n, h, w, C]."""
    return images.reshape(-1, views, *images.shape[1:]).permute(1, 0, 3, 4, 2).contiguous()

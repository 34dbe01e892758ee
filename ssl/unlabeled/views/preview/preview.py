"""Shows a run's views before training: the pictures of its first step, and the distributions of all draws.

The page shows the run's own draws. The run's ``Views`` make the pictures while each operation records its input; the
distributions are those of the first draws of this run. On a GPU the pixels differ by rounding.
"""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from unlabeled.core.writing import save_picture, write_atomic
from unlabeled.data.decoding import in_colour
from unlabeled.data.loaders import LazyLoader
from unlabeled.data.order import GlobalOrder, check_batch_size
from unlabeled.data.source import Source, Splits
from unlabeled.errors import UserError
from unlabeled.objective import Batch
from unlabeled.pages.draw import draw_columns
from unlabeled.views.key import ViewKey
from unlabeled.views.operations import Operation, Parameters
from unlabeled.views.pipeline import ViewGroup, Views
from unlabeled.views.preview.draws import (
    GroupDraws,
    RecordedStep,
    draw_parameters,
    measure,
    repeat_sizes,
    resolve_boxes,
)
from unlabeled.views.preview.page import PreviewImage, page


class _Recorder:
    """An operation that records its parameters and the image sizes; draws and pixels stay the same."""

    def __init__(self, operation: Operation, steps: list[RecordedStep]) -> None:
        self.operation, self.steps = operation, steps
        self.framed, self.crops = (getattr(operation, name, False) for name in ("framed", "crops"))

    def sample(self, count: int, generator: Generator) -> Parameters:
        return self.operation.sample(count, generator)

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        before, sizes = images.clone(), parameters.get("sizes", torch.tensor(images.shape[2:]).expand(len(images), 2))
        made = self.operation.apply(images, parameters)
        changed = (made != before).flatten(1).any(1) if made.shape == before.shape else None
        self.steps.append(
            RecordedStep(self.operation, sizes, resolve_boxes(self.operation, parameters, sizes), changed)
        )
        return made


def trace_views(
    views: Views, images: Tensor, ids: Tensor, key: ViewKey, sizes: Tensor | None = None
) -> list[PreviewImage]:
    """Returns the views of a batch as pixels, with every operation's parameters; ``views`` is not changed.

    Args:
        views: of a run.
        images, ids, key, sizes: as :meth:`Views.forward` takes them.
    """
    operations = [group.operations for group in views.groups for _ in range(group.count)]
    logs: list[list[RecordedStep]] = [[] for _ in operations]
    recorded = copy.copy(views)
    recorded.groups = [
        ViewGroup(1, [_Recorder(operation, log) for operation in each])
        for each, log in zip(operations, logs, strict=True)
    ]
    recorded.compiles, recorded.block = False, len(images)  # each operation is called once for each view
    made = recorded(images, ids, key, sizes=sizes)
    return [PreviewImage(views.shown(view), log) for view, log in zip(made, logs, strict=True)]


@dataclass(frozen=True)
class Preview:
    """The preview page of one run.

    Args:
        views: of the run.
        splits: the run's data.
        seed, batch_size: of the run.
        images: how many of the first batch are shown.

    Raises:
        UserError: the batch has fewer images.
    """

    views: Views
    splits: Splits
    seed: int
    batch_size: int
    images: int

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size, len(self.splits.train), 1)
        if not 1 <= self.images <= self.batch_size:
            raise UserError(f"preview={self.images}: it must lie between 1 and batch_size={self.batch_size}")

    def write(self, folder: Path) -> list[Path]:
        """Writes ``index.html`` and ``views.png`` into ``folder`` and returns their paths; writes nothing else."""
        batch = first_images(self.splits.train, self.images, self.batch_size, self.seed)
        shown = trace_views(self.views, batch.images, batch.ids, ViewKey(self.seed, 0, 0, self.batch_size), batch.sizes)
        title, rows = f"Views of {folder.parent.name}", self._rows(batch)
        text = page(title, self._facts(), rows, crop_padding(batch), shown, self.measured(shown))
        write_atomic(folder / "index.html", text)
        save_picture(folder / "views.png", draw_columns(_of_one_size(crop_padding(batch), shown)))
        return [folder / "index.html", folder / "views.png"]

    def measured(self, shown: Sequence[PreviewImage]) -> list[GroupDraws]:
        """Returns the measured draws of each group of views, for the images of its first view in ``shown``."""
        found, first = [], 0
        for group in self.views.groups:
            numbers = range(first, first + group.count)
            if numbers:
                found.append(self._group(numbers, shown[first]))
            first += group.count
        return found

    def _group(self, numbers: range, view: PreviewImage) -> GroupDraws:
        drawn = draw_parameters(view.steps, numbers, self.seed, self.batch_size)
        parts = [
            measure(step.operation, each, repeat_sizes(step.sizes))
            for step, each in zip(view.steps, drawn, strict=True)
        ]
        return GroupDraws(numbers, view.pixels.shape[-1], list(itertools.chain(*parts)))

    def _facts(self) -> dict[str, str]:
        return {
            "Data": self.splits.description,
            "Images": f"the first {self.images} of the {self.batch_size:,} that step 0 sees",
            "Seed": str(self.seed),
        }

    def _rows(self, batch: Batch) -> list[str]:
        """Returns the caption of each image: its name in the source, and its class if it has one."""
        classes, train = self.splits.train.classes, self.splits.train
        names = [train.name(index).rsplit("/", 1)[-1] for index in batch.ids.tolist()]
        labels = [f"class {classes[label]}" if 0 <= label < len(classes) else "" for label in batch.labels.tolist()]
        return [f"{name}\n{label}" for name, label in zip(names, labels, strict=True)]


def first_images(source: Source, count: int, batch_size: int, seed: int) -> Batch:
    """Returns the first ``count`` images of a run's first batch, decoded here: uint8 [count, 3, H, W].

    A corrupt image is replaced by its successor, as in training from a source that does not fit into memory. A source
    that fits is decoded as a whole and its corrupt images are left out: then training begins with other images than
    shown here.
    """
    blocks = getattr(source, "blocks", None)
    order = GlobalOrder(len(source), batch_size, 1, seed, 0, 1, next_step=lambda: 0, blocks=blocks)
    positions = next(iter(order))[:count]
    batch: Batch = next(iter(LazyLoader(source, [positions], num_workers=0, corrupt=[])))
    return batch


def crop_padding(batch: Batch) -> list[Tensor]:
    """Returns each image as decoded, uint8 [3, h, w], without the padding of its canvas."""
    if batch.sizes is None:
        return list(in_colour(batch.images))
    return [
        image[:, :height, :width]
        for image, (height, width) in zip(in_colour(batch.images), batch.sizes.tolist(), strict=True)
    ]


def _of_one_size(images: Sequence[Tensor], shown: Sequence[PreviewImage]) -> dict[str, Tensor]:
    """Returns columns for a picture: images and views, enlarged without smoothing until they fill a square."""
    columns = {"as decoded": [image.float() / 255 for image in images]}
    columns |= {f"view {number}": list(view.pixels) for number, view in enumerate(shown, 1)}
    side = max(max(image.shape[1:]) for column in columns.values() for image in column)
    return {name: torch.stack([_in_square(image, side) for image in column]) for name, column in columns.items()}


def _in_square(image: Tensor, side: int) -> Tensor:
    """Puts [3, h, w] into the upper left corner of a white square, [3, side, side]."""
    height, width = (max(1, round(side * length / max(image.shape[1:]))) for length in image.shape[1:])
    square = image.new_ones(3, side, side)
    square[:, :height, :width] = F.interpolate(image[None], (height, width), mode="nearest-exact")[0]
    return square

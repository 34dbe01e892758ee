"""Draws equally many images of each class: the support beside a batch, or the batch itself.

PAWS has such a support (arXiv:2104.13963, section 3), triplets are mined in such batches (arXiv:1703.07737, section 2).

The official sampler keeps iterators (facebookresearch/suncet, data_manager.py ``ClassStratifiedSampler``); here the
support of a step is a function of (seed, step), so that nothing has to be saved and every process sees the same one.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Sampler

from unlabeled.core.ranges import Count, FilePath, Seed, SomeShare
from unlabeled.core.seeding import derive_seed
from unlabeled.data.labels import LabelList, LabelSelection
from unlabeled.data.source import CorruptImage, Source
from unlabeled.errors import UserError

_CLASSES, _IMAGES = 0xC1A5, 0x1A6E  # keys that make these draws independent of each other and of the order of batches


@dataclass(frozen=True)
class ClassBalanced:
    """Settings of the support: which labelled images, and how many of them per batch; all numbers are global.

    Args:
        labels_file, fraction, per_class, seed: which images, see :class:`unlabeled.data.labels.LabelSelection`.
        classes_per_batch: classes in a step, K.
        images_per_class: images of each of them.
        views: how many of a batch's first views are made of each image; the support has K · images · views rows.
        repeats: whether a step may have an image several times, each with views of its own, where a class has fewer
            labelled images than ``images_per_class``.

    Raises:
        UserError: values that cannot work together.
    """

    labels_file: FilePath | None
    fraction: SomeShare | None
    per_class: Count | None
    seed: Seed
    classes_per_batch: Count
    images_per_class: Count
    views: Count
    repeats: bool = False

    def __post_init__(self) -> None:
        for name in ("classes_per_batch", "images_per_class", "views"):
            if getattr(self, name) < 1:
                raise UserError(f"objective.support.{name}={getattr(self, name)}: must be at least 1")
        assert self.choice  # built here, so that its errors are raised here

    @property
    def images_per_step(self) -> int:
        """Returns the labelled images of one step over all processes."""
        return self.classes_per_batch * self.images_per_class

    def choose(self, source: Source, processes: int) -> LabelList:
        """Returns the list that the support is drawn from; reads labels and names, no image.

        Raises:
            UserError: there are too few labels, or a step cannot be divided among the processes.
        """
        if self.images_per_step % processes:
            raise UserError(
                f"objective.support: {self.classes_per_batch} classes × {self.images_per_class} images must be a"
                f" multiple of the {processes} processes; change objective.support.images_per_class"
            )
        labels = self.choice.of(source)
        self.check(labels.labels, source.classes)
        return labels

    def check(self, labels: Tensor, names: list[str]) -> None:
        """Raises UserError unless ``labels`` [n] hold enough classes, and enough images of each."""
        counts = labels.bincount()
        classes = counts.nonzero().flatten()
        if len(classes) < self.classes_per_batch:
            raise UserError(
                f"objective.support.classes_per_batch={self.classes_per_batch}: {len(classes)} classes have labelled"
                " images; give no more than that"
            )
        rarest = int(classes[counts[classes].argmin()])
        fewest = int(counts[rarest])
        if fewest < self.images_per_class and not self.repeats:
            name = names[rarest]
            raise UserError(
                f"objective.support.images_per_class={self.images_per_class}: class {name} has {fewest} labelled"
                " images; give no more than that, or more labels, or objective.support.repeats=true"
            )

    @property
    def choice(self) -> LabelSelection:
        """Returns the selection of the images that may be used."""
        return LabelSelection(self.labels_file, self.fraction, self.per_class, self.seed, "objective.support")


@runtime_checkable
class NeedsSupport(Protocol):
    """Protocol of an objective that needs labelled images in each batch (PAWS, FixMatch)."""

    support: ClassBalanced  # settings of the labelled images


class SupportOrder:
    """Yields the positions of the labelled images of this process, step by step.

    Round r of the classes is a permutation drawn from (seed, r), cut into steps of ``classes_per_batch`` classes;
    classes that do not fill a last step are left out of that round. The images of a class are permuted too, and each
    round takes the next ``images_per_class`` of them: no image repeats before the others were used, except that a rest
    smaller than ``images_per_class`` is left out of a permutation; with ``repeats`` one permutation follows the other
    without a gap. Rows are a, b, c, …, a, b, c, …: row i of the global
    support is of the class in slot i mod ``classes_per_batch``, in every step.

    Args:
        settings: numbers of classes and images.
        labels: int64 [n], of the listed images.
        positions: int64 [n], their positions in the training split.
        seed: of the run.
        rank, world_size: number of this process, and of all processes; process r has the r-th part of the rows.
        next_step: returns the next step; called at the start of each iteration.
    """

    def __init__(
        self,
        settings: ClassBalanced,
        labels: Tensor,
        positions: Tensor,
        seed: int,
        rank: int,
        world_size: int,
        next_step: Callable[[], int],
    ) -> None:
        self.settings, self.seed, self.next_step, self.positions = settings, seed, next_step, positions
        self._members = [positions[labels == label] for label in labels.bincount().nonzero().flatten()]
        share = settings.images_per_step // world_size
        self._mine = slice(rank * share, (rank + 1) * share)
        self.slots = torch.arange(settings.images_per_step)[self._mine] % settings.classes_per_batch
        self._shuffled = lru_cache(maxsize=len(self._members))(self._shuffle)  # one permutation serves many rounds

    def __iter__(self) -> Iterator[list[int]]:
        step = self.next_step()
        while True:
            yield self.rows(step)[self._mine].tolist()
            step += 1

    def rows(self, step: int) -> Tensor:
        """Returns the whole support of one step, over all processes: positions, int64 [images per step]."""
        number = self.settings.classes_per_batch
        turn, block = divmod(step, len(self._members) // number)
        order = _permutation(len(self._members), self.seed, _CLASSES, turn)
        classes = order[block * number : (block + 1) * number].tolist()
        return torch.stack([self._images(which, turn) for which in classes], 1).flatten()

    def _images(self, which: int, turn: int) -> Tensor:
        """Returns the images of a class in one round, [images per class]."""
        number = self.settings.images_per_class
        if self.settings.repeats:
            return self._endless(which, turn * number, number)
        epoch, place = divmod(turn, len(self._members[which]) // number)
        return self._shuffled(which, epoch)[place * number : (place + 1) * number]

    def _endless(self, which: int, start: int, number: int) -> Tensor:
        """Returns so many images from a place on in permutation after permutation of a class."""
        size = len(self._members[which])
        epochs = range(start // size, (start + number - 1) // size + 1)
        return torch.cat([self._shuffled(which, epoch) for epoch in epochs])[start % size :][:number]

    def _shuffle(self, which: int, epoch: int) -> Tensor:
        members = self._members[which]
        return members[_permutation(len(members), self.seed, _IMAGES, which, epoch)]


class BatchesByClass(Sampler[list[int]]):
    """Yields batches of P classes with K images of each, as lists of this process's positions, to the end of the run.

    Images without a label are left out. Within a batch the rows go through the classes in turn, see
    :class:`SupportOrder`, which says too in which order classes and images have their turn.

    Args:
        labels: int64 [n], of the training images.
        names: of the classes.
        images_per_class: K; P is the batch size divided by it.
        batch_size: over all processes.
        total_steps: of the whole run, also for a resumed one.
        seed: of the run.
        rank, world_size: number of this process, and of all processes.
        next_step: returns the next step; called at the start of each iteration.
        accumulate: batches in a step.

    Raises:
        UserError: the batch is no multiple of K, or there are too few classes or too few images of one.
    """

    def __init__(
        self,
        labels: Tensor,
        names: list[str],
        images_per_class: int,
        batch_size: int,
        total_steps: int,
        seed: int,
        rank: int,
        world_size: int,
        next_step: Callable[[], int],
        accumulate: int = 1,
    ) -> None:
        check_batches_by_class(labels, names, images_per_class, batch_size)
        self.batch_size, self.rank, self.world_size, self.next_step = batch_size, rank, world_size, next_step
        self.total_steps, self.accumulate = total_steps, accumulate
        classes, listed = batch_size // images_per_class, (labels >= 0).nonzero().flatten()
        settings = ClassBalanced(None, 1.0, None, 0, classes, images_per_class, 1)
        self._drawn = SupportOrder(
            settings, labels[listed], listed, seed, rank, world_size, lambda: next_step() * accumulate
        )

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(self._drawn, len(self) - self.next_step() * self.accumulate)

    def __len__(self) -> int:
        return self.total_steps * self.accumulate


def check_batches_by_class(labels: Tensor, names: list[str], images_per_class: int, batch_size: int) -> None:
    """Raises UserError unless a batch can have ``images_per_class`` images of each of its classes."""
    given, counts = f"images_per_class={images_per_class}", labels[labels >= 0].bincount()
    if batch_size % images_per_class:
        raise UserError(f"{given}: batch_size={batch_size} must be a multiple of it")
    wanted, classes = batch_size // images_per_class, int((counts > 0).sum())
    if wanted > classes:
        raise UserError(
            f"{given}: a batch of {batch_size} has {wanted} classes, and {classes} have labelled images: give "
            f"batch_size={classes * images_per_class}, or more images_per_class"
        )
    few = ((counts > 0) & (counts < images_per_class)).nonzero().flatten().tolist()
    if few:
        raise UserError(
            f"{given}: class {names[few[0]]} has only {int(counts[few[0]])} images ({len(few)} of {classes} classes "
            f"have fewer than {images_per_class}): give images_per_class={int(counts[few].min())} or less"
        )


def _permutation(size: int, *seeds: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(derive_seed(*seeds)))


def decode_labelled(source: Source, index: int, listed: Tensor) -> tuple[Tensor, int]:
    """Decodes image ``index``, or the next intact listed one of its class (cyclically): uint8 [3, S, S], and its index.

    An image of another class, or one that is not listed, must not get this label.

    Args:
        source: of the images.
        index: of a listed image.
        listed: int64 [n], all of them, ascending.

    Raises:
        UserError: no listed image of the class can be decoded.
    """
    try:
        return source.decode(index), index
    except CorruptImage as error:
        reason = str(error)
    own = listed[source.labels[listed] == source.labels[index]]
    for candidate in own.roll(-int((own <= index).sum())).tolist():
        try:
            return source.decode(candidate), candidate
        except CorruptImage:
            continue
    name = source.classes[int(source.labels[index])]
    raise UserError(f"{reason}; none of the {len(own)} labelled images of class {name} can be decoded: mend data.path")

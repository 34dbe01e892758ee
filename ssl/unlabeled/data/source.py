"""Protocols of data sources: a source decodes images one by one, and splits are made of sources."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from unlabeled.data.lists.left_out import LeftOut


class CorruptImage(Exception):
    """An image that cannot be decoded; the message names the file (or file and row) and the reason."""


class Source(Protocol):
    """One split of a data set. It is cheap to create: it reads lists and labels, and no pixels."""

    classes: list[str]  # class names in label order; [] where nothing is labelled
    labels: Tensor  # int64 [N], -1 where there is no label
    image_size: int  # pixels: height and width of square images, else the largest shorter side
    square: bool  # false: whole images, each with its own height and width, the longer side at most 2 · image_size

    def __len__(self) -> int: ...

    def decode(self, index: int) -> Tensor:
        """Decodes image ``index`` to uint8 [C, h, w], C = 3 unless ``data.channels`` is another number.

        Raises CorruptImage. Safe in threads and in workers.
        """
        ...

    def name(self, index: int) -> str:
        """Returns the name that a user knows this image by: its path, or file and row."""
        ...


@runtime_checkable
class HasEncodedImages(Protocol):
    """Protocol of a source of encoded images, used by ``unlabeled.commands.inspect``; array sources do not have it."""

    def encoded(self, index: int) -> bytes | Path:
        """Returns image ``index`` as it is stored: its bytes, or its file. Raises CorruptImage where there is none."""
        ...


@dataclass
class Splits:
    """A data set: one split to pretrain on, and others that are only evaluated on."""

    train: Source
    test: Source | None  # None: nothing to evaluate on (a flat, unlabelled folder)
    description: str  # one line for reports: the data set and its source
    corrupt: list[str] = field(default_factory=list)  # files known to be damaged, each with what is wrong with it
    left_out: LeftOut = field(default_factory=dict)  # files that are not used, by reason
    warnings: list[str] = field(default_factory=list)  # possible mistakes, one sentence each
    others: dict[str, Source] = field(default_factory=dict)  # further test splits by name
    unjudged: dict[str, Source] = field(default_factory=dict)  # likewise of images without labels: nothing is tested on

    def judged(self) -> "Splits":
        """Returns these splits; where no training image has a label, with a warning and nothing to test on."""
        if self.train.classes or self.test is None:
            return self
        warning = "the test split is not tested on: the training images have no labels"
        unjudged = {"test": self.test, **self.others, **self.unjudged}
        return replace(self, test=None, others={}, unjudged=unjudged, warnings=[*self.warnings, warning])

    def every(self) -> dict[str, Source]:
        """Returns all splits by name, train first."""
        test = {} if self.test is None else {"test": self.test}
        return {"train": self.train, **test, **self.others, **self.unjudged}


def common_folder(source: Source) -> str:
    """Returns the folder of all images with its final separator: it may differ between machines. "" without paths."""
    return shared_folder([source.name(index) for index in range(len(source))])


def shared_folder(paths: list[str]) -> str:
    """Returns the folder that contains all paths, with its final separator."""
    return os.path.join(os.path.commonpath([os.path.dirname(min(paths)), os.path.dirname(max(paths))]), "")

"""What every data source is: images that can be decoded one by one, and the splits made of them."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from unlabeled.data.lists.left_out import LeftOut


class CorruptImage(Exception):
    """An image that cannot be decoded; the message names the file (or file and row) and the reason."""


class Source(Protocol):
    """One split of a data set. Cheap to create: it reads lists and labels, and no pixels."""

    classes: list[str]  # class names in label order; [] where nothing is labelled
    labels: Tensor  # int64 [N], -1 where there is no label
    image_size: int  # pixels: height and width of the images if they are square, else the most of the shorter side
    square: bool  # false: whole images, each with its own height and width, the longer side at most 2 · image_size

    def __len__(self) -> int: ...

    def decode(self, index: int) -> Tensor:
        """Image ``index`` as uint8 [C, h, w], C = 3 unless ``data.channels`` is another.

        Raises CorruptImage. Safe in threads and in workers.
        """
        ...

    def name(self, index: int) -> str:
        """What a user would call this image: its path, or file and row."""
        ...


@runtime_checkable
class HasEncodedImages(Protocol):
    """What a source of encoded images has besides, for ``unlabeled.commands.inspect``; one of arrays goes without."""

    def encoded(self, index: int) -> bytes | Path:
        """Image ``index`` as it is stored: its bytes, or its file. Raises CorruptImage where there is none."""
        ...


@dataclass
class Splits:
    """A data set: what is pretrained on, and what is only ever evaluated on."""

    train: Source
    test: Source | None  # None: nothing to evaluate on (a flat, unlabelled folder)
    description: str  # one line for reports: what it is, where it came from
    corrupt: list[str] = field(default_factory=list)  # files known to be damaged, each with what is wrong with it
    left_out: LeftOut = field(default_factory=dict)  # what lies beside the images and is not used
    warnings: list[str] = field(default_factory=list)  # what looks like a mistake, a sentence each
    others: dict[str, Source] = field(default_factory=dict)  # further test splits by name
    unjudged: dict[str, Source] = field(default_factory=dict)  # likewise of images without labels: nothing is tested on

    def every(self) -> dict[str, Source]:
        """All of them by name, train first."""
        test = {} if self.test is None else {"test": self.test}
        return {"train": self.train, **test, **self.others, **self.unjudged}


def common_folder(source: Source) -> str:
    """The folder of all images with its final separator, "" where names are no paths: what differs between machines."""
    return shared_folder([source.name(index) for index in range(len(source))])


def shared_folder(paths: list[str]) -> str:
    """The folder that all paths lie in, with its final separator."""
    return os.path.join(os.path.commonpath([os.path.dirname(min(paths)), os.path.dirname(max(paths))]), "")

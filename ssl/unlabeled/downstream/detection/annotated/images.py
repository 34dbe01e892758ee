"""Images with objects: boxes, classes, masks. Where they come from: :mod:`.coco` and :mod:`.voc`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlabeled.core.phrases import one_line
from unlabeled.core.reading import require_regular
from unlabeled.data.decode import to_rgb
from unlabeled.data.lists.pictures import open_picture
from unlabeled.downstream.detection.annotated.masks import mask_of
from unlabeled.errors import UserError

ANY_SIZE = 2**20  # larger than every image, so that none is reduced


@dataclass(frozen=True, slots=True)
class Thing:
    """One annotation."""

    box: tuple[float, float, float, float]  # left, top, right, bottom, in pixels, within the image
    label: int  # from 1
    crowd: bool  # several objects that are not told apart: not trained on, and what lies in it is not counted as wrong
    area: float | None  # in pixels, as the file has it
    segmentation: Any  # checked; None where there is none


@dataclass(frozen=True, slots=True)
class Picture:
    """One image."""

    path: Path
    height: int
    width: int
    given: Any  # its id in the file, for messages
    things: list[Thing]


@dataclass(frozen=True)
class DetectionImages:
    """One split."""

    origin: str  # the file that describes it
    pictures: list[Picture]
    classes: list[str]  # name of label 1, 2, …
    sha256: str  # of the description
    notes: Mapping[str, list[str]] = field(default_factory=dict)  # what was left out or changed → annotations
    voc07: bool = False  # Pascal VOC 2007's test, which papers judge by that challenge's own average precision

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def has_masks(self) -> bool:
        """Returns whether every object has a mask."""
        things = [thing for picture in self.pictures for thing in picture.things]
        return bool(things) and all(thing.segmentation for thing in things)

    @property
    def found_classes(self) -> set[str]:
        """Returns the names of classes of which there is an object that is no crowd."""
        things = (thing for picture in self.pictures for thing in picture.things)
        return {self.classes[thing.label - 1] for thing in things if not thing.crowd}

    def image(self, index: int) -> Tensor:
        """Returns uint8 [3, h, w]. Raises UserError naming the file."""
        picture = self.pictures[index]
        try:
            require_regular(picture.path)
            with open_picture(picture.path) as opened:
                pixels = to_rgb(opened, ANY_SIZE, square=False)
        except Exception as error:  # on damaged data Pillow's plugins raise nearly anything
            raise UserError(
                f"{picture.path}: cannot be decoded: {one_line(error)}; put the whole file there, and the same command"
                " goes on"
            ) from error
        if pixels.shape[1:] != (picture.height, picture.width):
            raise UserError(
                f"{self.origin}: image {picture.given} has {picture.width} × {picture.height} pixels there, "
                f"{picture.path.name} has {pixels.shape[2]} × {pixels.shape[1]}"
            )
        return pixels

    def target(self, index: int, masks: bool) -> dict[str, Tensor]:
        """Returns the objects that are no crowd: boxes float32 [N, 4] as left, top, right, bottom, labels int64 [N].

        With ``masks`` also masks uint8 [N, h, w].
        """
        picture = self.pictures[index]
        things = [thing for thing in picture.things if not thing.crowd]
        boxes = torch.tensor([thing.box for thing in things], dtype=torch.float32).view(-1, 4)
        target = {"boxes": boxes, "labels": torch.tensor([thing.label for thing in things], dtype=torch.int64)}
        if masks:
            size = picture.height, picture.width
            drawn = [torch.from_numpy(mask_of(thing.segmentation, *size)) for thing in things]
            target["masks"] = torch.stack(drawn) if drawn else torch.zeros(0, *size, dtype=torch.uint8)
        return target

    def with_objects(self) -> "DetectionImages":
        """Returns the images in which there is an object that is no crowd. Raises UserError where there is none."""
        kept = [picture for picture in self.pictures if any(not thing.crowd for thing in picture.things)]
        if not kept:
            raise UserError(f"{self.origin}: no image has an annotation; give images with objects to train on")
        return replace(self, pictures=kept)

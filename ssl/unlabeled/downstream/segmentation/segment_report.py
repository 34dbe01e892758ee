"""What a segmentation is written as: a page with pictures, Markdown, and JSON for programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlabeled.core.environment import plain_values
from unlabeled.core.escaping import in_markdown
from unlabeled.core.writing import save_picture, write_atomic
from unlabeled.downstream.segmentation.confusion import Confusion
from unlabeled.downstream.segmentation.label_maps import IGNORED
from unlabeled.downstream.transfer_table import markdown_table
from unlabeled.pages.draw import draw_columns
from unlabeled.pages.html import inline_png
from unlabeled.pages.palette import PALETTE
from unlabeled.pages.parts import Part, joined, number_table, sheet
from unlabeled.pages.template import shared

TITLE = "Semantic segmentation"
HEAD = ["features", "protocol", "mIoU, %", "pixel accuracy, %", "mean accuracy, %"]
HOW = (
    "linear: BatchNorm and a 1 × 1 convolution on the frozen map of features, trained with crops, tested by sliding "
    "windows. k-NN of patches: each patch gets the labels of the nearest patches of training images; nothing is "
    "trained. fine-tuned: the whole network and a larger head, trained likewise; with random weights: from scratch. "
    "mIoU is the mean over classes of intersection over union, of all test pixels together."
)


@dataclass(repr=False)
class Segmentation:
    """All numbers and some pictures."""

    classes: Sequence[str]
    found: dict[tuple[str, str], Confusion]  # by features and protocol
    pictures: dict[str, list[Tensor]]  # by column: float [3, h, w] in [0, 1], of some test images
    page: Path | None = None  # that was written of it

    def __repr__(self) -> str:
        return markdown_table(HEAD, self.rows)

    def _repr_markdown_(self) -> str:
        """Returns the table for a notebook."""
        return repr(self)

    @property
    def rows(self) -> list[list[str]]:
        """Returns the cells of the table."""
        return [
            [*name, *(f"{value:.2f}" for value in (each.mean_iou, each.pixel_accuracy, each.mean_accuracy))]
            for name, each in self.found.items()
        ]

    @property
    def headline(self) -> str:
        """Returns a sentence: the mIoU of each row."""
        told = [f"{features} {each.mean_iou:.2f} % by {protocol}" for (features, protocol), each in self.found.items()]
        return f"mIoU over {len(self.classes)} classes: {'; '.join(told)}."


def coloured(labels: Tensor) -> Tensor:
    """Returns a picture float [3, h, w] of class numbers int64 [h, w]: one colour for each class, white for none."""
    colours = torch.tensor([[int(colour[place : place + 2], 16) for place in (1, 3, 5)] for colour in PALETTE]) / 255
    picture = colours[labels.clamp(min=0) % len(colours)]
    picture[labels == IGNORED] = 1.0
    return picture.permute(2, 0, 1)


def write_segmentation(folder: Path, found: Segmentation, facts: Mapping[str, Any]) -> Path:
    """Writes all files into ``folder``, which is made if it is missing, and returns the page."""
    numbers = {
        " / ".join(name): {
            "mean_iou": each.mean_iou,
            "pixel_accuracy": each.pixel_accuracy,
            "mean_accuracy": each.mean_accuracy,
            "iou": [None if value != value else value for value in each.iou.tolist()],
            "confusion": each.counts.tolist(),
        }
        for name, each in found.found.items()
    }
    content = plain_values({"classes": list(found.classes), "found": numbers, "provenance": facts})
    write_atomic(folder / "segment.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    picture = draw_columns({name: torch.stack(each) for name, each in found.pictures.items()})
    save_picture(folder / "segmented.png", picture)
    parts = [f"# {TITLE}", in_markdown(found.headline), markdown_table(HEAD, found.rows), HOW]
    parts += ["## Each class, IoU in %", markdown_table(["class", *_names(found)], _each_class(found))]
    parts += ["## Test images", "![Test images](segmented.png)", f"    {facts['command']}"]
    write_atomic(folder / "segment.md", "\n\n".join(parts) + "\n")
    write_atomic(folder / "segment.html", _page(found, facts, torch.from_numpy(_pixels(picture))))
    return folder / "segment.html"


def _pixels(picture: Any) -> Any:
    import numpy as np

    return np.asarray(picture.convert("RGB")).transpose(2, 0, 1).copy()


def _names(found: Segmentation) -> list[str]:
    return [f"{features}, {protocol}" for features, protocol in found.found]


def _each_class(found: Segmentation) -> list[list[str]]:
    values = torch.stack([each.iou for each in found.found.values()], 1)
    return [
        [name, *("–" if value != value else f"{value:.2f}" for value in row)]
        for name, row in zip(found.classes, values.tolist(), strict=True)
    ]


def _page(found: Segmentation, facts: Mapping[str, Any], drawn: Tensor) -> str:
    table = joined(number_table(HEAD, found.rows), shared().paragraphs([HOW], "quiet"))
    shown = shared().picture("Test images, their labels, and predictions", inline_png(drawn))
    each = number_table(["class", *_names(found)], _each_class(found))
    parts = [Part("", table, "wide"), Part("Test images", shown, "wide"), Part("Each class, IoU in %", each, "wide")]
    return sheet(TITLE, [str(facts["date"])], found.headline, parts, facts)

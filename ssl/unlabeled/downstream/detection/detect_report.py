"""What a comparison of detectors is written as: a page with pictures, Markdown, and JSON for programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unlabeled.core.environment import plain_values
from unlabeled.core.escaping import in_markdown
from unlabeled.core.phrases import shorten_list
from unlabeled.core.writing import save_picture, write_atomic
from unlabeled.downstream.detection.average_precision import AveragePrecision
from unlabeled.downstream.detection.drawing import SURE
from unlabeled.downstream.transfer_table import markdown_table
from unlabeled.pages.draw import draw_columns
from unlabeled.pages.html import inline_png
from unlabeled.pages.palette import PALETTE
from unlabeled.pages.parts import Part, joined, number_table, sheet, shown_part
from unlabeled.pages.plots import INK, new_figure, plain_text, style_axes
from unlabeled.pages.section import Section, plot_section
from unlabeled.pages.template import shared

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Object detection"
KINDS = {"bbox": "boxes", "segm": "masks", "voc07": "boxes, as VOC 2007"}
HEAD = ["backbone started from", "judged", "AP", "AP50", "AP75", "AP small", "AP medium", "AP large"]
HOW = (
    "Each detector was trained alike, on the same images in the same order, and differs in the weights that its "
    "backbone started from. AP is COCO's average precision in per cent, the mean over classes and over ten thresholds "
    "of the overlap of found and true objects, from 0.50 to 0.95; AP50 and AP75 are of one threshold; small objects "
    "have an area below 32² pixels, large ones above 96². It is measured by pycocotools on the validation images, with "
    "the weights of the last step; one training each, whose chance a second seed would show."
)
AS_VOC = (
    "Judged as VOC 2007, AP is the mean over the same thresholds of that challenge's average precision: of eleven "
    "points of recall, as detectron2 computes it for MoCo's table."
)
DRAWN = (
    f"Drawn are detections with a score of at least {SURE}; a detector that was trained briefly may have none. Of the "
    "objects those are left out that count neither way: crowds, and what Pascal VOC marks as difficult."
)


@dataclass
class Judged:
    """One detector."""

    precision: dict[str, AveragePrecision]  # by bbox, segm, and voc07 where it is that challenge's test
    losses: Sequence[tuple[int, float]]  # step, mean loss since the one before


@dataclass
class Detection:
    """All numbers and some pictures."""

    classes: Sequence[str]
    found: dict[str, Judged]  # by the name of the weights
    setting: Sequence[str] = ()  # short facts: the data, numbers of images and of steps
    pictures: dict[str, list[Tensor]] = field(default_factory=dict)  # by column: float [3, h, w] in [0, 1]
    notes: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)  # by split: what was left out
    unlearned: Sequence[str] = ()  # classes of which only the validation images have objects
    page: Path | None = None  # that was written of it

    @property
    def rows(self) -> list[list[str]]:
        """Returns the cells of the table."""
        return [
            [name, KINDS[kind], *own.precision[kind].cells] for kind in self.kinds for name, own in self.found.items()
        ]

    @property
    def kinds(self) -> list[str]:
        """Returns what every detector was judged by, as keys of their precision."""
        return [*next(iter(self.found.values())).precision]

    @property
    def how(self) -> str:
        """Returns how the numbers of the table were made."""
        return f"{HOW} {AS_VOC}" if any("voc07" in own.precision for own in self.found.values()) else HOW

    @property
    def headline(self) -> str:
        """Returns the AP of each detector: of boxes, and of masks where there are any."""
        return "; ".join(f"AP of {KINDS[kind]}: {self._precisions(kind)}" for kind in self.kinds) + "."

    def _precisions(self, kind: str) -> str:
        return ", ".join(f"{own.precision[kind].ap:.2f} % from {name}" for name, own in self.found.items())


def note_lines(found: Detection) -> list[str]:
    """Returns a line for each kind of finding in the files, with the first ids."""
    lines = [
        f"{split}: {len(ids)} {what}: annotation {', '.join(ids[:5])}{', …' if len(ids) > 5 else ''}"
        for split, kinds in found.notes.items()
        for what, ids in kinds.items()
    ]
    if found.unlearned:
        lines.append(f"no training image has an object of: {shorten_list(found.unlearned)}; val's count as missed")
    return lines


def write_detection(folder: Path, found: Detection, facts: Mapping[str, Any]) -> Path:
    """Writes all files into ``folder``, which is made if it is missing, and returns the page."""
    numbers = {
        name: {kind: _plain(each) for kind, each in own.precision.items()} | {"losses": [list(at) for at in own.losses]}
        for name, own in found.found.items()
    }
    content = {"classes": list(found.classes), "found": numbers, "left_out": found.notes, "provenance": facts}
    write_atomic(folder / "detect.json", json.dumps(plain_values(content), indent=1, ensure_ascii=False) + "\n")
    picture = draw_columns({name: torch.stack(each) for name, each in found.pictures.items()})
    save_picture(folder / "detected.png", picture)
    curve = plot_section(_curve(found), folder, "training", "Training", "Loss of the detectors.", wide=True)
    each = "\n\n".join(f"## {title}\n\n{markdown_table(head, rows)}" for title, head, rows in _each_class(found))
    parts = [f"# {TITLE}", *map(in_markdown, (" · ".join(found.setting), found.headline))]
    parts += [markdown_table(HEAD, found.rows), found.how, each]
    parts += ["## Validation images", DRAWN, "![Validation images](detected.png)"]
    parts += [f"## {curve.title}\n\n{curve.markdown}"]
    parts += [in_markdown(line) for line in note_lines(found)]
    write_atomic(folder / "detect.md", "\n\n".join([*parts, f"    {facts['command']}"]) + "\n")
    drawn = torch.from_numpy(np.asarray(picture.convert("RGB")).transpose(2, 0, 1).copy())
    write_atomic(folder / "detect.html", _page(found, facts, drawn, curve))
    return folder / "detect.html"


def _plain(each: AveragePrecision) -> dict[str, Any]:
    """Returns the numbers as JSON takes them: null for none."""
    values = asdict(each)
    values["classes"] = [None if value != value else value for value in each.classes]
    return {key: None if value != value else value for key, value in values.items()}


def _each_class(found: Detection) -> list[tuple[str, list[str], list[list[str]]]]:
    """Returns title, head and rows of a table for boxes, and of one for masks."""
    tables = []
    for kind in found.kinds:
        columns = [own.precision[kind].classes for own in found.found.values()]
        rows = [
            [name, *("–" if column[place] != column[place] else f"{column[place]:.2f}" for column in columns)]
            for place, name in enumerate(found.classes)
        ]
        tables.append((f"Each class, AP of {KINDS[kind]}", ["class", *found.found], rows))
    return tables


def _curve(found: Detection) -> "Figure":
    figure = new_figure(3.2)
    axes = figure.add_subplot()
    for place, (name, own) in enumerate(found.found.items()):
        steps, losses = zip(*own.losses, strict=True)
        axes.plot(steps, losses, color=PALETTE[place % len(PALETTE)], label=plain_text(name, 40))
    axes.set_xlabel("step", color=INK)
    style_axes(axes, "loss")
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    return figure


def _page(found: Detection, facts: Mapping[str, Any], drawn: Tensor, curve: Section) -> str:
    under = shared().paragraphs([found.how, *note_lines(found)], "quiet")
    picture = shared().picture("Validation images, their objects, and what was found", inline_png(drawn))
    parts = [
        Part("", joined(number_table(HEAD, found.rows), under), "wide"),
        shown_part("Validation images", DRAWN, picture),
        *(Part(title, number_table(head, rows), "wide") for title, head, rows in _each_class(found)),
        shown_part(curve.title, curve.words, curve.html),
    ]
    return sheet(TITLE, [*found.setting, str(facts["date"])], found.headline, parts, facts)

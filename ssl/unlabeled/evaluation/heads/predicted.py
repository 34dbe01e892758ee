"""Predictions for images: classes by name with their probabilities, and a table of them."""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unlabeled.core.escaping import in_csv
from unlabeled.core.writing import save_lines
from unlabeled.evaluation.uncertainty.members import entropy

if TYPE_CHECKING:
    from unlabeled.evaluation.heads.calibration import Threshold


TEXTS, TENSORS = ("names", "labels", "reasons"), ("numbers", "probabilities")  # what has an entry for each image


@dataclass(frozen=True)
class Predicted:
    """What a head says of N images. An image that cannot be decoded has class -1, no probabilities and a reason."""

    names: list[str]
    classes: list[str]  # names of the C classes
    labels: list[str]  # the class that the data give; "" where they give none
    numbers: Tensor  # int64 [N], the predicted class
    probabilities: Tensor  # float64 [N, C], calibrated; not a number where an image cannot be decoded
    reasons: list[str]  # "" where an image can be decoded
    limit: "Threshold | None" = None  # the least confidence of a prediction; None: every one is made
    mutual_information: Tensor | None = None  # float64 [N], nats, of several classifiers: how far they disagree

    def __len__(self) -> int:
        return len(self.names)

    @property
    def predicted(self) -> list[str]:
        """Returns the name of the predicted class of each image; "" where it cannot be decoded."""
        return [self.classes[number] if number >= 0 else "" for number in self.numbers.tolist()]

    @property
    def confidence(self) -> Tensor:
        """Returns the probability of the predicted class, float64 [N]; not a number without a prediction."""
        return self.probabilities.gather(1, self.numbers.clamp(min=0)[:, None])[:, 0]

    @property
    def entropy(self) -> Tensor:
        """Returns the entropy of the probabilities in nats, float64 [N]."""
        return entropy(self.probabilities.log())

    @property
    def abstains(self) -> Tensor:
        """Returns bool [N]: whether an image's prediction is less certain than the chosen risk allows."""
        least = 0.0 if self.limit is None else self.limit.confidence
        return (self.confidence < least) & (self.numbers >= 0)

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """Returns the k likeliest classes [N, k] and their probabilities; the predicted class is the first."""
        order = self.probabilities.clone()
        order.scatter_(1, self.numbers.clamp(min=0)[:, None], torch.inf)  # of equal ones the report predicts one
        chosen = order.argsort(dim=1, descending=True, stable=True)[:, :k]
        return chosen, self.probabilities.gather(1, chosen)

    def save(self, path: "str | os.PathLike[str]", top: int = 5) -> Path:
        """Writes a CSV as ``unlabeled predict`` does. Raises Unwritable."""
        write_csv(Path(path), [self], top)
        return Path(path)


def joined(parts: Sequence[Predicted]) -> Predicted:
    """Joins predictions by the same head."""
    own = TENSORS if parts[0].mutual_information is None else (*TENSORS, "mutual_information")
    whole: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in own}
    whole |= {name: [each for part in parts for each in getattr(part, name)] for name in TEXTS}
    return replace(parts[0], **whole)


def write_csv(path: Path, parts: Iterable[Predicted], top: int) -> None:
    """Writes one image a line: name, label, predicted, probability, entropy (nats), abstains, further classes, reason.

    Of several classifiers mutual_information (nats) follows entropy. ``top`` classes at most, each with its calibrated
    probability; ``abstains`` is empty where no risk was chosen. Text that a spreadsheet would compute has an apostrophe
    before it. Raises Unwritable.
    """
    save_lines(path, map(_line, _table(parts, top)))


def _table(parts: Iterable[Predicted], top: int) -> Iterator[list[str]]:
    """Yields the head, of the first part, and a row for each image."""
    for number, part in enumerate(parts):
        count = min(top, len(part.classes))
        if not number:
            yield _head(count, part.mutual_information is not None)
        yield from _rows(part, count)


def _head(top: int, several: bool) -> list[str]:
    further = [f"{word}_{place}" for place in range(2, top + 1) for word in ("class", "probability")]
    doubt = ["entropy", "mutual_information"] if several else ["entropy"]
    return ["name", "label", "predicted", "probability", *doubt, "abstains", *further, "reason"]


def _rows(part: Predicted, top: int) -> Iterator[list[str]]:
    chosen, likely = (each.tolist() for each in part.top(top))
    doubt, abstains = _doubt(part), part.abstains.tolist()
    for row, (name, label, reason) in enumerate(zip(part.names, part.labels, part.reasons, strict=True)):
        if reason:
            yield [in_csv(name), in_csv(label), *[""] * (1 + len(doubt[row]) + 2 * top), in_csv(reason)]
            continue
        pairs = [(in_csv(part.classes[c]), f"{p:.6g}") for c, p in zip(chosen[row], likely[row], strict=True)]
        without = "" if part.limit is None else str(abstains[row]).lower()
        further = [text for pair in pairs[1:] for text in pair]
        yield [in_csv(name), in_csv(label), *pairs[0], *doubt[row], without, *further, ""]


def _doubt(part: Predicted) -> list[list[str]]:
    """Returns what says how unsure each image is, as text."""
    scores = [part.entropy, *([] if part.mutual_information is None else [part.mutual_information])]
    return [[f"{score:.6g}" for score in scores] for scores in torch.stack(scores, dim=1).tolist()]


def _line(cells: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()

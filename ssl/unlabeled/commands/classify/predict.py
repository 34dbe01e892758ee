"""Classes of images as a table: ``unlabeled predict run=outputs/NAME data=photos/ out=predictions.csv``."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlabeled.commands.build.classify import Prediction, build_prediction
from unlabeled.evaluation.heads.calibration import Threshold
from unlabeled.evaluation.heads.kept import KeptHead
from unlabeled.evaluation.heads.predicted import Predicted, write_csv
from unlabeled.evaluation.statistics import accuracy_interval
from unlabeled.evaluation.uncertainty.calibration import ece


def predict(config: Any, resolved: dict[str, Any], log: Callable[[str], None] = print) -> Path:
    """Predicts all images of one split and writes the table.

    Args:
        config: as composed from ``conf/predict.yaml``.
        resolved: the same as plain values.
        log: takes lines.

    Raises:
        UserError: a mistake.
    """
    prediction = build_prediction(config)
    tally = _Tally()
    out = Path(resolved["out"]).expanduser()
    first, count = prediction.predictors[0], len(prediction.predictors)
    log(introduced(first.kept, first.limit))
    if count > 1:
        log(f"the mean of {count} predictions of each image is written; mutual_information says how far they disagree")
    write_csv(out, tally.counting(prediction.parts()), resolved["top"])
    log(f"{out}: {tally.told()}")
    for note in _notes(prediction, tally):
        log(note)
    return out


def _notes(prediction: Prediction, tally: "_Tally") -> Iterator[str]:
    """Yields which split was predicted, and a warning where images were trained on."""
    if split := prediction.split():
        other = "train" if split == "test" else "test"
        yield f"these are the images of its {split} split; split={other} takes the others"
    if tally.labelled and (seen := prediction.trained_on()):
        yield (
            f"{seen:,} of the {tally.images:,} images are training images of the run: the accuracy above says little of"
            " new images"
        )


def introduced(kept: KeptHead, limit: Threshold | None) -> str:
    """Returns what classifies, how it was calibrated, and from which confidence on predictions are made."""
    calibration = kept.calibration
    wrong = int(calibration.wrong.sum())
    held = f"temperature {calibration.temperature:.3g}, on {len(calibration.confidence):,} held-out images"
    held += "" if wrong else ", none of them wrong, so that it is not below 1"
    tested = "no test images" if kept.top1 is None else f"{kept.top1:.1f} % of the report's test images"
    told = f"{kept.protocol}, {len(kept.context.classes)} classes, {tested}; "
    told += held if len(calibration.confidence) else "its probabilities are not calibrated: nothing was held out"
    if limit is None:
        return told
    if not limit.covered:
        return (
            f"{told}\nno risk so small can be promised with 95 % certainty from {limit.images:,} held-out images, "
            f"{wrong:,} of them wrong: all abstain; give a larger risk, or a classifier of more labels"
        )
    return (
        f"{told}\npredictions of a probability from {limit.confidence:.4f} on are made: of {limit.images:,} held-out "
        f"images {limit.covered:,}, {100 * limit.risk:.2f} % of them wrong; on others, with 95 % certainty, at most "
        f"{100 * limit.bound:.2f} %"
    )


class _Tally:
    """Counts what passes by, for a line at the end."""

    def __init__(self) -> None:
        self.images = self.unreadable = self.abstained = 0
        self.right: list[Tensor] = []
        self.log_p: list[Tensor] = []
        self.made: list[Tensor] = []

    def counting(self, parts: Iterator[Predicted]) -> Iterator[Predicted]:
        for part in parts:
            self.images += len(part)
            self.unreadable += int((part.numbers < 0).sum())
            self.abstained += int(part.abstains.sum())
            known = [row for row, label in enumerate(part.labels) if label and part.numbers[row] >= 0]
            names = part.predicted
            self.right.append(torch.tensor([names[row] == part.labels[row] for row in known], dtype=torch.bool))
            self.log_p.append(part.confidence[known])
            self.made.append(~part.abstains[known])
            yield part

    @property
    def labelled(self) -> int:
        return sum(map(len, self.right))

    def told(self) -> str:
        found = [f"{self.images:,} images"]
        found += [f"{self.unreadable:,} could not be decoded"] if self.unreadable else []
        found += [f"{self.abstained:,} abstain"] if self.abstained else []
        right, made = torch.cat(self.right), torch.cat(self.made)
        if len(right):
            low, high = accuracy_interval(int(right.sum()), len(right))
            found.append(f"{100 * float(right.double().mean()):.1f} % of {len(right):,} with a label are right ")
            found[-1] += f"({low:.1f} to {high:.1f}), expected calibration error {self._error(right):.3f}"
        if len(right) and self.abstained and bool(made.any()):
            found.append(f"without those that abstain {100 * float(right[made].double().mean()):.1f} %")
        return "; ".join(found)

    def _error(self, right: Tensor) -> float:
        """Returns the ECE, of two columns: the predicted class and all others."""
        p = torch.cat(self.log_p)
        both = torch.stack([p, torch.zeros_like(p)], dim=1)
        return ece(both.log(), (~right).long())

"""Calibrates the probabilities of a head and chooses the confidence below which it abstains, on held-out images.

Held-out images are images of train that the head, or for a fitted one its like, was fitted without: those on which a
linear probe chose its hyper-parameters; for k-NN each image is left out in turn of what it is compared with.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.knn import neighbours
from unlabeled.evaluation.probe import Head
from unlabeled.evaluation.probes.knn import KNN
from unlabeled.evaluation.statistics import share_bound
from unlabeled.evaluation.uncertainty.calibration import calibration_metrics, fit_temperature, scale_by_temperature

UNSURE = 0.05  # probability that the risk is above its bound, over draws of held-out images
LEFT_OUT = 2000  # images of train that k-NN classifies without themselves; the deviation of a share is below 1.2 %


@dataclass(frozen=True)
class Calibration:
    """How a head's log probabilities become probabilities, and what these were worth on M held-out images."""

    temperature: float  # 1 where nothing was held out
    smoothing: float  # weight of a vote shared by all classes, before the temperature: k-NN gives probabilities of 0
    confidence: Tensor  # float64 [M], the largest probability
    wrong: Tensor  # bool [M]

    @classmethod
    def of(cls, temperature: float, smoothing: float, tensors: Mapping[str, Tensor]) -> "Calibration":
        """Makes it of what a file holds."""
        return cls(temperature, smoothing, tensors["held_confidence"], tensors["held_wrong"].bool())

    def tensors(self) -> dict[str, Tensor]:
        """Returns what a file holds."""
        return {"held_confidence": self.confidence, "held_wrong": self.wrong.to(torch.uint8)}

    def apply(self, log_probabilities: Tensor) -> Tensor:
        """Returns calibrated log probabilities float64 [N, C]."""
        return scale_by_temperature(smooth(log_probabilities, self.smoothing), self.temperature)


@dataclass(frozen=True)
class Threshold:
    """The least confidence of a prediction that is made, chosen on held-out images."""

    confidence: float  # predictions below it are not made; above 1: none is
    risk: float  # share of errors among held-out images at least as confident
    bound: float  # upper bound of the risk on further images, with 95 % certainty
    covered: int  # held-out images at least as confident
    images: int  # held-out images


def calibrate(head: Head) -> Calibration:
    """Fits the temperature on held-out images and keeps what the calibrated head says of them.

    It is not below 1 where none of them is wrong.
    """
    smoothing = 1 / head.settings["k"] if head.kind == "knn" else 0.0
    found = head.held
    if found is None:
        return Calibration(1.0, smoothing, torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.bool))
    log_p, labels = smooth(found[0], smoothing), found[1]
    temperature = fit_temperature(log_p, labels)
    confidence, predicted = scale_by_temperature(log_p, temperature).exp().max(dim=1)
    return Calibration(temperature, smoothing, confidence.cpu(), (predicted != labels).cpu())


def smooth(log_probabilities: Tensor, weight: float) -> Tensor:
    """Adds ``weight`` of a vote to a whole one, an equal part to each class: float64 [N, C]; 0 changes nothing."""
    if not weight:
        return log_probabilities
    shares = log_probabilities.double().exp()
    return ((shares + weight / shares.shape[1]) / (1 + weight)).log()


def calibrate_knn(rows: Sequence[Row], labels: Tensor, num_classes: int) -> None:
    """Lets the k-NN rows that are kept classify images of their own bank, and adds their calibrated metrics, in place.

    ``labels`` int64 [N] of the test images. A fitted head has both from its probe.
    """
    for row in rows:
        if row.head is None or row.head.kind != "knn" or row.log_probabilities is None:
            continue
        row.head = replace(row.head, held=leave_one_out(row.head, num_classes))
        if row.head.held is not None:
            weight, (held, own) = 1 / row.head.settings["k"], row.head.held
            made = smooth(row.log_probabilities, weight), labels.to(held.device), smooth(held, weight), own
            found = calibration_metrics(*made)
            row.metrics |= {name: value for name, value in found.items() if "temperature" in name}


def leave_one_out(head: Head, num_classes: int) -> tuple[Tensor, Tensor] | None:
    """Classifies some images of the bank, evenly spaced, each compared with all others.

    None where there are too few.
    """
    bank, labels, rule = head.tensors["bank"], head.tensors["labels"], head.settings
    k = min(int(rule["k"]), len(bank) - 1)
    if k < 1:
        return None
    count = min(LEFT_OUT, len(bank))
    rows = (torch.arange(count) * len(bank) // count).to(bank.device)
    similarity, index = neighbours(bank[rows], bank, k + 1, distance=rule["distance"])
    own = index == rows[:, None]
    own[~own.any(dim=1), -1] = True  # behind k images that are equal to it
    similarity, index = (each[~own].view(count, k) for each in (similarity, index))
    return probe_of(head).vote(similarity, labels[index], num_classes)[1], labels[rows]


def probe_of(head: Head) -> KNN:
    """Returns the probe whose rule a k-NN head keeps."""
    rule = head.settings
    return KNN([rule["k"]], rule["temperature"], rule["distance"], rule["weights"], head.features)


def bank_of(head: Head) -> Features:
    """Returns the labelled features that a k-NN head compares with."""
    labels = head.tensors["labels"]
    x = head.tensors["bank"]
    others = {} if head.features == "last" else {head.features: x}
    return Features(x, labels, torch.arange(len(labels)), others)


def threshold(calibration: Calibration, risk: float) -> Threshold:
    """Chooses the least confidence from which on predictions have at most this share of errors, with 95 % certainty.

    Selection with guaranteed risk (Geifman and El-Yaniv 2017, arXiv 1705.08500, algorithm 1): a binary search for the
    largest coverage of the held-out images at which the upper bound of the risk is small enough; the uncertainty of 5 %
    is divided among its steps. Where no bound is, nothing is predicted.

    Raises:
        UserError: no images were held out.
    """
    n = len(calibration.confidence)
    if not n:
        raise UserError("risk: this head was not tried on held-out images, so no confidence is known to be enough")
    confidence, order = calibration.confidence.sort(descending=True, stable=True)
    errors = calibration.wrong[order].long().cumsum(0)
    least, most, steps = 0, n, math.ceil(math.log2(n + 1))
    found = Threshold(math.inf, 0.0, 1.0, 0, n)
    while least < most:
        place = -(-(least + most) // 2)
        limit = confidence[place - 1]
        covered = int((confidence >= limit).sum())  # of equals all are predicted
        wrong = int(errors[covered - 1])
        bound = share_bound(wrong, covered, UNSURE / steps)
        if bound <= risk:
            least, found = place, Threshold(float(limit), wrong / covered, bound, covered, n)
        else:
            most = place - 1
    return found

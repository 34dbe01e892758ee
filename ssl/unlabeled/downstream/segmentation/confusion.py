"""Metrics of segmentation, from the confusion matrix of all test pixels together."""

import torch
from torch import Tensor

from unlabeled.downstream.segmentation.label_maps import IGNORED


class Confusion:
    """Counts of pixels, int64 [classes, classes]: row is the true class, column the predicted one."""

    def __init__(self, classes: int) -> None:
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)

    def __repr__(self) -> str:
        counted = f"{int(self.counts.sum()):,} pixels of {len(self.counts)} classes"
        return f"mIoU {self.mean_iou:.2f} %, pixel accuracy {self.pixel_accuracy:.2f} %, {counted}"

    def add(self, predictions: Tensor, labels: Tensor) -> None:
        """Counts int64 predictions and labels of one shape; pixels that are IGNORED do not count."""
        seen = labels != IGNORED
        classes = len(self.counts)
        pairs = labels[seen] * classes + predictions[seen]
        self.counts += pairs.bincount(minlength=classes**2).view(classes, classes).cpu()

    @property
    def iou(self) -> Tensor:
        """Returns intersection over union of each class in per cent, float64 [classes]; nan where it is nowhere."""
        counts = self.counts.double()
        right = counts.diagonal()
        return 100 * right / (counts.sum(0) + counts.sum(1) - right)

    @property
    def mean_iou(self) -> float:
        """Returns mIoU in per cent: the mean over the classes that are in the labels or in the predictions."""
        return float(self.iou.nanmean())

    @property
    def pixel_accuracy(self) -> float:
        """Returns the share of pixels of the right class, per cent."""
        return 100 * float(self.counts.diagonal().sum() / self.counts.sum())

    @property
    def mean_accuracy(self) -> float:
        """Returns the mean over the classes in the labels of the share of their pixels, per cent."""
        counts = self.counts.double()
        return 100 * float((counts.diagonal() / counts.sum(1)).nanmean())

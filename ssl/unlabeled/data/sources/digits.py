"""Handwritten digits from scikit-learn: real scans, no download, small enough for a laptop's CPU."""

import numpy as np
import torch

from unlabeled.core.ranges import Pixels
from unlabeled.data.decode import check_image_size
from unlabeled.data.memory import ArraySource, resize_images
from unlabeled.data.source import Splits

TEST_SIZE = 450  # a quarter; the file is sorted by writer, so its end has other writers than its beginning
WHITE = 16  # the brightest value in the file


def digits(image_size: Pixels = 8) -> Splits:
    """Returns 1,797 scans of 8 × 8 pixels as three equal channels: 1,347 to train on, then 450 to test on.

    Optical Recognition of Handwritten Digits (Alpaydin and Kaynak 1998), the copy in ``sklearn.datasets.load_digits``.
    Another ``image_size`` (pixels) resizes the scans. Raises UserError if it is below 1.
    """
    check_image_size(image_size)
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = torch.from_numpy(np.rint(data.images * 255 / WHITE).astype(np.uint8))  # [1797, 8, 8]
    images = resize_images(grey[:, None].repeat(1, 3, 1, 1), image_size)
    labels = torch.from_numpy(data.target.astype(np.int64))
    classes = [str(name) for name in data.target_names]
    split = len(images) - TEST_SIZE
    return Splits(
        train=ArraySource(images[:split], labels[:split], classes, "digits train"),
        test=ArraySource(images[split:], labels[split:], classes, "digits test"),
        description=f"scikit-learn digits, {split:,} train and {TEST_SIZE} test scans at {image_size} pixels",
    )

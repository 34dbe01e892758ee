"""CIFAR-10, CIFAR-100 and STL-10 as torchvision stores and downloads them, held in memory."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unlabeled.core.ranges import FilePath, Pixels
from unlabeled.data.decode import check_image_size
from unlabeled.data.memory import ArraySource, resize_images
from unlabeled.data.source import Splits
from unlabeled.errors import UserError


def cifar10(root: FilePath, download: bool, image_size: Pixels = 32) -> Splits:
    """Returns CIFAR-10 (Krizhevsky 2009): 50,000 train and 10,000 test images of 32 × 32 pixels in 10 classes.

    ``root`` holds ``cifar-10-batches-py``. Raises UserError if it does not and ``download`` is false.
    """
    return _cifar("CIFAR10", "CIFAR-10", root, download, image_size)


def cifar100(root: FilePath, download: bool, image_size: Pixels = 32) -> Splits:
    """Returns CIFAR-100 (Krizhevsky 2009): 50,000 train, 10,000 test images of 32 × 32 pixels, the 100 fine classes.

    ``root`` holds ``cifar-100-python``. Raises UserError if it does not and ``download`` is false.
    """
    return _cifar("CIFAR100", "CIFAR-100", root, download, image_size)


def stl10(root: FilePath, download: bool, image_size: Pixels = 96) -> Splits:
    """Returns STL-10 (Coates et al. 2011): 5,000 labelled, 100,000 unlabelled train and 8,000 test images, 96 × 96.

    Train is both parts in this order, so a probe trains on the rows whose label is not -1. ``root`` holds
    ``stl10_binary``. Raises UserError if it does not and ``download`` is false.
    """
    check_image_size(image_size)
    from torchvision.datasets import STL10

    train, test = (
        load("STL-10", root, download, partial(STL10, root, split=split, download=download))
        for split in ("train+unlabeled", "test")
    )
    return _splits("STL-10", root, image_size, (train.data, train.labels), (test.data, test.labels), train.classes)


def _cifar(name: str, title: str, root: str, download: bool, image_size: int) -> Splits:
    check_image_size(image_size)
    from torchvision import datasets

    kind = getattr(datasets, name)
    train, test = (
        load(title, root, download, partial(kind, root, train=train, download=download)) for train in (True, False)
    )
    first, second = ((part.data.transpose(0, 3, 1, 2), np.asarray(part.targets)) for part in (train, test))
    return _splits(title, root, image_size, first, second, train.classes)


def load(title: str, root: str, download: bool, opens: Callable[[], Any]) -> Any:
    """Returns the data set of torchvision that ``opens`` opens in ``root``.

    Raises UserError where it is not there, cannot be downloaded, or needs a package that is not installed.
    """
    try:
        return opens()
    except ImportError as error:  # torchvision reads some sets by scipy, h5py or gdown
        raise UserError(f"{title} is read by the package {error.name}: pip install {error.name}") from error
    except (
        RuntimeError,
        OSError,
        ValueError,
    ) as error:  # torchvision: absent or damaged files; urllib: no network, disk full
        where = f"data.root={root} ({Path(root).expanduser().absolute()})"
        if download:
            raise UserError(
                f"{title} could not be downloaded to {where}: {' '.join(str(error).split())}; with no network, do this"
                " on a machine that has one, copy its data.root here and leave data.download out"
            ) from error
        raise UserError(
            f"{title} is not, or not whole, in {where}: set data.root=... to its folder, or data.download=true"
        ) from error


def _splits(
    title: str,
    root: str,
    image_size: int,
    train: tuple[np.ndarray, np.ndarray],  # images uint8 [N, 3, H, W] in any memory order, labels [N]
    test: tuple[np.ndarray, np.ndarray],
    classes: list[str],
) -> Splits:
    sources = []
    for (images, labels), part in ((train, "train"), (test, "test")):
        tensor = resize_images(torch.from_numpy(np.ascontiguousarray(images)), image_size)
        sources.append(ArraySource(tensor, torch.from_numpy(labels.astype(np.int64)), list(classes), f"{title} {part}"))
    counts = f"{len(sources[0]):,} train and {len(sources[1]):,} test images at {image_size} pixels"
    return Splits(sources[0], sources[1], f"{title} from {root}, {counts}")

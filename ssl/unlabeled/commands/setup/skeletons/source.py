"""Skeleton: images named in a table, ``train.csv`` and ``test.csv`` with the columns path and label.

Put your own way to find and read images in the place of this one.
"""

import csv
from pathlib import Path

import torch
from torch import Tensor

from unlabeled.data.decode import check_image_size, decode_bytes, describe_size
from unlabeled.data.source import Splits
from unlabeled.errors import UserError


class SkeletonSource:
    """One split. Cheap to create: it reads lists and labels, and no pixels.

    Args:
        files: of the images.
        labels: int64 [N], −1 where there is none.
        classes: names in the order of labels; none where nothing is labelled.
        image_size: pixels of the shorter side.
    """

    square = False  # whole images, each with its own height and width

    def __init__(self, files: list[Path], labels: Tensor, classes: list[str], image_size: int) -> None:
        self.files, self.labels, self.classes, self.image_size = files, labels, classes, image_size

    def __len__(self) -> int:
        return len(self.files)

    def decode(self, index: int) -> Tensor:
        """Uint8 [3, h, w]; raises CorruptImage, which the run counts and names."""
        return decode_bytes(self.files[index], self.name(index), self.image_size, self.square)

    def name(self, index: int) -> str:
        return str(self.files[index])


def skeleton(path: str, image_size: int = 256) -> Splits:
    """The images of the tables in the folder ``path``.

    Raises:
        UserError: there is no train.csv, or it has other columns.
    """
    check_image_size(image_size)
    root = Path(path).expanduser()
    train = _rows(root / "train.csv")
    classes = sorted({label for _, label in train if label})
    test = _rows(root / "test.csv") if (root / "test.csv").exists() else []
    description = f"{len(train):,} train and {len(test):,} test images of {root}, {describe_size(image_size, False)}"
    held_out = _source(root, test, classes, image_size) if test else None
    return Splits(_source(root, train, classes, image_size), held_out, description)


def _rows(table: Path) -> list[tuple[str, str]]:
    if not table.is_file():
        raise UserError(f"data.path: there is no {table}; give the folder of train.csv")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"path", "label"} <= rows[0].keys():
        raise UserError(f"{table}: needs the columns path and label, and a row")
    return [(row["path"], row["label"]) for row in rows]


def _source(root: Path, rows: list[tuple[str, str]], classes: list[str], image_size: int) -> SkeletonSource:
    numbers = {name: number for number, name in enumerate(classes)}
    labels = torch.tensor([numbers.get(label, -1) for _, label in rows])
    return SkeletonSource([root / name for name, _ in rows], labels, classes, image_size)

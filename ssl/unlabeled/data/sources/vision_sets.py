"""The classification data sets of torchvision by their names, with the splits that each of them publishes.

A set is opened by torchvision's own class, which also downloads it; what differs among the classes stands in
:mod:`unlabeled.data.sources.published_sets`.
"""

import inspect
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlabeled.core.phrases import one_line
from unlabeled.core.ranges import FilePath, Pixels
from unlabeled.core.reading import refuse_fault_of_machine
from unlabeled.data.decode import check_image_size, describe_size, to_rgb
from unlabeled.data.labels import shuffled_by_class
from unlabeled.data.source import CorruptImage, Splits
from unlabeled.data.sources.published_sets import VALIDATION, Arguments, VisionSet, known_set
from unlabeled.data.sources.torchvision import load
from unlabeled.errors import UserError


@dataclass
class VisionSource:
    """Some rows of a data set of torchvision; an image is decoded when it is asked for."""

    dataset: Any  # torchvision's, maps an index to (PIL image, label)
    rows: Tensor  # int64 [N] in the data set
    labels: Tensor  # int64 [N]
    classes: list[str]
    image_size: int
    square: bool
    title: str  # for names of images that have no file
    paths: list[str] = field(default_factory=list)  # of all images of the data set; [] where they are not files

    def __len__(self) -> int:
        return len(self.rows)

    def decode(self, index: int) -> Tensor:
        """Decodes image ``index`` to uint8 [3, h, w]. Raises CorruptImage."""
        try:
            image, _ = self.dataset[int(self.rows[index])]
            return to_rgb(image, self.image_size, self.square)
        except Exception as error:  # whatever Pillow or an archive raises on damaged data
            refuse_fault_of_machine(self.name(index), error)
            raise CorruptImage(f"{self.name(index)}: {one_line(error)}") from error

    def name(self, index: int) -> str:
        """Returns the path of an image, or the data set and the row."""
        row = int(self.rows[index])
        return self.paths[row] if self.paths else f"{self.title} image {row}"


def torchvision_set(
    name: str, root: FilePath, download: bool = False, image_size: Pixels = 256, square: bool = False
) -> Splits:
    """Opens a classification data set of torchvision that :data:`~unlabeled.data.sources.published_sets.SETS` names.

    ``train`` and ``test`` are the published splits; a published validation split is ``others["val"]``. A set that
    publishes no splits is divided by class, always in the same way. Images are whole or ``square``, see
    :func:`unlabeled.data.decode.to_rgb`.

    Raises UserError for an unknown name, a set that is not in ``root``, a failed download and a missing package.
    """
    check_image_size(image_size)
    known = known_set(name, "data.name")

    def source(arguments: Arguments, part: str) -> VisionSource:
        dataset = _opened(name, root, download, known, arguments)
        labels = labels_of(dataset)
        rows = (labels >= 0).nonzero().flatten()
        facts = (class_names(dataset, labels), image_size, square, f"{name} {part}", paths_of(dataset))
        return VisionSource(dataset, rows, labels[rows], *facts)

    train = source(known.train, "train")
    if known.test is None:
        train, test = divided(train, known.per_class)
    else:
        test = source(known.test, "test")
    others = {} if known.validation is None else {VALIDATION: source(known.validation, VALIDATION)}
    counts = f"{len(train):,} train and {len(test):,} test images, {len(train.classes)} classes"
    return Splits(
        train, test, f"{name} from {root}, {counts}, {describe_size(image_size, square)}", others=dict(others)
    )


def _opened(name: str, root: str, download: bool, known: VisionSet, arguments: Arguments) -> Any:
    from torchvision import datasets

    kind = getattr(datasets, known.kind)
    downloads = "download" in inspect.signature(kind.__init__).parameters or known.kind == "QMNIST"
    if download and not downloads:
        raise UserError(
            f"data.download=true: torchvision cannot download {name}; put it into data.root={root} yourself"
        )
    given = arguments | ({"download": download} if downloads else {})
    return load(name, root, download, partial(kind, root, **given))


def labels_of(dataset: Any) -> Tensor:
    """Returns the labels int64 [N] of a data set of torchvision without decoding its images, where it keeps them.

    The classes of torchvision keep them under different names. What is found is compared with two items that the data
    set itself returns; where it differs, or where nothing is found, every item is read.
    """
    for values in _kept_labels(dataset):
        if len(values) == len(dataset) and all(int(values[row]) == _label(dataset, row) for row in (0, -1)):
            return torch.tensor([int(value) for value in values])
    return torch.tensor([_label(dataset, row) for row in range(len(dataset))])


def _kept_labels(dataset: Any) -> list[Any]:
    lists = [getattr(dataset, name, None) for name in ("targets", "_labels", "labels", "y")]
    pairs = [getattr(dataset, name, None) for name in ("_samples", "samples", "index")]
    found = [values for values in lists if isinstance(values, list | np.ndarray | Tensor)]
    found += [[pair[place] for pair in each] for each in pairs if each and _are_pairs(each) for place in (0, 1)]
    return [values for values in found if len(values) and np.ndim(values[0]) == 0 and _is_number(values[0])]


def _are_pairs(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and isinstance(values[0], tuple) and len(values[0]) == 2


def _is_number(value: Any) -> bool:
    return isinstance(value, int | np.integer | Tensor)


def _label(dataset: Any, row: int) -> int:
    value = dataset[row % len(dataset)][1]
    return -1 if value is None else int(value)


def class_names(dataset: Any, labels: Tensor) -> list[str]:
    """Returns the names of the classes in the order of the labels; numbers where torchvision has no names."""
    given = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or []
    count = int(labels.max()) + 1
    if len(given) < count:
        return [str(number) for number in range(count)]
    return [name if isinstance(name, str) else ", ".join(map(str, name)) for name in given]  # ImageNet's are tuples


def paths_of(dataset: Any) -> list[str]:
    """Returns the files of all images; [] where they are in archives or arrays."""
    for name in ("_image_files", "_images", "_samples", "samples", "imgs"):
        values = getattr(dataset, name, None)
        if isinstance(values, list) and len(values) == len(dataset):
            firsts = [value[0] if isinstance(value, tuple) else value for value in values]
            if all(isinstance(path, str) or hasattr(path, "__fspath__") for path in firsts):
                return [str(path) for path in firsts]
    return []


def divided(source: VisionSource, per_class: int | None) -> tuple[VisionSource, VisionSource]:
    """Divides a set into train and test by class, always in the same way: ``per_class`` images, or four of five."""
    order, rank = shuffled_by_class(source.labels, seed=0)
    counts = source.labels.bincount()
    share = (counts * 4 + 4) // 5 if per_class is None else torch.full_like(counts, per_class)
    # a class of few images is not wholly taken for train: it could not be tested
    taken = rank < torch.minimum(share, (counts - 1).clamp(min=1)).repeat_interleave(counts)
    return _part(source, order[taken].sort().values), _part(source, order[~taken].sort().values)


def _part(source: VisionSource, chosen: Tensor) -> VisionSource:
    facts = (source.classes, source.image_size, source.square, source.title, source.paths)
    return VisionSource(source.dataset, source.rows[chosen], source.labels[chosen], *facts)

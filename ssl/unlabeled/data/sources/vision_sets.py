"""The classification data sets of torchvision by their names, with the splits that each of them publishes.

A set is opened by torchvision's own class, which also downloads it. What differs among the classes is written down in
:data:`SETS`: how the splits are called, and what to do where a set publishes none.
"""

import difflib
import inspect
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlabeled.core.phrases import one_line
from unlabeled.core.ranges import FilePath, Pixels
from unlabeled.data.decode import check_image_size, describe_size, to_rgb
from unlabeled.data.labels import shuffled_by_class
from unlabeled.data.source import CorruptImage, Splits
from unlabeled.data.sources.torchvision import load
from unlabeled.errors import UserError

VALIDATION = "val"  # name of the further split on which hyper-parameters are chosen
PER_CLASS = "mean per class"
TOP1 = "top-1"

Arguments = dict[str, Any]  # of a class of torchvision


@dataclass(frozen=True)
class VisionSet:
    """A data set of torchvision: its class, its published splits and metric."""

    kind: str  # name of the class in torchvision.datasets
    train: Arguments
    test: Arguments | None  # None: one split is published, which is divided
    validation: Arguments | None = None
    metric: str = TOP1  # that papers report
    per_class: int | None = None  # of an undivided set: images of each class to train on; None: four of five


def _by_split(kind: str, *names: str, **more: Any) -> VisionSet:
    """A set whose class takes ``split``: names of train and test, or of train, validation and test."""
    train, *validation, test = ({"split": name} for name in names)
    return VisionSet(kind, train, test, validation[0] if validation else None, **more)


def _by_train(kind: str) -> VisionSet:
    return VisionSet(kind, {"train": True}, {"train": False})


# Splits as torchvision 0.26 to 0.29 names them. Mean per class and 30 images a class of Caltech-101: Kornblith et al.
# 2019 (arXiv 1805.08974), SimCLR appendix B.8. Caltech-256: 60 images a class, Griffin et al. 2007. SUN397 publishes
# lists that torchvision does not read, EuroSAT and SEMEION none: 80 % of each class are train (Helber et al. 2019).
SETS: dict[str, VisionSet] = {
    "caltech101": VisionSet("Caltech101", {}, None, metric=PER_CLASS, per_class=30),
    "caltech256": VisionSet("Caltech256", {}, None, per_class=60),
    "cifar10": _by_train("CIFAR10"),
    "cifar100": _by_train("CIFAR100"),
    "clevr_count": _by_split("CLEVRClassification", "train", "val"),
    "country211": _by_split("Country211", "train", "valid", "test"),
    "dtd": _by_split("DTD", "train", "val", "test"),
    "eurosat": VisionSet("EuroSAT", {}, None),
    "fashion_mnist": _by_train("FashionMNIST"),
    "fer2013": _by_split("FER2013", "train", "test"),
    "fgvc_aircraft": _by_split("FGVCAircraft", "train", "val", "test", metric=PER_CLASS),
    "flowers102": _by_split("Flowers102", "train", "val", "test", metric=PER_CLASS),
    "food101": _by_split("Food101", "train", "test"),
    "gtsrb": _by_split("GTSRB", "train", "test"),
    "imagenet": _by_split("ImageNet", "train", "val"),
    "imagenette": _by_split("Imagenette", "train", "val"),
    "inaturalist2021_mini": VisionSet("INaturalist", {"version": "2021_train_mini"}, {"version": "2021_valid"}),
    "kmnist": _by_train("KMNIST"),
    "mnist": _by_train("MNIST"),
    "oxford_iiit_pet": _by_split("OxfordIIITPet", "trainval", "test", metric=PER_CLASS),
    "pcam": _by_split("PCAM", "train", "val", "test"),
    "places365": VisionSet("Places365", {"split": "train-standard", "small": True}, {"split": "val", "small": True}),
    "qmnist": VisionSet("QMNIST", {"what": "train"}, {"what": "test"}),
    "rendered_sst2": _by_split("RenderedSST2", "train", "val", "test"),
    "semeion": VisionSet("SEMEION", {}, None),
    "stanford_cars": _by_split("StanfordCars", "train", "test"),
    "stl10": _by_split("STL10", "train", "test"),
    "sun397": VisionSet("SUN397", {}, None),
    "svhn": _by_split("SVHN", "train", "test"),
    "usps": _by_train("USPS"),
}


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
            raise CorruptImage(f"{self.name(index)}: {one_line(error)}") from error

    def name(self, index: int) -> str:
        """Returns the path of an image, or the data set and the row."""
        row = int(self.rows[index])
        return self.paths[row] if self.paths else f"{self.title} image {row}"


def torchvision_set(
    name: str, root: FilePath, download: bool = False, image_size: Pixels = 256, square: bool = False
) -> Splits:
    """Opens a classification data set of torchvision, see :data:`SETS`.

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


def known_set(name: str, key: str) -> VisionSet:
    """Returns the data set of that name. Raises UserError naming ``key``."""
    if name not in SETS:
        near = difflib.get_close_matches(name, SETS, n=1)
        advice = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(SETS)}"
        raise UserError(f"{key}={name}: no classification data set of torchvision that is known here; {advice}")
    return SETS[name]


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

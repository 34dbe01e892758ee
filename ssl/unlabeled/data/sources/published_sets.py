"""Names, splits and metrics of torchvision's classification data sets; known before torch is imported."""

import difflib
from dataclasses import dataclass
from typing import Any

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


def known_set(name: str, key: str) -> VisionSet:
    """Returns the data set of that name. Raises UserError naming ``key``."""
    if name not in SETS:
        near = difflib.get_close_matches(name, SETS, n=1)
        advice = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(SETS)}"
        raise UserError(f"{key}={name}: no classification data set of torchvision that is known here; {advice}")
    return SETS[name]

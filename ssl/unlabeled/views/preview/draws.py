"""Describes the draws of operations: named columns of their parameters, beside the configured values."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unlabeled.views.cutout import Cutout
from unlabeled.views.key import ViewKey
from unlabeled.views.operations import ColorJitter, GaussianBlur, Operation, Parameters, RandomResizedCrop, Solarize
from unlabeled.views.padded_crop import RandomCrop

DRAWS = 2000  # measured draws per group of views
FLAGGED = 4.0  # standard errors: one correct rate in 16,000 is further off
JITTER = ("brightness", "contrast", "saturation", "hue")
TITLES = {
    "RandomResizedCrop": "crop",
    "RandomCrop": "shift",
    "ColorJitter": "jitter",
    "Grayscale": "grayscale",
    "GaussianBlur": "blur",
    "Solarize": "solarize",
    "Equalize": "equalize",
    "RandAugment": "randaugment",
    "Cutout": "cutout",
    "RemoveBackground": "background",
}
HIDDEN = ("ids", "seed", "order", "kind", "value")  # parameters that mean nothing as numbers
MOST_COLUMNS = 8  # per parameter; a larger one is a picture, not a number


@dataclass(frozen=True)
class RecordedStep:
    """One operation on one view of some images."""

    operation: Operation
    sizes: Tensor  # int64 [B, 2], height and width of its input
    drawn: Parameters  # one row per image, see resolve_boxes
    changed: Tensor | None  # bool [B], whether a pixel changed; None if the shape changed


@dataclass(frozen=True)
class Quantity:
    """Numbers [n] as drawn for the images that got the operation, and the configured range."""

    name: str
    values: Tensor
    configured: tuple[float, float] | None  # None: unknown to the preview
    logarithmic: bool = False  # its logarithm has a uniform distribution


@dataclass(frozen=True)
class MeasuredRate:
    """Compares how often something was drawn, bool [n], with its configured probability."""

    name: str
    drawn: Tensor
    configured: float | None

    @property
    def measured(self) -> float:
        """Returns the share of the draws."""
        return float(self.drawn.double().mean())

    @property
    def errors(self) -> float:
        """Returns the deviation from the configured rate in binomial standard errors; 0 if none is configured."""
        if self.configured is None or self.measured == self.configured:
            return 0.0
        variance = self.configured * (1 - self.configured) / len(self.drawn)
        return abs(self.measured - self.configured) / variance**0.5 if variance > 0 else float("inf")

    @property
    def flagged(self) -> bool:
        """Returns whether the deviation is more than chance explains."""
        return self.errors > FLAGGED


@dataclass(frozen=True)
class GroupDraws:
    """The measured draws of views with the same distribution."""

    numbers: range  # which views, from 0
    size: int  # their height and width, pixels
    measured: list[Quantity | MeasuredRate]


def resolve_boxes(operation: Operation, drawn: Parameters, sizes: Tensor) -> Parameters:
    """Returns the draws for images of ``sizes`` [B, 2], those of crops as boxes."""
    if isinstance(operation, RandomResizedCrop):
        return drawn | {"box": operation.boxes(drawn, sizes.cpu())}
    return drawn


def draw_parameters(
    steps: Sequence[RecordedStep], numbers: Sequence[int], seed: int, batch_size: int
) -> list[Parameters]:
    """Draws the first ``DRAWS`` parameters of a run for some views, one dict per operation.

    Args:
        steps: of one of these views; gives the operations and the image sizes, which are used in turn.
        numbers: the views' numbers, from 0; they have the same distribution.
        seed, batch_size: of the run.
    """
    rounds: list[list[Parameters]] = []
    for step, number in itertools.product(range(-(-DRAWS // (batch_size * len(numbers)))), numbers):
        generator = ViewKey(seed, step, 0, batch_size).generator(number)
        rounds.append([each.operation.sample(batch_size, generator) for each in steps])
    joined = [
        {name: torch.cat([drawn[name] for drawn in parts])[:DRAWS] for name in parts[0]}
        for parts in zip(*rounds, strict=True)
    ]
    return [
        resolve_boxes(step.operation, drawn, repeat_sizes(step.sizes))
        for step, drawn in zip(steps, joined, strict=True)
    ]


def repeat_sizes(sizes: Tensor) -> Tensor:
    """Repeats the sizes [B, 2] of some images for ``DRAWS`` draws."""
    return sizes[torch.arange(DRAWS) % len(sizes)]


def measure(operation: Operation, drawn: Parameters, sizes: Tensor) -> list[Quantity | MeasuredRate]:
    """Returns all drawn numbers and rates for images of ``sizes`` [n, 2], beside the configured values."""
    title, ranges, named = operation_title(operation), _ranges(operation), parameter_columns(operation, drawn, sizes)
    applied = named.get("applied")
    measured: list[Quantity | MeasuredRate] = []
    for name, values in named.items():
        if values.dtype == torch.bool:
            label = title if name == "applied" else f"{title}: {name}"
            measured.append(MeasuredRate(label, values, _probability(operation, name)))
        else:
            values = values[values.isfinite() if applied is None else applied.bool() & values.isfinite()]
            measured.append(Quantity(f"{title}: {name}", values, ranges.get(name), name == "width / height"))
    return [each for each in measured if isinstance(each, MeasuredRate) or len(each.values)]


def parameter_columns(operation: Operation, drawn: Parameters, sizes: Tensor) -> dict[str, Tensor]:
    """Returns parameters as named columns [n]: readable names for our operations, the own names of any other."""
    found: dict[str, Tensor] = {}
    if isinstance(operation, RandomResizedCrop):
        height, width = drawn["box"][:, 2].double(), drawn["box"][:, 3].double()
        area = height * width / sizes.prod(1)
        return {"area": area, "width / height": width / height, "flip": drawn["flip"]}
    for name, values in sorted(drawn.items(), key=lambda item: item[0] != "applied"):
        parts = values.flatten(1).unbind(1) if values.ndim > 1 else (values,)
        if name in HIDDEN or len(parts) > MOST_COLUMNS:
            continue
        names = [f"{name} {number}" for number in range(len(parts))] if len(parts) > 1 else [name]
        if isinstance(operation, ColorJitter) and name == "factors":
            names = list(JITTER)
        found |= dict(zip(names, parts, strict=True))
    return found


def operation_title(operation: Operation) -> str:
    """Returns the page's name for an operation."""
    name = type(operation).__name__
    return TITLES.get(name, name)


def _ranges(operation: Operation) -> dict[str, tuple[float, float]]:
    if isinstance(operation, RandomResizedCrop):
        return {"area": operation.scale, "width / height": operation.ratio}
    if isinstance(operation, RandomCrop | Cutout):
        return {"where 0": (0.0, 1.0), "where 1": (0.0, 1.0)}  # of the places that it may begin at
    if isinstance(operation, ColorJitter):
        return dict(zip(JITTER, operation.ranges, strict=True))
    if isinstance(operation, GaussianBlur):
        return {"sigma": operation.sigma}
    return {"threshold": (operation.low, operation.high)} if isinstance(operation, Solarize) else {}


def _probability(operation: Operation, name: str) -> float | None:
    """Returns the configured probability of ``applied`` or ``flip``; any operation may have ``probability``."""
    found = getattr(operation, {"applied": "probability"}.get(name, name), None)
    return float(found) if isinstance(found, float | int) else None

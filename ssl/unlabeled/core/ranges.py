"""Defines types that say which values a key may have: ``temperature: Positive`` in a signature. Imports no torch.

In addition to its type, each number must be finite and below ``LARGEST``, and each text must have a letter, unless the
type says otherwise: see :mod:`unlabeled.commands.checks.values`, which checks values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from annotated_types import Ge, Gt, Interval, MinLen

LARGEST = {int: 2**31 - 1, float: 1e12}  # upper limit of ints and floats that name none: more is a typing error


@dataclass(frozen=True)
class InFile:
    """Marks text that names a file, a folder or a URL: taken literally from the command line, ``~`` is expanded."""


@dataclass(frozen=True)
class Ascending:
    """Marks a pair whose first number is not above its second."""


@dataclass(frozen=True)
class Increasing:
    """Marks a list in which each number is above the one before."""


@dataclass(frozen=True)
class Distinct:
    """Marks a list without duplicates."""


FilePath = Annotated[str, InFile()]
Paths = FilePath | Annotated[list[FilePath], MinLen(1)]  # one path, or several that belong together

Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]  # probabilities too
PartialShare = Annotated[float, Interval(ge=0, lt=1)]
SomeShare = Annotated[float, Interval(gt=0, le=1)]
Between = Annotated[float, Interval(gt=0, lt=1)]  # a share that is not all
AtMostHalf = Annotated[float, Interval(gt=0, le=0.5)]  # share of the training split to hold out
Temperature = Annotated[float, Interval(gt=0, le=1000)]
LearningRate = Annotated[float, Interval(gt=0, le=1e6)]
EndRate = Annotated[float, Interval(ge=0, le=1e6)]  # a learning rate at an end of the schedule, which may be 0
WeightDecay = Annotated[float, Interval(ge=0, le=1000)]
Epochs = Annotated[float, Interval(ge=0, le=1e6)]
Gib = Annotated[float, Interval(ge=0, le=1e6)]

Count = Annotated[int, Ge(1)]
AtLeastTwo = Annotated[int, Ge(2)]
NoneOrMore = Annotated[int, Ge(0)]
Seed = Annotated[int, Interval(ge=0, le=2**32 - 1)]  # the range of NumPy's seeds
Pixels = Annotated[int, Interval(ge=1, le=65536)]
Channels = Annotated[int, Interval(ge=1, le=2**20)]
Layers = Annotated[int, Interval(ge=1, le=10_000)]
Classes = Annotated[int, Interval(ge=1, le=10**7)]
Processes = Annotated[int, Interval(ge=0, le=1024)]

Decoder = Literal["auto", "pillow", "torchvision", "cuda"]  # of JPEG
NEW_DECODER: Literal["torchvision"] = "torchvision"  # what auto stands for, unless a run began with another

Span = Annotated[tuple[Positive, Positive], Ascending()]
ShareSpan = Annotated[tuple[SomeShare, SomeShare], Ascending()]

T = TypeVar("T")
SomeOf = Annotated[Sequence[T], MinLen(1)]
Milestones = Annotated[Sequence[Positive], MinLen(1), Increasing()]  # epochs
Weight = Annotated[float, Interval(ge=0, le=1e6)]  # of a term of a loss
Strength = Annotated[float, Interval(ge=0, le=100)]  # of a colour change
Threshold = Annotated[float, Interval(ge=0, le=2)]  # for values in [0, 1]; above 1 it selects none
Thresholds = Annotated[tuple[Threshold, Threshold], Ascending()]
Sigma = Annotated[float, Interval(ge=0, le=1000)]  # pixels
Sigmas = Annotated[tuple[Sigma, Sigma], Ascending()]
ChannelMeans = Annotated[Sequence[Annotated[float, Interval(ge=-1000, le=1000)]], MinLen(1)]
ChannelDeviations = Annotated[Sequence[Annotated[float, Interval(gt=0, le=1000)]], MinLen(1)]

"""A trained network that a method learns from and never changes."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.errors import UserError
from unlabeled.objective import Backbone


class Normalisation(NamedTuple):
    """How pixels in [0, 1] become the input of a network: (x − mean) / std; None: they stay."""

    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


class FrozenNetwork(nn.Module):
    """Runs a trained network on the views of a run, prepared as its own images are; without a gradient.

    The network is in eval mode whatever happens around it. It has no place in a state dict, and an optimizer, DDP and
    the snapshots of a step find no parameter of it. It moves with the module that holds it, and copies share its
    weights.

    Args:
        network: with its weights; they are frozen.
        views: how the views that it will be given are normalised.
        own: how the images that it was trained on were.
        size: height and width of the images that it gets, pixels; views of another size are resized; None: as they are.
        interpolation: of the resizing, ``bilinear`` or ``bicubic``; antialiased, as Pillow's.

    Raises:
        UserError: means of another number of channels than the network takes.
    """

    network: Backbone
    scale: Tensor | None  # [channels, 1, 1]
    shift: Tensor | None

    def __init__(
        self,
        network: Backbone,
        views: Normalisation = Normalisation(),  # noqa: B008, a value that nothing changes
        own: Normalisation = Normalisation(),  # noqa: B008
        size: int | None = None,
        interpolation: str = "bicubic",
    ) -> None:
        super().__init__()
        object.__setattr__(self, "network", network.eval().requires_grad_(False))  # not among the modules
        self.num_features, self.size, self.interpolation = network.num_features, size, interpolation
        scale, shift = _from_to(views, own, network.channels)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    @torch.no_grad()
    def forward(self, views: Tensor) -> Tensor:
        """Returns features [B, num_features] of views [B, channels, h, w]."""
        return self.network(self.prepared(views))  # type: ignore[no-any-return]

    def prepared(self, views: Tensor) -> Tensor:
        """Returns what the network sees: normalised as its own images, and of their size."""
        if self.scale is not None and self.shift is not None:
            views = views * self.scale + self.shift
        if self.size is None or views.shape[-2:] == (self.size, self.size):
            return views
        return F.interpolate(views, (self.size, self.size), mode=self.interpolation, antialias=True)

    def _apply(self, fn: Any, recurse: bool = True) -> "FrozenNetwork":
        """Moves or converts the network too."""
        self.network._apply(fn)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrozenNetwork":
        for each in (*self.network.parameters(), *self.network.buffers()):
            memo.setdefault(id(each), each)
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made


def frozen_tensors(module: nn.Module) -> list[Tensor]:
    """Returns weights and buffers of every :class:`FrozenNetwork` in a module, which lists none of them itself."""
    frozen = [each.network for each in module.modules() if isinstance(each, FrozenNetwork)]
    return [tensor for network in frozen for tensor in (*network.parameters(), *network.buffers())]


def _from_to(views: Normalisation, own: Normalisation, channels: int) -> tuple[Tensor | None, Tensor | None]:
    """Returns a factor and a summand that turn one normalisation into another; None where they are equal."""
    mean, std = _columns(views, channels)
    own_mean, own_std = _columns(own, channels)
    if torch.equal(mean, own_mean) and torch.equal(std, own_std):
        return None, None
    return (std / own_std).float(), ((mean - own_mean) / own_std).float()


def _columns(given: Normalisation, channels: int) -> tuple[Tensor, Tensor]:
    mean = [0.0] * channels if given.mean is None else given.mean
    std = [1.0] * channels if given.std is None else given.std
    if (len(mean), len(std)) != (channels, channels):
        raise UserError(
            f"objective.teacher: it takes images of {channels} channels, and {max(len(mean), len(std))} are normalised"
        )
    both = torch.tensor([list(mean), list(std)], dtype=torch.float64)[..., None, None]
    return both[0], both[1]


@runtime_checkable
class NeedsTeacher(Protocol):
    """Protocol of an objective that learns from a trained network (Distill), which the run loads and hands over."""

    teacher: str  # what it is loaded from
    teacher_backbone: str | None  # choice of conf/backbone for a file that does not say its network
    teacher_views: str | None  # choice of conf/views, likewise
    teacher_size: int | None  # of its images, pixels; None: that of its own evaluation
    teacher_sha256: str | None  # of its file; None: any

    def take_teacher(self, teacher: FrozenNetwork, uses_labels: bool) -> None:
        """Takes the network, before the first step. ``uses_labels``: whether it was trained with labels."""
        ...

"""Checks the arguments of losses and methods: what is known without reading a tensor's values.

Nothing here reads from the device, so a step does not wait, and a compiled loss stays one graph.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from unlabeled.backbones.vit import ViT
from unlabeled.errors import UserError
from unlabeled.objective import Backbone

VITS = ("vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge", "vit_tiny_small")  # conf/backbone


def check_shapes(
    caller: str, tensors: Mapping[str, tuple[Tensor, str]], empty: bool = False, **positive: Any
) -> dict[str, int]:
    """Refuses tensors that do not fit together, a letter being one size wherever it occurs, and numbers not above 0.

    Args:
        caller: name of the function whose arguments they are.
        tensors: name → (tensor, a letter for each of its dimensions): ``{"z1": (z1, "BD"), …}``.
        empty: whether a size may be 0.
        positive: further numbers by name, finite and above 0; tensors are skipped.

    Returns:
        The size of each letter.

    Raises:
        UserError: another number of dimensions, two sizes for a letter, or a size of 0; the message has all shapes.
    """
    sizes: dict[str, int] = {}
    for tensor, letters in tensors.values():
        if tensor.ndim != len(letters) or any(
            sizes.setdefault(letter, size) != size or (size == 0 and not empty)
            for letter, size in zip(letters, tensor.shape, strict=True)
        ):
            raise UserError(f"{caller}: {_shapes_in_words(tensors)}")
    if any(not isinstance(value, Tensor) and not 0 < value < math.inf for value in positive.values()):
        check_range(caller, **positive)
    return sizes


def _shapes_in_words(tensors: Mapping[str, tuple[Tensor, str]]) -> str:
    given = ", ".join(f"{name} {list(tensor.shape)}" for name, (tensor, _) in tensors.items())
    needed = ", ".join(f"{name} [{', '.join(letters)}]" for name, (_, letters) in tensors.items())
    return f"shapes do not fit: got {given}; needed are {needed}, a letter being one size of at least 1"


def check_range(caller: str, least: float = 0.0, most: float = math.inf, at_least: bool = False, **values: Any) -> None:
    """Refuses numbers not finite or not in (``least``, ``most``]. Skips tensors: reading them waits for the device.

    Args:
        caller: name of the function whose arguments they are.
        least, most: the bounds.
        at_least: whether ``least`` itself is allowed.
        values: the numbers, by their names.

    Raises:
        UserError: the message has the name, the value and the allowed range.
    """
    for name, value in values.items():
        if isinstance(value, Tensor) or (least < value <= most and math.isfinite(value)):
            continue
        if not (at_least and value == least):
            upper = "" if math.isinf(most) else f" and at most {most:g}"
            lower = "at least" if at_least else "above"
            raise UserError(f"{caller}: {name}={value} must be {lower} {least:g}{upper}")


def check_count(caller: str, least: int = 1, **values: int) -> None:
    """Refuses what is not an integer of at least ``least``; raises UserError with the name and the value."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{caller}: {name}={value} must be a whole number of at least {least}")


def needs_vit(method: str, backbone: Backbone, part_of_patches: bool = False, further: str = "") -> ViT:
    """Returns ``backbone`` if it is one of the project's own ViTs.

    Args:
        method: name of the objective, for messages.
        backbone: any network.
        part_of_patches: whether its blocks will see only some of an image's patches.
        further: what else must be given beside a ViT, for the message.

    Raises:
        UserError: another network, with the names of those that serve; or one that needs all patches.
    """
    if not isinstance(backbone, ViT):
        given, names = type(backbone).__name__, " or ".join(VITS)
        raise UserError(f"objective={method} needs a ViT, which {given} is not: give backbone={names}{further}")
    if part_of_patches and backbone.rel_pos_bias is not None:
        raise UserError(
            f"objective={method}: its encoder sees some patches alone, backbone.relative_position=true needs all of"
            " them: give false"
        )
    return backbone

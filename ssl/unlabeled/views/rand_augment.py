"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719) as torchvision has it, on the whole batch, in 8 bits."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from unlabeled.core.few_launches import few_launches
from unlabeled.core.ranges import AtLeastTwo, Count, NoneOrMore
from unlabeled.errors import UserError
from unlabeled.views.kernels import eight_bits as bits
from unlabeled.views.operations import Parameters

# In torchvision's order: value at the smallest and at the largest magnitude, and whether a sign is drawn
KINDS: dict[str, tuple[float, float, bool]] = {
    "identity": (0, 0, False),
    "shear_x": (0, 0.3, True),
    "shear_y": (0, 0.3, True),
    "translate_x": (0, 1, True),  # of eight_bits.TRANSLATION
    "translate_y": (0, 1, True),
    "rotate": (0, 30, True),  # degrees
    "brightness": (0, 0.9, True),
    "color": (0, 0.9, True),
    "contrast": (0, 0.9, True),
    "sharpness": (0, 0.9, True),
    "posterize": (8, 4, False),  # bits
    "solarize": (255, 0, False),  # levels
    "autocontrast": (0, 0, False),
    "equalize": (0, 0, False),
}
NUMBERS = {name: number for number, name in enumerate(KINDS)}
TABLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": bits.brightness_table,
    "contrast": bits.contrast_table,
    "posterize": bits.posterize_table,
    "solarize": bits.solarize_table,
    "autocontrast": bits.autocontrast_table,
    "equalize": bits.equalize_table,
}
BASES: dict[str, Callable[[Tensor], Tensor]] = {"color": bits.grey, "sharpness": bits.smoothed}
MATRICES: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "shear_x": lambda value, height, width: bits.shear_matrix(value, height, width, False),
    "shear_y": lambda value, height, width: bits.shear_matrix(value, height, width, True),
    "translate_x": lambda value, height, width: bits.translation_matrix(value, height, width, False),
    "translate_y": lambda value, height, width: bits.translation_matrix(value, height, width, True),
    "rotate": lambda value, height, width: bits.rotation_matrix(value),
}


class RandAugment:
    """Applies a few operations to each image, drawn among 14 with equal probability, one after the other.

    The images are rounded to 8 bits first, and each operation is torchvision's on such images: moved ones take the
    nearest pixel and black from outside.

    Args:
        operations: how many to each image, in turn; an operation can come twice.
        magnitude: from 0 to ``bins`` − 1, of all of them; None: drawn for each, as FixMatch and SCAN do.
        bins: number of magnitudes.

    Raises:
        UserError: a magnitude that is not below ``bins``.
    """

    coloured = True

    def __init__(self, operations: Count, magnitude: NoneOrMore | None, bins: AtLeastTwo) -> None:
        if magnitude is not None and magnitude >= bins:
            raise UserError(f"RandAugment: magnitude={magnitude} must be below bins={bins}")
        self.operations, self.magnitude, self.bins = operations, magnitude, bins

    def sample(self, count: int, generator: Generator) -> Parameters:
        shape = (count, self.operations)
        kind = torch.randint(len(KINDS), shape, generator=generator)
        step = torch.randint(self.bins, shape, generator=generator)
        if self.magnitude is not None:
            step = torch.full(shape, self.magnitude)
        sign = 1 - 2 * torch.randint(2, shape, generator=generator)
        return {"kind": kind, "value": self.values(kind, step, sign)}

    def values(self, kind: Tensor, step: Tensor, sign: Tensor) -> Tensor:
        """Returns the value of each operation, float64, for magnitudes ``step`` and signs of 1 and −1."""
        ranges = torch.stack([torch.linspace(first, last, self.bins) for first, last, _ in KINDS.values()])
        kept = 8 - (step / ((self.bins - 1) / 4)).round()  # bits
        value = torch.where(kind == NUMBERS["posterize"], kept, ranges[kind, step])
        signed = torch.tensor([has_sign for *_, has_sign in KINDS.values()])
        return torch.where(signed[kind], value * sign, value).double()

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        change = _all_at_once if few_launches(images.device) else _kind_by_kind
        levels = (images.float() * 255).round()
        for kind, value in zip(parameters["kind"].unbind(1), parameters["value"].unbind(1), strict=True):
            levels = change(levels, kind, value)
        return levels.div_(255).to(images.dtype)


def change_images(levels: Tensor, name: str, value: Tensor) -> Tensor:
    """Applies one kind of operation to all images: levels [B, 3, h, w] and values [B] → [B, 3, h, w]."""
    if name in TABLES:
        return bits.look_up(levels, TABLES[name](levels, value))
    if name in BASES:
        return bits.blend(levels, BASES[name](levels), value)
    height, width = levels.shape[2:]
    return bits.moved(levels, MATRICES[name](value, height, width)) if name in MATRICES else levels


def _kind_by_kind(levels: Tensor, kind: Tensor, value: Tensor) -> Tensor:
    """Runs each operation on the images that got it; ``kind`` and ``value`` are on the CPU."""
    for name, number in NUMBERS.items():
        rows = (kind == number).nonzero().flatten()
        if len(rows) and name != "identity":
            there, own = (each.to(levels.device, non_blocking=True) for each in (rows, value[rows]))
            levels.index_copy_(0, there, change_images(levels.index_select(0, there), name, own))
    return levels


def _all_at_once(levels: Tensor, kind: Tensor, value: Tensor) -> Tensor:
    """Does the same with shapes that do not depend on ``kind``: all images are looked up, blended and moved."""
    height, width = levels.shape[2:]
    kind, value = kind.to(levels.device, non_blocking=True), value.to(levels.device, non_blocking=True)

    def choose(parts: dict[str, Tensor], other: Tensor) -> Tensor:
        for name, part in parts.items():
            chosen = (kind == NUMBERS[name]).view(-1, *[1] * (other.dim() - 1))
            other = torch.where(chosen, part, other)
        return other

    tables = {name: table(levels, value) for name, table in TABLES.items()}
    matrices = {name: matrix(value, height, width) for name, matrix in MATRICES.items()}
    same = torch.eye(2, 3, dtype=value.dtype, device=levels.device).expand(len(levels), 2, 3)
    looked = bits.look_up(levels, choose(tables, next(iter(tables.values()))))
    blended = bits.blend(levels, choose({name: base(levels) for name, base in BASES.items()}, levels), value)
    shifted = bits.moved(levels, choose(matrices, same))
    return choose(
        dict.fromkeys(TABLES, looked) | dict.fromkeys(BASES, blended) | dict.fromkeys(MATRICES, shifted), levels
    )

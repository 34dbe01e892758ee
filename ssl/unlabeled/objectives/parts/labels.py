"""Which rows of a batch belong together, by their labels, and how many a guess gets right."""

import math

import torch
from torch import Tensor

from unlabeled import distributed
from unlabeled.errors import UserError


def check_labels(caller: str, labels: Tensor, classes: int | None = None) -> None:
    """Raises UserError for labels that are not int64, or not below ``classes``, which is looked at on a CPU only.

    Elsewhere reading them would wait for the device; the fake tensors of a count of memory have no values.
    """
    if labels.dtype != torch.int64:
        raise UserError(f"{caller}: labels are {str(labels.dtype).removeprefix('torch.')}: they must be int64")
    if classes is None or labels.device.type != "cpu" or torch.compiler.is_compiling() or type(labels) is not Tensor:
        return
    if int(labels.max()) >= classes:
        raise UserError(f"{caller}: a label is {int(labels.max())}: with {classes} classes they are below {classes}")


def accuracy_above_chance(classes: int, images: int) -> float:
    """Returns an accuracy that guesses exceed in about one batch of forty: 1/C and two deviations of the binomial.

    They exceed 1/C itself in half of the batches, so that a limit there would not tell guesses.
    """
    chance = 1 / classes
    return chance + 2 * math.sqrt(chance * (1 - chance) / images)


def same_class(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Compares both views of the local images with both views of the images of all processes.

    Args:
        labels: int64 [B], of the images, the same B on every process; one below 0 is unknown, and its image is the only
            one of its class.

    Returns:
        ``same``, bool [2B, 2N], whether two rows are of one class, a row itself included; and int64 [2B], the column of
        each row itself. Rows are the first views of the local images, then the second ones; columns are those of all
        processes in the same way.
    """
    numbers = distributed.rank() * len(labels) + torch.arange(len(labels), device=labels.device)
    everyone = distributed.gather(labels)
    total = len(everyone)
    own = torch.where(labels < 0, -1 - numbers, labels)
    others = torch.where(everyone < 0, -1 - torch.arange(total, device=labels.device), everyone)
    return (own[:, None] == others).repeat(2, 2), torch.cat([numbers, numbers + total])

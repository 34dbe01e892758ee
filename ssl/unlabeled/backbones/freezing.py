"""The first blocks of a network held still, as continued pretraining on few images may want it."""

from collections.abc import Sequence

from torch import nn

from unlabeled.errors import UserError


def freeze_blocks(stem: Sequence[nn.Module], blocks: Sequence[nn.Module], freeze: int | None) -> list[nn.Module]:
    """Freezes the ``stem`` and the first ``freeze`` of the ``blocks``; returns these parts.

    Raises:
        UserError: no block would be left to be trained.
    """
    if freeze is None:
        return []
    if not 1 <= freeze < len(blocks):
        raise UserError(
            f"backbone.freeze={freeze}: the network has {len(blocks)} blocks, of which one at least must be trained: "
            f"give 1 to {len(blocks) - 1}, or null"
        )
    parts = [*stem, *blocks[:freeze]]
    for part in parts:
        part.requires_grad_(False)
    keep_still(parts)
    return parts


def keep_still(parts: Sequence[nn.Module]) -> None:
    """Sets evaluation mode, in which BatchNorm keeps its statistics; call it whenever the mode was set."""
    for part in parts:
        part.eval()

"""A queue of embeddings of earlier images: negatives (MoCo) or nearest neighbours (NNCLR)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled import distributed
from unlabeled.errors import UserError
from unlabeled.objectives.parts.arguments import check_count, check_shapes
from unlabeled.objectives.parts.precision import full_precision


class KeyQueue(nn.Module):
    """Holds the last ``size`` keys of all processes, first in, first out; every process holds all of them.

    Starts with random unit rows drawn from torch's global generator, which a run seeds.

    Args:
        size: number of keys, K.
        dim: their width, D.
    """

    keys: Tensor  # [K, D], unit rows
    pointer: Tensor  # int64 [], the row to write next; it holds the oldest key

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1:
            raise UserError(f"objective.queue_size={size}: a queue holds at least one key")
        check_count("KeyQueue", dim=dim)
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def enqueue(self, k: Tensor) -> None:
        """Replaces the oldest keys by ``k`` of all processes, in rank order.

        Args:
            k: [B, D], unnormalised, the same B on every process; of a batch longer than the queue, the last K are kept.

        Raises:
            UserError: keys of another width than the queue's.
        """
        check_shapes("KeyQueue.enqueue", {"queue": (self.keys, "KD"), "k": (k, "BD")})
        new = distributed.gather(F.normalize(k.to(self.keys.dtype), dim=1))
        kept = new[-len(self.keys) :]
        skipped = len(new) - len(kept)
        rows = self.pointer + skipped + torch.arange(len(kept), device=new.device)
        self.keys.index_copy_(0, rows % len(self.keys), kept)
        self.pointer.add_(len(new)).remainder_(len(self.keys))

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Returns the key with the largest cosine to each row; the first of several.

        Args:
            z: [B, D], unnormalised.

        Returns:
            [B, D], unit rows, without a gradient; a copy that a later :meth:`enqueue` does not change.

        Raises:
            UserError: rows of another width than the queue's.
        """
        check_shapes("KeyQueue.nearest", {"queue": (self.keys, "KD"), "z": (z, "BD")})
        return self.keys[_most_similar(z, self.keys)]


@full_precision
def _most_similar(z: Tensor, keys: Tensor) -> Tensor:
    """Returns the row of the largest dot product; the length of z does not change it."""
    return (z.to(keys.dtype) @ keys.T).argmax(1)

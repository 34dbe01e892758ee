"""Tensors that FSDP has cut over processes."""

from torch import Tensor
from torch.distributed.tensor import DTensor


def local_shard(tensor: Tensor) -> Tensor:
    """The piece of a tensor that this process holds; the tensor itself where it is not cut (FSDP)."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor

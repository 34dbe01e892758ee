"""BatchNorm over parts of a batch, so that one process computes what several with a share each would."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled import distributed
from unlabeled.errors import UserError


class SplitBatchNorm(nn.Module):
    """A BatchNorm2d that takes the statistics of each part of the batch apart.

    As ``SplitBatchNorm`` of facebookresearch/moco's CIFAR demo: normalises every part by itself and moves the running
    statistics once per batch, by the mean over the parts. The parts are consecutive images, as on as many GPUs. In
    evaluation it is the BatchNorm2d. It is no subclass of it, so that ``sync_batchnorm`` does not undo it.

    Args:
        norm: the layer whose tensors it takes over, under their names.
        splits: parts of the global batch; a multiple of the number of processes.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: nn.BatchNorm2d, splits: int) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)
        self.momentum, self.eps, self.splits = cast(float, norm.momentum), norm.eps, splits

    def forward(self, images: Tensor) -> Tensor:  # [B, C, h, w]
        if not self.training:
            return self._normalise(images, self.running_mean, self.running_var)
        parts = images.chunk(self.splits // distributed.world_size())
        running = [(self.running_mean.clone(), self.running_var.clone()) for _ in parts]
        normalised = [self._normalise(part, *statistics) for part, statistics in zip(parts, running, strict=True)]
        self.running_mean.copy_(torch.stack([mean for mean, _ in running]).mean(0))
        self.running_var.copy_(torch.stack([variance for _, variance in running]).mean(0))
        self.num_batches_tracked.add_(1)
        return torch.cat(normalised)

    def _normalise(self, images: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return F.batch_norm(images, mean, variance, self.weight, self.bias, self.training, self.momentum, self.eps)


def split_batchnorm(network: nn.Module, splits: int) -> None:
    """Replace every BatchNorm2d below ``network``, in place; names in its state dict stay.

    Raises:
        UserError: there is none, or a BatchNorm of another kind.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    other = {type(norm).__name__ for norm in norms} - {"BatchNorm2d"}
    if not norms or other:
        found = f"{', '.join(sorted(other))} in it" if other else "no BatchNorm in it"
        raise UserError(f"objective.bn_splits={splits}: the backbone has {found}; give objective.bn_splits=1")
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, SplitBatchNorm(child, splits))

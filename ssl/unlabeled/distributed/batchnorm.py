"""BatchNorm whose results do not depend on the number of processes: over the whole batch or over parts of it."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unlabeled.core.few_launches import few_launches
from unlabeled.distributed import collectives
from unlabeled.distributed.parts import normalise_parts
from unlabeled.errors import UserError


class SplitBatchNorm(nn.Module):
    """A BatchNorm2d that normalises each part of the batch with statistics of its own.

    Like ``SplitBatchNorm`` of facebookresearch/moco's CIFAR demo, it normalises every part by itself and updates the
    running statistics once per batch, by the mean over the parts. Parts are consecutive images, as if on that many
    GPUs. In evaluation it equals BatchNorm2d. It is not a subclass of it, so that ``sync_batchnorm`` does not replace
    it. On a GPU all parts are one call, and :func:`split_batchnorm` updates the statistics of all layers together.

    Args:
        norm: the layer whose tensors it takes over, with their names.
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
        self.in_network = False  # whether a network updates the running statistics after its forward
        self.last: BatchStatistics | None = None  # of the last batch, until they are in the running ones
        self.train(norm.training)

    def forward(self, images: Tensor) -> Tensor:  # [B, C, h, w]
        normalise = partial(
            F.batch_norm,
            weight=self.weight,
            bias=self.bias,
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
        )
        if not self.training:
            return normalise(images, self.running_mean, self.running_var)
        splits = self.splits // collectives.world_size()
        if few_launches(images.device):
            return self._at_once(images, splits)
        parts = images.chunk(splits)
        running = [(self.running_mean.clone(), self.running_var.clone()) for _ in parts]
        normalised = [normalise(part, *each) for part, each in zip(parts, running, strict=True)]
        self.running_mean.copy_(torch.stack([mean for mean, _ in running]).mean(0))
        self.running_var.copy_(torch.stack([variance for _, variance in running]).mean(0))
        self.num_batches_tracked.add_(1)
        return torch.cat(normalised)

    def _at_once(self, images: Tensor, parts: int) -> Tensor:
        normalised, mean, deviation = normalise_parts(images, self.weight, self.bias, parts, self.eps)
        self.last = BatchStatistics(mean, deviation, images[:, 0].numel() // parts)
        if not self.in_network:
            follow_batch([self])
        return normalised


class BatchStatistics(NamedTuple):
    """Of the parts of one batch."""

    mean: Tensor  # [parts, C]
    inverse: Tensor  # [parts, C], 1 / √(biased variance + eps)
    values: int  # of a channel in a part


@torch.no_grad()
def follow_batch(layers: Sequence[SplitBatchNorm]) -> None:
    """Moves the running statistics of all layers towards their last batches, by the means over the parts.

    A few kernels for all layers. Layers without a batch since the last call stay as they are.
    """
    seen = [(layer, layer.last) for layer in layers if layer.last is not None]
    if not seen:
        return
    both = torch.cat([last.mean for _, last in seen] + [last.inverse for _, last in seen], 1)
    both[:, both.shape[1] // 2 :].pow_(-2)
    batch = torch.split(both.mean(0), [len(layer.running_mean) for layer, _ in seen] * 2)
    variances = list(batch[len(seen) :])
    unbiased = [last.values / (last.values - 1) for _, last in seen]
    torch._foreach_sub_(variances, [layer.eps for layer, _ in seen])
    torch._foreach_mul_(variances, unbiased)
    running = [layer.running_mean for layer, _ in seen] + [layer.running_var for layer, _ in seen]
    torch._foreach_lerp_(running, [each.to(running[0].dtype) for each in batch], seen[0][0].momentum)
    torch._foreach_add_([layer.num_batches_tracked for layer, _ in seen], 1)
    for layer, _ in seen:
        layer.last = None


def split_batchnorm(network: nn.Module, splits: int) -> None:
    """Replaces every BatchNorm2d inside ``network``, in place; names in its state dict stay.

    Raises:
        UserError: the network has no BatchNorm2d, or a BatchNorm of another kind.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    other = {type(norm).__name__ for norm in norms} - {"BatchNorm2d"}
    if not norms or other:
        found = f"{', '.join(sorted(other))} in it" if other else "no BatchNorm in it"
        raise UserError(f"objective.bn_splits={splits}: the backbone has {found}; give objective.bn_splits=1")
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, SplitBatchNorm(child, splits))
    if torch.cuda.is_available():  # on a CPU each layer updates its own
        for layer in split_layers(network):
            layer.in_network = True
        network.register_forward_hook(_after_forward)


def split_layers(network: nn.Module) -> list[SplitBatchNorm]:
    """Returns the split layers inside a network."""
    return [module for module in network.modules() if isinstance(module, SplitBatchNorm)]


def _after_forward(network: nn.Module, inputs: object, output: object) -> None:
    if network.training:  # gradient checkpointing leaves statistics behind, which an evaluation must not follow
        follow_batch(split_layers(network))


class SyncedBatchNorm(_BatchNorm):
    """BatchNorm over the batches of all processes, on any device; torch's SyncBatchNorm needs GPUs.

    Outputs, gradients and running statistics equal those of one process with the joined batch. Statistics are float32
    (float64 stays float64). In evaluation it equals the layer that it replaced.

    Args:
        norm: the layer whose tensors it takes over, with their names.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, False, norm.track_running_stats)
        self.weight, self.bias, self.affine = norm.weight, norm.bias, norm.affine
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)
        self.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accepts any number of dimensions after the channels."""

    def forward(self, x: Tensor) -> Tensor:  # [B, C, ...]; B is the same on every process
        if not self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            exact = x.to(torch.promote_types(x.dtype, torch.float32))
            mean, variance, rows = self._statistics(exact)
            self._follow(mean.detach(), variance.detach(), rows)
            shape = (1, -1, *[1] * (x.ndim - 2))
            scale = (variance + self.eps).rsqrt()
            normalised = (exact - mean.view(shape)) * scale.view(shape)
            if self.weight is not None:
                normalised = normalised * self.weight.view(shape)
            if self.bias is not None:
                normalised = normalised + self.bias.view(shape)
        return normalised.to(x.dtype)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        """Returns mean and biased variance of each channel over all processes, and the number of values."""
        variance, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
        means, variances = collectives.gather(torch.stack([mean, variance])[None]).unbind(1)  # [processes, C] each
        mean = means.mean(0)
        return mean, variances.mean(0) + (means - mean).square().mean(0), x.numel() // len(mean) * len(means)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, rows: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        step = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), step)
        self.running_var.lerp_((variance * (rows / (rows - 1))).to(self.running_var.dtype), step)

"""Strided convolutions of maps with fewer pixels than the stride, such as 1×1 maps in deep stages of small images."""

import torch
from torch import Tensor, nn


class SmallMapConv(nn.Conv2d):
    """A convolution that computes such maps in float32 under autocast on a CPU.

    In bfloat16 oneDNN (torch 2.14.1) leaves the weight's gradient unset at the taps that see only padding: whatever was
    in memory, 1e33 or NaN, would be added to the weights.
    """

    def forward(self, images: Tensor) -> Tensor:
        if not torch.is_autocast_enabled("cpu") or images.device.type != "cpu" or self._fills(images):
            return super().forward(images)
        with torch.autocast("cpu", enabled=False):
            return super().forward(images.to(self.weight.dtype))

    def _fills(self, images: Tensor) -> bool:
        return images.shape[2] >= self.stride[0] and images.shape[3] >= self.stride[1]


def guard_small_maps(network: nn.Module) -> None:
    """Makes every convolution with a stride, and a kernel of more than one pixel, one of these; names stay."""
    for module in network.modules():
        if type(module) is nn.Conv2d and max(module.stride) > 1 and max(module.kernel_size) > 1:
            module.__class__ = SmallMapConv

"""Convolutions and pools with a stride that add their odd pixel at the end, as TensorFlow and Haiku do (``SAME``)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Padding = Literal["both", "end"]


def same_padding(images: Tensor, kernel: int, stride: int) -> tuple[int, int, int, int]:
    """Returns the pixels to add left, right, above and below, so that a side of n pixels gives ⌈n / stride⌉."""
    sides: list[int] = []
    for pixels in (images.shape[3], images.shape[2]):
        total = max((-(-pixels // stride) - 1) * stride + kernel - pixels, 0)
        sides += [total // 2, total - total // 2]
    return sides[0], sides[1], sides[2], sides[3]


class EndPaddedConv(nn.Conv2d):
    """A convolution whose padding depends on the size of its images."""

    def forward(self, images: Tensor) -> Tensor:
        padded = F.pad(images, same_padding(images, self.kernel_size[0], self.stride[0]))
        return F.conv2d(padded, self.weight, self.bias, self.stride)


class EndPaddedMaxPool(nn.MaxPool2d):
    """A max-pool likewise."""

    def forward(self, images: Tensor) -> Tensor:
        kernel, stride = self.kernel_size, self.stride
        assert isinstance(kernel, int)
        assert isinstance(stride, int)
        padded = F.pad(images, same_padding(images, kernel, stride), value=float("-inf"))
        return F.max_pool2d(padded, kernel, stride)


def pad_at_end(network: nn.Module) -> None:
    """Gives every convolution and max-pool with a stride, and a kernel of more than one pixel, such a padding."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.stride[0] > 1 and module.kernel_size[0] > 1:
            module.__class__, module.padding = EndPaddedConv, (0, 0)
        elif isinstance(module, nn.MaxPool2d):
            module.__class__, module.padding = EndPaddedMaxPool, 0

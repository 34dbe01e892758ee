"""Strided convolutions of maps with fewer pixels than the stride, such as 1×1 maps in deep stages of small images."""

import torch
from torch import Tensor, nn

from unlabeled.objective import Backbone


class SmallMapConv(nn.Conv2d):
    """A convolution that computes such maps in float32 under autocast on a CPU.

    In bfloat16 oneDNN (torch 2.14.1) leaves the weight's gradient unset at the taps that see only padding: whatever was
    in memory, 1e33 or NaN, would be added to the weights.
    """

    def forward(self, images: Tensor) -> Tensor:
        if images.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or not _is_small(self, images):
            return super().forward(images)
        with torch.autocast("cpu", enabled=False):
            return super().forward(images.to(self.weight.dtype))


@torch.no_grad()
def guard_small_maps(network: Backbone, side: int) -> None:
    """Makes the convolutions whose maps are so small for images of ``side`` × ``side`` pixels such ones; names stay.

    Tried with one black image in evaluation mode. GPUs do not need it, nor do convolutions without padding.
    """
    found: list[nn.Conv2d] = []
    plain = [each for each in network.modules() if type(each) is nn.Conv2d]
    strided = [each for each in plain if max(each.stride) > 1 and each.padding not in ((0, 0), "valid")]
    hooks = [each.register_forward_pre_hook(lambda on, given: _note(found, on, given[0])) for each in strided]
    modes = {each: each.training for each in network.modules()}
    weight = next(network.parameters())
    try:
        if strided:
            network.eval()(torch.zeros(1, network.channels, side, side, dtype=weight.dtype))
    finally:
        for each in hooks:
            each.remove()
        for module, mode in modes.items():
            module.training = mode
    for convolution in found:
        convolution.__class__ = SmallMapConv


def _note(found: list[nn.Conv2d], convolution: nn.Module, images: Tensor) -> None:
    assert isinstance(convolution, nn.Conv2d)
    if _is_small(convolution, images):
        found.append(convolution)


def _is_small(convolution: nn.Conv2d, images: Tensor) -> bool:
    return images.shape[2] < convolution.stride[0] or images.shape[3] < convolution.stride[1]

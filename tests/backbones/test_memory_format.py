"""Channels last is an order of numbers in memory."""

import torch
from torch import Tensor

from unlabeled.backbones.resnet import ResNet


def test_channels_last_changes_features_and_gradients_by_roundings_alone() -> None:
    torch.manual_seed(0)
    network, images = ResNet(10, 0.125, "cifar").double(), torch.randn(8, 3, 16, 16, dtype=torch.float64)
    weight = torch.randn(8, network.num_features, dtype=torch.float64)

    def found(layout: torch.memory_format) -> list[Tensor]:
        network.to(memory_format=layout)
        features = network(images.contiguous(memory_format=layout))
        return [features, *torch.autograd.grad((features * weight).sum(), list(network.parameters()))]

    for ours, theirs in zip(found(torch.channels_last), found(torch.contiguous_format), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)

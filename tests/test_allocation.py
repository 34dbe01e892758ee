import ctypes
import platform
import resource

import pytest
import torch
from torch import Tensor

from unlabeled.allocation import MMAP_MAX, TRIM_THRESHOLD, keep_freed_memory
from unlabeled.backbones.resnet import ResNet

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")


def as_by_itself() -> None:
    """glibc's own values, but for what it would adapt."""
    libc = ctypes.CDLL(None)
    assert libc.mallopt(MMAP_MAX, 65_536)
    assert libc.mallopt(TRIM_THRESHOLD, 128 * 1024)


def pages_for(megabytes: int) -> int:
    """Pages of 4 kB, or larger ones, that the kernel gives for a tensor of that size, beyond the first such tensor."""
    torch.ones(megabytes * 2**18)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(megabytes * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@glibc
def test_a_large_tensor_gets_the_memory_of_the_one_before() -> None:
    assert keep_freed_memory()
    assert pages_for(64) < 10  # of 16,384


@glibc
def test_loss_and_gradients_are_the_same_bits_wherever_memory_comes_from() -> None:
    network = ResNet(depth=10, width=0.25, stem="cifar", zero_init_residual=True)
    images = torch.rand(128, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def step() -> list[Tensor]:
        network.zero_grad()
        loss = network(images).square().mean()
        loss.backward()
        return [loss.detach(), *(weight.grad.clone() for weight in network.parameters() if weight.grad is not None)]

    as_by_itself()
    before = step()
    keep_freed_memory()
    assert all(torch.equal(a, b) for a, b in zip(before, step(), strict=True))

import ctypes
import platform
import subprocess
import sys

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


FRESH = """
import resource, torch
from unlabeled.allocation import keep_freed_memory

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(pages() > 1000, pages() > 1000, keep_freed_memory(), pages() > 1000, pages())
"""


@glibc
def test_a_large_tensor_gets_the_memory_of_the_one_before() -> None:
    """In a process of its own: what others have left in this one's heap may be as good a place, and untouched."""
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True)
    *some, last = done.stdout.split()
    assert some == ["True", "True", "True", "True"], done.stderr
    assert int(last) < 10  # pages of 4 kB, of the 16,384 that it takes


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

import ctypes
import platform
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from unlabeled.backbones.resnet import ResNet
from unlabeled.training.machine.allocation import MMAP_MAX, TRIM_THRESHOLD, keep_freed_memory

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")


def as_by_itself() -> None:
    """glibc's own values, but for what it would adapt."""
    libc = ctypes.CDLL(None)
    assert libc.mallopt(MMAP_MAX, 65_536)
    assert libc.mallopt(TRIM_THRESHOLD, 128 * 1024)


FRESH = """
import resource, torch
from unlabeled.training.machine.allocation import keep_freed_memory

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(64 * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(pages(), keep_freed_memory(), pages(), pages())
"""


@glibc
def test_large_tensors_get_the_memory_of_those_before() -> None:
    """In a process of its own; once the heap has grown by what small tensors have cut off, no page is asked for."""
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True)
    by_itself, done_so, growing, kept = done.stdout.split()
    assert done_so == "True", done.stderr
    assert int(by_itself) > 2 * int(growing)
    assert int(by_itself) > 100 * int(kept)  # 20 times 16,384 pages of 4 kB, or fewer large ones


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

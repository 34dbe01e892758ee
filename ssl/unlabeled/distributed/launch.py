"""Lets several processes share one evaluation: ``torchrun --nproc-per-node=4 eval_linear.py …``."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

DAY = timedelta(days=1)  # timeout: the first process fits probes, or finds neighbours, while the others wait


@contextmanager
def process_group(accelerator: str) -> Iterator[None]:
    """Connects the processes that torchrun has started; does nothing for a single process."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    gpu = accelerator != "cpu" and torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(local_rank())
    dist.init_process_group("nccl" if gpu else "gloo", timeout=DAY)
    try:
        yield
    finally:
        dist.destroy_process_group()


def local_rank() -> int:
    """Returns the number of this process on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))

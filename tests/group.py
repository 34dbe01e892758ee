"""Processes of a test that are a group of torch.distributed."""

import os
import sys

import torch


def leave() -> None:
    """End this process of a group, with success: the last thing that it does.

    On a busy machine torch's own threads now and then abort one that ends the ordinary way, after all its work.
    """
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)

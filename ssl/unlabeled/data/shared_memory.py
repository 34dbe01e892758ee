"""Decodes the images once per machine and shares one copy between all its processes."""

import fcntl
import hashlib
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch

from unlabeled.data.memory import DecodedSource
from unlabeled.distributed import gather_rows, rank, world_size
from unlabeled.errors import UserError


def decode_once_per_machine(decode: Callable[[int], DecodedSource], device: torch.device) -> DecodedSource:
    """Calls ``decode`` in the first process of each machine; the other processes map the same memory.

    The memory is a Linux memfd: a file without a name, outside of /dev/shm, which is freed with the last process that
    uses it, even if that is killed. All processes must call this; on other systems each process decodes by itself.

    Args:
        decode: decodes the images; its argument is the number of processes that share them.
        device: used by processes to exchange a few numbers.

    Raises:
        UserError: the process that decodes has ended before it finished.
    """
    if world_size() == 1 or not hasattr(os, "memfd_create"):
        return decode(1)
    file = os.memfd_create("unlabeled")
    fcntl.flock(file, fcntl.LOCK_EX)  # locked before the others get its path
    everyone = gather_rows(torch.tensor([[_machine(), os.getpid(), file]], device=device)).tolist()
    here = [(number, *row[1:]) for number, row in enumerate(everyone) if row[0] == _machine()]
    first, owner, file_of_first = here[0]
    path = f"/proc/{owner}/fd/{file_of_first}"
    if first != rank():
        os.close(file)
        _wait(path, first)
    elif len(here) == 1:
        os.close(file)
        return decode(1)
    else:
        decoded = decode(len(here))
        torch.save({each.name: getattr(decoded, each.name) for each in fields(decoded)}, path)
        fcntl.flock(file, fcntl.LOCK_UN)  # never closed: another process may still have to open it
    return DecodedSource(**torch.load(path, mmap=True, weights_only=True))


def _wait(path: str, first: int) -> None:
    """Waits until the process that holds the lock releases it or ends."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            if os.fstat(file.fileno()).st_size:
                return
    except FileNotFoundError:
        pass
    raise UserError(f"process {first}, which decodes the images for this machine, has ended before it was done")


def _machine() -> int:
    """Returns a number that is equal on processes that see each other's open files: same machine and same container."""
    seen = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    return int.from_bytes(hashlib.sha256(seen.encode()).digest()[:7])

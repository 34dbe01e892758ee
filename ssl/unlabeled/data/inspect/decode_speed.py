"""Measures how many images one process decodes per second, and how many processes a training needs."""

import math
import time
from typing import Any

import numpy as np

from unlabeled.data.inspect.perceptual import Ints
from unlabeled.data.inspect.survey import stored_bytes
from unlabeled.data.source import HasEncodedImages, Source

TIMED, SECONDS = 512, 5.0  # most images to time, and most seconds


def decode_speed(source: Source, ids: Ints, wanted: float) -> dict[str, Any]:
    """Measures images per second of this process, and how many such processes ``wanted`` images per second need.

    ``ids`` [M] are positions of images that can be decoded. Evenly spaced ones of them are decoded for some seconds.
    They were read shortly before, so that the file cache hides a slow disk.
    """
    if not len(ids):
        return {"images": 0}
    count = min(TIMED, len(ids))
    sample = ids[np.arange(count) * len(ids) // count].tolist()
    stored, done, started = 0, 0, time.perf_counter()
    for index in sample:
        stored, done = stored + source.decode(index).nbytes, done + 1
        if time.perf_counter() - started > SECONDS:
            break
    seconds = time.perf_counter() - started
    if isinstance(source, HasEncodedImages):
        stored = sum(stored_bytes(source.encoded(index)) for index in sample[:done])
    rate = done / seconds
    return {
        "images": done,
        "images_per_second": rate,
        "megabytes_per_second": stored / seconds / 1e6,
        "encoded": isinstance(source, HasEncodedImages),
        "wanted": wanted,
        "workers": math.ceil(wanted / rate),
    }

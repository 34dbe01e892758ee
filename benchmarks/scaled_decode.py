"""What decoding large JPEGs at 1/2, 1/4 or 1/8 saves and changes: writes benchmarks/results/scaled_decode.md.

    python benchmarks/scaled_decode.py

scikit-learn's two photographs, enlarged (Lanczos) and saved as JPEG of quality 90. The difference is that of the final
uint8 pixels from those of the same file decoded whole, in levels of 0..255, beside
that of saving the result once more as JPEG of quality 95.
"""

import io
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from unlabeled.data.decode import decode_bytes, to_rgb

RESULTS = Path(__file__).parent / "results" / "scaled_decode.md"
CASES = [(1100, 256), (1600, 256), (2400, 256), (4800, 256), (2400, 512), (400, 32)]  # width, image_size


def photographs(width: int) -> list[bytes]:
    encoded = []
    for pixels in load_sample_images().images:
        image = Image.fromarray(pixels)
        stream = io.BytesIO()
        image = image.resize((width, width * image.height // image.width), Image.Resampling.LANCZOS)
        image.save(stream, "JPEG", quality=90)
        encoded.append(stream.getvalue())
    return encoded


def milliseconds(call: Callable[[], object], times: int = 7) -> float:
    """The least of some."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken) * 1000


def saved_again(pixels: Tensor) -> Tensor:
    stream = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(stream, "JPEG", quality=95)
    return to_rgb(Image.open(stream), max(pixels.shape), False)


def levels(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Mean and 99.9th percentile of the difference."""
    difference = np.abs(a.numpy().astype(float) - b.numpy())
    return float(difference.mean()), float(np.percentile(difference, 99.9))


def row(width: int, size: int) -> str:
    files = photographs(width)
    whole = [to_rgb(Image.open(io.BytesIO(data)), size, False) for data in files]
    scaled = [decode_bytes(data, "", size, False) for data in files]
    mean, most = np.mean([levels(a, b) for a, b in zip(whole, scaled, strict=True)], 0)
    again = np.mean([levels(a, saved_again(a))[0] for a in whole])
    before = milliseconds(lambda: to_rgb(Image.open(io.BytesIO(files[0])), size, False))
    after = milliseconds(lambda: decode_bytes(files[0], "", size, False))
    height = Image.open(io.BytesIO(files[0])).height
    factor = max([f for f in (1, 2, 4, 8) if f == 1 or min(width, height) >= 2 * f * size])
    cells = [f"{width} × {height}", size, f"1/{factor}", f"{before:.1f}", f"{after:.1f}", f"{before / after:.1f}"]
    return "| " + " | ".join(map(str, [*cells, f"{mean:.2f}", f"{most:.0f}", f"{again:.2f}"])) + " |"


def main() -> None:
    lines = [
        "# Scaled decoding of large JPEGs",
        "",
        "Written by `benchmarks/scaled_decode.py`.",
    ]
    lines += [f"One of {os.cpu_count()} CPU cores, shared with other jobs; the least of seven times.", ""]
    head = ["JPEG", "image_size", "scale", "whole, ms", "scaled, ms", "×", "mean difference", "99.9 %", "JPEG 95 again"]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += [row(width, size) for width, size in CASES]
    RESULTS.write_text("\n".join(lines) + "\n")
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()

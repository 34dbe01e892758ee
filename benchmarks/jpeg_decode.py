"""What torchvision's decoder of JPEG saves and changes beside Pillow's: writes benchmarks/results/jpeg_decode.md.

    OMP_NUM_THREADS=1 python benchmarks/jpeg_decode.py

scikit-learn's two photographs, resized (Lanczos) and saved as JPEG of quality 90, 95 or 75. Times are medians of
decodes in turn, in one process with one thread. Differences are those of the final uint8 pixels, in levels of 0..255.
"""

import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from unlabeled.data.decode import decode_bytes
from unlabeled.data.decoding import Decoding

RESULTS = Path(__file__).parent / "results" / "jpeg_decode.md"
# width, height, quality, image_size
CASES = [(500, 375, 90, 256), (500, 375, 95, 256), (500, 375, 75, 256), (375, 500, 90, 256), (256, 341, 90, 256)]
CASES += [(1100, 733, 90, 256), (1600, 1067, 90, 256), (2400, 1601, 90, 256), (4800, 3202, 90, 256), (400, 266, 90, 32)]
TIMES = 40


def photographs(width: int, height: int, quality: int) -> list[bytes]:
    """Both photographs as JPEG."""
    encoded = []
    for pixels in load_sample_images().images:
        stream = io.BytesIO()
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
        image.save(stream, "JPEG", quality=quality)
        encoded.append(stream.getvalue())
    return encoded


def in_turn(calls: list[Callable[[], object]], times: int = TIMES) -> list[float]:
    """Median milliseconds of each call, one after the other in each round."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(times):
        for call, seconds in zip(calls, taken, strict=True):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return [median(seconds) * 1000 for seconds in taken]


def row(width: int, height: int, quality: int, size: int) -> str:
    """One line of the table."""
    files = photographs(width, height, quality)
    pillow, ours = Decoding(decode="pillow"), Decoding(decode="torchvision")
    times = TIMES if width < 2000 else 9
    before, after = in_turn(
        [
            lambda: [decode_bytes(data, "", size, False, pillow) for data in files],
            lambda: [decode_bytes(data, "", size, False, ours) for data in files],
        ],
        times,
    )
    pairs = [(decode_bytes(data, "", size, False, pillow), decode_bytes(data, "", size, False, ours)) for data in files]
    differences = torch.cat([(a.int() - b.int()).abs().flatten() for a, b in pairs])
    shares = [f"{100 * float((differences >= level).float().mean()):.2f}" for level in (1, 2)]
    cells = [f"{width} × {height}", quality, size, f"{before / 2:.2f}", f"{after / 2:.2f}", f"{before / after:.2f}"]
    return "| " + " | ".join(map(str, [*cells, *shares, int(differences.max())])) + " |"


def main() -> None:
    """Writes the table and prints it."""
    torch.set_num_threads(1)
    lines = ["# JPEG by Pillow and by torchvision", "", "Written by `benchmarks/jpeg_decode.py`.", ""]
    lines += [f"One thread on a machine of {os.cpu_count()} CPU cores that others use too; medians in turn.", ""]
    head = ["JPEG", "quality", "image_size", "pillow, ms", "torchvision, ms", "×"]
    head += ["1 level or more, %", "2 or more, %", "most"]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += [row(*case) for case in CASES]
    lines += [
        "",
        "Without a resize (256 × 341 to 256) both give the same bits: both are libjpeg-turbo. The differences come",
        "from the resize. From 1600 × 1067 on Pillow decodes at 1/2, which is another picture; torchvision decodes",
        "every pixel and is not slower. At 1/4 and 1/8 (4800 × 3202, and 400 × 266 to 32) Pillow is faster, and",
        "`decode=torchvision` leaves them to it.",
    ]
    RESULTS.write_text("\n".join(lines) + "\n")
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()

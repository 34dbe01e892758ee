"""How fast training starts on many small images, and what its workers hold: writes benchmarks/results/data_scale.md.

    python benchmarks/data_scale.py [--images 200000] [--batches 3000]

JPEGs of 16 × 16 pixels, a few hundred distinct ones under many names, as files in class folders and in tar shards, in a
folder of their own that is removed at the end. A worker's numbers are the kernel's (/proc/PID/smaps_rollup): RSS counts
every page it touches, PSS shares out those that it has in common with others, USS counts those of its own alone.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES, PER_SHARD, WORKERS, BATCH = 1000, 10_000, 2, 64
RESULTS = Path(__file__).parent / "results" / "data_scale.md"


def jpegs(count: int = 300) -> list[bytes]:
    """Distinct small images."""
    random, encoded = np.random.default_rng(0), []
    for _ in range(count):
        stream = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(stream, "JPEG")
        encoded.append(stream.getvalue())
    return encoded


def write_folders(root: Path, images: int) -> None:
    data = jpegs()
    for label in range(CLASSES):
        (root / f"class{label:04}").mkdir(parents=True)
    for number in range(images):
        (root / f"class{number % CLASSES:04}" / f"image_{number:08}.jpg").write_bytes(data[number % len(data)])


def write_shards(root: Path, images: int) -> None:
    data = jpegs()
    root.mkdir(parents=True)
    for shard, first in enumerate(range(0, images, PER_SHARD)):
        with tarfile.open(root / f"train-{shard:06}.tar", "w") as tar:
            for number in range(first, min(first + PER_SHARD, images)):
                add(tar, f"{number:08}.jpg", data[number % len(data)])
                add(tar, f"{number:08}.cls", str(number % CLASSES).encode())


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def held(process: int) -> dict[str, float]:
    """RSS, PSS and USS of a process in MiB."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    kib = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
    own = kib["Private_Clean"] + kib["Private_Dirty"]
    return {"RSS": kib["Rss"] / 1024, "PSS": kib["Pss"] / 1024, "USS": own / 1024}


def measure(kind: str, root: str, index: str, batches: int) -> None:
    """In a process of its own: from the import of nothing to the first batch, and to the last; prints JSON."""
    start = time.perf_counter()
    from unlabeled.data.loaders import LazyLoader
    from unlabeled.data.order import GlobalOrder
    from unlabeled.data.sources.folder import folder
    from unlabeled.data.sources.shards import shards

    imported = time.perf_counter()
    make: Any = {"folder": folder, "shards": shards}[kind]
    source = make(root, image_size=16, index=index).train
    opened = time.perf_counter()
    order = GlobalOrder(len(source), BATCH, batches, 0, 0, 1, next_step=lambda: 0)
    loader = LazyLoader(source, order, WORKERS, [])
    memory: dict[int, list[dict[str, float]]] = {}
    marks = {1, batches // 10, batches // 2, batches}
    first = 0.0
    for number, batch in enumerate(loader, 1):
        assert len(batch.ids) == BATCH
        first = first or time.perf_counter()
        if number in marks:
            memory[number] = [held(process) for process in workers()]
    seconds = {"import": imported - start, "list": opened - imported, "first batch": first - opened}
    rate = (batches - 1) * BATCH / (time.perf_counter() - first)
    print(json.dumps({"images": len(source), "seconds": seconds, "rate": rate, "memory": memory}))


def workers() -> Iterator[int]:
    """Processes that this one has started and that read images."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return (int(child) for child in children if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes())


def run(kind: str, root: Path, index: Path, batches: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", kind, str(root), str(index), str(batches)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def report(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The tables."""
    lines = ["# Many small images: start and memory", "", "Written by `benchmarks/data_scale.py`.", ""]
    images = next(iter(found.values()))["warm"]["images"]
    lines += [
        f"{images:,} JPEGs of 16 × 16 pixels in {CLASSES:,} classes; {WORKERS} workers, batches of {BATCH},"
        f" random order, {len(os.sched_getaffinity(0))} CPU core(s) shared with other jobs. Seconds count from the call"
        " that opens the data; importing torch and Lightning comes before.",
        "",
        "| source | index | list, s | to the first batch, s | images / s |",
        "|---|---|---:|---:|---:|",
    ]
    for kind, runs in found.items():
        for state, result in runs.items():
            seconds = result["seconds"]
            lines.append(
                f"| {kind} | {state} | {seconds['list']:.2f} | {seconds['list'] + seconds['first batch']:.2f} |"
                f" {result['rate']:,.0f} |"
            )
    lines += ["", "Memory of the largest worker in MiB, warm index:", ""]
    lines += ["| source | after batches | RSS | PSS | USS |", "|---|---:|---:|---:|---:|"]
    for kind, runs in found.items():
        for number, each in runs["warm"]["memory"].items():
            most = {name: max(worker[name] for worker in each) for name in ("RSS", "PSS", "USS")}
            lines.append(f"| {kind} | {int(number):,} | {most['RSS']:.0f} | {most['PSS']:.0f} | {most['USS']:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--batches", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--measure", nargs=4, metavar=("KIND", "ROOT", "INDEX", "BATCHES"))
    given = parser.parse_args()
    if given.measure:
        kind, root, index, batches = given.measure
        return measure(kind, root, index, int(batches))
    place = Path(tempfile.mkdtemp(prefix="data_scale_"))
    try:
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for kind, write in (("folder", write_folders), ("shards", write_shards)):
            write(place / kind, given.images)
            time.sleep(3)  # a folder that has just changed is not trusted, see unlabeled.data.sources.folder
            states = (("cold", 10), ("warm", given.batches))
            found[kind] = {state: run(kind, place / kind, place / "index", batches) for state, batches in states}
    finally:
        shutil.rmtree(place)
    given.out.write_text(report(found))
    print(report(found))


if __name__ == "__main__":
    main()

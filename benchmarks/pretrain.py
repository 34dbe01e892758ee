"""How fast pretraining is end to end, beside the limit that its own model, loss and optimizer set.

    taskset -c 0,1 env OMP_NUM_THREADS=2 python benchmarks/pretrain.py --data FOLDER     CIFAR-10's two parquet files
    python benchmarks/pretrain.py                        on a GPU, where there is one: its rows, on made-up images

Each row is a process of its own; its numbers stay in outputs/benchmarks, and the page in benchmarks/results/ is made of
all that are there: ``--only`` measures some of them anew. ``--sizes`` goes through batch sizes, numbers of views and
sizes of images instead, and draws what they cost.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script sees only its own folder

from benchmarks.pretraining.images import parquet_files, shard_files
from benchmarks.pretraining.rows import Row, cpu_rows, gpu_rows, small_rows
from benchmarks.pretraining.sizes import SWEEPS, sizes_page
from benchmarks.pretraining.table import page

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train.parquet and test.parquet, 32 px; else made up")
    parser.add_argument(
        "--only", nargs="*", default=[""], metavar="TEXT", help="rows whose names have it; none: no row"
    )
    parser.add_argument("--repeats", type=int, default=7, help="blocks of the run, each between two of the limit")
    parser.add_argument("--sizes", nargs="*", choices=SWEEPS, help="these sweeps; all where none is named")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "benchmarks", help="made-up images, numbers")
    arguments = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    kept = arguments.work / slug(device)
    kept.mkdir(parents=True, exist_ok=True)
    if arguments.sizes is not None:
        measure_sizes(device, kept, arguments)
        return
    measured, small = rows(device, arguments.data, arguments.work)
    for row in (*measured, *small):
        if any(text in row.name for text in arguments.only):
            measure(row, kept, arguments.repeats)
    file = RESULTS / f"pretrain_{slug(device)}.md"
    file.write_text(page(heading(device), found(measured, kept), found(small, kept)))
    print(file.read_text())


def rows(device: str, data: Path | None, work: Path) -> tuple[list[Row], list[Row]]:
    """What is measured on this device, and GPU rows that are only tried on it; images are made where missing."""
    small_images = (data or parquet_files(work / "images_32", 10_240, 32)).resolve()
    if device != "cpu":
        return gpu_rows(small_images, shard_files(work / "images_500", 20_480, 375, 500).resolve()), []
    return cpu_rows(small_images), small_rows(small_images, shard_files(work / "images_150", 256, 112, 150).resolve())


def measure(row: Row, kept: Path, repeats: int) -> None:
    """In a process of its own: peak memory is a process's."""
    given = kept / f"{slug(row.name)}.row.json"
    given.write_text(json.dumps(asdict(row)))
    print(row.name, flush=True)
    files = [str(given), str(kept / f"{slug(row.name)}.json")]
    command = [sys.executable, "-m", "benchmarks.pretraining.measure", *files, str(repeats)]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def found(wanted: Sequence[Row], kept: Path) -> list[dict[str, Any]]:
    """Numbers of these rows, as far as they have been measured."""
    files = [kept / f"{slug(row.name)}.json" for row in wanted]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def measure_sizes(device: str, kept: Path, arguments: argparse.Namespace) -> None:
    """Measure the sweeps that are asked for; page and picture show all that have been."""
    sweeps = {name: make(arguments.work, device != "cpu") for name, make in SWEEPS.items()}
    for name in arguments.sizes or SWEEPS:
        for row in sweeps[name].rows:
            if any(text in row.name for text in arguments.only):
                measure(row, kept, arguments.repeats)
    results = [(sweep, found(sweep.rows, kept)) for sweep in sweeps.values()]
    picture = RESULTS / f"pretrain_sizes_{slug(device)}.png"
    picture.with_suffix(".md").write_text(sizes_page(heading(device), results, picture))
    print(picture.with_suffix(".md").read_text())


def heading(device: str) -> str:
    return f"CPU, {torch.get_num_threads()} threads" if device == "cpu" else device


def slug(name: str) -> str:
    """A file name of it."""
    words = "".join(letter if letter.isalnum() else " " for letter in name.lower()).split()
    return "_".join(words)


if __name__ == "__main__":
    main()

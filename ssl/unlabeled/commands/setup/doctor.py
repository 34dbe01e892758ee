"""``unlabeled doctor``: what there is on this machine, how fast it is, and what is missing for which feature."""

import io
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import metadata, util
from pathlib import Path

from unlabeled import __version__

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "numpy", "pillow", "scikit-learn", "timm")
# Feature → packages of which it needs all, as they are imported; and the extra that brings them
FEATURES = {
    "views by kornia, unlabeled saliency": (("kornia",), "kornia"),
    "logger=tensorboard": (("tensorboard",), "tensorboard"),
    "logger=wandb": (("wandb",), "wandb"),
    "logger=mlflow": (("mlflow",), "mlflow"),
    "unlabeled tune": (("optuna",), "tune"),
    "hydra/sweeper=optuna": (("optuna", "hydra_plugins.hydra_optuna_sweeper"), "optuna"),
    "hydra/launcher=submitit_slurm": (("submitit",), "slurm"),
    "export to=onnx": (("onnx", "onnxscript", "onnxruntime"), "export"),
    "data.path=s3://…, gs://…, https://…": (("s3fs", "gcsfs", "aiohttp"), "remote"),
    "unlabeled detect": (("pycocotools",), "detection"),
    "the report's map of features by UMAP": (("umap",), "maps"),
}
TIMED = 1.0  # seconds of decoding
PICTURE = (500, 375)  # pixels, ImageNet's median
GIB = 2**30


def main(arguments: Sequence[str] = ()) -> None:
    """Print it; exit status 1 where torch and torchvision do not fit, 2 for an argument."""
    if arguments:
        named = [each for each in arguments if each not in ("--help", "-h")]
        if named:
            print(f"error: {' '.join(named)}: unlabeled doctor takes no arguments", file=sys.stderr)
            raise SystemExit(2)
        print("Prints versions, devices, precision, speed and what is missing for which feature. Takes no arguments.")
        return
    broken = _misfit()
    for part in (_versions(), _devices() if not broken else iter(()), _room(), _missing()):
        for what, found in part:
            print(f"{what:<12} {found}")
    if broken:
        print(f"{'broken':<12} {broken}")
        raise SystemExit(1)


def _versions() -> Iterator[tuple[str, str]]:
    yield "unlabeled", f"{__version__}, {Path(__file__).parents[2]}"
    yield "python", f"{platform.python_version()}, {platform.platform()}"
    yield "packages", ", ".join(f"{name} {_version(name) or 'MISSING'}" for name in PACKAGES)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _misfit() -> str:
    """Why torch and torchvision cannot be used together, "" where they can."""
    try:
        import torch
        import torchvision  # noqa: F401

        torch.ops.torchvision.nms  # noqa: B018
    except (ImportError, AttributeError, RuntimeError) as error:
        return (
            f"torch {_version('torch')} and torchvision {_version('torchvision')} do not fit "
            f"({' '.join(str(error).split())[:120]}): install both from one registry in one command"
        )
    return ""


def _devices() -> Iterator[tuple[str, str]]:
    import torch

    from unlabeled.commands.build.trainer import resolve_precision

    yield "processors", f"{len(os.sched_getaffinity(0))} cores, torch uses {torch.get_num_threads()} threads"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(count):
        known = torch.cuda.get_device_properties(number)
        yield "gpu", f"{known.name}, {known.total_memory / GIB:.0f} GiB"
    if not count:
        yield "gpu", f"none that torch {torch.__version__} can use"
    yield "precision", f"{resolve_precision('auto', 'auto')} with trainer.precision=auto"
    speed = decode_speed()
    yield "decoding", f"{speed:,.0f} JPEGs of {PICTURE[0]} × {PICTURE[1]} pixels a second and worker, to 256 pixels"


def decode_speed(seconds: float = TIMED) -> float:
    """Images that one process decodes in a second: a photograph's size, made of smooth noise, from memory."""
    import numpy as np
    from PIL import Image

    from unlabeled.data.decode import decode_bytes

    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(coarse).resize(PICTURE, Image.Resampling.BICUBIC).save(encoded, "JPEG", quality=90)
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        decode_bytes(encoded.getvalue(), "noise", 256, square=False)
        done += 1
    return done / (time.perf_counter() - started)


def _room() -> Iterator[tuple[str, str]]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "unlabeled"
    for what, folder in (("runs", Path("outputs").absolute()), ("cache", cache)):
        there = next(each for each in (folder, *folder.parents) if each.exists())
        writable = "" if os.access(there, os.W_OK) else ", NOT WRITABLE"
        yield f"disk, {what}", f"{shutil.disk_usage(there).free / GIB:,.0f} GiB free, {folder}{writable}"
    memory = {name: int(value.split()[0]) * 1024 for name, value in _meminfo()}
    shared = Path("/dev/shm")
    if memory:
        of = f"of {memory['MemTotal'] / GIB:,.0f} GiB"
        yield "memory", f"{memory['MemAvailable'] / GIB:,.0f} {of} free; memory_gib=8 keeps decoded images"
    if shared.is_dir():
        yield "shared", f"{shutil.disk_usage(shared).free / GIB:,.1f} GiB in {shared}, for workers"


def _meminfo() -> list[tuple[str, str]]:
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return [(name, value) for name, _, value in (line.partition(":") for line in lines)]


def _missing() -> Iterator[tuple[str, str]]:
    nothing = True
    for feature, (packages, extra) in FEATURES.items():
        lacking = [package for package in packages if not _importable(package)]
        if lacking:
            nothing = False
            yield "missing", f"{', '.join(lacking)} for {feature}: pip install 'unlabeled[{extra}]'"
    if nothing:
        yield "missing", "nothing: every feature has its packages"


def _importable(name: str) -> bool:
    try:
        return util.find_spec(name) is not None
    except ImportError:  # of the package that it would be part of
        return False

"""Made-up images where no data set is at hand: smooth shapes with some noise, which compress as photographs do."""

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

DIFFERENT = 200  # images that are drawn; more are copies of them under other names


def made_up(count: int, height: int, width: int) -> Tensor:
    """Uint8 [count, 3, height, width], the same in each call."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bicubic").mul_(255)
    noise = torch.randn(count, 1, height, width, generator=generator)
    return smooth.add_(noise, alpha=6).clamp_(0, 255).to(torch.uint8)


def parquet_files(folder: Path, count: int, size: int) -> Path:
    """``train.parquet`` and ``test.parquet`` of square PNG images, 10 classes; made where they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", count), ("test", 10)):
        if not (folder / f"{split}.parquet").exists():
            encoded = _encoded("PNG", size, size)
            images = [encoded[row % DIFFERENT] for row in range(rows)]
            table = pa.table({"image": pa.array(images, pa.binary()), "label": [row % 10 for row in range(rows)]})
            pq.write_table(table, folder / f"{split}.parquet")
    return folder


def shard_files(folder: Path, count: int, height: int, width: int) -> Path:
    """``train.tar`` of JPEG images with labels; made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "train.tar").exists():
        encoded = _encoded("JPEG", height, width)
        with tarfile.open(folder / "train.tar.tmp", "w") as tar:
            for row in range(count):
                _add(tar, f"{row:07d}.jpg", encoded[row % DIFFERENT])
                _add(tar, f"{row:07d}.cls", str(row % 10).encode())
        (folder / "train.tar.tmp").rename(folder / "train.tar")
    return folder


def _encoded(kind: str, height: int, width: int) -> list[bytes]:
    found = []
    for image in made_up(DIFFERENT, height, width):
        stream = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, kind, quality=90)
        found.append(stream.getvalue())
    return found


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))

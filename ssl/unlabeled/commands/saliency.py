"""Foreground masks of a training split, without labels: ``unlabeled saliency data=… out=masks.pt``.

Handcrafted saliency maps at a working resolution (or a small network trained to give them) → 0.5 is the border between
foreground and background → one bit per pixel. The masks are what ``RemoveBackground`` reads. All are square: that of a
whole image spans it from corner to corner.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from unlabeled.commands.build.run import build_data
from unlabeled.commands.config import run_module
from unlabeled.core.seeding import derive_seed
from unlabeled.core.writing import kept_anyway, make_folder, one_line, save_picture
from unlabeled.data.decoding import channels_of
from unlabeled.data.module import DataModule
from unlabeled.data.padding import batch_to_device, image_sizes
from unlabeled.errors import UserError
from unlabeled.objective import Batch
from unlabeled.pages.draw import draw_columns
from unlabeled.views.background import Fill, paint_background
from unlabeled.views.kernels.crop import crop_resize
from unlabeled.views.masks import Masks, pack, samples_hash
from unlabeled.views.operations import RandomResizedCrop
from unlabeled.views.saliency.fusion import fuse
from unlabeled.views.saliency.maps import MAPS
from unlabeled.views.saliency.network import train_network

SETTINGS = ("maps", "work_size", "centre_sigma", "threshold", "refine", "refine_images", "refine_epochs", "seed")
DEGENERATE = (0.05, 0.95)  # coverages that the report counts; as min_coverage, max_coverage in conf/views/relicv2.yaml
LARGE_SCALE = (0.3, 1.0)  # of the picture's crops, as in conf/views/relicv2_small.yaml
ROWS = 8  # of the picture

Saliency = Callable[[Tensor], Tensor]  # float [B, 3, h, w] at the working resolution → [B, h, w] in [0, 1]


def make_masks(config: Any, resolved: dict[str, Any]) -> None:
    """Write the masks and a picture of some of them.

    Args:
        config: as composed from ``conf/saliency.yaml``.
        resolved: the same as plain values.
    """
    _check(resolved)
    started = time.monotonic()
    out = Path(config.out).expanduser()
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    data = build_data(config)
    if (channels := channels_of(data.splits.train)) != 3:
        raise UserError(f"data.channels={channels}: saliency is told from colours; give data.channels=3")
    saliency = build_saliency(resolved, data, device)
    masks = write_masks(data, saliency, resolved, out, device)
    picture = out.with_suffix(".png")
    save_picture(picture, draw_columns(_columns(data, masks, saliency, _work_size(resolved, data), device)))
    seconds = time.monotonic() - started
    unusable = ((masks.coverage < DEGENERATE[0]) | (masks.coverage > DEGENERATE[1])).float().mean()
    print(
        f"{len(masks.coverage):,} masks of {masks.size} × {masks.size} pixels in {out} after {seconds:.0f} s: "
        f"{masks.coverage.mean():.1%} foreground on average, {unusable:.2%} of the images with less than "
        f"{DEGENERATE[0]:.0%} or more than {DEGENERATE[1]:.0%}; look at {picture}"
    )


def _check(settings: dict[str, Any]) -> None:
    unknown = [name for name in settings["maps"] if name not in MAPS]
    if unknown or not settings["maps"]:
        raise UserError(f"maps={settings['maps']}: give one or more of {', '.join(MAPS)}")
    for key in ("work_size", "mask_size", "batch_size", "refine_images", "refine_epochs"):
        if settings[key] is not None and settings[key] < 1:
            raise UserError(f"{key}={settings[key]}: must be at least 1")
    if settings["work_size"] < 8:
        raise UserError(f"work_size={settings['work_size']}: must be at least 8 pixels")
    if not 0 < settings["threshold"] < 1:
        raise UserError(f"threshold={settings['threshold']}: must lie between 0 and 1")


def build_saliency(settings: dict[str, Any], data: DataModule, device: torch.device) -> Saliency:
    """The fused maps, or a network trained on those of ``refine_images`` random images (all, if there are fewer)."""

    def fused(images: Tensor) -> Tensor:
        return fuse(images, settings["maps"], settings["centre_sigma"])

    if not settings["refine"]:
        return fused
    chosen = _random_positions(data, settings["refine_images"], settings["seed"])
    batches, size = data.batches(data.train, chosen, settings["batch_size"]), _work_size(settings, data)
    images = torch.cat([square_images(batch, data.splits.train.square, size, device) for batch in batches])
    return train_network(images, fused, settings["refine_epochs"], settings["seed"]).maps


def _random_positions(data: DataModule, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(seed, 2))
    return torch.randperm(len(data.train.labels), generator=generator)[:count]


def _work_size(settings: dict[str, Any], data: DataModule) -> int:
    wanted: int = settings["work_size"]
    return min(wanted, data.splits.train.image_size)


def square_images(batch: Batch, square: bool, size: int, device: torch.device) -> Tensor:
    """Each image of a batch from corner to corner as a square: float [B, 3, size, size] in [0, 1] on ``device``.

    Args:
        batch: of decoded images.
        square: whether its source gives square ones; if not, height and width are scaled apart.
        size: pixels.
        device: where it is done.
    """
    images, sizes = batch_to_device(batch, device)
    scaled = images.float() / 255
    if square:
        return F.interpolate(scaled, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
    own = image_sizes(images, sizes)
    flip = torch.zeros(len(images), dtype=torch.bool, device=device)
    return crop_resize(scaled, torch.cat([torch.zeros_like(own), own], 1), flip, size, "bilinear")


def write_masks(
    data: DataModule, saliency: Saliency, settings: dict[str, Any], out: Path, device: torch.device
) -> Masks:
    """One mask per training image, in ``out``; an image that cannot be decoded gets one that is foreground throughout.

    The bits are gathered in a file beside ``out``: ImageNet's at 224 pixels are 8 GB, of which little is in memory.
    """
    source, work_size = data.splits.train, _work_size(settings, data)
    size = settings["mask_size"] or source.image_size
    rows = out.with_name(out.name + ".rows")
    try:
        width = -(-(size**2) // 8)
        make_folder(out.parent)
        with one_line(out), rows.open("wb") as file:  # a page that finds no room on the disk would end the process
            os.posix_fallocate(file.fileno(), 0, len(source) * width)
        packed = torch.from_file(str(rows), shared=True, size=len(source) * width, dtype=torch.uint8).view(-1, width)
        coverage = torch.full((len(source),), -1.0)
        everything = data.batches(data.train, torch.arange(len(data.train.labels)), settings["batch_size"])
        for batch in _with_bar(everything):
            images = square_images(batch, source.square, work_size, device)
            bits = resize_maps(saliency(images), size) >= settings["threshold"]
            packed[batch.ids], coverage[batch.ids] = pack(bits).cpu(), bits.float().mean((1, 2)).cpu()
        corrupt = coverage < 0
        packed[corrupt], coverage[corrupt] = pack(torch.ones(1, size, size, dtype=torch.bool)), 1.0
        kept = {key: settings[key] for key in SETTINGS} | {"square": source.square}
        masks = Masks(packed, coverage, size, samples_hash(source), source.classes, data.splits.description, kept)
        kept_anyway(out.parent, lambda folder: masks.save(folder / out.name))
    finally:
        with suppress(OSError):
            rows.unlink(missing_ok=True)
    return masks


def resize_maps(maps: Tensor, size: int) -> Tensor:
    """[B, h, w] → [B, size, size], bilinear."""
    return F.interpolate(maps[:, None], (size, size), mode="bilinear", antialias=True)[:, 0]


def _columns(
    data: DataModule, masks: Masks, saliency: Saliency, work_size: int, device: torch.device
) -> dict[str, Tensor]:
    """Some random images, their maps and masks, what each fill makes of them, and views of that: the picture."""
    batches = data.batches(data.train, _random_positions(data, ROWS, masks.settings["seed"]), ROWS)
    batch = next(iter(batches))
    source, count = data.splits.train, len(batch.ids)
    images, foreground = square_images(batch, source.square, source.image_size, device), masks.rows(batch.ids, device)
    maps = resize_maps(saliency(square_images(batch, source.square, work_size, device)), source.image_size)
    shown = resize_maps(foreground.float(), source.image_size)
    columns = {"image": images, "map": _grey(maps), "mask": _grey(shown)}
    generator = torch.Generator().manual_seed(masks.settings["seed"])
    grey, seed = torch.rand(count, generator=generator), torch.randint(2**62, (count,), generator=generator)
    fills = {fill: paint_background(images, foreground, fill, grey, seed) for fill in get_args(Fill)}
    crops = {f"view {number}": _view(fills["random_gray"], generator) for number in (1, 2)}
    return columns | fills | crops


def _view(images: Tensor, generator: torch.Generator) -> Tensor:
    """A large crop, as the views of ReLICv2 take it of a masked image."""
    crop = RandomResizedCrop(images.shape[-1], LARGE_SCALE, (3 / 4, 4 / 3), "bicubic", flip=0.5)
    return crop.apply(images, crop.sample(len(images), generator)).clamp(0, 1)


def _grey(maps: Tensor) -> Tensor:
    return maps[:, None].expand(-1, 3, -1, -1)


def _with_bar(batches: Iterable[Batch]) -> Iterable[Batch]:
    if not sys.stderr.isatty():
        return batches
    from rich.console import Console
    from rich.progress import track

    return track(batches, "Making masks", console=Console(stderr=True), transient=True)


if __name__ == "__main__":
    run_module("saliency", make_masks)

"""What is measured: each row is a command of ``train.py``, and how often to look at the clock."""

import os
from dataclasses import dataclass
from pathlib import Path

CIFAR, IMAGENET = 50_000, 1_281_167  # images in an epoch


@dataclass(frozen=True)
class Row:
    """A run to measure.

    Args:
        name: of the row, and of the file with its numbers.
        overrides: of ``conf/train.yaml``.
        steps: in a block between two looks at the clock.
        epoch: images in an epoch: one checkpoint in so many is charged.
        settle: steps before each block that are not counted, until what workers have decoded ahead is used up.
        bound: least efficiency that is wanted; None for a setting that only shows that the row runs.
    """

    name: str
    overrides: tuple[str, ...]
    steps: int
    epoch: int
    settle: int = 0
    bound: float | None = None


PRECISIONS = ("bf16-mixed", "32-true")
SIMCLR = ("experiment=simclr_cifar10", "data=parquet")
MAE = ("experiment=mae_cifar10", "data=parquet")
MULTI_CROP = ("experiment=swav_imagenet", "data=shards", "optimizer.warmup_epochs=0", "optimizer.lr=0.6")


def cpu_rows(data: Path) -> list[Row]:
    """The thin set: images of 32 pixels in ``data``, a folder with train.parquet and test.parquet."""
    return [
        Row(f"{name}, {precision}", (*given, *_at(data), f"trainer.precision={precision}"), steps, CIFAR, bound=bound)
        for name, given, steps, bound in (
            ("SimCLR ResNet-18, 32 px", (*SIMCLR, "batch_size=256"), 1, 0.95),
            ("SimCLR thin ResNet, 32 px", (*SIMCLR, "backbone=resnet_thin", "batch_size=256"), 10, 0.80),
            ("MAE ViT-Ti, 32 px", (*MAE, "batch_size=256"), 3, 0.95),
        )
        for precision in PRECISIONS
    ]


def gpu_rows(small_images: Path, photographs: Path) -> list[Row]:
    """The published sizes; 224 pixels from memory and decoded from shards, 32 pixels from memory."""
    gpu = ("trainer.accelerator=gpu", "trainer.devices=1")
    cifar = (*SIMCLR, *_at(small_images), *gpu)
    return [Row("SimCLR ResNet-18, 32 px", cifar, 50, CIFAR, bound=0.95)] + [
        Row(f"{name}, {origin}", (*given, *_at(photographs), *gpu, *more), 20, IMAGENET, settle, bound=0.9)
        for name, given in {
            # the made-up images are fewer than the 65,536 keys of the recipe
            "MoCo v2 ResNet-50, 224 px": ("experiment=moco_v2_imagenet", "data=shards", "objective.queue_size=16384"),
            "SwAV 2×224 + 6×96 ResNet-50": (*MULTI_CROP, "batch_size=128"),
            "MAE ViT-B/16, 224 px": ("experiment=mae_imagenet_vit_base", "data=shards", "batch_size=256"),
        }.items()
        for origin, settle, more in (
            ("memory", 0, ()),
            ("shards", 3 * _cores(), ("memory_gib=0", f"num_workers={_cores()}")),  # each decodes two batches ahead
        )
    ]


def small_rows(small_images: Path, photographs: Path) -> list[Row]:
    """The GPU rows so small that they run on any CPU: they show that a row works, not how fast it is."""
    tiny = ("trainer.accelerator=cpu", "trainer.devices=1", "views.size=64", "batch_size=8", "data.image_size=96")
    queue = ("experiment=moco_v2_imagenet", "data=shards", "objective.queue_size=64", "objective.bn_splits=2")
    crops = (*MULTI_CROP, "views.groups.1.operations.0.size=32", "objective.prototypes=300")
    cifar = (*SIMCLR, *_at(small_images), "trainer.accelerator=cpu", "batch_size=16")
    return [Row("SimCLR ResNet-18, 32 px, batch 16", cifar, 2, CIFAR)] + [
        Row(f"{name}, batch 8, {origin}", (*given, *_at(photographs), *tiny, *more), 2, IMAGENET, settle)
        for name, given in {
            "MoCo v2 ResNet-50, 64 px": queue,
            "SwAV 2×64 + 6×32 ResNet-50": crops,
            "MAE ViT-B/16, 64 px": ("experiment=mae_imagenet_vit_base", "data=shards"),
        }.items()
        for origin, settle, more in (("memory", 0, ()), ("shards", 2, ("memory_gib=0", "num_workers=1")))
    ]


def _at(folder: Path) -> tuple[str, ...]:
    return (f"data.path={folder}",)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

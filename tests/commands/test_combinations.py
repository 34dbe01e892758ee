"""What cannot work together is refused in one line, before an image is read."""

from pathlib import Path
from typing import Any

import pytest
from hydra.errors import InstantiationException
from PIL import Image

from tests.small import composed
from unlabeled.commands.build.run import build_run
from unlabeled.data import module
from unlabeled.errors import UserError

SMALL = ("backbone=resnet_thin", "data=digits", "batch_size=64", "trainer.accelerator=cpu", "probe=none")
MULTI_CROP = ("objective=swav", "views=swav_small")
PAWS = ("objective=paws", "views=paws_small", "objective.support.images_per_class=2")


@pytest.fixture(autouse=True)
def no_image_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*arguments: Any) -> None:
        raise AssertionError("an image was read")

    monkeypatch.setattr(module, "decode_all", read)


def refusal(*overrides: str) -> str:
    config = composed(*SMALL, *overrides)
    with pytest.raises((UserError, InstantiationException)) as caught:
        build_run(config, {})
    error = caught.value.__cause__ or caught.value  # Hydra puts its own around what a constructor raises
    assert isinstance(error, UserError)
    return str(error)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("objective=mae", "views=mae_small"),
            "objective=mae needs a ViT, which ResNet is not: give backbone=vit_tiny",
        ),
        (
            ("objective=mae", "backbone=vit_tiny_small"),
            "views: these make 2 of an image, the objective takes exactly 1",
        ),
        (("objective=simclr", "views=swav_small"), "views: these make 4 of an image, the objective takes exactly 2"),
        (("objective=swav", "views=mae_small"), "views: these make 1 of an image, the objective takes at least 2"),
        (
            ("objective=moco_v2", "objective.queue_size=65536"),
            "objective.queue_size=65536: there are 1347 training images",
        ),
        (
            ("objective=swav", "views=swav_small", "objective.queue_length=3840"),
            "objective.queue_length=3840 is longer than an epoch of 1344 images",
        ),
        (
            ("objective=moco_v2", "objective.queue_size=128", "batch_size=100"),
            "batch_size=100: must be a multiple of objective.bn_splits=8",
        ),
        (
            ("optimizer=adamw", "trainer.precision=16-mixed", "trainer.gradient_clip_val=1.0"),
            "trainer.gradient_clip_val: with 16-mixed a fused optimizer",
        ),
        (("images_per_class=4",), "images_per_class=4: batches by class need a method with labels, and SimCLR"),
        (("objective=triplet", "images_per_class=4"), "images_per_class=4: a batch of 64 has 16 classes, and 10 have"),
        (("objective=relicv2", "batch_size=10"), "objective.negatives=10: a batch_size of 10 has 9 other images"),
        (
            (*MULTI_CROP, "backbone=torchvision", "backbone.model=vit_b_32"),
            "backbone: TorchvisionBackbone is built for images of 224 pixels, the views have [32, 32, 16, 16]: give"
            " backbone.image_size=32",
        ),
        (
            (*MULTI_CROP, "backbone=torchvision", "backbone.model=vit_b_32", "backbone.image_size=32"),
            "views.size=16: TorchvisionBackbone takes images of 32 pixels alone: give backbone.image_size=16",
        ),
        (
            ("backbone=vit_tiny_small", "backbone.image_size=32", "views.size=48"),
            "backbone: ViT is built for images of 32 pixels, the views have [48, 48]: give backbone.image_size=48",
        ),
        (
            (*MULTI_CROP, "backbone=vit_tiny_small", "backbone.patch_size=32"),
            "views.size=16: ViT cuts images into patches of 32 pixels: give 32",
        ),
        (("batch_size=1400",), "batch_size=1400: it must lie between 1 and the 1347 training images"),
        (
            (*PAWS, "objective.support.classes_per_batch=11"),
            "objective.support.classes_per_batch=11: 10 classes have labelled images",
        ),
        (
            (*PAWS, "objective.support.classes_per_batch=10", "objective.support.per_class=4"),
            "objective.support: give one of labels_file, fraction and per_class",
        ),
    ],
)
def test_parts_that_cannot_work_together_are_refused_by_the_key(overrides: tuple[str, ...], message: str) -> None:
    assert refusal(*overrides).startswith(message)


def test_paws_without_labels_is_refused(tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    line = refusal(*PAWS, "data=folder", f"data.path={tmp_path}", "data.labels=none", "batch_size=2")
    assert line == "objective.support: the training images have no labels; give data=… that has some"

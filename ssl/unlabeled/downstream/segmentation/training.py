"""Trains a segmenter, linear or fine-tuned, and measures it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from unlabeled.core.seeding import derive_seed
from unlabeled.downstream.segmentation.confusion import Confusion
from unlabeled.downstream.segmentation.crops import Pair, random_crop, resized, shorter_side, slide
from unlabeled.downstream.segmentation.label_maps import IGNORED, LabelledImages
from unlabeled.errors import UserError
from unlabeled.evaluation.recipes.loop import autocast


@dataclass(frozen=True)
class SegmentationRecipe:
    """Settings of the training; those of DINOv3's linear head on ADE20K are the yaml's.

    Args:
        steps: of the optimizer.
        batch_size: crops of a step.
        lr: peak rate of AdamW.
        weight_decay: of all parameters of the head.
        warmup_steps: linear rise from a millionth of ``lr``; then half a cosine to 0.
        scale: factors of the size to which an image is resized before it is cropped.
        size: of a crop and of a test window, pixels.
        stride: between test windows.
        seed: of the crops and the order.
        precision: of the forward passes in training.
    """

    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup_steps: int
    scale: tuple[float, float]
    size: int
    stride: int
    seed: int
    precision: str = "32-true"

    def rate(self, step: int) -> float:
        """Returns the rate of a step, from 0."""
        if step < self.warmup_steps:
            return self.lr * (1e-6 + (1 - 1e-6) * step / self.warmup_steps)
        share = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.lr * 0.5 * (1 + math.cos(math.pi * share))


Normalise = Callable[[Tensor], Tensor]  # uint8 [3, h, w] → float [3, h, w]


@dataclass(frozen=True)
class Learner:
    """What is trained, and how."""

    network: nn.Module  # images [B, 3, h, w] → logits [B, classes, h, w]
    optimizer: Optimizer  # its groups may have an ``lr_scale``
    rate: Callable[[int], float]  # of a step, from 0
    steps: int


def train_segmenter(
    learner: Learner,
    images: LabelledImages,
    normalise: Normalise,
    recipe: SegmentationRecipe,
    device: torch.device,
    log: Callable[[int, Tensor], None],
) -> None:
    """Trains a network in place; the crops of a step are a function of the seed and its number.

    Args:
        learner: its network is on ``device``.
        images: the training split.
        normalise: of one image.
        recipe: the settings of the crops.
        device: where.
        log: takes a step, from 1, and its loss, which stays on the device.
    """
    learner.network.train()
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "16-mixed")
    for step in range(learner.steps):
        inputs, labels = (each.to(device) for each in crops_of(images, normalise, recipe, step))
        with autocast(device, recipe.precision):
            logits = learner.network(inputs)
        loss = pixel_loss(logits, labels)
        for group in learner.optimizer.param_groups:
            group["lr"] = learner.rate(step) * group.get("lr_scale", 1.0)
        learner.optimizer.zero_grad()
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(learner.optimizer)
        scaler.update()
        log(step + 1, loss.detach())
        if (step + 1) % max(1, learner.steps // 10) == 0 or step + 1 == learner.steps:
            _check_finite(loss.detach(), step + 1)
    learner.network.eval()


def _check_finite(loss: Tensor, step: int) -> None:
    """Raises UserError where a training has diverged, so that its predictions are not reported as a number."""
    if not loss.isfinite():
        raise UserError(
            f"lr: the training diverged, its loss is {float(loss)} in step {step:,}: give a smaller lr, or finetune_lr"
            " where the whole network is trained"
        )


def crops_of(
    images: LabelledImages, normalise: Normalise, recipe: SegmentationRecipe, step: int
) -> tuple[Tensor, Tensor]:
    """Returns inputs [B, 3, size, size] and labels [B, size, size] of a step."""
    generator = torch.Generator().manual_seed(derive_seed(recipe.seed, step))
    rows = torch.randint(len(images), (recipe.batch_size,), generator=generator).tolist()
    crops = [random_crop(_normalised(images, row, normalise), recipe.size, recipe.scale, generator) for row in rows]
    inputs, labels = zip(*crops, strict=True)
    return torch.stack(inputs), torch.stack(labels)


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean cross entropy over all pixels with a class, 0 where there is none."""
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def _normalised(images: LabelledImages, row: int, normalise: Normalise) -> Pair:
    image, labels = images.pair(row)
    return normalise(image), labels


@torch.no_grad()
def predict(
    logits: Callable[[Tensor], Tensor], image: Tensor, classes: int, size: int, stride: int, height: int, width: int
) -> Tensor:
    """Returns class numbers int64 [height, width] of a normalised image [3, h, w], by sliding windows."""
    probabilities = slide(logits, shorter_side(image, size), classes, size, stride)
    return resized(probabilities, height, width).argmax(dim=0)


def measure(
    logits: Callable[[Tensor], Tensor],
    images: LabelledImages,
    normalise: Normalise,
    classes: int,
    recipe: SegmentationRecipe,
    device: torch.device,
    shown: int = 0,
) -> tuple[Confusion, list[Tensor]]:
    """Returns the confusion matrix of all test pixels, at the size of the label maps, and the first predictions.

    These are class numbers int64 [h, w] of the first ``shown`` images.
    """
    found, kept = Confusion(classes), []
    for row in range(len(images)):
        image, labels = images.pair(row)
        predicted = predict(logits, normalise(image).to(device), classes, recipe.size, recipe.stride, *labels.shape)
        found.add(predicted.cpu(), labels)
        kept += [predicted.cpu()] if row < shown else []
    return found, kept

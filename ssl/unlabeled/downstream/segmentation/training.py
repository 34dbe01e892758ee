"""Trains a linear segmenter, and measures it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from unlabeled.core.seeding import derive_seed
from unlabeled.downstream.segmentation.confusion import Confusion
from unlabeled.downstream.segmentation.crops import Pair, random_crop, resized, shorter_side, slide
from unlabeled.downstream.segmentation.label_maps import IGNORED, LabelledImages
from unlabeled.downstream.segmentation.linear_segmenter import LinearSegmenter


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

    def rate(self, step: int) -> float:
        """Returns the rate of a step, from 0."""
        if step < self.warmup_steps:
            return self.lr * (1e-6 + (1 - 1e-6) * step / self.warmup_steps)
        share = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.lr * 0.5 * (1 + math.cos(math.pi * share))


Normalise = Callable[[Tensor], Tensor]  # uint8 [3, h, w] → float [3, h, w]


def train_segmenter(
    network: LinearSegmenter,
    images: LabelledImages,
    normalise: Normalise,
    recipe: SegmentationRecipe,
    device: torch.device,
    log: Callable[[int, Tensor], None],
) -> None:
    """Trains the head in place; the crops of a step are a function of the seed and its number.

    Args:
        network: on ``device``.
        images: the training split.
        normalise: of one image.
        recipe: the settings.
        device: where.
        log: takes a step, from 1, and its loss, which stays on the device.
    """
    head = [*network.norm.parameters(), *network.classifier.parameters()]
    optimizer = torch.optim.AdamW(head, lr=recipe.lr, weight_decay=recipe.weight_decay)
    network.train()
    for step in range(recipe.steps):
        generator = torch.Generator().manual_seed(derive_seed(recipe.seed, step))
        rows = torch.randint(len(images), (recipe.batch_size,), generator=generator).tolist()
        crops = [random_crop(_normalised(images, row, normalise), recipe.size, recipe.scale, generator) for row in rows]
        inputs, labels = (torch.stack(each).to(device) for each in zip(*crops, strict=True))
        loss = pixel_loss(network(inputs), labels)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        log(step + 1, loss.detach())
    network.eval()


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
) -> Confusion:
    """Returns the confusion matrix of all test pixels, at the size of the label maps."""
    found = Confusion(classes)
    for row in range(len(images)):
        image, labels = images.pair(row)
        predicted = predict(logits, normalise(image).to(device), classes, recipe.size, recipe.stride, *labels.shape)
        found.add(predicted.cpu(), labels)
    return found

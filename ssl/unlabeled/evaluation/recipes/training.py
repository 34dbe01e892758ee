"""Training settings of a recipe: optimizer, learning rate of each step, and the images of a step."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unlabeled.core.ranges import Count, Epochs, Milestones, NotNegative, Positive, Seed, SomeShare, WeightDecay
from unlabeled.core.seeding import derive_seed
from unlabeled.errors import UserError
from unlabeled.optimizers.schedules import warmup_cosine


@dataclass(frozen=True)
class Training:
    """Training settings in a recipe's yaml. Learning rates are given for 256 images a step, and scaled.

    Args:
        optimizer: takes parameter groups with their own ``weight_decay``, and ``lr``; a ``_partial_`` in the yaml.
        epochs: passes over the training images.
        batch_size: images of a step.
        images_per_pass: how many go through the network at once; divides ``batch_size``. For a frozen network it
            changes only the memory; a network in training uses the BatchNorm statistics of one pass, like one GPU.
        drop_last: whether images that do not fill the last batch of an epoch are left out of it.
        rate_changes: after each ``step``, or after each ``epoch`` only.
        warmup_epochs: linear rise from 0.
        milestones: epochs after which the rate is multiplied by ``gamma``; None: the rate follows half a cosine.
        gamma: factor at each milestone.
        final_learning_rate: end of the cosine, for any batch size.
        weight_decay: of every parameter that is decayed.
        final_weight_decay: value at the end of half a cosine; None: constant.
        decay_bias_and_norm: whether parameters with ndim ≤ 1 are decayed too.
        clip_norm: largest norm of the whole gradient; None: no limit.
        seed: of the order of images, the views and the initial weights.
    """

    optimizer: Callable[..., Optimizer]
    epochs: Count
    batch_size: Count
    images_per_pass: Count
    drop_last: bool
    rate_changes: Literal["step", "epoch"]
    warmup_epochs: Epochs
    milestones: Milestones | None
    gamma: SomeShare
    final_learning_rate: NotNegative
    weight_decay: WeightDecay
    final_weight_decay: WeightDecay | None
    decay_bias_and_norm: bool
    clip_norm: Positive | None
    seed: Seed

    def check(self, key: str) -> None:
        """Raises UserError for numbers that cannot work; ``key`` begins the names in its message."""
        if self.rate_changes not in ("step", "epoch"):
            raise UserError(f"{key}.rate_changes={self.rate_changes} is neither step nor epoch")
        for name in ("epochs", "batch_size", "images_per_pass"):
            if getattr(self, name) < 1:
                raise UserError(f"{key}.{name}={getattr(self, name)}: must be at least 1")
        if self.batch_size % self.at_once:
            raise UserError(
                f"{key}.images_per_pass={self.images_per_pass} does not divide batch_size={self.batch_size}"
            )
        if self.warmup_epochs >= self.epochs:
            raise UserError(f"{key}.warmup_epochs={self.warmup_epochs:g}: must be less than epochs={self.epochs}")

    def check_images(self, key: str, images: int) -> None:
        """Raises UserError where a batch has more images than there are to train on."""
        if self.batch_size > images:
            raise UserError(
                f"{key}.batch_size={self.batch_size} but there are {images} images to train on: give less, the "
                "learning rate follows"
            )

    @property
    def at_once(self) -> int:
        """Returns the number of images of one pass through the network."""
        return min(self.images_per_pass, self.batch_size)

    def batch_sizes(self, images: int) -> list[int]:
        """Returns the images of each step of an epoch, without a last single image: BatchNorm cannot train on it."""
        full, rest = divmod(images, self.batch_size)
        return [self.batch_size] * full + ([rest] if rest > 1 and not self.drop_last else [])

    def order(self, images: int, epoch: int) -> Tensor:
        """Returns rows int64 [images] in the order of one epoch, a function of the seed and its number."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
        return torch.randperm(images, generator=generator)

    def rate(self, learning_rate: float, step: int, steps_per_epoch: int) -> float:
        """Returns the learning rate of one step; ``learning_rate`` is the highest, for 256 images a step."""
        peak, epoch = learning_rate * self.batch_size / 256, step / steps_per_epoch
        if self.rate_changes == "epoch":
            epoch = math.floor(epoch)
        if self.milestones is not None and epoch >= self.warmup_epochs:
            return peak * self.gamma ** sum(epoch >= milestone for milestone in self.milestones)
        final = self.final_learning_rate if epoch >= self.warmup_epochs else 0.0
        return final + (peak - final) * warmup_cosine(epoch, self.warmup_epochs, self.epochs)

    def decay(self, step: int, steps_per_epoch: int) -> float:
        """Returns the weight decay of one step."""
        if self.final_weight_decay is None:
            return self.weight_decay
        share = warmup_cosine(step, 0, self.epochs * steps_per_epoch)
        return self.final_weight_decay + (self.weight_decay - self.final_weight_decay) * share

    def prepare(self, optimizer: Optimizer, learning_rate: float, step: int, steps_per_epoch: int) -> None:
        """Sets the rate and the decay of one step; a group may have a factor ``lr_scale`` on the rate."""
        rate, decay = self.rate(learning_rate, step, steps_per_epoch), self.decay(step, steps_per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
            if group["weight_decay"] > 0:
                group["weight_decay"] = decay

    def clip(self, parameters: Iterable[Tensor]) -> None:
        """Clips the norm of the whole gradient."""
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)

    def summary(self) -> dict[str, Any]:
        """Returns the settings in plain values, for a report."""
        shown = ("epochs", "batch_size", "warmup_epochs", "weight_decay", "seed")
        name = getattr(getattr(self.optimizer, "func", self.optimizer), "__name__", "")  # of what a _partial_ calls
        return {"optimizer": name} | {each: getattr(self, each) for each in shown}

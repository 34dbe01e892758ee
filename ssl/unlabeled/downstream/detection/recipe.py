"""How a detector is made and trained, as a yaml of ``conf/detection`` gives it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from unlabeled.core.ranges import (
    Channels,
    Count,
    Increasing,
    LearningRate,
    NoneOrMore,
    PartialShare,
    Pixels,
    Positive,
    SomeOf,
    SomeShare,
    Span,
    WeightDecay,
)
from unlabeled.downstream.detection.annotated.jitter import Jitter
from unlabeled.errors import UserError
from unlabeled.optimizers.layer_decay import by_layer

Steps = Annotated[list[Count], MinLen(1), Increasing()]


@dataclass(frozen=True)
class DetectionRecipe:
    """Settings of a detector and of its training.

    Args:
        neck: how the backbone's maps become the detector's; ``auto``: vitdet for a ViT, fpn for others.
        masks: whether there is a mask head; None: where every object of the training images has a mask.
        batchnorm: whether the backbone's BatchNorms are trained or frozen.
        head_norm: of the heads and the pyramid; None: as the neck's paper has it.
        width: channels of the pyramid's maps and of the heads; a quarter of the box head's linear layers. None: 256.
        proposals: of an image in training, before and after suppression; None: 2000.
        regions: of them that the box head is trained with; None: 512.
        anchor: side of a level's anchors in strides of the level; None: 8.
        steps: optimizer steps.
        batch_size: images of a step.
        images_per_pass: how many of them are in the network at once; None: all. Trained BatchNorms see one pass.
        optimizer: takes parameter groups with their own ``weight_decay``, and ``lr``; a ``_partial_`` in the yaml.
        lr: highest learning rate.
        weight_decay: of all parameters but those of norms, and positions of a ViT.
        layer_decay: factor on the rate from block to block towards the image; None: none.
        drop_path: of a ViT's last block, rising linearly from 0 in the first.
        warmup_steps: linear rise of the rate from ``warmup_factor`` times it.
        warmup_factor: where the rise starts.
        milestones: steps after which the rate is multiplied by ``gamma``.
        gamma: factor at each milestone.
        clip_norm: largest norm of the whole gradient; None: no limit.
        scale: of large-scale jitter, factors of ``size``; None: the shorter side is one of ``shorter`` instead.
        size: of the crops of large-scale jitter, pixels; with a ViT also of the padded test images.
        shorter: pixels of the shorter side of training images, one of which is drawn, where ``scale`` is None.
        longest: most pixels of the longer side, in training and test.
        test_size: pixels of the shorter side of test images.
        flip: whether half of the training images are mirrored.
        empty: whether images without objects are trained on.
    """

    neck: Literal["auto", "vitdet", "fpn", "c4"]
    masks: bool | None
    batchnorm: Literal["trained", "frozen"]
    head_norm: Literal["none", "batch", "layer"] | None
    width: Channels | None
    proposals: Count | None
    regions: Count | None
    anchor: Positive | None
    steps: Count
    batch_size: Count
    images_per_pass: Count | None
    optimizer: Callable[..., Optimizer]
    lr: LearningRate
    weight_decay: WeightDecay
    layer_decay: SomeShare | None
    drop_path: PartialShare
    warmup_steps: NoneOrMore
    warmup_factor: SomeShare
    milestones: Steps
    gamma: SomeShare
    clip_norm: Positive | None
    scale: Span | None
    size: Pixels
    shorter: SomeOf[Pixels]
    longest: Pixels
    test_size: Pixels
    flip: bool
    empty: bool

    def check(self) -> None:
        """Raises UserError for numbers that cannot work together."""
        beyond: dict[str, Any] = {"warmup_steps": self.warmup_steps} if self.warmup_steps >= self.steps else {}
        if self.milestones[-1] > self.steps:  # at the end: the rate never falls
            beyond["milestones"] = f"[{','.join(map(str, self.milestones))}]"
        if beyond:
            named = " and ".join(f"detection.{key}={value}" for key, value in beyond.items())
            fitting = {"warmup_steps": self.steps // 10, "milestones": f"[{self.steps * 4 // 5}]"}
            raise UserError(
                f"{named}: must be less than detection.steps={self.steps}; give for example "
                + " ".join(f"detection.{key}={fitting[key]}" for key in beyond)
            )

    @property
    def at_once(self) -> int:
        """Returns the number of images of one pass."""
        return min(self.images_per_pass or self.batch_size, self.batch_size)

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step, from 0."""
        rate = self.lr * self.gamma ** sum(step >= milestone for milestone in self.milestones)
        if step >= self.warmup_steps:
            return rate
        share = step / self.warmup_steps
        return rate * (self.warmup_factor * (1 - share) + share)

    def jitter(self, mean: tuple[float, ...]) -> Jitter:
        """Returns what happens to a training image, whose colours are in [0, 1] and have this mean."""
        scale = None if self.scale is None else (self.scale[0], self.scale[1])
        return Jitter(self.size, scale, self.shorter, self.longest, self.flip, mean)

    def build_optimizer(self, detector: nn.Module) -> Optimizer:
        """Returns the optimizer of everything that is trained. Raises UserError for a layer decay without a ViT."""
        groups = decay_groups(detector, self.weight_decay)
        if self.layer_decay is not None:
            if not hasattr(detector.backbone, "shards"):
                raise UserError(
                    f"detection.layer_decay={self.layer_decay:g}: is for a ViT with detection.neck=vitdet; give null"
                )
            groups = by_layer(groups, detector, self.layer_decay)
        return self.optimizer(groups, lr=self.lr)

    def set_rate(self, optimizer: Optimizer, step: int) -> None:
        """Sets the rate of a step in all groups; one may have a factor ``lr_scale``."""
        for group in optimizer.param_groups:
            group["lr"] = self.rate(step) * group.get("lr_scale", 1.0)


NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)  # torchvision's LayerNorm2d is a LayerNorm
NOT_DECAYED = ("pos_embed", "cls_token", "reg_token")


def decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Returns the trained parameters in a decayed and a spared group: norms and positions (detectron2's defaults)."""
    norms = {id(each) for module in network.modules() if isinstance(module, NORMS) for each in module.parameters()}
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            spared = id(parameter) in norms or name.rpartition(".")[2] in NOT_DECAYED
            groups[not spared].append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decayed else 0.0}
        for decayed, parameters in groups.items()
        if parameters
    ]

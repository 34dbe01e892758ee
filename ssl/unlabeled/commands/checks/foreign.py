"""What the yamls hand to classes of other libraries: their keys, with ranges. No torch in here."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from annotated_types import Interval, MinLen

from unlabeled.core.ranges import Distinct, LearningRate, PartialShare, Positive, Processes, WeightDecay

Devices = Annotated[list[Processes], MinLen(1), Distinct()]  # their numbers


def trainer(
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto",
    devices: Literal["auto"] | Annotated[int, Interval(ge=1, le=1024)] | Devices = "auto",
    num_nodes: Annotated[int, Interval(ge=1, le=65536)] = 1,
    strategy: Literal["auto", "ddp", "fsdp"] = "auto",
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto",
    sync_batchnorm: bool = True,
    gradient_clip_val: Positive | None = None,
    gradient_clip_algorithm: Literal["norm", "value"] | None = None,
    deterministic: bool | Literal["warn"] | None = None,
    benchmark: bool | None = None,
    detect_anomaly: bool = False,
) -> None:
    """Lightning's ``Trainer``, without what a run has keys of its own for."""


def adamw(
    lr: LearningRate,
    betas: tuple[PartialShare, PartialShare],
    eps: Annotated[float, Interval(gt=0, le=1)],
    weight_decay: WeightDecay,
    amsgrad: bool,
    maximize: bool,
    foreach: bool | None,
    capturable: bool,
    differentiable: bool,
    fused: bool | None,
) -> None:
    """``torch.optim.AdamW`` and ``Adam``."""


def sgd(
    lr: LearningRate,
    momentum: PartialShare,
    dampening: Annotated[float, Interval(ge=0, le=1)],
    weight_decay: WeightDecay,
    nesterov: bool,
    maximize: bool,
    foreach: bool | None,
    differentiable: bool,
    fused: bool | None,
) -> None:
    """``torch.optim.SGD``."""


FOREIGN: dict[str, Callable[..., Any]] = {
    "pytorch_lightning.Trainer": trainer,
    "torch.optim.AdamW": adamw,
    "torch.optim.Adam": adamw,
    "torch.optim.SGD": sgd,
}

"""solo-learn 1.0.2: its SimCLR, data pipeline and k-NN in a Lightning that is five years younger than it.

What stands between them is mended here and nothing else: a scheduler of lightning-bolts that is imported and not used,
a hook that Lightning 2 refuses to see, and an argument that torchmetrics no longer takes.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.functional import normalize
from torchmetrics import Metric

from benchmarks.peer_drivers import harness
from benchmarks.peer_drivers.harness import Job

bolts = [ModuleType(name) for name in ("pl_bolts", "pl_bolts.optimizers", "pl_bolts.optimizers.lr_scheduler")]
bolts[-1].LinearWarmupCosineAnnealingLR = None  # type: ignore[attr-defined]
sys.modules.update({module.__name__: module for module in bolts})

from solo.methods import LinearModel, SimCLR  # noqa: E402
from solo.methods.base import BaseMethod  # noqa: E402
from solo.utils.knn import WeightedKNNClassifier  # noqa: E402
from solo.utils.pretrain_dataloader import (  # noqa: E402
    dataset_with_index,
    prepare_dataloader,
    prepare_datasets,
    prepare_n_crop_transform,
    prepare_transform,
)

del BaseMethod.validation_epoch_end, LinearModel.validation_epoch_end
_init = Metric.__init__
Metric.__init__ = lambda self, compute_on_step=None, **more: _init(self, **more)  # type: ignore[method-assign]

# of its own command line, as bash_files/pretrain/cifar/simclr.sh of its repository gives them
BASE: dict[str, Any] = {
    "max_epochs": 100,
    "batch_size": harness.BATCH_SIZE,
    "optimizer": "sgd",
    "lars": False,
    "lr": harness.LR,
    "weight_decay": 0.0,
    "exclude_bias_n_norm": False,
    "extra_optimizer_args": {"momentum": harness.MOMENTUM},
    "scheduler": "none",
}
SIMCLR: dict[str, Any] = {
    "encoder": "resnet18",
    "num_classes": 10,
    "backbone_args": {"cifar": True},
    "classifier_lr": 0.1,
    "accumulate_grad_batches": 1,
    "min_lr": 0.0,
    "warmup_start_lr": 0.0,
    "warmup_epochs": 0,
    "num_large_crops": 2,
    "num_small_crops": 0,
    "proj_output_dim": harness.PROJECTION,
    "proj_hidden_dim": 512,
    "temperature": harness.TEMPERATURE,
}
VIEWS: dict[str, Any] = {
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "gaussian_prob": 0.0,
    "crop_size": 32,
}


def pretrain(job: Job) -> None:
    model = SimCLR(**BASE, **SIMCLR)
    # Its own backbone pads the first convolution by 2, its projector has no BatchNorm: all train the same network.
    model.encoder = harness.backbone(job.part)
    width = model.encoder.num_features
    model.projector, model.classifier = harness.projector(width), nn.Linear(width, 10)
    kind = "custom" if job.part == "first_step" else "cifar10"
    transform = prepare_n_crop_transform([prepare_transform(kind, **VIEWS)], [2])
    if job.part == "first_step":
        dataset = prepare_datasets(kind, transform, Path(job.data), "folder")
    else:
        dataset = harness.cifar10(job.data, transform)
        dataset.__class__ = dataset_with_index(type(dataset))
    harness.fit(pl, job, model, prepare_dataloader(dataset, harness.BATCH_SIZE, job.workers))


def knn(job: Job) -> dict[str, float]:
    """Its classifier tells accuracies alone; asked about the predictions of another, it tells how many it shares."""
    bank, labels, queries, truth = harness.features(job)

    def accuracy(targets: torch.Tensor) -> float:
        metric = WeightedKNNClassifier(k=20, T=0.1)
        chosen = queries[: len(targets)]
        metric.update(normalize(bank), labels, normalize(chosen), targets)
        return float(metric.compute()[0])

    accuracy(torch.arange(job.classes))
    seconds, percent = harness.timed(lambda: accuracy(truth))
    found = {"knn": seconds, "correct": percent * len(truth) / 100}
    other = Path(job.out).with_name(f"knn_{job.classes}_unlabeled.pt")
    if other.exists() and len((predicted := torch.load(other, weights_only=True)).unique()) == job.classes:
        found["same"] = accuracy(predicted) * len(truth) / 100
    return found


class Frozen(nn.Identity):
    num_features = 512


def linear(job: Job) -> dict[str, float]:
    bank, labels, _, _ = harness.features(job)
    module = LinearModel(Frozen(), job.classes, **(BASE | {"lr": harness.HEAD_RATE}))
    return harness.fit_head(pl, job, module, torch.utils.data.TensorDataset(bank, labels))


if __name__ == "__main__":
    harness.run({"pretrain": pretrain, "knn": knn, "linear": linear})

"""stable-pretraining: the SimCLR of its README, with torchvision's views image by image or kornia's in batches."""

from typing import Any

import lightning as pl
import stable_pretraining as spt
import torch
from stable_pretraining import forward
from stable_pretraining.data import transforms
from torch import nn

from benchmarks.peer_drivers import harness
from benchmarks.peer_drivers.harness import Job

BICUBIC = transforms.InterpolationMode.BICUBIC
OPTIMIZER = {"type": "SGD", "lr": harness.LR, "momentum": harness.MOMENTUM}


def view() -> Any:
    return transforms.Compose(
        transforms.RGB(),
        transforms.RandomResizedCrop((32, 32), scale=(0.08, 1.0), interpolation=BICUBIC),
        transforms.RandomHorizontalFlip(p=0.5),
        transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
        transforms.RandomGrayscale(p=0.2),
        transforms.ToImage(),
    )


def in_batches() -> Any:
    """Its crop has no other interpolation than kornia's bilinear one."""
    from stable_pretraining.data import gpu_transforms as gt

    chain = [
        gt.GPURandomResizedCrop(size=32, scale=(0.08, 1.0)),
        gt.GPURandomHorizontalFlip(p=0.5),
        gt.GPUColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        gt.GPURandomGrayscale(p=0.2),
    ]
    return gt.StackedMultiView(gt.GPUCompose(chain), n_views=2)


def dataset(job: Job) -> Any:
    from torchvision.datasets import ImageFolder

    images = ImageFolder(f"{job.data}/folder") if job.part == "first_step" else harness.cifar10(job.data)
    names = ["image", "label"]
    if job.views == "kornia":
        plain = transforms.ToImage(rgb=True, scale=True)
        return spt.data.FromTorchDataset(images, names=names, transform=plain, gpu_transform=in_batches())
    return spt.data.FromTorchDataset(images, names=names, transform=transforms.MultiViewTransform([view(), view()]))


def pretrain(job: Job) -> None:
    spt.make_it_fast(verbose=False)
    backbone = harness.backbone(job.part)
    module = spt.Module(
        backbone=backbone,
        projector=harness.projector(backbone.num_features),
        forward=forward.simclr,
        simclr_loss=spt.losses.NTXEntLoss(temperature=harness.TEMPERATURE),
        optim={"optimizer": OPTIMIZER},
    )
    loader = torch.utils.data.DataLoader(
        dataset(job), batch_size=harness.BATCH_SIZE, num_workers=job.workers, drop_last=True, shuffle=True
    )
    harness.fit(pl, job, module, loader)


def linear(job: Job) -> dict[str, float]:
    bank, labels, _, _ = harness.features(job)
    module = spt.Module(
        backbone=nn.Identity(),
        classifier=nn.Linear(bank.shape[1], job.classes),
        forward=forward.supervised,
        supervised_loss=nn.CrossEntropyLoss(),
        optim={"optimizer": OPTIMIZER | {"lr": harness.HEAD_RATE}},
    )
    rows = spt.data.FromTorchDataset(torch.utils.data.TensorDataset(bank, labels), names=["image", "label"])
    return harness.fit_head(pl, job, module, rows)


if __name__ == "__main__":
    harness.run({"pretrain": pretrain, "linear": linear})

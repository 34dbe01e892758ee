"""What several processes must do for their BatchNorms to be those of one: Lightning's side of ``batchnorm.py``."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import TorchSyncBatchNorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from unlabeled.distributed import collectives
from unlabeled.distributed.batchnorm import SplitBatchNorm, SyncedBatchNorm
from unlabeled.errors import UserError


class SyncBatchNorms(TorchSyncBatchNorm):
    """What ``trainer.sync_batchnorm=true`` does with several processes: torch's layer on GPUs, ours on CPUs.

    In place; SplitBatchNorm stays. What Lightning does by itself takes away the activation inside timm's layers.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Raises UserError for a kind of BatchNorm that only torch's layer can stand for, on CPUs."""
        if torch.distributed.get_backend() != "gloo":
            from timm.layers import convert_sync_batchnorm

            synchronised: nn.Module = convert_sync_batchnorm(model)
            return synchronised
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, _BatchNorm) and not isinstance(child, SyncedBatchNorm):
                    setattr(parent, name, _synced(child))
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Leave it: such layers are BatchNorm in evaluation, and on one process."""
        return model


def _synced(norm: _BatchNorm) -> SyncedBatchNorm:
    if type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        kind = type(norm).__name__
        raise UserError(f"trainer.sync_batchnorm=true: with several CPU processes it cannot be {kind}; set it to false")
    return SyncedBatchNorm(norm)


class AverageBatchNormStats(pl.Callback):
    """After every step all processes have the same buffers, running statistics as the mean of what each has seen.

    DDP's broadcast of them in every forward, a queue of 65,536 keys (32 MiB) included, then changes nothing and is left
    out: two CPU processes of MoCo v2 with a thin ResNet took 68 ms a step without it and 96 with it.

    Averaged are layers that normalise one process's images by themselves: SplitBatchNorm, and any BatchNorm where
    trainer.sync_batchnorm=false. Running statistics are sums of those of batches, so that their mean over the processes
    is what one process with all parts has. Without it a checkpoint holds those of the first process.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            trainer.strategy.model.broadcast_buffers = False  # here: it is done once, when all are wrapped
        if trainer.world_size > 1:
            self._buffers = batchnorm_statistics(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._buffers:
            average_tensors(self._buffers)


def batchnorm_statistics(network: nn.Module) -> list[Tensor]:
    """Running means and variances of the layers that see one process's images alone, without frozen ones."""
    synced = (nn.SyncBatchNorm, SyncedBatchNorm)
    layers = [each for each in network.modules() if isinstance(each, SplitBatchNorm | _BatchNorm) and each.training]
    buffers = [(each.running_mean, each.running_var) for each in layers if not isinstance(each, synced)]
    return [buffer for pair in buffers for buffer in pair if buffer is not None]


@torch.no_grad()
def average_tensors(tensors: list[Tensor]) -> None:
    """Replace tensors by their mean over all processes, in one message."""
    mean = collectives.mean(torch.cat([each.flatten() for each in tensors]))
    for each, values in zip(tensors, torch.split(mean, [each.numel() for each in tensors]), strict=True):
        each.copy_(values.view_as(each))

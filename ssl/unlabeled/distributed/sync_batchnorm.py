"""Connects ``batchnorm.py`` to Lightning, so that BatchNorm over several processes equals that of one."""

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
    """Implements ``trainer.sync_batchnorm=true`` for several processes: torch's layer on GPUs, ours on CPUs.

    Works in place; SplitBatchNorm stays. Lightning's own conversion would drop the activation inside timm's layers.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Replaces the layers. Raises UserError on CPUs for a BatchNorm that only torch's layer can replace."""
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
        """Changes nothing: in evaluation and on one process these layers are plain BatchNorm."""
        return model


def _synced(norm: _BatchNorm) -> SyncedBatchNorm:
    if type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        kind = type(norm).__name__
        raise UserError(
            f"trainer.sync_batchnorm=true: several CPU processes cannot synchronise {kind}; set it to false"
        )
    return SyncedBatchNorm(norm)


class AverageBatchNormStats(pl.Callback):
    """After every step, averages the running statistics over all processes, so that their buffers are equal.

    DDP's broadcast of buffers in every forward, a queue of 65,536 keys (32 MiB) included, is then unnecessary and
    turned off: two CPU processes of MoCo v2 with a thin ResNet took 68 ms a step without it and 96 with it.

    The averaged layers are those that normalise one process's images by themselves: SplitBatchNorm, and any BatchNorm
    if trainer.sync_batchnorm=false. Running statistics are weighted sums of batch statistics, so their mean over the
    processes equals those of one process with all parts. Without averaging, a checkpoint would hold those of the first
    process.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            trainer.strategy.model.broadcast_buffers = False  # set here, once all modules are wrapped
        if trainer.world_size > 1:
            self._buffers = batchnorm_statistics(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._buffers:
            average_tensors(self._buffers)


def batchnorm_statistics(network: nn.Module) -> list[Tensor]:
    """Returns running means and variances of the layers that see one process's images alone; not of frozen ones."""
    synced = (nn.SyncBatchNorm, SyncedBatchNorm)
    layers = [each for each in network.modules() if isinstance(each, SplitBatchNorm | _BatchNorm) and each.training]
    buffers = [(each.running_mean, each.running_var) for each in layers if not isinstance(each, synced)]
    return [buffer for pair in buffers for buffer in pair if buffer is not None]


@torch.no_grad()
def average_tensors(tensors: list[Tensor]) -> None:
    """Replaces tensors by their mean over all processes, in one message."""
    mean = collectives.mean(torch.cat([each.flatten() for each in tensors]))
    for each, values in zip(tensors, torch.split(mean, [each.numel() for each in tensors]), strict=True):
        each.copy_(values.view_as(each))

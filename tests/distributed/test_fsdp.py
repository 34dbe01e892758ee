"""A run whose weights are cut over processes is the run that it would have been."""

import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import TorchSyncBatchNorm
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm

from tests.forked import spawn
from tests.small import composed
from unlabeled.backbones.resnet import ResNet
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.distributed.dtensor import local_shard
from unlabeled.distributed.fsdp import FullySharded, shard
from unlabeled.objective import Batch, Progress
from unlabeled.objectives.moco import MoCo, MoCoV3
from unlabeled.training.checkpointing import Interrupted

STEPS = 8
OVERRIDES = [
    "objective=seer",
    "objective.projection_hidden=[16]",
    "objective.projection_dim=8",
    "objective.prototypes=13",
    f"objective.freeze_prototypes_epochs={4 / 14}",  # of 14 steps: a checkpoint holds no momentum of theirs until then
    "backbone=regnety_8gf",
    "backbone.depth=3",
    "backbone.w_0=8",
    "backbone.w_a=8",
    "backbone.group_width=8",
    "backbone.gradient_checkpointing=true",
    "views=swav_small",
    "views.size=16",
    "data=digits",
    "optimizer=lars",
    "optimizer.warmup_epochs=0.1",
    "batch_size=96",
    "pictures.every_n_epochs=null",
    f"max_steps={STEPS}",
    "num_workers=0",
    "log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "trainer.devices=2",
]


class StopAfter(pl.Callback):
    """Sends the signal of Ctrl-C once so many steps are taken, and looks at how weights are kept."""

    def __init__(self, step: int) -> None:
        self.step, self.cut = step, 0

    def on_before_zero_grad(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self.cut = sum(isinstance(each, DTensor) for each in pl_module.parameters())
        if trainer.global_step == self.step - 1 < STEPS - 1:
            os.kill(os.getpid(), signal.SIGINT)


def train_until(step: int, strategy: str, run_dir: str) -> int:
    """Go on with a run up to ``step``; returns how many of its parameters are cut."""
    config = composed(*OVERRIDES, f"trainer.strategy={strategy}", f"run_dir={run_dir}")
    resolved = open_run(config)
    run = build_run(config, resolved)
    stop = StopAfter(step)
    run.trainer.callbacks.insert(0, stop)  # type: ignore[attr-defined]
    try:
        run.fit(resolved)
    except Interrupted:
        assert run.trainer.global_step == step < STEPS
    return stop.cut


def assert_batchnorm_is_synchronised() -> None:
    """As far as a CPU can tell, where such a layer does not run."""
    strategy = FullySharded()
    strategy._layer_sync = TorchSyncBatchNorm()
    strategy._device_mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("data_parallel",))
    network = nn.Sequential(ResNet(10, 0.125, "cifar"))
    strategy.cut(network)
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    assert len(norms) > 5
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)


def one_of_two(rank: int, port: int, folder: str) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    assert train_until(STEPS, "ddp", f"{folder}/whole") == 0
    parameters = train_until(STEPS, "fsdp", f"{folder}/cut")
    assert parameters > 40
    assert_batchnorm_is_synchronised()
    for step, strategy in ((2, "fsdp"), (5, "ddp"), (STEPS, "fsdp")):
        train_until(step, strategy, f"{folder}/moved")


def test_a_run_cut_over_two_processes_equals_one_that_is_not_and_goes_on_as_either(tmp_path: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    spawn(one_of_two, (port, str(tmp_path)), 2)
    whole, cut, moved = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("whole", "cut", "moved")
    )
    for other, tolerance in ((cut, 1e-4), (moved, 1e-4)):  # float32 sums in another order, eight steps of LARS long
        assert other["progress"] == whole["progress"]
        assert other["state_dict"].keys() == whole["state_dict"].keys()
        for name, value in whole["state_dict"].items():
            torch.testing.assert_close(other["state_dict"][name], value, rtol=tolerance, atol=tolerance, msg=name)
        ours, theirs = (each["optimizer_states"][0]["state"] for each in (other, whole))
        assert ours.keys() == theirs.keys()
        for index, slots in theirs.items():
            buffer = ours[index]["momentum_buffer"]
            torch.testing.assert_close(buffer, slots["momentum_buffer"], rtol=1e-2, atol=1e-3, msg=str(index))


def _moved(fsdp: bool, name: str) -> list[float]:
    """How far the parts of MoCo move in three steps."""
    torch.manual_seed(0)
    backbone = ResNet(10, 0.125, "cifar")
    objective: Any = (
        MoCo(backbone, 2, 8, 0.2, 0.5, 32, False, 1)
        if name == "MoCo"
        else MoCoV3(backbone, 2, 16, 8, False, 0.2, 0.5, False)
    )
    if fsdp:
        shard(objective, init_device_mesh("cpu", (1,)))
    parts = [objective.momentum_projector[0].weight, objective.momentum_backbone.conv1.weight]
    before = [local_shard(part).detach().clone() for part in parts]
    optimizer = torch.optim.SGD(objective.parameters(), 0.5)
    for step in range(3):
        torch.manual_seed(step)
        views, ids, progress = tuple(torch.randn(2, 8, 3, 16, 16)), torch.arange(8), Progress(step, 10, 5, 0)
        objective(Batch(views[0], ids, ids, views), progress).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(progress)
    return [float((local_shard(part) - was).abs().max()) for part, was in zip(parts, before, strict=True)]


def _moco(rank: int, port: int) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=1)
    for name in ("MoCo", "MoCoV3"):
        plain, cut = _moved(False, name), _moved(True, name)
        assert min(plain) > 0
        assert cut == pytest.approx(plain, rel=1e-5)
    torch.distributed.destroy_process_group()


def test_the_momentum_projector_of_moco_moves_where_weights_are_cut_as_where_they_are_not() -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    spawn(_moco, (port,), 1)

"""Shards weights, gradients and optimizer state over all processes (FSDP2), for backbones too large for one device."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from unlabeled.objective import Backbone


class FullySharded(ModelParallelStrategy):
    """Data parallel training that shards every parameter over all processes along its first dimension.

    FSDP2 (``torch.distributed.fsdp.fully_shard``) keeps each parameter a separate tensor, as LARS and normalised
    prototypes need; the older FSDP joins them into flat tensors. A checkpoint is one file of whole tensors, the same as
    without sharding: a run can resume with or without it. Each process builds the whole network on the CPU before it is
    sharded, so a machine needs memory for one copy per GPU.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Uses plain data parallelism: Lightning's ``auto`` would mean tensor parallelism within a machine."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def cut(self, module: nn.Module) -> None:
        """Shards ``module`` over the processes, in place; must be called in ``configure_model``."""
        if self._layer_sync is not None:  # Trainer(sync_batchnorm=true); Lightning ignores it with this strategy
            self._layer_sync.apply(module)
        shard(module, self.device_mesh["data_parallel"])

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Returns whole tensors on the first process, numbered as the optimizer does; Lightning changes the numbers."""
        state = optimizer.state_dict()
        keep = self.global_rank == 0  # a collective, but only one process needs the result in memory
        whole = {
            i: {name: full_tensor(value, keep) for name, value in slots.items()} for i, slots in state["state"].items()
        }
        return {**state, "state": whole} if keep else {}

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads the file on every process, which then takes its own shards."""
        path = Path(self.broadcast(checkpoint_path))
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        assert self.model is not None
        set_model_state_dict(self.model, checkpoint["state_dict"], options=StateDictOptions(full_state_dict=True))
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(_cut(state, optimizer))
        return checkpoint


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shards every backbone inside ``module`` block by block, then the rest of it, in place."""
    module.to(memory_format=torch.contiguous_format)  # FSDP2 refuses weights that are channels last
    for backbone in [each for each in module.modules() if isinstance(each, Backbone)]:
        for block in backbone.shards():
            fully_shard(block, mesh=mesh)
        fully_shard(backbone, mesh=mesh)  # probes call the backbone directly
        for name in ("tokens", "outputs_and_tokens"):  # methods call a ViT by them; FSDP hooks only forward
            if hasattr(backbone, name):
                register_fsdp_forward_method(backbone, name)
    for head in [head for each in module.modules() for head in _heads_updated_in_forward(each)]:
        fully_shard(head, mesh=mesh)
    fully_shard(module, mesh=mesh)


def _heads_updated_in_forward(module: nn.Module) -> Iterator[nn.Module]:
    """Yields MoCo's heads: it moves the teacher in its forward, where weights of FSDP's root are a passing copy."""
    for name in ("projector", "momentum_projector"):
        if hasattr(module, "momentum_projector") and isinstance(head := getattr(module, name), nn.Module):
            yield head


def full_tensor(value: Any, keep: bool) -> Any:
    """Returns the whole value on the CPU, or None if not ``keep``.

    Collective if ``value`` is sharded: all must call it.
    """
    if isinstance(value, DTensor):
        value = value.full_tensor()
    if not keep:
        return None
    return value.cpu() if isinstance(value, Tensor) else value


def _cut(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Returns the optimizer state with each tensor sharded as its parameter is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def cut(value: Any, parameter: DTensor) -> Any:
        if not isinstance(value, Tensor) or value.shape != parameter.shape:
            return value
        piece = value.to(parameter.device)
        return distribute_tensor(piece, parameter.device_mesh, parameter.placements, src_data_rank=None)

    pieces = {
        i: {name: cut(value, parameters[i]) for name, value in slots.items()} for i, slots in state["state"].items()
    }
    return {**state, "state": pieces}

"""Checks before data is read that all processes are there, run the same configuration, and can communicate."""

import atexit
import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher
from torch.distributed.distributed_c10d import PrefixStore, Store

from unlabeled.distributed.rendezvous import RendezvousInfo, is_reachable, open_store, wait_and_compare
from unlabeled.distributed.watchdog import Watchdog, end_children_at_exit
from unlabeled.errors import UserError

ELEMENTS = 3_000_000  # 12 MB as float32: the gradient of a small network
NETWORK = "try GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME with the right network interface, and NCCL_DEBUG=INFO"
MAY_DIFFER = ("num_workers",)  # keys that processes need not agree on


def cluster_environment() -> list[ClusterEnvironment]:
    """Returns the Slurm environment if srun started this process; empty where Lightning detects it itself.

    Lightning's own Slurm support would requeue the job from a checkpoint that is not ours.

    Raises:
        UserError: a setup that Lightning refuses too; the advice is the same.
    """
    if dist.is_torchelastic_launched() or not SLURMEnvironment.detect():
        return []
    processes = int(os.environ["SLURM_NTASKS"])
    if processes > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise UserError(f"srun started {processes} processes by --ntasks: give --nodes and --ntasks-per-node instead")
    return [SLURMEnvironment(auto_requeue=False)]


def check_process_count(trainer: pl.Trainer) -> None:
    """Raises UserError if torchrun or srun has started another number of processes than the trainer expects."""
    started = _started_outside()
    if started is None:
        return
    by, processes, machines = started
    if processes != trainer.world_size or (machines is not None and machines != trainer.num_nodes):
        machines = machines or trainer.num_nodes
        remedy = f"trainer.devices={processes // machines}"
        remedy += f" trainer.num_nodes={machines}" if machines != trainer.num_nodes else ""
        raise UserError(f"{by} started {processes} processes, the trainer has {trainer.world_size}: give {remedy}")


def _started_outside() -> tuple[str, int, int | None] | None:
    """Returns the launcher, the number of processes and, if known, of machines."""
    environment = os.environ
    if dist.is_torchelastic_launched():
        processes = int(environment["WORLD_SIZE"])
        return "torchrun", processes, processes // int(environment["LOCAL_WORLD_SIZE"])
    if SLURMEnvironment.detect():
        machines = environment.get("SLURM_NNODES")
        return "srun", int(environment["SLURM_NTASKS"]), int(machines) if machines else None
    return None


def run_facts(config: dict[str, Any], checkpoint: Path, images: int) -> dict[str, Any]:
    """Returns the facts that must be equal on all processes.

    Args:
        config: resolved, plain values.
        checkpoint: from which the run continues, if it exists.
        images: in the training split, as this process sees it.
    """
    facts = {
        "config": {key: value for key, value in config.items() if key not in MAY_DIFFER},
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pytorch_lightning": version("pytorch-lightning"),
        "code": code_hash(Path(__file__).parents[1]),
        "bytes of checkpoints/last": checkpoint.stat().st_size if checkpoint.exists() else None,
        "training images": images,
    }
    return dict(json.loads(json.dumps(facts)))  # as JSON, like the facts that are received


def code_hash(package: Path) -> str:
    """Returns a hash of all source files of a package, of their paths and contents."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def connect(
    trainer: pl.Trainer, facts: Callable[[], dict[str, Any]], patience: float, timeout: float, checkpoint: Path
) -> None:
    """Starts the other processes if needed, waits for them, compares and connects them. Does nothing for one process.

    With ``trainer.devices`` alone, Lightning starts them by running this command again; each reaches this call by
    itself. From here on, one process that ends stops all, see :class:`unlabeled.distributed.watchdog.Watchdog`.

    Args:
        trainer: knows the number of processes.
        facts: :func:`run_facts`, which reads all source files and is called for several processes only.
        patience: seconds to wait for each process, and for the first message.
        timeout: of all communication during the run, seconds.
        checkpoint: named in the message when a process ends.

    Raises:
        UserError: see :func:`unlabeled.distributed.rendezvous.wait_and_compare`; or no message arrives.
    """
    strategy = trainer.strategy
    if trainer.world_size == 1 or dist.is_initialized() or isinstance(strategy.launcher, _MultiProcessingLauncher):
        return  # _MultiProcessingLauncher is that of notebooks
    assert isinstance(strategy, DDPStrategy | ModelParallelStrategy)
    environment = strategy.cluster_environment
    assert environment is not None
    children = _start_others(strategy.launcher, environment)
    place = RendezvousInfo(environment.main_address, environment.main_port, trainer.global_rank, trainer.world_size)
    store = open_store(place, patience)
    hosts = wait_and_compare(store, place, facts(), patience, hopeless=lambda: any(child.poll() for child in children))
    watchdog = Watchdog(
        place.rank, place.processes, children, open_store(place, patience), lambda: is_reachable(place), checkpoint
    )
    watchdog.watch()
    _open(store, place, strategy.root_device, timeout)
    watchdog.catch()
    seconds = time_all_reduce(strategy.root_device, patience)
    if place.rank == 0:
        machines = f"{len(set(hosts))} machine{'s' if len(set(hosts)) > 1 else ''}"
        size = f"{ELEMENTS * 4 / 1e6:.0f} MB"
        print(f"{place.processes} processes on {machines}, all-reduce {size} in {seconds * 1e3:.0f} ms", flush=True)


def _start_others(launcher: Any, environment: ClusterEnvironment) -> list["subprocess.Popen[bytes]"]:
    """Starts the other processes of this machine, none if they were started from outside. They end with this one."""
    if environment.creates_processes_externally or not isinstance(launcher, _SubprocessScriptLauncher):
        return []
    launcher._call_children_scripts()  # launcher.launch would kill this process silently if a child ends
    end_children_at_exit(launcher.procs)
    return launcher.procs


def _open(store: Store, place: RendezvousInfo, device: torch.device, timeout: float) -> None:
    """Opens the process group with our timeout; Lightning would do it later with its own."""
    store.set_timeout(timedelta(seconds=timeout))
    cuda = device.type == "cuda"
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=PrefixStore("processes", store),
        rank=place.rank,
        world_size=place.processes,
        timeout=timedelta(seconds=timeout),
        device_id=device if cuda else None,
    )
    if cuda:
        atexit.register(_close)


def _close() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def time_all_reduce(device: torch.device, patience: float) -> float:
    """Times the second of two sums over all processes, in seconds; both must be right.

    Raises:
        UserError: the processes found each other, but messages do not arrive.
    """
    seconds = 0.0
    for _ in range(2):
        values = torch.full((ELEMENTS,), 1.0, device=device)
        started = time.perf_counter()
        try:
            dist.all_reduce(values, async_op=True).wait(timedelta(seconds=patience))
            wrong = float(values[-1]) != dist.get_world_size()
        except RuntimeError as error:
            raise UserError(f"all processes are there, but an all-reduce fails: {error}; {NETWORK}") from None
        if wrong:
            raise UserError(f"an all-reduce of ones over {dist.get_world_size()} processes gives {float(values[-1])}")
        seconds = time.perf_counter() - started
    return seconds

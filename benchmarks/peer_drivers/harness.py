"""What the drivers share: the job, the data, the networks and the clock. It runs in the environment of any library.

A driver is ``python -m benchmarks.peer_drivers.NAME JOB`` with ``JOB`` as json; its last line is ``RESULT`` and json.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch is imported when the library does it: that is a part of the time to the first step
    from torch import Tensor, nn

PREFIX = "RESULT "
BATCH_SIZE, PROJECTION, TEMPERATURE = 256, 128, 0.1
LR, MOMENTUM = 0.06, 0.9
HEAD_RATE = 0.1  # of the linear probe


@dataclass
class Job:
    """What a driver is asked for; ``peers.py`` writes it."""

    part: str  # thin, resnet18, first_step, knn or linear
    data: str  # folder that peers.py has filled
    workers: int = 2  # of the loader
    views: str = "torchvision"  # kornia: in batches, where the library has it
    warm_up: int = 0  # steps that are not timed
    steps: int = 0
    classes: int = 10  # of the labels of the features
    device: str = "cpu"
    started: float = 0.0  # time.time() just before the command
    out: str = ""  # where predictions or a run go

    @property
    def last_step(self) -> int:
        return max(1, self.warm_up + self.steps)


def run(parts: dict[str, Callable[[Job], object]]) -> None:
    """Do the job that the command line names; ``parts`` are functions by what is asked."""
    job = Job(**json.loads(sys.argv[1]))
    found = parts[job.part if job.part in parts else "pretrain"](job)
    if found is not None:
        answer(found)


def answer(found: object) -> None:
    print(PREFIX + json.dumps(found), flush=True)


class Clock:
    """Told of the end of each training step; after the last it answers with what was measured."""

    def __init__(self, job: Job) -> None:
        self.job, self.done, self.at = job, 0, {0: time.perf_counter()}
        self.first_step = 0.0

    def tick(self, *_: object) -> None:
        self.done += 1
        if self.done not in (1, self.job.warm_up, self.job.last_step):
            return
        if self.job.device == "cuda":
            import torch

            torch.cuda.synchronize()
        self.at[self.done] = time.perf_counter()
        if self.done == 1:
            self.first_step = time.time() - self.job.started
        if self.done == self.job.last_step:
            answer({"first_step": self.first_step, "step": self.seconds_per_step(), "memory_mib": memory_mib()})

    def seconds_per_step(self) -> float | None:
        """Mean over the timed steps: with workers a median would hide the batches that were waited for."""
        if not self.job.steps:
            return None
        return (self.at[self.job.last_step] - self.at[self.job.warm_up]) / self.job.steps


def memory_mib() -> float:
    """The peak of this process, and what each of its workers holds for itself now; on a GPU, the peak there."""
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.max_memory_allocated() / 2**20
    own = _field(Path("/proc/self/status"), "VmHWM")
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    private = ("Private_Clean", "Private_Dirty")
    return (own + sum(_field(Path(f"/proc/{pid}/smaps_rollup"), name) for pid in children for name in private)) / 1024


def _field(path: Path, name: str) -> int:
    """KiB."""
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(f"{name}:"))


def backbone(part: str) -> Any:
    """This project's ResNet for small images, of which only torch is needed: the same in each library's process."""
    from unlabeled.backbones.resnet import ResNet

    depth, width = (18, 1.0) if part == "resnet18" else (10, 0.25)  # conf/backbone/resnet18 and resnet_thin
    return ResNet(depth, width, "cifar", zero_init_residual=True)


def projector(width: int) -> nn.Sequential:
    """SimCLR's, from this project as well."""
    from unlabeled.objectives.parts.heads import simclr_projector

    return simclr_projector(width, 2, PROJECTION)


def cifar10(data: str, transform: Callable[[Any], Any] | None = None) -> Any:
    """torchvision's own data set class, which gives PIL images from memory, on the images of ``data``."""
    import numpy as np
    from torchvision.datasets import CIFAR10

    dataset = CIFAR10.__new__(CIFAR10)
    dataset.data, dataset.targets = np.load(f"{data}/images.npy"), np.load(f"{data}/labels.npy").tolist()
    dataset.transform, dataset.target_transform = transform, None
    return dataset


def trainer(pl: Any, job: Job, **more: Any) -> Any:
    """A Lightning trainer with what is the same for all peers, and nothing that only costs time."""
    accelerator = "gpu" if job.device == "cuda" else "cpu"
    return pl.Trainer(
        accelerator=accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **more,
    )


def fit(pl: Any, job: Job, module: Any, loader: Any) -> None:
    """Train with bf16 autocast and channels_last until the clock has what it wants."""
    import torch

    module.to(memory_format=torch.channels_last)
    module.on_train_batch_end = Clock(job).tick
    trainer(pl, job, max_steps=job.last_step, precision="bf16-mixed").fit(module, loader)


def features(job: Job) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bank [50,000, 512], its labels, queries [10,000, 512] and theirs, neither normalised."""
    import torch

    x, labels = torch.load(f"{job.data}/features_{job.classes}.pt", weights_only=True)
    return x[:50_000], labels[:50_000], x[50_000:], labels[50_000:]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def fit_head(pl: Any, job: Job, module: Any, bank: Any, **loading: Any) -> dict[str, float]:
    """Seconds of one epoch of a linear head at one rate, with the library's module in Lightning's loop."""
    import torch

    loader = torch.utils.data.DataLoader(bank, batch_size=BATCH_SIZE, shuffle=True, **loading)
    trainer(pl, job, max_steps=1).fit(module, loader)  # what is done once for all rates
    seconds, _ = timed(lambda: trainer(pl, job, max_epochs=1).fit(module, loader))
    return {"one_rate": seconds}

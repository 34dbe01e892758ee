"""The next batch is copied and its views are made beside the network's work, and what is computed stays the same.

A CPU has no streams. A stand-in notes, for each operation, which others a GPU would have finished before it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor

from tests.faulty import config_of, run_of, same, state_of
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.data.loaders import Resumable
from unlabeled.objective import Batch, Output, Progress
from unlabeled.objectives.moco import MoCo
from unlabeled.objectives.simclr import SimCLR
from unlabeled.training.machine import overlap
from unlabeled.training.machine.overlap import Overlap, overlap_on
from unlabeled.training.pretraining import Pretraining

Patch = pytest.MonkeyPatch
CPU, STEPS = torch.device("cpu"), 5


class Queue:
    """Knows what is finished before the next operation that is launched on it."""

    def __init__(self) -> None:
        self.finished: set[str] = set()

    def wait_stream(self, other: "Queue") -> None:
        self.finished |= other.finished


class Streams:
    """Stands in for ``torch.cuda``."""

    def __init__(self) -> None:
        self.current, self.host = Queue(), set[str]()  # what the host has waited for
        self.made: list[Queue] = []
        self.before: dict[str, set[str]] = {}  # operation → what is finished before it
        self.on: dict[str, Queue] = {}

    def Stream(self, device: torch.device) -> Queue:
        self.made.append(Queue())
        return self.made[-1]

    def current_stream(self, device: torch.device) -> Queue:
        return self.current

    @contextmanager
    def stream(self, chosen: Queue) -> Iterator[None]:
        self.current, before = chosen, self.current
        try:
            yield
        finally:
            self.current = before

    def Event(self) -> "Event":
        return Event(self)

    def launch(self, operation: str) -> None:
        self.before[operation] = self.current.finished | self.host
        self.on[operation] = self.current
        self.current.finished = self.current.finished | {operation}


class Event:
    def __init__(self, streams: Streams) -> None:
        self.streams = streams

    def record(self, stream: Queue) -> None:
        self.finished = set(stream.finished)

    def synchronize(self) -> None:
        self.streams.host |= self.finished


def watched_run(run_dir: Path, patch: Patch, *overrides: str) -> Streams:
    """A run with the stand-in, whose copies, views and forwards are noted with the number of their batch."""
    streams, copies = Streams(), iter(range(99))
    move, views_of, forward = move_data_to_device, Pretraining.views_of, SimCLR.forward

    def moved(batch: Any, device: torch.device) -> Any:
        streams.launch(f"copy {next(copies)}")
        return move(batch, device)

    def viewed(self: Pretraining, *given: Any) -> tuple[Tensor, ...]:
        streams.launch(f"views {self.progress.batch}")
        return views_of(self, *given)

    def computed(self: SimCLR, batch: Batch, progress: Progress) -> Output:
        streams.launch(f"network {progress.batch}")
        return forward(self, batch, progress)

    patch.setattr(overlap, "move_data_to_device", moved)
    patch.setattr(Pretraining, "views_of", viewed)
    patch.setattr(SimCLR, "forward", computed)
    patch.setattr("unlabeled.commands.build.run.overlap_on", lambda device: Overlap(device, streams))
    run_of(config_of(run_dir, SimCLR, *PLAIN, *overrides))
    return streams


PLAIN = (f"max_steps={STEPS}", "health=none", "pictures=null", "plan=null")


@pytest.mark.parametrize("overrides", [(), ("memory_gib=0",), ("accumulate=2", "max_steps=3")])
def test_a_batch_is_made_beside_the_work_on_the_one_before_and_the_run_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: Patch, overrides: tuple[str, ...]
) -> None:
    run_of(config_of(tmp_path / "plain", SimCLR, *PLAIN, *overrides))
    streams = watched_run(tmp_path / "run", monkeypatch, *overrides)
    assert same(state_of(tmp_path / "run"), state_of(tmp_path / "plain"))
    batches = 6 if overrides and overrides[0] == "accumulate=2" else STEPS
    assert f"network {batches - 1}" in streams.before
    network, side = streams.on["network 0"], streams.made[0]
    assert len(streams.made) == 1
    for number in range(batches):
        assert streams.on[f"copy {number}"] is streams.on[f"views {number}"] is side
        assert streams.on[f"network {number}"] is network
        assert {f"copy {number}", f"views {number}"} <= streams.before[f"network {number}"]
        assert f"copy {number}" in streams.before[f"views {number}"]
        if number > 0:  # it need not wait for the network's work on the batch before
            assert f"network {number - 1}" not in streams.before[f"copy {number}"] | streams.before[f"views {number}"]
        if number > 1:  # but for that on the one before it: no third batch of views is in memory
            assert f"network {number - 2}" in streams.before[f"views {number}"]
        if number > 2:
            assert f"network {number - 3}" in streams.before[f"copy {number}"]


def test_the_first_batch_waits_for_what_was_made_on_the_networks_stream() -> None:
    streams = Streams()
    beside = Overlap(CPU, streams)
    streams.launch("images in memory")
    with beside.ahead():
        streams.launch("copy")
    streams.launch("pictures")
    with beside.views_ahead():
        streams.launch("views")
    streams.launch("network")
    with beside.ahead():
        streams.launch("next copy")
    assert streams.before["copy"] == {"images in memory"}
    assert streams.before["views"] == {"images in memory", "copy", "pictures"}
    assert "network" not in streams.before["next copy"]


def test_memory_of_all_that_is_handed_over_is_kept_for_the_network(tmp_path: Path, monkeypatch: Patch) -> None:
    streams, kept = Streams(), list[tuple[int, Queue]]()
    network = streams.current
    monkeypatch.setattr(overlap, "keep_for", lambda tensor, stream: kept.append((tensor.data_ptr(), stream)))
    config = config_of(tmp_path, MoCo, *PLAIN)
    run = build_run(config, open_run(config))
    run.module.overlap = Overlap(CPU, streams)
    run.data.around = run.module.overlap.around
    seen: list[int] = []
    original = MoCo.forward

    def forward(self: MoCo, batch: Batch, progress: Progress) -> Output:
        seen.extend(each.data_ptr() for each in (batch.images, batch.ids, batch.labels, *batch.views))
        assert {*seen} <= {pointer for pointer, stream in kept if stream is network}
        return original(self, batch, progress)

    monkeypatch.setattr(MoCo, "forward", forward)
    run.fit({})
    assert len(seen) == STEPS * 5


def test_a_loader_can_be_peeked_into_and_counted() -> None:
    class Three(Resumable):
        def __iter__(self) -> Iterator[Batch]:
            return (Batch(torch.zeros(0), torch.tensor([number]), torch.zeros(0)) for number in range(3))

        def __len__(self) -> int:
            return 3

    loader = Overlap(CPU, Streams()).around(Three())
    assert int(loader.peek().ids) == 0
    assert [int(batch.ids) for batch in loader] == [0, 1, 2]
    assert len(loader) == 3


def test_nothing_overlaps_on_a_cpu() -> None:
    assert overlap_on(CPU) is None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("overrides", [(), ("memory_gib=0",)])
def test_on_a_gpu_views_are_the_same_with_and_without_it(
    tmp_path: Path, monkeypatch: Patch, overrides: tuple[str, ...]
) -> None:
    seen: list[Tensor] = []
    original = SimCLR.forward

    def forward(self: SimCLR, batch: Batch, progress: Progress) -> Output:
        seen.extend(view.clone() for view in batch.views)
        return original(self, batch, progress)

    monkeypatch.setattr(SimCLR, "forward", forward)
    gpu = (*PLAIN, "trainer.accelerator=gpu", "views.compile=false", *overrides)
    run_of(config_of(tmp_path / "beside", SimCLR, *gpu))
    monkeypatch.setattr("unlabeled.commands.build.run.overlap_on", lambda device: None)
    run_of(config_of(tmp_path / "alone", SimCLR, *gpu))
    beside, alone = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert len(beside) == 2 * STEPS
    assert all(torch.equal(*pair) for pair in zip(beside, alone, strict=True))

"""The count of a step's memory against sums by hand and a measured peak; a step that is too large is one line."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import ENVIRONMENT, ROOT
from tests.small import members, small_run
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, Objective, Output, Progress
from unlabeled.training.plan import room
from unlabeled.training.plan.memory import GIB, StepMemory, count_memory, largest_batch
from unlabeled.training.run import Run


class Chain(Backbone):
    """Two linear layers with a ReLU between them, on flat images of 4 × 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features, self.channels = 32, 3
        self.first, self.second = nn.Linear(48, 64, bias=False), nn.Linear(64, 32, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.second(torch.relu(self.first(images.flatten(1)))))


class Squares(Objective):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Chain()
        self.register_buffer("queue", torch.zeros(100, 8))

    def forward(self, batch: Batch, progress: Progress) -> Output:
        features = self.backbone(batch.views[0].contiguous())
        return Output(features.square().sum(), features.detach())


def test_the_parts_are_those_of_a_sum_by_hand() -> None:
    weights, batch = 4 * (48 * 64 + 64 * 32), 100
    found = count_memory(Squares(), [4], batch, "32-true", slots=2)
    assert found.network == weights + 4 * 100 * 8
    assert (found.gradients, found.optimizer) == (weights, 2 * weights)
    view = 4 * batch * 48
    assert found.inputs == view + view // 4  # float views and bytes
    # saved: the copy of the view in another memory format, what ReLU gave (before and after it is one storage at
    # most), and the features for their square
    assert found.activations == view + 4 * batch * 64 + 4 * batch * 32
    assert found.peak >= found.network + found.inputs + found.activations + found.optimizer


def test_activations_grow_with_the_batch_and_all_else_does_not() -> None:
    one, two = (count_memory(Squares(), [4], batch, "32-true", slots=1) for batch in (64, 128))
    assert two.activations == 2 * one.activations
    assert (two.network, two.gradients, two.optimizer) == (one.network, one.gradients, one.optimizer)
    assert largest_batch(one, two, two.needed("cpu"), "cpu") == 128
    assert largest_batch(one, two, 0.0, "cpu") == 0


def test_counting_changes_neither_weights_nor_random_numbers() -> None:
    objective = Squares()
    before, state = copy.deepcopy(objective.state_dict()), torch.get_rng_state()
    count_memory(objective, [4], 10**6, "bf16-mixed", slots=1)
    assert all(torch.equal(before[name], value) for name, value in objective.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in objective.parameters())


def counted(run: Run, batch: int | None = None) -> StepMemory | str:
    return room.step_memory(run.trainer, run.module, run.data.splits.train.image_size, batch)


@pytest.mark.parametrize("objective", members("objective"))
def test_every_method_can_be_counted(objective: str, tmp_path: Path) -> None:
    run = build_run(config := small_run(objective, tmp_path), open_run(config))
    try:
        found = counted(run)
    finally:
        run.close()
    assert isinstance(found, StepMemory), found
    assert found.peak > found.activations > 0
    assert found.gradients <= found.network


def test_the_sizes_of_gpus_that_are_enough_are_named() -> None:
    def fits(peak: float) -> list[int]:
        return StepMemory(1, 0, 0, 0, 0, 0, int(peak * GIB)).fits

    assert fits(1) == [8, 24, 80]
    assert fits(7) == [24, 80]  # with a tenth for fragments 7.7 of 7.6 that can be used
    assert fits(60) == [80]
    assert fits(70) == []


def test_a_step_that_does_not_fit_is_one_line_with_a_batch_that_does_before_anything_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_run("simclr", tmp_path, "plan.trial_steps=2", "plan.trial_from=0")
    run = build_run(config, open_run(config))
    whole = counted(run)
    assert isinstance(whole, StepMemory)
    monkeypatch.setattr(room, "free_memory", lambda: float(whole.needed("cpu") - 1))
    monkeypatch.setattr("unlabeled.training.plan.callback.run_trial", None)
    with pytest.raises(
        UserError, match=rf"^batch_size={whole.batch}: a step needs about .* GiB are free: give "
    ) as told:
        room.check_room(run.trainer, run.module, run.data.splits.train.image_size)
    said = int(str(told.value).split("batch_size=")[2].split()[0])
    smaller = counted(run, said)
    assert isinstance(smaller, StepMemory)
    assert smaller.needed("cpu") < whole.needed("cpu")
    assert said < whole.batch
    with pytest.raises(UserError, match=r"^batch_size="):
        run.fit({})
    run.close()


def test_the_memory_of_a_container_counts_where_it_is_smaller(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 4000 kB\n")
    assert room.free_memory(tmp_path) == 4000 * 1024
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    (tmp_path / "sys/fs/cgroup/memory.current").write_text("5\n")
    assert room.free_memory(tmp_path) == 4000 * 1024
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("1000005\n")
    assert room.free_memory(tmp_path) == 1_000_000
    assert room.free_memory(tmp_path / "none") == float("inf")


def test_an_objective_that_reads_values_is_not_counted_and_stops_nothing() -> None:
    class Reading(Squares):
        def forward(self, batch: Batch, progress: Progress) -> Output:
            assert float(batch.views[0].sum()) > 0
            return super().forward(batch, progress)

    plan = SimpleNamespace(views=[4])
    config = SimpleNamespace(build=lambda objective, images: torch.optim.SGD(objective.parameters(), 0.1))
    module: Any = SimpleNamespace(
        objective=Reading(), plan=plan, optimizer_config=config, images_per_step=8, batch_size=8
    )
    trainer: Any = SimpleNamespace(strategy=None, world_size=1, precision="32-true")
    assert str(room.step_memory(trainer, module, 4)).startswith("Reading cannot be counted (")


def test_the_count_is_what_a_process_takes_within_a_tenth() -> None:
    environment = {**ENVIRONMENT, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back at once
    command = [sys.executable, str(ROOT / "benchmarks/memory.py"), "mae_cifar10", "64", "32-true", ""]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    counted, measured = json.loads(finished.stdout.splitlines()[-1])
    assert 0.9 < measured / counted < 1.1, finished.stdout

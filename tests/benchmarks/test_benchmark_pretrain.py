"""The numbers of ``benchmarks/pretrain.py`` are what they are called, and to measure a run does not change it."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from benchmarks.pretraining.images import made_up, shard_files
from benchmarks.pretraining.limit import InTurn, Limit, efficiencies
from benchmarks.pretraining.measure import ALONE, CONF, Watch, fit
from benchmarks.pretraining.phases import Phases
from benchmarks.pretraining.rows import Row, cpu_rows, gpu_rows, small_rows
from benchmarks.pretraining.sizes import bends
from benchmarks.pretraining.table import page, speed
from unlabeled.commands.config import check_keys
from unlabeled.data.sources.shards import shards
from unlabeled.training.run import Run

CPU = ("trainer.accelerator=cpu", "trainer.devices=1", "trainer.precision=32-true")
TINY = ("experiment=digits", "backbone.width=0.125", "batch_size=8", *CPU)
PART_SECONDS = {"data": 0.0, "views": 0.2, "forward": 0.2, "backward": 0.6, "optimizer": 0.0, "faults": 0.0}


def result(**given: Any) -> dict[str, Any]:
    """Of a row: two blocks of 4 steps of 8 images in 2 s each, three of the limit in 1 s each."""
    row = {"name": "A row, bf16-mixed", "steps": 4, "epoch": 320, "bound": 0.9}
    phases = PART_SECONDS | {"logging": 0.0, "rest": 0.0}
    made = {"row": row, "images_per_step": 8, "run": [2.0, 2.0], "limit": [1.0, 1.0, 1.0], "checkpoint": 0.0}
    made |= {
        "phases": phases,
        "step": 1.0,
        "view_pixels": 10,
        "peak_bytes": 2**30,
        "watts": [],
        "precision": "bf16-mixed",
    }
    made |= {"versions": {"torch": "2"}, "machine": {"cpu": "one", "cpus": 2}, "date": "2026-01-01T00:00:00"}
    return made | given


class Unwatched:
    def attach(self, run: Run) -> None:
        pass


class SlowViews(Phases):
    """Of a run whose views take 200 ms more, which no other part does on a busy machine."""

    def attach(self, run: Run) -> None:
        make = run.module.views.forward

        def slow(*arguments: Any, **named: Any) -> Any:
            time.sleep(0.2)
            return make(*arguments, **named)

        run.module.views.forward = slow  # type: ignore[method-assign]
        super().attach(run)


def test_the_efficiency_of_a_block_is_the_mean_of_the_limits_around_it_over_its_time() -> None:
    assert efficiencies([2.0, 4.0], [1.0, 1.0, 3.0]) == [0.5, 0.5]


def test_a_run_ends_with_the_same_bits_whether_it_is_measured_or_not(tmp_path: Path) -> None:
    turns = InTurn(warm=2, steps=2, repeats=2, settle=1)
    watches: list[Watch] = [Unwatched(), turns, Phases(2, 6)]
    watched = [fit(TINY, tmp_path / str(number), 9, watch) for number, watch in enumerate(watches)]
    assert (len(turns.run), len(turns.limit), turns.steps_needed, turns.view_pixels) == (2, 3, 9, 2 * 16 * 16)
    plain, *others = (run.module.state_dict() for run in watched)
    for other in others:
        assert all(torch.equal(value, other[name]) for name, value in plain.items())
    momenta = [run.trainer.optimizers[0].state_dict()["state"][0]["momentum_buffer"] for run in watched]
    assert torch.equal(momenta[0], momenta[1])


def test_the_limit_trains_on_the_batch_and_gives_the_run_its_weights_and_buffers_back(tmp_path: Path) -> None:
    losses: list[float] = []

    class Watched(Limit):
        def step(self) -> None:
            losses.append(float(self.objective(self.batch, self.progress).loss.detach()))
            super().step()

        def __enter__(self) -> None:
            self.before = {name: value.clone() for name, value in self.objective.state_dict().items()}
            super().__enter__()

        def __exit__(self, *error: object) -> None:
            weight = next(name for name, _ in self.objective.named_parameters())
            assert not torch.equal(self.objective.state_dict()[weight], self.before[weight])
            super().__exit__(*error)
            now = self.objective.state_dict()
            assert all(torch.equal(value, now[name]) for name, value in self.before.items())

    fit(TINY, tmp_path, 9, InTurn(warm=2, steps=6, repeats=1, limit=Watched))
    assert len(losses) == 2 + 6 + 6  # warm, and a block on either side of the run's
    assert losses[7] < losses[0]
    assert losses[13] < losses[8]


def test_the_time_of_the_limit_is_its_own_and_not_that_of_the_run(tmp_path: Path) -> None:
    class Slow(Limit):
        def step(self) -> None:
            time.sleep(0.3)

    turns = InTurn(warm=1, steps=2, repeats=2, limit=Slow)
    fit(TINY, tmp_path, turns.steps_needed, turns)
    assert min(turns.limit) >= 0.6
    assert min(turns.run) < 0.3  # tens of milliseconds, and more while others compute


def test_the_parts_of_a_step_add_up_to_it_and_slow_views_are_found_in_the_views(tmp_path: Path) -> None:
    phases = SlowViews(warm=1, steps=10)
    fit(TINY, tmp_path, phases.steps_needed, phases)
    assert sum(phases.per_step.values()) == pytest.approx(phases.step)
    assert all(seconds >= 0 for seconds in phases.per_step.values())
    assert 0.2 <= phases.per_step["views"] < 0.8
    assert all(phases.per_step[part] > 0 for part in ("data", "forward", "backward", "optimizer", "faults", "logging"))
    assert max(phases.per_step, key=phases.per_step.__getitem__) == "views"
    assert 0 < phases.checkpoint < 1


def test_a_checkpoint_is_charged_by_the_images_of_an_epoch() -> None:
    assert speed(result()).run == 16
    assert speed(result()).efficiency == 0.5
    charged = speed(result(checkpoint=10.0))  # a block is a tenth of an epoch: 1 s more
    assert charged.run == pytest.approx(32 / 3)
    assert charged.efficiency == pytest.approx(1 / 3)


def test_the_page_says_for_each_row_whether_its_bound_holds() -> None:
    short, well = result(), result(run=[1.0, 1.0])
    text = page("CPU", [short, well], [result(row=short["row"] | {"bound": None, "name": "tiny"})])
    assert "| A row | bf16-mixed | 8 | 16.0 | 32.0 | 0.500 (0.500 – 0.500) | ≥ 0.90 **does not hold** |" in text
    assert "| A row | bf16-mixed | 8 | 32.0 | 32.0 | 1.000 (1.000 – 1.000) | ≥ 0.90 holds |" in text
    assert "| A row | bf16-mixed | 1000.0 | 0.0 | 20.0 | 20.0 | 60.0 |" in text
    assert text.index("unmeasured") < text.index("| tiny |")


def test_a_curve_bends_where_a_pixel_costs_a_quarter_more_and_the_part_that_rises_is_named() -> None:
    slow_views = PART_SECONDS | {"views": 1.2, "logging": 0.0, "rest": 0.0}
    bent = result(run=[4.0, 4.0], phases=slow_views, step=2.0)
    words = bends([1, 2, 3], [bent, result(), result(run=[2.1, 2.1])])
    assert words.startswith("A pixel costs 6250000 to 12500000 ns, least at 2; below 2 the curve bends: at 1 +100 % ")
    assert words.endswith("+100 % (the limit +0 %), of which views makes 100 %.")
    assert bends([2, 3], [result(), result()]).endswith("least at 2: no bend of more than 25 %.")


def test_every_row_is_a_command_that_train_takes() -> None:
    rows: list[Row] = [*cpu_rows(Path("x")), *gpu_rows(Path("x"), Path("y")), *small_rows(Path("x"), Path("y"))]
    assert len({row.name for row in rows}) == len(rows) == 20
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for row in rows[::2]:
            check_keys(compose("train", [*ALONE, *row.overrides, "max_steps=1"]), CONF / "train.yaml")


def test_made_up_images_are_the_same_each_time_and_compress_as_photographs_do(tmp_path: Path) -> None:
    assert torch.equal(made_up(2, 12, 16), made_up(2, 12, 16))
    train = shards(str(shard_files(tmp_path, 250, 375 // 4, 500 // 4))).train
    assert len(train) == 250
    assert train.decode(3).shape == (3, 93, 125)
    bits = 8 * (tmp_path / "train.tar").stat().st_size / (250 * 93 * 125)
    assert 1 < bits < 6

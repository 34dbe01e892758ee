"""An optimizer step over several batches: gradients are averaged, and what belongs to a step is done once."""

import json
from itertools import chain
from pathlib import Path

import pytest
import torch
from omegaconf import open_dict

from tests.small import small_run
from tests.training.test_resuming import trained
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.data.order import GlobalOrder
from unlabeled.errors import UserError
from unlabeled.objective import Batch, Progress
from unlabeled.training.run import Run
from unlabeled.views.key import ViewKey

DIGITS = ("data=digits", "batch_size=8", "accumulate=3", "max_epochs=null", "objective.queue_size=24")


def order(batch_size: int, accumulate: int, rank: int = 0, processes: int = 1, step: int = 0) -> GlobalOrder:
    return GlobalOrder(50, batch_size, 7, 3, rank, processes, lambda: step, accumulate)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_batches_of_a_step_are_the_parts_of_one_large_batch(processes: int) -> None:
    large = list(order(24, 1))
    shares = [list(order(8, 3, rank, processes)) for rank in range(processes)]
    joined = [list(chain.from_iterable(parts)) for parts in zip(*shares, strict=True)]
    assert len(joined) == len(order(8, 3)) == 21
    assert [list(chain.from_iterable(joined[3 * step : 3 * step + 3])) for step in range(7)] == large
    assert list(order(8, 3, step=5)) == list(order(8, 3))[15:]


def test_no_two_batches_share_their_random_draws() -> None:
    batches = [Progress(step, 4, 2, 0, part, 3).batch for step in range(4) for part in range(3)]
    assert batches == list(range(12))
    assert Progress(5, 9, 3, 0).batch == 5


def run_of(tmp_path: Path, name: str, steps: int) -> Run:
    overrides = DIGITS if name == "moco_v2" else DIGITS[:-1]
    config = small_run(name, tmp_path, *overrides, f"max_steps={steps}", "optimizer.warmup_epochs=0")
    return build_run(config, open_run(config))


@pytest.mark.parametrize("name", ["simclr", "moco_v2", "moco_v3", "mae", "relic"])
def test_a_step_moves_the_weights_by_the_mean_gradient_of_its_batches(tmp_path: Path, name: str) -> None:
    run, other = run_of(tmp_path / "run", name, 1), run_of(tmp_path / "literal", name, 1)
    run.fit({})
    module, objective = other.module, other.module.objective.train()
    optimizer = module.configure_optimizers()
    source = other.data.train
    positions = next(iter(GlobalOrder(len(source.labels), 24, 1, module.seed, 0, 1, lambda: 0)))
    assert optimizer.param_groups[0]["lr"] == module.optimizer_config.peak_lr(24)
    for part in range(3):
        rows = torch.tensor(positions[8 * part : 8 * part + 8])
        images = source.images[rows]  # type: ignore[union-attr]
        views = module.views(images, rows, ViewKey(module.seed, part, 0, 8))
        output = objective(
            Batch(images, rows, source.labels[rows], views),
            Progress(0, 1, module.steps_per_epoch, module.seed, part, 3),
        )
        (output.loss / 3).backward()
    optimizer.step()
    objective.after_step(Progress(0, 1, module.steps_per_epoch, module.seed, 0, 3))
    ours, theirs = run.module.objective.state_dict(), objective.state_dict()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-6, msg=key)


def test_the_momentum_encoder_follows_once_a_step_and_the_queue_takes_every_batch(tmp_path: Path) -> None:
    run = run_of(tmp_path, "moco_v2", 2)
    start = {name: value.clone() for name, value in run.module.objective.backbone.named_parameters()}
    empty = run.module.objective.queue.keys.clone()  # type: ignore[union-attr, operator]
    run.fit({})
    objective = run.module.objective
    first = {name: value for name, value in objective.momentum_backbone.named_parameters()}  # type: ignore[union-attr]
    # before step 1 the encoder was at its start; before step 2 where step 1 had brought it: one part in a thousand
    moved = max(float((first[name] - value).abs().max()) for name, value in start.items())
    after = max(float((value - start[name]).abs().max()) for name, value in objective.backbone.named_parameters())
    assert 0 < moved < 0.002 * after
    kept = (objective.queue.keys == empty).all(1)  # type: ignore[union-attr]
    assert int(kept.sum()) == 0  # 2 steps × 3 batches × 8 keys through a queue of 24


def test_metrics_have_one_line_for_each_step_and_its_rate_is_that_of_all_its_images(tmp_path: Path) -> None:
    run = run_of(tmp_path, "simclr", 5)
    run.fit({})
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in written if "train/loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    rates = [
        run.module.optimizer_config.lr_at(Progress(step, 5, run.module.steps_per_epoch, 0), 24) for step in range(5)
    ]
    assert [line["train/learning_rate"] for line in lines] == pytest.approx(rates, rel=1e-6)
    assert run.module.steps_per_epoch == 1347 // 24
    assert json.loads((tmp_path / "training.json").read_text())["steps_of_last_session"] == 5


@pytest.mark.parametrize("accumulate", [0, 169])
def test_more_batches_than_there_are_images_are_refused(tmp_path: Path, accumulate: int) -> None:
    config = small_run("simclr", tmp_path, "data=digits", "batch_size=8", f"accumulate={accumulate}", "max_steps=1")
    with pytest.raises(UserError, match=rf"accumulate={accumulate}: from 1 to 168 batches of 8 images"):
        build_run(config, open_run(config))


def test_lightnings_own_key_is_refused_with_the_name_of_ours(tmp_path: Path) -> None:
    config = small_run("simclr", tmp_path, "data=digits", "max_steps=1")
    with open_dict(config):
        config.trainer.accumulate_grad_batches = 2
    with pytest.raises(UserError, match=r"trainer\.accumulate_grad_batches: give accumulate=…"):
        build_run(config, open_run(config))


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3), (2, 3)])
def test_a_run_may_go_on_with_other_accumulation_and_takes_all_its_steps(
    before: int, after: int, tmp_path: Path
) -> None:
    def fitted(accumulate: int, steps: int) -> Run:
        chosen = ("data=digits", "batch_size=8", f"accumulate={accumulate}", "max_epochs=null")
        more = ("optimizer.warmup_epochs=0", "resume=override", f"max_steps={steps}")
        return trained(small_run("simclr", tmp_path, *chosen, *more))

    fitted(before, 3)
    run = fitted(after, 7)
    assert run.trainer.global_step == 7
    assert run.module.steps_taken == 4
    assert torch.load(run.checkpoint, weights_only=True)["global_step"] == 7

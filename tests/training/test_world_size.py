"""One process and several make the same run, for every objective, and a run goes on with another number of them."""

import json
import os
import signal
import socket
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from tests.forked import spawn
from tests.group import leave
from tests.small import chosen_for, composed, fitting, give_teacher, members, missing_keys, shrink
from unlabeled.commands.build.network import build_objective
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.training.checkpointing import Interrupted
from unlabeled.training.run import Run

STEPS = 5
# Where an objective has such a key: small, and such that all of it happens within five steps of 84 an epoch.
SMALL: dict[str, Any] = {
    "projection_hidden": [24],
    "projection_dim": 16,
    "hidden_dim": 24,
    "predictor_dim": 8,
    "bottleneck_dim": 8,
    "freeze_last_layer_epochs": 2 / 84,
    "decoder_width": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "predictor_width": 16,
    "predictor_depth": 1,
    "predictor_heads": 2,
    "averaged_blocks": 1,
    "prototypes": 13,
    "queue_size": 36,  # no multiple of the batch: the pointer comes round in the middle of one
    "queue_length": 32,  # full after two steps
    "queue_from_epoch": 0,
    "freeze_prototypes_epochs": 2 / 84,
    "momentum": 0.9,
    "heads": 3,
    "threshold": 0.05,  # below the likeliest of ten clusters, whatever the weights
}
SUPPORT = {"classes_per_batch": 4, "images_per_class": 3}
STOPPED = ("moco_v2", "swav", "paws")  # queues, momentum encoder, labelled images
MOVED = ("2-to-1", "1-to-4")
BACKBONES = ("resnet_thin", "vit_tiny_small")


def small_config(name: str) -> DictConfig:
    """A run of an objective with its own views on the digits, on the first small backbone that it accepts."""
    for backbone in BACKBONES:
        choices = [*chosen_for(name, backbone), "data=digits", "optimizer=sgd", "optimizer.lr=0.5"]
        config = composed(*choices, "trainer.accelerator=cpu", "probe=none")
        config.views.update({key: None for key in missing_keys(config.views)})
        shrink(config.views, 16)
        config.backbone.update({"width": 0.125} if backbone == "resnet_thin" else {"width": 16, "depth": 2, "heads": 2})
        give_teacher(config)
        config.objective.update(fitting(SMALL, config.objective))
        if "support" in config.objective:
            config.objective.support.update(SUPPORT)
        config.update({"batch_size": 16, "max_steps": STEPS, "num_workers": 0, "log_every_n_steps": 1})
        config.update({"online_knn": None, "pictures": None, "preflight_seconds": 120, "timeout_minutes": 2})
        try:
            build_objective(config)
        except InstantiationException:
            continue
        return config
    pytest.fail(f"no small backbone serves objective={name}")


class Watch(pl.Callback):
    """Writes down which images each step sees, and presses Ctrl-C in one of them."""

    def __init__(self, stop_at: int) -> None:
        self.stop_at = stop_at
        self.seen: dict[int, list[torch.Tensor]] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *rest: int) -> None:
        assert not getattr(trainer.strategy.model, "broadcast_buffers", False)
        support = [] if batch.support is None else [batch.support.ids, batch.support.slots]
        self.seen[trainer.global_step] = [batch.ids, batch.labels, *support]

    def on_before_zero_grad(self, trainer: pl.Trainer, *rest: Any) -> None:
        if trainer.global_step == self.stop_at - 1 < STEPS - 1:
            os.kill(os.getpid(), signal.SIGINT)


def in_float64(run: Run) -> None:
    """Sums in another order then differ by 1e-16, and what is left is a difference of the maths."""
    run.module.double()
    run.module.views.register_forward_hook(lambda module, given, views: [view.double() for view in views])


def train(config: DictConfig, folder: Path, devices: int, until: int = STEPS) -> None:
    """Go on with the run in ``folder`` up to a step."""
    config = OmegaConf.create({**config, "name": folder.name, "run_dir": str(folder)})
    config.trainer.devices = devices
    config.plan.update({"trial_from": 0, "trial_steps": 2 if devices > 1 else 0})  # which is not to be felt
    resolved = open_run(config)
    run = build_run(config, resolved)
    in_float64(run)
    watch = Watch(until)
    run.trainer.callbacks.insert(0, watch)  # type: ignore[attr-defined]
    try:
        with closing(run):  # releases the folder: another process resumes this run
            run.fit(resolved)
    except Interrupted:
        assert until < STEPS
    assert run.trainer.global_step == until
    torch.save(watch.seen, folder / f"seen-to-{until}-rank-{run.trainer.global_rank}.pt")
    torch.save(dict(run.module.named_buffers()), folder / f"buffers-at-{until}-rank-{run.trainer.global_rank}.pt")


def act_as(rank: int, port: int) -> None:
    """As Lightning tells the processes that it starts; any earlier group is left."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def one_of_four(rank: int, ports: list[int], configs: dict[str, DictConfig], folder: Path) -> None:
    """All four; then 0 alone while 2 and 3 are a pair; then 0 alone, and all four, go on with what these began."""
    torch.set_num_threads(1)
    act_as(rank, ports[0])
    for name, config in configs.items():
        train(config, folder / f"{name}-4", 4)
    act_as(rank % 2, ports[1])
    for name, config in configs.items() if rank != 1 else ():
        train(config, folder / f"{name}-{1 if rank == 0 else 2}", 1 if rank == 0 else 2)
    for name in STOPPED if rank != 1 else ():
        train(configs[name], folder / f"{name}-{'1-to-4' if rank == 0 else '2-to-1'}", 1 if rank == 0 else 2, until=3)
    written = [folder / f"{name}-{moved}" / "seen-to-3-rank-0.pt" for name in STOPPED for moved in MOVED]
    while not all(path.exists() for path in written):
        time.sleep(0.1)
    act_as(rank, ports[2])
    for name in STOPPED if rank == 0 else ():
        train(configs[name], folder / f"{name}-2-to-1", 1)
    for name in STOPPED:
        train(configs[name], folder / f"{name}-1-to-4", 4)
    leave()


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all runs: NAME-PROCESSES, and NAME-2-to-1 for one that went on with another number of them."""
    folder = tmp_path_factory.mktemp("runs")
    configs = {name: small_config(name) for name in members("objective")}
    spawn(one_of_four, (free_ports(3), configs, folder), 4)
    return folder


def seen(folder: Path, until: int, processes: int) -> dict[int, list[torch.Tensor]]:
    """What each step saw, in the order of the global batch: ids, labels, ids of the support, its slots."""
    parts = [torch.load(folder / f"seen-to-{until}-rank-{rank}.pt") for rank in range(processes)]
    return {step: [torch.cat(rows) for rows in zip(*(part[step] for part in parts), strict=True)] for step in parts[0]}


def assert_seen_alike(ours: dict[int, list[torch.Tensor]], theirs: dict[int, list[torch.Tensor]]) -> None:
    assert ours.keys() == theirs.keys()
    for step, expected in theirs.items():
        assert all(torch.equal(rows, wanted) for rows, wanted in zip(ours[step], expected, strict=True)), step


def metrics(folder: Path, name: str = "train/loss") -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if name in line]


def assert_ends_alike(ours: Path, theirs: Path, tolerance: float = 1e-8) -> None:
    """Metrics of every step, weights, momentum encoders, queues, BatchNorm's statistics and the optimizer's state."""
    lines, expected = metrics(ours), metrics(theirs)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line, wanted in zip(lines, expected, strict=True):
        assert line.pop("train/loss") == pytest.approx(wanted.pop("train/loss"), rel=tolerance, abs=tolerance)
        assert line == pytest.approx(wanted, rel=1e-5, abs=1e-6)  # cosines are taken in float32
    ours_end, theirs_end = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (ours, theirs)
    )
    assert ours_end["progress"] == theirs_end["progress"]
    assert ours_end["state_dict"].keys() == theirs_end["state_dict"].keys()
    for name, value in theirs_end["state_dict"].items():
        assert value.dtype in (torch.float64, torch.int64)
        torch.testing.assert_close(ours_end["state_dict"][name], value, rtol=tolerance, atol=tolerance, msg=name)
    slots = theirs_end["optimizer_states"][0]["state"]
    assert ours_end["optimizer_states"][0]["state"].keys() == slots.keys()
    for index, buffers in slots.items():
        mine = ours_end["optimizer_states"][0]["state"][index]["momentum_buffer"]
        torch.testing.assert_close(mine, buffers["momentum_buffer"], rtol=tolerance, atol=tolerance, msg=str(index))


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("name", members("objective"))
def test_several_processes_see_the_same_images_and_end_where_one_does(runs: Path, name: str, processes: int) -> None:
    assert_seen_alike(seen(runs / f"{name}-{processes}", STEPS, processes), seen(runs / f"{name}-1", STEPS, 1))
    assert_ends_alike(runs / f"{name}-{processes}", runs / f"{name}-1")


@pytest.mark.parametrize("name", members("objective"))
def test_two_processes_tried_their_steps_together_before_the_first_and_one_did_not(runs: Path, name: str) -> None:
    two, one = (json.loads((runs / f"{name}-{processes}" / "plan.json").read_text()) for processes in (2, 1))
    assert (two["processes"], two["batch_size_per_process"], two["trial"]["steps"]) == (2, 8, 2)
    assert (one["trial"], one["not_tried"]) == (None, "plan.trial_steps=0")
    assert two["schedule"] == one["schedule"]


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("name", members("objective"))
def test_the_monitor_sees_the_gradients_updates_and_teacher_of_one_process(
    runs: Path, name: str, processes: int
) -> None:
    shared = ("gradient_norm/", "update_ratio/", "teacher_", "radial_gradient", "planned/")  # others are of a share
    several, one = (metrics(runs / f"{name}-{count}", "health/data_wait") for count in (processes, 1))
    assert [line["step"] for line in several] == [1]
    expected = {key: value for key, value in one[0].items() if key.removeprefix("health/").startswith(shared)}
    assert {"health/gradient_norm/backbone", "health/update_ratio/backbone"} <= expected.keys()
    found = {key: several[0][key] for key in expected}
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)  # cosines are taken in float32


@pytest.mark.parametrize(("moved", "before", "after"), [("2-to-1", 2, 1), ("1-to-4", 1, 4)])
@pytest.mark.parametrize("name", STOPPED)
def test_a_run_goes_on_with_another_number_of_processes_without_a_gap_or_a_repeat(
    runs: Path, name: str, moved: str, before: int, after: int
) -> None:
    folder = runs / f"{name}-{moved}"
    first, second = seen(folder, 3, before), seen(folder, STEPS, after)
    assert sorted(first) == [0, 1, 2]
    assert sorted(second) == [3, 4]
    assert_seen_alike(first | second, seen(runs / f"{name}-1", STEPS, 1))
    assert_ends_alike(folder, runs / f"{name}-1")


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("name", members("objective"))
def test_all_processes_end_with_the_same_buffers_bit_for_bit_though_none_are_broadcast(
    runs: Path, name: str, processes: int
) -> None:
    paths = [runs / f"{name}-{processes}" / f"buffers-at-{STEPS}-rank-{rank}.pt" for rank in range(processes)]
    first, *others = map(torch.load, paths)
    for other in others:
        assert other.keys() == first.keys()
        assert all(torch.equal(other[key], value) for key, value in first.items())


def test_the_runs_are_of_the_kind_that_could_differ(runs: Path) -> None:
    """Every loss moves, queues are in use, and images do not come twice within an epoch."""
    for name in members("objective"):
        losses = [line["train/loss"] for line in metrics(runs / f"{name}-1")]
        assert len(set(losses)) == STEPS
        ids = torch.cat([rows[0] for rows in seen(runs / f"{name}-1", STEPS, 1).values()])
        assert len(set(ids.tolist())) == STEPS * 16
    assert [line["train/queue_in_use"] for line in metrics(runs / "swav-1")] == [0, 0, 1, 1, 1]
    state = torch.load(runs / "moco_v2-1" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert int(state["objective.queue.pointer"]) == STEPS * 16 % 36 == 8

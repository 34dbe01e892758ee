"""Several processes skip the same steps, also where one alone has a bad loss."""

import os
import socket
from pathlib import Path

import pytest
import torch

from tests.faulty import BATCH, Untaken, config_of, defer, metrics_of, run_of, same, spoil, state_of
from tests.forked import spawn
from unlabeled.commands.build.run import build_replay
from unlabeled.data.order import GlobalOrder
from unlabeled.objective import Batch, Output, Progress
from unlabeled.objectives.moco import MoCo
from unlabeled.objectives.swav import SwAV

# Writing metrics would average the loss over the processes, in place: only at the end.
TWO = ("trainer.devices=2", "trainer.sync_batchnorm=false", "log_every_n_steps=8")
FUSED = (*TWO, "+optimizer.optimizer.fused=true")  # SGD, as the deferred form makes it
STEP = 3


def watch(patch: pytest.MonkeyPatch, path: Path) -> None:
    """Write the views of the bad step, and a draw from the global random state."""
    original = MoCo.forward

    def forward(self: MoCo, batch: Batch, progress: Progress) -> Output:
        if progress.step == STEP:
            torch.save([*batch.views, torch.rand(3)], path)
        return original(self, batch, progress)

    patch.setattr(MoCo, "forward", forward)


def one_of_two(rank: int, port: int, folder: str) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    run_of(config_of(f"{folder}/expected", MoCo, *FUSED), Untaken(STEP))
    with pytest.MonkeyPatch.context() as patch:
        for method in (MoCo, SwAV):  # of the images of process 1 one is bad, and the gradients are all finite
            spoil(patch, method, "loss alone", STEP)
        skipped = run_of(config_of(f"{folder}/skipped", MoCo, *FUSED))
        run_of(config_of(f"{folder}/ddp", SwAV, *TWO))
        run_of(config_of(f"{folder}/fsdp", SwAV, *TWO, "trainer.strategy=fsdp"))
        defer(patch)
        run_of(config_of(f"{folder}/late", MoCo, *TWO))
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, MoCo, "gradient", STEP)
        watch(patch, Path(f"{folder}/seen{rank}.pt"))
        run_of(config_of(f"{folder}/gradient", MoCo, *FUSED))
    torch.save([parameter.data for parameter in skipped.module.parameters()], f"{folder}/skipped{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    spawn(one_of_two, (port, str(folder)), 2)
    return folder


def test_both_skip_where_one_has_a_bad_loss_and_go_on_alike(folder: Path) -> None:
    assert same(state_of(folder / "skipped"), state_of(folder / "expected"))
    assert same(*(torch.load(folder / f"skipped{rank}.pt") for rank in range(2)))
    text = (folder / "skipped" / "metrics.jsonl").read_text()
    assert text.count("train/skipped_steps") == 3  # at the first step, when the count changed, and at the end
    assert metrics_of(folder / "skipped", "train/skipped_steps") == {1: 0, STEP + 1: 1, 8: 1}


def test_both_learn_of_it_together_where_a_gpu_has_skipped_it(folder: Path) -> None:
    assert same(state_of(folder / "late"), state_of(folder / "skipped"))
    texts = [(folder / name / "metrics.jsonl").read_text() for name in ("late", "skipped")]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ["skipped", "late", "ddp", "fsdp"])
def test_the_process_with_the_bad_loss_writes_what_it_saw(folder: Path, name: str) -> None:
    assert [path.name for path in (folder / name / "faults").iterdir()] == [f"step_{STEP + 1:06d}.pt"]
    record = torch.load(folder / name / "faults" / f"step_{STEP + 1:06d}.pt", weights_only=True)
    assert (record["rank"], record["world_size"], record["named"]) == (1, 2, "the loss of finite outputs is inf")
    rows = GlobalOrder(1347, BATCH, 8, 0, 0, 1, next_step=lambda: 0).epoch(0)[STEP, 0, BATCH // 2 :]
    assert torch.equal(record["batch"]["ids"], rows)
    assert record["key"] == {"seed": 0, "step": STEP, "first": BATCH // 2, "total": BATCH}
    assert record["state_dict"].keys() == {key.removeprefix("objective.") for key in state_of(folder / name)["network"]}


def test_views_and_draws_of_a_replay_are_those_of_the_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch(monkeypatch, folder / "again.pt")
    build_replay(str(folder / "gradient" / "faults" / f"step_{STEP + 1:06d}.pt")).run()
    seen = [torch.load(folder / f"{name}.pt") for name in ("again", "seen0", "seen1")]
    assert same(seen[0], seen[2])
    assert not any(same(*pair) for pair in zip(seen[0], seen[1], strict=True))


def test_the_rows_of_one_process_are_replayed_by_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(folder / "fsdp" / "faults" / f"step_{STEP + 1:06d}.pt")
    assert not build_replay(path).run()
    spoil(monkeypatch, SwAV, "loss alone", STEP)
    assert build_replay(path).run()
    assert "the images of process 1 of 2 alone" in capsys.readouterr().out


def test_a_bad_gradient_is_traced_to_its_process_though_ddp_has_averaged_it(folder: Path) -> None:
    record = torch.load(folder / "gradient" / "faults" / f"step_{STEP + 1:06d}.pt", weights_only=True)
    assert record["rank"] == 1
    assert record["named"].startswith("the gradient of projector.")
    assert same(state_of(folder / "gradient"), state_of(folder / "expected"))


def test_weights_that_are_cut_are_skipped_as_whole_ones(folder: Path) -> None:
    whole, cut = (state_of(folder / name) for name in ("ddp", "fsdp"))
    assert metrics_of(folder / "fsdp", "train/skipped_steps") == metrics_of(folder / "ddp", "train/skipped_steps")
    for name, value in whole["network"].items():
        torch.testing.assert_close(cut["network"][name], value, rtol=1e-4, atol=1e-4, msg=name)

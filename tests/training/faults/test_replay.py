"""``replay=FILE`` computes a skipped step again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ENVIRONMENT, Script
from tests.faulty import BATCH, METHODS, config_of, image_of, run_of, spoil
from unlabeled.commands.build.run import build_replay
from unlabeled.errors import UserError
from unlabeled.objective import Batch, Objective, Output, Progress
from unlabeled.objectives.moco import MoCo
from unlabeled.objectives.simclr import SimCLR
from unlabeled.training.faults.record import read_record, without_views

Patch = pytest.MonkeyPatch
Printed = pytest.CaptureFixture[str]


def test_a_file_is_plain_and_holds_all_that_the_step_depends_on(tmp_path: Path, monkeypatch: Patch) -> None:
    states: list[dict[str, Any]] = []
    original = MoCo.forward

    def watched(self: MoCo, batch: Batch, progress: Progress) -> Output:
        if progress.step == 3 and not states:  # the first of two times: the step itself
            states.append({name: value.clone() for name, value in self.state_dict().items()})
        return original(self, batch, progress)

    monkeypatch.setattr(MoCo, "forward", watched)
    spoil(monkeypatch, MoCo, "loss", 3)
    config = config_of(tmp_path, MoCo, "seed=0")
    run = run_of(config)
    record = torch.load(tmp_path / "faults" / "step_000004.pt", weights_only=True)
    assert record["config"] == run.module.config
    progress = {"step": 3, "total_steps": 8, "steps_per_epoch": 1347 // BATCH, "seed": 0, "part": 0, "parts": 1}
    assert record["progress"] == progress
    assert record["key"] == {"seed": 0, "step": 3, "first": 0, "total": BATCH}
    assert (record["rank"], record["world_size"], record["precision"]) == (0, 1, "32-true")
    ids = record["batch"]["ids"]
    assert image_of(3) in ids
    images = run.data.train.images[ids]  # type: ignore[union-attr]
    assert torch.equal(record["batch"]["images"], images)
    assert images.dtype == torch.uint8
    assert torch.equal(record["batch"]["labels"], run.data.train.labels[ids])
    assert record["support"] is None
    assert record["state_dict"].keys() == states[0].keys()
    for name, value in states[0].items():
        assert torch.equal(record["state_dict"][name], value), name
    assert not list((tmp_path / "faults").glob("*.partial"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_replay_names_the_same_tensor_and_without_the_fault_says_that_it_was_not_reproduced(
    tmp_path: Path, monkeypatch: Patch, capsys: Printed, method: type[Objective], how: str
) -> None:
    with monkeypatch.context() as patch:
        spoil(patch, method, how, 2)
        run_of(config_of(tmp_path, method, "max_steps=3"))
        said = capsys.readouterr().out
        path = str(tmp_path / "faults" / "step_000003.pt")
        assert build_replay(path).run()
        heading, then, now = capsys.readouterr().out.splitlines()
    assert heading == "step 3 in 32-true"
    assert then.removeprefix("then: ") == now.removeprefix("now:  ") == read_record(path)["named"]
    assert f"step 3 is skipped, 1 so far: {read_record(path)['named']}; python train.py replay={path}" in said
    assert ("gradient of" in now) == (how == "gradient")
    assert not build_replay(path).run()
    assert "not reproduced" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_views_draws_and_loss_of_a_replay_are_those_of_the_step(
    tmp_path: Path, monkeypatch: Patch, precision: str
) -> None:
    seen: list[tuple[torch.Tensor, ...]] = []
    original = SimCLR.forward

    def watched(self: SimCLR, batch: Batch, progress: Progress) -> Output:
        output = original(self, batch, progress)
        if progress.step == 2:
            seen.append((*batch.views, torch.rand(3), output.loss.detach().clone()))
        return output

    monkeypatch.setattr(SimCLR, "forward", watched)
    spoil(monkeypatch, SimCLR, "gradient", 2)
    run_of(config_of(tmp_path, SimCLR, "max_steps=3", f"trainer.precision={precision}"))
    build_replay(str(tmp_path / "faults" / "step_000003.pt")).run()
    assert len(seen) == 3  # the step, its diagnosis, its replay
    for again in seen[1:]:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(again, seen[0], strict=True))


def test_a_step_with_labelled_images_in_bfloat16_is_replayed_with_them(tmp_path: Path, capsys: Printed) -> None:
    paws = (
        "objective=paws",
        "views=paws_thin",
        "views.size=8",
        "objective.support.fraction=0.2",
        "objective.support.classes_per_batch=4",
        "objective.support.images_per_class=3",
        "objective.projection_hidden=[16,16]",
        "objective.projection_dim=16",
        "trainer.precision=bf16-mixed",
        "views.std=[1e-39,1e-39,1e-39]",  # what is divided by it is not finite
        "max_faults_in_a_row=1",
    )
    with pytest.raises(UserError, match=r"trainer.precision=32-true"):
        run_of(config_of(tmp_path, SimCLR, *paws))
    path = str(tmp_path / "faults" / "step_000001.pt")
    record = read_record(path)
    assert record["support"].keys() == {"images", "ids", "slots", "labels"}
    assert record["named"].startswith("view 0 of image ")
    assert build_replay(path).run()
    printed = capsys.readouterr().out
    assert "step 1 in bf16-mixed" in printed
    assert f"now:  {record['named']}" in printed


def test_sizes_of_images_on_a_canvas_are_kept() -> None:
    sizes = torch.tensor([[3, 4], [4, 2]])
    batch = Batch(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.arange(2), torch.arange(2), sizes=sizes)
    assert Batch(**without_views(batch)) == batch


@pytest.mark.parametrize("content", [None, b"text", {"state_dict": {}}])
def test_anything_else_than_a_file_of_a_step_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "x.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=f"replay={path}: "):
        read_record(str(path))


TOY = """
import torch
from unlabeled.objective import Backbone, Batch, Objective, Output, Progress


class Toy(Objective):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: Batch, progress: Progress) -> Output:
        a, b = (self.backbone(view) for view in batch.views)
        return Output((a - b).float().pow(2).mean() + BAD, a.detach())
"""


def test_from_the_command_line_a_stopped_run_names_its_file_and_replay_tells_by_its_exit_code(
    script: Script, tmp_path: Path
) -> None:
    (tmp_path / "toy.py").write_text(TOY.replace("BAD", "(torch.inf if progress.step >= 2 else 0)"))
    (tmp_path / "conf" / "objective").mkdir(parents=True)
    (tmp_path / "conf" / "objective" / "toy.yaml").write_text("_target_: toy.Toy\n_convert_: all\n")
    paths = {"PYTHONPATH": f"{ENVIRONMENT['PYTHONPATH']}:{tmp_path}"}
    tiny = ("backbone=resnet_thin", "views.size=8", "batch_size=32", "online_knn=null", "num_workers=0", "name=x")
    command = ("train.py", "--config-dir=conf", "objective=toy", *tiny, "trainer.accelerator=cpu")
    stopped = script(*command, "max_faults_in_a_row=2", **paths)
    assert stopped.returncode == 2, stopped.stderr
    file = "outputs/x/faults/step_000004.pt"
    assert stopped.stderr.splitlines() == [stopped.stderr.strip()]
    assert f"2 steps in a row: the loss of finite outputs is inf; python train.py replay={file}" in stopped.stderr

    again = script("train.py", "--config-dir=conf", f"replay={file}", **paths)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1] == "now:  the loss of finite outputs is inf"
    (tmp_path / "toy.py").write_text(TOY.replace("BAD", "0"))
    mended = script("train.py", "--config-dir=conf", f"replay={file}", **paths)
    assert mended.returncode == 1, mended.stderr
    assert "not reproduced" in mended.stdout.splitlines()[-1]

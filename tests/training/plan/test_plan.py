"""The plan before step one: what it looks at, what it measures on a copy, and that a run does not feel it."""

import json
import random
import runpy
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from PIL import Image

from tests.conftest import ROOT
from tests.small import small_run
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.errors import UserError
from unlabeled.training.plan import callback as planning
from unlabeled.training.plan.callback import PlanCallback
from unlabeled.training.plan.plan import RunPlan, make_plan
from unlabeled.training.plan.text import format_plan
from unlabeled.training.plan.trial import PretrainingOnCopy
from unlabeled.training.run import Run
from unlabeled.views.operations import GaussianBlur, RandomResizedCrop

DIGITS = ("data=digits", "num_workers=0", "backbone.width=0.25", "batch_size=64", "max_epochs=null")
TRIED = ("plan.trial_from=0", "plan.trial_steps=2")


def config_of(name: str, run_dir: Path, *overrides: str) -> DictConfig:
    return small_run(name, run_dir, *DIGITS, "max_steps=6", *overrides)


def run_of(config: DictConfig, *callbacks: pl.Callback) -> Run:
    resolved = open_run(config)
    run = build_run(config, resolved)
    run.trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]
    run.fit(resolved)
    return run


def plan_of(config: DictConfig) -> RunPlan:
    run = build_run(config, {})
    return make_plan(run.module, run.data, 1, "cpu", "32-true", 0, "for a test")


def failed(plan: RunPlan) -> dict[str, str]:
    return {check.name: f"{check.found}; {check.remedy}" for check in plan.checks if not check.passed}


class RandomState(pl.Callback):
    """Draws from the global state when all is ready for the first step, and notes what each step sees."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen.append(torch.rand(3))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *rest: int) -> None:
        self.seen += [batch.ids, batch.images]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 images of noise in two classes."""
    folder, draw = tmp_path_factory.mktemp("images"), random.Random(0)
    for number in range(64):
        place = folder / "train" / "ab"[number % 2] / f"{number:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.frombytes("RGB", (10, 10), draw.randbytes(300)).save(place)
    return folder


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("moco_v2", ("accumulate=2",)),
        ("swav", ("objective.queue_from_epoch=0", "optimizer=lars")),
        ("paws", ("num_workers=2", "memory_gib=0")),
        ("mae", ("optimizer=adamw_mae", "backbone.width=24")),
    ],
)
def test_a_run_that_was_tried_on_a_copy_ends_with_the_bits_of_one_that_was_not(
    images: Path, tmp_path: Path, name: str, overrides: tuple[str, ...]
) -> None:
    ends = []
    for folder, steps in (("tried", 3), ("not", 0)):
        state = RandomState()
        data = ("data=folder", f"data.path={images}", "data.image_size=10", "batch_size=16", "plan.trial_from=0")
        torch.manual_seed(5)
        run = run_of(config_of(name, tmp_path / folder, *data, f"plan.trial_steps={steps}", *overrides), state)
        trial = json.loads((tmp_path / folder / "plan.json").read_text())["trial"]
        assert (trial is None) == (steps == 0)
        ends.append((torch.load(run.checkpoint, weights_only=True), state.seen))
    (ours, seen), (theirs, expected) = ends
    assert all(torch.equal(one, other) for one, other in zip(seen, expected, strict=True))
    for key, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][key], value), key
    for index, slots in theirs["optimizer_states"][0]["state"].items():
        for key, value in slots.items():
            assert torch.equal(ours["optimizer_states"][0]["state"][index][key], value), (index, key)
    assert ours["faults"] == theirs["faults"]
    assert (tmp_path / "tried" / "metrics.jsonl").read_text() == (tmp_path / "not" / "metrics.jsonl").read_text()


def command(*overrides: str) -> int:
    """Exit status of ``train.py`` in this process, where torch is imported already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *overrides])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    return int(str(stopped.value.code))


def test_plan_only_writes_the_plan_and_nothing_else_and_its_exit_status_says_whether_all_checks_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    digits = ("experiment=digits", "trainer.accelerator=cpu", "num_workers=0", "plan_only=true", "logger=wandb")
    assert command(*digits) == 0
    assert [str(path) for path in Path().rglob("*") if path.is_file()] == ["outputs/digits/plan.json"]
    plan = json.loads(Path("outputs/digits/plan.json").read_text())
    assert (plan["steps"], plan["steps_per_epoch"], plan["epochs"], plan["images"]) == (300, 5, 60, 1347)
    assert plan["seconds_left"] == pytest.approx(300 * plan["trial"]["seconds_per_step"])
    assert plan["trial"]["peak_memory_bytes"] > 2**27
    assert "4 passed, 0 failed" in capsys.readouterr().out
    assert command(*digits, "optimizer.warmup_epochs=13") == 1
    printed = capsys.readouterr().out
    assert "FAILED: a warm-up of at most a fifth of the run: optimizer.warmup_epochs=13 of 60 epochs" in printed
    assert "give optimizer.warmup_epochs=6" in printed.replace("\n   ", "")
    assert command("preview=8", *digits) == command("plan=null", *digits) == 2


def test_a_begun_run_is_planned_from_where_it_is_and_left_as_it_is(tmp_path: Path) -> None:
    run_of(config_of("simclr", tmp_path / "run", "checkpoint_every_n_steps=4", "plan=null"))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    (tmp_path / "run" / "checkpoints" / "step_000000004.ckpt").replace(last)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"]  # it names its last holder
    before = {path: path.read_bytes() for path in files}
    run = build_run(config := config_of("simclr", tmp_path / "run", "plan_only=true", *TRIED), open_run(config))
    run.plan()
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["step"] == 4
    assert plan["seconds_left"] == pytest.approx(2 * plan["trial"]["seconds_per_step"])
    assert {path: path.read_bytes() for path in before} == before


def test_what_an_earlier_plan_measured_is_taken_over_unless_it_was_of_other_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("simclr", tmp_path / "run", "plan_only=true", *TRIED)
    build_run(config, open_run(config)).plan()
    trial = json.loads((tmp_path / "run" / "plan.json").read_text())["trial"]

    def never(*given: Any) -> None:
        raise AssertionError("tried again")

    monkeypatch.setattr(planning, "run_trial", never)
    with pytest.raises(AssertionError, match="tried again"):
        run_of(config_of("simclr", tmp_path / "run", "batch_size=32", *TRIED))
    run_of(config_of("simclr", tmp_path / "run", *TRIED))
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["trial"] == trial


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), RuntimeError("can't allocate memory: 9 TB")])
def test_a_step_that_does_not_fit_into_memory_ends_in_one_line_that_says_what_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    def forward(self: PretrainingOnCopy, batch: Any) -> None:
        raise error

    monkeypatch.setattr(PretrainingOnCopy, "forward", forward)
    with pytest.raises(UserError, match=r"64 images does not fit .* batch_size, .*accumulate=.*gradient_checkpointing"):
        run_of(config_of("simclr", tmp_path, *TRIED))


WARMUP, LAST = "a warm-up of at most a fifth of the run", "a last learning rate of at most a tenth of the peak"
LONG, FULL = "a queue shorter than the data", "a queue that is full before the end"
FEW = "at least a tenth as many samples as prototypes"


@pytest.mark.parametrize(
    ("name", "overrides", "objective", "failing", "words"),
    [
        ("simclr", ["max_steps=42", "optimizer.warmup_epochs=0.4"], {}, {}, ""),
        ("simclr", ["max_steps=42", "optimizer.warmup_epochs=0.41"], {}, {WARMUP}, "0.41 of 2 epochs; "),
        ("simclr", ["max_steps=42", "optimizer.warmup_epochs=9"], {}, {WARMUP}, "9 of 2 epochs; "),
        ("simclr", ["max_steps=4"], {}, {LAST}, "0.0011 after a peak of 0.0075; "),
        ("simclr", ["optimizer.milestones=[0.2]"], {}, {}, ""),
        ("simclr", ["optimizer.milestones=[0.3]"], {}, {LAST}, "0.0075 after a peak of 0.0075; "),
        ("moco_v2", ["max_steps=23"], {"queue_size": 1347}, {LONG}, "give objective.queue_size=1024"),
        ("moco_v2", [], {"queue_size": 400}, {FULL}, "80% full at the last step"),
        ("moco_v2", [], {"queue_size": 320}, {}, ""),
        ("swav", [], {"prototypes": 650, "queue_length": 0}, {FEW}, "give objective.prototypes=640"),
        ("swav", [], {"prototypes": 650, "queue_length": 64, "queue_from_epoch": 0}, {}, ""),
        ("swav", [], {"queue_length": 64, "queue_from_epoch": 1}, {FULL}, "0% full at the last step"),
    ],
)
def test_each_check_fails_where_it_should_with_what_was_found_and_what_to_give(
    tmp_path: Path, name: str, overrides: list[str], objective: dict[str, Any], failing: set[str], words: str
) -> None:
    config = config_of(name, tmp_path, *overrides)
    config.objective.update(objective)
    found = failed(plan_of(config))
    del found["crops that show something"]  # of 8 pixels
    found.pop("a blur that fits", None)  # into small crops of 4
    assert found.keys() == set(failing)
    assert words in "".join(found.values())


@pytest.mark.parametrize("pixels", [*range(4, 40), 96, 224])
def test_the_scale_and_the_kernel_that_a_failed_check_gives_pass_it(pixels: int) -> None:
    remedy = RandomResizedCrop(8, (1e-4, 1.0), (0.75, 1.33), "bilinear", 0.5).plan_warnings(pixels)[1].remedy
    crop = RandomResizedCrop(8, (float(remedy.split()[3]), 1.0), (0.75, 1.33), "bilinear", 0.5)
    assert crop.plan_warnings(pixels)[1].passed
    remedy = GaussianBlur((0.1, 2.0), 1e-4, 0.5).plan_warnings(pixels)[0].remedy
    blur = GaussianBlur((0.1, 2.0), float(remedy.split("=")[1].split(",")[0]), 0.5)
    assert blur.plan_warnings(pixels)[0].passed


def test_crops_and_blur_that_do_not_fit_the_images_are_found() -> None:
    def names(*checks: Any) -> list[bool]:
        return [check.passed for check in checks]

    crop = RandomResizedCrop(64, (0.04, 1.0), (0.75, 1.33), "bilinear", 0.5)
    assert names(*crop.plan_warnings(32)) == [True, True]
    assert names(*crop.plan_warnings(31)) == [False, True]
    assert names(*crop.plan_warnings(19)) == [False, False]
    assert names(*GaussianBlur((0.1, 2.0), 0.1, 0.5).plan_warnings(224)) == [True]
    assert names(*GaussianBlur((0.1, 2.0), 0.1, 0.5).plan_warnings(16)) == [False]  # one pixel: nothing is blurred
    assert names(*GaussianBlur((0.1, 2.0), 1.2, 0.5).plan_warnings(32)) == [False]  # 39 pixels
    assert "a kernel of 39 pixels on views of 32" in GaussianBlur((0.1, 2.0), 1.2, 0.5).plan_warnings(32)[0].found


@pytest.mark.parametrize("name", ["simclr", "swav", "relicv2"])
def test_what_is_printed_fits_a_terminal(name: str, tmp_path: Path) -> None:
    plan = plan_of(config_of(name, tmp_path, "max_steps=3"))
    lines = format_plan(plan, "a run").splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) <= 40
    assert len(failed(plan)) >= 1


def test_an_objective_that_cannot_be_copied_is_refused_with_the_key_that_goes_without(tmp_path: Path) -> None:
    run = build_run(config_of("simclr", tmp_path, *TRIED), {})
    run.module.objective.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"SimCLR cannot be copied .*lock.* give plan\.trial_steps=0"):
        run.fit({})


def test_a_run_that_is_compiled_is_not_tried_uncompiled_and_its_plan_says_so(tmp_path: Path) -> None:
    """A deep copy drops the compiled call: its times would be those of another run."""
    config = config_of("simclr", tmp_path / "run", "compile=default", "plan_only=true", *TRIED)
    build_run(config, open_run(config)).plan()
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert (plan["trial"], plan["not_tried"]) == (None, "a copy would be compiled anew with compile=…")


def test_a_single_trial_step_is_refused() -> None:
    with pytest.raises(UserError, match=r"plan\.trial_steps=1: the first one warms up"):
        PlanCallback(trial_steps=1, trial_from=0)

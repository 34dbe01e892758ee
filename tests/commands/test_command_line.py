"""The scripts as a user meets them: a mistake costs one line, help is quick, a new objective needs two files."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import ENVIRONMENT, ROOT, Script

TINY = (
    "experiment=digits",
    "max_epochs=1",
    "batch_size=64",
    "probe=knn",
    "probe.knn.k=[20]",
    "backbone.width=0.125",
    "online_knn=null",
    "num_workers=0",
    "log_every_n_steps=1",
)

PAWS = ("objective=paws", "views=paws_thin", "objective.support.classes_per_batch=10")


def only_line(script: Script, *overrides: str, name: str = "train.py") -> str:
    """The one line that a refused command prints; asserts exit code 2."""
    finished = script(name, *overrides)
    assert finished.returncode == 2, finished.stderr
    return the_line(finished.stderr)


def the_line(printed: str) -> str:
    lines = printed.strip().splitlines()
    assert len(lines) == 1, printed
    return lines[0]


Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refused:
    """As ``only_line``, within this process: torch is imported already."""

    def run(*overrides: str, name: str = "train.py") -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *overrides])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        assert stopped.value.code == 2
        return the_line(capfd.readouterr().err)

    return run


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("objective.temprature=1", ["objective.temprature", "did you mean objective.temperature?"]),
        ("optimizer.momentum=0.5", ["optimizer.momentum", "did you mean optimizer.optimizer.momentum?"]),
        ("batchsize=64", ["batchsize", "did you mean batch_size?"]),
        ("objective=simclrr", ["objective=simclrr", "did you mean simclr?"]),
        ("objectiv=simclr", ["objectiv", "did you mean objective?"]),
        ("experiment=digit", ["experiment=digit", "did you mean digits?"]),
        ("data=folder", ["data.path"]),
        ("views=relicv2", ["views.masks: has no default; give views.masks=…"]),
        ("batch_size=", ["batch_size", "a whole number"]),
        ("probe=null", ["~group"]),
    ],
)
def test_a_mistake_that_hydra_can_see_costs_one_line_with_the_nearest_name(
    script: Script, override: str, words: list[str]
) -> None:
    line = only_line(script, override)
    assert [word for word in words if word not in line] == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+objective.temprature=1"], ["objective.temprature", "did you mean objective.temperature?"]),
        (["++optimizer.weight_decy=1"], ["optimizer.weight_decy", "did you mean optimizer.weight_decay?"]),
        (["objective._target_=unlabeled.nothing.X"], ["objective._target_=unlabeled.nothing.X", "cannot be found"]),
        (["+seeds=1"], ["seeds", "did you mean seed?"]),
        (["+trainer.presicion=16"], ["trainer.presicion", "did you mean trainer.precision?"]),
        (["name=../x"], ["name=../x", "within outputs/"]),
        (["name='/tmp/x'"], ["name=/tmp/x", "within outputs/"]),
        (["name=''"], ["name=", "must be the name of a folder"]),
        (["name=..", "run_dir=x"], ["name=..", "must be the name of a folder"]),
        (["run_dir=''"], ["run_dir=", "must be the name of a folder"]),
        (["data=digits", "batch_size=5000"], ["batch_size=5000", "1347"]),
        (["data=digits", "max_epochs=null"], ["max_epochs=None", "max_steps=None"]),
        (["data=folder", "data.path=/nowhere"], ["data.path=/nowhere"]),
        (["optimizer.lr_scaling=cubic"], ["optimizer.lr_scaling=cubic", "square_root"]),
        (["optimizer.lr=fast"], ["optimizer.lr=fast", "a number"]),
        (["max_faults_in_a_row=0"], ["max_faults_in_a_row=0", "at least 1"]),
        (["replay=x.pt"], ["replay=…", "leave out name=x"]),
        (["preview=0"], ["preview=0", "at least 1"]),
        (["pictures.pool=0"], ["pictures.pool=0", "at least 1"]),
        (["data=digits", "preview=257"], ["preview=257", "batch_size=256"]),
        (["preview=true"], ["preview=True", "a whole number", "or null"]),
        (["preview=8", "data=folder", "data.path=/nowhere"], ["data.path=/nowhere"]),
        (["preview=8", "views.masks=/nowhere", "views=relicv2_small"], ["/nowhere"]),
        (["batch_size=64.5"], ["batch_size=64.5", "a whole number"]),
        (
            ["data=digits", "trainer.strategy=fsdp", "trainer.precision=16-mixed"],
            ["trainer.precision=16-mixed", "32-true or bf16"],
        ),
        (["trainer.strategy=deepspeed"], ["trainer.strategy=deepspeed", "ddp or fsdp"]),
        (["objective=paws", "views=paws_thin"], ["objective.support.classes_per_batch=960", "10 classes"]),
        ([*PAWS, "objective.support.views=3"], ["objective.support.views=3", "at most 2"]),
        (
            [*PAWS, "objective.support.fraction=0.1", "objective.support.per_class=3"],
            ["not fraction=0.1 and per_class=3: add objective.support.fraction=null"],
        ),
        ([*PAWS, "views=mae_small"], ["views: these make 1 of an image", "at least 2"]),
        ([*PAWS, "objective.support.images_per_class=20"], ["objective.support.images_per_class=20", "class"]),
        (["probe=paws_nn", "probe.paws_nn.per_class=0"], ["probe.paws_nn.per_class=0"]),
        (["backbone=timm", "backbone.model=resnet51"], ["backbone.model=resnet51", "resnet50"]),
    ],
)
def test_a_key_that_nothing_reads_or_a_value_that_cannot_work_costs_one_line(
    refused: Refused, overrides: list[str], words: list[str]
) -> None:
    line = refused("name=x", *overrides)
    assert [word for word in words if word not in line] == []


OUT_OF_RANGE = [
    *[f"objective.temperature={value}" for value in ("0", "-1", "nan", "inf", "cold", "true", "null", "[1]", "")],
    *["optimizer.lr=-1", "optimizer.weight_decay=-1", "optimizer.optimizer.momentum=1.5", "optimizer.warmup_epochs=-1"],
    *["views.std=[0,0,0]", "views.mean=abc", "views.evaluation_crop=2", "views.size=0"],
    *["checkpoint_every_n_steps=-1", "timeout_minutes=nan", "online_knn.queries=0", "num_workers=-1", "seed=-1"],
    *["log_every_n_steps=0", "seed=1e400", "objective.projection_dim=0", "name=", "run_dir=", "batch_size==5"],
    *["trainer.devices=0", "trainer.devices=abc", "trainer.accelerator=quantum", "trainer.precision=int8"],
    *["trainer.strategy=foo", "trainer.num_nodes=0", "trainer.gradient_clip_val=-1", "max_epochs=-3", "cache_gib=-1"],
    *["probe.knn.k=[]", "probe.knn.k=[0]", "probe.linear.holdout=0.9", "compile=fast", "plan=3", "pictures.images=inf"],
]


@pytest.mark.parametrize("override", OUT_OF_RANGE)
def test_a_value_out_of_range_costs_one_line_that_says_what_is_allowed_and_nothing_is_written(
    refused: Refused, tmp_path: Path, override: str
) -> None:
    line = refused(override)
    assert line.startswith(f"error: {override.split('=')[0]}")
    assert "must be" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["probe=[knn,nope]"], ["probe=nope", "did you mean none?"]),
        (["logger=[csv,nope]"], ["logger=nope", "csv, mlflow, tensorboard, wandb"]),
        (["optimizer=adamw", "optimizer.optimizer.betas=[0.9]"], ["optimizer.optimizer.betas=[0.9]", "a list of 2"]),
        (["experiment=digits", "probe.knn.features=foo"], ["probe.knn.features=foo", "last, last4"]),
        (["experiment=digits", "batch_size=1"], ["batch_size=1", "negatives"]),
        (["lr=0.1"], ["lr", "optimizer.lr"]),
        (["epochs=3"], ["epochs", "max_epochs"]),
        (["+trainer.accumulate_grad_batches=2"], ["trainer.accumulate_grad_batches"]),
        (["data=folder", "data.path=/d/eq=ual"], ["data.path=/d/eq=ual"]),
        (["data=folder", "data.path=/d/ünï (en) #x"], ["data.path=/d/ünï (en) #x"]),
        (["--lr", "0.1"], ["optimizer.lr=0.1"]),
        (["ключ=1"], ["ключ"]),
    ],
)
def test_what_used_to_be_a_traceback_is_one_line(refused: Refused, overrides: list[str], words: list[str]) -> None:
    line = refused(*overrides)
    assert [word for word in words if word not in line] == []


@pytest.mark.parametrize(
    ("experiment", "exchanged", "key"),
    [
        ("digits", "objective=byol", "objective.temperature"),
        ("supervised_cifar10_cpu", "objective=simclr", "objective.classes"),
        ("fixmatch_cifar10_cpu", "optimizer=muon", "optimizer.optimizer.nesterov"),
    ],
)
def test_a_key_that_an_experiment_gives_for_another_part_is_left_out_as_the_message_says(
    refused: Refused, experiment: str, exchanged: str, key: str
) -> None:
    asked = (f"experiment={experiment}", exchanged, "data=digits", "plan_only=true")
    line = refused(*asked)
    assert f"{key}: no such key" in line
    assert f"the experiment sets it for its own {key.split('.')[0]}: leave it out with ~{key}" in line
    assert f"{key}: no such key" not in refused(*asked, f"~{key}", "batch_size=0")
    assert "leave it out with" not in refused(*asked, f"~{key}", f"+{key}=1")  # typed, not the experiment's


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_gpu_that_is_not_there_is_said_before_anything_is_done(refused: Refused, tmp_path: Path) -> None:
    assert "trainer.accelerator=gpu" in refused("trainer.accelerator=gpu")
    assert "trainer.precision=16-mixed" in refused("trainer.precision=16-mixed", "trainer.accelerator=cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_as_lightning_names_it_is_a_path(refused: Refused) -> None:
    line = refused("checkpoint=outputs/simclr-ep=9.ckpt", name="eval_linear.py")
    assert "outputs/simclr-ep=9.ckpt: no such file" in line


def test_a_key_of_an_experiment_that_nothing_reads_is_found(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text("# @package _global_\nobjective:\n  temprature: 1\n")
    line = refused(f"--config-dir={tmp_path / 'mine'}", "experiment=own", "name=x")
    assert "did you mean objective.temperature?" in line


def test_the_evaluation_refuses_in_one_line_too(refused: Refused) -> None:
    assert "run=outputs/NAME" in refused(name="eval_linear.py")
    assert "run=outputs/nothing: no such folder" in refused("run=outputs/nothing", name="eval_linear.py")
    assert "did you mean run?" in refused("runs=outputs/x", name="eval_linear.py")


def choices_of(help_text: str) -> dict[str, dict[str, str]]:
    """Group → choice → the beginning of its sentence, as ``--help`` prints them."""
    parts = re.split(r"^(\w+)=$", help_text.partition("== Choices")[2].partition("\n==")[0], flags=re.M)
    found = {}
    for group, lines in zip(parts[1::2], parts[2::2], strict=True):
        found[group] = dict(re.findall(r"^  (\w+) +(\S.*)$", lines, re.M))
    return found


def test_help_answers_within_four_seconds_with_a_sentence_for_each_choice(python: Script) -> None:
    started = time.monotonic()
    finished = python("train.py", "--help")
    assert time.monotonic() - started < 4
    assert finished.returncode == 0
    found = choices_of(finished.stdout)
    for group in ("backbone", "data", "experiment", "objective", "optimizer", "probe", "views"):
        assert set(found[group]) == {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}, group
        assert [choice for choice, sentence in found[group].items() if len(sentence) < 10] == []


def test_help_of_a_command_that_only_evaluates_lists_nothing_that_only_trains(python: Script) -> None:
    found = choices_of(python("eval_linear.py", "--help").stdout)
    assert set(found) == {"backbone", "data", "probe", "views"}


def test_a_run_leaves_its_configuration_metrics_checkpoint_and_report(
    python: Script, script: Script, tmp_path: Path
) -> None:
    finished = python("train.py", *TINY, "name=tiny")
    assert finished.returncode == 0, finished.stderr
    run = tmp_path / "outputs" / "tiny"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in trained] == list(range(1, 1347 // 64 + 1))
    assert [line["epoch"] for line in trained] == [step / 21 for step in range(1, 22)]
    assert trained[0]["train/learning_rate"] == 0.0  # the first step of a warm-up
    assert "temperature: 0.2" in (run / "config.yaml").read_text()
    assert (run / "checkpoints" / "last.ckpt").exists()
    rows = json.loads((run / "report" / "results.json").read_text())["rows"]
    assert {row["features"] for row in rows} == {"pretrained", "random init", "raw pixels", "chance"}
    assert "| pretrained " in finished.stdout
    assert "report.html" in finished.stdout

    judged = script("eval_linear.py", "run=outputs/tiny", "probe=knn", "probe.knn.k=[20]", "report_dir=again")
    assert judged.returncode == 0, judged.stderr
    again = json.loads((tmp_path / "again" / "results.json").read_text())["rows"]
    assert [row["top1"] for row in again] == [row["top1"] for row in rows]

    once_more = script("train.py", *TINY, "name=tiny")
    assert once_more.returncode == 0, once_more.stderr
    assert "outputs/tiny: the run was finished already, at step 21; no step is added" in once_more.stdout

    other = script("train.py", *TINY, "name=tiny", "objective.temperature=0.3")
    assert other.returncode == 2
    assert "objective.temperature" in other.stderr  # the folder holds a run with another temperature


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *TINY, "max_epochs=1000", "name=stopped"]
    environment = os.environ | ENVIRONMENT
    run = tmp_path / "outputs" / "stopped"
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        while not (run / "metrics.jsonl").exists():
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in output
    assert "name=stopped" in output
    steps = (run / "metrics.jsonl").read_text().count("train/loss")
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["progress"]["step"] == steps


TOY = """
import torch
from unlabeled.objective import Backbone, Batch, Objective, Output, Progress


class Toy(Objective):
    def __init__(self, backbone: Backbone, weight: float) -> None:
        super().__init__()
        self.backbone, self.weight = backbone, weight
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, batch: Batch, progress: Progress) -> Output:
        a, b = (self.backbone(view) for view in batch.views)
        return Output(self.weight * (a - b).float().pow(2).mean(), a.detach())

    def after_step(self, progress: Progress) -> None:
        self.steps += 1
        assert int(self.steps) == progress.step + 1
"""


def test_a_new_objective_is_one_python_file_and_one_yaml(script: Script, tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "conf" / "objective").mkdir(parents=True)
    (tmp_path / "conf" / "objective" / "toy.yaml").write_text("_target_: toy.Toy\n_convert_: all\nweight: 2.0\n")
    paths = f"{ENVIRONMENT['PYTHONPATH']}:{tmp_path}"
    overrides = [override for override in TINY if override != "experiment=digits"]
    finished = script(
        "train.py",
        "--config-dir=conf",
        *overrides,
        "objective=toy",
        "backbone=resnet_thin",
        "views.size=8",
        "max_steps=3",
        PYTHONPATH=paths,
    )
    assert finished.returncode == 0, finished.stderr
    metrics = tmp_path / "outputs" / "toy-resnet_thin-digits-seed0" / "metrics.jsonl"
    assert metrics.read_text().count("train/loss") == 3
    run = f"run={metrics.parent}"
    alone = script("eval_linear.py", run, "probe=knn", "probe.knn.k=[20]", PYTHONPATH=paths)
    assert alone.returncode == 2
    assert "objective._target_=toy.Toy: is no objective of this package" in alone.stderr
    named = script("eval_linear.py", "--config-dir=conf", run, "probe=knn", "probe.knn.k=[20]", PYTHONPATH=paths)
    assert named.returncode == 0, named.stderr
    misspelt = script("train.py", "--config-dir=conf", "objective=toy", "+objective.wieght=1", PYTHONPATH=paths)
    assert misspelt.returncode == 2
    assert "did you mean objective.weight?" in misspelt.stderr


@pytest.mark.parametrize(
    ("overrides", "pattern"),
    [
        (["logger=[csv,tensorboard]"], "tensorboard/events.out.tfevents.*"),
        (["logger=wandb"], "wandb/offline-run-*/*.wandb"),  # WANDB_MODE=offline
    ],
)
def test_other_loggers_mirror_the_metrics_in_the_run_folder(
    script: Script, tmp_path: Path, overrides: list[str], pattern: str
) -> None:
    finished = script("train.py", *TINY, "name=logged", "max_steps=2", "data.image_size=8", *overrides)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "outputs" / "logged" / "metrics.jsonl").read_text().count("train/loss") == 2
    assert list((tmp_path / "outputs" / "logged").glob(pattern))


def test_an_experiments_settings_of_a_probe_that_was_not_chosen_are_no_mistake_and_of_no_probe_are(
    script: Script,
) -> None:
    short = ["experiment=cifar10_cpu", "data=digits", "max_steps=1", "batch_size=16", "online_knn=null", "views.size=8"]
    finished = script("train.py", *short, "probe=none", "run_dir=x", "trainer.accelerator=cpu")
    assert finished.returncode == 0, finished.stderr
    assert "nothing is evaluated" in finished.stdout
    refused = script("train.py", *short, "run_dir=y", "+probe.knnn.k=3")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: probe.knnn: no such probe; did you mean probe.knn?")

"""The command ``unlabeled``: a sentence for each of its commands, and a line for each mistake."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, ROOT, Script
from unlabeled.commands.arguments import typed
from unlabeled.commands.entry_points.console import COMMANDS, folders_as, main, overview
from unlabeled.commands.setup.new import KINDS, write_skeleton
from unlabeled.errors import UserError


def printed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["/bin/unlabeled", *arguments])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capfd.readouterr()
    return code, (captured.out + captured.err).removeprefix("generated new fontManager\n")  # matplotlib, once a cache


def test_help_has_a_sentence_for_each_command_and_answers_in_a_third_of_a_second() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "unlabeled", "--help"]
    environment = os.environ | ENVIRONMENT
    finished = [subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60) for _ in range(3)]
    assert finished[0].stdout == overview() + "\n"
    for name, each in COMMANDS.items():
        assert f"  {name} " in finished[0].stdout
        assert each.sentence.endswith(".")
    loaded = {line.rpartition("|")[2].strip() for line in finished[0].stderr.splitlines()}
    assert not loaded & {"torch", "hydra", "numpy", "omegaconf"}
    started = time.perf_counter()
    seconds: list[float] = []
    for _ in range(3):
        subprocess.run(command[:1] + command[3:], env=environment, capture_output=True, timeout=60)
        seconds.append(time.perf_counter() - started - sum(seconds))
    assert min(seconds) < 0.3


def test_every_command_names_a_function_that_is_there_and_its_own_configuration() -> None:
    for each in COMMANDS.values():
        module, function = each.home.split(":")
        assert callable(getattr(__import__(module, fromlist=[function]), function))
        assert each.primary is None or (ROOT / "conf" / f"{each.primary}.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["trian"], "error: trian: no such command; did you mean train?\n"),
        (["experiment=digits"], "error: experiment=digits: give a command first: unlabeled train experiment=digits"),
        (["evaluate", "a", "b"], "error: a b: this command takes one of them"),
        (["evaluate", "a", "run=b"], "error: run=… and a without a key: give one of the two"),
        (["evaluate", "outputs/none"], "error: run=outputs/none: no such folder\n"),
        (["export", "outputs/none", "to=timm"], "error: run=outputs/none: no such folder\n"),
        (["health", "outputs/none"], "error: run=outputs/none: no such folder\n"),
        (["represent", "run=x", "imges=3"], "error: imges: no such key; did you mean images?"),
        (["table"], "error: runs=[]: give folders of runs"),
        (["compare", "outputs/none", "outputs/other"], "error: compare: outputs/none: no such folder\n"),
        (["table", "outputs/none"], "error: runs: outputs/none: no such folder\n"),
        (["train"], "error: data: nothing says what to train on; unlabeled train data=PATH takes your images, "),
        (["plan", "max_epochs=3"], "error: data: nothing says what to train on; unlabeled train data=PATH"),
        (["inspect", "data=folder"], "error: data.path: has no default; give data.path="),
        (["watch", "outputs/none"], "error: outputs/none: no such folder"),
        (["doctor", "x"], "error: x: unlabeled doctor takes no arguments"),
        (["new", "objectiv", "x"], "error: objectiv: no such kind; did you mean objective?"),
        (["new", "objective", "random"], "error: random: give a name of small letters"),
        (["plan", "data=digts"], "error: data=digts: unknown; did you mean digits?"),
        (["preview", "views=simcl"], "error: views=simcl: unknown; did you mean simclr?"),
        (["train", "name=../x"], "error: name=../x: must be the name of a folder within outputs/"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_two(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, found = printed(capfd, monkeypatch, *arguments)
    assert code == 2
    assert found.startswith(line)
    assert len(found.strip().splitlines()) == 1


@pytest.mark.parametrize("name", [name for name, each in COMMANDS.items() if each.called])
def test_the_help_of_a_command_calls_it_by_its_name(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    code, found = printed(capfd, monkeypatch, name, "--help")
    assert code == 0
    assert f"unlabeled {name}" in found
    assert COMMANDS[name].called not in found


def test_folders_without_a_key_get_theirs_and_options_keep_their_values(tmp_path: Path) -> None:
    odd = tmp_path / "a=b"
    odd.mkdir()
    assert folders_as("run", ["outputs/a", "to=onnx"]) == ["to=onnx", 'run="outputs/a"']
    assert folders_as("runs", ["a", str(odd), "-m"]) == ["-m", f'runs=["a","{odd}"]']
    assert folders_as("run", ["--config-dir", "conf", "--cfg", "job"]) == ["--config-dir", "conf", "--cfg", "job"]


@pytest.mark.parametrize(
    ("argv", "command", "another"),
    [
        (["train.py", "x=[a b]"], "python train.py 'x=[a b]'", "python train.py seed=2"),
        (["/bin/unlabeled", "train", "x=[a b]"], "unlabeled train 'x=[a b]'", "unlabeled train seed=2"),
        (["/unlabeled/commands/represent.py", "run=x"], "unlabeled represent run=x", "unlabeled represent seed=2"),
        (["/x/__main__.py", "train", "x=1"], "python -m unlabeled train x=1", "python -m unlabeled train seed=2"),
    ],
)
def test_what_was_typed_is_what_is_shown(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], command: str, another: str
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    assert typed.typed_command() == command
    assert typed.typed_command(["seed=2"]) == another


def test_within_a_job_the_command_is_whole_again_so_that_further_processes_are_the_same_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from unlabeled.commands.config import launch

    seen: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", ["/bin/unlabeled", "table", "runs=[a]"])
    launch("table", lambda config: seen.append(sys.argv), ["runs=[b]"])
    assert seen == [["/bin/unlabeled", "table", "runs=[a]"]]
    assert sys.argv == seen[0]


def test_skeletons_of_all_kinds_pass_the_tests_that_come_with_them(script: Script, tmp_path: Path) -> None:
    for kind in KINDS:
        write_skeleton(kind, f"my_{kind}", tmp_path)
    with pytest.raises(UserError, match=r"my_probe\.py: is there already"):
        write_skeleton("probe", "my_probe", tmp_path)
    arguments = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(tmp_path)]
    (tmp_path / "all.py").write_text(f"import pytest\nraise SystemExit(pytest.main({arguments}))\n")
    finished = script(str(tmp_path / "all.py"))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "12 passed" in finished.stdout


def test_an_own_objective_is_found_beside_its_configuration_without_any_path(script: Script, tmp_path: Path) -> None:
    write_skeleton("objective", "own", tmp_path / "elsewhere")
    chosen = [
        f"--config-dir={tmp_path / 'elsewhere' / 'conf'}",
        "objective=own",
        "backbone=resnet_thin",
        "views.size=8",
    ]
    short = ["max_steps=1", "batch_size=16", "online_knn=null", "pictures=null", "probe=none", "num_workers=0"]
    finished = script("train.py", *chosen, *short, "trainer.accelerator=cpu", "name=own")
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "outputs" / "own" / "checkpoints" / "last.ckpt").exists()
    wrong = script("train.py", *chosen, "objective.unifornity=1")
    assert "did you mean objective.uniformity?" in wrong.stderr


def test_a_package_that_is_not_there_is_named_with_its_extra(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'kornia'", name="kornia")

    monkeypatch.setattr("unlabeled.commands.config.resolve_name", missing)
    code, found = printed(capfd, monkeypatch, "saliency", "out=x")
    assert (code, found) == (2, "error: kornia is not installed: pip install 'unlabeled[kornia]'\n")


def test_configurations_inside_of_the_package_go_before_those_of_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unlabeled.commands.config import conf_folder

    assert conf_folder() == ROOT / "conf"
    monkeypatch.setattr("unlabeled.__file__", str(tmp_path / "ssl" / "unlabeled" / "__init__.py"))
    (tmp_path / "ssl" / "unlabeled" / "conf").mkdir(parents=True)
    assert conf_folder() == tmp_path / "ssl" / "unlabeled" / "conf"

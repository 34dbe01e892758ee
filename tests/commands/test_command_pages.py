"""Each command has its page: its examples have known keys, and its mistakes cost the line that stands there."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

import unlabeled
from tests.commands.test_from_python import KEYS
from tests.conftest import ROOT
from unlabeled.commands.arguments.compose import composed
from unlabeled.commands.arguments.data_path import with_data_source
from unlabeled.commands.entry_points.console import COMMANDS, folders_as, main
from unlabeled.commands.evaluate.own_data_keys import with_folder, with_sets
from unlabeled.commands.setup import new
from unlabeled.commands.tune import tune
from unlabeled.commands.tune.space import assignments, corners, split
from unlabeled.training import run_lock

PAGES = ROOT / "docs" / "commands"
HOME = "/home/me"  # where the commands of the pages were typed
OWN = {
    "train": "train",
    "plan": "train",
    "preview": "train",
    "evaluate": "eval_linear",
    "compare": "eval_linear",
    "tune": "tune",
    "transfer": "transfer",
    "segment": "segment",
    "detect": "detect",
    "cluster": "cluster",
}


def blocks(name: str, language: str) -> Iterator[str]:
    text = (PAGES / f"{name}.md").read_text()
    for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL):
        yield from block.splitlines()


def examples() -> list[tuple[str, str]]:
    return [(name, line) for name in COMMANDS for line in blocks(name, "bash")]


def mistakes() -> list[tuple[str, str]]:
    lines = [line for name in COMMANDS for line in blocks(name, "text")]
    return list(zip(lines[::2], lines[1::2], strict=True))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small evaluated run, images without labels, a file of text, and a module."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "photos").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (40, 20, 24, 3), np.uint8)):
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
    (folder / "shapes" / "train" / "images").mkdir(parents=True)
    (folder / "notes.txt").write_text("no image\n")
    (folder / "taken.py").touch()
    unlabeled.train(out=folder / "outputs" / "digits", **KEYS)
    return folder


def test_each_command_has_a_page_that_the_index_and_the_readme_lead_to() -> None:
    index = (ROOT / "docs" / "commands.md").read_text()
    assert sorted(path.stem for path in PAGES.glob("*.md")) == sorted(COMMANDS)
    assert [name for name in COMMANDS if f"(commands/{name}.md)" not in index] == []
    assert "(docs/commands.md)" in (ROOT / "README.md").read_text()
    for name in COMMANDS:
        assert list(blocks(name, "bash")), name
        assert list(blocks(name, "text")), name


@pytest.mark.parametrize("name", [name for name in COMMANDS if name in OWN or COMMANDS[name].primary])
def test_a_page_has_a_row_for_each_key_and_no_other(name: str) -> None:
    text = (PAGES / f"{name}.md").read_text()
    if name in ("plan", "preview"):
        assert "(train.md#keys)" in text
        return
    primary = "representation_compare" if name == "compare" else COMMANDS[name].primary or OWN[name]
    content: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / f"{primary}.yaml"))
    own = [key for key in content if key not in ("defaults", "hydra")]
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == own


@pytest.mark.parametrize(("name", "line"), examples())
def test_an_example_has_keys_and_choices_that_there_are(
    name: str, line: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    command, *arguments = shlex.split(line, comments=True)[1:]
    assert line.startswith(f"unlabeled {name}")
    assert command == name
    if name == "new":
        kind, chosen = arguments
        assert (kind in new.KINDS, chosen.isidentifier()) == (True, True)
    elif name == "watch":
        assert arguments in (["outputs/"], ["outputs/", "--port", "9000"])
    elif name == "doctor":
        assert arguments == []
    elif name in ("transfer", "segment", "detect"):
        composed(name, (with_sets if name == "transfer" else with_folder)(arguments))
    elif name == "tune":
        own = [argument for argument in arguments if argument.split("=")[0] in tune.OWN]
        composed("tune", own)
        fixed, space = split([argument for argument in arguments if argument not in own])
        composed("train", [*fixed, *assignments(next(corners(space)))])
    else:
        layers = any(argument.startswith("first=") for argument in arguments)
        primary = "representation_compare" if layers else COMMANDS[name].primary or OWN[name]
        folder = COMMANDS[name].folder
        keys = with_data_source(arguments if folder is None or layers else folders_as(folder, arguments))
        composed(
            primary,
            [f"+{key}" if key.startswith("data.path=") and name in ("embed", "predict") else key for key in keys],
        )


@pytest.mark.parametrize(("typed", "line"), mistakes())
def test_a_mistake_costs_the_line_of_the_page_and_nothing_is_written(
    typed: str, line: str, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    before = sorted(home.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["/bin/unlabeled", *shlex.split(typed.removeprefix("$ unlabeled "))])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capfd.readouterr().err
    assert (stopped.value.code, said.count("\n")) == (2, 1), said
    wanted = ".*".join(map(re.escape, line.split("…")))
    assert re.fullmatch(wanted, said.strip().replace(str(home), HOME)), said
    for lock in list(run_lock._held.values()):  # as the end of the command does
        lock.release()
    assert sorted(home.rglob("*")) == before

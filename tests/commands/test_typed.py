"""What is typed reaches Hydra as it was meant: paths and names literally, habits with the key that is meant."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ENVIRONMENT, ROOT
from tests.small import CONF
from unlabeled.commands import command_line
from unlabeled.commands.aliases import ALIASES, meant
from unlabeled.commands.command_line import Reader, as_typed
from unlabeled.commands.config import with_joined_options
from unlabeled.commands.keys import TYPES
from unlabeled.core.escaping import escaped, for_shell
from unlabeled.errors import UserError


def read(*typed: str, command: str = "train") -> list[str]:
    return Reader(CONF, command, list(typed)).arguments()


def value(typed: str, command: str = "train") -> object:
    """What Hydra makes of one argument; behind it may stand what the argument takes out."""
    argument = read(typed, command=command)[0]
    return OverridesParser.create().parse_override(argument).value()


def message(*typed: str, command: str = "train") -> str:
    with pytest.raises(UserError) as refused:
        read(*typed, command=command)
    return str(refused.value)


PATHS = [
    "true",
    "False",
    "nan",
    "inf",
    "Null",
    "/d/ünï",
    "/d/(en)",
    "/d/#x",
    "/d/eq=ual",
    "/d/a b",
    "/d/it's",
    '/d/"',
    "/d/x,y",
    "/d/{a",
    "2024",
    "/d/%",
]


@pytest.mark.parametrize("path", [*PATHS, "C:\\d"])
@pytest.mark.parametrize("key", ["data.path", "run_dir", "views.masks", "objective.support.labels_file", "replay"])
def test_a_path_is_taken_literally(key: str, path: str) -> None:
    assert value(f"{key}={path}") == path


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_any_text_is_a_path_but_what_is_quoted_a_list_or_an_interpolation(text: str) -> None:
    path = f"/d/{text}/x"
    if "${" not in path:
        assert value(f"data.path={path}") == path
        (once,) = read(f"data.path={path}")
        assert value(once) == path  # as a process gets it that another one starts


def test_the_home_folder_is_expanded_in_a_path_and_in_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert value("data.path=~/images") == "/home/me/images"
    assert value("cache=~") == "/home/me"
    assert value("name=~x") == "~x"


@pytest.mark.parametrize(
    ("typed", "command", "expected"),
    [
        ("checkpoint=outputs/simclr-ep=9.ckpt", "eval_linear", "outputs/simclr-ep=9.ckpt"),
        ("compare=[a=b,c(d)]", "eval_linear", ["a=b", "c(d)"]),
        ("compare=[[a=1,a=2],[b (1),b]]", "eval_linear", [["a=1", "a=2"], ["b (1)", "b"]]),
        ("first={checkpoint:/d/ep=9.ckpt,seed:1}", "representation_compare", {"checkpoint": "/d/ep=9.ckpt", "seed": 1}),
        ("first=/d/ep=9.ckpt", "representation_compare", "/d/ep=9.ckpt"),
        ("probe.few_labels.labels_files=[/d/(a).txt,b=1]", "train", ["/d/(a).txt", "b=1"]),
        ("name=2024", "train", "2024"),
        ("name=1e3", "train", "1e3"),
        ("name=true", "train", "true"),
        ("name=NaN", "train", "NaN"),
        ("plan_only=true", "train", True),
        ("resume=true", "train", True),
        ("checkpoint_every_n_minutes=inf", "train", float("inf")),
        ("name=a(b", "train", "a(b"),
        ("logger.wandb.name=12", "train", "12"),
        ("out=~x=1", "export", "~x=1"),
        ("data.path='/d/x y'", "train", "/d/x y"),
        ("data.path=null", "train", None),
        ("seed=3", "train", 3),
        ("probe=[knn,linear]", "train", ["knn", "linear"]),
    ],
)
def test_lists_braces_names_and_numbers(typed: str, command: str, expected: object) -> None:
    found = value(typed, command)
    text = [str(each) for each in found] if isinstance(found, list) and not isinstance(found[0], list) else found
    assert str(text).replace("'", "") == str(expected).replace("'", "")


def test_interpolations_and_sweeps_stay_hydras() -> None:
    assert read("name=digits-seed${seed}") == ["name=digits-seed${seed}"]
    assert read("-m", "name=a1,b 2") == ["-m", "name=a1,b 2"]
    others = ["--config-dir", "x y", "+experiment=z", "~logger"]
    assert read(*others) == others


def test_an_own_folder_is_one_word_however_it_is_typed() -> None:
    for option in ("--config-dir", "-cd"):
        assert with_joined_options(["a=1", option, "x y", "b=2"]) == ["a=1", "--config-dir=x y", "b=2"]
    assert with_joined_options(["--config-dir=z", "--config-dir"]) == ["--config-dir=z", "--config-dir"]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["--lr", "0.1"], ["--lr 0.1", "optimizer.lr=0.1"]),
        (["--lr=0.1"], ["--lr=0.1", "optimizer.lr=0.1"]),
        (["--epochs=3"], ["--epochs=3", "max_epochs=3"]),
        (["--batch-size", "64"], ["batch_size=64"]),
        (["--batch_size=64"], ["batch_size=64"]),
        (["--arch", "resnet50"], ["backbone=resnet50"]),
        (["--temperature", "0.1"], ["objective.temperature=0.1"]),
        (["--nonsense"], ["--nonsense", "no such option", "key=value"]),
        (["seed"], ["seed", "key=value"]),
        (["seed", "=", "3"], ["seed", "key=value"]),
        (["batch_size==5"], ["batch_size==5", "a whole number"]),
        (["ключ=1"], ["ключ", "no such key"]),
        (["=1"], ["no such key"]),
        (["objective.temperature=(1"], ["objective.temperature=(1", "a number"]),
        (["foo.bar=(1"], ["""'foo.bar="(1"'"""]),
    ],
)
def test_what_hydra_could_not_read_is_answered_with_what_is_meant(typed: list[str], words: list[str]) -> None:
    line = message(*typed)
    assert [word for word in words if word not in line] == []
    assert "\n" not in line


@pytest.mark.parametrize(
    ("key", "instead"),
    [
        *[("lr", "optimizer.lr"), ("epochs", "max_epochs"), ("batch", "batch_size"), ("workers", "num_workers")],
        *[("gpus", "trainer.devices"), ("arch", "backbone"), ("model", "backbone"), ("dataset", "data")],
    ],
)
def test_the_habits_of_other_tools_are_known(key: str, instead: str) -> None:
    known = ["optimizer", "max_epochs", "batch_size", "num_workers", "trainer", "backbone", "data"]
    assert meant(key, known) == instead


def test_every_alias_leads_to_a_key_or_a_group() -> None:
    groups = {folder.name for folder in CONF.iterdir() if folder.is_dir()}
    heads = {option.split(".")[0] for options in ALIASES.values() for option in options}
    assert heads - groups - {*TYPES} == set()


def test_a_printed_command_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "data.path=/d/a b", "probe=[knn,linear]", "name=it's"])
    command_line.read_command_line(CONF, "train")
    assert shlex.split(as_typed("python", "train.py")) == [
        "python", "train.py", "data.path=/d/a b", "probe=[knn,linear]", "name=it's",
    ]  # fmt: skip


ODD = ["it's", "a b", "caf\udce9", "\x1b[31m", "new\nline", "back\\slash '\x07'", "$HOME", "\u202e", "ünï", ""]


def test_a_printed_command_with_odd_letters_is_one_printable_line_and_means_the_same() -> None:
    line = for_shell(["printf", "%s\\0", *ODD])
    assert escaped(line) == line
    said = subprocess.run(["bash", "-c", line], capture_output=True, timeout=60, check=True).stdout
    assert said.split(b"\0")[:-1] == [os.fsencode(word) for word in ODD]


WITHOUT_TORCH = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stopped:
    print(stopped.code, [name for name in ("torch", "pytorch_lightning", "timm", "scipy") if name in sys.modules])
"""


@pytest.mark.parametrize("typed", ["batchsize=3", "objective.temperature=0", "probe.knn.k=[0]", "--help"])
def test_a_mistake_in_a_value_is_answered_before_torch_is_imported(typed: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(ROOT / "train.py"), typed]
    finished = subprocess.run(
        command, cwd=tmp_path, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.stdout.splitlines()[-1] == f"{0 if typed == '--help' else 2} []", finished.stderr
    assert len(finished.stderr.splitlines()) == (typed != "--help")
    assert list(tmp_path.iterdir()) == []

"""Each command × each kind of mistake: one line, exit status 2, nothing written, and torch not imported."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from tests.conftest import ROOT
from tests.torchless import Answer, answers
from unlabeled.commands.checks.places import TABLES
from unlabeled.commands.checks.values import fits
from unlabeled.commands.entry_points.console import COMMANDS
from unlabeled.commands.keys import TYPES

# Command → its primary yaml, and what it needs to be right but for the mistake; folders are those of :func:`furnish`.
COMPOSED: dict[str, tuple[str, list[str]]] = {
    "train": ("train", ["data=images"]),
    "train.py": ("train", ["experiment=digits"]),
    "plan": ("train", ["data=images"]),
    "preview": ("train", ["experiment=digits"]),
    "evaluate": ("eval_linear", ["run=trained"]),
    "eval_linear.py": ("eval_linear", ["run=trained"]),
    "embed": ("embed", ["run=trained", "out=x.npy"]),
    "predict": ("predict", ["run=trained", "out=x.csv"]),
    "explore": ("explore", ["run=trained"]),
    "cluster": ("cluster", ["run=trained"]),
    "finetune": ("finetune", ["run=trained"]),
    "export": ("export", ["run=trained", "to=timm"]),
    "label": ("label", ["run=trained", "out=x.csv"]),
    "active": ("active", ["run=trained"]),
    "segment": ("segment", ["run=trained", "data=images"]),
    "detect": ("detect", ["run=trained", "data=images"]),
    "transfer": ("transfer", ["run=trained", "data=[digits]"]),
    "inspect": ("inspect", ["data=images"]),
    "pack": ("pack", ["data=images", "out=packed"]),
    "saliency": ("saliency", ["data=images", "out=masks.pt"]),
    "health": ("health", ["run=trained"]),
    "represent": ("representation", ["run=trained"]),
    "compare": ("representation_compare", ["first=trained", "second=trained", "out=cka.png"]),
    "table": ("table", ["trained"]),
    "tune": ("tune", ["experiment=digits", "optimizer.lr=0.1,0.2"]),
}
VALUES = {"soon": "soon", "-1": -1, "1.5": 1.5, "nan": float("nan"), "[]": [], str(10**20): 10**20}
NETWORK = ["run=nowhere", "checkpoint=nowhere.ckpt", "run=file", "checkpoint=trained"]
DATA = [
    "data=./nowhere",
    "data=folder data.path=nowhere",
    "data=cifar10 data.root=nowhere",
    "data=parquet data.path=a/b",
]
PREDICTIONS = [
    f"run=trained out=x.csv {each}" for each in ("report_dir=images", "members=[nowhere]", "samples=9 risk=0.1")
]
MISSING: dict[str, list[str]] = {
    "train": [*DATA, "data=images weights=nowhere", "replay=nowhere.pt", "weights=images data=digits", ""],
    "train.py": [*DATA, "data=digits weights=nowhere", "replay=nowhere.pt", "max_epochs=3", ""],
    "plan": [*DATA, "data=images weights=nowhere", ""],
    "preview": [*DATA, ""],
    "evaluate": [*NETWORK, "nowhere", "run=images", "", f"run=trained {DATA[1]}"],
    "eval_linear.py": [*NETWORK, "compare=[nowhere,trained]", "ensemble=[trained,nowhere]"],
    "embed": [*(f"{each} out=x.npy" for each in NETWORK), "run=trained", "weights=nowhere out=x.npy", ""],
    "predict": [*(f"{each} out=x.csv" for each in NETWORK), "run=trained", *PREDICTIONS],
    "explore": [*NETWORK, "weights=nowhere", "embeddings=nowhere.npz data=images", "embeddings=file data=images", ""],
    "cluster": ["run=nowhere", "run=file", "nowhere", "run=images", "", "run=trained clusters=1"],
    "finetune": [*NETWORK, "run=trained labels=nowhere.txt", "weights=timm:resnet18 data=images"],
    "export": [*(f"{each} to=timm" for each in NETWORK), "run=trained"],
    "label": [
        *(f"{each} out=x.csv" for each in NETWORK),
        *("run=trained", "run=trained out=x.csv strategy=entropy", "run=trained out=x.csv labels=nowhere.csv", ""),
    ],
    "active": [*NETWORK, f"run=trained {DATA[0]}", "run=trained strategy=random"],
    "segment": [*(f"{each} data=images" for each in NETWORK), "run=trained", "run=trained data=nowhere"],
    "detect": [
        "run=nowhere data=images",
        "run=trained",
        "run=trained data=nowhere",
        "run=trained data=images against=[no]",
    ],
    "transfer": [*(f"{each} data=[digits]" for each in NETWORK), "run=trained", "weights=timm:resnet18 data=[digits]"],
    "inspect": DATA,
    "pack": ["out=packed data=./nowhere", "out=packed", "data=images", "out=packed check=true", ""],
    "saliency": [*(f"{each} out=masks.pt" for each in DATA), ""],
    "health": ["run=nowhere", "run=images", "file", ""],
    "represent": [*NETWORK, f"run=trained {DATA[0]}"],
    "compare": [
        *(
            "nowhere trained",
            "trained images",
            "first=nowhere second=trained out=x.png",
            "first=trained second=trained",
        ),
        *("first=trained second={backbone:resnet5} out=x.png", "first={run:nowhere} second=trained out=x.png"),
        "first=trained second=trained out=x.png data=./nowhere",
    ],
    "table": ["nowhere", "trained nowhere", ""],
    "tune": [
        *(f"optimizer.lr=0.1,0.2 {each}" for each in (*DATA, "experiment=digits online_knn=null", "name=x", "")),
        *("experiment=digits", "experiment=digits optimizer.lr=interval(1,0)", "experiment=digits batch_size=-1,8"),
    ],
    "watch": ["nowhere", "file", "trained --port=-1", "--prt=3 trained", ""],
    "new": ["objectiv x", "objective", "objective random", "view 3x"],
    "doctor": ["x", "key=value"],
}
OUTPUTS = {  # command → what may be an output
    **{command: ["run_dir={}"] for command in ("train", "plan", "preview", "train.py", "tune")},
    **{
        command: ["report_dir={}", "compare=[trained,trained] report_dir={}"]
        for command in ("evaluate", "eval_linear.py")
    },
    **{command: ["out={}"] for command in ("export", "cluster", "finetune", "represent", "active", "inspect", "pack")},
    **{
        "embed": ["out={}/x.npy"],
        "explore": ["out={}/x.html"],
        "predict": ["out={}/x.csv"],
        "label": ["out={}/x.csv"],
        "saliency": ["out={}/x.pt"],
        "transfer": ["data=[digits] out={}"],
        "segment": ["data=images out={}"],
        "detect": ["data=images out={}"],
        "compare": ["out={}/x.png"],
        "table": ["out={}/x.md"],
    },
}
PLACES = ["file", "file/below", "/dev/null"]


def furnish(folder: Path) -> None:
    """A folder of images, what looks like a run that has been evaluated, and a file."""
    (folder / "images").mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / "images" / f"{number}.png")
    for name in ("checkpoints/last.ckpt", "report/results.json", "report/heads/linear.safetensors", "metrics.jsonl"):
        (folder / "trained" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "trained" / name).touch()
    (folder / "file").touch()


def keys_of(primary: str) -> list[str]:
    content: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / f"{primary}.yaml"))
    return [key for key in content if key in TYPES]


def mistyped() -> Iterator[list[str]]:
    for command, (primary, right) in COMPOSED.items():
        for key in keys_of(primary)[::12]:
            yield [command, *right, f"{key[:2]}{key[3:]}x=1"]
        yield [command, *right, "--verbose"]
        yield [command, *right, "+whatever=1"]
    for group in ("objective", "backbone", "views", "optimizer"):
        yield ["train", "data=images", f"{group}=nothing_like_it"]
    for key in ("objective.temprature", "backbone.widht", "views.siz", "optimizer.weight_decy", "trainer.acelerator"):
        yield ["train", "data=images", f"{key}=1"]


def refused_values(key: str) -> list[str]:
    return [text for text, value in VALUES.items() if not any(fits(each, TYPES[key]) for each in (text, value))]


def of_a_wrong_value() -> Iterator[list[str]]:
    """A wrong type or a value out of range, of each sixth key of each command, and of some below groups."""
    for command, (primary, right) in COMPOSED.items():
        refused = {key: wrong for key in keys_of(primary) if (wrong := refused_values(key))}
        for number, (key, wrong) in enumerate([*refused.items()][::6]):
            others = [each for each in right if not each.startswith(f"{key}=")]
            yield [command, *others, f"{key}={wrong[number % len(wrong)]}"]
    for override in (
        "objective.temperature=0",
        "optimizer.lr=-1",
        "views.size=0",
        "backbone.stem=cifr",
        "batch_size=0",
    ):
        yield ["train", "data=images", override]


def missing() -> Iterator[list[str]]:
    yield from ([command, *text.split()] for command, texts in MISSING.items() for text in texts)


def unwritable() -> Iterator[list[str]]:
    for command, outputs in OUTPUTS.items():
        right = [each for each in COMPOSED[command][1] if not each.startswith("out=")]
        for output in outputs:
            alone = [] if output.startswith("compare=") else right
            yield from ([command, *alone, *output.format(place).split()] for place in PLACES)


KINDS = {"mistyped": mistyped, "wrong value": of_a_wrong_value, "missing": missing, "unwritable": unwritable}


def tree(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), os.lstat(path).st_mtime_ns) for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    furnish(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_mistake_in_any_command_is_one_line_without_torch_and_leaves_nothing(kind: str, furnished: Path) -> None:
    cases = list(KINDS[kind]())
    before = tree(furnished)
    wrong = []
    for case, answer in zip(cases, answers([(case, furnished) for case in cases]), strict=True):
        one_line = answer.printed.startswith("error: ") and answer.printed.count("\n") == 1
        quick = answer.seconds < 20  # 0.3 on an idle machine; what counts is that torch is not imported
        if not (answer.code == 2 and one_line and quick and len(answer.printed) < 600):
            wrong.append((" ".join(case), answer))
    assert wrong == []
    assert tree(furnished) == before
    tried = {"missing": MISSING, "unwritable": OUTPUTS}.get(
        kind, COMPOSED.keys() - {"health"}
    )  # it has one key, a path
    assert {case[0] for case in cases} >= {*tried}


def test_every_command_is_among_those_that_are_tried() -> None:
    assert {*MISSING} >= {*COMMANDS}
    assert {*COMPOSED} | {"watch", "new", "doctor"} >= {*COMMANDS}


def answer(furnished: Path, *arguments: str) -> Answer:
    return answers([([*arguments], furnished)])[0]


def test_a_run_that_is_not_there_is_named_beside_the_one_that_is_meant(furnished: Path) -> None:
    assert (
        answer(furnished, "evaluate", "run=traind").printed
        == "error: run=traind: no such folder; did you mean trained?\n"
    )
    assert "no such folder; did you mean trained?" in answer(furnished, "compare", "trined", "trained").printed
    said = answer(furnished, "evaluate", "run=trained/checkpoints/last.ckpt").printed
    assert "is a file; give the folder of a run, or checkpoint=trained/checkpoints/last.ckpt" in said


def test_a_suggestion_comes_without_the_list_of_all_that_is_allowed(furnished: Path) -> None:
    said = answer(furnished, "train", "data=digits", "batch_siz=3").printed
    assert said == "error: batch_siz: no such key; did you mean batch_size?\n"
    assert "(allowed: " in answer(furnished, "train", "data=digits", "objective.qqqqqqqqq=3").printed


def test_endings_of_tables_are_those_that_can_be_written() -> None:
    from unlabeled.evaluation.embedding.formats import WRITERS

    assert tuple(WRITERS) == TABLES

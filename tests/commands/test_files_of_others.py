"""No file that somebody else wrote runs code, sends anything or has anything opened, whichever command reads it."""

import copy
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.small import CONF, members, small_run
from unlabeled.commands.build.evaluation import complete_config
from unlabeled.commands.build.network import build_objective
from unlabeled.commands.build.run import build_replay
from unlabeled.commands.compare_representations import compare_command
from unlabeled.commands.evaluate.evaluate import evaluate_checkpoint
from unlabeled.commands.export import export
from unlabeled.commands.from_file import part_of
from unlabeled.commands.represent import represent
from unlabeled.core.file_config import KINDS, as_data, check_opened, check_part, is_own_run
from unlabeled.core.moved_targets import MOVED_TARGETS
from unlabeled.errors import UserError
from unlabeled.weights import read_checkpoint

PARTS = list(KINDS)
TOKEN = "a-secret-of-this-machine"


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


class Trap:
    """What a hostile file would reach: a file that must not appear, and an address where nobody must call."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.canary, self.calls = folder, folder / "canary", 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._count, daemon=True).start()
        (folder / "pickled").write_bytes(pickle.dumps(Touch(self.canary)))
        np.save(folder / "array.npy", np.array([Touch(self.canary)], dtype=object), allow_pickle=True)
        (folder / "hubconf.py").write_text(f"open({str(self.canary)!r}, 'w')\ndef model(): pass\n")
        (folder / "evil_module.py").write_text(f"open({str(self.canary)!r}, 'w')\n")

    def _count(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.calls += 1
            connection.close()

    def hostile(self) -> dict[str, dict[str, Any]]:
        """Twelve ways from a target to code, each with the arguments that would take it."""
        code, command = f"open({str(self.canary)!r}, 'w')", f"touch {self.canary}"
        return {
            "sympy.sympify": {"a": code},
            "joblib.load": {"filename": str(self.folder / "pickled")},
            "torch.hub.load": {"repo_or_dir": str(self.folder), "model": "model", "source": "local"},
            "numpy.load": {"file": str(self.folder / "array.npy"), "allow_pickle": True},
            "pathlib.Path.write_text": {
                "_args_": [{"_target_": "pathlib.Path", "_args_": [str(self.canary)]}],
                "data": "x",
            },
            "os.system": {"command": command},
            "subprocess.check_output": {"args": command, "shell": True},
            "builtins.exec": {"_args_": [code]},
            "importlib.import_module": {"name": "evil_module"},
            "torch.load": {"f": str(self.folder / "pickled"), "weights_only": False},
            "hydra.utils.instantiate": {"config": {"_target_": "os.system", "command": command}},
            "urllib.request.urlopen": {"url": f"{self.url}/{TOKEN}"},
        }

    @property
    def sprung(self) -> bool:
        return self.canary.exists() or self.calls > 0


# Other ways to the same: through what our modules have imported, private names, other parts, and orders to Hydra.
DETOURS = [
    "unlabeled.objectives.simclr.torch.hub.load",
    "unlabeled.commands.build.run.instantiate",
    "unlabeled.views.pipeline.torch",
    "unlabeled.data.sources.torchvision._cifar",
    "unlabeled.weights.safe_load.read_tensors",
    "unlabeled.errors.UserError",
    "torchvision.transforms.v2.Lambda",
    "torchvision.transforms.v2.functional.resize",
    "torchvision.io.read_file",
    "torchvision.datasets.CIFAR10",
    "kornia.augmentation.RandomDissolving",
    "kornia.io.load_image",
    "torch.optim.Optimizer.load_state_dict",
    "timm.create_model",
    "unlabeled..data.digits.digits",
    "unlabeled.data.sources.digits.digits.__class__",
    "",
    ".",
    "digits",
]


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trap]:
    monkeypatch.setenv("TOKEN", TOKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = Trap(tmp_path)
    yield made
    made.socket.close()


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    """A checkpoint and a fault record in one: of a tiny run on the digits, with a tensor missing."""
    config = small_run("simclr", Path("run"), "data=digits", "max_steps=1", "backbone.width=0.125")
    state = {f"objective.{key}": value for key, value in build_objective(config).state_dict().items()}
    state.pop("objective.backbone.conv1.weight")  # whatever is not refused before is refused for this
    progress = {"step": 1, "total_steps": 1, "steps_per_epoch": 1, "seed": 0}
    batch = {"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "ids": torch.arange(2), "labels": torch.arange(2)}
    return {
        "state_dict": state,
        "config": OmegaConf.to_container(config, resolve=True),
        "progress": progress | {"part": 0, "parts": 1},
        "key": {"seed": 0, "step": 0, "first": 0, "total": 2},
        "batch": batch,
        "support": None,
        "precision": "32-true",
        "named": "a loss",
        "rank": 0,
        "world_size": 1,
    }


def written(content: dict[str, Any], folder: Path, kind: str = "checkpoints") -> Path:
    """The file in a run's folder of the user's own, where most would be allowed."""
    path = folder / "run" / kind / "last.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    (folder / "run" / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create({"seed": 0})))
    torch.save(content, path)
    return path


def spoilt(config: dict[str, Any], part: str, node: Any, depth: int) -> dict[str, Any]:
    """The configuration with ``node`` in place of a part, of one of its values, or in a list further below."""
    config = copy.deepcopy(config)
    if depth == 0:
        config[part] = node
    elif depth == 1:
        key = next(key for key in config[part] if not key.startswith("_"))
        config[part][key] = node
    else:
        config[part]["groups" if part == "views" else "more"] = [{"deeper": [{"deepest": node}]}]
    return config


def side(primary: str, *probe: str, **given: Any) -> tuple[Any, Any]:
    config = copy.deepcopy(_composed(primary, probe))
    config.update({key: None if value is None else str(value) for key, value in given.items()})
    return config, OmegaConf.to_container(config, resolve=True)


@cache
def _composed(primary: str, overrides: tuple[str, ...]) -> Any:
    """Once: Hydra takes a tenth of a second for it."""
    needed = [f"{key}=x" for key in ("first", "second", "out") if primary == "representation_compare"]
    needed += ["to=safetensors"] if primary == "export" else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(primary, [*needed, *overrides])


COMMANDS: dict[str, tuple[tuple[str, ...], Callable[[Path, Path], Any]]] = {
    "eval_linear checkpoint": (
        ("data", "views", "backbone", "objective"),
        lambda file, out: evaluate_checkpoint(side("eval_linear", "probe=knn", checkpoint=file, report_dir=out)[0], ""),
    ),
    "eval_linear run": (
        ("data", "views", "backbone", "objective"),
        lambda file, out: evaluate_checkpoint(side("eval_linear", "probe=knn", run=file.parent.parent)[0], ""),
    ),
    "export": (
        ("data", "views", "backbone"),
        lambda file, out: export(*side("export", checkpoint=file, out=out)),
    ),
    "representation": (
        ("data", "views", "backbone", "objective"),
        lambda file, out: represent(*side("representation", checkpoint=file, out=out)),
    ),
    "representation.compare": (
        ("data", "views", "backbone"),
        lambda file, out: compare_command(*side("representation_compare", first=file, second=file, out=f"{out}.png")),
    ),
    "train replay": (
        ("views", "backbone", "objective", "optimizer"),
        lambda file, out: build_replay(str(file)).run(),
    ),
}


def test_the_trap_springs_where_nothing_guards_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fired = []
    for target in Trap(tmp_path).hostile():
        trap = Trap(tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
        trap.canary.unlink(missing_ok=True)
        with suppress(Exception):  # Hydra's own list, or what comes after the code has run
            instantiate({"_target_": target, **trap.hostile()[target]})
        fired += [target] if trap.sprung else []
    assert len(fired) >= 6


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_what_a_file_names(trap: Trap, content: dict[str, Any], command: str, tmp_path: Path) -> None:
    builds, run = COMMANDS[command]
    for number, (target, arguments) in enumerate(trap.hostile().items()):
        part = PARTS[number % len(PARTS)]
        node = {"_target_": target, **arguments}
        config = spoilt(content["config"], part, node, number // len(PARTS) % 3)
        file = written({**content, "config": config}, tmp_path)
        with pytest.raises(UserError) as caught:
            run(file, tmp_path / "out")
        assert (target in str(caught.value)) == (part in builds), str(caught.value)
        assert not trap.sprung


@pytest.mark.parametrize("part", PARTS)
def test_no_target_but_those_of_a_part_passes_at_any_depth(trap: Trap, content: dict[str, Any], part: str) -> None:
    others = [content["config"][other]["_target_"] for other in PARTS if other != part]
    for depth in range(3):
        for target in [*trap.hostile(), *DETOURS, *others]:
            node = {"_target_": target, **trap.hostile().get(target, {})}
            with pytest.raises(UserError, match=r"is not taken|is no|code that a file names"):
                part_of(spoilt(content["config"], part, node, depth), part, Path("x"))
    orders: list[dict[str, Any]] = [{"_args_": []}, {"_partial_": 1}, {"_recursive_": False}, {"_convert_": "x"}]
    for order in [*orders, {"_mode_": 0}]:
        with pytest.raises(UserError, match="is not taken from a file"):
            part_of({part: content["config"][part] | order}, part, Path("x"))
    assert not trap.sprung


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("text", ["${oc.env:TOKEN}", "{url}/${oc.env:TOKEN}", "${hydra:runtime.cwd}", "${seed}", "???"])
def test_interpolations_of_a_file_are_refused_and_nothing_is_sent(
    trap: Trap, content: dict[str, Any], part: str, text: str, tmp_path: Path
) -> None:
    text = text.replace("{url}", trap.url)
    for depth in range(3):
        with pytest.raises(UserError, match="nothing is looked up for a file") as caught:
            part_of(spoilt(content["config"], part, {"path": text} if depth else text, depth or 1), part, Path("x"))
        assert TOKEN not in str(caught.value)
    run = COMMANDS["eval_linear checkpoint"][1]
    config = spoilt(content["config"], part, text, 1)
    with pytest.raises(UserError) as caught:
        run(written({**content, "config": config}, tmp_path), tmp_path / "out")
    assert TOKEN not in str(caught.value)
    assert not trap.sprung


@pytest.mark.parametrize("part", PARTS)
def test_what_our_own_yamls_name_may_be_built_from_a_file(part: str) -> None:
    for name in members(part):
        config = OmegaConf.load(CONF / part / f"{name}.yaml")
        values: Any = OmegaConf.to_container(config)
        targets = set(_targets(values))
        assert targets
        for target in targets:  # each at the place of the whole, or below
            top = values if target == values["_target_"] else values | {"x": {"_target_": target}}
            check_part(part, _without_texts(top), name)


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from [node["_target_"]] if "_target_" in node else []
    for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else []:
        yield from _targets(each)


def _without_texts(node: Any) -> Any:
    """Without interpolations, which a run writes resolved."""
    if isinstance(node, dict):
        return {key: _without_texts(each) for key, each in node.items()}
    if isinstance(node, list):
        return [_without_texts(each) for each in node]
    return None if isinstance(node, str) and (node == "???" or "${" in node) else node


def test_transforms_of_other_libraries_may_stand_in_views_and_nowhere_else(content: dict[str, Any]) -> None:
    for target in ("torchvision.transforms.v2.RandomAdjustSharpness", "kornia.augmentation.RandomPosterize"):
        check_part("views", content["config"]["views"] | {"x": [{"_target_": target}]}, "x")
        for part in sorted({*PARTS} - {"views"}):
            with pytest.raises(UserError, match="code that a file names"):
                check_part(part, content["config"][part] | {"x": [{"_target_": target}]}, "x")


def test_what_the_users_own_yamls_name_is_allowed_for_its_part_alone(content: dict[str, Any]) -> None:
    config = content["config"] | {"objective": {"_target_": "mine.Method", "weight": 1.0}}
    check_part("objective", config["objective"], "x", lambda target: target == "mine.Method")
    with pytest.raises(UserError, match=r"--config-dir=FOLDER with objective/NAME\.yaml"):
        check_part("objective", config["objective"], "x", lambda target: target == "mine.Other")


def test_targets_of_earlier_versions_are_read_as_those_of_today(
    content: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    today = content["config"]["views"]["groups"][0]["operations"][0]["_target_"]
    monkeypatch.setitem(MOVED_TARGETS, "unlabeled.old.place.Crop", today)
    old = copy.deepcopy(content)
    old["config"]["views"]["groups"][0]["operations"][0]["_target_"] = "unlabeled.old.place.Crop"
    read = read_checkpoint(written(old, tmp_path))
    assert read.config == content["config"]


def test_what_a_file_names_is_opened_only_in_a_run_folder_of_the_user_or_when_given(
    content: dict[str, Any], tmp_path: Path
) -> None:
    folder = str(tmp_path / "images")
    config = content["config"] | {"data": {"_target_": "unlabeled.data.sources.folder.folder", "path": folder}}
    own = read_checkpoint(written({**content, "config": config}, tmp_path))
    (tmp_path / "bare.ckpt").write_bytes(own.path.read_bytes())
    bare = read_checkpoint(tmp_path / "bare.ckpt")
    asked = side("eval_linear", "probe=knn")[0]
    assert is_own_run(own.path)
    assert complete_config(asked, own).data.path == folder
    assert not is_own_run(bare.path)
    with pytest.raises(UserError, match=r"lies in no run folder of yours .* give data=…"):
        complete_config(asked, bare)
    given = side("eval_linear", "probe=knn", "data=folder", f"data.path={tmp_path}")[0]
    assert complete_config(given, bare).data.path == str(tmp_path)
    with pytest.raises(UserError, match=r"is no|no address of a file is followed"):
        check_opened("data", {"path": "s3://bucket/x"}, own.path)
    export_of = side("export")[0]
    assert complete_config(export_of, bare, needs=("views", "backbone")).data is None  # it can do without
    (own.path.parent.parent / "config.yaml").unlink()
    assert not is_own_run(own.path)


def test_masks_and_label_lists_of_a_file_are_opened_in_a_run_folder_of_the_user_alone(tmp_path: Path) -> None:
    views = {"groups": [{"operations": [{"masks": "/masks.pt", "fill": "black"}]}], "masks": "/masks.pt", "size": "x"}
    with pytest.raises(UserError, match=r"names views\.groups\[0\]\.operations\[0\]\.masks=/masks\.pt"):
        check_opened("views", views, tmp_path / "x.ckpt", ("masks",))
    check_opened("views", {"groups": [{"masks": None}], "fill": "black"}, tmp_path / "x.ckpt", ("masks",))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({1: 2}, "no text"),
        ({"a": torch.zeros(1)}, "holds a Tensor"),
        ({"a": 1j}, "holds a complex"),
        ({"a": b"x"}, "holds a bytes"),
        ([0] * 200_000, "too long"),
    ],
)
def test_a_configuration_is_plain_values(value: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        as_data(value, "x")


def test_a_configuration_that_holds_itself_or_has_no_end_of_depth_is_refused(tmp_path: Path) -> None:
    loop: dict[str, Any] = {}
    loop["again"] = loop
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    for value in (loop, deep):
        with pytest.raises(UserError, match="nested too deeply"):
            as_data(value, "x")


@pytest.mark.parametrize("key", ["config", "progress"])
@pytest.mark.parametrize("value", [1, "x", [1], {"step": "x"}, {1: 2}, {"step": None, "data": 3, "views": "x"}])
def test_a_config_or_progress_of_the_wrong_type_is_answered_when_the_file_is_read(
    content: dict[str, Any], tmp_path: Path, key: str, value: Any
) -> None:
    if key == "config" and value == {"step": "x"}:
        return
    with pytest.raises(UserError, match=key):
        read_checkpoint(written({**content, key: value}, tmp_path))


@pytest.mark.parametrize("key", ["config", "progress", "key", "batch", "support", "precision", "rank", "state_dict"])
@pytest.mark.parametrize("value", [1.5, "x", [1], {"a": "b"}])
def test_a_fault_record_with_a_value_of_the_wrong_type_is_one_line(
    content: dict[str, Any], tmp_path: Path, key: str, value: Any
) -> None:
    if key == "precision" and value == "x":
        return  # answered by the precisions that are known
    file = written({**content, key: value}, tmp_path, "faults")
    with pytest.raises(UserError, match=r"^replay"):
        build_replay(str(file))

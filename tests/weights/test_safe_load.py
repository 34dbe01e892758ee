"""Files that others wrote are read without running anything that stands in them."""

import argparse
import collections
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import omegaconf
import pytest
import torch
from safetensors.torch import save_file

from unlabeled.errors import UserError
from unlabeled.weights import read_checkpoint
from unlabeled.weights.safe_load import UNREAD, read_tensors

TENSOR = torch.arange(3.0)


class Code:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


class System:
    """Unpickling it would run a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return (os.system, (self.command,))


def saved(content: Any, folder: Path, zipped: bool = True) -> Path:
    torch.save(content, folder / "file.pt", _use_new_zipfile_serialization=zipped)
    return folder / "file.pt"


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"checkpoint={path}: ")
    assert message.isprintable()
    return message


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_a_command_is_refused_by_its_name_and_the_command_does_not_run(
    zipped: bool, tmp_path: Path
) -> None:
    content = {"model": {"a": TENSOR}, "args": System(f"touch {tmp_path / 'ran'}")}
    message = refusal(saved(content, tmp_path, zipped))
    assert "an unsafe pickle, not read: it asks for posix.system, which could run any code" in message
    assert "torch.save(model.state_dict(), FILE)" in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_call_of_any_other_function_is_refused_and_not_made(zipped: bool, tmp_path: Path) -> None:
    content = {"a": TENSOR, "hyper_parameters": Code(tmp_path / "ran")}
    assert "an unsafe pickle, not read: it asks for " in refusal(saved(content, tmp_path, zipped))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_bare_pickle_that_would_run_a_command_is_refused_and_not_run(protocol: int, tmp_path: Path) -> None:
    content = {"a": System(f"touch {tmp_path / 'ran'}")}
    (tmp_path / "file.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    assert "it asks for posix.system, which could run any code" in refusal(tmp_path / "file.pkl")
    assert not (tmp_path / "ran").exists()


def test_a_whole_pickled_network_is_refused_with_its_class(tmp_path: Path) -> None:
    assert "it asks for torch.nn.modules.linear.Linear" in refusal(saved(torch.nn.Linear(2, 2), tmp_path))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_of_arrays_is_read_as_tensors(protocol: int, tmp_path: Path) -> None:
    content = {"params": {"resnet/initial_conv": {"w": np.ones((7, 7, 3, 4))}}, "step": 3}
    (tmp_path / "relicv2.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    checkpoint = read_checkpoint(tmp_path / "relicv2.pkl")
    assert list(checkpoint.tensors) == ["params.resnet/initial_conv.w"]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "beside",
    [
        argparse.Namespace(lr=1e-3, output_dir=Path("/x"), betas=(0.9, 0.95), resume=None),
        [np.float64(71.1), np.int64(3), np.float32(0.5), np.bool_(True)],
        np.arange(4),
        omegaconf.OmegaConf.create({"optimizer": {"lr": 0.1, "milestones": [1, 2], "name": None, "nesterov": True}}),
    ],
    ids=["Namespace", "numpy scalars", "numpy array", "DictConfig"],
)
def test_settings_and_figures_beside_the_tensors_are_passed_over(beside: Any, zipped: bool, tmp_path: Path) -> None:
    path = saved({"model": {"a": TENSOR}, "args": beside}, tmp_path, zipped)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    checkpoint = read_checkpoint(path)
    assert list(checkpoint.tensors) == ["model.a"]
    assert torch.equal(checkpoint.tensors["model.a"], TENSOR)


def test_a_dictionary_of_another_class_keeps_its_tensors(tmp_path: Path) -> None:
    inside = collections.defaultdict(list, {"a": TENSOR})  # type: ignore[arg-type]
    assert list(read_checkpoint(saved({"model": inside}, tmp_path)).tensors) == ["model.a"]


def test_no_name_that_is_passed_over_is_ever_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class of that name that would do something when made, filled or called does not get to do it."""

    class Namespace:
        def __init__(self, *arguments: object) -> None:
            raise AssertionError

        def __setstate__(self, state: object) -> None:
            raise AssertionError

    path = saved({"a": TENSOR, "args": argparse.Namespace(lr=1)}, tmp_path)
    monkeypatch.setattr(argparse, "Namespace", Namespace)
    assert "argparse.Namespace" in UNREAD
    assert type(read_tensors(path)["args"]).__name__ == "SkippedObject"


def test_a_file_of_safetensors_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    for name in ("weights.safetensors", "weights.pt"):
        save_file({"a": TENSOR}, tmp_path / name, metadata={"format": "pt"})
        assert torch.equal(read_checkpoint(tmp_path / name).tensors["a"], TENSOR)


def test_a_damaged_file_of_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": TENSOR}, path)
    path.write_bytes(path.read_bytes()[:-4])
    assert "cannot be read as tensors and plain values (" in refusal(path)


@pytest.mark.parametrize("length", [10, 100, -500])
def test_an_old_file_that_was_cut_off_is_damaged_and_not_unsafe(length: int, tmp_path: Path) -> None:
    path = saved({"a": torch.ones(1000)}, tmp_path, zipped=False)
    path.write_bytes(path.read_bytes()[:length])
    assert "cannot be read as tensors and plain values (" in refusal(path)


def test_a_pickle_that_claims_a_huge_text_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "huge.pt"
    path.write_bytes(b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"x" * 40)
    with pytest.raises(UserError, match="cannot be read as tensors and plain values") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)

"""``data=PATH`` for a run that is there: images are decoded as the run's, and its own test images stay test images."""

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from tests.conftest import Script
from unlabeled.commands.entry_points import console
from unlabeled.commands.from_file import data_of
from unlabeled.core.run_config import read_yaml
from unlabeled.data.loaders import LazyLoader
from unlabeled.evaluation.evaluate import WITHOUT_LABELS, _keep_without_labels

CONF = Path(__file__).parents[2] / "conf" / "data"


def folder(path: Path, **changed: Any) -> DictConfig:
    return OmegaConf.create({**read_yaml(CONF / "folder.yaml"), "path": str(path), **changed})


def taken(given: DictConfig, own: DictConfig, tmp_path: Path) -> Any:
    found = data_of(given, {"data": OmegaConf.to_container(own)}, tmp_path / "config.yaml")
    return OmegaConf.to_container(found) if found is not None else None


def test_other_images_are_decoded_as_those_of_the_run_and_all_of_them_are_taken(tmp_path: Path) -> None:
    own = folder(tmp_path / "own", image_size=71, square=True, holdout=0.2, train="good")
    found = taken(folder(tmp_path / "other"), own, tmp_path)
    assert (found["image_size"], found["square"], found["holdout"], found["train"]) == (71, True, None, None)
    assert found["path"] == str(tmp_path / "other")
    assert taken(folder(tmp_path / "other", image_size=96), own, tmp_path)["image_size"] == 96


def test_of_another_kind_of_source_the_keys_are_said_by_which_the_run_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = OmegaConf.create({**read_yaml(CONF / "parquet.yaml"), "path": str(tmp_path / "other"), "channels": 4})
    taken(given, folder(tmp_path / "own", image_size=71, holdout=0.2), tmp_path)
    assert "decoded with data.image_size=71 data.square=false: give the same" in capsys.readouterr().out
    taken(given, folder(tmp_path / "own", image_size=8), tmp_path)  # nothing is lost
    taken(folder(tmp_path / "other"), folder(tmp_path / "own"), tmp_path)
    assert capsys.readouterr().out == ""


def test_the_images_of_the_run_keep_its_test_split_however_their_folder_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = folder(tmp_path / "own", image_size=71, holdout=0.2)
    monkeypatch.chdir(tmp_path)
    assert taken(folder(Path("own")), own, tmp_path)["holdout"] == 0.2
    assert "of which data.holdout=0.2 are its test images" in capsys.readouterr().out
    assert taken(folder(Path("own"), holdout=0.5), own, tmp_path)["holdout"] == 0.5


def test_a_list_that_only_a_strangers_file_names_is_not_opened(tmp_path: Path) -> None:
    given = folder(tmp_path)
    assert taken(given, folder(tmp_path, image_size=71, train="/etc/passwd"), tmp_path) == OmegaConf.to_container(given)


def test_another_kind_of_source_is_taken_as_it_is(tmp_path: Path) -> None:
    given = OmegaConf.create({**read_yaml(CONF / "parquet.yaml"), "path": str(tmp_path)})
    assert taken(given, folder(tmp_path, image_size=71), tmp_path) == OmegaConf.to_container(given)


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(console, "_start", stopped)
    monkeypatch.setattr(sys, "argv", ["unlabeled", "evaluate", "run=x"])
    with pytest.raises(SystemExit) as ended:
        console.main()
    assert ended.value.code == 128 + signal.SIGINT
    assert capsys.readouterr().err == "stopped by Ctrl-C: the same command does the rest of unlabeled evaluate\n"


def test_a_mistyped_folder_is_compared_with_those_that_are_here(script: Script, tmp_path: Path) -> None:
    (tmp_path / "bilder").mkdir()
    said = script("train.py", "data=bilderr").stderr
    assert said == "error: data=bilderr: no folder of that name is here; did you mean data=./bilder?\n"
    assert "did you mean digits?" in script("train.py", "data=digit").stderr
    assert "did you mean optimizer.lr?" in script("train.py", "experiment=digits", "optimiser.lr=0.1").stderr


def test_a_corrupt_image_that_stands_there_with_its_reason_is_not_counted_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Source:
        def name(self, position: int) -> str:
            return f"odd/{position}.png"

    loader: Any = object.__new__(LazyLoader)
    loader.source, loader.corrupt = Source(), ["odd/3.png: cannot be decoded (truncated)"]
    loader._list_corrupt([3, 4, 5], [0, 1, 5], 0)
    assert loader.corrupt[1:] == ["odd/4.png"]
    assert capsys.readouterr().out == "skipped a corrupt image (2 so far): odd/4.png\n"


def test_the_report_without_labels_stays_beside_the_first_one_with_labels(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("ranks")
    said: list[str] = []
    _keep_without_labels(tmp_path, said.append)
    assert (tmp_path / WITHOUT_LABELS).read_text() == "ranks"
    assert said == [f"the report without labels is {tmp_path / WITHOUT_LABELS} now"]
    (tmp_path / "report.html").write_text("accuracies")
    (tmp_path / "results.json").write_text("{}")
    _keep_without_labels(tmp_path, said.append)
    assert (tmp_path / "report.html").read_text() == "accuracies"

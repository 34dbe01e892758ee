"""Every conf/data yaml here names a function and gives all of its parameters, each with its default and a comment."""

import importlib
import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from unlabeled.commands.checks.former_run import open_run
from unlabeled.core.run_config import write_config
from unlabeled.errors import UserError

CONFIGS = Path(__file__).parents[2] / "conf/data"


@pytest.mark.parametrize("name", sorted(file.stem for file in CONFIGS.glob("*.yaml")))
def test_a_yaml_gives_every_parameter_with_its_default_and_a_comment(name: str) -> None:
    file = CONFIGS / f"{name}.yaml"
    config = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(config, dict)
    module, function = str(config["_target_"]).rsplit(".", 1)
    parameters = inspect.signature(getattr(importlib.import_module(module), function)).parameters
    assert config["_convert_"] == "all"
    assert set(config) == {"_target_", "_convert_", *parameters}
    for key, parameter in parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            assert config[key] == parameter.default, key
    assert all(" # " in line for line in file.read_text().splitlines() if not line.startswith("#"))


def test_a_run_goes_on_with_another_place_for_its_images_and_their_list_and_not_with_another_split(
    tmp_path: Path,
) -> None:
    config = OmegaConf.create(
        {"name": "x", "run_dir": str(tmp_path), "data": {"path": "here", "train": "a", "index": None}}
    )
    write_config(open_run(config), tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").touch()
    config.data.index = "elsewhere"
    assert open_run(config)["data"]["index"] == "elsewhere"
    config.data.path = "there"  # the files are compared, see tests/training/test_same_data.py
    assert open_run(config)["data"]["path"] == str(Path("there").absolute())
    config.data.train = "b"
    with pytest.raises(UserError, match=r"holds a run with another data\.train; "):
        open_run(config)

"""Every conf/data yaml here names a function and gives all of its parameters, each with its default and a comment."""

import importlib
import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf

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

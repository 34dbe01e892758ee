"""Checkpoints of BYOL (google-deepmind/deepmind-research, byol): networks of Haiku under torchvision's names.

Names and order are those of byol/byol_experiment.py (``_ByolExperimentState``), byol/utils/networks.py and Haiku's
ResNet. Convolutions are stored as height, width, inputs, outputs, and BatchNorm's statistics beside the parameters.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

Tensors = dict[str, Tensor]

_STEM = re.compile(r"initial_(?P<kind>conv|batchnorm)(_1)?")
_BLOCK = re.compile(r"block_group_(?P<group>\d+)/~/block_(?P<block>\d+)/~/(?P<part>\w+)")
_PART = re.compile(r"(?P<kind>conv|batchnorm)_(?P<number>\d+)")
_SHORTCUT = {"shortcut_conv": "downsample.0", "shortcut_batchnorm": "downsample.1"}
_KINDS = {"conv": "conv", "batchnorm": "bn"}
_LEAVES = {"w": "weight", "b": "bias", "scale": "weight", "offset": "bias"}
_STATISTICS = {
    "mean_ema.average": "running_mean",
    "var_ema.average": "running_var",
    "mean_ema.counter": "num_batches_tracked",
}


def arrange(content: Any) -> Any:
    """Returns the networks of a checkpoint of BYOL by name; anything else as it is.

    ``online`` and ``target`` hold ``backbone.``, ``projector.``, ``predictor.`` and ``classifier.``; ``sums`` what
    Haiku keeps beside the statistics of BatchNorm; ``optimizer`` and ``rng`` are as they are.
    """
    state = content.get("experiment_state") if isinstance(content, dict) else None
    if not (isinstance(state, list) and len(state) == 5 and all(isinstance(each, Mapping) for each in state[:4])):
        return content
    sums: Tensors = {}
    online, target, online_state, target_state, optimizer = state
    networks = {
        "online": _parameters(online) | _statistics(online_state, "online", sums),
        "target": _parameters(target) | _statistics(target_state, "target", sums),
    }
    return networks | {"sums": sums, "optimizer": optimizer, "rng": content.get("rng")}


def _parameters(modules: Mapping[str, Any]) -> Tensors:
    return {
        f"{_torch_name(path)}.{_LEAVES.get(leaf, leaf)}": _outputs_first(value) if leaf == "w" else value.flatten()
        for path, leaves in modules.items()
        for leaf, value in leaves.items()
    }


def _outputs_first(weight: Tensor) -> Tensor:
    return (weight.permute(3, 2, 0, 1) if weight.dim() == 4 else weight.T).contiguous()


def _statistics(modules: Mapping[str, Any], network: str, sums: Tensors) -> Tensors:
    """Returns BatchNorm's statistics; what is beside them goes to ``sums``."""
    found: Tensors = {}
    for path, leaves in modules.items():
        module, _, average = path.rpartition("/~/")
        for leaf, value in leaves.items():
            name = _STATISTICS.get(f"{average}.{leaf}")
            if name is None:
                sums[f"{network}.{path}.{leaf}"] = value
            else:
                found[f"{_torch_name(module)}.{name}"] = value.long() if leaf == "counter" else value.flatten()
    return found


def _torch_name(path: str) -> str:
    """Returns the name of a module: ``res_net50/~/initial_conv`` → ``backbone.conv1``."""
    root, _, inside = path.partition("/~/")
    if not root.startswith("res_net"):
        return path.replace("/~/", ".").replace("/", ".")
    stem, block = _STEM.fullmatch(inside), _BLOCK.fullmatch(inside)
    if stem is not None:
        return f"backbone.{_KINDS[stem['kind']]}1"
    if block is None:
        return f"backbone.{inside}"
    part = _PART.fullmatch(block["part"])
    name = _SHORTCUT.get(block["part"], block["part"])
    if part is not None:
        name = f"{_KINDS[part['kind']]}{int(part['number']) + 1}"
    return f"backbone.layer{int(block['group']) + 1}.{block['block']}.{name}"

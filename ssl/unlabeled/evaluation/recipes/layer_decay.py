"""Learning rates that decrease from layer to layer towards the input, for fine-tuning a vision transformer.

Clark et al. 2020 (ELECTRA), Bao et al. 2021 (BEiT, arXiv:2106.08254); as facebookresearch/mae, util/lr_decay.py.
"""

from collections import defaultdict
from typing import Any

from torch import Tensor, nn

from unlabeled.errors import UserError

FIRST = ("cls_token", "reg_token", "pos_embed", "patch_embed")
NOT_DECAYED = ("cls_token", "reg_token", "pos_embed")  # timm's no_weight_decay()


def layer_number(name: str, depth: int) -> int:
    """Returns the number of a parameter's layer: 0 for patch embedding, i + 1 for block i, depth + 1 for the rest."""
    first, _, rest = name.partition(".")
    if first in FIRST:
        return 0
    return int(rest.partition(".")[0]) + 1 if first == "blocks" else depth + 1


def layer_decay_groups(network: nn.Module, head: nn.Module, decay: float, weight_decay: float) -> list[dict[str, Any]]:
    """Returns parameter groups with ``lr_scale`` = decay^(depth + 1 − layer) and their ``weight_decay``.

    ``network`` has ``blocks``; ``head`` is everything after it, at the full rate. Vectors, the class token and the
    positions are not decayed.

    Raises:
        UserError: the network has no blocks.
    """
    depth = len(transformer_blocks(network))
    groups: dict[tuple[int, float], list[Tensor]] = defaultdict(list)
    named = [(name, layer_number(name, depth), parameter) for name, parameter in network.named_parameters()]
    named += [("head", depth + 1, parameter) for parameter in head.parameters()]
    for name, layer, parameter in named:
        if parameter.requires_grad:
            spared = parameter.ndim <= 1 or name in NOT_DECAYED
            groups[layer, 0.0 if spared else weight_decay].append(parameter)
    return [
        {"params": parameters, "weight_decay": own, "lr_scale": decay ** (depth + 1 - layer)}
        for (layer, own), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def transformer_blocks(network: nn.Module) -> list[nn.Module]:
    """Returns the blocks of a transformer; raises UserError for any other network."""
    blocks = getattr(network, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList):
        raise UserError(
            f"{type(network).__name__} has no blocks, which layer_decay and drop_path need: give null and 0"
        )
    return list(blocks)

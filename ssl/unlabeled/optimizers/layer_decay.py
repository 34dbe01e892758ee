"""Learning rates that fall from block to block towards the image: what was learnt first is the most general.

Clark et al. 2020 (ELECTRA, arXiv:2003.10555) and Bao et al. 2021 (BEiT, arXiv:2106.08254), for fine-tuning; here the
same for continued pretraining, with a method's heads where those have a classifier.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from unlabeled.errors import UserError

BEFORE = (
    "cls_token",
    "reg_token",
    "pos_embed",
    "patch_embed",
    "conv1",
    "bn1",
    "stem",
)  # of the backbones here: before the blocks


def by_layer(groups: Sequence[dict[str, Any]], module: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Divides groups of parameters by layers, with ``lr_scale`` = decay^(blocks + 1 − layer).

    Layer 0 is what comes before the blocks, with the ``mask_token`` that a method puts there, i + 1 block i, and
    blocks + 1 the rest: the last norm and the heads.

    Args:
        groups: as an optimizer takes them.
        module: with its ``backbone``, whose ``shards()`` are the blocks.

    Raises:
        UserError: the backbone does not say what its blocks are.
    """
    layers, last = _layers(module)
    divided = []
    for group in groups:
        parts: dict[int, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            parts[layers.get(parameter, last)].append(parameter)
        divided += [{**group, "params": parts[layer], "lr_scale": decay ** (last - layer)} for layer in sorted(parts)]
    return divided


def _layers(module: nn.Module) -> tuple[dict[Tensor, int], int]:
    """The layer of each parameter of the backbone, and the number of the last."""
    backbone: Any = getattr(module, "backbone", module)
    blocks = backbone.shards() if hasattr(backbone, "shards") else []
    if not blocks:
        raise UserError(
            f"optimizer.layer_decay: {type(backbone).__name__} does not say what its blocks are: give null, or"
            " a ResNet, ViT or RegNetY"
        )
    in_blocks = {parameter for block in blocks for parameter in block.parameters()}
    in_order = itertools.takewhile(lambda each: each[1] not in in_blocks, backbone.named_parameters())
    # a BatchNorm bn1 stands before the blocks of a ResNet, and behind those of a WideResNet
    layers: dict[Tensor, int] = {parameter: 0 for name, parameter in in_order if name.partition(".")[0] in BEFORE}
    layers |= {parameter: 0 for name, parameter in module.named_parameters() if name == "mask_token"}
    for number, block in enumerate(blocks, 1):
        layers |= dict.fromkeys(block.parameters(), number)
    return layers, len(blocks) + 1

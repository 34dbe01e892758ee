"""Initial values of transformers, as several official codes draw them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unlabeled.backbones.transformer import Block


def init_linears_xavier(network: nn.Module) -> None:
    """Initialises every linear layer of ``network`` uniformly (Glorot and Bengio 2010), with bias 0."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)


def init_linears_truncated(network: nn.Module, cut: float = 2.0) -> None:
    """Initialises every linear layer of ``network`` from N(0, 0.02²), cut at ±``cut``, with bias 0."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02, a=-cut, b=cut)
            nn.init.zeros_(module.bias)


def init_xavier_uniform(weight: Tensor, inputs: int, outputs: int) -> None:
    """Does the same for a weight whose shape does not give its layers' numbers of inputs and outputs."""
    bound = math.sqrt(6 / (inputs + outputs))
    nn.init.uniform_(weight, -bound, bound)


@torch.no_grad()
def init_as_beit(network: nn.Module, blocks: nn.Sequential | Sequence[nn.Module], cut: float = 2.0) -> None:
    """Initialises as BEiT (arXiv:2106.08254), I-JEPA and data2vec: convolutions as linear layers.

    SimMIM differs in ``cut``, which is 0.02 (microsoft/SimMIM, models/simmim.py, ``_trunc_normal_``).

    Linear layers as :func:`init_linears_truncated`; what the i-th of ``blocks`` adds is then divided by √(2i), by the
    last layers of its attention and of its MLP.
    """
    init_linears_truncated(network, cut)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=0.02, a=-cut, b=cut)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for number, block in enumerate(blocks, 1):
        assert isinstance(block, Block)
        block.attn.proj.weight.div_(math.sqrt(2 * number))
        block.mlp.fc2.weight.div_(math.sqrt(2 * number))

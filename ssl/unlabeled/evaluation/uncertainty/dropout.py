"""Dropout left on in a network that is otherwise in eval mode, for Monte Carlo samples of its predictions."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from unlabeled.errors import UserError


@contextmanager
def dropout_active(network: nn.Module) -> Iterator[None]:
    """Dropout in training mode inside, and nothing else: BatchNorm and DropPath stay as they are; then all as before.

    Also reaches dropout that is no module of its own: that of nn.MultiheadAttention, and that of timm's fused
    attention, which looks at its own mode and is therefore computed unfused.

    Raises:
        UserError: no dropout has p above 0, so that all passes would be equal.
    """
    modules = [module for module in network.modules() if _drops(module)]
    fused = [m for m in network.modules() if getattr(m, "fused_attn", False) and _drops(getattr(m, "attn_drop", None))]
    if not modules:
        raise UserError(
            "MC dropout needs a network with dropout: this one has none with p above 0, so all its passes are equal. "
            "Take probe=mc_dropout, which trains a head with dropout, or probe=ensemble"
        )
    before = [(module, module.training) for module in modules]
    for module in modules:
        module.training = True  # not .train(), which would recurse
    for module in fused:
        module.fused_attn = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
        for module in fused:
            module.fused_attn = True  # type: ignore[assignment]


def _drops(module: object) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return float(module.dropout) > 0
    return isinstance(module, _DropoutNd) and module.p > 0

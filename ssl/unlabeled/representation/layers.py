"""Records the outputs of the blocks of any backbone, one vector for each image, for CKA."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unlabeled.backbones.vit import ViT
from unlabeled.errors import UserError
from unlabeled.objective import Backbone

POOLING = "mean over positions, without class token and registers"
LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)


class Layers:
    """The blocks of a backbone from input to output, with their outputs in the last forward pass.

    Attributes:
        names: of the blocks, as in ``named_modules``.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._blocks, self._prefix = backbone_blocks(backbone), _prefix(backbone)
        names = {id(module): name for name, module in backbone.named_modules()}
        self.names = [names[id(block)].removeprefix("model.") for block in self._blocks]
        self._seen: dict[int, Tensor] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Records each forward pass inside the block; removes its hooks afterwards."""

        def notice(number: int) -> Any:
            return lambda module, inputs, output: self._seen.update({number: pool_positions(output, self._prefix)})

        hooks = [block.register_forward_hook(notice(number)) for number, block in enumerate(self._blocks)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def taken(self) -> list[Tensor]:
        """Returns the outputs [B, D] of the last forward pass, block by block, and forgets them."""
        taken = [self._seen[number] for number in range(len(self.names))]
        self._seen.clear()
        return taken


def backbone_blocks(backbone: Backbone) -> list[nn.Module]:
    """Returns the blocks of a backbone: those that it names itself, or else a sequence found inside of it.

    A sequence is the members of its outermost lists, and its own parts whose type occurs more than once.

    Raises:
        UserError: fewer than two blocks are found.
    """
    kinds = Counter(type(module) for module in backbone.modules())
    blocks = backbone.shards() or list(_repeated_modules(getattr(backbone, "model", backbone), kinds, True))
    if len(blocks) < 2:
        raise UserError(f"backbone: {type(backbone).__name__} has no blocks that could be compared as its layers")
    return blocks


def _repeated_modules(module: nn.Module, kinds: "Counter[type[nn.Module]]", whole: bool) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, NORMS):  # timm's norms contain their activation
            continue
        member = type(module) in LISTS or (whole and kinds[type(child)] > 1)
        if member and type(child) not in LISTS and any(child.children()):
            yield child
        else:
            yield from _repeated_modules(child, kinds, False)


def pool_positions(output: Tensor, prefix: int) -> Tensor:
    """Returns the mean over positions, [B, C], of maps [B, C, h, w] or [B, h, w, C], or tokens [B, prefix + n, C]."""
    if output.ndim == 3:
        return output[:, prefix:].mean(1)
    if output.ndim != 4:
        return output.flatten(1)
    channels_last = output.shape[1] == output.shape[2] != output.shape[3]  # Swin's and others'
    return output.mean((1, 2) if channels_last else (2, 3))


def _prefix(backbone: Backbone) -> int:
    """Returns the number of tokens before the patches: class token, registers."""
    if isinstance(backbone, ViT):
        return backbone.prefix
    model = getattr(backbone, "model", None)
    return int(getattr(model, "num_prefix_tokens", hasattr(model, "class_token")))

"""Uses any classification model of torchvision as a backbone, up to the input of its last linear layer."""

import difflib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torchvision
from torch import Tensor, nn

from unlabeled.core.ranges import Channels, Pixels
from unlabeled.errors import UserError
from unlabeled.objective import Backbone


class TorchvisionBackbone(Backbone):
    """A randomly initialised torchvision model without its last linear layer and the dropout before it.

    For ResNets prefer ``backbone=resnet18`` and the like: they have a stem for small images.

    Args:
        model: a name that ``torchvision.models.list_models(torchvision.models)`` knows, e.g. ``convnext_tiny``.
        image_size: height and width of the views, for a ViT, whose weights depend on it; None keeps its 224.
        channels: of the images; if not 3, the first convolution is replaced by a random one.

    Shape: images [B, channels, h, w] → features [B, num_features].

    Raises:
        UserError: torchvision has no such model, the model takes no ``image_size``, or does not end in a linear layer.
    """

    def __init__(self, model: str, image_size: Pixels | None = None, channels: Channels = 3) -> None:
        super().__init__()
        known = torchvision.models.list_models(torchvision.models)
        if model not in known:
            close = difflib.get_close_matches(model, known, n=3)
            suggestion = f"did you mean {' or '.join(close)}?" if close else "torchvision.models.list_models() has them"
            raise UserError(f"backbone.model={model}: torchvision has no such classification model; {suggestion}")
        if image_size is not None and not model.startswith("vit_"):
            raise UserError(f"backbone.image_size={image_size}: {model} takes no image size, leave it null")
        self.model: nn.Module = torchvision.models.get_model(
            model, weights=None, **constructor_arguments(model, image_size)
        )
        self.channels = channels
        if channels != 3:
            _replace_first_convolution(self.model, model, channels)
        self.num_features = _remove_classifier(self.model, model)
        self.image_size = getattr(self.model, "image_size", 224 if model == "maxvit_t" else None)

    kinds = ("last", "map")

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model(images)
        return features

    def features(self, images: Tensor, kinds: Sequence[str]) -> dict[str, Tensor]:
        """See :meth:`Backbone.features`; ``map`` is what the last pooling takes, or a ViT's patches in their places."""
        self.check_kinds(kinds)
        with _outputs_kept(self.model) as kept:
            last = self(images)
        return {kind: last if kind == "last" else _dense(kept, images) for kind in kinds}


@contextmanager
def _outputs_kept(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Keeps the input of the last pooling, a ViT's tokens, and the last map that a part of the network returns."""
    kept: dict[str, Tensor] = {}
    pools = [each for each in network.modules() if isinstance(each, nn.AdaptiveAvgPool2d)]
    hooks = [pools[-1].register_forward_pre_hook(lambda _, given: kept.update(pooled=given[0]))] if pools else []
    for name, part in network.named_children():
        hooks.append(part.register_forward_hook(partial(_keep, kept, name)))
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def _keep(kept: dict[str, Tensor], name: str, part: nn.Module, given: Any, output: Any) -> None:
    if isinstance(output, Tensor) and output.ndim == 4:
        kept["map"] = output
    if name == "encoder" and isinstance(output, Tensor) and output.ndim == 3:
        kept["tokens"] = output


def _dense(kept: dict[str, Tensor], images: Tensor) -> Tensor:
    if "tokens" in kept:  # of a ViT, whose images are square; the first token is the class token
        patches = kept["tokens"][:, 1:].transpose(1, 2)
        rows = math.isqrt(patches.shape[2])
        return patches.reshape(*patches.shape[:2], rows, -1)
    return kept["pooled"] if "pooled" in kept else kept["map"]


def constructor_arguments(model: str, image_size: int | None) -> dict[str, object]:
    """Returns the arguments of ``torchvision.models.get_model`` beside the name, as plain values."""
    if model in ("googlenet", "inception_v3"):  # in training, an auxiliary output would make a tuple
        return {"aux_logits": False, "init_weights": True, "dropout": 0.0}
    return {} if image_size is None else {"image_size": image_size}


def _remove_classifier(network: nn.Module, name: str) -> int:
    """Replaces the last linear layer, and dropout in its part, by identities; returns the layer's input width."""
    paths = dict(network.named_modules())
    head = list(paths)[-1].partition(".")[0]  # the last of the top-level parts
    linears = [path for path, module in paths.items() if isinstance(module, nn.Linear) and _inside(path, head)]
    if not linears:
        raise UserError(f"backbone.model={name}: does not end in a linear layer that could be taken off")
    classifier = paths[linears[-1]]
    assert isinstance(classifier, nn.Linear)
    for path, module in paths.items():
        if path == linears[-1] or (isinstance(module, nn.Dropout) and _inside(path, head)):
            network.set_submodule(path, nn.Identity())
    return classifier.in_features


def _replace_first_convolution(network: nn.Module, name: str, channels: int) -> None:
    """Replaces the first convolution for other than RGB images; its outputs keep their variance."""
    path, first = next((path, module) for path, module in network.named_modules() if isinstance(module, nn.Conv2d))
    if first.in_channels != 3 or getattr(network, "transform_input", False):
        raise UserError(f"backbone.channels={channels}: {name} takes 3 alone; timm has models of the same kind")
    given = (channels, first.out_channels, first.kernel_size, first.stride, first.padding, first.dilation)
    other = nn.Conv2d(*given, bias=first.bias is not None)  # type: ignore[arg-type]
    nn.init.normal_(other.weight, std=float(first.weight.detach().std()) * math.sqrt(3 / channels))
    if first.bias is not None and other.bias is not None:
        other.bias.data.copy_(first.bias.data)
    network.set_submodule(path, other)


def _inside(path: str, part: str) -> bool:
    return path.partition(".")[0] == part

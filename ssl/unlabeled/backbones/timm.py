"""Uses any timm model as a backbone: its pooled features before the classifier."""

import difflib
import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from unlabeled.core.ranges import Channels, Pixels
from unlabeled.errors import UserError
from unlabeled.objective import Backbone

TABLES_OF_POSITIONS = ("vision_transformer", "deit")  # timm's modules with models that can interpolate positions


class TimmBackbone(Backbone):
    """A randomly initialised timm model without its classifier.

    Args:
        model: a name that ``timm.list_models()`` knows, e.g. ``vit_tiny_patch16_224`` or ``convnext_tiny``.
        image_size: height and width of the views, for models whose weights depend on it (ViT, Swin); None for others
            (ConvNets). A ViT takes images of other sizes too, with positions interpolated by timm.
        gradient_checkpointing: store the input of each block (as timm defines them), and compute the block again in the
            backward pass; less memory, more time, the same numbers.
        channels: of the images.

    Shape: images [B, channels, h, w] → features [B, num_features].

    Raises:
        UserError: timm has no such model, or the model takes no ``image_size`` or cannot be recomputed.
    """

    def __init__(
        self, model: str, image_size: Pixels | None = None, gradient_checkpointing: bool = False, channels: Channels = 3
    ) -> None:
        super().__init__()
        import timm  # heavy: imported where it is used

        if not timm.is_model(model):
            close = difflib.get_close_matches(model, timm.list_models(), n=3)
            suggestion = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() gives the names"
            raise UserError(f"backbone.model={model}: timm has no such model; {suggestion}")
        self.channels = channels
        size: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
        if interpolates := timm.models.is_model_in_modules(model, TABLES_OF_POSITIONS):
            size["dynamic_img_size"] = True
        try:
            self.model = timm.create_model(model, pretrained=False, num_classes=0, in_chans=channels, **size)
        except TypeError as error:
            if "'img_size'" not in str(error):
                raise
            raise UserError(f"backbone.image_size={image_size}: {model} takes no image size, leave it null") from error
        # Not timm's num_features: MobileNetV3, VGG and others have a layer between the pooling and the classifier.
        self.num_features = int(self.model.head_hidden_size)
        published = self.model.pretrained_cfg
        fixed = published.get("fixed_input_size", False)
        self.image_size = image_size or (published["input_size"][-1] if fixed else None)
        if interpolates:
            self.size_multiple = int(self.model.patch_embed.patch_size[0])
        if gradient_checkpointing:
            _recompute(self.model, model)

    kinds = ("last", "map")

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model(images)
        return features

    def features(self, images: Tensor, kinds: Sequence[str]) -> dict[str, Tensor]:
        """See :meth:`Backbone.features`; ``map`` is what timm calls the last intermediate output, normalised."""
        self.check_kinds(kinds)
        return {kind: self(images) if kind == "last" else self._map(images) for kind in kinds}

    def _map(self, images: Tensor) -> Tensor:
        if not hasattr(self.model, "forward_intermediates"):
            raise UserError(f"features=map: timm has no intermediate outputs of {type(self.model).__name__}")
        norm = {"norm": True} if self._takes_norm else {}
        found: Tensor = self.model.forward_intermediates(images, indices=1, intermediates_only=True, **norm)[-1]
        return found

    def stage_maps(self, images: Tensor) -> list[Tensor]:
        """See :meth:`Backbone.stage_maps`; they are timm's intermediate outputs, not normalised."""
        if not hasattr(self.model, "forward_intermediates"):
            raise UserError(f"backbone: timm has no intermediate outputs of {type(self.model).__name__}")
        return list(self.model.forward_intermediates(images, intermediates_only=True))

    @property
    def _takes_norm(self) -> bool:
        return "norm" in inspect.signature(self.model.forward_intermediates).parameters


def _recompute(network: Any, name: str) -> None:
    """Turns on timm's gradient checkpointing; refuses BatchNorm, whose statistics it would update twice."""
    if any(isinstance(module, _BatchNorm) for module in network.modules()):
        raise UserError(
            f"backbone.gradient_checkpointing=true: timm's is not for BatchNorm, which {name} has; set false"
        )
    try:
        network.set_grad_checkpointing()
    except (AssertionError, AttributeError) as error:
        raise UserError(f"backbone.gradient_checkpointing=true: timm has none for {name}; set false") from error

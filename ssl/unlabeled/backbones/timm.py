"""Any model of timm as a backbone: its pooled features before the classifier."""

from torch import Tensor

from unlabeled.objective import Backbone


class TimmBackbone(Backbone):
    """A freshly initialised timm model without its classifier.

    Args:
        model: a name that ``timm.list_models()`` knows, e.g. ``vit_tiny_patch16_224`` or ``convnext_tiny``.
        image_size: height and width of the views, for models whose weights depend on it (ViT, Swin); None where they
            do not (ConvNets).

    Shape: images [B, 3, h, w] → features [B, num_features].
    """

    def __init__(self, model: str, image_size: int | None = None) -> None:
        super().__init__()
        import timm  # heavy: imported where it is used

        size = {} if image_size is None else {"img_size": image_size}
        self.model = timm.create_model(model, pretrained=False, num_classes=0, **size)
        self.num_features = int(self.model.num_features)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model(images)
        return features

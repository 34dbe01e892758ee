"""Models of torchvision as backbones: as wide as they say, without classifier and dropout, or refused by the key."""

import pytest
import torch
import torchvision
from torch import nn

from unlabeled.backbones.torchvision import TorchvisionBackbone
from unlabeled.errors import UserError


@pytest.mark.parametrize(
    ("model", "image_size", "num_features"),
    [
        ("resnet18", None, 512),
        ("regnet_y_400mf", None, 440),
        ("convnext_tiny", None, 768),
        ("efficientnet_b0", None, 1280),
        ("mobilenet_v3_small", None, 1024),
        ("densenet121", None, 1024),
        ("swin_t", None, 768),
        ("vit_b_32", 64, 768),
        ("googlenet", None, 1024),
    ],
)
def test_num_features_is_the_width_of_what_comes_out(model: str, image_size: int | None, num_features: int) -> None:
    backbone = TorchvisionBackbone(model, image_size)
    assert backbone(torch.zeros(2, 3, 64, 64)).shape == (2, num_features)  # in training mode: no auxiliary outputs
    assert backbone.num_features == num_features
    assert backbone.image_size == image_size


@pytest.mark.parametrize("model", ["resnet18", "mobilenet_v3_small", "convnext_tiny"])
def test_the_features_are_what_the_classifier_would_get(model: str) -> None:
    torch.manual_seed(0)
    backbone = TorchvisionBackbone(model).eval()
    torch.manual_seed(0)
    whole = torchvision.models.get_model(model, weights=None).eval()
    seen: list[torch.Tensor] = []
    last = [module for module in whole.modules() if isinstance(module, nn.Linear)][-1]
    last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        whole(images)
        assert torch.equal(backbone(images), seen[0])


@pytest.mark.parametrize("model", ["efficientnet_b0", "mobilenet_v3_small", "googlenet", "vgg11"])
def test_no_dropout_is_left_before_the_features(model: str) -> None:
    with torch.device("meta"):
        backbone = TorchvisionBackbone(model)
    assert [module.p for module in backbone.modules() if isinstance(module, nn.Dropout) and module.p > 0] == []


def test_what_cannot_serve_is_refused_by_its_key() -> None:
    with pytest.raises(UserError, match=r"^backbone\.model=resnet19: torchvision has no such .*; did you mean resnet1"):
        TorchvisionBackbone("resnet19")
    with pytest.raises(UserError, match=r"^backbone\.model=fcn_resnet50: torchvision has no such classification model"):
        TorchvisionBackbone("fcn_resnet50")
    with pytest.raises(UserError, match=r"^backbone\.image_size=64: resnet18 takes no image size, leave it null$"):
        TorchvisionBackbone("resnet18", 64)
    with pytest.raises(UserError, match=r"^backbone\.model=squeezenet1_0: does not end in a linear layer"):
        TorchvisionBackbone("squeezenet1_0")

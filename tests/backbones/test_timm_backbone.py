"""Models of timm as backbones: as wide as they say, and refused in words that name the key."""

import pytest
import torch

from unlabeled.backbones.timm import TimmBackbone
from unlabeled.errors import UserError


@pytest.mark.parametrize(
    ("model", "image_size", "num_features"),
    [
        ("resnet10t", None, 512),
        ("vit_tiny_patch16_224", 32, 192),
        ("mobilenetv3_small_050", None, 1024),  # timm's own num_features says 288: a layer follows the pooling
    ],
)
def test_num_features_is_the_width_of_what_comes_out(model: str, image_size: int | None, num_features: int) -> None:
    backbone = TimmBackbone(model, image_size).eval()
    with torch.no_grad():
        features = backbone(torch.zeros(2, 3, 32, 32))
    assert features.shape == (2, num_features)
    assert backbone.num_features == num_features


def test_a_vision_transformer_gets_as_many_positions_as_its_images_have_patches() -> None:
    backbone = TimmBackbone("vit_tiny_patch16_224", 48)
    assert backbone.state_dict()["model.pos_embed"].shape == (1, 1 + 3 * 3, 192)


def test_an_unknown_model_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(
        UserError, match=r"^backbone\.model=convnext_tinny: timm has no such model; did you mean convnext_tiny or "
    ):
        TimmBackbone("convnext_tinny")
    with pytest.raises(UserError, match=r"^backbone\.model=9: timm has no such model; timm\.list_models\(\)"):
        TimmBackbone("9")


def test_a_model_of_the_hub_is_refused_without_asking_the_network() -> None:
    with pytest.raises(UserError, match=r"^backbone\.model=hf-hub:timm/resnet18: timm has no such model"):
        TimmBackbone("hf-hub:timm/resnet18")


def test_a_size_for_a_model_that_takes_none_is_refused_by_its_key() -> None:
    message = r"^backbone\.image_size=32: resnet10t takes no image size, leave it null$"
    with pytest.raises(UserError, match=message):
        TimmBackbone("resnet10t", 32)


def test_a_vision_transformer_takes_small_crops_as_well_and_a_swin_says_that_it_does_not() -> None:
    backbone = TimmBackbone("vit_tiny_patch16_224", 48).eval()
    with torch.no_grad():
        assert backbone(torch.zeros(2, 3, 32, 32)).shape == (2, 192)
    backbone.check_size(32)
    with pytest.raises(
        UserError, match=r"^views\.size=40: TimmBackbone cuts images into patches of 16 pixels: give 32"
    ):
        backbone.check_size(40)
    swin = TimmBackbone("swin_tiny_patch4_window7_224")
    with pytest.raises(UserError, match=r"takes images of 224 pixels alone: give backbone\.image_size=96, or views of"):
        swin.check_size(96)


def test_a_vision_transformer_gives_the_bits_of_timm_at_the_size_that_it_is_built_for() -> None:
    import timm

    theirs = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, img_size=48).eval()
    ours = TimmBackbone("vit_tiny_patch16_224", 48).eval()
    ours.model.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))

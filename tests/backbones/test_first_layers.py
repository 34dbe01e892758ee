"""First layers for images of any number of channels; nothing else of a network changes."""

from typing import Any

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from tests.small import composed
from unlabeled.commands.build.network import build_backbone, build_objective
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, Progress

CHOICES: list[tuple[str, ...]] = [
    ("backbone=resnet_thin",),
    ("backbone=vit_tiny_small", "backbone.depth=1"),
    ("backbone=regnety_8gf", "backbone.depth=4"),
    ("backbone=wrn_28_2", "backbone.depth=10"),
    ("backbone=timm", "backbone.model=resnet10t"),
    ("backbone=timm", "backbone.model=vit_tiny_patch16_224", "backbone.image_size=32"),
    ("backbone=torchvision", "backbone.model=shufflenet_v2_x0_5"),
    ("backbone=torchvision", "backbone.model=vit_b_32", "backbone.image_size=32"),
]


def built(choice: tuple[str, ...], channels: int) -> Backbone:
    bare = ("data=folder", "data.path=x", "views.groups=[]", f"data.channels={channels}")
    return build_backbone(composed(*choice, *bare).backbone, seed=0)


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(part.partition("=")[2] for part in choice[:2]))
@pytest.mark.parametrize("channels", [1, 5])
def test_the_first_layer_has_the_width_of_the_images_and_all_others_stay(choice: Any, channels: int) -> None:
    usual, other = built(choice, 3), built(choice, channels)
    assert (usual.channels, other.channels) == (3, channels)
    shapes = [{name: tuple(value.shape) for name, value in each.state_dict().items()} for each in (usual, other)]
    assert shapes[0].keys() == shapes[1].keys()
    changed = {name for name in shapes[0] if shapes[0][name] != shapes[1][name]}
    first = next(name for name, module in usual.named_modules() if isinstance(module, nn.Conv2d))
    assert changed == {f"{first}.weight"}
    assert shapes[1][f"{first}.weight"][1] == channels
    with torch.no_grad():
        assert other.eval()(torch.rand(2, channels, 32, 32)).shape == (2, other.num_features)


def test_mae_paints_all_channels() -> None:
    bands = ("data=folder", "data.path=x", "data.channels=5", "views=mae_small", "objective=mae")
    config = composed(*bands, "backbone=vit_tiny_small", "backbone.depth=1", "views.mean=null", "views.std=null")
    objective = build_objective(config)
    images, ids = torch.rand(2, 5, 32, 32), torch.arange(2)
    batch = Batch((images * 255).byte(), ids, ids, (images,))
    output = objective(batch, Progress(0, 10, 5, 0))
    assert bool(output.loss.isfinite())
    assert objective.decoder.decoder_pred.out_features == 4 * 4 * 5  # type: ignore[union-attr]


def test_colours_of_the_default_views_are_refused_by_the_key() -> None:
    config = composed("data=folder", "data.path=x", "data.channels=5")
    with pytest.raises(InstantiationException) as caught:
        instantiate(config.views)
    assert isinstance(caught.value.__cause__, UserError)
    assert "is for RGB, and images have 5 channels (data.channels)" in str(caught.value.__cause__)

"""Methods take a step with networks of every kind: convolutions and attention, ours and timm's."""

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from tests.small import (
    MASKING,
    NARROW,
    TINY,
    WIDTHS,
    batch_of,
    chosen_for,
    composed,
    fitting,
    give_teacher,
    load_teacher,
    members,
    missing_keys,
    shrink,
)
from unlabeled.commands.build.network import build_backbone
from unlabeled.errors import UserError
from unlabeled.objective import Objective, Progress
from unlabeled.views.key import ViewKey

BACKBONES = {
    "convnext_atto": ("timm", "backbone.model=convnext_atto"),
    "resnet18": ("resnet18", "backbone.stem=cifar", "backbone.width=0.125"),
    "vit_tiny": (
        "vit_tiny_small",
        "backbone.width=24",
        "backbone.heads=2",
        "backbone.depth=2",
        "backbone.patch_size=16",
    ),
}
REFUSED = {(name, network) for name in MASKING for network in ("convnext_atto", "resnet18")}


@pytest.mark.parametrize("network", BACKBONES)
@pytest.mark.parametrize("name", members("objective"))
def test_every_method_takes_a_step_with_this_network_or_refuses_it_in_one_line(name: str, network: str) -> None:
    backbone, *values = BACKBONES[network]
    config = composed(*chosen_for(name, backbone), *values)
    config.views.update({key: None for key in missing_keys(config.views)})
    shrink(config.views, 64)
    if network == "vit_tiny":  # all crops are made of whole patches
        for group in config.views.groups:
            for operation in group.operations:
                if "size" in operation:
                    operation.size = max(16, operation.size // 16 * 16)
    if network == "convnext_atto":  # halves its maps five times
        for group in config.views.groups:
            for operation in group.operations:
                if "size" in operation:
                    operation.size = max(32, operation.size)
    give_teacher(config)
    config.objective.update({key: NARROW for key in WIDTHS if config.objective.get(key, 0) > NARROW})
    config.objective.update(fitting({"threshold": TINY["threshold"], "averaged_blocks": 2}, config.objective))
    if "support" in config.objective:
        config.objective.support.classes_per_batch = 2
    if "bn_splits" in config.objective and network != "resnet18":
        config.objective.bn_splits = 1  # as MoCo's refusal of networks without BatchNorm says
    network_built = build_backbone(config.backbone, 0)
    if (name, network) in REFUSED:
        with pytest.raises(InstantiationException) as refused:
            instantiate(config.objective, backbone=network_built)
        assert isinstance(refused.value.__cause__, UserError)
        assert "\n" not in str(refused.value.__cause__)
        return
    objective: Objective = instantiate(config.objective, backbone=network_built)
    load_teacher(objective, config)
    views, images, ids = instantiate(config.views), torch.randint(0, 256, (12, 3, 64, 64)).byte(), torch.arange(12)
    made = views(images, ids, ViewKey(0, 0, 0, 12))
    # torch 2.14 ends with a segmentation fault in the backward pass of such a thin ResNet-18 in channels_last
    made = tuple(view.contiguous() for view in made)
    output = objective(batch_of(objective, images, ids, made), Progress(0, 3, 3, 0))
    output.loss.backward()
    assert bool(output.loss.isfinite())
    assert output.features.shape == (12, objective.backbone.num_features)
    assert any(each.grad is not None and bool(each.grad.any()) for each in objective.backbone.parameters())

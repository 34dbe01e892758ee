"""Frozen blocks stay bit for bit as they were, statistics of BatchNorm included, and rates fall from block to block."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.small import small_run
from unlabeled.backbones.resnet import ResNet
from unlabeled.backbones.vit import ViT
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.errors import UserError
from unlabeled.objective import Backbone
from unlabeled.optimizers.layer_decay import by_layer


def trained(name: str, folder: Path, *overrides: str) -> tuple[dict[str, torch.Tensor], Any]:
    """The backbone before the first step, and the run after the last."""
    config = small_run(name, folder, "data=digits", "max_steps=3", "num_workers=0", "plan=null", *overrides)
    resolved = open_run(config)
    run = build_run(config, resolved)
    before = {key: value.clone() for key, value in run.module.objective.backbone.state_dict().items()}
    run.fit(resolved)
    run.close()
    return before, run


@pytest.mark.parametrize(
    ("name", "freeze", "still"),
    [
        ("simclr", 1, ("conv1.", "bn1.", "layer1.0.")),
        ("moco_v2", 1, ("conv1.", "bn1.", "layer1.0.")),
        ("mae", 1, ("cls_token", "pos_embed", "patch_embed.", "blocks.0.")),
    ],
)
def test_frozen_blocks_stay_as_they_were_and_all_others_move(
    name: str, freeze: int, still: tuple[str, ...], tmp_path: Path
) -> None:
    before, run = trained(name, tmp_path, f"backbone.freeze={freeze}")
    after = run.module.objective.backbone.state_dict()
    same = {key for key, value in after.items() if torch.equal(value, before[key])}
    assert same == {key for key in after if key.startswith(still)}
    if name == "moco_v2":
        teacher = run.module.objective.momentum_backbone.state_dict()
        assert all(torch.equal(teacher[key], before[key]) for key in same)


@pytest.mark.parametrize("freeze", [4, 9])
def test_at_least_one_block_is_trained(freeze: int) -> None:
    with pytest.raises(UserError, match=f"backbone.freeze={freeze}: the network has 4 blocks.* give 1 to 3"):
        ResNet(10, 0.125, "cifar", freeze=freeze)


@pytest.mark.parametrize(
    ("backbone", "scales"),
    [
        (
            ResNet(10, 0.125, "cifar"),
            {"conv1.weight": 0.5**5, "layer1.0.conv1.weight": 0.5**4, "layer4.0.bn2.bias": 0.5},
        ),
        (ViT(8, 4, 16, 2, 2), {"cls_token": 0.5**3, "blocks.0.norm1.bias": 0.25, "blocks.1.mlp.fc1.weight": 0.5}),
        (ViT(8, 4, 16, 2, 2), {"norm.weight": 1.0}),
    ],
)
def test_each_block_has_its_share_of_the_rate(backbone: Backbone, scales: dict[str, float]) -> None:
    names = dict(backbone.named_parameters())
    groups = by_layer([{"params": list(names.values()), "weight_decay": 0.0}], backbone, 0.5)
    assert sum(len(group["params"]) for group in groups) == len(names)
    for name, scale in scales.items():
        assert [group["lr_scale"] for group in groups if any(each is names[name] for each in group["params"])] == [
            scale
        ]


def test_a_run_takes_each_step_at_these_rates(tmp_path: Path) -> None:
    _, run = trained("simclr", tmp_path, "optimizer.layer_decay=0.5", "backbone.depth=10")
    rates = {group["lr_scale"]: group["lr"] for group in run.trainer.optimizers[0].param_groups}
    assert sorted(rates) == [0.5**power for power in range(5, -1, -1)]
    assert all(rate == rates[1.0] * scale for scale, rate in rates.items())


def test_a_backbone_without_known_blocks_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"optimizer\.layer_decay: Backbone does not say what its blocks are"):
        by_layer([], Backbone(), 0.5)


def test_frozen_blocks_of_a_vit_drop_no_path() -> None:
    network = ViT(8, 4, width=16, depth=3, heads=2, drop_path=0.5, uniform_drop_path=True, freeze=2).train()
    assert [block.training for block in network.blocks] == [False, False, True]
    assert not network.patch_embed.training
    x = torch.randn(32, 4, 16)
    assert torch.equal(network.blocks[0](x), network.blocks[0](x))
    assert network.eval().blocks[2].training is False

"""Every yaml of the project composes, builds and, where it is small, trains."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from unlabeled.build import build_backbone
from unlabeled.config import check_keys
from unlabeled.objective import Batch, Objective, Progress
from unlabeled.optimizers import Recipe
from unlabeled.views.key import ViewKey

CONF = Path(__file__).parents[1] / "conf"


def members(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["name=x", *overrides])


@pytest.mark.parametrize("name", members("objective"))
def test_every_objective_keeps_the_contract(name: str) -> None:
    config = composed(f"objective={name}", "backbone=resnet_thin", "views=simclr_small", "views.size=16")
    torch.manual_seed(0)
    backbone = build_backbone(config.backbone, 0)
    objective: Objective = instantiate(config.objective, backbone=backbone)
    views = instantiate(config.views)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    before = {key: value.clone() for key, value in objective.state_dict().items()}
    assert objective.backbone is backbone
    for step in range(3):
        progress = Progress(step, 3, 3, 0)
        made = views(images, ViewKey(0, step, 0, 8))
        output = objective(Batch(images, torch.arange(8), torch.full((8,), -1), made), progress)
        assert output.loss.shape == ()
        assert output.loss.dtype == torch.float32
        assert math.isfinite(float(output.loss))
        assert output.features.shape == (8, backbone.num_features)
        assert not output.features.requires_grad
        assert all(value.ndim == 0 and not value.requires_grad for value in output.metrics.values())
        optimizer.zero_grad()
        output.loss.backward()
        assert all(p.grad is not None for p in objective.backbone.parameters())
        optimizer.step()
        objective.after_step(progress)
    moved = [key for key, value in objective.state_dict().items() if not torch.equal(value, before[key])]
    assert any(key.startswith("backbone.") for key in moved)
    collapsed = objective.collapsed_at()
    assert collapsed is None or math.isfinite(collapsed)
    objective.load_state_dict(before)


@pytest.mark.parametrize("name", members("experiment"))
def test_every_experiment_composes_and_builds_and_its_header_says_how_to_run_it(name: str) -> None:
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert f"experiment={name}" in "\n".join(line for line in lines if line.startswith("#"))
    needs_path = any(f"override /data: {source}" in line for line in lines for source in ("parquet", "folder"))
    config = composed(f"experiment={name}", *(["data.path=x"] if needs_path else []))
    check_keys(config, CONF / "train.yaml")
    with torch.device("meta"):
        instantiate(config.objective, backbone=instantiate(config.backbone))
    instantiate(config.views)
    assert isinstance(instantiate(config.optimizer), Recipe)


@pytest.mark.parametrize("name", members("optimizer"))
def test_every_optimizer_builds_and_its_first_step_moves_the_weights(name: str) -> None:
    recipe: Recipe = instantiate(composed(f"optimizer={name}").optimizer)
    layer = torch.nn.Linear(3, 2)
    optimizer = recipe.build(layer, 256)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(recipe.peak_lr(256))
    before = layer.weight.detach().clone()
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize("name", [name for name in members("backbone") if name != "timm"])
def test_every_backbone_says_how_wide_its_features_are(name: str) -> None:
    backbone = build_backbone(composed(f"backbone={name}").backbone, 0)
    assert backbone(torch.zeros(2, 3, 32, 32)).shape == (2, backbone.num_features)


def test_initial_weights_follow_the_seed_and_leave_the_random_state_alone() -> None:
    config = composed("backbone=resnet_thin").backbone
    before = torch.get_rng_state()
    first, same, other = (build_backbone(config, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.conv1.weight, same.conv1.weight)  # type: ignore[arg-type, union-attr]
    assert not torch.equal(first.conv1.weight, other.conv1.weight)  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_number_in_a_yaml_stands_beside_a_comment_or_under_one(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("#")
    lonely = []
    for before, line in itertools.pairwise(lines):
        value = line.partition(":")[2].strip()
        is_number = value[:1].isdigit() or value[:1] == "["
        if is_number and "#" not in line and not before.lstrip().startswith("#") and "#" not in before:
            lonely.append(line)
    assert lonely == []

"""Every yaml of the project composes, builds and, where it is small, trains."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from tests.small import (
    CONF,
    batch_of,
    composed,
    load_teacher,
    members,
    missing_keys,
    small_objective,
    small_teacher,
)
from unlabeled.commands.build.network import build_backbone
from unlabeled.commands.config import check_keys
from unlabeled.errors import UserError
from unlabeled.objective import (
    AfterBackward,
    Backbone,
    Batch,
    HasMethodWarnings,
    HasSchedules,
    HasVisualization,
    Objective,
    Plan,
    Progress,
)
from unlabeled.optimizers import OptimizerConfig
from unlabeled.training.plan.checks import check_schedule
from unlabeled.views.key import ViewKey


def sizes_of(views: Any, image_size: int) -> list[int]:
    black = torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8)
    return [view.shape[-1] for view in views(black, torch.zeros(1, dtype=torch.long), ViewKey(0, 0, 0, 1))]


def take_three_steps(objective: Objective, optimizer: torch.optim.Optimizer, views: Any, images: Tensor) -> None:
    """As training does; every promise of the contract is looked at."""
    ids, unlabelled = torch.arange(len(images)), torch.full((len(images),), -1)
    for step in range(3):
        progress = Progress(step, 3, 3, 0)
        made = views(images, ids, ViewKey(0, step, 0, len(images)))
        output = objective(batch_of(objective, images, unlabelled, made), progress)
        assert output.loss.shape == ()
        assert output.loss.dtype == torch.float32
        assert bool(output.loss.isfinite())
        assert output.features.shape == (len(images), objective.backbone.num_features)
        assert not output.features.requires_grad
        assert all(value.ndim == 0 and not value.requires_grad for value in output.metrics.values())
        optimizer.zero_grad()
        output.loss.backward()
        assert all(p.grad is not None for p in objective.backbone.parameters() if p.requires_grad)
        if isinstance(objective, AfterBackward):
            objective.after_backward(progress)
        optimizer.step()
        objective.after_step(progress)


@pytest.mark.parametrize("name", members("objective"))
def test_every_objective_keeps_the_contract(name: str) -> None:
    torch.manual_seed(0)
    config, objective = small_objective(name)
    views = instantiate(config.views)
    images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8)
    plan = Plan(16, 1, 100_000, sizes_of(views, 16), 10)
    objective.check(plan)
    before = {key: value.clone() for key, value in objective.state_dict().items()}
    take_three_steps(objective, torch.optim.SGD(objective.parameters(), lr=0.1), views, images)
    moved = [key for key, value in objective.state_dict().items() if not torch.equal(value, before[key])]
    assert any(key.startswith("backbone.") for key in moved)
    collapsed = objective.collapsed_at(plan)
    assert collapsed is None or math.isfinite(collapsed)
    plain, ids = views.evaluation_view(images), torch.arange(16)
    if isinstance(objective, HasVisualization):
        for column in objective.visualize(Batch(images, ids, ids, (plain,)), 0).values():
            assert column.shape == plain.shape
    objective.load_state_dict(before)


@pytest.mark.parametrize("name", ["simclr", "moco_v3", "relic"])
def test_a_contrast_within_a_batch_of_one_image_is_refused(name: str) -> None:
    _, objective = small_objective(name)
    with pytest.raises(UserError, match=r"batch_size=1: .* negatives"):
        objective.check(Plan(1, 1, 100, [16, 16]))
    objective.check(Plan(2, 1, 100, [16, 16]))


@pytest.mark.parametrize("name", members("objective"))
def test_an_objective_built_anew_and_given_a_saved_state_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config, objective = small_objective(name)
    resumed, views = small_objective(name)[1], instantiate(config.views)
    images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8)
    take_three_steps(objective, torch.optim.SGD(objective.parameters(), lr=0.1), views, images)
    torch.save(objective.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for each in (objective, resumed):  # three steps more: what is not in the state would show
        take_three_steps(each, torch.optim.SGD(each.parameters(), lr=0.1), views, images)
    ours, theirs = resumed.state_dict(), objective.state_dict()
    assert [key for key, value in theirs.items() if not torch.equal(ours[key], value)] == []


HEADS = ("projector", "decoder", "classifier", "predictor", "backbone.norm")  # the first that a method has


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1, 100])
@pytest.mark.parametrize("name", members("objective"))
def test_every_objective_has_a_finite_float32_loss_under_autocast_on_identical_images_and_on_large_embeddings(
    name: str, scale: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    config, objective = small_objective(name)
    modules = dict(objective.named_modules())
    head = next(modules[name] for name in HEADS if name in modules)
    head.register_forward_hook(lambda module, given, made: made * scale)
    for images in (torch.rand(16, 3, 16, 16), torch.rand(1, 3, 16, 16).expand(16, -1, -1, -1)):
        sizes = sizes_of(instantiate(config.views), 16)
        views = tuple(torch.nn.functional.interpolate(images, (size, size)) for size in sizes)
        given = batch_of(objective, images, torch.arange(16), views)
        with torch.autocast("cpu", dtype=dtype):
            output = objective(given, Progress(0, 3, 3, 0))
        assert output.loss.dtype == torch.float32
        assert bool(output.loss.isfinite())


def composed_experiment(name: str) -> DictConfig:
    """With a word for what only a user knows, and no masks."""
    missing = missing_keys(composed(f"experiment={name}"))
    assert missing <= {"data.path", "views.masks", "weights", "objective.teacher"}
    given = {"data.path": "x", "views.masks": "null", "weights": "x", "objective.teacher": str(small_teacher())}
    return composed(f"experiment={name}", *(f"{key}={given[key]}" for key in missing))


@pytest.mark.parametrize("name", members("experiment"))
def test_every_experiment_builds_passes_the_checks_of_its_plan_and_its_header_says_how_to_run_it(name: str) -> None:
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert f"experiment={name}" in "\n".join(line for line in lines if line.startswith("#"))
    config = composed_experiment(name)
    check_keys(config, CONF / "train.yaml")
    with torch.device("meta"):
        objective: Objective = instantiate(config.objective, backbone=instantiate(config.backbone))
    views = instantiate(config.views)
    sizes = {"digits": (1347, 8), "seer_regnety_32gf": (10**9, 256)}
    images, pixels = sizes.get(name, (50_000, 32) if "cifar10" in name else (1_281_167, 256))
    plan = Plan(config.batch_size, 1, images, views.sizes(pixels), 10 if "cifar10" in name else 1000)
    objective.check(plan)
    recipe: OptimizerConfig = instantiate(config.optimizer)
    steps = images // config.batch_size
    last = Progress(config.max_epochs * steps - 1, config.max_epochs * steps, steps, 0)
    assert isinstance(objective, HasSchedules)
    values = {"learning_rate": recipe.lr_at(last, config.batch_size), **objective.scheduled_values(last, plan)}
    checks = objective.plan_warnings(plan) if isinstance(objective, HasMethodWarnings) else []
    checks += check_schedule(
        recipe, config.max_epochs, config.batch_size, {name: [value] for name, value in values.items()}
    )
    assert [check for check in checks + views.plan_warnings(pixels) if not check.passed] == []


@pytest.mark.parametrize("name", [name for name in members("experiment") if name == "digits" or name.endswith("_cpu")])
def test_every_small_experiment_takes_three_steps(name: str) -> None:
    torch.manual_seed(0)
    config = composed_experiment(name)
    objective: Objective = instantiate(config.objective, backbone=build_backbone(config.backbone, 0))
    load_teacher(objective, config)
    optimizer = instantiate(config.optimizer).build(objective, 32)
    images = torch.randint(0, 256, (32, 3, config.views.size, config.views.size), dtype=torch.uint8)
    take_three_steps(objective, optimizer, instantiate(config.views), images)


@pytest.mark.parametrize("name", members("optimizer"))
def test_every_optimizer_builds_and_its_first_step_moves_the_weights(name: str) -> None:
    recipe: OptimizerConfig = instantiate(composed(f"optimizer={name}").optimizer)
    layer = torch.nn.Linear(3, 2)
    optimizer = recipe.build(layer, 256)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(recipe.peak_lr(256))
    before = layer.weight.detach().clone()
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize("name", [name for name in members("backbone") if name not in ("timm", "torchvision")])
def test_every_backbone_says_how_wide_its_features_are(name: str) -> None:
    with torch.device("meta"):  # shapes alone: the largest would take gigabytes
        backbone: Backbone = instantiate(composed(f"backbone={name}", "views.size=224").backbone)
        assert backbone(torch.zeros(2, 3, 224, 224)).shape == (2, backbone.num_features)


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
        if is_number and "#" not in line + before:
            lonely.append(line)
    assert lonely == []

"""A step launches no more than its budget on a GPU, counted on fake tensors; benchmarks/results/launches.md has them.

Compiled views, which are what a GPU runs, are counted by inductor's own Triton code.
"""

import pytest
import torch
from hydra.utils import instantiate

from benchmarks.compiled_launches import kernels_of_views
from benchmarks.launches import Counts, Step, composed, count, fake_gpu
from tests.small import chosen, members
from unlabeled.views.merged_groups import merge_groups

MOMENTUM = {"adam", "adamw", "adamw_mae", "lars", "sgd"}
HUGE = {"ijepa_imagenet_vit_huge"}  # whose network has 630 million weights
RECIPES = [name for name in members("experiment") if ("_cifar10" in name or "_imagenet" in name) and "_cpu" not in name]
RECIPES = [name for name in RECIPES if name not in HUGE]
GIVEN = {name: (f"experiment={name}",) for name in (*RECIPES, "triplet_cifar10_cpu")} | {
    "relic": ("objective=relic", "backbone=resnet_thin", "views=byol_small"),  # has no recipe of its own
    "randaugment": ("experiment=supervised_cifar10", "views=randaugment_small"),
    "ijepa": ("experiment=ijepa_imagenet_vit_huge", "backbone.width=192", "backbone.depth=12"),
    "seer": ("objective=seer", "backbone=resnet_thin", "views=seer"),  # its recipe's network has 145 million weights
}
# Kernels of uncompiled views, the fall-back where a GPU's code cannot be compiled: measured, rounded up.
PLAIN_GROUP = 560
FAULTS = 20  # kernels that find a bad step, undo it, and keep the state before it: 17 measured


def host_operations(counts: dict[str, Counts]) -> int:
    return sum(sum(each.host.values()) for phase, each in counts.items() if phase != "draws")


def test_budgets_are_tested_for_every_objective() -> None:
    of_recipes = {chosen(name)["objective"] for name in GIVEN if name in members("experiment")}
    assert of_recipes | {"relic", "seer", "ijepa"} == set(members("objective"))


@pytest.mark.parametrize("name", GIVEN)
def test_a_step_of_a_recipe_waits_for_nothing_copies_its_draws_at_once_and_keeps_its_budgets(name: str) -> None:
    config = composed(*GIVEN[name])
    if "support" in config.objective:
        config.objective.support.classes_per_batch = 2
    counts = count(config, 16)
    assert {phase: each.waits for phase, each in counts.items() if each.waits} == {}
    assert host_operations(counts) <= 100
    # a rate of its own for each block is a group of its own, twice: biases and norms do not decay
    rates = 1 if config.optimizer.layer_decay is None else 2 * (config.backbone.depth + 2) + 1
    assert counts["optimizer"].total <= (12 if rates == 1 else 3 * rates)
    assert counts["backward"].total <= 12  # what methods do after it; backward itself is on meta tensors
    assert counts["faults"].total <= FAULTS
    moved = [kernel for kernel in counts["updates"].kernels if "lerp" in kernel]
    assert sum(counts["updates"].kernels[kernel] for kernel in moved) <= 12
    calls = 2 if {"support", "companions"} & {*config.objective} else 1
    assert counts["views"].copies == calls
    groups = merge_groups(instantiate(config.views)._numbered(None))
    assert counts["views"].total <= calls * PLAIN_GROUP * len(groups)


@pytest.mark.parametrize("optimizer", sorted(MOMENTUM))
def test_every_optimizer_takes_a_step_in_at_most_twelve_kernels(optimizer: str) -> None:
    config = composed(f"optimizer={optimizer}", "backbone=resnet_thin", "views=mae_small")
    step = Step(config, 8, 32)
    with fake_gpu() as launches:
        step.module.to("cuda")
        for parameter in step.module.objective.parameters():
            parameter.grad = torch.empty_like(parameter)
        step._optimizer_step(launches, torch.zeros((), device="cuda"))
    assert 1 <= launches.counts["optimizer"].total <= 12


@pytest.mark.parametrize("images", ["cifar10", "imagenet"])
def test_a_forward_with_split_batchnorm_launches_at_most_fifteen_per_cent_more(images: str) -> None:
    """1.06 and 1.02 measured; between two copies, where its kernels cannot be built, it is 1.23 and 1.20."""
    recipe, pixels = f"experiment=moco_v2_{images}", 32 if images == "cifar10" else 224
    split, whole = (
        count(composed(recipe, *more), 16, pixels)["forward"].total for more in ((), ("objective.bn_splits=1",))
    )
    assert whole < split <= 1.15 * whole


@pytest.mark.parametrize(("name", "groups"), [("mae_small", 1), ("supervised_small", 1), ("byol", 1)])
def test_views_that_inductor_compiles_for_a_gpu_keep_the_budget_of_a_recipe(name: str, groups: int) -> None:
    """60 kernels, and 12 for each further group; benchmarks/results/launches.md has all pipelines."""
    counts = kernels_of_views(composed(f"views={name}").views, 16, 40 if "small" in name else 256)
    assert len(counts) == groups
    assert 5 <= sum(counts) + 1 <= 60 + 12 * (groups - 1)


def test_waits_copies_and_operations_on_the_host_are_counted() -> None:
    with fake_gpu() as launches:
        x = torch.zeros(4, 3).to("cuda", non_blocking=True)
        torch.zeros(4, 3).pin_memory().to("cuda", non_blocking=True)
        torch.zeros(3).to("cuda")
        x.mul(2).add(1)
        float(torch.ones(3).sum())
    counts = launches.counts["views"]
    assert counts.waits == {"_to_copy from unpinned memory": 1, "_to_copy that blocks": 1}
    assert (counts.copies, counts.kernels["mul"], counts.kernels["add"]) == (3, 1, 1)
    assert counts.host["sum"] == 1

"""Learning rates, decay and batches of the recipes, as their papers and official code have them, step by step."""

import math
from typing import Any

import pytest
import torch

from tests.recipe_tasks import published, training
from tests.small import CONF
from unlabeled.errors import UserError
from unlabeled.evaluation.probe import ImageProbe

RECIPES = [
    path.stem
    for path in sorted((CONF / "probe").glob("*.yaml"))
    if path.stem.startswith(("linear_", "attentive_", "finetune_")) and path.stem != "linear_sgd"
]
STEPS = 10  # an epoch


def half_cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_and_keeps_the_contract_of_image_probes_under_its_own_key(name: str) -> None:
    probe = published(name)
    assert probe.key == f"probe.{name}"
    assert probe.needs == probe.training.batch_size
    assert isinstance(probe, ImageProbe)


# peak for the published batch, then the rate at (epoch, step in it)
@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("linear_moco", {(0, 0): 30, (59, 9): 30, (60, 0): 3, (79, 9): 3, (80, 0): 0.3, (99, 9): 0.3}),
        ("linear_moco_v3", {(0, 9): 0.4, (45, 0): 0.2, (45, 9): 0.2, (89, 0): 0.4 * half_cosine(89 / 90)}),
        ("linear_swav", {(0, 9): 0.3, (50, 5): 0.15, (99, 0): 0.3 * half_cosine(0.99)}),
        ("linear_simclr", {(0, 0): 1.6, (45, 0): 0.8, (0, 9): 1.6 * half_cosine(9 / 900)}),
        ("linear_mae", {(0, 0): 0, (0, 5): 0.32, (10, 0): 6.4, (50, 0): 3.2, (50, 5): 6.4 * half_cosine(40.5 / 80)}),
        ("linear_dino", {(0, 9): 0.004, (50, 9): 0.002}),
        ("linear_relicv2", {(0, 0): 1.2, (50, 0): 0.6, (0, 1): 1.2 * half_cosine(1 / 1000)}),
        ("linear_byol", {(0, 0): 0.8, (40, 0): 0.4, (0, 1): 0.8 * half_cosine(1 / 800)}),
        ("linear_simsiam", {(0, 9): 1.6, (45, 9): 0.8, (89, 0): 1.6 * half_cosine(89 / 90)}),
        ("linear_barlow_twins", {(0, 9): 0.3, (50, 5): 0.15, (99, 0): 0.3 * half_cosine(0.99)}),
        ("linear_vicreg", {(0, 9): 0.02, (50, 5): 0.01}),
        ("linear_vissl", {(0, 0): 0.01, (7, 9): 0.01, (8, 0): 0.001, (16, 0): 1e-4, (24, 0): 1e-5}),
        ("attentive_vjepa", {(0, 0): 1e-3, (10, 0): 5e-4, (0, 1): 1e-3 * half_cosine(1 / 200)}),
        ("attentive_ep", {(5, 0): 0.8, (10, 0): 1.6, (50, 0): 0.8}),
        ("finetune_mae", {(2, 5): 1e-3, (5, 0): 2e-3, (52, 5): (2e-3 + 1e-6) / 2}),
        ("finetune_swav_1percent", {(11, 9): 0.02, (12, 0): 0.004, (16, 0): 0.0008}),
        ("finetune_swav_10percent", {(0, 0): 0.01, (19, 9): 0.0004}),
        ("finetune_paws", {(0, 0): 0.02, (25, 0): 0.01}),
        ("finetune_vissl", {(29, 9): 0.05, (30, 0): 0.005, (69, 9): 0.005}),
        ("finetune_simclr", {(0, 0): 0.16, (30, 0): 0.08}),
    ],
)
def test_the_learning_rates_of_a_recipe_are_the_published_ones(name: str, rates: dict[tuple[int, int], float]) -> None:
    probe = published(name)
    base = probe.learning_rate if name.startswith("finetune") else probe.learning_rates[0]
    for (epoch, step), rate in rates.items():
        assert probe.training.rate(base, epoch * STEPS + step, STEPS) == pytest.approx(rate, rel=1e-9, abs=1e-12)


def test_the_grid_of_aim_is_that_of_table_a2_and_ends_at_its_smallest_rate() -> None:
    probe = published("attentive_aim")
    peaks = [probe.training.rate(rate, 5 * STEPS, STEPS) for rate in probe.learning_rates]
    assert peaks == pytest.approx([5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3])
    assert probe.training.rate(1e-4, 100 * STEPS, STEPS) == pytest.approx(1e-5)


def test_the_rate_follows_the_batch_size_and_the_last_one_does_not() -> None:
    small, large = (training(batch_size=size, final_learning_rate=1e-3) for size in (16, 32))
    assert large.rate(1.0, 0, STEPS) == 2 * small.rate(1.0, 0, STEPS) == 0.125
    assert large.rate(1.0, 3 * STEPS, STEPS) == small.rate(1.0, 3 * STEPS, STEPS) == 1e-3


def test_weight_decay_falls_by_half_a_cosine_where_a_last_value_is_given() -> None:
    falling = published("attentive_vjepa").training
    assert falling.decay(0, STEPS) == pytest.approx(1e-3)
    assert falling.decay(10 * STEPS, STEPS) == pytest.approx((1e-3 + 1e-6) / 2)
    optimizer = torch.optim.AdamW(
        [
            {"params": [torch.ones(1, requires_grad=True)], "weight_decay": 1e-3, "lr_scale": 0.5},
            {"params": [torch.ones(1, requires_grad=True)], "weight_decay": 0.0},
        ]
    )
    falling.prepare(optimizer, 2.5e-4, 10 * STEPS, STEPS)
    assert [group["weight_decay"] for group in optimizer.param_groups] == pytest.approx([(1e-3 + 1e-6) / 2, 0.0])
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2.5e-4, 5e-4])


def test_batches_of_an_epoch_keep_or_drop_the_rest_and_never_train_on_a_single_image() -> None:
    assert training().batch_sizes(40) == [16, 16, 8]
    assert training(drop_last=True).batch_sizes(40) == [16, 16]
    assert training().batch_sizes(33) == [16, 16]


def test_the_order_is_a_permutation_that_depends_on_seed_and_epoch_alone() -> None:
    orders = [training(seed=seed).order(50, epoch) for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert orders[0].sort().values.tolist() == list(range(50))
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[3])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rate_changes": "day"}, r"k\.rate_changes=day is neither step nor epoch"),
        ({"epochs": 0}, r"k\.epochs=0: must be at least 1"),
        ({"images_per_pass": 5}, r"k\.images_per_pass=5 does not divide batch_size=16"),
        ({"warmup_epochs": 3}, r"k\.warmup_epochs=3: must be less than epochs=3"),
    ],
)
def test_numbers_that_cannot_work_are_refused_in_one_line(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        training(**changed).check("k")


def test_the_gradient_is_shortened_to_the_given_norm() -> None:
    weight = torch.zeros(2, requires_grad=True)
    weight.grad = torch.tensor([3.0, 4.0])
    training(clip_norm=1.0).clip([weight])
    assert weight.grad.tolist() == pytest.approx([0.6, 0.8], rel=1e-5)

"""Fine-tuning equals literal loops, starts from the same weights each time, and says which labels it saw."""

import copy
import hashlib
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.recipe_tasks import Made, augmentation, colours, made, published, recipe, resnet, stripes, training, vit
from unlabeled.errors import UserError
from unlabeled.evaluation.features import state_hash
from unlabeled.evaluation.recipes.augmentation import Mixing
from unlabeled.evaluation.recipes.finetune import Classifier, FineTune, add_drop_path
from unlabeled.evaluation.recipes.layer_decay import layer_decay_groups
from unlabeled.evaluation.recipes.loop import training_steps
from unlabeled.views.key import ViewKey


def finetune(**changed: Any) -> FineTune:
    given: dict[str, Any] = {
        "name": "finetune/small",
        "training": training(milestones=[1, 2], gamma=0.2, rate_changes="epoch"),
        "augmentation": augmentation(),
        "mixing": None,
        "learning_rate": 0.2,
        "head_learning_rate": 4.0,
        "layer_decay": None,
        "drop_path": 0.0,
        "pooling": "network",
        "head_init_std": 0.0,
        "labels_file": None,
        "fraction": 1.0,
        "per_class": None,
        "labels_seed": 0,
        "baselines": False,
        "differs": [],
    }
    return FineTune(**(given | changed))


def mae(**changed: Any) -> FineTune:
    given: dict[str, Any] = {
        "training": training(optimizer=torch.optim.AdamW, weight_decay=0.05, decay_bias_and_norm=False),
        "learning_rate": 0.02,
        "head_learning_rate": None,
        "layer_decay": 0.65,
        "pooling": "fc_norm",
        "head_init_std": 2e-5,
    }
    return finetune(**(given | changed))


def same(first: Tensor | None, second: Tensor | None) -> bool:
    assert first is not None
    assert second is not None
    return torch.equal(first, second)


def test_layer_decay_of_a_vit_of_four_blocks_written_out() -> None:
    network, head = vit(4), nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 3))
    network.requires_grad_(True)
    groups = layer_decay_groups(network, head, 0.5, 0.05)
    found = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    expected = {
        "cls_token": (1 / 32, 0.0),
        "pos_embed": (1 / 32, 0.0),
        "patch_embed.proj.weight": (1 / 32, 0.05),
        "patch_embed.proj.bias": (1 / 32, 0.0),
        "blocks.0.attn.qkv.weight": (1 / 16, 0.05),
        "blocks.0.norm1.weight": (1 / 16, 0.0),
        "blocks.1.mlp.fc1.weight": (1 / 8, 0.05),
        "blocks.2.mlp.fc2.bias": (1 / 4, 0.0),
        "blocks.3.attn.proj.weight": (1 / 2, 0.05),
        "norm.weight": (1, 0.0),
    }
    parameters = dict(network.named_parameters())
    assert {name: found[id(parameters[name])] for name in expected} == expected
    assert [found[id(parameter)] for parameter in head.parameters()] == [(1, 0.0), (1, 0.0), (1, 0.05), (1, 0.0)]
    assert len(found) == len(parameters) + 4
    assert sum(len(group["params"]) for group in groups) == len(found)


def test_fine_tuning_equals_a_loop_of_torchs_sgd_with_two_rates_and_batchnorm_in_training() -> None:
    # rates at which BatchNorm over 8 images does not blow up the rounding of sums in another order
    world, probe = made(train=40), finetune(learning_rate=0.02, head_learning_rate=0.4)
    network, layer = copy.deepcopy(world.task.network).train(), nn.Linear(128, 3)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    groups = [{"params": network.parameters(), "lr": 0.00125}, {"params": layer.parameters(), "lr": 0.025}]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2], gamma=0.2)
    (images, labels), views = world.splits["train"], probe.augmentation.views(world.task.views)
    for epoch in range(3):
        for number, rows in enumerate(torch.split(probe.training.order(40, epoch), 16)):
            made_of = views(images[rows], rows, ViewKey(0, 3 * epoch + number, 0, len(rows)))[0]
            loss = F.cross_entropy(layer(network(made_of)), labels[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        schedule.step()
    [score] = probe.train_predict(world.task)
    with torch.no_grad():
        expected = layer(network.eval()(world.task.views.evaluation_view(world.splits["test"][0]))).log_softmax(1)
    assert score.log_probabilities is not None
    torch.testing.assert_close(score.log_probabilities, expected, rtol=1e-3, atol=1e-3)
    assert score.protocol == "finetune/small/labels=100%/epochs=3/batch=16/lr=0.02+0.4/aug=scale0.5-1"


def test_a_probe_that_runs_twice_starts_from_the_same_weights_and_leaves_the_network_alone() -> None:
    world = made(train=40)
    before, random_state = state_hash(world.task.network), torch.get_rng_state()
    first, second = (finetune().train_predict(world.task)[0] for _ in range(2))
    assert same(first.log_probabilities, second.log_probabilities)
    assert state_hash(world.task.network) == before
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [rows for split, rows in world.asked if split == "test"] == [list(range(30))] * 2


def test_maes_recipe_is_deterministic_with_everything_random_switched_on() -> None:
    everything = mae(
        augmentation=augmentation(policy="rand-m9-mstd0.5-inc1", erasing=0.25),
        mixing=Mixing(0.8, 1.0, 0.1),
        drop_path=0.2,
    )
    scores = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        scores += everything.train_predict(made(vit(2), train=32).task)
    assert same(scores[0].log_probabilities, scores[1].log_probabilities)
    assert scores[0].top1 == scores[1].top1


def test_the_fc_norm_classifier_normalises_the_mean_of_the_patches_instead_of_each_token() -> None:
    network = vit(2)
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    tokens = network.blocks(network._embed(images))[:, 1:].double()
    model = Classifier(copy.deepcopy(network), 4, "fc_norm", 1.0)
    mean = tokens.mean(1)
    x = (mean - mean.mean(1, keepdim=True)) / (mean.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
    linear = model.top[1]
    assert isinstance(linear, nn.Linear)
    torch.testing.assert_close(model(images).double(), x @ linear.weight.double().T, rtol=1e-4, atol=1e-4)
    assert "network.norm.weight" not in dict(model.named_parameters())


def test_positions_and_a_fixed_patch_projection_are_trained_too() -> None:
    network = vit(2)
    network.freeze_patch_projection()
    world, probe = made(network, train=32), mae()
    model = probe.model(world.task)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    probe.fit(world.task, torch.arange(32), model)
    assert [name for name, value in model.named_parameters() if torch.equal(value, before[name])] == []
    assert not network.pos_embed.requires_grad  # the run's own stays as it is


def test_drop_path_leaves_out_branches_more_from_block_to_block_and_keeps_the_mean() -> None:
    network = vit(3)
    add_drop_path(network, 0.5)
    attentions, x = (
        [block.get_submodule("attn") for block in network.blocks],
        torch.randn(4000, 2, 24, generator=torch.Generator().manual_seed(0)),
    )
    with torch.no_grad():
        plain = attentions[2](x)
        torch.manual_seed(0)
        first, middle, dropped = (each.train()(x) for each in attentions)
        assert torch.equal(attentions[0].eval()(x), first)
    out = dropped.flatten(1).abs().amax(1) == 0
    assert float(out.float().mean()) == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(dropped[~out], 2 * plain[~out])
    assert float((middle.flatten(1).abs().amax(1) == 0).float().mean()) == pytest.approx(0.25, abs=0.03)


def test_passes_have_seeds_and_shares_of_their_own() -> None:
    own = training(images_per_pass=4, epochs=1)
    found = [
        each
        for _, passes in training_steps(made(train=18).task, torch.arange(18), own, augmentation())
        for each in passes
    ]
    assert [each.share for each in found] == [0.25] * 4 + [1.0]
    assert len({each.seed for each in found}) == 5


def test_accumulated_passes_are_one_step_of_a_network_without_batchnorm() -> None:
    sizes = (16, 4)
    own = [training(batch_size=16, images_per_pass=size, epochs=2) for size in sizes]
    scores = [mae(training=each, learning_rate=1.0).train_predict(made(vit(2), train=40).task)[0] for each in own]
    assert scores[0].log_probabilities is not None
    torch.testing.assert_close(scores[0].log_probabilities, scores[1].log_probabilities, rtol=1e-4, atol=1e-5)


def test_only_the_listed_images_are_seen_and_their_list_is_recorded(tmp_path: Path) -> None:
    world = made()
    [score] = finetune(fraction=None, per_class=6).train_predict(world.task)
    seen = {row for split, rows in world.asked if split == "train" for row in rows}
    assert len(seen) == 18 == score.n_train
    assert world.task.train_labels[sorted(seen)].bincount().tolist() == [6, 6, 6]
    names = "".join(f"{row:05d}.png\n" for row in sorted(seen))
    assert score.chosen["sha256"] == hashlib.sha256(names.encode()).hexdigest()
    assert (score.chosen["images"], score.chosen["classes"]) == (18, 3)
    assert "/labels=6-per-class/" in score.protocol
    (tmp_path / "list.txt").write_text(names)
    [again] = finetune(fraction=None, labels_file=str(tmp_path / "list.txt")).train_predict(world.task)
    assert again.chosen["sha256"] == score.chosen["sha256"]
    assert same(again.log_probabilities, score.log_probabilities)
    assert "/labels=list/" in again.protocol
    numbers = torch.arange(len(world.task.train_labels)) * 2 + 1  # every second image of the source has a label
    (tmp_path / "numbers.txt").write_text("".join(f"{2 * row + 1}\n" for row in sorted(seen)))
    task = replace(world.task, train_ids=numbers)
    [third] = finetune(fraction=None, labels_file=str(tmp_path / "numbers.txt")).train_predict(task)
    assert third.chosen["sha256"] == score.chosen["sha256"]


def test_a_fraction_takes_its_share_of_each_class_and_another_seed_other_images() -> None:
    world = made()
    scores = [finetune(fraction=0.4, labels_seed=seed).train_predict(world.task)[0] for seed in (0, 1)]
    assert [score.chosen["images"] for score in scores] == [24, 24]
    assert scores[0].chosen["sha256"] != scores[1].chosen["sha256"]
    assert "/labels=40%/" in scores[0].protocol


def test_classes_without_a_listed_image_are_never_predicted_and_said() -> None:
    images, labels = colours(60, 0)
    world = Made(resnet(), (images[labels > 0], labels[labels > 0]), colours(30, 1))
    [score] = finetune().train_predict(world.task)
    assert score.predictions is not None
    assert int(score.predictions.min()) == 1
    assert score.notes == ["1 of 3 classes have no train image and are never predicted."]


def test_fine_tuning_on_stripes_beats_the_frozen_features_of_the_same_random_network() -> None:
    longer = training(epochs=12, batch_size=32, images_per_pass=32)
    tuned, frozen = (
        probe.train_predict(made(resnet(), stripes, train=160).task)[0].top1
        for probe in (
            finetune(training=longer, learning_rate=0.4, head_learning_rate=None),
            recipe(training=longer, learning_rates=[4.0]),
        )
    )
    assert tuned >= 90
    assert tuned >= frozen + 15


def test_the_loss_of_mixed_images_is_the_cross_entropy_with_their_mixed_labels() -> None:
    world, probe = made(resnet(), train=16), finetune(mixing=Mixing(0.8, 0.0, 0.1), training=training(epochs=1))
    model = probe.model(world.task)  # its classifier is zero: whatever is seen, the loss is ln 3
    assert probe.fit(world.task, torch.arange(16), model) == pytest.approx(math.log(3), rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_half_precision_learns_the_same_task(precision: str) -> None:
    own = training(epochs=4, optimizer=partial(torch.optim.SGD, momentum=0.9))
    [score] = finetune(training=own).train_predict(made(train=48, precision=precision).task)
    assert score.top1 > 60
    assert score.log_probabilities is not None
    assert score.log_probabilities.dtype == torch.float32


@pytest.mark.parametrize("name", ["finetune_mae", "finetune_swav_1percent", "finetune_swav_10percent", "finetune_paws"])
def test_published_recipes_run_whole_on_small_networks(name: str) -> None:
    probe = published(name)
    for key, value in {"epochs": 2, "batch_size": 16, "images_per_pass": 16, "warmup_epochs": 1}.items():
        object.__setattr__(probe.training, key, value)
    world = made(vit(2) if name == "finetune_mae" else resnet(), train=360)
    if name == "finetune_swav_1percent":
        object.__setattr__(probe.choice, "fraction", 0.1)
    [score] = probe.train_predict(world.task)
    assert score.chosen["images"] == (360 if name == "finetune_mae" else 36)
    assert score.notes == probe.differs
    assert math.isfinite(score.metrics["train_loss"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pooling": "max"}, r"probe\.finetune_small\.pooling=max is neither network nor fc_norm"),
        ({"drop_path": 1.0}, r"probe\.finetune_small\.drop_path=1\.0: must be at least 0"),
        ({"layer_decay": 0.5}, r"layer_decay gives the classifier its rate"),
        ({"per_class": 3}, r"probe\.finetune_small: give one of labels_file, fraction and per_class"),
    ],
)
def test_recipes_that_cannot_work_are_refused_when_they_are_built(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        finetune(**changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fraction": 0.1}, r"training\.batch_size=16 but there are 6 images to train on: give less"),
        (
            {"layer_decay": 0.5, "head_learning_rate": None},
            r"finetune_small: layer_decay, .* are for a ViT, ResNet has no blocks: give",
        ),
        ({"pooling": "fc_norm"}, "ResNet has no blocks"),
        ({"drop_path": 0.1}, "ResNet has no blocks"),
        ({"learning_rate": 1e38}, "the training diverged"),
    ],
)
def test_what_does_not_suit_the_network_or_the_data_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        finetune(**changed).train_predict(made().task)


@pytest.mark.parametrize("kind", ["frozen", "whole"])
def test_no_prediction_and_no_chosen_rate_depends_on_the_test_labels(kind: str) -> None:
    """The best epoch picked on the test set: lightly linear_eval.py, efficient probing."""
    probe = recipe(learning_rates=[0.5, 8.0]) if kind == "frozen" else finetune()
    images, labels = colours(30, 1)
    own, other = (Made(resnet(), colours(60, 0), (images, each)) for each in (labels, (labels + 1) % 3))
    [score], [again] = probe.train_predict(own.task), probe.train_predict(other.task)
    assert score.log_probabilities is not None
    assert again.log_probabilities is not None
    assert torch.equal(score.log_probabilities, again.log_probabilities)
    assert score.chosen == again.chosen
    assert score.top1 != again.top1

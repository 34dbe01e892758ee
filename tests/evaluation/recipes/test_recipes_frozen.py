"""Probes of a frozen network on augmented images equal literal loops, and nothing of the network moves."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.recipe_tasks import Made, augmentation, colours, made, published, recipe, resnet, training, views, vit
from unlabeled.core.seeding import derive_seed
from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate_probes import _run_on_images
from unlabeled.evaluation.features import state_hash
from unlabeled.evaluation.probes.linear import split_holdout
from unlabeled.evaluation.recipes.attentive import AttentionPoolingHead
from unlabeled.evaluation.recipes.frozen import HEAD, FrozenRecipe
from unlabeled.evaluation.recipes.linear import LinearHead
from unlabeled.objective import Batch
from unlabeled.optimizers import LARS
from unlabeled.views.key import ViewKey


def initial_weight(probe: FrozenRecipe, width: int, classes: int) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(probe.training.seed, HEAD))
        head = probe.head(width, classes)
    assert isinstance(head, LinearHead)
    return head.linear.weight.detach().clone()


def batches_by_hand(world: Made, probe: FrozenRecipe) -> list[tuple[Tensor, Tensor]]:
    """Features and labels of every step, the views made for whole batches."""
    (images, labels), own = world.splits["train"], probe.augmentation.views(world.task.views)
    sizes, found = probe.training.batch_sizes(len(labels)), []
    for epoch in range(probe.training.epochs):
        rows = torch.split(probe.training.order(len(labels), epoch)[: sum(sizes)], sizes)
        for number, chosen in enumerate(rows):
            key = ViewKey(probe.training.seed, epoch * len(sizes) + number, 0, len(chosen))
            with torch.no_grad():
                found.append((world.task.network(own(images[chosen], chosen, key)[0]), labels[chosen]))
    return found


def plain_features(world: Made) -> Tensor:
    with torch.no_grad():
        found: Tensor = world.task.network(world.task.views.evaluation_view(world.splits["test"][0]))
    return found


def test_a_recipe_equals_a_loop_of_torchs_sgd_over_the_same_views() -> None:
    world, probe = made(), recipe(training=training(weight_decay=1e-3))
    layer = nn.Linear(128, 3)
    with torch.no_grad():
        layer.weight.copy_(initial_weight(probe, 128, 3))
        layer.bias.zero_()
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-3)
    batches = batches_by_hand(world, probe)
    assert [len(labels) for _, labels in batches] == [16, 16, 16, 12] * 3
    losses = []
    for step, (x, labels) in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 8.0 * 16 / 256 * 0.5 * (1 + np.cos(np.pi * step / 12))
        loss = F.cross_entropy(layer(x), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    [score] = probe.train_predict(world.task)
    expected = layer(plain_features(world)).detach().log_softmax(1)
    assert score.log_probabilities is not None
    torch.testing.assert_close(score.log_probabilities, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(score.predictions, expected.argmax(1))  # type: ignore[arg-type]
    assert score.top1 == pytest.approx(100 * float((expected.argmax(1) == world.splits["test"][1]).float().mean()))
    assert score.metrics["train_loss"] == pytest.approx(np.mean(losses[-4:]), rel=1e-4)


def test_batchnorm_and_lars_before_and_under_the_head_equal_maes_formulas_in_float64() -> None:
    world = made()
    probe = recipe(
        head=partial(LinearHead, init_std=0.01, batch_norm="parameter_free"),
        training=training(optimizer=partial(LARS, momentum=0.9, trust_coefficient=0.001), warmup_epochs=1),
        learning_rates=[200.0],
    )
    weight, bias = initial_weight(probe, 128, 3).double(), torch.zeros(3, dtype=torch.float64)
    speed, bias_speed = torch.zeros_like(weight), torch.zeros_like(bias)
    mean, variance = torch.zeros(128, dtype=torch.float64), torch.ones(128, dtype=torch.float64)
    for step, (x, labels) in enumerate(batches_by_hand(world, probe)):
        x = x.double()
        rate = 12.5 * (step / 4 if step < 4 else 0.5 * (1 + np.cos(np.pi * (step / 4 - 1) / 2)))
        mean = 0.9 * mean + 0.1 * x.mean(0)
        variance = 0.9 * variance + 0.1 * x.var(0, correction=1)
        x = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-6).sqrt()
        error = ((x @ weight.T + bias).softmax(1) - F.one_hot(labels, 3)) / len(x)
        gradient = error.T @ x
        speed = 0.9 * speed + 0.001 * weight.norm() / gradient.norm() * gradient
        bias_speed = 0.9 * bias_speed + error.sum(0)
        weight, bias = weight - rate * speed, bias - rate * bias_speed
    [score] = probe.train_predict(world.task)
    x = (plain_features(world).double() - mean) / (variance + 1e-6).sqrt()
    expected = (x @ weight.T + bias).log_softmax(1)
    assert score.log_probabilities is not None
    torch.testing.assert_close(score.log_probabilities.double(), expected, rtol=1e-3, atol=1e-4)


def test_images_per_pass_changes_memory_and_no_number() -> None:
    scores = [recipe(training=training(images_per_pass=size)).train_predict(made().task)[0] for size in (16, 4)]
    assert scores[0].log_probabilities is not None
    torch.testing.assert_close(scores[0].log_probabilities, scores[1].log_probabilities, rtol=1e-4, atol=1e-5)


def test_the_network_stays_bit_for_bit_and_in_eval_mode_and_the_test_images_are_seen_once() -> None:
    world = made()
    before = state_hash(world.task.network)
    world.task.network.train()
    recipe().train_predict(world.task)
    assert world.task.network.training  # as it was found
    assert state_hash(world.task.network) == before  # running statistics of BatchNorm among it
    assert [asked for split, asked in world.asked if split == "test"] == [list(range(30))]
    assert all(parameter.grad is None for parameter in world.task.network.parameters())


def test_a_network_that_changes_while_it_is_probed_is_refused() -> None:
    network = resnet()

    def meddles(module: nn.Module, given: Any, output: Tensor) -> None:
        network.bn1.running_mean.add_(1e-6)  # type: ignore[union-attr]

    network.bn1.register_forward_hook(meddles)
    with pytest.raises(RuntimeError, match="the evaluation changed the backbone"):
        recipe().train_predict(made(network).task)


def test_the_same_seed_gives_the_same_bits_and_the_random_states_stay_as_they_were() -> None:
    noisy = augmentation(policy="rand-m9-mstd0.5-inc1", erasing=0.5)
    found: list[Tensor | None] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        before, numpy_before = torch.get_rng_state(), np.random.rand()
        np.random.seed(seed)
        [score] = recipe(augmentation=noisy).train_predict(made(train=40).task)
        found.append(score.log_probabilities)
        assert torch.equal(torch.get_rng_state(), before)
        assert np.random.rand() == numpy_before
    [other] = recipe(augmentation=noisy, training=training(seed=1)).train_predict(made(train=40).task)
    assert torch.equal(found[0], found[1])  # type: ignore[arg-type]
    assert not torch.equal(found[0], other.log_probabilities)  # type: ignore[arg-type]


def test_several_heads_in_one_pass_are_bit_for_bit_those_of_separate_runs() -> None:
    world, probe, rates = made(), recipe(), [0.5, 8.0, 40.0]
    everything = torch.arange(60)
    together, losses = probe.fit(world.task, everything, rates)
    for head, loss, rate in zip(together, losses, rates, strict=True):
        [alone], [own_loss] = probe.fit(world.task, everything, [rate])
        assert state_hash(alone) == state_hash(head)
        assert own_loss == loss


def test_the_learning_rate_is_chosen_on_a_part_of_train_and_trained_anew_on_all_of_it() -> None:
    world, probe = made(), recipe(learning_rates=[1e-6, 8.0, 1e36], training=training(weight_decay=1e-6))
    [score] = probe.train_predict(world.task)
    fit, held = split_holdout(world.task.train_labels, 0.2, 0)
    before = world.asked[: world.asked.index(("train", held.tolist()))]
    assert {row for _, rows in before for row in rows} == set(fit.tolist())
    heads, _ = probe.fit(world.task, fit, [1e-6, 8.0])
    with torch.no_grad():
        x = world.task.network(world.task.views.evaluation_view(world.splits["train"][0][held]))
        top1 = [float((head.eval()(x).argmax(1) == world.task.train_labels[held]).float().mean()) for head in heads]
    tried = score.chosen["holdout_top1"]
    assert [tried["1e-06"], tried["8"], tried["1e+36"]] == pytest.approx([100 * top1[0], 100 * top1[1], 0.0])
    assert (score.chosen["learning_rate"], score.chosen["holdout_images"]) == (8.0, len(held))
    assert (score.chosen["optimizer"], score.chosen["epochs"]) == ("SGD", 3)
    assert score.protocol == "linear/small-online/epochs=3/batch=16/lr=best-of-3/aug=scale0.5-1"
    [alone] = recipe(training=training(weight_decay=1e-6)).train_predict(made().task)
    assert torch.equal(score.log_probabilities, alone.log_probabilities)  # type: ignore[arg-type]
    assert [asked for name, asked in world.asked if name == "test"] == [list(range(30))]


def test_a_rate_at_the_edge_of_the_grid_is_said() -> None:
    [score] = recipe(learning_rates=[1e-6, 8.0]).train_predict(made().task)
    edge = "The best learning rate, 8, is at an edge of 1e-06 to 8: widen probe.linear_small.learning_rates."
    assert score.notes == [edge]


def test_classes_without_a_train_image_are_never_predicted_and_said() -> None:
    images, labels = colours(60, 0)
    world = Made(resnet(), (images[labels < 2], labels[labels < 2]), colours(30, 1), num_classes=4)
    [score] = recipe(differs=["Ours is smaller."]).train_predict(world.task)
    assert score.predictions is not None
    assert score.log_probabilities is not None
    assert int(score.predictions.max()) <= 1
    assert bool(score.log_probabilities[:, 2:].isneginf().all())
    assert score.log_probabilities.exp().sum(1).tolist() == pytest.approx([1.0] * 30)
    assert score.notes == ["Ours is smaller.", "2 of 4 classes have no train image and are never predicted."]


def test_images_that_cannot_be_decoded_are_left_out_and_the_others_keep_their_labels() -> None:
    class Damaged(Made):
        def batches(self, split: str, positions: Tensor, size: int) -> list[Batch]:
            parts = [part[part % 5 != 3] for part in torch.split(positions, size)]  # as a lazy loader does
            return [batch for part in parts if len(part) for batch in super(Damaged, self).batches(split, part, size)]

    world = Damaged(resnet(), colours(60, 0), colours(30, 1))
    [score] = recipe(training=training(images_per_pass=4, epochs=6)).train_predict(world.task)
    intact = torch.arange(30)[torch.arange(30) % 5 != 3]
    assert score.predictions is not None
    assert len(score.predictions) == 24
    agree = score.predictions == world.splits["test"][1][intact]
    assert score.top1 == pytest.approx(100 * agree.float().mean().item())
    assert score.top1 > 60
    [row] = _run_on_images(
        "pretrained", world.task.network, {"small": recipe()}, lambda _: world.task, lambda line: None
    )
    assert (row.n_test, len(row.predictions)) == (24, 24)  # type: ignore[arg-type]


def test_kinds_stand_side_by_side_and_in_the_protocol() -> None:
    world, probe = made(vit()), recipe(kinds=["cls", "patches"])
    [score] = probe.train_predict(world.task)
    assert probe.protocol.endswith("/lr=8/aug=scale0.5-1/features=cls+patches")
    heads, _ = probe.fit(world.task, torch.arange(60), [8.0])
    assert isinstance(heads[0], LinearHead)
    assert heads[0].linear.in_features == 48
    assert score.protocol == probe.protocol


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_gives_nearly_the_log_probabilities_of_a_cpu_and_keeps_its_random_state() -> None:
    scores = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        torch.cuda.manual_seed(0)
        before = torch.cuda.get_rng_state()
        noisy = recipe(augmentation=augmentation(policy="original"), learning_rates=[0.5])
        scores += noisy.train_predict(made(resnet().to(device), device=device).task)
        assert torch.equal(torch.cuda.get_rng_state(), before)
    assert scores[0].log_probabilities is not None
    torch.testing.assert_close(scores[0].log_probabilities, scores[1].log_probabilities, rtol=0, atol=0.02)


def test_bfloat16_networks_have_heads_in_float32_and_nearly_the_same_predictions() -> None:
    scores = [recipe().train_predict(made(precision=precision).task)[0] for precision in ("32-true", "bf16-mixed")]
    assert scores[1].log_probabilities is not None
    assert scores[1].log_probabilities.dtype == torch.float32
    assert not torch.equal(scores[0].log_probabilities, scores[1].log_probabilities)  # type: ignore[arg-type]
    torch.testing.assert_close(scores[0].log_probabilities, scores[1].log_probabilities, rtol=0, atol=0.1)


def test_views_are_of_the_runs_size_and_normalised_as_the_run_has_it() -> None:
    own = augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0).views(views([0.25, 0.5, 0.75]))
    images, _ = colours(5, 0)
    made_of = own(images, torch.arange(5), ViewKey(0, 0, 0, 5))[0]
    mean = torch.tensor([0.25, 0.5, 0.75])[:, None, None]
    torch.testing.assert_close(made_of, (images / 255 - mean) / 0.25, rtol=1e-5, atol=1e-5)


YES: Any = "yes"
BY_LARS = ("linear_mae", "linear_simsiam")
SMALL = {"epochs": 20, "batch_size": 16, "images_per_pass": 16, "warmup_epochs": 0, "milestones": None}


@pytest.mark.parametrize(
    "name",
    [
        "linear_moco",
        "linear_moco_v3",
        "linear_swav",
        "linear_simclr",
        "linear_mae",
        "linear_dino",
        "linear_relicv2",
        "linear_byol",
        "linear_simsiam",
        "linear_barlow_twins",
        "linear_vicreg",
        "linear_vissl",
    ],
)
def test_the_published_linear_recipes_learn_colours_in_twenty_epochs_of_a_small_vit(name: str) -> None:
    probe = published(name)
    for key, value in SMALL.items():
        object.__setattr__(probe.training, key, value)
    probe.learning_rates = [max(50.0, probe.learning_rates[0])] if name not in BY_LARS else [100.0]
    [score] = probe.train_predict(made(vit(), train=120).task)
    assert score.top1 > 60  # a third is chance
    assert score.predictions is not None
    assert score.predictions.dtype == torch.int64


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rates": []}, r"probe\.linear_small\.learning_rates=\[\]: give one or more"),
        ({"kinds": []}, r"probe\.linear_small\.kinds=\[\]: give one or more kinds"),
        ({"holdout": 0.7}, r"probe\.linear_small\.holdout=0\.7: must be above 0"),
        ({"kinds": ["tokens", "cls"]}, r"probe\.linear_small\.kinds=\['tokens', 'cls'\]: tokens go with no other"),
        ({"training": training(epochs=0)}, r"probe\.linear_small\.training\.epochs=0"),
        ({"augmentation": augmentation(crop="round")}, r"probe\.linear_small\.augmentation\.crop=round is neither"),
    ],
)
def test_recipes_that_cannot_work_are_refused_when_they_are_built(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe(**changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"kinds": ["cls"]},
            r"linear_small\.kinds=\['cls'\]: ResNet has no such features; allowed: last, last4, tokens",
        ),
        ({"training": training(batch_size=64)}, r"training\.batch_size=64 but there are 60 images .* rate follows"),
        ({"learning_rates": [1e36], "training": training(weight_decay=1e-6)}, "the training diverged"),
        ({"kinds": ["tokens"]}, r"kinds=\['tokens'\] does not suit LinearHead"),
        (
            {"head": partial(AttentionPoolingHead, head_width=8, queries=1)},
            r"kinds=\['last'\] does not suit AttentionPoolingHead",
        ),
        ({"head": partial(LinearHead, init_std=0.01, batch_norm=YES)}, r"head\.batch_norm=yes is not one of none,"),
        ({"augmentation": augmentation(policy="rand-q9")}, "policy=rand-q9: timm knows no such policy"),
    ],
)
def test_what_does_not_suit_the_network_or_the_data_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe(**changed).train_predict(made().task)

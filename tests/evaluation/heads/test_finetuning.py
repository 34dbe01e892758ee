"""Fine-tuning on one's own labels is the recipes' loop, and gives a network with a head that say the same as it."""

import pytest
import torch

from tests.evaluation.recipes.test_recipes_finetune import finetune
from tests.recipe_tasks import made, resnet, training
from unlabeled.errors import UserError
from unlabeled.evaluation.features import state_hash
from unlabeled.evaluation.heads.calibration import calibrate
from unlabeled.evaluation.heads.finetuning import Calibrating, fine_tune, made_head
from unlabeled.evaluation.probes.linear import classify, split_holdout
from unlabeled.evaluation.recipes.finetune import Classifier
from unlabeled.evaluation.uncertainty.calibration import fit_temperature

NOTHING_HELD = Calibrating(None, False)


def quiet(line: str) -> None:
    pass


def test_it_is_the_loop_of_the_recipe_and_head_and_network_give_the_logits_of_its_classifier() -> None:
    recipe, world = finetune(), made()
    before = state_hash(world.task.network)
    tuned = fine_tune(recipe, world.task, NOTHING_HELD, 0, quiet)
    model = recipe.model(world.task)
    loss = recipe.fit(world.task, torch.arange(60), model)
    assert (tuned.loss, tuned.images, tuned.steps) == (loss, 60, 3 * 4)
    assert state_hash(tuned.network) == state_hash(model.network)
    assert state_hash(world.task.network) == before
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = model.eval()(images).log_softmax(1)
        features = tuned.network(images)
    ones = torch.cat([features, torch.ones(5, 1)], dim=1)
    predictions, log_p = classify(tuned.head.tensors["weight"], ones, tuned.head.tensors["columns"], 3)
    torch.testing.assert_close(log_p, wanted)
    assert torch.equal(predictions, wanted.argmax(1))


def test_the_second_network_has_seen_all_labels_and_the_first_is_tried_on_those_it_has_not_seen() -> None:
    world = made()
    whole = fine_tune(finetune(), world.task, NOTHING_HELD, 0, quiet)
    lines: list[str] = []
    both = fine_tune(finetune(), world.task, Calibrating(0.2, True), 0, lines.append)
    assert lines[0] == "12 of 60 labels are held out to calibrate"
    assert [line.split(":")[0] for line in lines[1:]] == ["fine-tuning on 48 labels", "fine-tuning on 60 labels"]
    first = fine_tune(finetune(), world.task, Calibrating(0.2, False), 0, quiet)
    assert state_hash(both.network) == state_hash(whole.network) != state_hash(first.network)
    assert (whole.images, both.images, first.images) == (60, 60, 48)
    assert whole.head.held is None
    assert both.head.held is not None
    assert first.head.held is not None
    _, held = split_holdout(world.task.train_labels, 0.2, 0)
    assert torch.equal(first.head.held[1], world.task.train_labels[held])
    assert torch.equal(first.head.held[0], both.head.held[0])
    images = world.splits["train"][0][held]
    with torch.no_grad():
        features = first.network(world.task.views.evaluation_view(images))
    ones = torch.cat([features, torch.ones(len(held), 1)], dim=1)
    _, log_p = classify(first.head.tensors["weight"], ones, first.head.tensors["columns"], 3)
    torch.testing.assert_close(log_p, first.head.held[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("per_class", "least", "steps"), [(2, 0, 3), (2, 10, 10), (10, 0, 6), (10, 7, 8)])
def test_few_labels_make_small_batches_and_as_many_epochs_as_give_the_least_steps(
    per_class: int, least: int, steps: int
) -> None:
    lines: list[str] = []
    recipe = finetune(fraction=None, per_class=per_class, training=training(batch_size=16))
    tuned = fine_tune(recipe, made().task, NOTHING_HELD, least, lines.append)
    assert (tuned.images, tuned.steps) == (3 * per_class, steps)
    assert recipe.training.batch_size == 16
    assert lines[0].startswith(f"fine-tuning on {3 * per_class} labels: ")


def test_labels_of_one_class_and_a_head_that_is_not_of_the_features_are_refused() -> None:
    world = made()
    world.task.train_labels.zero_()
    with pytest.raises(UserError, match="the labelled images are all of one class"):
        fine_tune(finetune(), world.task, NOTHING_HELD, 0, quiet)


def test_without_an_error_among_the_held_out_images_the_temperature_stays_1() -> None:
    labels = torch.tensor([0, 1, 1])
    log_p = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8]]).log()
    model = Classifier(resnet(), 2, "network", 0.1)
    for held, expected in (((log_p, labels), 1.0), ((log_p, 1 - labels), fit_temperature(log_p, 1 - labels))):
        head = made_head(model, torch.tensor([0, 1]), held, {})
        assert calibrate(head).temperature == expected

"""Trains a whole network on one's own labels, and makes of it a network and a head that can be kept."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from unlabeled.errors import UserError
from unlabeled.evaluation.probe import Head, Task
from unlabeled.evaluation.probes.linear import split_holdout
from unlabeled.evaluation.recipes.finetune import Classifier, FineTune
from unlabeled.evaluation.recipes.labels import select_labelled
from unlabeled.evaluation.recipes.training import Training
from unlabeled.objective import Backbone
from unlabeled.views.per_image import preserve_random_state

Log = Callable[[str], None]


@dataclass(frozen=True)
class Calibrating:
    """How the labels serve to calibrate a fine-tuned network.

    Args:
        holdout: share of each class that a first network is not trained on; None: nothing is calibrated.
        refit: whether a second network is trained on all labels, and kept; the first is kept otherwise.
    """

    holdout: float | None
    refit: bool


@dataclass(frozen=True)
class FineTuned:
    """A network that was trained with labels."""

    network: Backbone  # in eval mode, on the device
    head: Head  # linear, of its features
    images: int  # labelled images that it was trained on
    steps: int
    loss: float  # mean of the last epoch
    held_top1: float | None  # per cent of the held-out images, by the network that was not trained on them


def fine_tune(recipe: FineTune, task: Task, calibrating: Calibrating, least_steps: int, log: Log) -> FineTuned:
    """Trains as the recipe says, on all labels that it selects.

    Args:
        recipe: its batch is made smaller and its epochs more where there are few labels.
        task: ``task.network`` stays as it is.
        calibrating: what is held out.
        least_steps: epochs are added until there are so many.
        log: takes lines.

    Raises:
        UserError: the network does not suit the recipe, one class alone is labelled, or the training diverged.
    """
    recipe.check_network(task.network)
    if recipe.pooling != "network":
        raise UserError(f"recipe.pooling={recipe.pooling}: what is kept are the network's own features: give network")
    listed = select_labelled(recipe.choice, task)
    classes = torch.unique(listed.labels)
    if len(classes) < 2:
        raise UserError(
            "the labelled images are all of one class, there is nothing to tell apart; give images of two or more"
        )
    fit, held = _divided(listed.ids, listed.labels, calibrating, recipe.training.seed)
    with preserve_random_state(task.device):
        spared, held_top1 = None, None
        if len(held):
            log(f"{len(held):,} of {len(listed.ids):,} labels are held out to calibrate")
            model, loss, steps = _fitted(recipe, task, fit, least_steps, log)
            spared, held_top1 = _tried(recipe, task, held, model, classes)
        if not len(held) or calibrating.refit:
            fit = listed.ids
            model, loss, steps = _fitted(recipe, task, fit, least_steps, log)
    head = made_head(model, classes, spared, recipe.left_out())
    return FineTuned(model.network.eval(), head, len(fit), steps, loss, held_top1)


def _divided(ids: Tensor, labels: Tensor, calibrating: Calibrating, seed: int) -> tuple[Tensor, Tensor]:
    if calibrating.holdout is None:
        return ids, ids[:0]
    fit, held = split_holdout(labels, calibrating.holdout, seed)
    return ids[fit], ids[held]


def _fitted(
    recipe: FineTune, task: Task, positions: Tensor, least_steps: int, log: Log
) -> tuple[Classifier, float, int]:
    """Trains a new copy; returns it with the loss of the last epoch and the steps."""
    training = recipe.training
    batch = min(training.batch_size, len(positions))
    training = replace(training, batch_size=batch, images_per_pass=min(training.images_per_pass, batch))
    per_epoch = max(1, len(training.batch_sizes(len(positions))))
    training = replace(training, epochs=max(training.epochs, -(-least_steps // per_epoch)))
    log(f"fine-tuning on {len(positions):,} labels: {training.epochs:,} epochs of {per_epoch:,} steps of {batch}")
    own = _with(recipe, training)
    model = own.model(task)
    loss = own.fit(task, positions, model)
    return model.eval(), loss, training.epochs * per_epoch


def _with(recipe: FineTune, training: Training) -> FineTune:
    own = copy.copy(recipe)
    own.training = training
    return own


def _tried(
    recipe: FineTune, task: Task, held: Tensor, model: Classifier, classes: Tensor
) -> tuple[tuple[Tensor, Tensor], float]:
    """Returns log probabilities [M, C] and labels of held-out images, and the per cent of them that are right."""
    logits, labels = recipe.logits(task, "train", held, model)
    if not bool(logits.isfinite().all()):
        raise UserError("recipe: the training diverged: give a smaller recipe.learning_rate")
    unseen = torch.ones(logits.shape[1], dtype=torch.bool)
    unseen[classes] = False
    log_p = logits.masked_fill(unseen, -torch.inf).log_softmax(1)
    return (log_p, labels), 100 * float((log_p.argmax(1) == labels).double().mean())


def made_head(
    model: Classifier, classes: Tensor, held: tuple[Tensor, Tensor] | None, left_out: Mapping[str, float]
) -> Head:
    """Makes the classifier a linear head of features that are not standardised; ``left_out`` of the recipe with it."""
    linear = model.top[1]
    assert isinstance(linear, nn.Linear)
    weight = torch.cat([linear.weight, linear.bias[:, None]], dim=1).detach().cpu()[classes]
    none = torch.zeros(weight.shape[1] - 1)
    tensors = {"weight": weight, "mean": none, "scale": none + 1, "columns": classes}
    return Head("linear", "last", tensors, dict(left_out), held)

"""The loop of a recipe: yields the views of each step, computes logits of test images, and scores them."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unlabeled.core.seeding import derive_seed
from unlabeled.errors import UserError
from unlabeled.evaluation.features import AUTOCAST, top1
from unlabeled.evaluation.probe import Score, Task
from unlabeled.evaluation.recipes.augmentation import Augmentation
from unlabeled.evaluation.recipes.training import Training
from unlabeled.objective import Backbone, Batch
from unlabeled.views.key import ViewKey
from unlabeled.views.per_image import seed_all
from unlabeled.views.pipeline import Views


class TrainingPass(NamedTuple):
    """Some images of a step, on the device."""

    views: Tensor  # float32 [n, 3, h, w], normalised
    labels: Tensor  # int64 [n]
    share: float  # of the images of the step
    seed: int  # for further random draws


def training_steps(
    task: Task, positions: Tensor, training: Training, augmentation: Augmentation
) -> Iterator[tuple[int, Iterator[TrainingPass]]]:
    """Yields number and passes of each step of the training; use up a step's passes before asking for the next.

    Order and views are functions of (seed, step, position in the batch): ``images_per_pass`` changes none of them. The
    global random state is seeded for each step, for networks that use it; the caller restores it.
    """
    views, sizes = augmentation.views(task.views), training.batch_sizes(len(positions))
    for epoch in range(training.epochs):
        order = positions[training.order(len(positions), epoch)][: sum(sizes)]
        batches = iter(task.batches("train", order, training.at_once))
        for number, size in enumerate(sizes):
            step = epoch * len(sizes) + number
            own = islice(batches, -(-size // training.at_once))
            seed_all(derive_seed(training.seed, step), task.device)
            yield step, _passes(own, step, size, views, task, training, augmentation)


def _passes(
    batches: Iterator[Batch],
    step: int,
    size: int,
    views: Views,
    task: Task,
    training: Training,
    augmentation: Augmentation,
) -> Iterator[TrainingPass]:
    first = 0
    for batch in batches:
        count = len(batch.ids)  # fewer than asked for where an image could not be decoded
        made = augmentation.apply(views, batch, ViewKey(training.seed, step, first, size), task.device)
        yield TrainingPass(made, batch.labels.to(task.device), count / size, derive_seed(training.seed, step, first))
        first += count


@torch.no_grad()
def encode(network: Backbone, views: Tensor, kinds: Sequence[str], precision: str) -> Tensor:
    """Returns a frozen network's features of views [B, 3, h, w] in eval mode: float32 [B, D], kinds side by side.

    For the kind ``tokens`` it returns [B, n, D].
    """
    with autocast(views.device, precision):
        found = network.features(views.contiguous(memory_format=torch.channels_last), kinds)
    return torch.cat([found[kind].float() for kind in kinds], -1)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Returns the autocast of forward passes; ``precision`` by Lightning's name. Raises UserError if it is unknown."""
    if precision not in AUTOCAST:
        raise UserError(f"precision {precision!r} is unknown to the evaluation; allowed: {', '.join(AUTOCAST)}")
    return torch.autocast(device.type, dtype=AUTOCAST[precision], enabled=AUTOCAST[precision] is not None)


@torch.no_grad()
def plain_logits(
    task: Task, split: str, positions: Tensor, at_once: int, model: Callable[[Tensor], list[Tensor]]
) -> tuple[list[Tensor], Tensor]:
    """Returns the logits of one or more heads on images transformed as in evaluation.

    Returns:
        Logits float32 [N, C] of each head, and the labels int64 [N], on the CPU, in the order of ``positions``.
    """
    logits, labels = [], []
    for batch in task.batches(split, positions, at_once):
        sizes = None if batch.sizes is None else batch.sizes.to(task.device)
        logits.append(
            [each.float().cpu() for each in model(task.views.evaluation_view(batch.images.to(task.device), sizes))]
        )
        labels.append(batch.labels.cpu())
    return [torch.cat(parts) for parts in zip(*logits, strict=True)], torch.cat(labels)


def make_score(
    protocol: str,
    logits: Tensor,
    labels: Tensor,
    known_classes: Tensor,
    key: str,
    chosen: dict[str, Any],
    notes: Sequence[str],
    metrics: dict[str, float],
    n_train: int | None = None,
) -> Score:
    """Scores logits [N, C] on test images; classes not among ``known_classes`` are never predicted.

    Raises:
        UserError: the logits are not finite.
    """
    if not bool(logits.isfinite().all()):
        raise UserError(f"{key}: the training diverged, predictions are not finite: give a smaller learning rate")
    unseen = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
    unseen[known_classes.to(logits.device)] = False
    log_probabilities = logits.masked_fill(unseen, -torch.inf).log_softmax(1)
    predictions = log_probabilities.argmax(1)
    missing = int(unseen.sum())
    several = [f"{missing} of {len(unseen)} classes have no train image and are never predicted."] if missing else []
    return Score(
        protocol,
        top1(predictions, labels),
        chosen,
        [*notes, *several],
        predictions,
        log_probabilities,
        metrics,
        n_train=n_train,
        labels=labels,
    )

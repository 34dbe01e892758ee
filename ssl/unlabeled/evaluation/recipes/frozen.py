"""Published probes of a frozen network, trained on augmented images: linear and attentive classifiers."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unlabeled.core.ranges import AtMostHalf, LearningRate, SomeOf
from unlabeled.core.seeding import derive_seed
from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate_probes import check_unchanged
from unlabeled.evaluation.features import eval_mode, full_float32, top1
from unlabeled.evaluation.probe import Score, Task
from unlabeled.evaluation.probes.linear import split_holdout
from unlabeled.evaluation.recipes.augmentation import Augmentation
from unlabeled.evaluation.recipes.linear import mean_loss
from unlabeled.evaluation.recipes.loop import TrainingPass, autocast, encode, make_score, plain_logits, training_steps
from unlabeled.evaluation.recipes.training import Training
from unlabeled.optimizers import parameter_groups
from unlabeled.views.per_image import preserve_random_state, seed_all

OWN = "finetune/own"  # name of the recipe of conf/finetune.yaml, which is no probe
HEAD = 3  # key of the random draw of the heads


class FrozenRecipe:
    """Trains one or several heads on one pass of the frozen network over each batch of views.

    The network is in eval mode and its state must be bit for bit the same at the end. The heads compute in float32
    under any precision. The head after the last epoch is reported; the test images are predicted once. Several learning
    rates train at once, each as it would alone, on a stratified part of train; the best on the rest is trained again on
    all of train.

    Args:
        name: begins the protocol, e.g. ``linear/moco``; ``linear_moco`` is the key below ``probe``.
        kinds: of features, concatenated if there are several; ``tokens`` for attentive heads.
        head: width and number of classes → module; a ``_partial_`` in the yaml.
        learning_rates: for 256 images a step; one or more.
        holdout: share of each class on which the rate is chosen, where there are several.
        training: length, optimizer and schedule of the training.
        augmentation: of the training images.
        baselines: True: also run on a random network.
        differs: differences from the publication, in sentences.

    Raises:
        UserError: numbers that cannot work together.
    """

    def __init__(
        self,
        name: str,
        kinds: SomeOf[str],
        head: Callable[[int, int], nn.Module],
        learning_rates: SomeOf[LearningRate],
        holdout: AtMostHalf,
        training: Training,
        augmentation: Augmentation,
        baselines: bool,
        differs: Sequence[str],
    ) -> None:
        self.name, self.kinds, self.head = name, tuple(kinds), head
        self.key = config_key(name)
        self.learning_rates, self.holdout = sorted(set(learning_rates)), holdout
        self.training, self.augmentation = training, augmentation
        self.baselines, self.differs = baselines, list(differs)
        self.needs, self.needs_key = training.batch_size, "training.batch_size"
        self._check()

    def _check(self) -> None:
        self.training.check(f"{self.key}.training")
        self.augmentation.check(f"{self.key}.augmentation")
        if not self.learning_rates or self.learning_rates[0] <= 0:
            raise UserError(f"{self.key}.learning_rates={self.learning_rates}: give one or more numbers above 0")
        if not 0 < self.holdout <= 0.5:
            raise UserError(f"{self.key}.holdout={self.holdout}: must be above 0 and at most 0.5 (a share of train)")
        if not self.kinds:
            raise UserError(f"{self.key}.kinds=[]: give one or more kinds of features, e.g. [last]")
        if "tokens" in self.kinds and len(self.kinds) > 1:
            raise UserError(f"{self.key}.kinds={list(self.kinds)}: tokens go with no other kind")

    @property
    def protocol(self) -> str:
        """Returns the name under which a score of this probe is reported."""
        rates = self.learning_rates
        rate = f"{rates[0]:g}" if len(rates) == 1 else f"best-of-{len(rates)}"
        name = format_protocol(f"{self.name}-online", self.training, rate, self.augmentation.describe())
        return name if self.kinds == ("last",) else f"{name}/features={'+'.join(self.kinds)}"

    def train_predict(self, task: Task) -> list[Score]:
        """Returns one Score. Classes without a train image are never predicted.

        Raises:
            UserError: the network has no such features, there are too few images, or the training diverged.
        """
        if set(self.kinds) - set(task.network.kinds):
            raise UserError(
                f"{self.key}.kinds={list(self.kinds)}: {type(task.network).__name__} has no such features; allowed: "
                f"{', '.join(task.network.kinds)}"
            )
        autocast(task.device, task.precision)
        with (
            preserve_random_state(task.device),
            check_unchanged(task.network),
            eval_mode(task.network),
            full_float32(task.device),
        ):
            return [self._train_predict(task)]

    def _train_predict(self, task: Task) -> Score:
        everything = torch.arange(len(task.train_labels))
        self.training.check_images(f"{self.key}.training", len(everything))
        rate, chosen, notes = self._choose(task)
        heads, losses = self.fit(task, everything, [rate])
        logits, labels = self._logits(task, "test", torch.arange(len(task.test_labels)), heads)
        chosen |= {"learning_rate": rate} | self.training.summary()
        seen = torch.unique(task.train_labels)
        metrics = {"train_loss": losses[0]}
        return make_score(self.protocol, logits[0], labels, seen, self.key, chosen, [*self.differs, *notes], metrics)

    def _choose(self, task: Task) -> tuple[float, dict[str, Any], list[str]]:
        rates = self.learning_rates
        if len(rates) == 1:
            return rates[0], {"chosen_on": "nothing"}, []
        fit, held = (each.cpu() for each in split_holdout(task.train_labels, self.holdout, self.training.seed))
        self.training.check_images(f"{self.key}.training", len(fit))
        heads, _ = self.fit(task, fit, rates)
        logits, labels = self._logits(task, "train", held, heads)
        scores = [top1(each.argmax(1), labels) if bool(each.isfinite().all()) else 0.0 for each in logits]
        best = scores.index(max(scores))  # the smallest among equals
        tried = {f"{rate:g}": score for rate, score in zip(rates, scores, strict=True)}
        how = {"chosen_on": "train", "holdout": self.holdout, "holdout_images": len(held), "holdout_top1": tried}
        return rates[best], how, self._edge(best)

    def _edge(self, best: int) -> list[str]:
        rates = self.learning_rates
        if 0 < best < len(rates) - 1:
            return []
        where = f"{rates[best]:g}, is at an edge of {rates[0]:g} to {rates[-1]:g}"
        return [f"The best learning rate, {where}: widen {self.key}.learning_rates."]

    def fit(self, task: Task, positions: Tensor, rates: Sequence[float]) -> tuple[list[nn.Module], list[float]]:
        """Returns a trained head for each learning rate, in eval mode, and its mean training loss in the last epoch."""
        heads = self._heads(task, positions, len(rates))
        optimizers = [self._optimizer(head) for head in heads]
        per_epoch = len(self.training.batch_sizes(len(positions)))
        losses: list[Tensor] = []
        for step, passes in training_steps(task, positions, self.training, self.augmentation):
            batch = self._batch(task, passes)
            if batch is None:
                continue
            for optimizer, rate in zip(optimizers, rates, strict=True):
                self.training.prepare(optimizer, rate, step, per_epoch)
            now = torch.stack([self._learn(*pair, *batch) for pair in zip(heads, optimizers, strict=True)])
            if step >= (self.training.epochs - 1) * per_epoch:
                losses.append(now)
        return [head.eval() for head in heads], torch.stack(losses).mean(0).tolist()

    def _heads(self, task: Task, positions: Tensor, count: int) -> list[nn.Module]:
        """Makes equal heads on the device, all from the same random draw."""
        first = next(iter(task.batches("train", positions[: self.training.at_once], self.training.at_once)))
        sizes = None if first.sizes is None else first.sizes.to(task.device)
        x = encode(
            task.network, task.views.evaluation_view(first.images.to(task.device), sizes), self.kinds, task.precision
        )
        heads = []
        for _ in range(count):
            seed_all(derive_seed(self.training.seed, HEAD), task.device)
            heads.append(self.head(x.shape[-1], task.num_classes).to(task.device))
        if getattr(heads[0], "takes_tokens", False) != ("tokens" in self.kinds):
            raise UserError(f"{self.key}.kinds={list(self.kinds)} does not suit {type(heads[0]).__name__}")
        return heads

    def _optimizer(self, head: nn.Module) -> Optimizer:
        groups = parameter_groups(head, self.training.weight_decay, self.training.decay_bias_and_norm)
        return self.training.optimizer(groups, lr=0.0)

    def _batch(self, task: Task, passes: Iterator[TrainingPass]) -> tuple[Tensor, Tensor] | None:
        """Returns features and labels of a step; None where no image of it could be decoded."""
        parts = [(encode(task.network, each.views, self.kinds, task.precision), each.labels) for each in passes]
        if not parts:
            return None
        x, labels = (torch.cat(each) for each in zip(*parts, strict=True))
        return x, labels

    def _learn(self, head: nn.Module, optimizer: Optimizer, x: Tensor, labels: Tensor) -> Tensor:
        """Takes one step of one head; returns the loss."""
        loss = mean_loss(head(x), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.training.clip(head.parameters())
        optimizer.step()
        return loss.detach()

    def _logits(
        self, task: Task, split: str, positions: Tensor, heads: Sequence[nn.Module]
    ) -> tuple[list[Tensor], Tensor]:
        def model(views: Tensor) -> list[Tensor]:
            x = encode(task.network, views, self.kinds, task.precision)
            return [head(x) for head in heads]

        return plain_logits(task, split, positions, self.training.at_once, model)


def config_key(name: str) -> str:
    """Returns a recipe's key in the configuration: ``linear/moco-v3`` is ``probe.linear_moco_v3``.

    ``finetune/own`` is ``recipe``: that of ``unlabeled finetune``.
    """
    if name == OWN:
        return "recipe"
    return "probe." + name.replace("/", "_").replace("-", "_")


def format_protocol(name: str, training: Training, rate: str, augmentation: Sequence[str]) -> str:
    """Formats the settings that make numbers incomparable; names ``augmentation`` unless it is only crop and flip."""
    seen = f"/aug={'+'.join(augmentation)}" if augmentation else ""
    return f"{name}/epochs={training.epochs}/batch={training.batch_size}/lr={rate}{seen}"

"""Monte Carlo dropout (Gal and Ghahramani 2016, arXiv 1506.02142): predictions averaged over masks."""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.core.ranges import AtLeastTwo, AtMostHalf, Between, Count, LearningRate, PartialShare, Seed, SomeOf
from unlabeled.core.seeding import derive_seed
from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features, full_float32, top1
from unlabeled.evaluation.probe import Score, with_kind
from unlabeled.evaluation.probes.linear import (
    check_at_least_1,
    check_grid,
    check_share,
    predict,
    split_holdout,
    standardise,
    unseen_class_notes,
)
from unlabeled.evaluation.uncertainty.calibration import nll
from unlabeled.evaluation.uncertainty.members import Pool, expand_to_all_classes, pool_heads, pooled_score

FLAT = 0.001  # nats: the held-out nll hardly depends on the rate over two decades, and small rates cannot diverge


class MCDropout:
    """A linear head trained with dropout on cached, standardised features, evaluated under many masks.

    A member is one mask on the features, shared by all images, so that it is itself a head and all members are one
    product; for a single image this equals a mask of its own. The learning rate is the smallest that comes within 0.001
    nats of the best held-out nll without dropout; then the head is fitted again on all of train. SGD with momentum,
    cosine schedule per step, no decay.

    Args:
        p: probability that a feature is dropped, in training and afterwards.
        samples: masks, at least 2.
        learning_rates: to try, all at once on the same batches and masks.
        epochs, batch_size, momentum: of SGD.
        holdout: share of each class set aside for the learning rate and the temperature.
        seed: of the split, the batches and every mask.
        features: the kind to classify (``Backbone.kinds``).
    """

    needs = 2

    def __init__(
        self,
        p: Between,
        samples: AtLeastTwo,
        learning_rates: SomeOf[LearningRate],
        epochs: Count,
        batch_size: Count,
        momentum: PartialShare,
        holdout: AtMostHalf,
        seed: Seed,
        features: str = "last",
    ) -> None:
        if not 0 < p < 1:
            raise UserError(f"probe.mc_dropout.p={p}: must be above 0 and below 1; without dropout all masks are equal")
        if samples < 2:
            raise UserError(f"probe.mc_dropout.samples={samples}: must be at least 2")
        self.learning_rates = check_grid("probe.mc_dropout.learning_rates", learning_rates)
        self.epochs = check_at_least_1("probe.mc_dropout.epochs", epochs)
        self.batch_size = check_at_least_1("probe.mc_dropout.batch_size", batch_size)
        self.holdout = check_share("probe.mc_dropout.holdout", holdout)
        self.p, self.samples, self.momentum = p, samples, momentum
        self.seed, self.kinds = seed, (features,)

    @property
    def protocol(self) -> str:
        """Returns the name under which a score of this probe is reported."""
        return with_kind(f"mc-dropout/linear/p={self.p:g}/S={self.samples}", self.kinds[0])

    def fit_predict(self, train: Features, test: Features, num_classes: int) -> list[Score]:
        """Returns one Score of the pooled masks; its ``without_dropout_top1`` is the same head without masks."""
        train, test = (each.of(self.kinds[0]) for each in (train, test))
        with full_float32(train.x.device), torch.no_grad():
            classes, labels = torch.unique(train.labels, return_inverse=True)
            held, spared, best, chosen = self._choose(train.x, labels)
            x, test_x = standardise(train.x, test.x)
            head = self.fit(x, labels, len(classes), [self.learning_rates[best]])[0]
            whole = self._pool(head, test_x)
            plain = top1(classes[predict(head, test_x)], test.labels)
        calibration = expand_to_all_classes(spared, classes, num_classes), train.labels[held]
        whole.log_probabilities = expand_to_all_classes(whole.log_probabilities, classes, num_classes)
        whole.predictions = classes[whole.predictions]
        notes = self._notes(best) + unseen_class_notes(len(classes), num_classes)
        score = pooled_score(self.protocol, whole, test.labels, calibration, chosen, notes)
        score.metrics["without_dropout_top1"] = plain
        return [score]

    def _choose(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int, dict[str, Any]]:
        """Returns held-out rows, pooled log probabilities by a head that has not seen them, its rate's position."""
        fit, held = split_holdout(labels, self.holdout, self.seed)
        fit_x, held_x = standardise(x[fit], x[held])
        heads = self.fit(fit_x, labels[fit], int(labels.max()) + 1, self.learning_rates)
        losses = [nll((held_x @ head.T).log_softmax(dim=1), labels[held]) for head in heads]
        best = next(place for place, loss in enumerate(losses) if loss <= min(losses) + FLAT)
        chosen = {
            "chosen_on": "train",
            "holdout": self.holdout,
            "holdout_images": len(held),
            "seed": self.seed,
            "learning_rate": self.learning_rates[best],
            "holdout_nll": {f"{rate:g}": loss for rate, loss in zip(self.learning_rates, losses, strict=True)},
            "temperature_on": f"{len(held)} held-out train images",
        }
        return held, self._pool(heads[best], held_x).log_probabilities, best, chosen

    def fit(self, x: Tensor, labels: Tensor, num_classes: int, learning_rates: list[float]) -> Tensor:
        """Returns heads [H, C, D + 1], one per learning rate, all from zero, over the same batches and masks."""
        heads, total = len(learning_rates), self.epochs * math.ceil(len(x) / self.batch_size)
        weight = x.new_zeros(heads * num_classes, x.shape[1])
        velocity = torch.zeros_like(weight)
        rates = x.new_tensor(learning_rates).repeat_interleave(num_classes)[:, None]
        generator = torch.Generator().manual_seed(self.seed)
        for step, rows in enumerate(self._order(len(x), generator)):
            rows = rows.to(x.device)
            seen = x[rows] * self._masks((len(rows), x.shape[1]), generator).to(x)
            p = (seen @ weight.T).view(-1, heads, num_classes).softmax(dim=2)
            residual = (p - F.one_hot(labels[rows], num_classes)[:, None]).flatten(1)  # gradient by the logits
            velocity.mul_(self.momentum).add_(residual.T @ seen / len(rows))
            weight -= rates * (0.5 * (1 + math.cos(math.pi * step / total))) * velocity
        return weight.view(heads, num_classes, -1)

    def _order(self, n: int, generator: torch.Generator) -> Iterator[Tensor]:
        for _ in range(self.epochs):
            yield from torch.split(torch.randperm(n, generator=generator), self.batch_size)

    def _masks(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Draws masks of 0 or 1/(1 − p); the column of ones is never dropped."""
        kept = torch.rand(shape, generator=generator) >= self.p
        masks = kept / (1 - self.p)
        masks[:, -1] = 1
        return masks

    def _pool(self, head: Tensor, x: Tensor) -> Pool:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, 1))  # other masks than in training
        masks = self._masks((self.samples, x.shape[1]), generator).to(x)
        return pool_heads(head * masks[:, None], x)

    def _notes(self, best: int) -> list[str]:
        rates, notes = self.learning_rates, []
        if len(rates) > 1 and best in (0, len(rates) - 1):
            notes.append(
                f"The best learning rate, {rates[best]:g}, is at an edge of {rates[0]:g} to {rates[-1]:g}: widen "
                "probe.mc_dropout.learning_rates."
            )
        return notes

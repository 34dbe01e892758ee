"""Linear classification of cached features: exact logistic regression, and the published SGD recipe for many heads.

Both see features standardised with the mean and standard deviation of the rows they are fitted on. A head is one matrix
[C, D + 1] whose last column is the bias: the features carry a column of ones.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features, Score, full_float32, top1

FLOAT64_UP_TO = 20_000_000  # numbers in the train features; float64 above it costs more time than it buys digits
CHUNK_BYTES = 256 * 2**20  # logits held at a time


class LBFGS:
    """Multinomial logistic regression solved exactly, with C chosen on a part of train and refitted on all of it.

    Minimises mean cross entropy + |W|²/(2·C·N), bias free: the scaling of scikit-learn and of DINOv2's cuML probe. No
    learning rate and no noise, because the problem is convex. ``c``: the values to try; ``holdout``: share of each
    class set aside to choose (unused where there is one value); ``seed``: which images
    those are; ``max_iter``: of L-BFGS, for one value.
    """

    protocol = "linear/cached-lbfgs-v1"
    needs = 2

    def __init__(self, c: list[float], holdout: float, seed: int, max_iter: int) -> None:
        self.c = _grid("probe.linear.c", c)
        self.holdout = _share("probe.linear.holdout", holdout)
        self.seed, self.max_iter = seed, _at_least_1("probe.linear.max_iter", max_iter)

    def fit_predict(self, train: Features, test: Features, num_classes: int) -> list[Score]:
        """One Score. Classes without a train image are never predicted."""
        with full_float32(train.x.device), torch.no_grad():
            classes, labels = torch.unique(train.labels, return_inverse=True)
            c, start, chosen, notes = self._choose(train.x, labels, len(classes))
            x, test_x = standardise(train.x, test.x)
            weight, iterations = fit_logistic(x, labels, c, len(classes), self.max_iter, start)
            score = top1(classes[predict(weight, test_x)], test.labels)
        chosen |= {"C": c, "iterations": iterations, "dtype": str(x.dtype).removeprefix("torch.")}
        notes += _unfinished(iterations, self.max_iter) + _unseen(len(classes), num_classes)
        return [Score(self.protocol, score, chosen, notes)]

    def _choose(
        self, x: Tensor, labels: Tensor, num_classes: int
    ) -> tuple[float, Tensor | None, dict[str, Any], list[str]]:
        if len(self.c) == 1:
            return self.c[0], None, {"chosen_on": "nothing"}, []
        fit, held = split(labels, self.holdout, self.seed)
        fit_x, held_x = standardise(x[fit], x[held])
        weights, scores, weight = [], [], None
        for c in self.c:  # from small to large, each from the last: half the work of starting at zero
            weight, _ = fit_logistic(fit_x, labels[fit], c, num_classes, self.max_iter, weight)
            weights.append(weight)
            scores.append(top1(predict(weight, held_x), labels[held]))
        best, notes = _best(self.c, scores, "C", "probe.linear.c")
        how = _how(self.c, scores, self.holdout, len(held), self.seed)
        return self.c[best], weights[best], how, notes


class SGDGrid:
    """SGD with momentum at many learning rates at once, the best chosen on a part of train and refitted on all of it.

    The recipe of published linear probes (softmax cross entropy, cosine schedule per step) on features computed once,
    so without random crops and flips. ``weight_decay`` acts on the bias too, as in torch.optim.SGD.
    """

    protocol = "linear/cached-sgd-grid-v1"
    needs = 2

    def __init__(
        self,
        learning_rates: list[float],
        epochs: int,
        batch_size: int,
        weight_decay: float,
        momentum: float,
        holdout: float,
        seed: int,
    ) -> None:
        self.learning_rates = _grid("probe.linear_sgd.learning_rates", learning_rates)
        self.epochs = _at_least_1("probe.linear_sgd.epochs", epochs)
        self.batch_size = _at_least_1("probe.linear_sgd.batch_size", batch_size)
        self.holdout = _share("probe.linear_sgd.holdout", holdout)
        self.weight_decay, self.momentum, self.seed = weight_decay, momentum, seed

    def fit_predict(self, train: Features, test: Features, num_classes: int) -> list[Score]:
        """One Score. Classes without a train image are never predicted."""
        with full_float32(train.x.device), torch.no_grad():
            classes, labels = torch.unique(train.labels, return_inverse=True)
            rate, chosen, notes = self._choose(train.x, labels, len(classes))
            x, test_x = standardise(train.x, test.x)
            weight = self.fit(x, labels, len(classes), [rate])[0]
            score = top1(classes[predict(weight, test_x)], test.labels)
        chosen |= {"learning_rate": rate, "epochs": self.epochs, "batch_size": self.batch_size}
        return [Score(self.protocol, score, chosen, notes + _unseen(len(classes), num_classes))]

    def fit(self, x: Tensor, labels: Tensor, num_classes: int, learning_rates: list[float]) -> Tensor:
        """Heads [H, C, D + 1], one per learning rate, all from zero and over the same batches of ``x`` [N, D + 1]."""
        heads = len(learning_rates)
        weight = x.new_zeros(heads * num_classes, x.shape[1])
        velocity = torch.zeros_like(weight)
        rates = x.new_tensor(learning_rates).repeat_interleave(num_classes)[:, None]
        total = self.epochs * math.ceil(len(x) / self.batch_size)
        for step, rows in enumerate(self._order(len(x))):
            rows = rows.to(x.device)
            logits = (x[rows] @ weight.T).view(-1, heads, num_classes)
            residual = softmax_minus_one_hot(logits, labels[rows, None].expand(-1, heads)).flatten(1)
            gradient = residual.T @ x[rows] / len(rows) + self.weight_decay * weight
            velocity.mul_(self.momentum).add_(gradient)
            weight -= rates * (0.5 * (1 + math.cos(math.pi * step / total))) * velocity
        return weight.view(heads, num_classes, -1)

    def _order(self, n: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.epochs):
            yield from torch.split(torch.randperm(n, generator=generator), self.batch_size)

    def _choose(self, x: Tensor, labels: Tensor, num_classes: int) -> tuple[float, dict[str, Any], list[str]]:
        if len(self.learning_rates) == 1:
            return self.learning_rates[0], {"chosen_on": "nothing"}, []
        fit, held = split(labels, self.holdout, self.seed)
        fit_x, held_x = standardise(x[fit], x[held])
        weights = self.fit(fit_x, labels[fit], num_classes, self.learning_rates)
        scores = [top1(predict(weight, held_x), labels[held]) for weight in weights]
        best, notes = _best(self.learning_rates, scores, "learning rate", "probe.linear_sgd.learning_rates")
        how = _how(self.learning_rates, scores, self.holdout, len(held), self.seed)
        return self.learning_rates[best], how, notes


def fit_logistic(
    x: Tensor, labels: Tensor, c: float, num_classes: int, max_iter: int, start: Tensor | None = None
) -> tuple[Tensor, int]:
    """Minimum of the logistic loss over ``x`` [N, D + 1] from ``start`` (zero) → weight [C, D + 1], iterations."""
    weight = x.new_zeros(num_classes, x.shape[1]) if start is None else start.to(x.dtype, copy=True)
    digits = 1e-7 if x.dtype == torch.float64 else 1e-5  # gradient; float32 rounding alone leaves about 1e-6
    optimizer = torch.optim.LBFGS(
        [weight],
        max_iter=max_iter,
        max_eval=2 * max_iter,
        tolerance_grad=digits,
        tolerance_change=digits / 100,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        loss, weight.grad = logistic_loss(weight, x, labels, c)
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight, int(optimizer.state[weight]["n_iter"])


def logistic_loss(weight: Tensor, x: Tensor, labels: Tensor, c: float) -> tuple[float, Tensor]:
    """Mean cross entropy + |W|²/(2·c·N) without the bias column, and its gradient [C, D + 1], in chunks of rows."""
    free = weight.clone()
    free[:, -1] = 0
    loss = weight.new_zeros((), dtype=torch.float64)
    gradient = free / c
    for rows, target in _chunks(x, labels, len(weight)):
        logits = rows @ weight.T
        loss += (logits.logsumexp(dim=1) - logits.gather(1, target[:, None])[:, 0]).double().sum()
        gradient += softmax_minus_one_hot(logits, target).T @ rows
    loss += free.double().square().sum() / (2 * c)
    return float(loss) / len(x), gradient / len(x)


def softmax_minus_one_hot(logits: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the cross entropy by the logits [..., C]; ``labels`` [...]."""
    p = logits.softmax(dim=-1)
    return p.scatter_add_(-1, labels[..., None], p.new_full((*labels.shape, 1), -1.0))


def predict(weight: Tensor, x: Tensor) -> Tensor:
    """Class [N] of the largest logit of a head [C, D + 1]; the first among equals."""
    rows = max(1, CHUNK_BYTES // (len(weight) * x.element_size()))
    return torch.cat([(part @ weight.T).argmax(dim=1) for part in torch.split(x, rows)])


def standardise(train: Tensor, *others: Tensor) -> list[Tensor]:
    """Each [N, D] → [N, D + 1]: zero mean and unit deviation by the statistics of ``train``, then a column of ones."""
    dtype = torch.float64 if train.numel() <= FLOAT64_UP_TO else torch.float32
    std, mean = torch.std_mean(train.to(dtype), dim=0, correction=0)
    constant = std <= 1e-6 * mean.abs()  # what is left of a constant float32 column is rounding; also 0 <= 0
    scale = torch.where(constant, 1.0, std)
    return [torch.cat([(x - mean) / scale, x.new_ones(len(x), 1, dtype=dtype)], dim=1) for x in (train, *others)]


def split(labels: Tensor, holdout: float, seed: int) -> tuple[Tensor, Tensor]:
    """Row numbers to fit on and to hold out: ``holdout`` of each class, at least one, never a class's last image."""
    n = len(labels)
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(labels.device)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()
    held = torch.minimum((holdout * counts).round().clamp(min=1), counts - 1).clamp(min=0)
    rank = torch.arange(n, device=labels.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    chosen = rank < held.repeat_interleave(counts)
    if not bool(chosen.any()):
        raise UserError("no class has two labelled train images: nothing is left to choose hyper-parameters on")
    return by_class[~chosen].sort().values, by_class[chosen].sort().values


def _chunks(x: Tensor, labels: Tensor, num_classes: int) -> Iterator[tuple[Tensor, Tensor]]:
    rows = max(1, CHUNK_BYTES // (num_classes * x.element_size()))
    return zip(torch.split(x, rows), torch.split(labels, rows), strict=True)


def _best(values: list[float], scores: list[float], name: str, key: str) -> tuple[int, list[str]]:
    """Position of the best score, the smallest value among equals, and a note if only an end of the grid reaches it."""
    best = scores.index(max(scores))
    if len(values) > 1 and max(scores) > max(scores[1:-1], default=-1.0):
        edge = f"The best {name}, {values[best]:g}, is at an edge of {values[0]:g} to {values[-1]:g}: widen {key}."
        return best, [edge]
    return best, []


def _how(values: list[float], scores: list[float], holdout: float, held: int, seed: int) -> dict[str, Any]:
    tried = {f"{value:g}": score for value, score in zip(values, scores, strict=True)}
    return {"chosen_on": "train", "holdout": holdout, "holdout_images": held, "seed": seed, "holdout_top1": tried}


def _unseen(seen: int, num_classes: int) -> list[str]:
    missing = num_classes - seen
    return [f"{missing} of {num_classes} classes have no train image and are never predicted."] if missing else []


def _unfinished(iterations: int, max_iter: int) -> list[str]:
    note = f"L-BFGS stopped at max_iter = {max_iter}, before the optimum: raise probe.linear.max_iter."
    return [note] if iterations >= max_iter else []


def _grid(key: str, values: list[float]) -> list[float]:
    if not values or min(values) <= 0:
        raise UserError(f"{key} is {values}; it needs one or more numbers above 0")
    return sorted(set(values))


def _share(key: str, value: float) -> float:
    if not 0 < value <= 0.5:
        raise UserError(f"{key} is {value}; allowed: above 0, at most 0.5 (a share of train)")
    return value


def _at_least_1(key: str, value: int) -> int:
    if value < 1:
        raise UserError(f"{key} is {value}; allowed: 1 or more")
    return value

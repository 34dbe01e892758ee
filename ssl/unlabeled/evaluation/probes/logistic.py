"""Exact multinomial logistic regression of cached features, by preconditioned L-BFGS."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from unlabeled.core.ranges import AtMostHalf, Count, Positive, Seed, SomeOf
from unlabeled.evaluation.features import Features, full_float32, top1
from unlabeled.evaluation.probe import Score
from unlabeled.evaluation.probes.linear import (
    best_position,
    check_at_least_1,
    check_grid,
    check_share,
    chunk_rows,
    linear_head,
    predict,
    score_head,
    selection_notes,
    split_holdout,
    standardise,
)
from unlabeled.evaluation.uncertainty.calibration import calibration_metrics

HESSIAN_ROWS = 4  # rows per feature to measure the curvature on: more did not change the iterations


class _Choice(NamedTuple):
    c: float
    start: Tensor | None = None  # the solution for that C on a part of train
    chosen: dict[str, Any] = {"chosen_on": "nothing"}  # noqa: RUF012, copied before it is written to
    notes: list[str] = []  # noqa: RUF012, likewise
    held: tuple[Tensor, Tensor] | None = None  # log probabilities and labels of the rest of train


class LogisticRegressionProbe:
    """Multinomial logistic regression solved exactly; C is chosen on a part of train, then all of it is used.

    Minimises mean cross entropy + |W|²/(2·C·N), bias free: the scaling of scikit-learn and of DINOv2's cuML probe. No
    learning rate and no noise, because the problem is convex. ``c``: the values to try; ``holdout``: share of each
    class set aside to choose C on (unused with one value); ``seed``: of the choice of these images; ``max_iter``: of
    L-BFGS, for one value; ``features``: the kind. Features are standardised with the mean
    and deviation of the rows they are fitted on.
    """

    needs = 2

    def __init__(
        self, c: SomeOf[Positive], holdout: AtMostHalf, seed: Seed, max_iter: Count, features: str = "last"
    ) -> None:
        self.c = check_grid("probe.linear.c", c)
        self.holdout = check_share("probe.linear.holdout", holdout)
        self.seed, self.max_iter = seed, check_at_least_1("probe.linear.max_iter", max_iter)
        self.kinds = (features,)

    @property
    def chooses(self) -> bool:
        """Returns whether C is chosen, for which a class needs two images."""
        return len(self.c) > 1

    @property
    def protocol(self) -> str:
        """Returns the name under which the score is reported. C is not in it: it is chosen."""
        return "linear/cached-lbfgs-v1" + ("" if self.kinds == ("last",) else f"/features={self.kinds[0]}")

    def fit_predict(self, train: Features, test: Features, num_classes: int) -> list[Score]:
        """Returns one Score. Classes without a train image are never predicted."""
        train, test = train.of(self.kinds[0]), test.of(self.kinds[0])
        with full_float32(train.x.device), torch.no_grad():
            classes, labels = torch.unique(train.labels, return_inverse=True)
            choice = self._choose(train.x, labels, len(classes))
            x, test_x = standardise(train.x, test.x)
            weight, iterations = fit_logistic(x, labels, choice.c, len(classes), self.max_iter, choice.start)
            how = {"C": choice.c, "iterations": iterations, "dtype": str(x.dtype).removeprefix("torch.")}
            weight = weight.to(x.dtype)
            score = score_head(self.protocol, weight, test_x, test, classes, num_classes, choice.chosen | how)
            score.head = linear_head(weight, train.x, classes, self.kinds[0], choice.held)
        assert score.log_probabilities is not None
        score.metrics = calibration_metrics(score.log_probabilities, test.labels, *(choice.held or ()))
        score.notes = choice.notes + _convergence_note(iterations, self.max_iter) + score.notes
        return [score]

    def _choose(self, x: Tensor, labels: Tensor, num_classes: int) -> _Choice:
        if not self.chooses:
            return _Choice(self.c[0])
        fit, held = split_holdout(labels, self.holdout, self.seed)
        fit_x, held_x = standardise(x[fit], x[held])
        weights, scores, weight = [], [], None
        for c in self.c:  # ascending, each from the last solution: half the work of starting at zero
            weight, _ = fit_logistic(fit_x, labels[fit], c, num_classes, self.max_iter, weight)
            weights.append(weight)
            scores.append(top1(predict(weight.to(held_x.dtype), held_x), labels[held]))
        best, notes = best_position(self.c, scores, "C", "its c")
        tried = {f"{c:g}": score for c, score in zip(self.c, scores, strict=True)}
        spared = (held_x @ weights[best].to(held_x.dtype).T).log_softmax(dim=1), labels[held]
        return _Choice(
            self.c[best], weights[best], selection_notes(tried, self.holdout, len(held), self.seed), notes, spared
        )


def fit_logistic(
    x: Tensor,
    labels: Tensor,
    c: float,
    num_classes: int,
    max_iter: int,
    start: Tensor | None = None,
    tolerance: float | None = None,
) -> tuple[Tensor, int]:
    """Minimises the logistic loss over ``x`` [N, D + 1] from ``start`` (zero): weight [C, D + 1] float64, iterations.

    L-BFGS with W = V·A, where A makes the curvature with respect to V about 1 in every direction: this needs a third of
    the iterations, and its tolerance bounds the loss. It stops when no element of the gradient by V is above 1e-6 (1e-8
    for float64 ``x``) or a step changes the loss by less than a thousandth of that. On the data of
    tests/evaluation/probes/test_logistic.py this left less than 5e-7 (1e-9) of loss above the optimum. With fewer rows
    than columns it searches W in the row space only: components outside of it change no logit and are penalised.
    ``tolerance``: of the gradient, in place of 1e-6.
    """
    weight = x.new_zeros(num_classes, x.shape[1], dtype=torch.float64) if start is None else start.double()
    if len(x) < x.shape[1] - 1:
        basis = _row_space(x)
        inside = x @ basis.to(x.dtype)
        found, iterations = fit_logistic(inside, labels, c, num_classes, max_iter, weight @ basis, tolerance)
        return found @ basis.T, iterations
    factor = _curvature_factor(weight, x, c)  # L; A is its inverse
    v = weight @ factor
    digits = tolerance or (1e-8 if x.dtype == torch.float64 else 1e-6)  # float32 products leave about 1e-7
    optimizer = torch.optim.LBFGS(
        [v],
        max_iter=max_iter,
        max_eval=2 * max_iter,
        tolerance_grad=digits,
        tolerance_change=digits / 1000,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    inverse = torch.linalg.solve_triangular(factor, torch.eye(len(factor)).to(factor), upper=False)

    def closure() -> float:
        loss, gradient = logistic_loss(v @ inverse, x, labels, c)
        v.grad = gradient @ inverse.T
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return v @ inverse, int(optimizer.state[v]["n_iter"])


def logistic_loss(weight: Tensor, x: Tensor, labels: Tensor, c: float) -> tuple[float, Tensor]:
    """Returns mean cross entropy + |W|²/(2·c·N) without the bias column, and its gradient [C, D + 1] float64.

    Products with ``x`` are made in its dtype and a chunk of rows at a time; all sums over chunks are float64.
    """
    free = weight.double().clone()
    free[:, -1] = 0
    loss, gradient = free.square().sum() / (2 * c), free / c
    head, size = weight.to(x.dtype), chunk_rows(weight, x)
    for rows, target in zip(torch.split(x, size), torch.split(labels, size), strict=True):
        log_p = (rows @ head.T).log_softmax(dim=1)
        loss -= log_p.gather(1, target[:, None]).double().sum()
        residual = log_p.exp_()
        residual.scatter_add_(1, target[:, None], residual.new_full((len(target), 1), -1.0))
        gradient += (residual.T @ rows).double()
    return float(loss) / len(x), gradient / len(x)


def _row_space(x: Tensor) -> Tensor:
    """Returns orthonormal columns [D + 1, N + 1] that span the rows of ``x`` [N, D + 1]; the last is the bias alone."""
    across = torch.linalg.qr(x[:, :-1].double().T).Q
    basis: Tensor = across.new_zeros(x.shape[1], across.shape[1] + 1)
    basis[:-1, :-1] = across
    basis[-1, -1] = 1
    return basis


def _curvature_factor(weight: Tensor, x: Tensor, c: float) -> Tensor:
    """Returns lower L [D + 1, D + 1] float64; L·Lᵀ is about the mean over classes of Hessian blocks at ``weight``.

    The block of class k is the mean of p_k(1 − p_k)·x·xᵀ over the images, + 1/(c·N) but for the bias.
    """
    rows = x[:: max(1, len(x) // (HESSIAN_ROWS * x.shape[1]))]
    curvature = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    size = chunk_rows(weight, x)
    for part in torch.split(rows, size):
        p = (part @ weight.to(x.dtype).T).softmax(dim=1)
        # images classified right have weights near zero, and that may be all of them
        scale = (p * (1 - p)).mean(dim=1).clamp(min=1e-4 / len(weight))
        curvature += ((part * scale[:, None]).T @ part).double()
    curvature /= len(rows)
    penalty = curvature.new_full((len(curvature),), 1 / (c * len(x)))
    penalty[-1] = 0
    # float32 products leave a singular matrix with negative eigenvalues of this order
    curvature.diagonal().add_(penalty + 1e-6 * curvature.norm())
    factor: Tensor = torch.linalg.cholesky(curvature)
    return factor


def _convergence_note(iterations: int, max_iter: int) -> list[str]:
    note = f"L-BFGS stopped at max_iter = {max_iter}, before the optimum: raise probe.linear.max_iter."
    return [note] if iterations >= max_iter else []

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from tests.clusters import clusters
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.probes import linear
from unlabeled.evaluation.probes.linear import best_position, split_holdout, standardise
from unlabeled.evaluation.probes.logistic import LogisticRegressionProbe, fit_logistic, logistic_loss


def reference_loss(weight: Tensor, x: Tensor, labels: Tensor, c: float) -> Tensor:
    penalty = weight[:, :-1].square().sum() / (2 * c * len(x))
    return torch.nn.functional.cross_entropy(x @ weight.T, labels) + penalty


@pytest.mark.parametrize("c", [1e-3, 0.1, 10.0])
def test_lbfgs_reaches_the_loss_of_scikit_learn(c: float) -> None:
    train = clusters(400, 12, 5, 0)
    (x,) = standardise(train.x)
    weight, iterations = fit_logistic(x, train.labels, c, 5, max_iter=1000)
    model = LogisticRegression(C=c, tol=1e-10, max_iter=5000).fit(x[:, :-1].numpy(), train.labels.numpy())
    theirs = torch.cat([torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)[:, None]], dim=1)
    ours, best = reference_loss(weight, x, train.labels, c), reference_loss(theirs, x, train.labels, c)
    assert abs(float(ours - best)) < 1e-8
    torch.testing.assert_close(weight[:, :-1], theirs[:, :-1], rtol=0, atol=1e-3)
    assert iterations < 1000


@pytest.mark.parametrize("chunk_bytes", [1, 2000, 2**28])
def test_the_closed_form_loss_and_gradient_equal_autograd_for_any_chunk(
    chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "CHUNK_BYTES", chunk_bytes)
    train = clusters(90, 7, 4, 0)
    (x,) = standardise(train.x)
    weight = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    expected = reference_loss(weight, x, train.labels, 0.3)
    expected.backward()  # type: ignore[no-untyped-call]
    loss, gradient = logistic_loss(weight.detach(), x, train.labels, 0.3)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-12)
    assert weight.grad is not None
    torch.testing.assert_close(gradient, weight.grad, rtol=1e-10, atol=1e-12)


def test_a_warm_start_ends_where_a_cold_one_does() -> None:
    train = clusters(300, 8, 4, 0)
    (x,) = standardise(train.x)
    start, _ = fit_logistic(x, train.labels, 0.01, 4, 1000)
    cold, long = fit_logistic(x, train.labels, 0.1, 4, 1000)
    warm, short = fit_logistic(x, train.labels, 0.1, 4, 1000, start)
    torch.testing.assert_close(warm, cold, rtol=0, atol=1e-5)
    assert short <= long


def test_c_is_the_best_on_the_holdout_by_scikit_learn_and_the_refit_sees_all_of_train() -> None:
    train, test, grid = clusters(300, 30, 4, 0, noise=4.0), clusters(200, 30, 4, 1, noise=4.0), [1e-4, 1e-2, 1.0]
    (score,) = LogisticRegressionProbe(grid, 0.2, seed=3, max_iter=1000).fit_predict(train, test, 4)
    fit, held = split_holdout(train.labels, 0.2, seed=3)
    part, rest = (v.numpy() for v in standardise(train.x[fit], train.x[held]))
    correct = {}
    for c in grid:
        model = LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(part[:, :-1], train.labels[fit])
        correct[f"{c:g}"] = 100 * float(model.score(rest[:, :-1], train.labels[held]))
    assert score.chosen["holdout_top1"] == pytest.approx(correct)
    assert score.chosen["C"] == max(grid, key=lambda c: (correct[f"{c:g}"], -c))
    whole, unseen = (v.numpy() for v in standardise(train.x, test.x))
    final = LogisticRegression(C=score.chosen["C"], tol=1e-8, max_iter=5000).fit(whole[:, :-1], train.labels)
    assert score.top1 == pytest.approx(100 * float(final.score(unseen[:, :-1], test.labels)))
    assert score.protocol == "linear/cached-lbfgs-v1"
    assert score.log_probabilities is not None
    theirs = torch.from_numpy(final.predict_log_proba(unseen[:, :-1])).float()
    torch.testing.assert_close(score.log_probabilities, theirs, rtol=1e-4, atol=1e-4)


def test_a_class_that_only_test_has_counts_as_wrong() -> None:
    train, test = clusters(200, 6, 3, 0, noise=0.1), clusters(100, 6, 3, 1, noise=0.1)
    labels = torch.where(torch.arange(100) < 30, 3, test.labels)
    (score,) = LogisticRegressionProbe([0.1], 0.1, 0, 1000).fit_predict(train, Features(test.x, labels, test.ids), 4)
    assert score.top1 == 70
    assert score.chosen["chosen_on"] == "nothing"


def test_large_features_are_solved_in_float32_to_the_same_score(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = clusters(400, 10, 4, 0), clusters(400, 10, 4, 1)
    probe = LogisticRegressionProbe([0.01, 0.1], 0.1, 0, 1000)
    (double,) = probe.fit_predict(train, test, 4)
    monkeypatch.setattr(linear, "FLOAT64_UP_TO", 3900)  # the 90 % that C is chosen on stay below, all of train is above
    (single,) = probe.fit_predict(train, test, 4)
    assert (double.chosen["dtype"], single.chosen["dtype"]) == ("float64", "float32")
    assert abs(double.top1 - single.top1) <= 0.5


def test_a_best_value_at_the_edge_and_an_unfinished_fit_are_noted() -> None:
    train, test = clusters(300, 6, 3, 0), clusters(100, 6, 3, 1)
    # of two values, both are edges
    edge = LogisticRegressionProbe([1e-3, 1e-2], 0.1, 0, 1000).fit_predict(train, test, 3)[0]
    assert edge.notes == [f"The best C, {edge.chosen['C']:g}, is at an edge of 0.001 to 0.01: widen its c."]
    tied = best_position([1.0, 2.0, 3.0], [50.0, 50.0, 40.0], "C", "c")
    assert tied == (0, [])  # the interior is as good: nothing to widen
    short = LogisticRegressionProbe([0.1], 0.1, 0, max_iter=2).fit_predict(train, test, 3)[0]
    assert short.notes == ["L-BFGS stopped at max_iter = 2, before the optimum: raise probe.linear.max_iter."]


# Rows, features, classes, noise: easy and hard, more rows than features and fewer, two classes to twenty.
PROBLEMS = [
    (600, 5, 2, 3.0),
    (60, 100, 2, 1.0),
    (800, 40, 10, 4.0),
    (500, 60, 20, 0.3),
    (150, 200, 5, 2.0),
]


@pytest.mark.parametrize(("n", "dim", "classes", "noise"), PROBLEMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_path_with_warm_starts_reaches_the_loss_of_scikit_learn_at_every_c(
    n: int, dim: int, classes: int, noise: float, dtype: torch.dtype
) -> None:
    """Separable at large C in three of the five, where the weights are far from zero and the loss is small."""
    train = clusters(n, dim, classes, 0, noise)
    correlated = train.x @ torch.randn(dim, dim, generator=torch.Generator().manual_seed(5)) / torch.arange(1, dim + 1)
    (x,) = standardise(correlated, dtype=torch.float64)
    weight = None
    for c in (1e-4, 1e-2, 1.0, 1e2, 1e4):
        weight, iterations = fit_logistic(x.to(dtype), train.labels, c, classes, 1000, weight)
        # two classes: scikit-learn fits one vector w, of which ours are ±w/2, with half of its penalty
        theirs = best_by_scikit_learn(x, train.labels, c, classes)
        excess = float(reference_loss(weight, x, train.labels, c) - theirs)
        assert -1e-8 < excess < (1e-9 if dtype == torch.float64 else 5e-7), f"C = {c}: {excess} above theirs"
        assert iterations < 1000


def best_by_scikit_learn(x: Tensor, labels: Tensor, c: float, classes: int) -> Tensor:
    half = 2 if classes == 2 else 1
    model = LogisticRegression(C=c * half, tol=1e-12, max_iter=100_000)
    model.fit(x[:, :-1].numpy(), labels.numpy())
    theirs = torch.cat([torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)[:, None]], dim=1)
    return reference_loss(theirs if half == 1 else torch.cat([-theirs, theirs]) / 2, x, labels, c)


def test_another_kind_of_features_is_what_is_fitted_and_is_named() -> None:
    train, test = clusters(300, 12, 4, 0), clusters(100, 12, 4, 1)
    (score,) = LogisticRegressionProbe([0.1], 0.1, 0, 1000, features="cls").fit_predict(train, test, 4)
    (alone,) = LogisticRegressionProbe([0.1], 0.1, 0, 1000).fit_predict(train.of("cls"), test.of("cls"), 4)
    assert score.protocol == "linear/cached-lbfgs-v1/features=cls"
    assert score.log_probabilities is not None
    assert alone.log_probabilities is not None
    assert torch.equal(score.log_probabilities, alone.log_probabilities)


def test_one_class_and_constant_features_are_no_obstacle() -> None:
    x = torch.cat([torch.randn(30, 3, generator=torch.Generator().manual_seed(0)), torch.ones(30, 4)], dim=1)
    train = Features(x, torch.full((30,), 2), torch.arange(30))
    (score,) = LogisticRegressionProbe([1.0], 0.1, 0, 100).fit_predict(train, train, 4)
    assert score.top1 == 100
    assert score.log_probabilities is not None
    assert score.log_probabilities[:, 2].abs().max() == 0

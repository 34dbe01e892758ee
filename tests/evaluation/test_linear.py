import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from unlabeled.errors import UserError
from unlabeled.evaluation import linear
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.linear import LBFGS, SGDGrid, fit_logistic, logistic_loss, predict, split, standardise


def data(n: int, dim: int, classes: int, seed: int, noise: float = 2.0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (n,), generator=generator)
    x = centres[labels] + noise * torch.randn(n, dim, generator=generator)
    return Features(3 * x + 5, labels, torch.arange(n))


def sgd_grid(rates: list[float], weight_decay: float = 0.01) -> SGDGrid:
    return SGDGrid(rates, epochs=3, batch_size=32, weight_decay=weight_decay, momentum=0.9, holdout=0.1, seed=0)


def reference_loss(weight: Tensor, x: Tensor, labels: Tensor, c: float) -> Tensor:
    penalty = weight[:, :-1].square().sum() / (2 * c * len(x))
    return torch.nn.functional.cross_entropy(x @ weight.T, labels) + penalty


@pytest.mark.parametrize("c", [1e-3, 0.1, 10.0])
def test_lbfgs_reaches_the_loss_of_scikit_learn(c: float) -> None:
    train = data(400, 12, 5, 0)
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
    train = data(90, 7, 4, 0)
    (x,) = standardise(train.x)
    weight = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    expected = reference_loss(weight, x, train.labels, 0.3)
    expected.backward()  # type: ignore[no-untyped-call]
    loss, gradient = logistic_loss(weight.detach(), x, train.labels, 0.3)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-12)
    assert weight.grad is not None
    torch.testing.assert_close(gradient, weight.grad, rtol=1e-10, atol=1e-12)


def test_a_warm_start_ends_where_a_cold_one_does() -> None:
    train = data(300, 8, 4, 0)
    (x,) = standardise(train.x)
    start, _ = fit_logistic(x, train.labels, 0.01, 4, 1000)
    cold, long = fit_logistic(x, train.labels, 0.1, 4, 1000)
    warm, short = fit_logistic(x, train.labels, 0.1, 4, 1000, start)
    torch.testing.assert_close(warm, cold, rtol=0, atol=1e-5)
    assert short <= long


def test_features_are_standardised_with_the_statistics_of_train_and_constant_columns_stay_finite() -> None:
    train = torch.cat([data(50, 3, 2, 0).x, torch.full((50, 1), 1234.567), torch.zeros(50, 1)], dim=1)
    test = train[:7] + 1
    ours, other = standardise(train, test)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours[:, :3].mean(0), torch.zeros(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(ours[:, :3].square().mean(0), torch.ones(3).double(), rtol=1e-12, atol=0)
    assert ours[:, 3:5].abs().max() < 1e-3
    torch.testing.assert_close(other[:, 3:5], torch.ones(7, 2).double(), rtol=0, atol=1e-3)
    deviation = train[:, :3].double().std(0, correction=0)
    torch.testing.assert_close(other[:, :3] - ours[:7, :3], (1 / deviation).expand(7, 3), rtol=1e-5, atol=0)
    assert ours[:, 5].eq(1).all()


def test_the_holdout_is_stratified_disjoint_and_never_takes_the_last_image_of_a_class() -> None:
    labels = torch.tensor([0] * 100 + [1] * 20 + [2] * 3 + [3])[torch.randperm(124)]
    fit, held = split(labels, 0.1, seed=0)
    assert labels[held].bincount(minlength=4).tolist() == [10, 2, 1, 0]
    assert torch.cat([fit, held]).sort().values.tolist() == list(range(124))
    assert torch.equal(held, split(labels, 0.1, seed=0)[1])
    assert not torch.equal(held, split(labels, 0.1, seed=1)[1])


def test_c_is_the_best_on_the_holdout_by_scikit_learn_and_the_refit_sees_all_of_train() -> None:
    train, test, grid = data(300, 30, 4, 0, noise=4.0), data(200, 30, 4, 1, noise=4.0), [1e-4, 1e-2, 1.0]
    (score,) = LBFGS(grid, 0.2, seed=3, max_iter=1000).fit_predict(train, test, 4)
    fit, held = split(train.labels, 0.2, seed=3)
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


@pytest.mark.parametrize("probe", [LBFGS([0.01, 0.1, 1.0], 0.1, 0, 1000), sgd_grid([0.001, 0.01, 0.1])])
def test_test_labels_change_neither_the_choice_nor_the_predictions(probe: LBFGS | SGDGrid) -> None:
    train, test = data(200, 6, 3, 0), data(150, 6, 3, 1)
    relabelled = [Features(test.x, (test.labels + shift) % 3, test.ids) for shift in range(3)]
    scores = [probe.fit_predict(train, features, 3)[0] for features in relabelled]
    assert scores[0].chosen == scores[1].chosen == scores[2].chosen
    # fixed predictions are right for each image under exactly one of the three labellings
    assert sum(score.top1 for score in scores) == pytest.approx(100)
    assert scores[0].top1 > 60


@pytest.mark.parametrize("probe", [LBFGS([0.01, 0.1, 1.0], 0.1, 0, 1000), sgd_grid([0.001, 0.01, 0.1])])
def test_labels_may_have_gaps_and_the_random_state_is_untouched(probe: LBFGS | SGDGrid) -> None:
    train, test = data(200, 6, 3, 0), data(150, 6, 3, 1)
    (dense,) = probe.fit_predict(train, test, 3)
    names = torch.tensor([2, 5, 11])
    before = torch.get_rng_state()
    gaps = [Features(f.x, names[f.labels], f.ids) for f in (train, test)]
    (sparse,) = probe.fit_predict(gaps[0], gaps[1], 13)
    assert torch.equal(torch.get_rng_state(), before)
    assert sparse.top1 == dense.top1
    assert sparse.chosen == dense.chosen
    assert sparse.notes[-1] == "10 of 13 classes have no train image and are never predicted."


def test_a_class_that_only_test_has_counts_as_wrong() -> None:
    train, test = data(200, 6, 3, 0, noise=0.1), data(100, 6, 3, 1, noise=0.1)
    labels = torch.where(torch.arange(100) < 30, 3, test.labels)
    (score,) = LBFGS([0.1], 0.1, 0, 1000).fit_predict(train, Features(test.x, labels, test.ids), 4)
    assert score.top1 == 70
    assert score.chosen["chosen_on"] == "nothing"


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_all_heads_equal_separate_runs_of_torch_sgd(weight_decay: float) -> None:
    train, rates = data(150, 6, 4, 0), [0.001, 0.03, 1.0]
    (x,) = standardise(train.x)
    heads = sgd_grid(rates, weight_decay).fit(x, train.labels, 4, rates)
    total = 3 * math.ceil(150 / 32)
    for rate, head in zip(rates, heads, strict=True):
        model = torch.nn.Linear(6, 4, dtype=torch.float64)
        torch.nn.init.zeros_(model.weight)
        torch.nn.init.zeros_(model.bias)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=weight_decay)
        generator = torch.Generator().manual_seed(0)
        batches = [rows for _ in range(3) for rows in torch.split(torch.randperm(150, generator=generator), 32)]
        for step, rows in enumerate(batches):
            optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / total)) / 2
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[rows, :-1]), train.labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        torch.testing.assert_close(head[:, :-1], model.weight.detach(), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(head[:, -1], model.bias.detach(), rtol=1e-9, atol=1e-11)


def test_the_learning_rate_is_the_best_on_the_holdout() -> None:
    train, test, rates = data(200, 6, 3, 0), data(150, 6, 3, 1), [1e-6, 0.01, 0.1]
    probe = sgd_grid(rates)
    (score,) = probe.fit_predict(train, test, 3)
    fit, held = split(train.labels, 0.1, 0)
    part, rest = standardise(train.x[fit], train.x[held])
    right = [int((predict(h, rest) == train.labels[held]).sum()) for h in probe.fit(part, train.labels[fit], 3, rates)]
    assert list(score.chosen["holdout_top1"].values()) == pytest.approx([100 * n / len(held) for n in right])
    assert score.chosen["learning_rate"] == rates[right.index(max(right))]
    assert score.protocol == "linear/cached-sgd-grid-v1"


def test_large_features_are_solved_in_float32_to_the_same_score(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = data(400, 10, 4, 0), data(400, 10, 4, 1)
    probe = LBFGS([0.01, 0.1], 0.1, 0, 1000)
    (double,) = probe.fit_predict(train, test, 4)
    monkeypatch.setattr(linear, "FLOAT64_UP_TO", 3900)  # the 90 % that C is chosen on stay below, all of train is above
    (single,) = probe.fit_predict(train, test, 4)
    assert (double.chosen["dtype"], single.chosen["dtype"]) == ("float64", "float32")
    assert abs(double.top1 - single.top1) <= 0.5


def test_a_best_value_at_the_edge_and_an_unfinished_fit_are_noted() -> None:
    train, test = data(300, 6, 3, 0), data(100, 6, 3, 1)
    edge = LBFGS([1e-3, 1e-2], 0.1, 0, 1000).fit_predict(train, test, 3)[0]  # of two values, both are edges
    assert edge.notes == [f"The best C, {edge.chosen['C']:g}, is at an edge of 0.001 to 0.01: widen probe.linear.c."]
    tied = linear._best([1.0, 2.0, 3.0], [50.0, 50.0, 40.0], "C", "c")
    assert tied == (0, [])  # the interior is as good: nothing to widen
    short = LBFGS([0.1], 0.1, 0, max_iter=2).fit_predict(train, test, 3)[0]
    assert short.notes == ["L-BFGS stopped at max_iter = 2, before the optimum: raise probe.linear.max_iter."]


def test_impossible_settings_name_the_key() -> None:
    with pytest.raises(UserError, match=r"probe\.linear\.c is \[-1\.0\]"):
        LBFGS([-1.0], 0.1, 0, 10)
    with pytest.raises(UserError, match=r"probe\.linear\.holdout is 0\.9; allowed: above 0, at most 0\.5"):
        LBFGS([1.0], 0.9, 0, 10)
    with pytest.raises(UserError, match=r"probe\.linear_sgd\.learning_rates is \[\]"):
        sgd_grid([])
    single = Features(torch.randn(3, 2), torch.arange(3), torch.arange(3))
    with pytest.raises(UserError, match="no class has two labelled train images"):
        LBFGS([0.1, 1.0], 0.1, 0, 10).fit_predict(single, single, 3)

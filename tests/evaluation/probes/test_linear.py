import pytest
import torch

from tests.clusters import clusters, sgd_grid
from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.probes.linear import split_holdout, standardise
from unlabeled.evaluation.probes.logistic import LogisticRegressionProbe
from unlabeled.evaluation.probes.sgd_grid import SGDGrid


def test_features_are_standardised_with_the_statistics_of_train_and_constant_columns_stay_finite() -> None:
    train = torch.cat([clusters(50, 3, 2, 0).x, torch.full((50, 1), 1234.567), torch.zeros(50, 1)], dim=1)
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
    fit, held = split_holdout(labels, 0.1, seed=0)
    assert labels[held].bincount(minlength=4).tolist() == [10, 2, 1, 0]
    assert torch.cat([fit, held]).sort().values.tolist() == list(range(124))
    assert torch.equal(held, split_holdout(labels, 0.1, seed=0)[1])
    assert not torch.equal(held, split_holdout(labels, 0.1, seed=1)[1])


@pytest.mark.parametrize(
    "probe", [LogisticRegressionProbe([0.01, 0.1, 1.0], 0.1, 0, 1000), sgd_grid([0.001, 0.01, 0.1])]
)
def test_test_labels_change_neither_the_choice_nor_the_predictions(probe: LogisticRegressionProbe | SGDGrid) -> None:
    train, test = clusters(200, 6, 3, 0), clusters(150, 6, 3, 1)
    relabelled = [Features(test.x, (test.labels + shift) % 3, test.ids) for shift in range(3)]
    scores = [probe.fit_predict(train, features, 3)[0] for features in relabelled]
    assert scores[0].chosen == scores[1].chosen == scores[2].chosen
    # fixed predictions are right for each image under exactly one of the three labellings
    assert sum(score.top1 for score in scores) == pytest.approx(100)
    assert scores[0].top1 > 60


@pytest.mark.parametrize(
    "probe", [LogisticRegressionProbe([0.01, 0.1, 1.0], 0.1, 0, 1000), sgd_grid([0.001, 0.01, 0.1])]
)
def test_labels_may_have_gaps_and_the_random_state_is_untouched(probe: LogisticRegressionProbe | SGDGrid) -> None:
    train, test = clusters(200, 6, 3, 0), clusters(150, 6, 3, 1)
    (dense,) = probe.fit_predict(train, test, 3)
    names = torch.tensor([2, 5, 11])
    before = torch.get_rng_state()
    gaps = [Features(f.x, names[f.labels], f.ids) for f in (train, test)]
    (sparse,) = probe.fit_predict(gaps[0], gaps[1], 13)
    assert torch.equal(torch.get_rng_state(), before)
    assert sparse.top1 == dense.top1
    assert sparse.chosen == dense.chosen
    assert sparse.predictions is not None
    assert dense.predictions is not None
    assert torch.equal(sparse.predictions, names[dense.predictions])
    assert sparse.log_probabilities is not None
    assert dense.log_probabilities is not None
    assert sparse.log_probabilities.dtype == torch.float32
    assert torch.equal(sparse.log_probabilities[:, names], dense.log_probabilities)
    assert torch.equal(sparse.log_probabilities.argmax(dim=1), sparse.predictions)
    assert sparse.log_probabilities.isfinite().sum() == 3 * 150  # minus infinity for the other 10 classes
    torch.testing.assert_close(sparse.log_probabilities.exp().sum(dim=1), torch.ones(150))
    assert sparse.notes[-1] == "10 of 13 classes have no train image and are never predicted."


def test_impossible_settings_name_the_key() -> None:
    with pytest.raises(UserError, match=r"probe\.linear\.c is \[-1\.0\]"):
        LogisticRegressionProbe([-1.0], 0.1, 0, 10)
    with pytest.raises(UserError, match=r"probe\.linear\.holdout is 0\.9; allowed: above 0, at most 0\.5"):
        LogisticRegressionProbe([1.0], 0.9, 0, 10)
    with pytest.raises(UserError, match=r"probe\.linear_sgd\.learning_rates is \[\]"):
        sgd_grid([])
    with pytest.raises(UserError, match=r"weight_decays is \[-0\.1\]; it needs one or more numbers from 0"):
        sgd_grid([0.1], (-0.1,))
    with pytest.raises(UserError, match=r"probe\.linear_sgd\.features is \[\]"):
        sgd_grid([0.1], kinds=())
    single = Features(torch.randn(3, 2), torch.arange(3), torch.arange(3))
    with pytest.raises(UserError, match="no class has two labelled train images"):
        LogisticRegressionProbe([0.1, 1.0], 0.1, 0, 10).fit_predict(single, single, 3)

"""Calibration and selective prediction against scikit-learn, torchmetrics, scipy and literal loops."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from unlabeled.evaluation.uncertainty.calibration import (
    brier,
    calibration_metrics,
    ece,
    fit_temperature,
    nll,
    scale_by_temperature,
)
from unlabeled.evaluation.uncertainty.selective import aurc, misclassification_metrics, risk_coverage, selective_metrics


def predictions(n: int, classes: int, seed: int, sharpness: float = 2.0) -> tuple[Tensor, Tensor]:
    """Log probabilities that are right about half of the time, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    logits[torch.arange(n), labels] += 1.0
    return (sharpness * logits).log_softmax(dim=1), labels


def doubts(n: int, seed: int, ties: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    score = torch.rand(n, generator=generator, dtype=torch.float64)
    wrong = torch.rand(n, generator=generator, dtype=torch.float64) < 0.6 * score
    return wrong, (5 * score).round() if ties else score


@pytest.mark.parametrize("classes", [2, 10])
def test_nll_and_brier_are_those_of_scikit_learn(classes: int) -> None:
    log_p, labels = predictions(300, classes, 0)
    p, every = log_p.exp().numpy(), list(range(classes))
    assert nll(log_p, labels) == pytest.approx(log_loss(labels, p, labels=every), rel=1e-9)
    theirs = [brier_score_loss(labels == each, p[:, each]) for each in every]
    assert brier(log_p, labels) == pytest.approx(sum(theirs), rel=1e-9)


@pytest.mark.parametrize("sharpness", [0.3, 2.0, 9.0])
def test_ece_is_that_of_torchmetrics_and_of_a_loop_over_the_bins(sharpness: float) -> None:
    log_p, labels = predictions(500, 6, 1, sharpness)
    theirs = multiclass_calibration_error(log_p.exp(), labels, num_classes=6, n_bins=15, norm="l1")
    assert ece(log_p, labels) == pytest.approx(float(theirs), abs=1e-6)
    total = 0.0
    for bin in range(15):
        inside = [row for row in log_p.exp() if bin / 15 < float(row.max()) <= (bin + 1) / 15]
        right = sum(
            int(row.argmax()) == int(label)
            for row, label in zip(log_p.exp(), labels, strict=True)
            if bin / 15 < float(row.max()) <= (bin + 1) / 15
        )
        total += abs(right - sum(float(row.max()) for row in inside))
    assert ece(log_p, labels) == pytest.approx(total / 500, rel=1e-9)


def test_bins_of_equal_mass_hold_equally_many_images_and_see_what_wide_bins_hide() -> None:
    log_p, labels = predictions(97, 4, 2)
    rows = sorted(
        (float(row.exp().max()), int(row.argmax()) == int(label)) for row, label in zip(log_p, labels, strict=True)
    )
    bins = [[pair for place, pair in enumerate(rows) if place * 10 // 97 == bin] for bin in range(10)]
    assert {len(bin) for bin in bins} == {9, 10}
    expected = sum(abs(sum(right for _, right in bin) - sum(p for p, _ in bin)) for bin in bins) / 97
    assert ece(log_p, labels, bins=10, equal_mass=True) == pytest.approx(expected, rel=1e-9)
    # confidences 0.95 (never right) and 0.99 (always right): one wide bin, where the two errors cancel in part
    p = torch.tensor([[0.95, 0.05]] * 2 + [[0.99, 0.01]] * 48, dtype=torch.float64)
    labels = torch.tensor([1] * 2 + [0] * 48)
    assert ece(p.log(), labels) == pytest.approx(abs(48 - 2 * 0.95 - 48 * 0.99) / 50)
    assert ece(p.log(), labels, bins=25, equal_mass=True) == pytest.approx((2 * 0.95 + 48 * 0.01) / 50)


def test_fewer_images_than_bins_and_ones_that_are_certain_are_counted() -> None:
    log_p = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]).log()
    labels = torch.tensor([0, 1, 1])
    assert ece(log_p, labels) == ece(log_p, labels, equal_mass=True) == pytest.approx(1 / 3)
    assert brier(log_p, labels) == pytest.approx(2 / 3)
    assert nll(log_p, labels) == math.inf
    assert "nll" not in calibration_metrics(log_p, labels)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 8.0])
def test_the_temperature_minimises_the_nll_as_scipys_search_does(sharpness: float) -> None:
    log_p, labels = predictions(400, 5, 3, sharpness)
    found = fit_temperature(log_p, labels)
    best = minimize_scalar(lambda t: nll(scale_by_temperature(log_p, t), labels), bounds=(0.02, 50), method="bounded")
    assert nll(scale_by_temperature(log_p, found), labels) <= best.fun + 1e-9
    assert found == pytest.approx(best.x, rel=1e-3)


def test_a_temperature_undoes_a_known_one_and_stays_in_its_bounds() -> None:
    log_p, labels = predictions(400, 5, 4)
    calm = scale_by_temperature(log_p, fit_temperature(log_p, labels))
    assert fit_temperature(calm, labels) == pytest.approx(1, abs=1e-6)
    assert fit_temperature(scale_by_temperature(calm, 0.2), labels) == pytest.approx(5, rel=1e-6)
    certain = torch.eye(3, dtype=torch.float64).mul(4).log_softmax(dim=1)
    assert fit_temperature(certain, torch.arange(3)) == 1  # nothing is wrong: the least nll would be at 0
    assert fit_temperature(certain, torch.tensor([1, 2, 0])) == pytest.approx(100, rel=1e-3)  # all is
    assert fit_temperature(torch.full((3, 3), -math.log(3)), torch.arange(3)) == 1  # knows nothing


def test_a_class_that_cannot_be_changes_no_number() -> None:
    log_p, labels = predictions(200, 4, 5)
    wider = torch.cat([log_p, log_p.new_full((200, 3), -math.inf)], dim=1)
    ours, theirs = (calibration_metrics(each, labels, each, labels) for each in (wider, log_p))
    assert ours == pytest.approx(theirs, rel=1e-12)
    assert bool(scale_by_temperature(wider, 2.0)[:, 4:].eq(-math.inf).all())


def test_the_metrics_after_scaling_use_the_temperature_of_the_held_out_images_alone() -> None:
    (log_p, labels), (held, held_labels) = predictions(300, 5, 6, 6.0), predictions(200, 5, 7, 6.0)
    found = calibration_metrics(log_p, labels, held, held_labels)
    t = fit_temperature(held, held_labels)
    assert t != pytest.approx(fit_temperature(log_p, labels), rel=1e-3)
    assert found["temperature"] == t
    assert found["ece_after_temperature"] == ece(scale_by_temperature(log_p, t), labels) < found["ece"]
    assert found["nll_after_temperature"] == nll(scale_by_temperature(log_p, t), labels) < found["nll"]
    assert set(calibration_metrics(log_p, labels)) == {"nll", "brier", "ece", "ece_equal_mass"}


def test_the_risk_coverage_curve_is_a_loop_over_the_most_certain() -> None:
    wrong, doubt = doubts(80, 0)
    coverage, risk = risk_coverage(wrong, doubt)
    order = sorted(range(80), key=lambda row: float(doubt[row]))
    expected = [sum(bool(wrong[row]) for row in order[:count]) / count for count in range(1, 81)]
    torch.testing.assert_close(risk, torch.tensor(expected, dtype=torch.float64))
    assert coverage.tolist() == [count / 80 for count in range(1, 81)]
    assert aurc(wrong, doubt) == pytest.approx(sum(expected) / 80)


def test_among_equally_uncertain_images_the_order_does_not_matter_and_is_the_mean_of_all() -> None:
    wrong, doubt = doubts(60, 1, ties=True)
    turned = torch.arange(59, -1, -1)
    assert aurc(wrong[turned], doubt[turned]) == pytest.approx(aurc(wrong, doubt), rel=1e-12)
    generator = torch.Generator().manual_seed(0)
    noise = [1e-6 * torch.rand(60, generator=generator, dtype=torch.float64) for _ in range(2000)]
    mean = sum(aurc(wrong, doubt + each) for each in noise) / 2000
    assert aurc(wrong, doubt) == pytest.approx(mean, abs=2e-3)


def test_the_best_order_comes_near_the_papers_formula() -> None:
    wrong, _ = doubts(4000, 2)
    r = float(wrong.double().mean())
    assert aurc(wrong, wrong.double()) == pytest.approx(r + (1 - r) * math.log(1 - r), abs=1e-3)  # 1805.08206


@pytest.mark.parametrize("ties", [False, True])
def test_finding_errors_is_scored_by_counting_pairs_and_as_scikit_learn_does(ties: bool) -> None:
    wrong, doubt = doubts(200, 3, ties)
    bad, good = doubt[wrong], doubt[~wrong]
    pairs = (bad[:, None] > good).double() + 0.5 * (bad[:, None] == good).double()
    found = misclassification_metrics(wrong, doubt)
    assert found["auroc"] == pytest.approx(float(pairs.mean())) == pytest.approx(roc_auc_score(wrong, doubt))
    assert found["aupr"] == pytest.approx(average_precision_score(wrong, doubt))
    enough = max(float(cut) for cut in doubt if float((bad >= cut).double().mean()) >= 0.95)
    assert found["fpr95"] == pytest.approx(float((good >= enough).double().mean()))


def test_where_nothing_is_wrong_there_is_nothing_to_find_and_no_number_of_it() -> None:
    found = selective_metrics(torch.zeros(9, dtype=torch.bool), {"entropy": torch.rand(9)})
    assert found == {"aurc_best_possible": 0, "aurc_entropy": 0}
    wrong, doubt = doubts(50, 4)
    found = selective_metrics(wrong, {"entropy": doubt})
    assert found == {
        "aurc_best_possible": aurc(wrong, wrong.double()),
        "aurc_entropy": aurc(wrong, doubt),
        "auroc_entropy": misclassification_metrics(wrong, doubt)["auroc"],
    }

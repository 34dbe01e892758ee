"""The supervised baseline against cross-entropy in a loop; images without a label, label smoothing."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.objectives.two_views import (
    AT,
    BatchNormBackbone,
    assert_bf16_within_a_hundredth,
    assert_same_loss_and_gradients,
    draw,
    make_batch,
)
from unlabeled.errors import UserError
from unlabeled.objective import Plan
from unlabeled.objectives.parts.labels import accuracy_above_chance
from unlabeled.objectives.supervised import Supervised, classification_loss

LABELLED = Plan(8, 1, 100, (2,), 5)


def literal_classification_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """−Σ_c q_c ln p_c with q = (1 − ε)·1[c = y] + ε/C (arXiv:1512.00567, section 7), mean over labelled rows."""
    total, labelled, classes = logits.new_zeros(()), 0, logits.shape[1]
    for row, label in zip(logits, labels.tolist(), strict=True):
        if label < 0:
            continue
        labelled += 1
        partition = sum(value.exp() for value in row)
        for c in range(classes):
            wanted = (1 - label_smoothing) * (c == label) + label_smoothing / classes
            total = total - wanted * (row[c].exp() / partition).log()
    return total / max(labelled, 1)


def make_objective(**changed: object) -> Supervised:
    torch.manual_seed(0)
    given: dict[str, object] = {"classes": 5, "label_smoothing": 0.1, **changed}
    return Supervised(BatchNormBackbone(), **given).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("labels", [[0, 1, 2, 2], [3, -1, 0, -1]])
def test_the_loss_and_its_gradients_equal_a_loop(labels: list[int], smoothing: float) -> None:
    given = [draw(4, 5).requires_grad_()]
    assert_same_loss_and_gradients(
        classification_loss, literal_classification_loss, given, torch.tensor(labels), smoothing
    )


def test_equal_logits_give_ln_c_a_certain_right_one_0_and_no_label_0() -> None:
    labels = torch.tensor([0, 1, 2])
    assert float(classification_loss(torch.zeros(3, 7), labels, 0.3)) == pytest.approx(math.log(7))
    assert float(classification_loss(100 * torch.eye(3), labels)) == pytest.approx(0, abs=1e-6)
    logits = torch.randn(3, 7, requires_grad=True)
    loss = classification_loss(logits, torch.full((3,), -1))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()
    assert make_objective().collapsed_at(LABELLED) == pytest.approx(math.log(5))


def test_in_bfloat16_the_loss_is_float32_and_within_one_per_cent() -> None:
    assert_bf16_within_a_hundredth(classification_loss, [draw(64, 10)], torch.arange(64) % 10, 0.1)


def test_the_objective_classifies_its_one_view_and_counts_what_is_right() -> None:
    objective = make_objective()
    batch = make_batch(views=1)._replace(labels=torch.tensor([0, 1, 2, 3, 4, 0, -1, -1]))
    logits = objective.classifier(objective.backbone(batch.views[0]))
    output = objective(batch, AT)
    torch.testing.assert_close(output.loss, literal_classification_loss(logits, batch.labels, 0.1), rtol=1e-12, atol=0)
    right = sum(int(row.argmax()) == label for row, label in zip(logits, batch.labels.tolist(), strict=True))
    assert float(output.metrics["train_top1"]) == pytest.approx(right / 6)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_it_says_that_it_uses_labels_and_refuses_data_without_them_or_with_more_classes() -> None:
    objective = make_objective()
    assert objective.uses_labels
    objective.check(LABELLED)
    with pytest.raises(UserError, match="it trains with labels, and the training images have none"):
        objective.check(LABELLED._replace(classes=None))
    with pytest.raises(UserError, match=r"^objective\.classes=5: the training images have 6 classes: give objective"):
        objective.check(LABELLED._replace(classes=6))
    with pytest.raises(UserError, match="the objective takes exactly 1"):
        objective.check(LABELLED._replace(views=(2, 2)))


def test_a_label_beyond_the_classes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^classification_loss: a label is 7: with 7 classes they are below 7$"):
        classification_loss(torch.zeros(3, 7), torch.tensor([0, 7, 1]))


def test_labels_of_another_type_and_all_of_the_smoothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^classification_loss: labels are float32: they must be int64$"):
        classification_loss(torch.zeros(3, 7), torch.zeros(3))
    with pytest.raises(ValueError, match=r"^classification_loss: label_smoothing=1 must be below 1"):
        classification_loss(torch.zeros(3, 7), torch.zeros(3, dtype=torch.long), 1)


@pytest.mark.parametrize(("classes", "images"), [(10, 64), (10, 256), (100, 1024)])
def test_guesses_exceed_the_bound_on_accuracy_in_one_batch_of_forty(classes: int, images: int) -> None:
    right = np.random.default_rng(0).binomial(images, 1 / classes, 100_000) / images
    assert 0.01 < float((right > accuracy_above_chance(classes, images)).mean()) < 0.045
    assert float((right > 1 / classes).mean()) > 0.4  # which would not tell them

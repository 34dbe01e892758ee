"""SuNCEt against a loop of its code; BatchNorm that keeps its statistics; and PAWS's tensors in their places."""

import math

import pytest
import torch
from torch import Tensor

from tests.objectives.two_views import (
    AT,
    BatchNormBackbone,
    assert_bf16_within_a_hundredth,
    assert_same_loss_and_gradients,
    cosine,
    draw,
    make_batch,
)
from unlabeled.data.support import ClassBalanced
from unlabeled.errors import UserError
from unlabeled.objective import Batch, Plan, Support
from unlabeled.objectives.paws import PAWS
from unlabeled.objectives.suncet import SuNCEt, suncet_loss

LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3])  # 2 and 3 have nobody of their class
SUPPORT = ClassBalanced(None, 0.5, None, 0, 3, 2, 2)


def literal_loss(z: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """−ln Σ_{j of i's class, j ≠ i} exp(cos/τ) / Σ_{j ≠ i} exp(cos/τ), mean over rows (losses.py)."""
    total = z.new_zeros(())
    for i in range(len(z)):
        similar = {j: (cosine(z[i], z[j]) / temperature).exp() for j in range(len(z)) if j != i}
        right = [value for j, value in similar.items() if labels[j] == labels[i]]
        if right:
            total = total - (torch.stack(right).sum() / torch.stack([*similar.values()]).sum()).log()
    return total / len(z)


@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_the_loss_and_its_gradients_equal_a_loop(temperature: float) -> None:
    given = [draw(7, 4).requires_grad_()]
    assert_same_loss_and_gradients(suncet_loss, literal_loss, given, LABELS, temperature)
    assert_bf16_within_a_hundredth(suncet_loss, [draw(64, 8)], torch.arange(64) % 5, temperature)


def test_equal_embeddings_have_the_loss_that_collapsed_at_says() -> None:
    labels = torch.arange(12) % 3
    expected = math.log(11 / 3)
    assert float(suncet_loss(torch.ones(12, 4), labels, 0.1)) == pytest.approx(expected, abs=1e-6)
    assert make_objective().collapsed_at(Plan(8, 1, 100, (2, 2), 5)) == pytest.approx(expected)
    assert float(suncet_loss(torch.eye(3).repeat(4, 1), labels, 0.01)) == pytest.approx(0, abs=1e-6)


def make_objective() -> SuNCEt:
    torch.manual_seed(0)
    return SuNCEt(BatchNormBackbone(), [7], 8, True, 0.2, SUPPORT).double()


def with_support() -> Batch:
    rows = torch.arange(6)
    views = tuple(draw(6, 3, 2, 2, seed=70 + number) for number in range(2))
    classes = torch.tensor([4, 0, 2])[rows % 3]
    images = torch.zeros(6, 3, 2, 2, dtype=torch.uint8)
    return make_batch()._replace(support=Support(images, rows, rows % 3, views, labels=classes))


def test_labelled_views_alone_make_the_loss_and_batchnorm_keeps_its_statistics() -> None:
    objective, batch = make_objective().train(), with_support()
    assert batch.support is not None
    before = {name: value.clone() for name, value in objective.named_buffers()}
    by_hand = make_objective().eval()
    labels = torch.tensor([4, 0, 2, 4, 0, 2]).repeat(2)
    embeddings = by_hand.predictor(by_hand.projector(by_hand.backbone(torch.cat(batch.support.views))))
    output = objective(batch, AT)
    torch.testing.assert_close(output.loss, literal_loss(embeddings, labels, 0.2), rtol=1e-12, atol=0)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())
    assert not output.features.requires_grad
    assert [name for name, value in objective.named_buffers() if not torch.equal(value, before[name])] == []
    assert 1 / 12 < float(output.metrics["own_class"]) < 1


def test_its_tensors_are_those_of_paws() -> None:
    paws = PAWS(BatchNormBackbone(), [7], 8, True, 0.1, 0.1, 0.25, SUPPORT)
    make_objective().load_state_dict(paws.state_dict())


def test_what_cannot_work_is_refused() -> None:
    objective = make_objective()
    objective.check(Plan(8, 1, 100, (2, 2), 5))
    assert objective.from_another({"x": torch.ones(1)}) == {"x": torch.ones(1)}
    with pytest.raises(UserError, match="the training images have none"):
        objective.check(Plan(8, 1, 100, (2, 2)))
    with pytest.raises(UserError, match="needs labelled images beside each batch"):
        objective(make_batch(), AT)
    alone = ClassBalanced(None, 0.5, None, 0, 3, 1, 1)
    with pytest.raises(UserError, match=r"^objective\.support\.images_per_class=1: an image needs another"):
        SuNCEt(BatchNormBackbone(), [7], 8, True, 0.2, alone).check(Plan(8, 1, 100, (2, 2), 5))

"""FixMatch against a loop of its paper; one forward, an average that follows, and labels that come from the support."""

import copy
import math

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
    seen_by,
)
from unlabeled.data.support import ClassBalanced
from unlabeled.errors import UserError
from unlabeled.objective import Batch, Plan, Support
from unlabeled.objectives.fixmatch import FixMatch, fixmatch_loss
from unlabeled.optimizers.schedules import warmup_seven_sixteenths

PLAN = Plan(8, 1, 100, (2, 2), 5)


def literal_loss(
    labelled: Tensor, labels: Tensor, weak: Tensor, strong: Tensor, threshold: float, weight: float
) -> Tensor:
    """Equations 3 and 4, one image at a time; the second is divided by all unlabelled images."""

    def cost(logits: Tensor, label: int) -> Tensor:
        return -(logits[label].exp() / logits.exp().sum()).log()

    supervised = torch.stack([cost(row, int(label)) for row, label in zip(labelled, labels, strict=True)]).sum()
    unsupervised = 0 * strong.sum()
    for w, s in zip(weak.detach(), strong, strict=True):
        q = [float(value.exp() / sum(each.exp() for each in w)) for value in w]
        if max(q) >= threshold:
            unsupervised = unsupervised + cost(s, q.index(max(q)))
    return supervised / len(labels) + weight * unsupervised / len(weak)


@pytest.mark.parametrize(("threshold", "weight"), [(0.95, 1.0), (0.5, 0.3), (0.0, 2.0), (1.5, 1.0)])
def test_the_loss_and_its_gradients_equal_a_loop(threshold: float, weight: float) -> None:
    labelled, weak, strong = draw(4, 5), 3 * draw(9, 5, seed=1), draw(9, 5, seed=2)
    labels = torch.tensor([0, 1, 2, 2])

    def ours(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return fixmatch_loss(a, labels, b, c, threshold, weight)

    def literal(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return literal_loss(a, labels, b, c, threshold, weight)

    given = [labelled.requires_grad_(), weak.requires_grad_(), strong.requires_grad_()]
    counted = (torch.softmax(weak, 1).amax(1) >= threshold).sum()
    assert 0 < int(counted) < 9 or threshold in (0.0, 1.5)
    assert_same_loss_and_gradients(ours, literal, given)


def test_equal_logits_give_ln_c_and_sure_right_ones_0() -> None:
    equal, labels = torch.zeros(4, 7), torch.arange(4)
    assert float(fixmatch_loss(equal, labels, equal, equal, 0.95, 1.0)) == pytest.approx(math.log(7))
    assert float(fixmatch_loss(equal, labels, equal, equal, 0.1, 1.0)) == pytest.approx(2 * math.log(7))
    sure = 100 * torch.eye(4, 7)
    assert float(fixmatch_loss(sure, labels, sure, sure, 0.95, 1.0)) == pytest.approx(0, abs=1e-6)
    assert make_objective().collapsed_at(PLAN) == pytest.approx(math.log(5))


def test_in_bfloat16_the_loss_is_float32_and_within_one_per_cent() -> None:
    labels = torch.arange(64) % 10

    def loss(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return fixmatch_loss(a, labels, b, c, 0.5, 1.0)

    assert_bf16_within_a_hundredth(loss, [draw(64, 10), 5 * draw(64, 10, seed=1), draw(64, 10, seed=2)])


def support_settings(**changed: object) -> ClassBalanced:
    given = {"labels_file": None, "fraction": 0.5, "per_class": None, "seed": 0, "classes_per_batch": 3}
    given |= {"images_per_class": 2, "views": 1, "repeats": True, **changed}  # type: ignore[dict-item]
    return ClassBalanced(**given)  # type: ignore[arg-type]


def make_objective(**changed: object) -> FixMatch:
    torch.manual_seed(0)
    given: dict[str, object] = {"classes": 5, "threshold": 0.3, "unlabelled_weight": 1.0, "momentum": 0.9, **changed}
    return FixMatch(BatchNormBackbone(), support=support_settings(), **given).double()  # type: ignore[arg-type]


def with_support(seed: int = 1) -> Batch:
    """Eight images with two views, and six labelled ones of three classes of five."""
    batch, rows = make_batch(seed=seed), torch.arange(6)
    view = draw(6, 3, 2, 2, seed=50 + seed)
    classes = torch.tensor([4, 0, 2])[rows % 3]
    images = torch.zeros(6, 3, 2, 2, dtype=torch.uint8)
    return batch._replace(support=Support(images, rows, rows % 3, (view,), labels=classes))


def test_one_forward_has_labelled_weak_and_strong_images_and_the_data_sets_class_numbers() -> None:
    objective, by_hand, batch = make_objective(), make_objective(), with_support()
    assert batch.support is not None
    seen = seen_by(objective.backbone)
    output = objective(batch, AT)
    assert seen == [6 + 8 + 8]
    features = by_hand.backbone(torch.cat([batch.support.views[0], *batch.views]))
    labelled, weak, strong = by_hand.classifier(features).split([6, 8, 8])
    labels = torch.tensor([4, 0, 2, 4, 0, 2])
    torch.testing.assert_close(output.loss, literal_loss(labelled, labels, weak, strong, 0.3, 1.0), rtol=1e-12, atol=0)
    torch.testing.assert_close(output.features, features[6:14])
    assert not output.features.requires_grad
    p = weak.softmax(1)
    assert float(output.metrics["confident"]) == pytest.approx(float((p.amax(1) >= 0.3).double().mean()))
    assert float(output.metrics["labelled_top1"]) == pytest.approx(
        float((labelled.argmax(1) == labels).double().mean())
    )
    entropy = -float((p.mean(0) * p.mean(0).log()).sum().detach())
    assert float(output.metrics["effective_classes"]) == pytest.approx(math.exp(entropy))


def test_with_the_classes_of_the_average_it_looks_at_the_weak_views_alone_with_statistics_of_its_own() -> None:
    objective, by_hand, batch = (*(make_objective(pseudo_labels="average") for _ in range(2)), with_support())
    assert batch.support is not None
    with torch.no_grad():
        for each in (objective, by_hand):  # an average that is not the network itself
            each.ema_classifier.weight.mul_(3)
    seen, seen_by_average = seen_by(objective.backbone), seen_by(objective.ema_backbone)
    output = objective(batch, AT)
    assert (seen, seen_by_average) == ([6 + 8], [8])
    features = by_hand.ema_backbone(batch.views[0])
    weak = by_hand.ema_classifier(features)
    given = by_hand.classifier(by_hand.backbone(torch.cat([batch.support.views[0], batch.views[1]])))
    labelled, strong = given.split([6, 8])
    labels = torch.tensor([4, 0, 2, 4, 0, 2])
    torch.testing.assert_close(output.loss, literal_loss(labelled, labels, weak, strong, 0.3, 1.0), rtol=1e-12, atol=0)
    torch.testing.assert_close(output.features, features)
    assert not output.features.requires_grad
    output.loss.backward()
    assert all(each.grad is None for each in objective.ema_backbone.parameters())
    statistics = copy.deepcopy([*objective.ema_backbone.buffers()])
    objective.after_step(AT)
    assert all(map(torch.equal, statistics, objective.ema_backbone.buffers()))
    assert not all(map(torch.equal, statistics, objective.backbone.buffers()))
    with pytest.raises(UserError, match=r"^objective\.pseudo_labels=teacher is neither trained nor average$"):
        make_objective(pseudo_labels="teacher")


@pytest.mark.parametrize("pseudo_labels", ["trained", "average"])
def test_labels_of_the_batch_are_never_read(pseudo_labels: str) -> None:
    batch = with_support()
    losses = [
        make_objective(pseudo_labels=pseudo_labels)(batch._replace(labels=torch.full((8,), label)), AT).loss
        for label in (-1, 3)
    ]
    assert torch.equal(*losses)


def test_the_average_follows_after_the_step_with_the_new_weights_and_has_the_statistics_of_the_network() -> None:
    objective, before = make_objective(), make_objective()
    optimizer = torch.optim.SGD([each for each in objective.parameters() if each.requires_grad], lr=0.1)
    objective(with_support(), AT).loss.backward()
    assert all(
        each.grad is None for each in (*objective.ema_backbone.parameters(), *objective.ema_classifier.parameters())
    )
    optimizer.step()
    assert torch.equal(objective.ema_classifier.weight, before.classifier.weight)  # not yet
    objective.after_step(AT)
    for average, now, then in (
        (objective.ema_backbone, objective.backbone, before.backbone),
        (objective.ema_classifier, objective.classifier, before.classifier),
    ):
        for mean, new, old in zip(average.parameters(), now.parameters(), then.parameters(), strict=True):
            torch.testing.assert_close(mean, 0.9 * old + 0.1 * new, rtol=0, atol=1e-14)
        assert all(map(torch.equal, average.buffers(), now.buffers()))
    assert not torch.equal(objective.classifier.weight, before.classifier.weight)
    statistics = copy.deepcopy(dict(objective.ema_backbone.named_buffers()))
    assert any(
        not torch.equal(value, dict(before.backbone.named_buffers())[name]) for name, value in statistics.items()
    )
    assert objective.product() is objective.ema_backbone
    assert objective.own_classifier() is objective.ema_classifier


def test_what_cannot_work_is_refused() -> None:
    objective = make_objective()
    objective.check(PLAN)
    assert objective.uses_labels
    with pytest.raises(UserError, match="the training images have none"):
        objective.check(PLAN._replace(classes=None))
    with pytest.raises(UserError, match=r"^objective\.classes=5: the training images have 6 classes: give objective"):
        objective.check(PLAN._replace(classes=6))
    with pytest.raises(UserError, match=r"^views: the weak and the strong one share a forward: give one size, not"):
        objective.check(PLAN._replace(views=(2, 4)))
    with pytest.raises(UserError, match=r"^objective\.support\.views=2: labelled images get one view, the weak one$"):
        FixMatch(BatchNormBackbone(), 5, 0.95, 1.0, 0.9, support_settings(views=2))
    with pytest.raises(UserError, match="needs labelled images beside each batch"):
        objective(make_batch(), AT)


def test_the_learning_rate_is_cos_of_seven_sixteenths() -> None:
    for step in (0, 1, 7, 9):
        assert warmup_seven_sixteenths(step, 0, 10) == pytest.approx(math.cos(7 * math.pi * step / 160))
    assert warmup_seven_sixteenths(1, 2, 10) == 0.5
    assert warmup_seven_sixteenths(10, 0, 10) == pytest.approx(0.19509, abs=1e-5)

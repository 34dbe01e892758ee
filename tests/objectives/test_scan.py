"""SCAN and self-labelling against the paper's loops and closed forms; the head that is kept, and goes on."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.objectives.two_views import (
    AT,
    PLAN,
    BatchNormBackbone,
    assert_bf16_within_a_hundredth,
    assert_same_loss_and_gradients,
    draw,
    drawn,
    make_batch,
    seen_by,
)
from unlabeled.data.companions import Companions
from unlabeled.errors import UserError
from unlabeled.objective import Batch, Progress
from unlabeled.objectives.scan import SCAN, SelfLabel, scan_loss, self_label_loss

CLUSTERS = 4


def softmax(row: Tensor) -> Tensor:
    return row.exp() / row.exp().sum()


def literal_scan_loss(anchors: Tensor, neighbours: Tensor, entropy_weight: float) -> Tensor:
    """arXiv:2005.12320, eq. 2, with the bounds 1e-8 of a mean probability and 100 of −ln."""
    total, images = anchors.new_zeros(()), len(anchors)
    p = [softmax(row) for row in anchors]
    for own, row in zip(p, neighbours, strict=True):
        agreement = (own * softmax(row)).sum()
        total = (
            total - (agreement.log() if float(agreement.detach()) > math.exp(-100) else torch.tensor(-100.0)) / images
        )
    mean = sum(p) / images
    assert isinstance(mean, Tensor)
    for share in mean:
        held = share if float(share.detach()) > 1e-8 else torch.tensor(1e-8, dtype=share.dtype)
        total = total + entropy_weight * held * held.log()
    return total


def literal_self_label_loss(weak: Tensor, strong: Tensor, threshold: float, balance: bool) -> Tensor:
    """Section 2.3: certain images alone; with weights n / n_c, and as a weighted mean."""
    certain = [(int(p.argmax()), row) for p, row in zip(map(softmax, weak), strong, strict=True) if p.max() > threshold]
    if not certain:
        return (strong * 0).sum()
    sizes = [sum(1 for other, _ in certain if other == cluster) for cluster, _ in certain]
    weights = [len(certain) / size if balance else 1.0 for size in sizes]
    costs = [-softmax(row)[cluster].log() for cluster, row in certain]
    return torch.stack([w * c for w, c in zip(weights, costs, strict=True)]).sum() / sum(weights)


@pytest.mark.parametrize("scale", [1.0, 30.0])  # 30: mean probabilities below 1e-8
@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_the_loss_of_scan_and_its_gradients_equal_the_papers_loop(weight: float, scale: float) -> None:
    given = [(each.detach() * scale).requires_grad_() for each in drawn("anchors neighbours", 6, 5)]
    assert_same_loss_and_gradients(scan_loss, literal_scan_loss, given, weight)


def test_a_pair_that_cannot_agree_costs_100_and_has_no_gradient() -> None:
    apart = 300 * torch.eye(2, dtype=torch.float64)
    anchors, neighbours = apart.clone().requires_grad_(), apart.flip(0).requires_grad_()
    loss = scan_loss(anchors, neighbours, 0.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 100
    assert anchors.grad is not None
    assert not anchors.grad.any()


@pytest.mark.parametrize("balance", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.35, 0.5, 1.0])
def test_self_labelling_and_its_gradients_equal_a_loop_and_weak_views_get_none(threshold: float, balance: bool) -> None:
    weak = draw(12, 5, seed=3)

    def ours(strong: Tensor) -> Tensor:
        return self_label_loss(weak, strong, threshold, balance)

    def literal(strong: Tensor) -> Tensor:
        return literal_self_label_loss(weak, strong, threshold, balance)

    assert_same_loss_and_gradients(ours, literal, [draw(12, 5).requires_grad_()])
    both = [draw(12, 5, seed=seed).requires_grad_() for seed in (3, 0)]
    loss = self_label_loss(both[0], both[1], 0.35, balance)
    assert torch.autograd.grad(loss, both, allow_unused=True)[0] is None


def test_closed_forms_equal_probabilities_perfect_clusters_no_certain_image_and_one_cluster_for_all() -> None:
    equal, certain = torch.zeros(8, CLUSTERS), 50 * torch.eye(CLUSTERS).repeat(2, 1)
    assert float(scan_loss(equal, equal, 5.0)) == pytest.approx(-4 * math.log(CLUSTERS), rel=1e-6)
    assert float(scan_loss(certain, certain, 5.0)) == pytest.approx(-5 * math.log(CLUSTERS), rel=1e-6)
    one = certain[:1].expand(8, -1)  # p = 1e-8 of the other three
    assert float(scan_loss(one, one, 5.0)) == pytest.approx(5 * 3 * 1e-8 * math.log(1e-8), abs=1e-9)
    assert make_scan().collapsed_at(PLAN) == pytest.approx(3 * -4 * math.log(CLUSTERS))
    assert float(self_label_loss(equal, certain, 0.99, True)) == 0
    assert float(self_label_loss(certain, equal, 0.99, True)) == pytest.approx(math.log(CLUSTERS))
    # seven images of one cluster and one of another weigh as much as each other: (0 + ln 4) / 2
    weak = torch.cat([certain[:1].expand(7, -1), certain[1:2]])
    strong = torch.cat([weak[:7], torch.zeros(1, CLUSTERS)])
    assert float(self_label_loss(weak, strong, 0.99, True)) == pytest.approx(math.log(CLUSTERS) / 2)
    assert float(self_label_loss(weak, strong, 0.99, False)) == pytest.approx(math.log(CLUSTERS) / 8)


def test_in_bfloat16_the_losses_are_float32_and_within_one_per_cent() -> None:
    assert_bf16_within_a_hundredth(scan_loss, [draw(64, 10, seed=seed) for seed in range(2)], 5.0)
    certain = [draw(64, 10, seed=seed) * 4 for seed in range(2)]
    assert_bf16_within_a_hundredth(self_label_loss, certain, 0.9, True)


def make_scan(**changed: Any) -> SCAN:
    torch.manual_seed(0)
    companions = Companions(None, 1, 20, True)
    given: dict[str, Any] = {
        "clusters": CLUSTERS,
        "heads": 3,
        "entropy_weight": 5.0,
        "held_out": 0.3,
        "companions": companions,
    }
    return SCAN(BatchNormBackbone(), **(given | changed)).double()


def make_self_label() -> SelfLabel:
    torch.manual_seed(1)
    return SelfLabel(BatchNormBackbone(), CLUSTERS, threshold=0.4, balance=True).double()


def pairs(images: int = 8, seed: int = 1) -> Batch:
    batch = make_batch(images, seed)
    return batch._replace(
        views=batch.views[:1], companions=batch._replace(ids=batch.ids.roll(1), views=batch.views[1:])
    )


def held_out(objective: SCAN, batch: Batch) -> list[bool]:
    """By the golden ratio: an image is held out if the fraction of its number times φ⁻¹ · 2³² / 2³² is small."""
    return [(number * 2654435761) % 2**32 < objective.held_out * 2**32 for number in batch.ids.tolist()]


def test_scan_adds_the_losses_of_its_heads_over_pairs_of_which_no_image_is_held_out() -> None:
    objective, batch = make_scan(), pairs()
    assert batch.companions is not None
    rows = seen_by(objective.backbone)
    weak, strong = objective.backbone(batch.views[0]), objective.backbone(batch.companions.views[0])
    held, of_neighbours = held_out(objective, batch), held_out(objective, batch.companions)
    trained = [n for n in range(8) if not held[n] and not of_neighbours[n]]
    assert 0 < sum(held) < 8
    assert 1 < len(trained) < 7
    expected = torch.zeros((), dtype=torch.float64)
    for head in range(3):
        own = slice(head * CLUSTERS, (head + 1) * CLUSTERS)
        anchors, neighbours = objective.classifier(weak)[:, own], objective.classifier(strong)[:, own]
        expected = expected + literal_scan_loss(anchors[trained], neighbours[trained], 5.0)
    output = objective(batch, AT)
    torch.testing.assert_close(output.loss, expected, rtol=1e-10, atol=0)
    output.loss.backward()
    assert rows == [8, 8, 8, 8]
    assert all(parameter.grad is not None for parameter in objective.parameters())
    torch.testing.assert_close(output.features, weak.detach())
    assert [name for name, value in output.metrics.items() if value.requires_grad or value.ndim] == []


def test_the_share_of_images_that_are_held_out_is_the_one_asked_for_and_even_in_sorted_data() -> None:
    objective = make_scan(held_out=0.05)
    found = objective._held(torch.arange(50_000)).view(10, 5_000)
    assert int(found.sum()) == pytest.approx(2_500, abs=5)
    assert [int(each) for each in found.sum(1)] == pytest.approx([250] * 10, abs=5)


def test_the_kept_head_has_the_lowest_loss_on_the_held_out_images_of_about_an_epoch() -> None:
    objective, progress = make_scan(), Progress(0, 100, 4, 0)
    batches = [pairs(seed=seed) for seed in range(1, 8)]
    states: list[tuple[list[bool], Tensor, Tensor]] = []
    for batch in batches:
        assert batch.companions is not None
        objective(batch, progress)
        with torch.no_grad():
            both = [objective._logits(objective.backbone(each.views[0])) for each in (batch, batch.companions)]
        states.append((held_out(objective, batch), both[0], both[1]))
    losses = []
    for head in range(3):
        images, cost, sums = 0.0, torch.zeros(()).double(), torch.zeros(CLUSTERS).double()
        for held, anchors, neighbours in states:
            rows = [n for n, own in enumerate(held) if own]
            images, cost, sums = images * 0.75 + len(rows), cost * 0.75, sums * 0.75
            for n in rows:
                p = softmax(anchors[n, head])
                cost, sums = cost - (p * softmax(neighbours[n, head])).sum().log(), sums + p
        p = sums / images
        losses.append(float(cost / images + 5 * (p * p.log()).sum()))
    assert objective.head_losses.tolist() == pytest.approx(losses, rel=1e-10)
    best = losses.index(min(losses))
    features = draw(5, 6)
    expected = objective.classifier(features).view(5, 3, CLUSTERS)[:, best].log_softmax(1)
    torch.testing.assert_close(objective.clusters()(features), expected)
    objective.eval()
    objective(batches[0], progress)
    assert objective.head_losses.tolist() == pytest.approx(losses, rel=1e-10)


def test_self_labelling_goes_on_from_the_kept_head_of_scan_and_from_its_own_state_as_it_is() -> None:
    scan, objective = make_scan(), make_self_label()
    scan.head_losses.copy_(torch.tensor([-3.0, -5.0, -4.0]))
    objective.load_state_dict(objective.from_another(scan.state_dict()))
    assert torch.equal(objective.classifier.weight, scan.classifier.weight[CLUSTERS : 2 * CLUSTERS])
    assert torch.equal(objective.classifier.bias, scan.classifier.bias[CLUSTERS : 2 * CLUSTERS])
    features = draw(5, 6)
    torch.testing.assert_close(objective.clusters()(features), scan.clusters()(features))
    own = objective.state_dict()
    found = objective.from_another(own)
    assert list(found) == list(own)
    assert all(torch.equal(found[name], value) for name, value in own.items())


def test_self_labelling_trains_the_strong_view_on_the_clusters_of_the_weak_one() -> None:
    objective, batch = make_self_label(), make_batch()
    rows = seen_by(objective.backbone)
    weak, strong = (objective.classifier(objective.backbone(view)) for view in batch.views)
    output = objective(batch, AT)
    assert 0 < float(output.metrics["certain"]) < 1
    torch.testing.assert_close(output.loss, literal_self_label_loss(weak, strong, 0.4, True), rtol=1e-10, atol=0)
    output.loss.backward()
    assert rows == [8, 8, 8, 8]
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_signs_of_a_failure_all_images_in_one_cluster_and_none_that_is_certain() -> None:
    scan, labelling, even = make_scan(), make_self_label(), pairs()
    with torch.no_grad():  # by images, not by what all of them have in common
        labelling.classifier.bias.zero_()
        labelling.classifier.weight.mul_(20)
    both = scan(even, AT).metrics["cluster_entropy"], labelling(make_batch(), AT).metrics["cluster_entropy"]
    with torch.no_grad():
        scan.classifier.bias[::CLUSTERS] += 100
        labelling.classifier.bias[0] += 100
    lost = scan(even, AT).metrics["cluster_entropy"], labelling(make_batch(), AT).metrics["cluster_entropy"]
    bounds = scan.metric_bounds(PLAN)[0], labelling.metric_bounds(PLAN)[0]
    for bound, healthy, failed in zip(bounds, both, lost, strict=True):
        assert (bound.name, bound.metric) == ("clusters-not-used", "cluster_entropy")
        assert float(failed) < bound.at_least < float(healthy) <= bound.at_most
    labelling.threshold = 1.0
    metrics = labelling(make_batch(), AT).metrics
    bound = labelling.metric_bounds(PLAN)[1]
    assert float(metrics["certain"]) == 0 < bound.at_least
    assert float(metrics["cluster_entropy"]) == 1  # which is another failure


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"held_out": 0.0}, r"^objective\.held_out=0: of 3 heads the one is kept"),
        ({"companions": Companions(None, 1, 20, False)}, r"give views=1, own_views=true"),
        ({"companions": Companions(None, 2, 20, True)}, r"give views=1, own_views=true"),
    ],
)
def test_what_cannot_be_trained_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_scan(**changed)
    make_scan(heads=1, held_out=0.0)


def test_a_batch_of_few_images_a_cluster_is_pointed_out_and_another_number_of_views_refused() -> None:
    objective = make_scan()
    assert [check.passed for check in objective.plan_warnings(PLAN)] == [True]
    assert [check.passed for check in objective.plan_warnings(PLAN._replace(batch_size=7))] == [False]
    for each in (objective, make_self_label()):
        with pytest.raises(UserError, match="the objective takes exactly 2"):
            each.check(PLAN._replace(views=(2,)))

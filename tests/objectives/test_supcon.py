"""SupCon and triplets against the papers' loops, closed forms, and NT-Xent where there are no labels."""

import math

import pytest
import torch
from torch import Tensor, nn

from tests.objectives.two_views import (
    AT,
    BatchNormBackbone,
    assert_bf16_within_a_hundredth,
    assert_same_loss_and_gradients,
    cosine,
    draw,
    drawn,
    make_batch,
    seen_by,
)
from unlabeled.errors import UserError
from unlabeled.objective import Plan
from unlabeled.objectives.simclr import nt_xent
from unlabeled.objectives.supcon import SupCon, Triplet, supcon_loss, triplet_loss

LABELLED = Plan(8, 1, 100, (2, 2), 3)
LABELS = torch.tensor([0, 1, 0, -1, 1, 0])


def of_one_class(labels: list[int], i: int, j: int) -> bool:
    return i % len(labels) == j % len(labels) or (labels[i % len(labels)] == labels[j % len(labels)] >= 0)


def literal_supcon_loss(z1: Tensor, z2: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """arXiv:2004.11362, eq. 2, over the 2B views."""
    views, known = [*z1, *z2], labels.tolist()
    total = z1.new_zeros(())
    for i, anchor in enumerate(views):
        scores = {j: cosine(anchor, other) / temperature for j, other in enumerate(views) if j != i}
        partition = sum(score.exp() for score in scores.values())
        positives = [j for j in scores if of_one_class(known, i, j)]
        total = total - sum((scores[p].exp() / partition).log() for p in positives) / len(positives) / len(views)
    return total


def literal_triplet_loss(
    z1: Tensor, z2: Tensor, labels: Tensor, margin: float | None, mining: str = "hardest"
) -> Tensor:
    """arXiv:1703.07737, eq. 5, or arXiv:1503.03832, eq. 4, with the squared distances of unit rows."""
    views, known = [z / z.pow(2).sum().sqrt() for z in (*z1, *z2)], labels.tolist()
    total = z1.new_zeros(())
    for i, anchor in enumerate(views):
        distances = [(anchor - other).pow(2).sum() for other in views]
        own = [d for j, d in enumerate(distances) if j != i and of_one_class(known, i, j)]
        others = [d for j, d in enumerate(distances) if not of_one_class(known, i, j)]
        if not others:
            continue
        pairs = [(max(own), min(others))]
        if mining == "semi_hard":
            pairs = [(p, min([n for n in others if n > p], default=max(others))) for p in own]
        for p, n in pairs:
            cost = torch.log(1 + (p - n).exp()) if margin is None else torch.clamp(p - n + margin, min=0)
            total = total + cost / len(pairs) / len(views)
    return total


@pytest.mark.parametrize("labels", [LABELS, torch.full((6,), -1), torch.zeros(6, dtype=torch.long)])
def test_supcon_and_its_gradients_equal_the_papers_loop(labels: Tensor) -> None:
    assert_same_loss_and_gradients(supcon_loss, literal_supcon_loss, drawn("z1 z2", 6, 5), labels, 0.3)


@pytest.mark.parametrize("mining", ["hardest", "semi_hard"])
@pytest.mark.parametrize("margin", [0.2, None])
@pytest.mark.parametrize("labels", [LABELS, torch.full((6,), -1)])
def test_triplets_and_their_gradients_equal_the_papers_loop(labels: Tensor, margin: float | None, mining: str) -> None:
    assert_same_loss_and_gradients(triplet_loss, literal_triplet_loss, drawn("z1 z2", 6, 5), labels, margin, mining)


def test_without_labels_supcon_is_nt_xent() -> None:
    z1, z2 = draw(6, 5), draw(6, 5, seed=1)
    torch.testing.assert_close(supcon_loss(z1, z2, torch.full((6,), -1), 0.2), nt_xent(z1, z2, 0.2), rtol=1e-12, atol=0)


def test_collapsed_embeddings_give_ln_of_the_candidates_the_margin_and_ln_2() -> None:
    z, labels = torch.ones(8, 4), torch.arange(8) % 3
    assert float(supcon_loss(z, z, labels, 0.1)) == pytest.approx(math.log(15), rel=1e-5)
    assert float(triplet_loss(z, z, labels, 0.2)) == pytest.approx(0.2, abs=1e-6)
    assert float(triplet_loss(z, z, labels, None)) == pytest.approx(math.log(2), abs=1e-6)
    assert float(triplet_loss(z, z, labels, 0.2, "semi_hard")) == pytest.approx(0.2, abs=1e-6)
    assert make_supcon().collapsed_at(LABELLED) == pytest.approx(math.log(15))
    assert make_triplet().collapsed_at(LABELLED) == 0.2
    assert make_triplet(margin=None).collapsed_at(LABELLED) == pytest.approx(math.log(2))


def test_orthogonal_classes_give_closed_forms_and_a_single_class_no_triplet() -> None:
    z, labels = torch.eye(2, dtype=torch.float64).repeat(2, 1), torch.tensor([0, 1, 0, 1])
    expected = math.log(3 * math.exp(1 / 0.5) + 4) - 1 / 0.5  # three of its class, four at a right angle
    assert float(supcon_loss(z, z, labels, 0.5)) == pytest.approx(expected, abs=1e-12)
    assert float(triplet_loss(z, z, labels, 0.2)) == 0  # 0 and 2 apart
    assert float(triplet_loss(z, z, labels, None)) == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-12)
    assert float(triplet_loss(z, z, torch.zeros(4, dtype=torch.long), 0.2)) == 0
    assert float(triplet_loss(z, z, torch.zeros(4, dtype=torch.long), 0.2, "semi_hard")) == 0
    with pytest.raises(UserError, match=r"^triplet_loss: mining=all: allowed are hardest and semi_hard$"):
        triplet_loss(z, z, labels, 0.2, "all")  # type: ignore[arg-type]


def test_in_bfloat16_the_losses_are_float32_and_within_one_per_cent() -> None:
    views, labels = [draw(32, 16, seed=seed) for seed in range(2)], torch.arange(32) % 5
    assert_bf16_within_a_hundredth(supcon_loss, views, labels, 0.3)
    assert_bf16_within_a_hundredth(triplet_loss, views, labels, 0.2)
    assert_bf16_within_a_hundredth(triplet_loss, views, labels, None)


def make_supcon() -> SupCon:
    torch.manual_seed(0)
    return SupCon(BatchNormBackbone(), hidden_dim=7, projection_dim=4, temperature=0.3).double()


def make_triplet(**changed: object) -> Triplet:
    torch.manual_seed(0)
    given = {"hidden_dim": 7, "projection_dim": 4, "margin": 0.2, "mining": "hardest", "use_labels": True, **changed}
    return Triplet(BatchNormBackbone(), **given).double()  # type: ignore[arg-type]


def test_the_objectives_losses_are_those_of_their_projections_of_one_forward_over_both_views() -> None:
    batch = make_batch()._replace(labels=torch.arange(8) % 3)
    for objective, literal, more in (
        (make_supcon(), literal_supcon_loss, 0.3),
        (make_triplet(), literal_triplet_loss, 0.2),
    ):
        rows = seen_by(objective.backbone)
        features = objective.backbone(torch.cat(batch.views))
        z1, z2 = objective.projector(features).chunk(2)
        output = objective(batch, AT)
        torch.testing.assert_close(output.loss, literal(z1, z2, batch.labels, more), rtol=1e-10, atol=0)
        output.loss.backward()
        assert rows == [16, 16]
        assert all(parameter.grad is not None for parameter in objective.parameters())
        torch.testing.assert_close(output.features, features[:8].detach())


def test_triplets_without_labels_see_none() -> None:
    objective = make_triplet(use_labels=False)
    batch = make_batch()
    losses = [objective(batch._replace(labels=labels), AT).loss for labels in (torch.zeros(8).long(), torch.arange(8))]
    torch.testing.assert_close(*losses, rtol=0, atol=0)
    assert not objective.uses_labels
    objective.check(LABELLED._replace(classes=None))


def test_methods_with_labels_say_so_and_refuse_data_without_them() -> None:
    for objective in (make_supcon(), make_triplet()):
        assert objective.uses_labels
        objective.check(LABELLED)
        with pytest.raises(UserError, match="it trains with labels, and the training images have none"):
            objective.check(LABELLED._replace(classes=None))


def test_the_projector_has_two_layers_and_no_batchnorm() -> None:
    assert [type(module) for module in make_supcon().projector.children()] == [nn.Linear, nn.ReLU, nn.Linear]


def test_labels_of_another_type_are_refused() -> None:
    for loss, more in ((supcon_loss, 0.3), (triplet_loss, 0.2)):
        with pytest.raises(ValueError, match=r"_loss: labels are int32: they must be int64$"):
            loss(draw(4, 5), draw(4, 5), torch.zeros(4, dtype=torch.int32), more)

"""Several classifiers as one: mean probabilities, their disagreement, and dropout that draws from a seed."""

import pytest
import torch
from torch import Tensor, nn

from tests.recipe_tasks import vit
from unlabeled.backbones.transformer import DropPath
from unlabeled.errors import UserError
from unlabeled.evaluation.heads.members import Sampled, pooled
from unlabeled.evaluation.heads.predicted import Predicted, joined
from unlabeled.evaluation.recipes.finetune import Classifier, add_drop_path
from unlabeled.objective import Backbone


def predicted(rows: list[list[float]], classes: str = "ab") -> Predicted:
    """The last image cannot be decoded."""
    p = torch.tensor([*rows, [torch.nan] * len(classes)], dtype=torch.float64)
    names = [f"{number}.png" for number in range(len(p))]
    numbers = torch.cat([p[:-1].argmax(1), torch.tensor([-1])])
    return Predicted(names, [*classes], [""] * len(p), numbers, p, [""] * len(rows) + ["broken"])


def entropy(p: Tensor) -> float:
    return -sum(float(each) * float(each.log()) for each in p)


def test_probabilities_are_averaged_by_the_names_of_classes_and_disagreement_is_mutual_information() -> None:
    first, other = predicted([[0.9, 0.1], [0.6, 0.4]]), predicted([[0.1, 0.9], [0.9, 0.1]], "ba")
    both = joined(list(pooled([iter([first, first]), iter([other, other])])))
    p = torch.tensor([[0.9, 0.1], [0.35, 0.65]], dtype=torch.float64)
    torch.testing.assert_close(both.probabilities[:2], p)
    assert both.numbers.tolist() == [0, 1, -1] * 2
    assert both.predicted == ["a", "b", ""] * 2
    assert both.mutual_information is not None
    each = [torch.tensor(row, dtype=torch.float64) for row in ([0.6, 0.4], [0.1, 0.9])]
    expected = entropy(p[1]) - (entropy(each[0]) + entropy(each[1])) / 2
    assert both.mutual_information[:2].tolist() == pytest.approx([0, expected], abs=1e-12)
    message = r"^members: one of them knows 2 classes \(a, c\), the first 2 classes \(a, b\)"
    with pytest.raises(UserError, match=message):
        list(pooled([iter([first]), iter([predicted([[0.9, 0.1]] * 2, "ac")])]))


class Dropping(Backbone):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.num_features = 64
        self.norm, self.drop = nn.BatchNorm1d(64), nn.Dropout(p)

    def forward(self, images: Tensor) -> Tensor:
        made: Tensor = self.drop(self.norm(images.flatten(1)))
        return made


def test_dropout_alone_is_at_work_and_draws_from_the_seed_and_the_number_of_the_batch() -> None:
    network, images = Dropping(0.5).eval(), torch.ones(4, 1, 8, 8)
    state = torch.get_rng_state()
    one, same, other = (Sampled(network, seed).eval()(images) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert set(one.unique().tolist()) == {0.0, float(2 * network.norm(images.flatten(1)).detach()[0, 0])}
    assert not network.drop.training
    assert network.norm.running_mean is not None
    assert not bool(network.norm.running_mean.any())
    twice = Sampled(network, 0).eval()
    assert not torch.equal(twice(images), twice(images))
    with pytest.raises(UserError, match="samples: nothing in this network is random"):
        Sampled(Dropping(0.0), 0)
    before = Sampled(Dropping(0.0).eval(), 0, dropout=0.25)(torch.ones(100, 1, 8, 8))
    assert float((before == 0).double().mean()) == pytest.approx(0.25, abs=0.02)


def test_paths_are_left_out_in_the_backbone_and_of_a_fine_tuning_recipe() -> None:
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    own = vit(3).eval()
    with torch.no_grad():
        plain = own(images)
        add_drop_path(own, 0.5)
        assert torch.equal(own(images), plain)
        assert [each.drop_prob for each in own.modules() if isinstance(each, DropPath)] == [0, 0, 0.25, 0.25, 0.5, 0.5]
        members = torch.stack([Sampled(own, seed)(images) for seed in range(3)])
        assert not torch.equal(members[0], members[1])
        torch.testing.assert_close(Sampled(own, 0).features(images, ["last"])["last"], members[0])
        tuned = Classifier(own, 4, "network", 1.0, dropout=0.5).eval()
        assert not torch.equal(Sampled(tuned, 0)(images), tuned(images))

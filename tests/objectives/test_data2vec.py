"""data2vec against loops, a whole network written out by hand, its masks, and the order of its steps."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.objectives.literal_vit import literal_block, literal_blocks, literal_embedding, literal_norm
from tests.objectives.two_views import assert_bf16_within_a_hundredth, assert_same_loss_and_gradients, draw
from unlabeled import distributed
from unlabeled.backbones.resnet import ResNet
from unlabeled.backbones.vit import ViT
from unlabeled.errors import UserError
from unlabeled.objective import Batch, Plan, Progress
from unlabeled.objectives.data2vec import Data2Vec, averaged_targets, data2vec_loss

AT = Progress(5, 20, 5, 0)
PLAN = Plan(3, 1, 100, (16,))


def make_objective(backbone: Any = None, **changed: Any) -> Data2Vec:
    torch.manual_seed(0)
    given: dict[str, Any] = {"mask_ratio": 0.4, "least_block": 0.1, "averaged_blocks": 2, "normalize_targets": False}
    given |= {"beta": 0.0, "momentum": 0.9, "final_momentum": 0.98, "evaluated": "student"}
    return Data2Vec(backbone or ViT(16, 4, 8, 3, 2, pooling="gap"), **(given | changed)).double()


def make_batch(images: int = 3) -> Batch:
    ids = torch.arange(images)
    return Batch(torch.zeros(images, 3, 16, 16, dtype=torch.uint8), ids, ids, (draw(images, 3, 16, 16),))


# the loss


def literal_loss(student: Tensor, teacher: Tensor, mask: Tensor, beta: float) -> Tensor:
    """arXiv:2202.03555, section 3.3, and fairseq's scale, one hidden patch and value at a time."""
    errors = []
    for s, t, hidden in zip(student.flatten(0, 1), teacher.detach().flatten(0, 1), mask.flatten(), strict=True):
        if hidden:
            error = s.new_zeros(())
            for x, y in zip(s, t, strict=True):
                far = (x - y).abs()
                error = error + (far**2 if beta == 0 else 0.5 * far**2 / beta if far < beta else far - 0.5 * beta)
            errors.append(error / math.sqrt(len(s)))
    return torch.stack(errors).mean()


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_the_loss_and_its_gradients_equal_a_loop_and_targets_get_none(beta: float) -> None:
    inputs = [draw(2, 5, 4, seed=seed).requires_grad_() for seed in range(2)]
    mask = torch.tensor([[True, False, True, True, False], [False, False, False, True, False]])
    assert_same_loss_and_gradients(data2vec_loss, literal_loss, inputs, mask, beta)
    loss = data2vec_loss(inputs[0], inputs[1], mask, beta)
    [student, of_targets] = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    assert not bool(of_targets.any())
    assert not bool(student[~mask].any())


def test_a_difference_of_1_everywhere_costs_the_root_of_the_width_and_none_0() -> None:
    ones, mask = torch.ones(2, 3, 16), torch.tensor([[True, True, False], [False, True, False]])
    assert float(data2vec_loss(ones, 0 * ones, mask, 0.0)) == 4
    assert float(data2vec_loss(ones, 0 * ones, mask, 2.0)) == 1
    assert float(data2vec_loss(ones, ones, mask, 0.0)) == make_objective().collapsed_at(PLAN) == 0


def test_in_bfloat16_the_loss_is_float32_and_within_one_per_cent() -> None:
    inputs = [draw(4, 6, 32, seed=seed) for seed in range(2)]
    assert_bf16_within_a_hundredth(data2vec_loss, inputs, draw(4, 6, seed=3) > 0, 0.0)


def test_targets_are_the_mean_of_blocks_and_normalised_if_asked_for() -> None:
    outputs = [draw(2, 3, 5, seed=seed) for seed in range(3)]
    for image in range(2):
        for patch in range(3):
            mean = [sum(float(each[image, patch, value]) for each in outputs) / 3 for value in range(5)]
            assert averaged_targets(outputs, False)[image, patch].tolist() == pytest.approx(mean, abs=1e-14)
            centre = sum(mean) / 5
            deviation = math.sqrt(sum((value - centre) ** 2 for value in mean) / 5 + 1e-5)
            expected = [(value - centre) / deviation for value in mean]
            assert averaged_targets(outputs, True)[image, patch].tolist() == pytest.approx(expected, abs=1e-13)


# the network


def literal_step(objective: Data2Vec, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What the student gives for all patches, and the targets, [L, D] each, from the tensors of both networks."""
    student, teacher = (dict(each.named_parameters()) for each in (objective.backbone, objective.teacher_backbone))
    patches = literal_embedding(image, student)
    patches = torch.where(mask[:, None], objective.mask_token[0], patches)
    x = torch.cat([student["cls_token"][0], patches]) + student["pos_embed"][0]
    seen = literal_norm(literal_blocks(x, student, "blocks", 2), student, "norm")[1:]
    y = torch.cat([teacher["cls_token"][0], literal_embedding(image, teacher)]) + teacher["pos_embed"][0]
    outputs = []
    for block in range(3):
        y = literal_block(y, teacher, f"blocks.{block}", 2)
        outputs.append(y[1:])
    return seen, (outputs[1] + outputs[2]) / 2


def test_loss_and_every_gradient_equal_a_network_written_out_by_hand() -> None:
    objective, batch = make_objective(), make_batch()
    for parameter in objective.parameters():
        if parameter.requires_grad or parameter.ndim < 3:
            torch.nn.init.normal_(parameter, std=0.3)
    output = objective(batch, AT)
    mask = objective._mask(AT, 3)
    pairs = [literal_step(objective, image, hidden) for image, hidden in zip(batch.views[0], mask, strict=True)]
    seen, targets = (torch.stack(each) for each in zip(*pairs, strict=True))
    expected = literal_loss(seen, targets, mask, 0.0)
    torch.testing.assert_close(output.loss, expected, rtol=1e-12, atol=1e-12)
    trained = {name: each for name, each in objective.named_parameters() if each.requires_grad}
    ours = torch.autograd.grad(output.loss, list(trained.values()))
    theirs = torch.autograd.grad(expected, list(trained.values()))
    for name, one, other in zip(trained, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11, msg=name)
    assert not any(name.startswith("teacher_backbone") for name in trained)


def test_the_student_does_not_see_what_is_hidden_and_the_teacher_does() -> None:
    objective, batch = make_objective(), make_batch()
    mask = objective._mask(AT, 3)
    hidden = mask.view(3, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    changed = batch.views[0] + 7 * hidden
    both = [
        objective.backbone.tokens(each, replace=mask, token=objective.mask_token) for each in (batch.views[0], changed)
    ]
    assert torch.equal(*both)
    outputs = [objective(batch._replace(views=(each,)), AT) for each in (batch.views[0], changed)]
    assert not torch.equal(outputs[0].features, outputs[1].features)
    torch.testing.assert_close(outputs[0].features, objective.teacher_backbone(batch.views[0]))
    assert not outputs[0].features.requires_grad
    assert outputs[0].targets is not None
    assert not outputs[0].targets.requires_grad


# masks: their generator is tested in parts/test_masks.py


def test_75_of_196_patches_are_hidden_in_blocks_of_16_or_more_and_as_many_at_another_size() -> None:
    objective = make_objective(ViT(224, 16, 8, 8, 2, pooling="gap"), mask_ratio=0.383, least_block=0.0816)
    assert (objective.masked, objective.least) == (75, 16)
    counts = objective._mask(AT, 200).sum(1)
    assert counts.max() <= 75
    assert float(counts.double().mean()) > 73  # ten failed blocks in a row end a mask, as officially
    small = make_objective(ViT(32, 4, 8, 2, 2, pooling="gap"), mask_ratio=0.383, least_block=0.0816)
    assert (small.masked, small.least) == (25, 5)


def test_four_processes_hide_what_one_does_and_masks_follow_seed_and_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = make_objective()
    one = objective._mask(AT, 8)
    for other in (AT._replace(step=6), AT._replace(seed=1), AT._replace(part=1, parts=2)):
        assert not torch.equal(objective._mask(other, 8), one)
    for processes in (2, 4):
        parts = []
        monkeypatch.setattr(distributed, "world_size", lambda processes=processes: processes)
        for rank in range(processes):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            parts.append(objective._mask(AT, 8 // processes))
        assert torch.equal(torch.cat(parts), one)


# the order of a step


def test_the_teacher_follows_after_the_step_with_the_new_weights_along_a_line_and_gets_no_gradient() -> None:
    objective = make_objective()
    before = copy.deepcopy(objective.teacher_backbone)
    optimizer = torch.optim.SGD([each for each in objective.parameters() if each.requires_grad], lr=0.1)
    objective(make_batch(), AT).loss.backward()
    assert all(map(torch.equal, before.parameters(), objective.teacher_backbone.parameters()))
    optimizer.step()
    objective.after_step(AT)
    for old, new, trained in zip(
        before.parameters(), objective.teacher_backbone.parameters(), objective.backbone.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.92 * old + 0.08 * trained, rtol=0, atol=1e-15)  # a quarter of 0.9 to 0.98
    assert all(each.grad is None and not each.requires_grad for each in objective.teacher_backbone.parameters())
    momenta = [objective.scheduled_values(Progress(step, 20, 5, 0), PLAN)["momentum"] for step in (0, 10, 19)]
    assert momenta == pytest.approx([0.9, 0.94, 0.976])


def test_the_student_is_published_as_officially_or_the_teacher_and_that_leaves_out_no_paths() -> None:
    objective = make_objective(ViT(16, 4, 8, 2, 2, drop_path=0.5))
    assert objective.product() is objective.backbone
    assert make_objective(evaluated="teacher").product() is not make_objective().backbone
    teacher = make_objective(evaluated="teacher")
    assert teacher.product() is teacher.teacher_backbone
    dropped = [module.drop_prob for module in objective.teacher_backbone.modules() if hasattr(module, "drop_prob")]
    assert dropped == [0.0]


def test_the_spread_of_targets_tells_images_that_differ_from_ones_that_do_not() -> None:
    objective, batch = make_objective(), make_batch(8)
    same = batch._replace(views=(batch.views[0][:1].expand(8, -1, -1, -1),))
    found, alike = (float(objective(each, AT).metrics["target_std"]) for each in (batch, same))
    [sign] = objective.metric_bounds(PLAN)
    assert alike < sign.at_least < found


# what cannot work


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mask_ratio": 0.01}, r"^objective\.mask_ratio=0\.01 of 16 patches: some must be left, and some hidden"),
        ({"mask_ratio": 0.99}, r"^objective\.mask_ratio=0\.99 of 16 patches"),
        ({"least_block": 0.9}, r"^objective\.least_block=0\.9: a block has 14 patches or more"),
        ({"averaged_blocks": 4}, r"^objective\.averaged_blocks=4: backbone\.depth=3 has no more than that"),
        ({"evaluated": "both"}, r"^objective\.evaluated=both: allowed are student and teacher"),
        ({"momentum": 1.5}, r"^objective: momentum=1\.5"),
        ({"backbone": ResNet(10, 0.125, "cifar")}, r"^objective=data2vec needs a ViT, which ResNet is not"),
    ],
)
def test_what_cannot_work_is_refused_by_its_key(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_objective(**changed)


def test_two_views_are_refused() -> None:
    with pytest.raises(UserError, match=r"^views: these make 2 of an image, the objective takes exactly 1"):
        make_objective().check(Plan(8, 1, 100, (16, 16)))

"""iBOT against the paper, closed forms, and the order of its steps."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.objectives.test_dino import LATE, literal_dino_loss, multicrop
from tests.objectives.two_views import PLAN, BatchNormBackbone, draw, seen_by
from unlabeled.backbones.vit import ViT
from unlabeled.errors import UserError
from unlabeled.objective import Plan, Progress
from unlabeled.objectives.ibot import IBOT, masked_patch_loss


def literal_patch_loss(
    student: list[Tensor], teacher: list[Tensor], mask: list[Tensor], center: Tensor, ts: float, tt: float
) -> Tensor:
    """main_ibot.py, iBOTLoss.forward for v = q: one patch at a time; sums over prototypes."""
    total = student[0].new_zeros(())
    for s, t, m in zip(student, teacher, mask, strict=True):
        for image in range(len(s)):
            masked = [patch for patch in range(s.shape[1]) if bool(m[image, patch])]
            for patch in masked:
                p = [torch.exp((t[image, patch, k].detach() - center[k]) / tt) for k in range(len(center))]
                q = [torch.exp(s[image, patch, k] / ts) for k in range(len(center))]
                for k in range(len(center)):
                    loss = -p[k] / sum(p) * torch.log(q[k] / sum(q))
                    total = total + loss / len(masked) / len(s) / len(student)
    return total


def vit(**changed: Any) -> ViT:
    given: dict[str, Any] = {"image_size": 16, "patch_size": 4, "width": 8, "depth": 2, "heads": 2}
    return ViT(**{**given, "position": "learned", **changed})


def make_objective(**changed: Any) -> IBOT:
    torch.manual_seed(0)
    given: dict[str, Any] = {"prototypes": 7, "hidden_dim": 8, "bottleneck_dim": 5, "head_layers": 3}
    given |= {"norm_last_layer": True, "student_temperature": 0.1, "temperature_epochs": 3}
    given |= {"first_teacher_temperature": 0.04, "teacher_temperature": 0.07}
    given |= {"first_patch_temperature": 0.03, "patch_temperature": 0.06}
    given |= {"center_momentum": 0.9, "class_weight": 1.0, "patch_weight": 2.0}
    given |= {"masked_share": 0.5, "mask_ratio": (0.1, 0.5)}
    given |= {"momentum": 0.9, "final_momentum": 1.0, "freeze_last_layer_epochs": 1, "clip_norm": 3.0}
    backbone = changed.pop("backbone", None) or vit(initialisation="dino")
    objective = IBOT(**{**given, "backbone": backbone, **changed}).double()
    objective.mask_token.data.normal_()
    return objective


def masks_of(objective: Any, progress: Progress, images: int = 4) -> Tensor:
    """bool [2, images, 16], of the two large crops."""
    mask: Tensor = objective._masks(progress, multicrop(images).views[:2]).mask
    return mask.reshape(2, images, 16)


@pytest.mark.parametrize("crops", [1, 2])
def test_the_patch_loss_and_its_gradients_equal_the_official_loops(crops: int) -> None:
    student = [draw(3, 5, 4, seed=seed).requires_grad_() for seed in range(crops)]
    teacher = [draw(3, 5, 4, seed=10 + seed).requires_grad_() for seed in range(crops)]
    mask = [draw(3, 5, seed=20 + seed) > 0.3 for seed in range(crops)]
    mask[0][1] = False  # an image without a masked patch
    found = masked_patch_loss(student, teacher, mask, draw(4, seed=30), 0.5, 0.3)
    expected = literal_patch_loss(student, teacher, mask, draw(4, seed=30), 0.5, 0.3)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, [*student, *teacher], allow_unused=True) for loss in (found, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_uniform_patches_give_the_log_of_the_prototypes_times_the_share_of_masked_images_and_no_mask_0() -> None:
    flat, mask = [torch.zeros(4, 6, 9)] * 2, [torch.ones(4, 6).bool(), torch.zeros(4, 6).bool()]
    mask[1][0, 2] = True
    found = masked_patch_loss(flat, flat, mask, torch.zeros(9), 0.1, 0.04)
    assert float(found) == pytest.approx(math.log(9) * (1 + 1 / 4) / 2)
    none = [torch.zeros(4, 6).bool()] * 2
    assert float(masked_patch_loss(flat, flat, none, torch.zeros(9), 0.1, 0.04)) == 0
    sharp = [5 * torch.eye(9)[:4, None].expand(-1, 6, -1)] * 2
    assert float(masked_patch_loss(sharp, sharp, mask, torch.zeros(9), 0.1, 0.04)) == pytest.approx(0, abs=1e-6)
    assert make_objective().collapsed_at(PLAN) == pytest.approx((1 + 2 * 0.5) * math.log(7))


def test_in_bfloat16_the_patch_loss_is_float32_and_within_one_per_cent() -> None:
    crops, mask = [draw(32, 4, 16, seed=seed).clamp(-1, 1) for seed in range(2)], [draw(32, 4, seed=7) > 0] * 2
    expected = float(masked_patch_loss(crops, crops, mask, draw(16, seed=9) / 10, 0.1, 0.04))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = [crop.bfloat16() for crop in crops]
        found = masked_patch_loss(half, half, mask, draw(16, seed=9).float() / 10, 0.1, 0.04)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(expected, rel=0.01)


def test_the_objectives_losses_use_the_centres_of_before_and_then_move_them() -> None:
    """The whole step from parts: the student masked, the teacher not, one head for both, two centres."""
    objective, batch = make_objective(), multicrop()
    objective.center.copy_(draw(7) / 10)
    objective.patch_center.copy_(draw(7, seed=1) / 10)
    twin, before = copy.deepcopy(objective), [objective.center.clone(), objective.patch_center.clone()]
    mask = masks_of(objective, LATE)
    large = torch.cat(batch.views[:2])
    tokens = twin.projector(
        twin.backbone.tokens(large, replace=mask.flatten(0, 1), token=twin.mask_token).flatten(0, 1)
    )
    student, teacher = tokens, twin.teacher_projector(twin.teacher_backbone.tokens(large).flatten(0, 1))
    student, teacher = (each.unflatten(0, (2, 4, 17)) for each in (student, teacher))
    small = twin.projector(twin.backbone(torch.cat(batch.views[2:]))).chunk(3)
    classes = literal_dino_loss([*student[:, :, 0], *small], list(teacher[:, :, 0]), before[0], 0.1, 0.07)
    patches = literal_patch_loss(list(student[:, :, 1:]), list(teacher[:, :, 1:]), list(mask), before[1], 0.1, 0.06)
    output = objective(batch, LATE)
    torch.testing.assert_close(output.loss, classes + 2 * patches, rtol=1e-9, atol=0)
    share = float(mask.any(2).double().mean())
    assert float(output.metrics["patch_loss"]) == pytest.approx(float(patches.detach()) / share)
    assert float(output.metrics["class_loss"]) == pytest.approx(float(classes.detach()))
    torch.testing.assert_close(objective.center, 0.9 * before[0] + 0.1 * teacher[:, :, 0].mean((0, 1)))
    torch.testing.assert_close(objective.patch_center, 0.9 * before[1] + 0.1 * teacher[:, :, 1:].mean((0, 1, 2)))
    torch.testing.assert_close(output.features, twin.teacher_backbone(batch.views[0]))
    objective.eval()
    middle = objective.patch_center.clone()
    objective(batch, LATE)
    assert torch.equal(objective.patch_center, middle)


def test_masks_are_of_half_of_the_crops_drawn_anew_in_each_step() -> None:
    objective = make_objective()
    masks = torch.stack([masks_of(objective, Progress(step, 99, 9, 0), 64) for step in range(8)])
    ratios = masks.double().mean(-1).flatten()
    assert float((ratios > 0).double().mean()) == pytest.approx(0.5, abs=0.06)
    assert 1 / 16 <= float(ratios[ratios > 0].min()) < 3 / 16
    assert float(ratios.max()) == 7 / 16  # fewer than half of 16
    assert len({tuple(each.flatten().tolist()) for each in masks}) == 8
    assert torch.equal(masks[3], masks_of(objective, Progress(3, 99, 9, 0), 64))


def test_the_student_sees_all_crops_by_resolution_the_teacher_the_large_ones_and_each_head_runs_once() -> None:
    objective = make_objective()
    parts = (objective.backbone.norm, objective.teacher_backbone.norm, objective.projector, objective.teacher_projector)
    rows = [seen_by(part) for part in parts]
    masked = int(masks_of(objective, LATE).sum())
    objective(multicrop(), LATE).loss.backward()
    assert masked > 0
    assert rows == [[8, 12], [8], [8 + 12 + masked], [8 * 17]]
    assert all(parameter.grad is not None for parameter in objective.backbone.parameters())
    assert bool(objective.mask_token.grad.any())  # type: ignore[union-attr]


def test_a_batch_without_a_mask_has_the_loss_of_class_tokens_alone() -> None:
    objective = make_objective(masked_share=1e-9)
    output = objective(multicrop(), LATE)
    output.loss.backward()
    assert float(output.loss.detach()) == pytest.approx(float(output.metrics["class_loss"]))
    assert float(output.metrics["patch_loss"]) == 0
    assert objective.mask_token.grad is not None
    assert not objective.mask_token.grad.any()


def test_the_teacher_follows_after_the_step_with_the_new_weights_and_gets_no_gradient() -> None:
    objective = make_objective(clip_norm=None, backbone=vit(drop_path=0.5))
    before = [
        parameter.clone() for teacher, _ in objective.teacher_student_pairs() for parameter in teacher.parameters()
    ]
    optimizer = torch.optim.SGD([each for each in objective.parameters() if each.requires_grad], lr=0.1)
    objective(multicrop(), LATE).loss.backward()
    optimizer.step()
    objective.after_step(LATE)
    pairs = [
        both for pair in objective.teacher_student_pairs() for both in zip(*(m.parameters() for m in pair), strict=True)
    ]
    for old, (new, student) in zip(before, pairs, strict=True):
        torch.testing.assert_close(new, 0.95 * old + 0.05 * student, rtol=1e-12, atol=1e-15)  # half of the cosine
        assert new.grad is None
        assert not new.requires_grad
    assert objective.product() is objective.teacher_backbone
    assert {m.drop_prob for m in objective.teacher_backbone.modules() if hasattr(m, "drop_prob")} == {0.0}


def test_prototypes_get_no_gradient_in_the_first_epoch_and_each_tensors_is_limited() -> None:
    for progress, frozen in ((Progress(4, 20, 5, 0), True), (Progress(5, 20, 5, 0), False)):
        objective = make_objective(clip_norm=0.01)
        objective(multicrop(), progress).loss.backward()
        before = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
        objective.after_backward(progress)
        assert (objective.projector.last_layer.weight_v.grad is None) == frozen
        for name, parameter in objective.named_parameters():
            if parameter.grad is not None:
                factor = min(1.0, 0.01 / (float(before[name].norm()) + 1e-6))
                torch.testing.assert_close(parameter.grad, factor * before[name], rtol=1e-12, atol=0, msg=name)


def test_both_temperatures_rise_by_epochs_to_their_ends() -> None:
    """numpy.linspace(0.04, 0.07, 3), then 0.07."""
    objective = make_objective()
    found = [objective.scheduled_values(Progress(at, 40, 5, 0), PLAN) for at in (0, 4, 5, 10, 39)]
    assert [each["teacher_temperature"] for each in found] == pytest.approx([0.04, 0.04, 0.055, 0.07, 0.07])
    assert [each["patch_temperature"] for each in found] == pytest.approx([0.03, 0.03, 0.045, 0.06, 0.06])


def test_metrics_tell_sharp_patches_from_uniform_and_many_prototypes_from_one(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = make_objective(masked_share=1.0)
    patches, classes = torch.zeros(8 * 16, 7).double(), torch.zeros(8, 7).double()
    monkeypatch.setattr(objective, "_teach", lambda views: (draw(8, 8), classes, patches))
    for rows, entropy, least, most in (
        (torch.eye(7)[:1], 0, 1, 1.001),
        (torch.eye(7), 0, 5, 7),  # of about forty masked patches
        (torch.zeros(7, 7), math.log(7), 6.999, 7.001),
    ):
        patches.copy_(rows.double().repeat(130, 1)[: 8 * 16])
        objective.patch_center.zero_()
        metrics = objective(multicrop(), LATE).metrics
        assert float(metrics["patch_teacher_entropy"]) == pytest.approx(entropy, abs=1e-4)
        assert least <= float(metrics["effective_patch_prototypes"]) <= most


def test_a_network_without_patches_or_class_token_and_views_without_two_large_ones_are_refused() -> None:
    with pytest.raises(UserError, match=r"^objective=ibot masks patches, and BatchNormBackbone has none"):
        make_objective(backbone=BatchNormBackbone())
    with pytest.raises(UserError, match=r"^objective=ibot needs a class token: give backbone.class_token=true"):
        make_objective(backbone=vit(class_token=False, pooling="gap"))
    with pytest.raises(UserError, match=r"^views: "):
        make_objective().check(Plan(8, 1, 100, (16, 8)))
    with pytest.raises(UserError, match=r"^objective: center_momentum=1\.5"):
        make_objective(center_momentum=1.5)

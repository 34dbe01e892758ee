"""DINOv2 against the official code's formulas, closed forms, and the order of its steps."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.objectives.test_dino import LATE, multicrop
from tests.objectives.test_ibot import literal_patch_loss, masks_of, vit
from tests.objectives.two_views import PLAN, BatchNormBackbone, assert_bf16_within_a_hundredth, draw, seen_by
from unlabeled import distributed
from unlabeled.errors import UserError
from unlabeled.objective import Plan, Progress
from unlabeled.objectives.dinov2 import DINOv2, koleo
from unlabeled.objectives.parts import masked_crops
from unlabeled.objectives.parts.codes import sinkhorn
from unlabeled.optimizers import OptimizerConfig


def literal_koleo(features: Tensor) -> Tensor:
    """loss/koleo_loss.py, one row at a time."""
    rows = [row / row.pow(2).sum().sqrt() for row in features]
    total = features.new_zeros(())
    for i, row in enumerate(rows):
        others = [other for j, other in enumerate(rows) if j != i]
        nearest = max(others, key=lambda other: float((row @ other).detach()))
        total = total - torch.log((row - nearest + 1e-8).pow(2).sum().sqrt() + 1e-8) / len(rows)
    return total


def make_objective(**changed: Any) -> DINOv2:
    torch.manual_seed(0)
    given: dict[str, Any] = {"prototypes": 7, "hidden_dim": 8, "bottleneck_dim": 5, "head_layers": 3}
    given |= {"patch_prototypes": None, "patch_bottleneck_dim": None, "centering": "centering"}
    given |= {"student_temperature": 0.1, "first_teacher_temperature": 0.04, "teacher_temperature": 0.07}
    given |= {"temperature_epochs": 2, "center_momentum": 0.9, "class_weight": 1.0, "patch_weight": 1.0}
    given |= {"koleo_weight": 0.1, "group_images": 4, "masked_share": 0.5, "mask_ratio": (0.1, 0.5), "mask_block": 1}
    given |= {"momentum": 0.9, "final_momentum": 1.0, "freeze_last_layer_epochs": 1, "clip_norm": 3.0}
    given |= {"patch_embed_rate": 0.2}
    backbone = changed.pop("backbone", None) or vit(initialisation="dinov2", layer_scale=0.5)
    objective = DINOv2(**{**given, "backbone": backbone, **changed}).double()
    objective.mask_token.data.normal_()
    return objective.train()


@pytest.mark.parametrize("images", [2, 5])
def test_koleo_and_its_gradient_equal_the_official_loop(images: int) -> None:
    features = draw(images, 4).requires_grad_()
    found, expected = koleo(features), literal_koleo(features)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, features)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_koleo_of_opposite_rows_of_an_even_ring_and_of_equal_rows() -> None:
    assert float(koleo(torch.tensor([[2.0, 0.0], [-3.0, 0.0]]))) == pytest.approx(-math.log(2))
    angles = torch.arange(12, dtype=torch.float64) * math.pi / 6
    ring = torch.stack([angles.cos(), angles.sin()], 1)
    assert float(koleo(ring)) == pytest.approx(-math.log(2 * math.sin(math.pi / 12)))
    assert float(koleo(torch.ones(4, 9))) == pytest.approx(-math.log(1e-8 * 3 + 1e-8), rel=1e-3)
    assert_bf16_within_a_hundredth(koleo, [draw(16, 32)])


@pytest.mark.parametrize(("centering", "separate"), [("centering", False), ("sinkhorn", False), ("centering", True)])
def test_the_whole_step_is_that_of_the_official_code(centering: str, separate: bool) -> None:
    """train/ssl_meta_arch.py, forward_backward: its sums over small and large crops, swapped teachers and scales."""
    own = {"patch_prototypes": 9, "patch_bottleneck_dim": 6} if separate else {}
    objective, batch = make_objective(centering=centering, **own), multicrop()
    objective.center.copy_(draw(7) / 10)
    objective.patch_center.copy_(draw(len(objective.patch_center), seed=1) / 10)
    twin, before = copy.deepcopy(objective), [objective.center.clone(), objective.patch_center.clone()]
    head, teacher_head = twin.projector, twin.teacher_projector
    patch_head, teacher_patch_head = twin.patch_projector or head, twin.teacher_patch_projector or teacher_head
    mask, large = masks_of(objective, LATE), torch.cat(batch.views[:2])
    tokens = twin.backbone.tokens(large, replace=mask.flatten(0, 1), token=twin.mask_token)
    teacher_tokens = twin.teacher_backbone.tokens(large)
    small = head(twin.backbone(torch.cat(batch.views[2:]))).chunk(3)
    raw = teacher_head(teacher_tokens[:, 0])
    raw_patches = teacher_patch_head(teacher_tokens[:, 1:].flatten(0, 1)).unflatten(0, (8, 16))
    masked = raw_patches[mask.flatten(0, 1)]
    temperature = 0.07
    if centering == "sinkhorn":
        targets, codes = sinkhorn(raw, temperature, 3), sinkhorn(masked, temperature, 3)
        dense = torch.zeros_like(raw_patches)
        dense[mask.flatten(0, 1)] = codes
    else:
        targets = ((raw - before[0]) / temperature).softmax(1)
        dense = ((raw_patches - before[1]) / temperature).softmax(2)
    swapped = torch.cat(targets.chunk(2)[::-1])  # A is matched to B
    terms = 2 + 2 * 3
    local = sum(-(t * (s / 0.1).log_softmax(1)).sum(1).mean() for s in small for t in targets.chunk(2)) / terms
    global_ = -(swapped * (head(tokens[:, 0]) / 0.1).log_softmax(1)).sum(1).mean() * 2 / terms
    student_patches = patch_head(tokens[:, 1:].flatten(0, 1)).unflatten(0, (8, 16))
    losses = -(dense * (student_patches / 0.1).log_softmax(2)).sum(2) * mask.flatten(0, 1)
    patches = (losses.sum(1) / mask.flatten(0, 1).sum(1).clamp(min=1)).sum() / 8 * 2 * (1 / 2)
    spread = sum(literal_koleo(crop) for crop in tokens[:, 0].chunk(2))
    output = objective(batch, LATE)
    torch.testing.assert_close(output.loss, local + global_ + patches + 0.1 * spread, rtol=1e-9, atol=0)
    torch.testing.assert_close(output.features, twin.teacher_backbone(batch.views[0]))
    if centering == "sinkhorn":
        assert torch.equal(objective.center, before[0])
        assert torch.equal(objective.patch_center, before[1])
        return
    torch.testing.assert_close(objective.center, 0.9 * before[0] + 0.1 * raw.mean(0))
    torch.testing.assert_close(objective.patch_center, 0.9 * before[1] + 0.1 * masked.mean(0))
    literal = literal_patch_loss([student_patches], [raw_patches], [mask.flatten(0, 1)], before[1], 0.1, temperature)
    torch.testing.assert_close(patches, literal)


def test_exactly_half_of_the_large_crops_of_each_group_are_masked_with_ratios_spread_over_the_span() -> None:
    objective = make_objective()
    for step in range(3):
        masks = masks_of(objective, Progress(step, 99, 9, 0), 8)
        for group in (masks[:, :4], masks[:, 4:]):
            counts = sorted(group.sum(2).flatten().tolist())
            assert counts[:4] == [0] * 4
            upper = [math.floor(16 * (0.1 + 0.4 * step / 4)) for step in range(1, 5)]
            assert all(1 <= count <= most for count, most in zip(counts[4:], upper, strict=True))
            assert counts[7] >= 5
    assert len({tuple(masks_of(objective, Progress(step, 99, 9, 0)).flatten().tolist()) for step in range(8)}) == 8


@pytest.mark.parametrize("centering", ["centering", "sinkhorn"])
def test_with_the_rows_filled_up_for_a_gpu_loss_gradients_and_centres_are_the_same(
    centering: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for gpu in (False, True):
        monkeypatch.setattr(masked_crops, "few_launches", lambda device, gpu=gpu: gpu)
        objective = make_objective(centering=centering)
        rows = seen_by(objective.projector)
        output = objective(multicrop(), LATE)
        output.loss.backward()
        gradients = {name: each.grad for name, each in objective.named_parameters() if each.grad is not None}
        found.append({"loss": output.loss.detach(), "centre": objective.patch_center, **output.metrics, **gradients})
        most = sum(math.floor(16 * (0.1 + 0.4 * step / 4)) for step in range(1, 5))
        assert rows == [8 + 12 + (most if gpu else int(masks_of(objective, LATE).sum()))]
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_koleo_is_of_groups_of_the_global_batch_however_many_processes_hold_them(
    processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two groups of four images each: on four processes a group lies on two of them."""
    objective, whole = make_objective(), [draw(8, 5), draw(8, 5, seed=1)]
    expected = sum((literal_koleo(crop[:4]) + literal_koleo(crop[4:])) / 2 for crop in whole)
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    found = []
    for rank in range(processes):
        share = slice(rank * 8 // processes, (rank + 1) * 8 // processes)
        queue = iter(whole)
        monkeypatch.setattr(distributed, "gather", lambda rows, queue=queue: next(queue))
        found.append(objective._spread([crop[share] for crop in whole]))
    torch.testing.assert_close(torch.stack(found).mean(), expected, rtol=1e-12, atol=0)


def test_the_teacher_is_in_evaluation_mode_whatever_the_mode_and_its_heads_run_once_on_masked_patches() -> None:
    objective = make_objective(backbone=vit(drop_path=0.9, uniform_drop_path=True))
    teachers = [teacher for teacher, _ in objective.teacher_student_pairs()]
    for mode in (True, False, True):
        objective.train(mode)
        assert {module.training for teacher in teachers for module in teacher.modules()} == {False}
        assert objective.backbone.training == mode
    masked = int(masks_of(objective, LATE).sum())
    rows = [seen_by(part) for part in (objective.projector, objective.teacher_projector)]
    first = objective(multicrop(), LATE)
    assert rows == [[8 + 12 + masked], [8 + masked]]
    assert torch.equal(objective(multicrop(), LATE).features, first.features)  # nothing is dropped


def test_the_teacher_follows_after_the_step_with_the_new_weights_heads_too() -> None:
    objective = make_objective(patch_prototypes=9)
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
    assert len(objective.teacher_student_pairs()) == 3
    for old, (new, student) in zip(before, pairs, strict=True):
        torch.testing.assert_close(new, 0.95 * old + 0.05 * student, rtol=1e-12, atol=1e-15)  # half of the cosine
        assert new.grad is None
        assert not new.requires_grad
    assert objective.product() is objective.teacher_backbone


def test_gradients_are_limited_by_submodule_and_those_of_prototypes_are_removed_in_the_first_epoch() -> None:
    for progress, frozen in ((Progress(4, 20, 5, 0), True), (Progress(5, 20, 5, 0), False)):
        objective = make_objective(patch_prototypes=9, clip_norm=0.01)
        objective(multicrop(), progress).loss.backward()
        before = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
        objective.after_backward(progress)
        parts = {"backbone": ("backbone.", "mask_token"), "head": ("projector.",), "patches": ("patch_projector.",)}
        for names in parts.values():
            joint = torch.stack([g.norm() for name, g in before.items() if name.startswith(names)]).norm()
            factor = min(1.0, 0.01 / (float(joint) + 1e-6))
            for name, parameter in objective.named_parameters():
                if name.startswith(names) and parameter.grad is not None:
                    torch.testing.assert_close(parameter.grad, factor * before[name], rtol=1e-9, atol=0, msg=name)
        for head in (objective.projector, objective.patch_projector):
            assert head is not None
            assert (head.last_layer.weight_v.grad is None) == (head.last_layer.weight_g.grad is None) == frozen


def test_rates_fall_from_block_to_block_with_the_mask_token_before_them_and_the_projections_is_a_fifth() -> None:
    """utils/param_groups.py: 0.9^(blocks + 1 − layer), times 0.2 for the projection; matrices alone decay."""
    objective = make_objective()
    recipe = OptimizerConfig(torch.optim.AdamW, 1.0, "none", 0, 0.04, False, layer_decay=0.9, final_weight_decay=0.4)
    optimizer = recipe.build(objective, 64)
    recipe.set_step(optimizer, Progress(5, 10, 5, 0), 64)
    names = {parameter: name for name, parameter in objective.named_parameters()}
    rates = {names[each]: group["lr_scale"] for group in optimizer.param_groups for each in group["params"]}
    decays = {names[each]: group["weight_decay"] for group in optimizer.param_groups for each in group["params"]}
    expected = {
        "backbone.patch_embed.proj.weight": 0.2 * 0.9**3,
        "backbone.patch_embed.proj.bias": 0.2 * 0.9**3,
        "mask_token": 0.9**3,
        "backbone.pos_embed": 0.9**3,
        "backbone.cls_token": 0.9**3,
        "backbone.blocks.0.attn.qkv.weight": 0.9**2,
        "backbone.blocks.1.mlp.fc1.weight": 0.9,
        "backbone.norm.weight": 1.0,
        "projector.last_layer.weight_g": 1.0,
    }
    assert {name: rates[name] for name in expected} == pytest.approx(expected)
    assert all(
        (decays[name] == 0) == name.endswith((".bias", "gamma", "norm1.weight", "norm2.weight", "norm.weight"))
        for name in decays
    )


def test_the_temperature_rises_by_steps_to_its_end() -> None:
    """CosineScheduler with a warm-up of all its steps: numpy.linspace(0.04, 0.07, 10), then 0.07."""
    objective = make_objective()
    found = [
        objective.scheduled_values(Progress(at, 40, 5, 0), PLAN)["teacher_temperature"] for at in (0, 3, 9, 10, 39)
    ]
    assert found == pytest.approx([0.04, 0.05, 0.07, 0.07, 0.07])


def test_equal_features_and_uniform_outputs_have_the_loss_of_collapse() -> None:
    objective = make_objective(masked_share=1.0, group_images=8)
    collapsed = objective.collapsed_at(Plan(8, 1, 100, (16, 16, 8, 8, 8)))
    for part in (objective.projector, objective.teacher_projector):
        part.last_layer.weight_g.data.zero_()
    objective.backbone.norm.weight.data.zero_()
    objective.backbone.norm.bias.data.fill_(1.0)
    assert float(objective(multicrop(8), LATE).loss.detach()) == pytest.approx(collapsed, rel=1e-6)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(UserError, match=r"^objective=dinov2 masks patches, and BatchNormBackbone has none"):
        make_objective(backbone=BatchNormBackbone())
    with pytest.raises(UserError, match=r"^objective\.patch_bottleneck_dim=6 is of a head for patches alone"):
        make_objective(patch_bottleneck_dim=6)
    with pytest.raises(UserError, match=r"^objective\.group_images=3: batch_size=8 is not made of groups"):
        make_objective(group_images=3).check(Plan(8, 1, 100, (16, 16, 8)))
    with pytest.raises(UserError, match=r"^objective\.group_images=4: batch_size=1 "):
        make_objective().check(Plan(1, 1, 100, (16, 16, 8)))
    make_objective(group_images=100).check(Plan(8, 1, 100, (16, 16, 8)))

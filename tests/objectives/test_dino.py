"""DINO against the paper, closed forms, and the order of its steps."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.objectives.two_views import PLAN, BatchNormBackbone, draw, make_batch, seen_by, step
from unlabeled.backbones.vit import ViT
from unlabeled.errors import UserError
from unlabeled.objective import Batch, Plan, Progress
from unlabeled.objectives.dino import DINO, DINOHead, dino_loss, moved_center
from unlabeled.objectives.parts import clipping
from unlabeled.weights import load_backbone, read_checkpoint

LATE = Progress(10, 20, 5, 0)  # epoch 2


def literal_dino_loss(student: list[Tensor], teacher: list[Tensor], center: Tensor, ts: float, tt: float) -> Tensor:
    """arXiv:2104.14294, Algorithm 1 with several crops: sums over prototypes, one image and pair at a time."""
    total, pairs, width = student[0].new_zeros(()), 0, len(center)
    for i, t in enumerate(teacher):
        for v, s in enumerate(student):
            if v == i:
                continue
            pairs += 1
            for n in range(len(s)):
                p = [torch.exp((t[n, k].detach() - center[k]) / tt) for k in range(width)]
                q = [torch.exp(s[n, k] / ts) for k in range(width)]
                for k in range(width):
                    total = total - p[k] / sum(p) * torch.log(q[k] / sum(q)) / len(s)
    return total / pairs


def make_objective(**changed: Any) -> DINO:
    torch.manual_seed(0)
    given: dict[str, Any] = {"prototypes": 7, "hidden_dim": 8, "bottleneck_dim": 5, "head_layers": 3}
    given |= {"head_batch_norm": False, "norm_last_layer": True, "student_temperature": 0.1}
    given |= {"first_teacher_temperature": 0.04, "teacher_temperature": 0.07, "temperature_epochs": 3}
    given |= {"center_momentum": 0.9, "momentum": 0.9, "final_momentum": 1.0, "freeze_last_layer_epochs": 1}
    return DINO(**{**given, "backbone": BatchNormBackbone(), "clip_norm": 3.0, **changed}).double()


@pytest.mark.parametrize(("crops", "large"), [(2, 1), (2, 2), (5, 2), (4, 3)])
def test_the_loss_and_its_gradients_equal_the_papers_loops(crops: int, large: int) -> None:
    student = [draw(3, 4, seed=seed).requires_grad_() for seed in range(crops)]
    teacher = [draw(3, 4, seed=10 + seed).requires_grad_() for seed in range(large)]
    center = draw(4, seed=20)
    found = dino_loss(student, teacher, center, 0.5, 0.3)
    expected = literal_dino_loss(student, teacher, center, 0.5, 0.3)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, [*student, *teacher], allow_unused=True) for loss in (found, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_uniform_outputs_give_the_log_of_the_prototypes_and_a_sharp_agreement_0() -> None:
    flat, sharp = torch.zeros(4, 9), 5 * torch.eye(9)[:4]
    assert float(dino_loss([flat, flat], [flat, flat], torch.zeros(9), 0.1, 0.04)) == pytest.approx(math.log(9))
    assert float(dino_loss([sharp, sharp], [sharp, sharp], torch.zeros(9), 0.1, 0.04)) == pytest.approx(0, abs=1e-6)
    assert make_objective().collapsed_at(PLAN) == pytest.approx(math.log(7))


def test_what_all_images_share_goes_away_with_the_centre() -> None:
    student, teacher, shared = [draw(3, 4), draw(3, 4, seed=1)], [draw(3, 4, seed=2)], draw(4, seed=3)
    plain = dino_loss(student, teacher, torch.zeros(4).double(), 0.1, 0.04)
    torch.testing.assert_close(dino_loss(student, [teacher[0] + shared], shared, 0.1, 0.04), plain)


def test_the_centre_moves_to_the_mean_of_raw_outputs() -> None:
    center, outputs = draw(3), draw(8, 3, seed=1)
    expected = [0.9 * float(center[k]) + 0.1 * sum(float(outputs[n, k]) for n in range(8)) / 8 for k in range(3)]
    assert moved_center(center, outputs, 0.9).tolist() == pytest.approx(expected, abs=1e-15)
    assert not moved_center(center, outputs.requires_grad_(), 0.9).requires_grad


def test_in_bfloat16_the_loss_is_float32_and_within_one_per_cent() -> None:
    crops = [draw(32, 16, seed=seed).clamp(-1, 1) for seed in range(4)]
    expected = float(dino_loss(crops, crops[:2], draw(16, seed=9) / 10, 0.1, 0.04))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = [crop.bfloat16() for crop in crops]
        found = dino_loss(half, half[:2], draw(16, seed=9).float() / 10, 0.1, 0.04)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(expected, rel=0.01)


def test_the_objectives_loss_uses_the_centre_of_before_and_then_moves_it() -> None:
    objective, batch = make_objective(), make_batch()
    objective.center.copy_(draw(7) / 10)
    twin, before = copy.deepcopy(objective), objective.center.clone()
    student = [twin.projector(features) for features in twin.backbone(torch.cat(batch.views)).chunk(2)]
    teacher = [twin.teacher_projector(features) for features in twin.teacher_backbone(torch.cat(batch.views)).chunk(2)]
    output = objective(batch, LATE)
    expected = literal_dino_loss(student, teacher, before, 0.1, 0.07)
    torch.testing.assert_close(output.loss, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(objective.center, 0.9 * before + 0.1 * torch.cat(teacher).mean(0))
    objective.eval()
    middle = objective.center.clone()
    objective(batch, LATE)
    assert torch.equal(objective.center, middle)


def multicrop(images: int = 4) -> Batch:
    views = tuple(draw(images, 3, size, size, seed=size + n) for n, size in enumerate((16, 16, 8, 8, 8)))
    ids = torch.arange(images)
    return Batch(torch.zeros(images, 3, 16, 16, dtype=torch.uint8), ids, ids, views)


def test_the_student_sees_all_crops_by_resolution_the_teacher_the_large_ones_and_each_head_runs_once() -> None:
    objective = make_objective(backbone=ViT(16, 4, 8, 2, 2, "learned", initialisation="dino", drop_path=0.5))
    parts = (objective.backbone, objective.teacher_backbone, objective.projector, objective.teacher_projector)
    rows = [seen_by(part) for part in parts]
    output = objective(multicrop(), LATE)
    output.loss.backward()
    assert rows == [[8, 12], [8], [20], [8]]
    assert output.features.shape == (4, 8)
    assert all(parameter.grad is not None for parameter in objective.backbone.parameters())


def test_the_teacher_leaves_out_no_paths_and_the_student_does() -> None:
    objective = make_objective(backbone=ViT(16, 4, 8, 2, 2, drop_path=0.5))
    dropped = [
        [module.drop_prob for module in network.modules() if hasattr(module, "drop_prob")]
        for network in (objective.backbone, objective.teacher_backbone)
    ]
    assert dropped == [[0.5], [0.0]]


def test_the_teacher_follows_after_the_step_with_the_new_weights_and_gets_no_gradient() -> None:
    objective = make_objective(clip_norm=None)
    before = [parameter.clone() for parameter in objective.teacher_backbone.parameters()]
    step(objective, progress=LATE)
    for old, new, student in zip(
        before, objective.teacher_backbone.parameters(), objective.backbone.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.95 * old + 0.05 * student, rtol=0, atol=1e-15)  # half of the cosine
    teacher = [*objective.teacher_backbone.parameters(), *objective.teacher_projector.parameters()]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher)
    assert objective.product() is objective.teacher_backbone


def test_prototypes_get_no_gradient_in_the_first_epoch_and_the_others_do() -> None:
    for progress, frozen in ((Progress(4, 20, 5, 0), True), (Progress(5, 20, 5, 0), False)):
        objective = make_objective()
        objective(make_batch(), progress).loss.backward()
        objective.after_backward(progress)
        assert (objective.projector.last_layer.weight_v.grad is None) == frozen
        assert objective.projector.last_layer.weight_g.grad is None  # norm_last_layer
        assert all(parameter.grad is not None for parameter in objective.projector.mlp.parameters())


@pytest.mark.parametrize("gpu", [False, True])
def test_each_tensors_gradient_is_cut_to_its_own_largest_norm(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clipping, "few_launches", lambda device: gpu)
    objective = make_objective(clip_norm=0.01)
    objective(make_batch(), LATE).loss.backward()
    before = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    objective.after_backward(LATE)
    kept = 0
    for name, parameter in objective.named_parameters():
        if parameter.grad is None:
            continue
        length = float(before[name].norm())
        factor = min(1.0, 0.01 / (length + 1e-6))
        kept += factor == 1
        torch.testing.assert_close(parameter.grad, factor * before[name], rtol=1e-12, atol=0, msg=name)
    assert 0 < kept < len(before)
    memory = copy.deepcopy(objective)._clip._rows
    assert (memory, objective._clip._rows is None) == (None, not gpu)


def test_the_teachers_temperature_rises_by_epochs_to_its_end() -> None:
    """numpy.linspace(0.04, 0.07, 3), then 0.07."""
    objective = make_objective()
    found = [
        objective.scheduled_values(Progress(at, 40, 5, 0), PLAN)["teacher_temperature"] for at in (0, 4, 5, 10, 39)
    ]
    assert found == pytest.approx([0.04, 0.04, 0.055, 0.07, 0.07])
    part = make_objective(temperature_epochs=2.5)  # of an epoch: the end is not passed
    temperatures = [part._teacher_temperature_at(Progress(at, 40, 5, 0)) for at in (0, 5, 10, 15)]
    assert temperatures == pytest.approx([0.04, 0.06, 0.07, 0.07])
    assert make_objective(temperature_epochs=0)._teacher_temperature_at(Progress(0, 40, 5, 0)) == 0.07


def test_metrics_tell_sharp_from_uniform_and_many_prototypes_from_one() -> None:
    objective = make_objective()
    objective.backbone = objective.teacher_backbone = nn.Identity()  # type: ignore[assignment]
    objective.projector = objective.teacher_projector = nn.Identity()  # type: ignore[assignment]
    one, many = torch.eye(7)[:1].repeat(7, 1).double(), torch.eye(7).double()
    for rows, entropy, spread in ((one, 0, 1), (many, 0, 7), (0 * many, math.log(7), 7)):
        objective.center.zero_()
        metrics = objective(make_batch(7)._replace(views=(rows, rows)), LATE).metrics
        assert float(metrics["teacher_entropy"]) == pytest.approx(entropy, abs=1e-4)
        assert float(metrics["effective_prototypes"]) == pytest.approx(spread, rel=1e-4)


@pytest.mark.parametrize("sizes", [(4,), (4, 2), (2, 4, 4), (4, 2, 4), (4, 4, 8)])
def test_views_without_two_large_ones_first_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"^views: "):
        make_objective().check(Plan(8, 1, 100, sizes))
    make_objective().check(Plan(8, 1, 100, (4, 4, 2)))


def test_a_share_out_of_its_range_is_refused() -> None:
    with pytest.raises(UserError, match=r"^objective: center_momentum=1\.5"):
        make_objective(center_momentum=1.5)


@pytest.mark.parametrize("wrapped", ["", "module."])
def test_an_official_checkpoint_gives_the_teachers_backbone_and_its_head_fits_tensor_by_tensor(
    wrapped: str, tmp_path: Path
) -> None:
    """Names of facebookresearch/dino: torch.nn.utils.weight_norm and MultiCropWrapper; checkpoints of 2021."""
    torch.manual_seed(0)
    networks = {name: ViT(16, 4, 12, 2, 3, "learned", initialisation="dino") for name in ("student", "teacher")}
    official: dict[str, Any] = {"epoch": 100, "dino_loss": {"center": torch.rand(1, 9)}}
    for name, network in networks.items():
        last = nn.utils.weight_norm(nn.Linear(5, 9, bias=False))
        layers = [nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 5)]
        head = nn.ModuleDict({"mlp": nn.Sequential(*layers), "last_layer": last})
        parts = {"backbone": network, "head": head}
        prefix = "module." if name == "student" else wrapped
        official[name] = {
            f"{prefix}{part}.{key}": value
            for part, module in parts.items()
            for key, value in module.state_dict().items()
        }
    torch.save(official, tmp_path / "checkpoint.pth")
    ours = load_backbone(tmp_path / "checkpoint.pth", ViT(16, 4, 12, 2, 3, "learned"))
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), networks["teacher"](images))
    tensors = read_checkpoint(tmp_path / "checkpoint.pth").tensors
    found = {
        key.partition("head.")[2]: value
        for key, value in tensors.items()
        if key.startswith("teacher.") and ".head." in key
    }
    ours_head = DINOHead(12, 9, 8, 5)
    ours_head.load_state_dict(found, strict=True)
    x = torch.randn(4, 12)
    with torch.no_grad():
        expected = last(nn.functional.normalize(head["mlp"](x), dim=1))
        torch.testing.assert_close(ours_head(x), expected)

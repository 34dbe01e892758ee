"""Distillation against loops of its papers; a teacher that is frozen, prepared as its own images, and kept once."""

import copy
import math
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from torch import Tensor

from tests.objectives.two_views import (
    AT,
    PLAN,
    BatchNormBackbone,
    assert_bf16_within_a_hundredth,
    assert_same_loss_and_gradients,
    cosine,
    draw,
    make_batch,
    step,
)
from tests.small import TEACHER_WIDTH, composed, small_run, small_teacher
from tests.training.test_resume import CtrlC
from unlabeled.backbones.frozen import FrozenNetwork, Normalisation, frozen_tensors
from unlabeled.commands.build.run import build_run
from unlabeled.commands.build.teacher import TeacherLoader
from unlabeled.commands.checks.former_run import open_run
from unlabeled.errors import UserError
from unlabeled.objective import Plan
from unlabeled.objectives.distill import (
    Distill,
    batch_similarity_loss,
    feature_loss,
    queue_similarity_loss,
    similarity_metrics,
    standardised,
)
from unlabeled.training.checkpointing import Interrupted


def literal_features(student: Tensor, teacher: Tensor, match: str) -> Tensor:
    total = student.new_zeros(())
    for s, t in zip(student, teacher.detach(), strict=True):
        unit = s / s.pow(2).sum().sqrt() - t / t.pow(2).sum().sqrt()
        total = total + (unit.pow(2).sum() if match == "cosine" else (s - t).pow(2).sum() / len(s))
    return total / len(student)


def cross_entropy(wanted: list[Tensor], predicted: list[Tensor], wanted_t: float, predicted_t: float) -> Tensor:
    p, q = ([(each / t).exp() for each in row] for row, t in ((wanted, wanted_t), (predicted, predicted_t)))
    return -sum((a / sum(p) * (b / sum(q)).log() for a, b in zip(p, q, strict=True)), start=torch.zeros(()))


def literal_queue(student: Tensor, teacher: Tensor, queue: Tensor, ours: float, theirs: float) -> Tensor:
    """seed/builder.py: the teacher's own embedding is the first of 1 + K candidates."""
    losses = []
    for s, t in zip(student, teacher.detach(), strict=True):
        candidates = [t, *queue.detach()]
        wanted, predicted = [cosine(t, c) for c in candidates], [cosine(s, c) for c in candidates]
        losses.append(cross_entropy(wanted, predicted, theirs, ours))
    return torch.stack(losses).mean()


def literal_batch(student: Tensor, teacher: Tensor, ours: float, theirs: float) -> Tensor:
    losses, teacher = [], teacher.detach()
    for i in range(len(student)):
        others = [j for j in range(len(student)) if j != i]
        wanted, predicted = ([cosine(z[i], z[j]) for j in others] for z in (teacher, student))
        losses.append(cross_entropy(wanted, predicted, theirs, ours))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("match", ["cosine", "mse"])
def test_the_distance_of_features_and_its_gradients_equal_a_loop(match: Literal["cosine", "mse"]) -> None:
    given = [draw(5, 4).requires_grad_(), draw(5, 4, seed=1).requires_grad_()]
    assert_same_loss_and_gradients(feature_loss, literal_features, given, match)
    assert_bf16_within_a_hundredth(feature_loss, [draw(64, 8), draw(64, 8, seed=1)], match)
    same = given[0].detach() * (3 if match == "cosine" else 1)
    assert float(feature_loss(given[0].detach(), same, match)) == pytest.approx(0)


def test_standardised_features_have_mean_0_and_deviation_1_and_a_constant_column_is_0() -> None:
    features = draw(64, 5) * torch.tensor([1.0, 2, 0, 4, 0.1]) + 7
    found = standardised(features)
    wanted = (features - features.mean(0)) / features.std(0, correction=0)
    torch.testing.assert_close(found[:, [0, 1, 3, 4]], wanted[:, [0, 1, 3, 4]])
    assert found[:, 2].abs().max() == 0
    assert standardised(features.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(("ours", "theirs"), [(0.2, 0.01), (0.07, 0.07)])
def test_similarities_and_their_gradients_equal_a_loop(ours: float, theirs: float) -> None:
    given = [draw(5, 4).requires_grad_(), draw(5, 4, seed=1).requires_grad_()]
    queue = F.normalize(draw(7, 4, seed=2), dim=1)
    assert_same_loss_and_gradients(queue_similarity_loss, literal_queue, given, queue, ours, theirs)
    wide = [given[0], draw(5, 6, seed=3).requires_grad_()]  # each network has a space of its own
    assert_same_loss_and_gradients(batch_similarity_loss, literal_batch, wide, ours, theirs)
    rows = [draw(64, 8), draw(64, 8, seed=1)]
    assert_bf16_within_a_hundredth(queue_similarity_loss, rows, F.normalize(draw(99, 8, seed=2), dim=1), ours, theirs)
    assert_bf16_within_a_hundredth(batch_similarity_loss, rows, ours, theirs)


def test_a_student_equal_to_its_teacher_has_the_entropy_and_equal_embeddings_the_logarithm_of_the_others() -> None:
    z, queue = draw(6, 4), F.normalize(draw(9, 4, seed=1), dim=1)
    similar = torch.cat([torch.ones(6, 1, dtype=torch.float64), F.normalize(z, dim=1) @ queue.T], 1)
    entropy = torch.special.entr(F.softmax(similar / 0.1, 1)).sum(1).mean()
    torch.testing.assert_close(queue_similarity_loss(5 * z, z, queue, 0.1, 0.1), entropy)
    assert float(batch_similarity_loss(torch.ones(6, 3), z, 0.2, 0.1)) == pytest.approx(math.log(5), abs=1e-6)
    batch = make_objective(match="similarities", queue_size=None)
    assert batch.collapsed_at(PLAN) == pytest.approx(math.log(7))
    assert make_objective(match="cosine").collapsed_at(PLAN) is None
    z, queue = torch.eye(6)[:2], torch.eye(6)[2:5]  # the student's direction is that of none of them
    equal = queue_similarity_loss(torch.eye(6)[5:].expand(2, -1), z, queue, 0.2, 0.01)
    assert float(equal) == pytest.approx(math.log(4), abs=1e-6)
    assert make_objective(match="similarities", queue_size=3).collapsed_at(PLAN) == pytest.approx(math.log(4))


def test_the_metrics_are_pearsons_correlation_of_cosines_and_the_mean_of_the_teachers() -> None:
    student, teacher = draw(6, 4), draw(6, 5, seed=1)
    pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    ours, theirs = (torch.stack([cosine(z[i], z[j]) for i, j in pairs]) for z in (student, teacher))
    found = similarity_metrics(student, teacher)
    torch.testing.assert_close(found["similarity_correlation"], torch.corrcoef(torch.stack([ours, theirs]))[0, 1])
    torch.testing.assert_close(found["teacher_alike"], theirs.mean())
    assert float(similarity_metrics(torch.ones(6, 3), teacher.float())["similarity_correlation"]) == 0
    assert float(similarity_metrics(student, 3 * student)["similarity_correlation"]) == pytest.approx(1)


def make_objective(**changed: object) -> Distill:
    """A student of 6 features, a teacher of 6 of its own."""
    torch.manual_seed(0)
    given: dict[str, object] = {"match": "similarities", "projector_layers": 1, "hidden_dim": 7, "queue_size": 16}
    given |= {"standardise": False}
    given |= {"student_temperature": 0.2, "teacher_temperature": 0.05, **changed}
    objective = Distill(BatchNormBackbone(), "x", None, None, None, **given)  # type: ignore[arg-type]
    objective.take_teacher(FrozenNetwork(BatchNormBackbone()), uses_labels=False)
    return objective.double()


def test_both_networks_see_each_view_and_the_teacher_is_frozen_in_eval_mode_and_in_no_state() -> None:
    objective, batch = make_objective(queue_size=8), make_batch(views=2)
    objective.train()
    assert objective.frozen is not None
    assert objective.projector is not None
    assert objective.queue is not None
    teacher, queue = objective.frozen.network, objective.queue.keys.clone()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    by_hand = copy.deepcopy(objective)
    assert by_hand.frozen is not None
    assert by_hand.projector is not None
    step(objective)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not teacher.training
    assert not any("teacher" in name or "frozen" in name for name in objective.state_dict())
    assert not {id(each) for each in teacher.parameters()} & {id(each) for each in objective.parameters()}
    losses, seen = [], []
    for view in batch.views:
        seen.append(teacher(view).detach())
        losses.append(queue_similarity_loss(by_hand.projector(by_hand.backbone(view)), seen[-1], queue, 0.2, 0.05))
    torch.testing.assert_close(make_objective(queue_size=8)(batch, AT).loss, (losses[0] + losses[1]) / 2)
    torch.testing.assert_close(objective.queue.keys, F.normalize(seen[0], dim=1))  # after the loss; the first view


def test_a_copy_shares_the_teacher_and_moving_an_objective_moves_it() -> None:
    objective = make_objective()
    copied = copy.deepcopy(objective)
    assert frozen_tensors(copied)[0] is frozen_tensors(objective)[0]
    assert copied.frozen is not objective.frozen
    objective.float()
    assert {each.dtype for each in frozen_tensors(objective) if each.is_floating_point()} == {torch.float32}


class Seen(BatchNormBackbone):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


@pytest.mark.parametrize("size", [None, 2, 4])
def test_a_teacher_gets_views_as_its_own_images_are_normalised_and_of_their_size(size: int | None) -> None:
    pixels = torch.rand(3, 3, 2, 2, dtype=torch.float64)
    mean, std, own_mean, own_std = ([0.4, 0.5, 0.6], [0.2, 0.3, 0.25], [0.1, 0.2, 0.3], [1.0, 0.5, 0.3])

    def normal(m: list[float], s: list[float]) -> Tensor:
        m_, s_ = (torch.tensor(each, dtype=torch.float64)[:, None, None] for each in (m, s))
        return (pixels - m_) / s_

    frozen = FrozenNetwork(
        Seen(), Normalisation(mean, std), Normalisation(own_mean, own_std), size, "bilinear"
    ).double()
    wanted = normal(own_mean, own_std)
    if size == 4:
        wanted = F.interpolate(wanted, (4, 4), mode="bilinear", antialias=True)
    torch.testing.assert_close(frozen(normal(mean, std)), wanted.flatten(1), rtol=0, atol=1e-6)
    same = FrozenNetwork(Seen(), Normalisation(mean, std), Normalisation(mean, std), size, "bilinear")
    assert size == 4 or torch.equal(same(pixels), pixels.flatten(1))  # nothing is rounded
    with pytest.raises(UserError, match=r"^objective\.teacher: it takes images of 3 channels, and 1 are normalised$"):
        FrozenNetwork(Seen(), Normalisation([0.5], [0.5]))


def test_what_cannot_work_is_refused() -> None:
    objective = make_objective()
    objective.check(PLAN)
    with pytest.raises(UserError, match=r"^objective\.queue_size=16: there are 10 training images: give no more"):
        objective.check(Plan(8, 1, 10, (2,)))
    within = make_objective(queue_size=None)
    with pytest.raises(UserError, match=r"^batch_size=2: similarities within a batch need 3 images at least$"):
        within.check(Plan(2, 1, 100, (2,)))
    with pytest.raises(UserError, match=r"^objective\.match=euclid: allowed are cosine, mse and similarities$"):
        make_objective(match="euclid")
    objective.frozen = None
    with pytest.raises(UserError, match=r"^objective\.teacher: no network was handed over by take_teacher$"):
        objective(make_batch(), AT)


OWN = ("data=digits", "batch_size=64", "max_steps=4", "num_workers=0", "health=none", "plan=null", "pictures=null")


def run_to(folder: Path, steps: int, teacher: Path) -> dict[str, Any]:
    """A run of four steps that is stopped after some of them, or goes on; returns what its newest state holds."""
    config = small_run("distill", folder, *OWN)
    config.objective.teacher = str(teacher)
    resolved = open_run(config)
    run = build_run(config, resolved)
    assert resolved["objective"]["teacher_width"] == config.objective.teacher_width == TEACHER_WIDTH
    with closing(run), pytest.raises(Interrupted) if steps < 4 else nullcontext():
        run.trainer.callbacks.insert(0, CtrlC(steps))  # type: ignore[attr-defined]
        run.fit(resolved)
    found: dict[str, Any] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return found


def test_a_run_goes_on_bit_for_bit_from_its_own_copy_of_a_teacher_that_is_gone_and_no_state_holds_it(
    tmp_path: Path,
) -> None:
    file = tmp_path / "teacher.ckpt"
    file.write_bytes(small_teacher().read_bytes())
    straight = run_to(tmp_path / "straight", 4, file)
    run_to(tmp_path / "stopped", 2, file)
    file.unlink()
    stopped = run_to(tmp_path / "stopped", 4, file)
    assert stopped["global_step"] == straight["global_step"] == 4
    for name, value in straight["state_dict"].items():
        assert torch.equal(stopped["state_dict"][name], value), name
        assert "teacher" not in name
    assert stopped["teacher"] == straight["teacher"]
    (tmp_path / "stopped" / "checkpoints" / "teacher.safetensors").unlink()
    with pytest.raises(UserError, match=r"^objective\.teacher=.*teacher\.ckpt: no such file"):
        run_to(tmp_path / "stopped", 4, file)


def test_without_its_copy_a_run_goes_on_with_the_same_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "teacher.ckpt"
    file.write_bytes(small_teacher().read_bytes())
    run_to(tmp_path / "run", 2, file)
    (tmp_path / "run" / "checkpoints" / "teacher.safetensors").unlink()
    content = torch.load(file, weights_only=True)
    content["state_dict"]["objective.backbone.conv1.weight"] += 1
    torch.save(content, file)
    with pytest.raises(UserError, match=r"^objective\.teacher_sha256=[0-9a-f]{64}: objective\.teacher=.* has [0-9a-f]"):
        run_to(tmp_path / "run", 4, file)


def test_the_teacher_is_loaded_with_every_tensor_and_its_own_images(tmp_path: Path) -> None:
    config = small_run("distill", tmp_path, *OWN)
    run = build_run(config, open_run(config))
    objective = run.module.objective
    run.close()
    assert isinstance(objective, Distill)
    assert objective.frozen is not None
    wanted = torch.load(small_teacher(), weights_only=True)["state_dict"]
    for name, value in objective.frozen.network.state_dict().items():
        assert torch.equal(value, wanted[f"objective.backbone.{name}"])
    assert objective.frozen.size == 12
    assert objective.product() is objective.backbone
    assert not objective.uses_labels


def test_a_file_that_does_not_say_its_network_needs_a_choice_and_a_teacher_with_labels_is_said(tmp_path: Path) -> None:
    content = torch.load(small_teacher(), weights_only=True)
    torch.save(content | {"uses_labels": True}, tmp_path / "labelled.ckpt")
    del content["config"]
    torch.save(content, tmp_path / "bare.ckpt")
    objective = make_objective()
    loader = TeacherLoader(tmp_path / "no run", instantiate(composed("views=distill_small").views), {"objective": {}})
    objective.teacher = str(tmp_path / "bare.ckpt")
    with pytest.raises(UserError, match=r"does not say its backbone: give objective\.teacher_backbone=NAME, a choice"):
        loader(objective)
    objective.teacher = str(tmp_path / "labelled.ckpt")
    loader(objective)
    assert objective.uses_labels

"""What a student and its teacher of several crops have in common: DINO, iBOT and DINOv2.

Caron et al. 2021, arXiv:2104.14294; Zhou et al. 2021, arXiv:2111.07832; Oquab et al. 2023, arXiv:2304.07193.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled import distributed
from unlabeled.errors import UserError
from unlabeled.objective import MetricBound, Progress
from unlabeled.objectives.parts.arguments import check_range, check_shapes
from unlabeled.objectives.parts.crops import crop_pairs
from unlabeled.objectives.parts.precision import full_precision


@full_precision
def dino_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    center: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Returns the cross-entropy of the student's softmax with the teacher's, mean over pairs of different crops.

    arXiv:2104.14294, eq. 1 to 4: the teacher's is softmax((t − c) / τ_t), without a gradient; mean over local images.

    Args:
        student: [B, K] for each crop, raw outputs; the first of them are of the crops that the teacher saw.
        teacher: [B, K] for each crop that it saw, raw outputs; get no gradient.
        center: [K], c.
        student_temperature, teacher_temperature: above 0.

    Returns:
        Scalar; ln K when both are uniform.

    Raises:
        UserError: shapes that do not fit together, fewer than two crops of the student, more of the teacher than of it,
            or a temperature that is not above 0.
    """
    if len(student) < 2 or not 1 <= len(teacher) <= len(student):
        raise UserError(f"dino_loss: {len(student)} crops of the student, {len(teacher)} of the teacher: give 2 and 1")
    named = {f"student[{n}]": (each, "BK") for n, each in enumerate(student)}
    named |= {f"teacher[{n}]": (each, "BK") for n, each in enumerate(teacher)}
    check_shapes("dino_loss", {**named, "center": (center, "K")})
    check_range("dino_loss", student_temperature=student_temperature, teacher_temperature=teacher_temperature)
    targets = [centred(each, center, teacher_temperature) for each in teacher]
    return loss_of_pairs(student, targets, student_temperature)


@full_precision
def centred(teacher: Tensor, center: Tensor, temperature: float) -> Tensor:
    """Returns softmax((t − c) / τ) of raw outputs [..., K], without a gradient."""
    return F.softmax((teacher.detach() - center) / temperature, dim=-1)


@full_precision
def loss_of_pairs(student: Sequence[Tensor], targets: Sequence[Tensor], temperature: float) -> Tensor:
    """Returns the cross-entropy of raw outputs with targets, [B, K] for each crop, mean over pairs of different crops.

    The first of the student's crops are those of the targets.
    """
    predictions = [F.log_softmax(each / temperature, dim=1) for each in student]
    losses = [-(targets[i] * predictions[v]).sum(1).mean() for i, v in crop_pairs(len(targets), len(student))]
    return torch.stack(losses).mean()


@full_precision
def loss_of_rows(student: Tensor, targets: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Returns the sum over rows of weight [n] times the cross-entropy of raw outputs [n, K] with targets [n, K]."""
    losses = -(targets * F.log_softmax(student / temperature, dim=1)).sum(1)
    return (losses * weights.to(losses.dtype)).sum()


@full_precision
def moved_center(center: Tensor, teacher: Tensor, momentum: float) -> Tensor:
    """Returns m·c + (1 − m)·mean of the teacher's raw outputs over all processes (arXiv:2104.14294, eq. 4).

    Args:
        center: [K].
        teacher: [n, K], raw outputs for all crops, the same n on every process.
        momentum: m in [0, 1].

    Returns:
        [K], without a gradient.

    Raises:
        UserError: another width than the centre's, or a momentum outside of [0, 1].
    """
    check_shapes("moved_center", {"center": (center, "K"), "teacher": (teacher, "NK")})
    check_range("moved_center", most=1, at_least=True, momentum=momentum)
    return momentum * center + (1 - momentum) * distributed.mean(teacher.detach().mean(0))


@full_precision
def moved_by_rows(center: Tensor, teacher: Tensor, counted: Tensor, momentum: float) -> Tensor:
    """Does the same where each process has another number of rows [n, K], of those that are ``counted``, bool [n].

    Without any row the centre stays.
    """
    named = {"center": (center, "K"), "teacher": (teacher, "NK"), "counted": (counted, "N")}
    check_shapes("moved_by_rows", named, empty=True)
    weights = counted.to(teacher.dtype)
    sums = distributed.total(torch.cat([weights @ teacher.detach(), weights.sum()[None]]))
    mean = sums[:-1] / sums[-1].clamp(min=1)
    return torch.where(sums[-1] > 0, momentum * center + (1 - momentum) * mean, center)


def by_epoch(progress: Progress, first: float, last: float, epochs: float) -> float:
    """Returns τ_t of an epoch, as ``teacher_temp_schedule`` of DINO and iBOT: both ends are among the epochs."""
    return _between(math.floor(progress.epoch), first, last, epochs)


def by_step(progress: Progress, first: float, last: float, epochs: float) -> float:
    """Returns τ_t of a step, as DINOv2's ``CosineScheduler`` warms up: both ends are among the steps."""
    return _between(progress.step, first, last, epochs * progress.steps_per_epoch)


def _between(place: int, first: float, last: float, places: float) -> float:
    if place >= places:
        return last
    return first + (last - first) * min(1.0, place / max(1.0, places - 1))  # places may be a fraction


def drop_gradients(*modules: nn.Module) -> None:
    """Removes the gradients of the modules' parameters: the optimizer then leaves these out."""
    for module in modules:
        for parameter in module.parameters():
            parameter.grad = None


@full_precision
def target_metrics(p: Tensor) -> dict[str, Tensor]:
    """Returns the entropy of targets [B, K], and over how many prototypes their mean is spread, 1 to all."""
    spread = torch.special.entr(distributed.mean(p.mean(0))).sum().exp()
    return {"teacher_entropy": torch.special.entr(p).sum(1).mean(), "effective_prototypes": spread}


@full_precision
def patch_metrics(loss: Tensor, p: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Returns the patches' loss over masked crops alone, and the same of their targets as :func:`target_metrics`.

    Args:
        loss: of this process, the mean over its crops.
        p: [n, K], targets of its masked patches.
        weights: [n], of which the sum is the share of masked crops.
    """
    weights = weights.to(p.dtype)
    entropies = torch.special.entr(p).sum(1)
    mean = distributed.mean(torch.cat([weights @ p, torch.stack([weights.sum(), weights @ entropies])]))
    share = mean[-2].clamp(min=torch.finfo(p.dtype).tiny)  # 0 where no crop is masked
    spread = torch.special.entr(mean[:-2] / share).sum().exp()
    return {
        "patch_loss": loss.detach() / share,
        "patch_teacher_entropy": mean[-1] / share,
        "effective_patch_prototypes": spread,
    }


def one_prototype_for_all(patches: bool = False) -> MetricBound:
    """Bounds the spread of the teacher's outputs over the prototypes; the other collapse shows in the loss."""
    return MetricBound(
        "one-prototype-for-all-patches" if patches else "one-prototype-for-all",
        "effective_patch_prototypes" if patches else "effective_prototypes",
        1.5,
        math.inf,
        f"all {'patches' if patches else 'images'} get the same prototype: the outputs are not centred",
        "a smaller objective.center_momentum, and a look at whether the centre moves; lower optimizer.lr",
        lasting=True,
    )


def uniform_outputs(prototypes: int, patches: bool = False) -> MetricBound:
    """Bounds the entropy of the teacher's outputs below that of uniform ones, ln K."""
    return MetricBound(
        "patch-outputs-uniform" if patches else "outputs-uniform",
        "patch_teacher_entropy" if patches else "teacher_entropy",
        0.0,
        0.995 * math.log(prototypes),
        "the teacher's outputs are uniform over the prototypes: nothing can be learned from them",
        "lower teacher temperatures, a larger objective.center_momentum, or a lower optimizer.lr",
        lasting=True,
    )

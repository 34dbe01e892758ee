"""Failures as people make them, put into a run from outside. Nothing in ``ssl/`` knows of them."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.backbones.frozen import FrozenNetwork
from unlabeled.data.loaders import Resumable
from unlabeled.data.order import GlobalOrder
from unlabeled.objectives import (
    byol,
    data2vec,
    dino,
    dinov2,
    distill,
    fixmatch,
    ibot,
    ijepa,
    moco,
    nnclr,
    paws,
    relic,
    simclr,
    simsiam,
    supcon,
    swav,
)
from unlabeled.objectives.parts import distillation, ema
from unlabeled.objectives.parts.queue import KeyQueue
from unlabeled.training.run import Run


@dataclass(frozen=True)
class Failure:
    """One way to spoil a run.

    Args:
        name: for the table.
        objectives: the recipes that it concerns.
        overrides: of the configuration, if that is how it is made.
        before: what is replaced while the run is built and trained.
        after: what is done to the built run.
    """

    name: str
    objectives: Sequence[str]
    overrides: Sequence[str] = ()
    before: Callable[[ExitStack], None] = lambda stack: None
    after: Callable[[Run], None] = lambda run: None


def replace(stack: ExitStack, owner: Any, **names: Any) -> None:
    for name, value in names.items():
        stack.enter_context(patch.object(owner, name, value))


class _NoNormalize:
    """``torch.nn.functional`` whose normalize does nothing."""

    def __getattr__(self, name: str) -> Any:
        return (lambda x, dim=1, eps=0.0: x) if name == "normalize" else getattr(F, name)


def without_normalisation(stack: ExitStack) -> None:
    for module in (simclr, moco, relic, paws, swav, byol, nnclr, supcon):
        replace(stack, module, F=_NoNormalize())


def undetached(loss: Callable[..., Any]) -> Callable[..., Any]:
    """The loss with ``detach`` doing nothing inside."""

    def run(*arguments: Any, **named: Any) -> Any:
        with patch.object(Tensor, "detach", lambda self: self):
            return loss(*arguments, **named)

    return run


def without_stop_gradient(stack: ExitStack) -> None:
    """Teachers are trained along, and keys, targets and codes carry their gradient."""
    replace(stack, ema, frozen_copy=copy.deepcopy)
    replace(stack, moco, encode_shuffled=moco.encode_shuffled.__wrapped__)  # type: ignore[attr-defined]
    replace(stack, moco, queue_contrast=queue_contrast_with_gradient)
    replace(stack, relic.ReLIC, _target=relic.ReLIC._target.__wrapped__)  # type: ignore[attr-defined]
    replace(stack, relic, gather_targets=undetached(relic.gather_targets))
    replace(stack, paws, target_classes=paws.target_classes.__wrapped__)  # type: ignore[attr-defined]
    replace(stack, swav, sinkhorn=sinkhorn_with_gradient)
    replace(stack, byol.BYOL, _targets=byol.BYOL._targets.__wrapped__)  # type: ignore[attr-defined]
    replace(stack, byol, byol_loss=undetached(byol.byol_loss))
    replace(stack, simsiam, simsiam_loss=undetached(simsiam.simsiam_loss))
    replace(stack, dino.DINO, _teach=dino.DINO._teach.__wrapped__)  # type: ignore[attr-defined]
    replace(stack, dino, dino_loss=undetached(dino.dino_loss))
    replace(stack, ibot.IBOT, _teach=ibot.IBOT._teach.__wrapped__)  # type: ignore[attr-defined]
    replace(stack, ibot, dino_loss=undetached(distillation.dino_loss), centred=undetached(distillation.centred))
    replace(stack, dinov2.DINOv2, _teach=dinov2.DINOv2._teach.__wrapped__)  # type: ignore[attr-defined]
    replace(stack, dinov2, centred=undetached(distillation.centred))
    replace(stack, data2vec.Data2Vec, _teach=data2vec.Data2Vec._teach.__wrapped__)  # type: ignore[attr-defined]
    replace(stack, data2vec, data2vec_loss=undetached(data2vec.data2vec_loss))
    replace(stack, ijepa.IJEPA, _teach=ijepa.IJEPA._teach.__wrapped__)  # type: ignore[attr-defined]
    replace(stack, ijepa, ijepa_loss=undetached(ijepa.ijepa_loss))


def queue_contrast_with_gradient(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    q, k = F.normalize(q.float(), dim=1) / temperature, F.normalize(k.float(), dim=1)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.detach().clone().T], 1)
    return (logits.logsumexp(1) - logits[:, 0]).mean()


def sinkhorn_with_gradient(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    log_codes = scores / epsilon
    for _ in range(iterations):
        log_codes = F.log_softmax(log_codes - log_codes.logsumexp(0), dim=1)
    return log_codes.exp()


def without_sinkhorn(stack: ExitStack) -> None:
    replace(stack, swav, sinkhorn=lambda scores, epsilon, iterations: F.softmax(scores.detach() / epsilon, dim=1))


def enqueued_before_look_up(stack: ExitStack) -> None:
    look_up = KeyQueue.nearest

    def nearest(queue: KeyQueue, z: Tensor) -> Tensor:
        queue.enqueue(z.detach())
        return look_up(queue, z)

    replace(stack, KeyQueue, nearest=nearest)


def frozen_teacher(stack: ExitStack) -> None:
    replace(stack, ema, update=lambda target, online, momentum: None)


def without_shuffled_batchnorm(stack: ExitStack) -> None:
    replace(stack, moco, encode_shuffled=torch.no_grad()(lambda encode, images, seed: encode(images)))


def not_shuffled(stack: ExitStack) -> None:
    def epoch(order: GlobalOrder, number: int) -> Tensor:
        shape = (order.steps_per_epoch, order.accumulate, order.batch_size)
        return torch.arange(shape[0] * shape[1] * shape[2]).view(shape)

    replace(stack, GlobalOrder, epoch=epoch)


class _Grey(Resumable):
    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            yield batch._replace(images=torch.full_like(batch.images, 128))


def constant_images(run: Run) -> None:
    serve = run.data.train_dataloader
    setattr(run.data, "train_dataloader", lambda: _Grey(serve()))  # noqa: B010, mypy minds a method


def without_predictor(run: Run) -> None:
    run.module.objective.predictor = torch.nn.Identity()


def frozen_centre(stack: ExitStack) -> None:
    for module in (dino, ibot, dinov2):
        replace(stack, module, moved_center=lambda center, *rest: center.clone())
    replace(stack, dinov2, moved_by_rows=lambda center, *rest: center.clone())


def one_cluster_for_all(run: Run) -> None:
    """As heads that were trained without their entropy."""
    objective: Any = run.module.objective
    with torch.no_grad():
        objective.classifier.bias[:: len(objective.classifier.bias) // objective.heads] += 100


def no_certain_image(run: Run) -> None:
    objective: Any = run.module.objective
    objective.threshold = 1.0


def teacher_without_images(run: Run) -> None:
    """The teacher gets views as if they had other means: all of them are nearly black to it."""
    frozen = next(each for each in run.module.objective.modules() if isinstance(each, FrozenNetwork))
    frozen.scale, frozen.shift = torch.tensor(0.0), torch.tensor(-2.0)


def student_of_another(stack: ExitStack) -> None:
    """The teacher's features are those of other images."""
    loss = distill.Distill._loss

    def shifted(objective: distill.Distill, student: Tensor, teacher: Tensor) -> Tensor:
        return loss(objective, student, teacher[torch.randperm(len(teacher))])

    replace(stack, distill.Distill, _loss=shifted)


def sure_of_all(run: Run) -> None:
    """The classifier is sure of one class in the weak view of every unlabelled image, which is its label then."""
    objective: Any = run.module.objective
    labelled, count = objective.support.images_per_step, run.data.batch_size

    def of_one_class(module: nn.Module, given: Any, logits: Tensor) -> Tensor:
        sure = torch.zeros_like(logits[:count]).index_fill(1, torch.tensor([0]), 100.0)
        return torch.cat([logits[:labelled], sure, logits[labelled + count :]])

    objective.classifier.register_forward_hook(of_one_class)


def shuffled_labels(stack: ExitStack) -> None:
    """The labelled images have each other's labels, others in each step."""
    loss = fixmatch.fixmatch_loss

    def shuffled(labelled: Tensor, labels: Tensor, *rest: Any) -> Tensor:
        return loss(labelled, labels[torch.randperm(len(labels))], *rest)

    replace(stack, fixmatch, fixmatch_loss=shuffled)


ALL = ("simclr", "moco_v2", "swav", "relicv2", "paws", "mae")
FURTHER = ("byol", "simsiam", "barlow_twins", "vicreg", "dino", "ibot", "dinov2")
DISTILLED = ("dino", "ibot", "dinov2")
UNSHARPENED = ["objective.first_teacher_temperature=1.0", "objective.teacher_temperature=1.0"]
# Methods with a stop-gradient
STOPPED = ("moco_v2", "relicv2", "paws", "swav", "byol", "simsiam", *DISTILLED, "ijepa", "data2vec")
FAILURES = [
    Failure("no stop-gradient", STOPPED, before=without_stop_gradient),
    Failure("no predictor", ("relicv2",), ["objective.predictor=false"]),
    Failure("no normalisation", (*ALL[:-1], "byol", "nnclr", "supcon", "triplet"), before=without_normalisation),
    Failure("no predictor", ("byol", "simsiam"), after=without_predictor),
    Failure("frozen centre", DISTILLED, before=frozen_centre),
    Failure("no sharpening", ("dino", "dinov2"), UNSHARPENED),
    Failure(
        "no sharpening",
        ("ibot",),
        [*UNSHARPENED, "objective.first_patch_temperature=1.0", "objective.patch_temperature=1.0"],
    ),
    Failure("no redundancy term", ("barlow_twins",), ["objective.off_diagonal_weight=0.0"]),
    Failure("no variance term", ("vicreg",), ["objective.variance=0.0"]),
    Failure("enqueued before look-up", ("nnclr",), before=enqueued_before_look_up),
    Failure("no entropy term", ("scan",), ["objective.entropy_weight=0.0"]),
    Failure("one cluster for all", ("scan",), after=one_cluster_for_all),
    Failure("no certain image", ("self_label",), after=no_certain_image),
    Failure("teacher sees nothing", ("distill",), after=teacher_without_images),
    Failure("features of other images", ("distill",), before=student_of_another),
    Failure("one class for all", ("fixmatch",), after=sure_of_all),
    Failure("shuffled labels", ("fixmatch",), before=shuffled_labels),
    Failure("no SIGReg", ("lejepa",), ["objective.regularisation=0.0"]),
    Failure("no Sinkhorn", ("swav",), before=without_sinkhorn),
    Failure("no sharpening", ("paws",), ["objective.sharpen=1.0"]),
    Failure("learning rate x 30", ALL, ["optimizer.lr=30x"]),
    Failure(
        "frozen teacher",
        ("moco_v2", "relicv2", "byol", *DISTILLED, "ijepa", "data2vec", "fixmatch"),
        before=frozen_teacher,
    ),
    Failure("constant images", (*ALL, *FURTHER), after=constant_images),
    Failure("not shuffled", (*ALL, *FURTHER), before=not_shuffled),
    Failure("no ShuffleBN", ("moco_v2",), before=without_shuffled_batchnorm),
]

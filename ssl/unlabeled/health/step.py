"""Measures the health of a step: its images, embeddings, gradients, update and teacher."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled import distributed
from unlabeled.distributed.dtensor import local_shard
from unlabeled.objective import Batch, HasTeacher, Objective, Output
from unlabeled.representation.spectrum import normalised_std

PIXEL = 255  # the largest value of a pixel
COMPARED = 256  # images of a batch


class StepHealth:
    """Measures one optimizer step, from its last batch to its update, without changing anything.

    Call in this order: :meth:`output` after the forward, :meth:`gradients` before the optimizer's step, :meth:`update`
    after it.

    Args:
        objective: the method that is trained.
        sharded: whether each process holds a shard of every weight (FSDP).
    """

    def __init__(self, objective: Objective, sharded: bool = False) -> None:
        self.objective, self.sharded = objective, sharded
        self.found: dict[str, Tensor] = {}
        self._before: dict[str, list[Tensor]] = {}
        self._parts: dict[str, list[nn.Parameter]] = {}

    def output(self, batch: Batch, output: Output) -> None:
        """Measures a batch and the objective's output; backward adds the gradient of the embeddings."""
        self.found |= image_metrics(batch)
        if output.targets is not None:
            self.found["target_gradient"] = output.loss.new_full((), float(output.targets.requires_grad))
        z = output.embeddings
        if z is not None:
            self.found["embedding_std"] = output.loss.new_tensor(normalised_std(z.detach()) * z.shape[1] ** 0.5)
            if z.requires_grad:
                z.register_hook(lambda gradient: self._note_radial(z.detach(), gradient))  # type: ignore[no-untyped-call]

    def _note_radial(self, z: Tensor, gradient: Tensor) -> None:
        self.found["radial_gradient"] = F.cosine_similarity(z.float(), gradient.float()).abs().mean()

    @torch.no_grad()
    def gradients(self) -> None:
        """Measures the gradient norm of each part and saves the weights, to compare them after the update.

        Parameters are looked up here: during the forward, FSDP replaces them by others whose memory is freed.
        """
        self._parts = trained_parts(self.objective)
        for part, weights in self._parts.items():
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            self.found[f"gradient_norm/{part}"] = self._norm(gradients, local_shard(weights[0]))
        self._before = {part: [each.clone() for each in local_matrices(self._parts[part])] for part in self._parts}

    def forget_gradients(self) -> None:
        """Drops the gradients of a step that was skipped: they are not finite, and there was no update."""
        for part in self._parts:
            self.found.pop(f"gradient_norm/{part}", None)
        self._before = {}

    @torch.no_grad()
    def update(self) -> None:
        """Measures ‖Δw‖ / ‖w‖ of each part's matrices, and the distance of the teacher from its student."""
        for part, before in self._before.items():
            now, like = local_matrices(self._parts[part]), local_shard(self._parts[part][0])
            if any(weight.ndim > 1 for weight in self._parts[part]):
                change = self._norm(torch._foreach_sub(now, before) if now else [], like)
                self.found[f"update_ratio/{part}"] = change / self._norm(before, like).clamp_min(1e-12)
        self.found |= self._teacher()

    def _teacher(self) -> dict[str, Tensor]:
        """Returns the distance of teacher and student over the student's norm, and a number that shows any change."""
        if not isinstance(self.objective, HasTeacher):
            return {}
        pairs = self.objective.teacher_student_pairs()
        slow, fast = (local_pieces(p for pair in pairs for p in pair[side].parameters()) for side in (0, 1))
        like = local_shard(next(pairs[0][0].parameters()))
        apart = self._norm(torch._foreach_sub(slow, fast) if slow else [], like)
        distance = apart / self._norm(fast, like).clamp_min(1e-12)
        return {"teacher_distance": distance, "teacher_length": self._norm(slow, like)}

    def _norm(self, tensors: Sequence[Tensor], like: Tensor) -> Tensor:
        """Returns the norm of all tensors together, float64 []; over all processes if each holds a shard."""
        here = local_pieces(tensors)
        squares = torch.zeros((), dtype=torch.float64, device=like.device)
        if here:
            squares = torch.stack(torch._foreach_norm(here)).double().square().sum()
        return (distributed.total(squares) if self.sharded else squares).sqrt()


def trained_parts(objective: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Returns the parameters that an optimizer trains, by the objective's modules."""
    parts = {
        name: [parameter for parameter in module.parameters() if parameter.requires_grad]
        for name, module in objective.named_children()
    }
    return {name: parameters for name, parameters in parts.items() if parameters}


def local_matrices(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Returns this process's pieces without biases and norms, whose relative change says little."""
    return local_pieces(parameter for parameter in parameters if parameter.ndim > 1)


def local_pieces(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Returns this process's pieces of the tensors without empty ones, which torch cannot copy or measure."""
    return [local_shard(each) for each in tensors if local_shard(each).numel()]


def image_metrics(batch: Batch) -> dict[str, Tensor]:
    """Measures how much the images of a batch differ and vary, and whether they come in the order of their source.

    ``image_difference`` is the standard deviation over images, mean over pixels; ``pixel_variation`` the standard
    deviation over pixels, mean over images, both as shares of white and of at most 256 images; ``neighbours`` the share
    of rows whose successor is the next image of the source.
    """
    images = batch.images[:COMPARED]
    if batch.sizes is not None:  # the part that all have: what is below and beside a smaller image is no content
        height, width = batch.sizes[:COMPARED].amin(0).tolist()
        images = images[:, :, :height, :width]
    images = images.flatten(1).float() / PIXEL
    step = batch.ids[1:] - batch.ids[:-1]
    return {
        "image_difference": images.std(0, unbiased=False).mean(),
        "pixel_variation": images.std(1, unbiased=False).mean(),
        "neighbours": (step == 1).float().mean() if len(step) else images.new_zeros(()),
    }

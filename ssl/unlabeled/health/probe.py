"""Measures features on a fixed set of images: rank, spread, the teacher. Runs rarely, in eval mode."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled import distributed
from unlabeled.core.seeding import derive_seed
from unlabeled.data.module import DataModule
from unlabeled.data.padding import batch_to_device
from unlabeled.distributed.fsdp import FullySharded
from unlabeled.evaluation.features import Features, Transform, apply_head, extract
from unlabeled.objective import Batch, HasTeacher
from unlabeled.representation.similarity import alignment, uniformity
from unlabeled.representation.spectrum import normalised_std, ranks
from unlabeled.training.pretraining import Pretraining
from unlabeled.views.key import ViewKey

BATCH = 256  # images per forward pass
PER_DIMENSION = 4  # images for each feature: with fewer, RankMe is lower
COMPARED = 2  # batches for the comparison of views, and of teacher and student
_VIEWS = 0x4EA1  # gives these views other random draws than the run


class ProbeSet:
    """The same training images in every measurement; each process holds its share of them, decoded, in memory.

    Args:
        images: the least number; raised to four for each feature, and limited to all images there are.
    """

    def __init__(self, images: int) -> None:
        self.images = images
        self._batches: list[Batch] = []

    def measure(self, module: Pretraining, data: DataModule) -> dict[str, float]:
        """Returns numbers by name, equal on every process; changes no network, statistics or random state."""
        self._batches = self._batches or self._read(module, data)
        objective = module.objective
        own = self._own_features(objective.backbone, self._batches, module.views.evaluation_view, module)
        x = distributed.gather_rows(own)
        found = {"probe_images": float(len(x)), "features_finite": float(x.isfinite().all())}
        if not found["features_finite"]:
            return found
        found |= _spread("feature", x) | self._teacher(module, own)
        projector = dict(objective.named_children()).get("projector")
        if projector is None or isinstance(module.trainer.strategy, FullySharded):
            return found  # FSDP gathers a projector's weights only while the objective is called
        nothing = torch.zeros(len(x), dtype=torch.long)
        z = apply_head(projector, Features(x, nothing, nothing)).x
        if not z.isfinite().all():
            return found | {"features_finite": 0.0}
        found |= _spread("embedding", z) | {"uniformity": uniformity(z)}
        return found | self._alignment(nn.Sequential(objective.backbone, projector), module)

    def _read(self, module: Pretraining, data: DataModule) -> list[Batch]:
        wanted = max(self.images, PER_DIMENSION * module.objective.backbone.num_features)
        order = torch.randperm(len(data.train.labels), generator=torch.Generator().manual_seed(module.seed))
        share = max(1, min(wanted, len(order)) // distributed.world_size())
        mine = order[distributed.rank() * share : (distributed.rank() + 1) * share]
        return list(data.batches(data.train, mine, BATCH))

    def _features(
        self, network: nn.Module, batches: Iterable[Batch], transform: Transform, module: Pretraining
    ) -> Tensor:
        """Returns the features [N, D] of all processes' images, including values that are not finite."""
        return distributed.gather_rows(self._own_features(network, batches, transform, module))

    def _own_features(
        self, network: nn.Module, batches: Iterable[Batch], transform: Transform, module: Pretraining
    ) -> Tensor:
        """Returns those of this process's images, of which there may be fewer than of another's: some are corrupt."""
        precision = str(module.trainer.precision)
        return extract(network, batches, transform, module.device, precision, check_finite=False).x.to(module.device)

    def _teacher(self, module: Pretraining, own: Tensor) -> dict[str, float]:
        """Returns the mean cosine between the features of teacher and student for the same image."""
        if not isinstance(module.objective, HasTeacher):
            return {}
        copy = module.objective.teacher_student_pairs()[0][0]
        teacher = self._own_features(copy, self._batches[:COMPARED], module.views.evaluation_view, module)
        return {"teacher_cosine": float(distributed.mean(F.cosine_similarity(own[: len(teacher)], teacher).mean()))}

    def _alignment(self, network: nn.Module, module: Pretraining) -> dict[str, float]:
        """Returns the alignment of the embeddings of two views; nothing if only one view is made."""
        views = [self._two_views(batch, module) for batch in self._batches[:COMPARED]]
        if len(views[0]) < 2:
            return {}
        first, second = (self._features(network, seen, _unchanged, module) for seen in zip(*views, strict=True))
        return {"alignment": alignment(first, second)}

    def _two_views(self, batch: Batch, module: Pretraining) -> list[Batch]:
        """Returns the first two views of a batch, each as a batch, with the same draws in every measurement."""
        images, sizes = batch_to_device(batch, module.device)
        key = ViewKey(derive_seed(module.seed, _VIEWS), 0, 0, len(images))
        made = module.views.uncompiled()
        views = made(images, batch.ids.to(images.device), key, first=2, sizes=sizes)
        return [batch._replace(images=view, sizes=None) for view in views]


def _unchanged(images: Tensor, sizes: Tensor | None) -> Tensor:
    return images


def _spread(of: str, x: Tensor) -> dict[str, float]:
    found = ranks(x)
    return {
        f"{of}_rankme": found.rankme,
        f"{of}_rankme_centred": found.rankme_centred,
        f"{of}_effective_rank": found.effective_rank,
        f"{of}_std": normalised_std(x) * x.shape[1] ** 0.5,
    }

"""What a kept head says of images: the predictions of the report, to the bit, for the report's own test images."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from unlabeled.data.memory import ArraySource, decode_all
from unlabeled.data.module import DataModule
from unlabeled.data.source import CorruptImage, Source
from unlabeled.errors import UserError
from unlabeled.evaluation.features import (
    Features,
    Transform,
    concatenate,
    extract_each,
    full_float32,
    require_finite_images,
)
from unlabeled.evaluation.heads.calibration import Threshold, bank_of, probe_of
from unlabeled.evaluation.heads.kept import KeptHead
from unlabeled.evaluation.heads.predicted import Predicted
from unlabeled.evaluation.probe import Head
from unlabeled.evaluation.probes.linear import Scaling, classify
from unlabeled.evaluation.recipes.finetune import Classifier, add_drop_path
from unlabeled.evaluation.recipes.loop import make_score
from unlabeled.objective import Backbone, Batch

BLOCK = 50_000  # images whose features are held at a time: a report's products have the same bits in parts of this size


@dataclass(frozen=True)
class Predictor:
    """A network with a head that was fitted on its features.

    Args:
        kept: the head.
        network: of :func:`network_of`.
        view: of uint8 images, nothing random.
        device: where both compute.
        limit: the least confidence of a prediction that is made; None: all are made.
        images_per_pass: through the network at once; None: as in the evaluation, so that bits are.
    """

    kept: KeptHead
    network: nn.Module
    view: Transform
    device: torch.device
    limit: Threshold | None = None
    images_per_pass: int | None = None

    def predict(self, data: DataModule, source: Source) -> Iterator[Predicted]:
        """Yields what is predicted of all images of a source, in order, at most :data:`BLOCK` at a time."""
        decoded = decode_all(source, 0) if isinstance(source, ArraySource) else source  # which copies nothing
        readable = _any_readable(source)
        at_once = self.images_per_pass or self.kept.context.images_per_pass
        for first in range(0, len(source), BLOCK):
            rows = torch.arange(first, min(len(source), first + BLOCK))
            found = self._features(data.batches(decoded, rows, at_once)) if readable else None
            yield self._predicted(source, rows, found)

    def _features(self, batches: Iterable[Batch]) -> Features | None:
        parts: list[Features] = []
        precision, kind = self.kept.context.precision, self.kept.head.features
        kinds = list(dict.fromkeys(["last", kind]))
        extract_each(self.network, batches, self.view, self.device, precision, kinds, parts.append)
        return require_finite_images(concatenate(parts), precision) if parts else None

    def _predicted(self, source: Source, rows: Tensor, found: Features | None) -> Predicted:
        """Puts predictions and, of images without features, the reasons into the order of ``rows``."""
        context = self.kept.context
        classes = torch.full((len(rows),), -1)
        log_p = torch.full((len(rows), len(context.classes)), torch.nan, dtype=torch.float64)
        if found is not None:
            places = found.ids - rows[0]
            predicted, log_probabilities = classify_features(self.kept, found.to(self.device))
            classes[places] = predicted.cpu()
            log_p[places] = self.kept.calibration.apply(log_probabilities).cpu()
        names = [source.name(row) for row in rows.tolist()]
        labels = [source.classes[label] if label >= 0 else "" for label in source.labels[rows].tolist()]
        reasons = [_reason(source, row) if label < 0 else "" for row, label in zip(rows.tolist(), classes, strict=True)]
        return Predicted(names, list(context.classes), labels, classes, log_p.exp(), reasons, self.limit)


def network_of(kept: KeptHead, backbone: Backbone) -> nn.Module:
    """Returns what maps images to what the head takes: the backbone with its weights, or what was fine-tuned of it.

    Raises:
        UserError: the fine-tuned tensors do not fit the backbone.
    """
    if rate := kept.head.settings.get("drop_path"):
        add_drop_path(backbone, rate)  # at work in members of an ensemble alone
    if kept.head.kind != "network":
        backbone.check_kinds([kept.head.features])
        return backbone
    own = kept.head.settings
    network = Classifier(backbone, len(kept.context.classes), own["pooling"], 0.0, own.get("dropout", 0.0))
    state = {name[6:]: value for name, value in kept.head.tensors.items() if name.startswith("state.")}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        problem = " ".join(str(error).split())
        raise UserError(f"{kept.path}: its network does not fit the backbone: {problem}") from error
    return network.eval()


@torch.no_grad()
def classify_features(kept: KeptHead, features: Features) -> tuple[Tensor, Tensor]:
    """Returns the class int64 [N] and log probabilities [N, C], not calibrated, where the features lie."""
    head, count, device = kept.head, len(kept.context.classes), features.x.device
    head = replace(head, tensors={name: value.to(device) for name, value in head.tensors.items()})
    with full_float32(device):
        if head.kind == "linear":
            return _by_linear(head, features.of(head.features).x, count)
        nobody = Features(features.x, torch.zeros_like(features.labels), features.ids, features.others)
        if head.kind == "knn":
            score = probe_of(head).fit_predict(bank_of(head), nobody, count)[0]
        else:
            score = make_score("", features.x, nobody.labels, head.tensors["columns"], str(kept.path), {}, [], {})
    assert score.predictions is not None
    assert score.log_probabilities is not None
    return score.predictions, score.log_probabilities


def _by_linear(head: Head, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    scaling = Scaling(head.tensors["mean"], head.tensors["scale"])
    if x.shape[1] != len(scaling.mean):
        raise UserError(f"the head takes {len(scaling.mean)} features and the network gives {x.shape[1]}")
    return classify(head.tensors["weight"], scaling(x), head.tensors["columns"], count)


def _any_readable(source: Source) -> bool:
    """Checks whether any image can be decoded: a loader has nothing to put in the place of one that cannot."""
    for row in range(len(source)):
        with suppress(CorruptImage):
            source.decode(row)
            return True
    return False


def _reason(source: Source, row: int) -> str:
    try:
        source.decode(row)
    except CorruptImage as error:
        return str(error)
    return "was not decoded"

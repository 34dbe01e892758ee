"""From a composed configuration to what predicts with a kept head."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from unlabeled.commands.build.embedding import with_folder
from unlabeled.commands.build.evaluation import complete_config
from unlabeled.commands.build.network import build_backbone
from unlabeled.commands.build.other_images import with_all_images
from unlabeled.commands.build.run import build_data
from unlabeled.commands.checks.classifiers import check_members, named
from unlabeled.core.places import checkpoint_path, folder_of
from unlabeled.data.identity import read_identity, shared_images
from unlabeled.data.module import DataModule
from unlabeled.data.source import Source, Splits
from unlabeled.errors import UserError
from unlabeled.evaluation.heads.calibration import threshold
from unlabeled.evaluation.heads.kept import FOLDER, KeptHead, read_head
from unlabeled.evaluation.heads.members import Sampled, pooled
from unlabeled.evaluation.heads.predicted import Predicted
from unlabeled.evaluation.heads.predictor import Predictor, network_of
from unlabeled.training.same_data import DATA_FILES
from unlabeled.views.pipeline import Views
from unlabeled.weights import Checkpoint, load_backbone, read_checkpoint

BATCH = 256  # only of the order of loading; how many images go through the network at once is the head's


@dataclass(frozen=True)
class Prediction:
    """A head with its network, or several of them that are one classifier, and the images to classify."""

    predictors: Sequence[Predictor]  # the first is that of the run that was named
    data: DataModule
    source: Source
    checkpoint: Checkpoint  # of the first

    def split(self) -> str:
        """Returns which split is predicted, ``train`` or ``test``, of a data set that has both; else ""."""
        if self.data.splits.test is None:
            return ""
        return "test" if self.source is self.data.splits.test else "train"

    def trained_on(self) -> int:
        """Returns how many of the images are training images of the run, known by the contents of their files."""
        folder = folder_of(self.checkpoint.path)  # of fine-tuning, it lies in that of the run
        known = [read_identity(place / DATA_FILES) for place in (folder, folder.parent)]
        return max((shared_images(self.source, each) for each in known if each is not None), default=0)

    def parts(self) -> Iterator[Predicted]:
        """Yields what is predicted, in the order of the images."""
        members = [each.predict(self.data, self.source) for each in self.predictors]
        return pooled(members) if len(members) > 1 else members[0]


def build_prediction(config: DictConfig, given: Splits | None = None) -> Prediction:
    """Reads checkpoints and heads, and opens the images.

    Args:
        config: as composed from ``conf/predict.yaml``.
        given: images in place of a data set that is named.

    Raises:
        UserError: there is no such head, or it is of other weights or other views than those given.
    """
    first, filled, checkpoint = _predictor(config, with_data=given is None)
    splits_of = OmegaConf.create({**filled, "memory_gib": 0.0, "batch_size": BATCH})
    data = DataModule(given, BATCH, 0, 0, 0) if given else build_data(splits_of)
    source = data.splits.test if config.split == "test" and data.splits.test is not None else data.splits.train
    views: Views = instantiate(filled.views)
    views.require_channels(source)
    check_members(config.run, config.checkpoint, config.members)
    others = [config.copy() for _ in config.members or []]
    for other, path in zip(others, config.members or [], strict=True):
        other.update({**named(path), "report_dir": None})
    predictors = [first, *(_predictor(other, with_data=False)[0] for other in others)]
    if config.samples is not None:
        predictors = [_sampled(each, seed) for each in predictors for seed in range(config.samples)]
    return Prediction(predictors, data, source, checkpoint)


def _predictor(config: DictConfig, with_data: bool) -> tuple[Predictor, DictConfig, Checkpoint]:
    """Reads the head of one run with its network, the configuration that its checkpoint completes, and this."""
    path = checkpoint_path(config.run, config.checkpoint)
    checkpoint = read_checkpoint(path)
    kept = read_kept(config, path, checkpoint)
    needs = ("data", "views", "backbone") if with_data else ("views", "backbone")
    filled = complete_config(with_all_images(with_folder(config, checkpoint), checkpoint), checkpoint, needs)
    backbone = load_backbone(checkpoint, build_backbone(filled.backbone, filled.seed))
    views: Views = instantiate(filled.views)
    views.compiles = False
    if views.evaluation() != dict(kept.context.views):
        raise UserError(f"{kept.path}: was fitted on images prepared by other views; give the views=… of its report")
    backbone.check_size(views.size)
    gpu = config.accelerator != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    limit = None if config.risk is None else threshold(kept.calibration, config.risk)
    network, passes = network_of(kept, backbone), config.images_per_pass
    return Predictor(kept, network, views.evaluation_view, device, limit, passes), filled, checkpoint


def _sampled(predictor: Predictor, seed: int) -> Predictor:
    """The same with what is random in its network at work."""
    dropout = 0.0 if predictor.kept.head.kind == "network" else predictor.kept.head.settings.get("dropout", 0.0)
    return replace(predictor, network=Sampled(predictor.network, seed, dropout))


def read_kept(config: DictConfig, path: Path, checkpoint: Checkpoint) -> KeptHead:
    """Reads the head that a command names. Raises UserError where it was fitted on features of other weights."""
    report = Path(config.report_dir).expanduser() if config.report_dir else folder_of(path) / "report"
    kept = read_head(report / FOLDER, config.head)
    if kept.context.checkpoint != checkpoint.sha256:
        raise UserError(f"{kept.path}: was fitted on features of other weights than {path}: evaluate these again")
    return kept

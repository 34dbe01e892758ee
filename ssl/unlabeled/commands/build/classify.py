"""From a composed configuration to what predicts with a kept head."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from unlabeled.commands.build.embedding import with_folder
from unlabeled.commands.build.evaluation import complete_config
from unlabeled.commands.build.other_images import with_all_images
from unlabeled.commands.build.run import build_backbone, build_data
from unlabeled.core.places import checkpoint_path, folder_of
from unlabeled.data.module import DataModule
from unlabeled.data.source import Source, Splits
from unlabeled.errors import UserError
from unlabeled.evaluation.heads.calibration import threshold
from unlabeled.evaluation.heads.kept import FOLDER, KeptHead, read_head
from unlabeled.evaluation.heads.predicted import Predicted
from unlabeled.evaluation.heads.predictor import Predictor, network_of
from unlabeled.views.pipeline import Views
from unlabeled.weights import Checkpoint, load_backbone, read_checkpoint

BATCH = 256  # only of the order of loading; how many images go through the network at once is the head's


@dataclass(frozen=True)
class Prediction:
    """A head with its network, and the images to classify."""

    predictor: Predictor
    data: DataModule
    source: Source

    def parts(self) -> Iterator[Predicted]:
        """Yields what is predicted, in the order of the images."""
        return self.predictor.predict(self.data, self.source)


def build_prediction(config: DictConfig, given: Splits | None = None) -> Prediction:
    """Reads checkpoint and head, and opens the images.

    Args:
        config: as composed from ``conf/predict.yaml``.
        given: images in place of a data set that is named.

    Raises:
        UserError: there is no such head, or it is of other weights or other views than those given.
    """
    path = checkpoint_path(config.run, config.checkpoint)
    checkpoint = read_checkpoint(path)
    kept = read_kept(config, path, checkpoint)
    needs = ("views", "backbone") if given else ("data", "views", "backbone")
    named = with_all_images(with_folder(config, checkpoint), checkpoint)
    filled = complete_config(named, checkpoint, needs)
    backbone = load_backbone(checkpoint, build_backbone(filled.backbone, filled.seed))
    views: Views = instantiate(filled.views)
    views.compiles = False
    if views.evaluation() != dict(kept.context.views):
        raise UserError(f"{kept.path}: was fitted on images prepared by other views; give the views=… of its report")
    backbone.check_size(views.size)
    splits_of = OmegaConf.create({**filled, "memory_gib": 0.0, "batch_size": BATCH})
    data = DataModule(given, BATCH, 0, 0, 0) if given else build_data(splits_of)
    source = data.splits.test if config.split == "test" and data.splits.test is not None else data.splits.train
    views.require_channels(source)
    gpu = config.accelerator != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    limit = None if config.risk is None else threshold(kept.calibration, config.risk)
    predictor = Predictor(
        kept, network_of(kept, backbone), views.evaluation_view, device, limit, config.images_per_pass
    )
    return Prediction(predictor, data, source)


def read_kept(config: DictConfig, path: Path, checkpoint: Checkpoint) -> KeptHead:
    """Reads the head that a command names. Raises UserError where it was fitted on features of other weights."""
    report = Path(config.report_dir).expanduser() if config.report_dir else folder_of(path) / "report"
    kept = read_head(report / FOLDER, config.head)
    if kept.context.checkpoint != checkpoint.sha256:
        raise UserError(f"{kept.path}: was fitted on features of other weights than {path}: evaluate these again")
    return kept

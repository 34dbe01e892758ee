"""From a composed configuration to what :mod:`unlabeled.evaluation.selection` chooses among."""

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from unlabeled.commands.build.embedding import build_of_checkpoint
from unlabeled.commands.build.evaluation import build_evaluation, complete_config
from unlabeled.evaluation.embedding.stream import Embedder, Images
from unlabeled.evaluation.evaluate import Evaluation
from unlabeled.evaluation.selection.classifier import LabelClassifier
from unlabeled.weights import Checkpoint, load_backbone


def build_pool(config: DictConfig, checkpoint: Checkpoint) -> tuple[Embedder, Images]:
    """Builds what makes features, and the images of the training split alone: nobody labels test images.

    Args:
        config: as composed from ``conf/label.yaml``.
        checkpoint: whose backbone it is.
    """
    whole = OmegaConf.create({**config, "pooling": None, "normalize": False})
    embedder, images = build_of_checkpoint(whole, checkpoint)
    images.sources = {"train": images.sources["train"]}
    return embedder, images


def build_labelled_set(config: DictConfig, checkpoint: Checkpoint) -> Evaluation:
    """Builds an evaluation without probes, with the weights of the checkpoint, from ``conf/active.yaml``."""
    whole = complete_config(OmegaConf.create({**config, "probe": {}}), checkpoint, ("data", "views", "backbone"))
    evaluation = build_evaluation(whole, None, config.accelerator, config.precision)
    load_backbone(checkpoint, evaluation.backbone)
    return evaluation


def build_classifier(config: DictConfig) -> LabelClassifier:
    """Builds what a strategy asks, and what a round fits."""
    classifier: LabelClassifier = instantiate(config.classifier)
    return classifier

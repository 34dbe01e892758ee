"""Maps old class paths to current ones, so that runs and checkpoints of earlier versions still load."""

from typing import Any

MOVED_TARGETS = {
    "unlabeled.data.digits.digits": "unlabeled.data.sources.digits.digits",
    "unlabeled.data.folder.folder": "unlabeled.data.sources.folder.folder",
    "unlabeled.data.huggingface.huggingface": "unlabeled.data.sources.huggingface.huggingface",
    "unlabeled.data.litdata.litdata": "unlabeled.data.sources.litdata.litdata",
    "unlabeled.data.parquet.parquet": "unlabeled.data.sources.parquet.parquet",
    "unlabeled.data.shards.shards": "unlabeled.data.sources.shards.shards",
    "unlabeled.data.vision.cifar10": "unlabeled.data.sources.torchvision.cifar10",
    "unlabeled.data.vision.cifar100": "unlabeled.data.sources.torchvision.cifar100",
    "unlabeled.data.vision.stl10": "unlabeled.data.sources.torchvision.stl10",
    "unlabeled.evaluation.clustering.KMeans": "unlabeled.evaluation.probes.clustering.KMeans",
    "unlabeled.evaluation.ensembles.Bootstrap": "unlabeled.evaluation.probes.ensembles.Bootstrap",
    "unlabeled.evaluation.few_labels.FewLabels": "unlabeled.evaluation.probes.few_labels.FewLabels",
    "unlabeled.evaluation.knn.KNN": "unlabeled.evaluation.probes.knn.KNN",
    "unlabeled.evaluation.linear.LBFGS": "unlabeled.evaluation.probes.logistic.LogisticRegressionProbe",
    "unlabeled.evaluation.logistic.LBFGS": "unlabeled.evaluation.probes.logistic.LogisticRegressionProbe",
    "unlabeled.evaluation.mc_dropout.MCDropout": "unlabeled.evaluation.probes.mc_dropout.MCDropout",
    "unlabeled.evaluation.online.OnlineKNN": "unlabeled.training.online_knn.OnlineKNN",
    "unlabeled.evaluation.paws_nn.SoftNearestNeighbours": "unlabeled.evaluation.probes.paws_nn.SoftNearestNeighbours",
    "unlabeled.evaluation.sgd_grid.SGDGrid": "unlabeled.evaluation.probes.sgd_grid.SGDGrid",
    "unlabeled.health.planning.Planning": "unlabeled.training.plan.callback.PlanCallback",
    "unlabeled.loggers.Csv": "unlabeled.training.loggers.Csv",
    "unlabeled.loggers.TensorBoard": "unlabeled.training.loggers.TensorBoard",
    "unlabeled.loggers.WeightsAndBiases": "unlabeled.training.loggers.WeightsAndBiases",
    "unlabeled.optimizers.Recipe": "unlabeled.optimizers.OptimizerConfig",
    "unlabeled.optimizers.recipe.Recipe": "unlabeled.optimizers.optimizer_config.OptimizerConfig",
    "unlabeled.pictures.Pictures": "unlabeled.training.pictures.Pictures",
    "unlabeled.views.foreign.Foreign": "unlabeled.views.per_image.PerImageTransform",
    "unlabeled.views.operations.ColourJitter": "unlabeled.views.operations.ColorJitter",
}


def with_current_targets(config: Any) -> Any:
    """Returns a file's configuration with each ``_target_`` of an earlier version replaced by its current path.

    Args:
        config: plain values at any depth; a value that is no dict or list is returned as it is.
    """
    if isinstance(config, list):
        return [with_current_targets(value) for value in config]
    if not isinstance(config, dict):
        return config
    values = {key: with_current_targets(value) for key, value in config.items()}
    target = values.get("_target_")
    return values | {"_target_": MOVED_TARGETS.get(target, target)} if isinstance(target, str) else values

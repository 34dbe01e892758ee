"""Measures k-NN accuracy during training, to show whether the features improve."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from unlabeled.core.ranges import AtLeastTwo, Count, Temperature
from unlabeled.data.module import DataModule
from unlabeled.distributed import local_only
from unlabeled.evaluation.features import Features, extract
from unlabeled.evaluation.probe import MEAN_PER_CLASS, Score, add_metrics
from unlabeled.evaluation.probes.knn import KNN
from unlabeled.training.pretraining import Pretraining


class OnlineKNN(pl.Callback):
    """Every n epochs, classifies labelled training images by the others, with features of the current network, the
    one that the method publishes.

    Queries and bank are disjoint parts of the labelled training images, the same for the whole run and for every run
    with the same seed; the test split is never used. Images are seen as in evaluation. Logs ``probe/knn_top1`` in per
    cent, and ``probe/knn_mean_per_class_top1`` if classes are imbalanced. The model, its BatchNorm statistics and the
    random state stay as they are.

    Args:
        every_n_epochs: how often; also after the last epoch.
        queries: images to classify, but at most a tenth of the labelled ones.
        bank: labelled images to compare with, but at most all others.
        k: neighbours, at most the size of the bank.
        temperature: of the neighbours' weights.
        batch_size: images per forward pass.
    """

    def __init__(
        self,
        every_n_epochs: Count,
        queries: AtLeastTwo,
        bank: Count,
        k: Count,
        temperature: Temperature,
        batch_size: Count,
    ) -> None:
        self.every_n_epochs, self.k, self.temperature = every_n_epochs, k, temperature
        self.num_queries, self.num_bank, self.batch_size = queries, bank, batch_size
        self.listeners: list[Callable[[int, float], None]] = []  # each gets the epoch and the top-1 in per cent

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Pretraining)
        if not pl_module.is_due(self.every_n_epochs):
            return
        pl_module.faults.settle(pl_module)  # a run that must stop says so before its features are judged
        # Every process computes the same number: none waits for another, and none runs ahead.
        score = self._score(pl_module, trainer.datamodule, trainer.strategy.root_device)  # type: ignore[attr-defined]
        if score is not None:
            numbers = {"top1": score.top1} | {
                name: score.metrics[name] for name in (MEAN_PER_CLASS,) if name in score.metrics
            }
            metrics = {f"probe/knn_{name}": torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
            pl_module.write(metrics, pl_module.global_step)
            for listener in self.listeners:
                listener(-(-pl_module.global_step // pl_module.steps_per_epoch), score.top1)

    def measure(self, module: Pretraining, data: DataModule, device: torch.device) -> float | None:
        """Returns the accuracy in per cent; None if fewer than 20 images have a label."""
        score = self._score(module, data, device)
        return None if score is None else score.top1

    def _score(self, module: Pretraining, data: DataModule, device: torch.device) -> Score | None:
        queries, bank = self._parts(data.train.labels, module.seed)
        if len(queries) < 2:
            return None
        probe = KNN([min(self.k, len(bank))], self.temperature)
        num_classes = int(data.train.labels.max()) + 1
        features = [self._extract(module, data, positions, device) for positions in (bank, queries)]
        with local_only():
            (score,) = probe.fit_predict(features[0], features[1], num_classes)
        add_metrics(score, features[1].labels)
        return score

    def _parts(self, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        labelled = (labels >= 0).nonzero().flatten()
        shuffled = labelled[torch.randperm(len(labelled), generator=torch.Generator().manual_seed(seed))]
        queries = min(self.num_queries, len(labelled) // 10)
        return shuffled[:queries], shuffled[queries : queries + self.num_bank]

    def _extract(self, module: Pretraining, data: DataModule, positions: Tensor, device: torch.device) -> Features:
        batches = data.batches(data.train, positions, self.batch_size)
        return extract(
            module.objective.product(), batches, module.views.evaluation_view, device, module.trainer.precision
        )

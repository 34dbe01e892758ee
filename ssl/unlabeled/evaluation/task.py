"""Makes the input of probes that train on images."""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from unlabeled.data.memory import DecodedSource
from unlabeled.data.module import DataModule
from unlabeled.evaluation.probe import Task
from unlabeled.objective import Backbone, Batch
from unlabeled.views.pipeline import Views


def make_tasks(
    data: DataModule, views: Views, num_classes: int, device: torch.device, precision: str
) -> Callable[[nn.Module], Task]:
    """Returns a function that gives each network's task: a copy of the network, the labelled images of both splits."""

    def task_of(network: nn.Module) -> Task:
        """Makes a task; decodes the images of both splits at its first call, where they fit into memory."""
        assert isinstance(network, Backbone)
        train, test = data.train, None if data.splits.test is None else data.test
        test_labels = torch.zeros(0, dtype=torch.long) if test is None else test.labels
        labelled = {"train": _labelled(train.labels), "test": _labelled(test_labels)}

        def batches(split: str, positions: Tensor, batch_size: int) -> Iterable[Batch]:
            source = train if split == "train" or test is None else test
            return data.batches(source, labelled[split][positions], batch_size)

        ids = train.ids[labelled["train"]] if isinstance(train, DecodedSource) else labelled["train"]

        def name(position: int) -> str:
            return data.splits.train.name(int(ids[position]))

        return Task(
            copy.deepcopy(network).to(device).eval(),
            train.labels[labelled["train"]],
            test_labels[labelled["test"]],
            batches,
            views,
            num_classes,
            device,
            precision,
            name,
            ids,
        )

    return task_of


def _labelled(labels: Tensor) -> Tensor:
    return (labels >= 0).nonzero().flatten()

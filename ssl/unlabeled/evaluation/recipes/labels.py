"""Selects the labelled images that a recipe trains on, with the fingerprint of their list."""

from torch import Tensor

from unlabeled.data.labels import LabelList, LabelSelection
from unlabeled.evaluation.probe import Task


def select_labelled(choice: LabelSelection, task: Task) -> LabelList:
    """Returns the listed training images of a task; ``ids`` are its positions. Raises UserError as the choice does."""
    return choice.of(_Listing(task))


def describe_selection(choice: LabelSelection) -> str:
    """Describes the choice for the name of a protocol."""
    if choice.labels_file is not None:
        return "list"
    return f"{100 * choice.fraction:g}%" if choice.fraction is not None else f"{choice.per_class}-per-class"


class _Listing:
    """Source of the labels and names of a task's training images, without pixels."""

    square = True

    def __init__(self, task: Task) -> None:
        self.labels, self.name, self.ids = task.train_labels.cpu(), task.train_names, task.train_ids
        self.classes = [str(label) for label in range(task.num_classes)]
        self.image_size = task.views.size

    def __len__(self) -> int:
        return len(self.labels)

    def decode(self, index: int) -> Tensor:
        raise NotImplementedError

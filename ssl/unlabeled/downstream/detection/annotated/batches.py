"""The batches of a detector's training: images and their jitter are functions of the seed and the step."""

from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from unlabeled.core.seeding import derive_seed
from unlabeled.data.loaders import IgnoreSignals, Resumable
from unlabeled.downstream.detection.annotated.images import DetectionImages
from unlabeled.downstream.detection.annotated.jitter import Jitter, Sample
from unlabeled.errors import UserError

Draw = tuple[int, int]  # row of an image, seed of its jitter


class Steps(Sampler[list[Draw]]):
    """The images of each step from the next one on: passes over all images, each in an order of its own.

    Args:
        images: how many there are.
        batch_size: images of a step.
        total: steps of the training.
        seed: of the order and the jitter.
        next_step: says where the training is.
    """

    def __init__(self, images: int, batch_size: int, total: int, seed: int, next_step: Callable[[], int]) -> None:
        self.images, self.batch_size, self.total, self.seed = images, batch_size, total, seed
        self.next_step = next_step

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self.next_step(), self.total):
            places = range(step * self.batch_size, (step + 1) * self.batch_size)
            yield [(self._row(place), derive_seed(self.seed, 1, place)) for place in places]

    def __len__(self) -> int:
        return self.total

    def _row(self, place: int) -> int:
        turn, within = divmod(place, self.images)
        return _order(self.images, self.seed, turn)[within]


@lru_cache(maxsize=2)
def _order(images: int, seed: int, turn: int) -> list[int]:
    generator = torch.Generator().manual_seed(derive_seed(seed, 0, turn))
    order: list[int] = torch.randperm(images, generator=generator).tolist()
    return order


class Jittered(Dataset[Sample | UserError]):
    """Images in [0, 1] with their objects, jittered by the seed that is asked for with the row.

    A file that cannot be decoded gives its error: raised in a worker, torch would put a traceback into its message.
    """

    def __init__(self, images: DetectionImages, jitter: Jitter, masks: bool) -> None:
        self.images, self.jitter, self.masks = images, jitter, masks

    def __getitem__(self, draw: Draw) -> Sample | UserError:
        row, seed = draw
        try:
            sample = self.images.image(row).float() / 255, self.images.target(row, self.masks)
        except UserError as error:
            return error
        return self.jitter(sample, torch.Generator().manual_seed(seed))


class TrainingBatches(Resumable):
    """Loads the steps of a training, each a list of images [3, h, w] with their objects.

    Args:
        samples: the training images.
        steps: which of them, from the next step on.
        num_workers: processes that decode; 0 decodes in this one.
    """

    def __init__(self, samples: Jittered, steps: Steps, num_workers: int) -> None:
        self.steps = steps
        self.loader: DataLoader[Sample | UserError] = DataLoader(
            samples,
            batch_sampler=steps,
            num_workers=num_workers,
            collate_fn=list,
            worker_init_fn=IgnoreSignals(),
            generator=torch.Generator(),  # without it the workers' seeds are drawn from the global random state
        )

    def __iter__(self) -> "Iterator[list[Sample]]":  # type: ignore[override]
        try:
            for batch in self.loader:
                yield [_whole(each) for each in batch]
        except (ConnectionError, EOFError) as error:
            raise UserError(
                "a worker process was killed, perhaps by the kernel for lack of memory: give fewer num_workers; the "
                "same command goes on from the last state"
            ) from error

    def __len__(self) -> int:
        return len(self.steps)


def _whole(sample: Sample | UserError) -> Sample:
    if isinstance(sample, UserError):
        raise sample
    return sample


def moved(samples: list[Sample], device: torch.device) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Returns images and objects of a pass on a device."""
    images = [image.to(device, non_blocking=True) for image, _ in samples]
    targets = [{key: each.to(device, non_blocking=True) for key, each in target.items()} for _, target in samples]
    return images, targets

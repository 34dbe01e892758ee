"""SimCLR's views as torchvision publishes them: a slow pipeline of PIL images, one by one, to hold this engine against.

    python train.py experiment=cifar10_cpu data.path=FOLDER views._target_=tests.views.reference.TorchvisionViews

Any views that torchvision can make will do. ``benchmarks/views_end_to_end.py`` trains with both and compares.
"""

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from unlabeled.core.seeding import derive_seed
from unlabeled.errors import UserError
from unlabeled.views.key import ViewKey
from unlabeled.views.operations import ColorJitter, GaussianBlur, Grayscale, Operation, RandomResizedCrop, Solarize
from unlabeled.views.per_image import preserve_random_state, seed_all
from unlabeled.views.pipeline import Views

CPU = torch.device("cpu")


class TorchvisionViews(Views):
    """The configured views, drawn and made by torchvision.transforms.v2; Pillow rounds to 8 bits after each operation.

    Each image has a seed of (seed, step, view, position in the global batch), so that the number of processes changes
    nothing. What evaluation sees is inherited: runs with these views and with the engine's are judged alike.

    Raises:
        UserError: of the first batch, and so of the black image that ``train.py`` tries before it reads any: an
            operation that torchvision does not have.
    """

    @torch.no_grad()
    def forward(
        self,
        images: Tensor,
        ids: Tensor,
        key: ViewKey,
        first: int | None = None,
        sizes: Tensor | None = None,
        skipped: int = 0,
    ) -> tuple[Tensor, ...]:
        """As ``Views.forward``, for images that fill their tensor: ``sizes`` [B, 2] may only say that they do."""
        if sizes is not None and bool((sizes != sizes.new_tensor(images.shape[2:])).any()):
            raise UserError("TorchvisionViews: images of one size alone, as CIFAR's")
        pictures = [Image.fromarray(each) for each in images.permute(0, 2, 3, 1).contiguous().cpu().numpy()]
        operations = [group.operations for group in self.groups for _ in range(group.count)][:first]
        with preserve_random_state(CPU):
            wanted = list(enumerate(operations))[skipped:]
            made = [_view(pictures, _composed(steps), key, number) for number, steps in wanted]
        return tuple(self._finish(view.to(images.device).float().div_(255)) for view in made)


def _view(pictures: list[Image.Image], transform: Callable[[Image.Image], Tensor], key: ViewKey, number: int) -> Tensor:
    """Uint8 [B, 3, h, w]."""
    rows = []
    for position, picture in enumerate(pictures, key.first):
        seed_all(derive_seed(key.seed, key.step, number, position), CPU)
        rows.append(transform(picture))
    return torch.stack(rows)


def _composed(operations: Sequence[Operation]) -> Callable[[Image.Image], Tensor]:
    transforms: list[Any] = []
    size: int | None = None  # of the image so far, pixels; the source's own until it is cropped
    for operation in operations:
        size = operation.size if isinstance(operation, RandomResizedCrop) else size
        transforms += _translated(operation, size)
    composed: Callable[[Image.Image], Tensor] = v2.Compose([*transforms, v2.PILToTensor()])
    return composed


def _translated(operation: Operation, size: int | None) -> list[Any]:
    """Torchvision's own for one operation, on images of ``size`` pixels."""
    match operation:
        case RandomResizedCrop(interpolation=mode):
            crop = v2.RandomResizedCrop(operation.size, operation.scale, operation.ratio, v2.InterpolationMode(mode))
            return [crop, v2.RandomHorizontalFlip(operation.flip)]
        case ColorJitter(additive_brightness=False):
            return [v2.RandomApply([v2.ColorJitter(*operation.strengths, operation.hue)], operation.probability)]
        case Grayscale():
            return [v2.RandomGrayscale(operation.probability)]
        case GaussianBlur() if size is not None:
            taps = 2 * (int(size * operation.kernel_fraction) // 2) + 1
            return [v2.RandomApply([v2.GaussianBlur(taps, operation.sigma)], operation.probability)]
        case Solarize() if operation.low == operation.high:
            level = ceil(255 * operation.low - 1e-4)  # 128/255 is 128, whatever the rounding
            return [v2.RandomSolarize(level, operation.probability)]
    raise UserError(
        f"TorchvisionViews: {type(operation).__name__} as configured is none of torchvision's (allowed: "
        "RandomResizedCrop, ColorJitter without additive_brightness, Grayscale, Solarize of one threshold, and "
        "GaussianBlur after a crop)"
    )

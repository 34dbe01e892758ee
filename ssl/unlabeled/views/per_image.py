"""Uses augmentations of kornia and transforms of torchvision in a pipeline, reproducible like our operations."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Generator, Tensor, nn

from unlabeled.errors import UserError
from unlabeled.views.operations import Parameters


class PerImageTransform:
    """Applies ``transform`` to one image after the other, with global random state seeded for each, then restored.

    Such transforms use the global random state, so that the result of a whole batch would depend on which images a
    process holds. Here each image has a seed, drawn for the global batch: its result depends only on the key and its
    position, for any number of processes. The price is a Python loop, slow on a GPU and for small images: 0.15 ms for
    32 × 32 pixels on one core, where Solarize takes 0.02; at 224 × 224 both take 1 ms.

    In a yaml, a transform is written below ``operations:`` like any operation::

        - _target_: torchvision.transforms.v2.RandomAdjustSharpness # or kornia.augmentation.RandomPosterize, …
          sharpness_factor: 2.0
          p: 0.5

    What the transform returns is clamped to [0, 1], as every operation's result is: interpolation and noise overshoot.

    Args:
        transform: float [1, 3, h, w] in [0, 1] → float [1, 3, h', w'], of the same size for all images.

    Raises:
        UserError: it normalises, which the clamp would break; or, at the first batch, its result has another form.
    """

    draws_on_host = True

    def __init__(self, transform: Callable[[Tensor], Tensor]) -> None:
        if any(type(part).__name__ == "Normalize" for part in _nested_transforms(transform)):
            raise UserError("Foreign: no Normalize within views; give views.mean and views.std, which come last")
        self.transform = transform

    def sample(self, count: int, generator: Generator) -> Parameters:
        return {"seed": torch.randint(2**62, (count,), generator=generator)}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        changed = []
        with preserve_random_state(images.device):
            for row, seed in enumerate(parameters["seed"].tolist()):
                image = images[row : row + 1].clone()  # some transforms overwrite it, and other views need it
                seed_all(seed, images.device)
                changed.append(self._checked(self.transform(image), image))
        if len({each.shape for each in changed}) > 1:
            raise UserError(f"{self._name()} gives images of several sizes; crop them to one")
        return torch.cat(changed).to(images.dtype).clamp(0, 1)

    def _checked(self, result: object, image: Tensor) -> Tensor:
        """Returns ``result`` if it is a valid image."""
        if not isinstance(result, Tensor):
            raise UserError(f"{self._name()} gives a {type(result).__name__}, and not a tensor")
        if not result.is_floating_point() or result.dim() != 4 or result.shape[:2] != image.shape[:2]:
            what = f"{str(result.dtype).removeprefix('torch.')} {list(result.shape)}"
            raise UserError(
                f"{self._name()} gives {what} for float {list(image.shape)}; it must stay float [1, 3, h, w]"
            )
        return result

    def _name(self) -> str:
        return f"Foreign: {type(self.transform).__name__}"


def _nested_transforms(transform: object) -> Iterator[object]:
    """Yields the transform and all inside it; torchvision's containers list ``transforms`` that are no submodules."""
    yield transform
    children = list(transform.children()) if isinstance(transform, nn.Module) else []
    for part in (*children, *getattr(transform, "transforms", ())):
        yield from _nested_transforms(part)


@contextmanager
def preserve_random_state(device: torch.device) -> Iterator[None]:
    """Restores the random state of Python, numpy, torch on the CPU and torch on ``device`` after the block."""
    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


def seed_all(seed: int, device: torch.device) -> None:
    """Seeds like ``torch.manual_seed``, which would also seed other GPUs, whose state is not restored."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)

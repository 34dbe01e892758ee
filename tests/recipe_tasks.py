"""Small tasks for the recipes that train on images: stripes and colours, and networks that take milliseconds."""

from functools import partial
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor

from tests.small import CONF
from unlabeled.backbones.resnet import ResNet
from unlabeled.backbones.vit import ViT
from unlabeled.evaluation.features import split_batches
from unlabeled.evaluation.probe import Task
from unlabeled.evaluation.recipes.augmentation import Augmentation
from unlabeled.evaluation.recipes.frozen import FrozenRecipe
from unlabeled.evaluation.recipes.linear import LinearHead
from unlabeled.evaluation.recipes.training import Training
from unlabeled.objective import Backbone, Batch
from unlabeled.views.pipeline import ViewGroup, Views

SIZE = 16


def resnet(seed: int = 0) -> ResNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ResNet(10, 0.25, "cifar").eval()  # at 0.125 oneDNN 3.13 crashes with several threads


def vit(depth: int = 4, seed: int = 0) -> ViT:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ViT(SIZE, 4, 24, depth, 2).eval()


def colours(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three classes by their brightest channel, in noise: uint8 [N, 3, 16, 16] and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randint(0, 156, (count, 3, SIZE, SIZE), generator=generator)
    images[torch.arange(count), labels] += 100
    return images.to(torch.uint8), labels


def stripes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two classes: faint stripes of any phase and colour along rows or along columns, in noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    phase, colour = torch.rand(count, 1, generator=generator) * 6.28, torch.rand(count, 3, 1, 1, generator=generator)
    wave = 0.5 + 0.5 * (torch.arange(SIZE) * 1.57 + phase).sin()
    wave = torch.where(labels[:, None, None] == 0, wave[:, None, :], wave[:, :, None])[:, None] * colour
    noise = torch.rand(count, 3, SIZE, SIZE, generator=generator)
    return ((0.5 * wave + 0.5 * noise) * 255).to(torch.uint8), labels


def views(mean: list[float] | None = None) -> Views:
    std = None if mean is None else [0.25, 0.25, 0.25]
    return Views(SIZE, [ViewGroup(1, [])], mean, std, 1.0, "bilinear")


class Made:
    """A task, and a list of what it was asked for: split and positions."""

    def __init__(
        self, network: Backbone, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], **changed: Any
    ) -> None:
        self.asked: list[tuple[str, list[int]]] = []
        self.splits = {"train": train, "test": test}
        given: dict[str, Any] = {
            "network": network,
            "train_labels": train[1],
            "test_labels": test[1],
            "batches": self.batches,
            "views": views([0.5, 0.5, 0.5]),
            "num_classes": int(train[1].max()) + 1,
            "device": torch.device("cpu"),
            "precision": "32-true",
            "train_names": lambda position: f"images/{position:05d}.png",
        }
        self.task = Task(**(given | changed))

    def batches(self, split: str, positions: Tensor, size: int) -> list[Batch]:
        self.asked.append((split, positions.tolist()))
        images, labels = self.splits[split]
        return split_batches(images[positions], labels[positions], positions + 1000, size)


def made(network: Backbone | None = None, images: Any = colours, train: int = 60, **changed: Any) -> Made:
    return Made(network or resnet(), images(train, 0), images(30, 1), **changed)


def training(**changed: Any) -> Training:
    given: dict[str, Any] = {
        "optimizer": partial(torch.optim.SGD, momentum=0.9),
        "epochs": 3,
        "batch_size": 16,
        "images_per_pass": 16,
        "drop_last": False,
        "rate_changes": "step",
        "warmup_epochs": 0,
        "milestones": None,
        "gamma": 0.1,
        "final_learning_rate": 0.0,
        "weight_decay": 0.0,
        "final_weight_decay": None,
        "decay_bias_and_norm": True,
        "clip_norm": None,
        "seed": 0,
    }
    return Training(**(given | changed))


def augmentation(**changed: Any) -> Augmentation:
    given: dict[str, Any] = {
        "crop": "ten_tries",
        "scale": (0.5, 1.0),
        "ratio": (0.75, 4 / 3),
        "interpolation": "bilinear",
        "flip": 0.5,
        "policy": None,
        "erasing": 0.0,
    }
    return Augmentation(**(given | changed))


def recipe(**changed: Any) -> FrozenRecipe:
    given: dict[str, Any] = {
        "name": "linear/small",
        "kinds": ["last"],
        "head": partial(LinearHead, init_std=0.01, batch_norm="none"),
        "learning_rates": [8.0],
        "holdout": 0.2,
        "training": training(),
        "augmentation": augmentation(),
        "baselines": False,
        "differs": [],
    }
    return FrozenRecipe(**(given | changed))


def published(name: str) -> Any:
    """The probe of conf/probe/NAME.yaml."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        [probe] = instantiate(compose(f"probe/{name}").probe).values()
    return probe

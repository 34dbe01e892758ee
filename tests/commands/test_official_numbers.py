"""Resolved recipes against tables of the numbers of official code, with the file where each was read."""

from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.small import composed, missing_keys
from unlabeled.objective import Progress

SOLO = {  # scripts/pretrain/cifar/*.yaml and solo/methods/base.py of vturrisi/solo-learn
    "data._target_": "unlabeled.data.sources.torchvision.cifar10",
    "backbone.stem": "cifar",
    "batch_size": 256,
    "max_epochs": 1000,
    "optimizer.warmup_epochs": 10,
    "optimizer.warmup_start_lr": 3e-5,
    "optimizer.final_lr": 0.0,
}
SOLO_LARS = {"optimizer.optimizer.clip": True, "optimizer.optimizer.trust_coefficient": 0.02}
SOLO_LARS |= {"optimizer.optimizer.adapt_all": False, "optimizer.decay_bias_and_norm": False}
LIGHTLY = {
    "data._target_": "unlabeled.data.sources.torchvision.cifar10",
    "backbone.stem": "cifar",
    "batch_size": 128,
    "max_epochs": 200,
    "optimizer.warmup_epochs": 0,
    "optimizer.decay_bias_and_norm": True,
    "optimizer.optimizer.momentum": 0.9,
    "views.mean": [0.485, 0.456, 0.406],
    "probe.knn.k": [200],
    "probe.knn.temperature": 0.1,
}
STRONG = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}  # augmentations/symmetric.yaml

OFFICIAL: dict[str, dict[str, Any]] = {
    # vissl: names of the checkpoints, swav_8node_resnet.yaml, projects/SEER
    "seer_regnety_32gf": {
        "batch_size": 4096,
        "max_epochs": 1,
        "optimizer.weight_decay": 1e-5,
        "optimizer.warmup_epochs": 0.0328,
        "optimizer.lr": 0.3,
        "optimizer.warmup_start_lr": 0.3,
        "optimizer.final_lr": 0.0048,
        "optimizer.optimizer.adapt_all": True,
        "optimizer.decay_bias_and_norm": True,
        "objective.projection_hidden.0": 4096,
        "objective.projection_dim": 256,
        "objective.projection_batch_norm": False,
        "objective.prototypes": 16000,
        "objective.iterations": 10,
        "views.size": 224,
        "views.std": [0.229, 0.224, 0.225],
        "views.groups.0.operations.0.size": 160,
        "views.groups.1.operations.0.size": 96,
    },
    # facebookresearch/swav: scripts/swav_200ep_pretrain.sh, main_swav.py
    "swav_imagenet": {
        "batch_size": 4096,
        "optimizer.lr": 0.3,
        "optimizer.warmup_start_lr": 0.3,
        "optimizer.final_lr": 0.0048,
        "optimizer.weight_decay": 1e-6,
        "optimizer.warmup_epochs": 10,
        "optimizer.optimizer.adapt_all": True,
        "optimizer.optimizer.trust_coefficient": 0.001,
        "optimizer.optimizer.rate_in_momentum": False,
        "optimizer.decay_bias_and_norm": True,
        "objective.prototypes": 3000,
        "objective.freeze_prototypes_epochs": 1,
    },
    # google-research/simclr: README, run.py, data_util.py, objective.py, lars_optimizer.py
    "simclr_imagenet": {
        "batch_size": 4096,
        "optimizer.lr": 0.3,
        "optimizer.weight_decay": 1e-6,
        "optimizer.warmup_epochs": 10,
        "optimizer.optimizer.rate_in_momentum": True,
        "objective.sum": True,
        "objective.temperature": 0.1,
        "objective.projection_layers": 2,
        "views.groups.0.operations.1.additive_brightness": True,
        "views.groups.0.operations.1.brightness": 0.8,
    },
    "simclr_cifar10": {"batch_size": 512, "objective.sum": True, "objective.temperature": 0.5, "optimizer.lr": 1.0},
    # facebookresearch/suncet: configs/paws/*_train.yaml, src/sgd.py, src/paws_train.py
    "paws_imagenet": {
        "batch_size": 4096,
        "optimizer.lr": 0.4,
        "optimizer.warmup_start_lr": 0.3,
        "optimizer.final_lr": 0.064,
        "optimizer.weight_decay": 1e-6,
        "optimizer.optimizer.rate_in_momentum": True,
        "optimizer.decayed_also": ["downsample.1.weight"],
    },
    "paws_cifar10": {
        "batch_size": 256,
        "optimizer.lr": 3.2,
        "optimizer.warmup_start_lr": 0.8,
        "optimizer.final_lr": 0.032,
        "optimizer.weight_decay": 1e-6,
        "optimizer.optimizer.rate_in_momentum": True,
        "objective.support.images_per_class": 64,
        "objective.support.views": 2,
    },
    "relicv2_imagenet": {"objective.include_same_view": False},
    "relicv2_cifar10_cpu": {"objective.include_same_view": False},
    "swav_cifar10_cpu": {f"views.groups.{group}.operations.3.probability": 0.5 for group in (0, 1)},
    "nnclr_cifar10": SOLO
    | SOLO_LARS
    | {
        "optimizer.lr": 0.4,
        "optimizer.weight_decay": 1e-5,
        "objective.temperature": 0.2,
        "objective.hidden_dim": 2048,
        "objective.projection_dim": 256,
        "objective.predictor_dim": 4096,
        "objective.queue_size": 65536,
    },
    "moco_v2plus_cifar10": SOLO
    | {
        "optimizer.lr": 0.3,
        "optimizer.weight_decay": 1e-4,
        "objective.projection_hidden": 2048,
        "objective.projection_dim": 256,
        "objective.temperature": 0.2,
        "objective.momentum": 0.99,
        "objective.final_momentum": 0.999,
        "objective.queue_size": 32768,
        "objective.two_queues": True,
        "objective.direction_mean": True,
    },
    "moco_v3_cifar10": SOLO
    | SOLO_LARS
    | {"optimizer.lr": 0.3, "objective.temperature": 0.2, "objective.momentum": 0.99},
    "swav_cifar10": SOLO
    | SOLO_LARS
    | {
        "optimizer.lr": 0.6,
        "optimizer.weight_decay": 1e-6,
        "objective.projection_hidden": [2048],
        "objective.projection_dim": 128,
        "objective.prototypes": 3000,
        "objective.queue_length": 3840,
        "objective.queue_from_epoch": 50,
        "objective.freeze_prototypes_epochs": 2,
        "objective.temperature": 0.1,
        "objective.epsilon": 0.05,
        "objective.iterations": 3,
    }
    | {f"views.groups.0.operations.1.{name}": value for name, value in STRONG.items()},
    "simclr_cifar10_solo_learn": SOLO
    | SOLO_LARS
    | {
        "optimizer.lr": 0.4,
        "optimizer.weight_decay": 1e-4,
        "objective.projection_hidden": 2048,
        "objective.projection_norm": False,
        "objective.projection_dim": 256,
        "objective.temperature": 0.2,
        "objective.sum": False,
    }
    | {f"views.groups.0.operations.1.{name}": value for name, value in STRONG.items()},
    "supcon_cifar10": SOLO
    | {
        "optimizer.lr": 0.4,
        "optimizer.weight_decay": 1e-5,
        "objective.hidden_dim": 2048,
        "objective.projection_dim": 256,
        "objective.temperature": 0.2,
    },
    # lightly-ai/lightly, cifar10_benchmark.py of 27 March 2023; BYOL's loss is a quarter of the one here
    "simclr_cifar10_lightly": LIGHTLY
    | {
        "optimizer.lr": 0.06 * 2,
        "optimizer.weight_decay": 5e-4,
        "objective.projection_layers": 2,
        "objective.projection_hidden": 512,
        "objective.projection_dim": 128,
        "objective.projection_norm": False,
        "objective.temperature": 0.5,
        "objective.sum": False,
        "views.groups.0.operations.0.scale": [0.08, 1.0],
        "views.groups.0.operations.1.brightness": 0.8 * 0.5,
    },
    "byol_cifar10_lightly": LIGHTLY
    | {
        "optimizer.lr": 0.06 * 2 / 4,
        "optimizer.weight_decay": 5e-4 * 4,
        "objective.hidden_dim": 1024,
        "objective.projection_dim": 256,
        "objective.momentum": 0.99,
        "objective.final_momentum": 0.99,
        "views.groups.0.operations.1.saturation": 0.2,
        "views.groups.1.operations.3.probability": 0.2,
    },
    "simsiam_cifar10_lightly": LIGHTLY
    | {
        "optimizer.lr": 0.06,
        "optimizer.lr_scaling": "none",
        "optimizer.weight_decay": 5e-4,
        "objective.projection_layers": 2,
        "objective.hidden_dim": 2048,
        "objective.projection_dim": 2048,
        "objective.predictor_dim": 512,
        "objective.projection_affine": True,
        "objective.constant_predictor_rate": False,
        "views.groups.0.operations.0.scale": [0.2, 1.0],
        "views.groups.0.operations.1.brightness": 0.4,
    },
    # wvangansbeke/Unsupervised-Classification, recipes of CIFAR-10
    "scan_cifar10": {
        "batch_size": 128,
        "max_epochs": 50,
        "objective.entropy_weight": 5.0,
        "objective.companions.neighbours": 20,
        "optimizer.lr": 1e-4,
        "optimizer.final_lr": 1e-4,
        "optimizer.weight_decay": 1e-4,
        "views.groups.1.operations.2.operations": 4,
        "views.groups.1.operations.3.size": 16,
    },
    "self_label_cifar10": {
        "batch_size": 1000,
        "max_epochs": 200,
        "objective.threshold": 0.99,
        "objective.balance": True,
        "optimizer.lr": 1e-4,
    },
    # solo-learn's BYOL, the rate with its own LARS
    "relicv2_cifar10": SOLO_LARS
    | {"optimizer.lr": 1.0, "optimizer.warmup_start_lr": 3e-5, "optimizer.warmup_epochs": 10},
    # fairseq, examples/data2vec: no parameter is exempt from decay
    "data2vec_imagenet_vit_base": {"optimizer.weight_decay": 0.01, "optimizer.decay_bias_and_norm": True},
    "simmim_imagenet_vit_base": {"optimizer.weight_decay": 0.05, "backbone.initialisation": "simmim"},
    # pytorch/examples, imagenet/main.py
    "supervised_imagenet": {
        "batch_size": 256,
        "max_epochs": 90,
        "optimizer.lr": 0.1,
        "optimizer.weight_decay": 1e-4,
        "optimizer.milestones": [30, 60],
    },
}
# The last BatchNorm of a block begins at 1, as torchvision has it, unless the official code asks for 0.
ZERO_INIT = {"simsiam_cifar10": True} | dict.fromkeys(
    (
        *("barlow_twins_cifar10", "byol_cifar10", "dino_resnet18_cifar10", "moco_v2plus_cifar10", "moco_v3_cifar10"),
        *("nnclr_cifar10", "simclr_cifar10_solo_learn", "supcon_cifar10", "swav_cifar10", "vicreg_cifar10"),
        *("relicv2_cifar10", "dino_imagenet_resnet50", "supcon_cifar10_resnet50", "supervised_cifar10"),
        "distill_imagenet",
    ),
    False,
)
RATES = {  # of the first step, at the end of the warm-up, and at the end
    "seer_regnety_32gf": (0.3, 4.8, 0.0048),
    "swav_imagenet": (0.3, 4.8, 0.0048),
    "paws_imagenet": (0.3, 6.4, 0.064),
    "paws_cifar10": (0.8, 3.2, 0.032),
    "simclr_imagenet": (0.0, 4.8, 0.0),
    "supcon_cifar10_resnet50": (
        0.01 / 0.7,
        0.5 / 0.7,
        5e-4 / 0.7,
    ),  # HobbitLong/SupContrast: the loss is 0.7 of it here
}


def resolved(name: str) -> Any:
    missing = missing_keys(composed(f"experiment={name}"))
    given = {"data.path": "x", "views.masks": "null", "weights": "x", "objective.teacher": "x"}
    return composed(f"experiment={name}", *(f"{key}={given[key]}" for key in missing))


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_recipe_has_the_numbers_of_the_official_code(name: str) -> None:
    config = resolved(name)
    missing = object()
    found = {}
    for key in OFFICIAL[name]:
        parts, value = key.split("."), OmegaConf.to_container(config, resolve=True)
        for part in parts:
            value = value[int(part)] if isinstance(value, list) else value.get(part, missing)  # type: ignore[union-attr]
        found[key] = value
    assert found == OFFICIAL[name]


@pytest.mark.parametrize("name", ZERO_INIT)
def test_residual_branches_begin_as_in_the_official_code(name: str) -> None:
    assert resolved(name).backbone.zero_init_residual == ZERO_INIT[name]


@pytest.mark.parametrize("name", RATES)
def test_a_rate_begins_peaks_and_ends_where_the_official_one_does(name: str) -> None:
    config = resolved(name)
    recipe = instantiate(config.optimizer)
    epochs, steps = config.max_epochs, 1_000_000
    warm = round(recipe.warmup_epochs / epochs * steps)
    rates = [recipe.lr_at(Progress(step, steps, steps // epochs, 0), config.batch_size) for step in (0, warm, steps)]
    assert rates == pytest.approx(RATES[name], rel=1e-4)


def test_paws_decays_the_batchnorms_of_shortcuts_and_no_others() -> None:
    config = resolved("paws_imagenet")
    with torch.device("meta"):
        backbone = instantiate(config.backbone)
    named = [
        name for name, each in backbone.named_parameters() if each.ndim == 1 and name.endswith("downsample.1.weight")
    ]
    assert len(named) == 4  # one in each stage of a ResNet-50

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import unlabeled.objectives
from unlabeled.errors import UserError
from unlabeled.objectives.barlow_twins import barlow_twins_loss
from unlabeled.objectives.byol import byol_loss
from unlabeled.objectives.data2vec import data2vec_loss
from unlabeled.objectives.dino import dino_loss, moved_center
from unlabeled.objectives.dinov2 import koleo
from unlabeled.objectives.distill import batch_similarity_loss, feature_loss, queue_similarity_loss
from unlabeled.objectives.fixmatch import fixmatch_loss
from unlabeled.objectives.ibot import masked_patch_loss as ibots_patch_loss
from unlabeled.objectives.ijepa import ijepa_loss, normalised_tokens
from unlabeled.objectives.lejepa import invariance, sigreg
from unlabeled.objectives.mae import (
    MaskedAutoencoder,
    masked_patch_loss,
    num_kept_patches,
    patchify,
    random_masking,
    unpatchify,
)
from unlabeled.objectives.moco import KeyQueue, batch_contrast, queue_contrast
from unlabeled.objectives.nnclr import nnclr_loss
from unlabeled.objectives.parts import ema
from unlabeled.objectives.paws import (
    paws_loss,
    prediction_losses,
    sharpen_probabilities,
    soft_nearest_neighbours,
    target_classes,
)
from unlabeled.objectives.relic import contrastive_log_probabilities, kl_divergence, relic_loss, sample_negatives
from unlabeled.objectives.scan import scan_loss, self_label_loss
from unlabeled.objectives.simclr import nt_xent
from unlabeled.objectives.simmim import simmim_loss
from unlabeled.objectives.simsiam import simsiam_loss
from unlabeled.objectives.suncet import suncet_loss
from unlabeled.objectives.supcon import supcon_loss, triplet_loss
from unlabeled.objectives.supervised import classification_loss
from unlabeled.objectives.swav import FeatureQueue, code_prediction_loss, compute_codes, sinkhorn, swapped_prediction
from unlabeled.objectives.vicreg import vicreg_loss
from unlabeled.optimizers import LARS


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


LABELS = torch.eye(3).repeat(2, 1)  # [S = 6, C = 3]
# A function, arguments that fit, and which of its numbers have to be above 0.
FITTING: dict[str, tuple[Callable[..., Any], dict[str, Any], tuple[str, ...]]] = {
    "nt_xent": (nt_xent, {"z1": rows(4, 8), "z2": rows(4, 8), "temperature": 0.5}, ("temperature",)),
    "queue_contrast": (
        queue_contrast,
        {"q": rows(4, 8), "k": rows(4, 8), "queue": rows(9, 8), "temperature": 0.5},
        ("temperature",),
    ),
    "batch_contrast": (
        batch_contrast,
        {"q1": rows(4, 8), "q2": rows(4, 8), "k1": rows(4, 8), "k2": rows(4, 8), "temperature": 0.5},
        ("temperature",),
    ),
    "byol_loss": (byol_loss, {name: rows(4, 8) for name in ("p1", "p2", "z1", "z2")}, ()),
    "simsiam_loss": (simsiam_loss, {name: rows(4, 8) for name in ("p1", "p2", "z1", "z2")}, ()),
    "barlow_twins_loss": (barlow_twins_loss, {"z1": rows(4, 8), "z2": rows(4, 8), "off_diagonal_weight": 0.005}, ()),
    "vicreg_loss": (
        vicreg_loss,
        {"z1": rows(4, 8), "z2": rows(4, 8), "invariance": 25.0, "variance": 25.0, "covariance": 1.0},
        (),
    ),
    "moved_center": (moved_center, {"center": rows(8), "teacher": rows(4, 8), "momentum": 0.9}, ()),
    "koleo": (koleo, {"features": rows(4, 8)}, ()),
    "nnclr_loss": (
        nnclr_loss,
        {"neighbours": rows(4, 8), "predictions": rows(4, 8), "temperature": 0.5},
        ("temperature",),
    ),
    "fixmatch_loss": (
        fixmatch_loss,
        {
            **{"labelled_logits": rows(4, 3), "labels": torch.tensor([0, 1, 1, 2]), "weak_logits": rows(6, 3)},
            **{"strong_logits": rows(6, 3), "threshold": 0.95, "unlabelled_weight": 1.0},
        },
        (),
    ),
    "feature_loss": (feature_loss, {"student": rows(4, 8), "teacher": rows(4, 8), "match": "cosine"}, ()),
    "queue_similarity_loss": (
        queue_similarity_loss,
        {
            **{"student": rows(4, 8), "teacher": rows(4, 8), "queue": rows(9, 8)},
            **{"student_temperature": 0.2, "teacher_temperature": 0.1},
        },
        ("student_temperature", "teacher_temperature"),
    ),
    "batch_similarity_loss": (
        batch_similarity_loss,
        {"student": rows(4, 8), "teacher": rows(4, 6), "student_temperature": 0.2, "teacher_temperature": 0.1},
        ("student_temperature", "teacher_temperature"),
    ),
    "suncet_loss": (
        suncet_loss,
        {"embeddings": rows(4, 8), "labels": torch.tensor([0, 1, 1, 0]), "temperature": 0.1},
        ("temperature",),
    ),
    "supcon_loss": (
        supcon_loss,
        {"z1": rows(4, 8), "z2": rows(4, 8), "labels": torch.tensor([0, 1, 0, -1]), "temperature": 0.5},
        ("temperature",),
    ),
    "triplet_loss": (
        triplet_loss,
        {"z1": rows(4, 8), "z2": rows(4, 8), "labels": torch.tensor([0, 1, 0, -1]), "margin": 0.2},
        ("margin",),
    ),
    "classification_loss": (
        classification_loss,
        {"logits": rows(4, 3), "labels": torch.tensor([0, 1, 1, -1]), "label_smoothing": 0.1},
        (),
    ),
    "scan_loss": (
        scan_loss,
        {"anchor_logits": rows(4, 8), "neighbour_logits": rows(4, 8), "entropy_weight": 5.0},
        (),
    ),
    "self_label_loss": (
        self_label_loss,
        {"weak_logits": rows(4, 8), "strong_logits": rows(4, 8), "threshold": 0.2, "balance": True},
        (),
    ),
    "sigreg": (sigreg, {"embeddings": rows(4, 8), "directions": rows(8, 5)}, ()),
    "invariance": (invariance, {"views": rows(3, 4, 8), "large": 2}, ()),
    "ijepa_loss": (ijepa_loss, {name: rows(2, 3, 4, 8) for name in ("predictions", "targets")}, ()),
    "data2vec_loss": (
        data2vec_loss,
        {"student": rows(2, 4, 8), "teacher": rows(2, 4, 8), "mask": torch.ones(2, 4), "beta": 0.0},
        (),
    ),
    "normalised_tokens": (normalised_tokens, {"tokens": rows(2, 3, 8)}, ()),
    "simmim_loss": (
        simmim_loss,
        {"prediction": rows(2, 3, 8, 8), "images": rows(2, 3, 8, 8), "mask": torch.ones(2, 4), "patch_size": 4},
        ("patch_size",),
    ),
    "sinkhorn": (sinkhorn, {"scores": rows(5, 3), "epsilon": 0.05, "iterations": 3}, ("epsilon", "iterations")),
    "relic_loss": (
        relic_loss,
        {
            **{name: rows(4, 8) for name in ("online_a", "online_b", "target_a", "target_b")},
            "negatives": torch.tensor([[1, 2], [2, 3], [3, 0], [0, 1]]),
            "temperature": 0.5,
            "alpha": 1.0,
            "beta": 1.0,
        },
        ("temperature",),
    ),
    "soft_nearest_neighbours": (
        soft_nearest_neighbours,
        {"queries": rows(4, 8), "supports": rows(6, 8), "labels": LABELS, "temperature": 0.1},
        ("temperature",),
    ),
    "paws_loss": (
        paws_loss,
        {
            "anchors": rows(12, 8),
            "supports": rows(6, 8),
            "targets": rows(8, 8),
            "target_supports": rows(6, 8),
            "labels": LABELS,
            "small_views": 1,
            "temperature": 0.1,
            "sharpen": 0.25,
        },
        ("temperature", "sharpen"),
    ),
    "random_masking": (random_masking, {"noise": rows(4, 16), "mask_ratio": 0.75}, ()),
    "patchify": (patchify, {"images": rows(2, 3, 8, 8), "patch_size": 4}, ("patch_size",)),
    "unpatchify": (unpatchify, {"patches": rows(2, 4, 48), "patch_size": 4}, ("patch_size",)),
    "masked_patch_loss": (
        masked_patch_loss,
        {
            "prediction": rows(2, 4, 48),
            "images": rows(2, 3, 8, 8),
            "mask": torch.ones(2, 4),
            "patch_size": 4,
            "normalize_targets": False,
        },
        ("patch_size",),
    ),
}
# Of any number of rows; with another one they still fit.
ALONE = {"embeddings", "views", "scores", "noise", "images", "queries", "patches", "teacher", "features", "tokens"}


def changed_shapes(tensor: Tensor, free_rows: bool, free_columns: bool) -> list[Tensor]:
    """One row for all, none, one less, one column less, a dimension more."""
    wrong = [tensor[:0], tensor[None]]
    wrong += [] if free_rows else [tensor[:1], tensor[:-1]]
    return wrong + ([] if free_columns else [tensor[..., :-1]])


@pytest.mark.parametrize("name", FITTING)
def test_a_tensor_that_does_not_fit_the_others_is_refused_with_all_shapes(name: str) -> None:
    function, fitting, _ = FITTING[name]
    function(**fitting)
    for argument, value in fitting.items():
        if not isinstance(value, Tensor):
            continue
        together = name in ("masked_patch_loss", "simmim_loss", "data2vec_loss", "suncet_loss")
        free_rows = (argument in ALONE and not together) or argument == "queue"
        free_rows = free_rows or argument == "center"  # a vector: its only size is that of the columns
        free_columns = name in (
            "sinkhorn",
            "random_masking",
            "invariance",
            "classification_loss",
            "batch_similarity_loss",
            "koleo",
            "suncet_loss",
        )
        free_columns |= name == "normalised_tokens"
        free_columns |= argument in ("negatives", "directions", "labels")
        wrong = changed_shapes(value, free_rows, free_columns or (value.ndim == 1 and argument != "center"))
        for tensor in wrong[1:] if name == "sinkhorn" else wrong:  # a process may have no sample to assign
            with pytest.raises(UserError, match=f"^{name}|^patchify") as refusal:
                function(**{**fitting, argument: tensor})
            assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", FITTING)
def test_a_number_out_of_its_range_is_refused_by_its_name(name: str) -> None:
    function, fitting, above_zero = FITTING[name]
    for argument in above_zero:
        for value in (0, -1, math.nan, math.inf):
            with pytest.raises(UserError, match=rf"{argument}={value}\b"):
                function(**{**fitting, argument: value})


def test_every_loss_of_the_contract_is_tried_here() -> None:
    modules = [
        importlib.import_module(f"unlabeled.objectives.{found.name}")
        for found in pkgutil.iter_modules(unlabeled.objectives.__path__)
        if not found.ispkg
    ]
    losses = {
        name
        for module in modules
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
        if name.endswith(("_loss", "_xent", "_contrast", "_neighbours"))
    }
    # halves of swapped_prediction and relic_loss, which are tried; dino_loss takes lists
    halves = {"code_prediction_loss", "contrastive_loss", "dino_loss"}
    assert losses - halves <= set(FITTING), losses - halves - set(FITTING)


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("barlow_twins_loss", "off_diagonal_weight"),
        ("scan_loss", "entropy_weight"),
        *(("vicreg_loss", each) for each in ("invariance", "variance")),
    ],
)
def test_a_weight_below_zero_is_refused_by_its_name(name: str, weight: str) -> None:
    function, fitting, _ = FITTING[name]
    function(**{**fitting, weight: 0.0})
    for value in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"^{name}: {weight}={value} must be at least 0"):
            function(**{**fitting, weight: value})


def test_four_rows_and_five_are_not_paired() -> None:
    with pytest.raises(UserError, match=r"^nt_xent: shapes do not fit: got z1 \[4, 8\], z2 \[5, 8\]; needed"):
        nt_xent(rows(4, 8), rows(5, 8), 0.5)


def test_one_key_is_not_taken_for_all_queries() -> None:
    with pytest.raises(UserError, match=r"k \[1, 8\]"):
        queue_contrast(rows(4, 8), rows(1, 8), rows(9, 8), 0.5)
    with pytest.raises(UserError, match=r"k2 \[1, 8\]"):
        batch_contrast(rows(4, 8), rows(4, 8), rows(4, 8), rows(1, 8), 0.5)


def test_codes_without_an_iteration_are_refused() -> None:
    with pytest.raises(UserError, match=r"^sinkhorn: iterations=0 must be a whole number of at least 1$"):
        sinkhorn(rows(4, 3), 0.05, 0)


@pytest.mark.parametrize("ratio", [1.5, 1.0, -0.1, math.nan])
def test_a_share_of_patches_that_is_no_share_is_refused(ratio: float) -> None:
    with pytest.raises(UserError, match=r"mask_ratio=.* must be at least 0 and below 1"):
        random_masking(rows(4, 16), ratio)


def test_paws_counts_its_anchors_and_targets() -> None:
    _, fitting, _ = FITTING["paws_loss"]
    for wrong in ({"small_views": 2}, {"anchors": rows(11, 8)}, {"targets": rows(6, 8)}):
        with pytest.raises(UserError, match="small_views"):
            paws_loss(**{**fitting, **wrong})
    for sharpen in (1.5, 0.0):
        with pytest.raises(UserError, match="sharpen"):
            paws_loss(**{**fitting, "sharpen": sharpen})


def test_crops_of_swav_have_one_shape_and_those_that_give_codes_are_there() -> None:
    numbers: dict[str, Any] = {"temperature": 0.1, "epsilon": 0.05, "iterations": 3}
    crops = [rows(4, 3)] * 3
    swapped_prediction(crops, [0, 1], **numbers, queue_scores=[rows(2, 3), rows(2, 3)])
    wrong: list[tuple[list[Tensor], list[int], list[Tensor] | None, str]] = [
        ([rows(4, 3), rows(5, 3)], [0], None, r"scores\[1\] \[5, 3\]"),
        (crops, [], None, r"assigned=\[\]"),
        (crops, [3], None, r"assigned=\[3\] of 3 crops"),
        (crops, [0, 0], None, r"assigned=\[0, 0\]"),
        (crops[:1], [0], None, "of 1 crops"),
        (crops, [0, 1], [rows(2, 3)], "1 queue_scores for 2 assigned crops"),
        (crops, [0], [rows(2, 4)], r"queue_scores\[0\] \[2, 4\]"),
    ]
    for scores, assigned, queued, message in wrong:
        with pytest.raises(UserError, match=message):
            swapped_prediction(scores, assigned, **numbers, queue_scores=queued)


def test_crops_of_dino_have_one_shape_and_the_teacher_has_no_more_than_the_student() -> None:
    crops, center = [rows(4, 3)] * 3, rows(3)
    dino_loss(crops, crops[:2], center, 0.1, 0.04)
    wrong: list[tuple[list[Tensor], list[Tensor], Tensor, str]] = [
        ([rows(4, 3), rows(5, 3)], crops[:1], center, r"student\[1\] \[5, 3\]"),
        (crops, [rows(4, 2)], center, r"teacher\[0\] \[4, 2\]"),
        (crops, crops[:2], rows(4), r"center \[4\]"),
        (crops[:1], crops[:1], center, "1 crops of the student, 1 of the teacher"),
        (crops, [], center, "3 crops of the student, 0 of the teacher"),
        (crops, [*crops, *crops], center, "3 crops of the student, 6 of the teacher"),
    ]
    for student, teacher, middle, message in wrong:
        with pytest.raises(ValueError, match=f"^dino_loss: .*{message}"):
            dino_loss(student, teacher, middle, 0.1, 0.04)
    for value in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"^dino_loss: student_temperature={value} must be above 0"):
            dino_loss(crops, crops[:2], center, value, 0.04)
        with pytest.raises(ValueError, match=f"^dino_loss: teacher_temperature={value} must be above 0"):
            dino_loss(crops, crops[:2], center, 0.1, value)
    with pytest.raises(ValueError, match=r"^moved_center: momentum=1\.5"):
        moved_center(center, rows(4, 3), 1.5)


def test_large_crops_of_ibot_have_one_shape_and_a_mask_each_and_koleo_needs_a_neighbour() -> None:
    patches, mask, center = [rows(2, 5, 3)] * 2, [torch.ones(2, 5, dtype=torch.bool)] * 2, rows(3)
    ibots_patch_loss(patches, patches, mask, center, 0.1, 0.04)
    wrong: list[tuple[list[Tensor], list[Tensor], list[Tensor], Tensor, str]] = [
        (patches, patches, mask[:1], center, "2, 2 and 1 crops"),
        ([], [], [], center, "0, 0 and 0 crops"),
        (patches, [rows(2, 4, 3)] * 2, mask, center, r"teacher\[0\] \[2, 4, 3\]"),
        (patches, patches, [mask[0][:1]] * 2, center, r"mask\[0\] \[1, 5\]"),
        (patches, patches, mask, rows(4), r"center \[4\]"),
    ]
    for student, teacher, masks, middle, message in wrong:
        with pytest.raises(UserError, match=f"^masked_patch_loss: .*{message}"):
            ibots_patch_loss(student, teacher, masks, middle, 0.1, 0.04)
    for value in (0, -1, math.nan, math.inf):
        with pytest.raises(UserError, match=f"^masked_patch_loss: student_temperature={value} must be above 0"):
            ibots_patch_loss(patches, patches, mask, center, value, 0.04)
        with pytest.raises(UserError, match=f"^masked_patch_loss: teacher_temperature={value} must be above 0"):
            ibots_patch_loss(patches, patches, mask, center, 0.1, value)
    with pytest.raises(UserError, match=r"^koleo: one row"):
        koleo(rows(1, 8))


def test_halves_of_losses_refuse_what_the_whole_refuses() -> None:
    logs, negatives = rows(4, 3).log_softmax(1), torch.tensor([[1], [2], [3], [0]])
    crops = [rows(4, 3)] * 3
    numbers: dict[str, Any] = {"epsilon": 0.05, "iterations": 3}
    codes = compute_codes(crops, [0, 1], **numbers)
    anchors, supports, wanted = rows(12, 8), rows(6, 8), torch.ones(12, 3) / 3
    wrong: dict[str, Callable[[], Any]] = {
        r"log_q \[1, 3\]": lambda: kl_divergence(logs, logs[:1], "entropy"),
        "stop_gradient=foo: allowed are entropy and first": lambda: kl_divergence(logs, logs, "foo"),  # type: ignore[arg-type]
        "temperature=0": lambda: contrastive_log_probabilities(rows(4, 8), rows(4, 8), negatives, 0.0),
        r"negatives \[3, 1\]": lambda: contrastive_log_probabilities(rows(4, 8), rows(4, 8), negatives[:3], 0.5),
        "must be int64": lambda: contrastive_log_probabilities(rows(4, 8), rows(4, 8), negatives > 0, 0.5),
        "of 4 rows 3 are other": lambda: sample_negatives(4, 4, torch.Generator()),
        "count=0": lambda: sample_negatives(4, 0, torch.Generator()),
        r"codes\[1\] \[1, 3\]": lambda: code_prediction_loss(crops, [0, 1], [codes[0], codes[1][:1]], 0.1),
        "1 codes for 2 assigned": lambda: code_prediction_loss(crops, [0, 1], codes[:1], 0.1),
        "temperature=-1": lambda: code_prediction_loss(crops, [0, 1], codes, -1),
        r"assigned=\[-1\]": lambda: compute_codes(crops, [-1], **numbers),
        r"wanted \[1, 3\]": lambda: prediction_losses(anchors, supports, wanted[:1], LABELS, 0.1, 0.25),
        "3 targets": lambda: target_classes(anchors[:3], supports, LABELS, 1, 0.1, 0.25),
        "sharpen=2": lambda: sharpen_probabilities(wanted, 2),
        "mask_ratio=-0.1": lambda: num_kept_patches(16, -0.1),
        "mask_ratio=nan": lambda: num_kept_patches(16, math.nan),
        "momentum=2": lambda: ema.update(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), 2),
        "momentum=nan": lambda: ema.update(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), math.nan),
    }
    for words, call in wrong.items():
        with pytest.raises(UserError, match=words) as refusal:
            call()
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", [name for name in FITTING if name != "random_masking"])
def test_what_is_not_a_number_never_becomes_a_finite_loss(name: str) -> None:
    function, fitting, _ = FITTING[name]
    for argument, value in fitting.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            found = function(**{**fitting, argument: torch.full_like(value, math.nan)})
            first = found[0] if isinstance(found, tuple) else found
            assert first.isnan().any(), argument


def test_a_masked_autoencoder_of_no_size_and_noise_of_another_are_refused() -> None:
    sizes = {"image_size": 8, "patch_size": 4, "width": 8, "depth": 1, "heads": 2}
    sizes |= {f"decoder_{name}": sizes[name] for name in ("width", "depth", "heads")}
    model = MaskedAutoencoder(**sizes, normalize_targets=False)
    for name in sizes:
        for value in (0, -4):
            with pytest.raises(UserError, match=rf"{name}={value} must be a whole number of at least 1"):
                MaskedAutoencoder(**(sizes | {name: value}), normalize_targets=False)
    for noise in (rows(1, 4), rows(2, 5), rows(2, 16)):
        with pytest.raises(UserError, match=r"^noise .* for images \[2, 3, 8, 8\]: must be \[B, 4\]$"):
            model.forward_masked(rows(2, 3, 8, 8), noise, 0.5)


def test_queues_take_keys_of_their_own_width_only() -> None:
    with pytest.raises(UserError, match=r"queue \[9, 8\], k \[4, 7\]"):
        KeyQueue(9, 8).enqueue(rows(4, 7))
    with pytest.raises(UserError, match="dim=0"):
        KeyQueue(9, 0)
    with pytest.raises(UserError, match=r"embeddings \[1, 4, 8\]"):
        FeatureQueue(2, 6, 8).enqueue(rows(1, 4, 8))


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay", "trust_coefficient"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_lars_refuses_what_the_optimizers_of_torch_refuse_for_a_group_too(name: str, value: float) -> None:
    weight, given = torch.nn.Parameter(rows(2, 2)), {"lr": 0.1, name: value}
    with pytest.raises(ValueError, match=f"^LARS: {name}={value} must be at least 0 and finite$"):
        LARS([weight], **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"{name}={value}"):
        LARS([{"params": [weight], name: value}], lr=0.1)

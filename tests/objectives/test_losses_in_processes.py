"""Losses on two and four processes: the value, and every gradient, of one process with the joined batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.forked import spawn
from tests.group import leave
from tests.objectives.two_views import draw
from unlabeled.objectives.barlow_twins import barlow_twins_loss
from unlabeled.objectives.byol import byol_loss
from unlabeled.objectives.data2vec import data2vec_loss
from unlabeled.objectives.dino import dino_loss, moved_center
from unlabeled.objectives.distill import batch_similarity_loss, feature_loss, queue_similarity_loss, standardised
from unlabeled.objectives.fixmatch import fixmatch_loss
from unlabeled.objectives.ibot import masked_patch_loss
from unlabeled.objectives.ijepa import ijepa_loss
from unlabeled.objectives.lejepa import invariance, sigreg
from unlabeled.objectives.nnclr import nnclr_loss
from unlabeled.objectives.parts.distillation import moved_by_rows
from unlabeled.objectives.scan import scan_loss, self_label_loss
from unlabeled.objectives.simmim import simmim_loss
from unlabeled.objectives.simsiam import simsiam_loss
from unlabeled.objectives.suncet import suncet_loss
from unlabeled.objectives.supcon import supcon_loss, triplet_loss
from unlabeled.objectives.supervised import classification_loss
from unlabeled.objectives.vicreg import vicreg_loss

IMAGES = 8  # over all processes
LABELS = torch.tensor([0, 1, 0, -1, 2, -1, 1, 0])  # halves have other numbers of labelled images
MASK = torch.tensor([[1], [0], [1], [1], [0], [0], [0], [1]]).bool()  # halves have other numbers of masked patches


def patch_loss(s1: Tensor, s2: Tensor, t1: Tensor, t2: Tensor, mask: Tensor) -> Tensor:
    """Of two large crops of two patches, one of which is masked in some images."""
    student, teacher = [s1[:, None].expand(-1, 2, -1), torch.stack([s2, s1], 1)], [torch.stack([t1, t2], 1)] * 2
    masks = [torch.cat([mask, ~mask], 1), torch.cat([mask, mask], 1)]
    return masked_patch_loss(student, teacher, masks, draw(5, seed=9), 0.1, 0.04)


# A loss, how many tensors [B, D] it compares, and its further arguments.
LOSSES: dict[str, tuple[Callable[..., Tensor], int, tuple[Any, ...]]] = {
    "byol": (byol_loss, 4, ()),
    "simsiam": (simsiam_loss, 4, ()),
    "barlow_twins": (barlow_twins_loss, 2, (0.0051,)),
    "vicreg": (vicreg_loss, 2, (25.0, 25.0, 1.0)),
    "dino": (lambda s1, s2, t1, t2: dino_loss([s1, s2, s1 - s2], [t1, t2], draw(5, seed=9), 0.1, 0.04), 4, ()),
    "dino's centre": (lambda t1, t2: moved_center(draw(5), torch.stack([t1, t2]).flatten(0, 1), 0.9).sum(), 2, ()),
    "ibot": (patch_loss, 4, (MASK,)),
    "dinov2's centre of patches": (lambda t, mask: moved_by_rows(draw(5), t, mask[:, 0], 0.9).sum(), 1, (MASK,)),
    "nnclr": (nnclr_loss, 2, (0.3,)),
    "data2vec": (lambda x, y: data2vec_loss(x[..., None], y[..., None], y.detach() > 0, 0.5), 2, ()),
    "ijepa": (lambda p, t: ijepa_loss(p.view(-1, 1, 1, 5), t.view(-1, 1, 1, 5)), 2, ()),
    "simmim": (lambda x, y: simmim_loss(x.view(-1, 1, 1, 5), y.view(-1, 1, 1, 5), y.detach() > 0, 1), 2, ()),
    "sigreg": (sigreg, 1, (F.normalize(draw(5, 7, seed=9), dim=0),)),
    "invariance": (lambda *views: invariance(torch.stack(views), 2), 3, ()),
    "distill, features": (feature_loss, 2, ("cosine",)),
    "distill, standardised": (lambda s, t: feature_loss(s, standardised(t.detach()), "cosine"), 2, ()),
    "distill, queue": (queue_similarity_loss, 2, (F.normalize(draw(9, 5, seed=9), dim=1), 0.2, 0.05)),
    "distill, batch": (batch_similarity_loss, 2, (0.2, 0.05)),
    "fixmatch": (lambda a, b, c, labels: fixmatch_loss(a, labels.clamp(min=0), b, c, 0.4, 0.7), 3, (LABELS,)),
    "supcon": (supcon_loss, 2, (LABELS, 0.3)),
    "suncet": (lambda z, labels: suncet_loss(z, labels, 0.3), 1, (LABELS,)),
    "triplet": (triplet_loss, 2, (LABELS, 0.2)),
    "triplet, semi-hard": (triplet_loss, 2, (LABELS, 0.2, "semi_hard")),
    "triplet, soft margin": (triplet_loss, 2, (LABELS, None)),
    "scan": (scan_loss, 2, (5.0,)),
    "self-labelling": (lambda weak, strong: self_label_loss(weak, strong, 0.4, True), 2, ()),
    "self-labelling, not balanced": (lambda weak, strong: self_label_loss(weak, strong, 0.4, False), 2, ()),
    "supervised": (classification_loss, 1, (LABELS, 0.1)),
}


def loss_and_gradients(name: str, rows: slice) -> dict[str, Tensor]:
    """The mean of the loss over processes, and the gradients of these rows as DDP's mean over processes has them."""
    loss, tensors, more = LOSSES[name]
    inputs = [draw(IMAGES, 5, seed=seed)[rows].requires_grad_() for seed in range(tensors)]
    value = loss(*inputs, *(each[rows] if each is LABELS or each is MASK else each for each in more))
    gradients = torch.autograd.grad(value, inputs, allow_unused=True) if value.requires_grad else ()
    return {"loss": value.detach()} | {str(n): each for n, each in enumerate(gradients) if each is not None}


def one_of_several(rank: int, folder: str, processes: int) -> None:
    init = f"file://{folder}/rendezvous-{processes}"
    torch.distributed.init_process_group("gloo", init_method=init, rank=rank, world_size=processes)
    share = IMAGES // processes
    results = {name: loss_and_gradients(name, slice(rank * share, (rank + 1) * share)) for name in LOSSES}
    torch.save(results, f"{folder}/{processes}-{rank}.pt")
    leave()


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_have_the_loss_and_every_gradient_of_one(tmp_path: Path, processes: int) -> None:
    spawn(one_of_several, (str(tmp_path), processes), processes)
    parts = [torch.load(tmp_path / f"{processes}-{rank}.pt") for rank in range(processes)]
    for name in LOSSES:
        one = loss_and_gradients(name, slice(None))
        found = {key: torch.cat([part[name][key] for part in parts]) / processes for key in one if key != "loss"}
        found["loss"] = torch.stack([part[name]["loss"] for part in parts]).mean()
        for key, expected in one.items():
            torch.testing.assert_close(found[key], expected, rtol=0, atol=1e-12, msg=f"{name} {key}")

"""Pools the predictions of S classifiers and measures the uncertainty of each image from their disagreement.

Members are log probabilities [S, N, C]; -inf is allowed. Entropies are in nats. (Depeweg et al. 2018, arXiv 1710.07283;
Gal 2016, section 3.3.) Probabilities are averaged, not logits.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unlabeled.evaluation.features import top1
from unlabeled.evaluation.probe import Score
from unlabeled.evaluation.uncertainty.calibration import calibration_metrics
from unlabeled.evaluation.uncertainty.selective import selective_metrics

CHUNK_BYTES = 64 * 2**20  # members' logits held at a time


@dataclass
class Pool:
    """Pooled prediction of S members on N images."""

    log_probabilities: Tensor  # float32 [N, C], of the mean probabilities
    scores: dict[str, Tensor]  # float32 [N] each, larger = less sure
    predictions: Tensor  # int64 [S, N], the members' own


def pool_members(members: Tensor) -> Pool:
    """Pools members [S, N, C] into one prediction, with all scores."""
    log_p = log_mean_probabilities(members)
    scores = uncertainty_scores(log_p) | {
        "expected_entropy": expected_entropy(members),
        "mutual_information": mutual_information(members),
        "variation_ratio": variation_ratio(members),
    }
    return Pool(log_p.float(), {name: score.float() for name, score in scores.items()}, members.argmax(dim=2))


def pool_heads(heads: Tensor, x: Tensor) -> Pool:
    """Pools linear heads [S, C, D + 1] on features [N, D + 1]; a bounded number of logits exists at a time."""
    parts = [pool_members(members) for members in _members(heads, x)]
    return Pool(
        torch.cat([part.log_probabilities for part in parts]),
        {name: torch.cat([part.scores[name] for part in parts]) for name in parts[0].scores},
        torch.cat([part.predictions for part in parts], dim=1),
    )


def uncertainty_scores(log_probabilities: Tensor) -> dict[str, Tensor]:
    """Returns scores that need no members, [N] each: ``entropy``, ``least_confidence`` = 1 − largest probability."""
    least = -torch.expm1(log_probabilities.amax(dim=1))
    return {"entropy": entropy(log_probabilities), "least_confidence": least}


def log_mean_probabilities(members: Tensor) -> Tensor:
    """Returns the log of the members' mean probabilities [N, C]."""
    return members.logsumexp(dim=0) - math.log(len(members))


def entropy(log_probabilities: Tensor) -> Tensor:
    """Returns −Σ p log p over the last dimension; of the pool it is the predictive, or total, entropy."""
    terms: Tensor = torch.special.entr(log_probabilities.exp())
    return terms.sum(dim=-1)


def expected_entropy(members: Tensor) -> Tensor:
    """Returns the mean of the members' entropies [N]: the uncertainty that they share (aleatoric)."""
    return entropy(members).mean(dim=0)


def mutual_information(members: Tensor) -> Tensor:
    """Returns predictive minus expected entropy [N]: epistemic, more labels can reduce it (BALD, 1112.5745).

    It is clamped at 0 against rounding.
    """
    return (entropy(log_mean_probabilities(members)) - expected_entropy(members)).clamp(min=0)


def variation_ratio(members: Tensor) -> Tensor:
    """Returns the share of members [N] that do not vote for the most voted class (Freeman 1965)."""
    votes = members.argmax(dim=2)
    agree = votes == votes.mode(dim=0).values
    return 1 - agree.to(members.dtype).mean(dim=0)


def uncertainty_metrics(log_probabilities: Tensor, labels: Tensor, scores: dict[str, Tensor]) -> dict[str, float]:
    """Measures how well each score finds the errors of log probabilities [N, C]: see ``selective_metrics``.

    ``scores``: those beyond ``single_scores``.
    """
    wrong = log_probabilities.argmax(dim=1) != labels
    return selective_metrics(wrong, uncertainty_scores(log_probabilities) | scores)


def pooled_score(
    protocol: str,
    whole: Pool,
    labels: Tensor,
    held: tuple[Tensor, Tensor] | None,
    chosen: dict[str, Any],
    notes: Sequence[str],
) -> Score:
    """Returns the Score of a pool over test images with ``labels`` int64 [N], with every metric.

    ``held``: the pool's log probabilities [M, C] and the labels of images set aside from train, by members fitted
    without them; without it no temperature is fitted. ``member_top1`` is the members' mean, per cent.
    """
    log_p = whole.log_probabilities
    predictions = log_p.argmax(dim=1)
    metrics = {"member_top1": sum(top1(member, labels) for member in whole.predictions) / len(whole.predictions)}
    metrics |= calibration_metrics(log_p, labels, *(held or ()))
    metrics |= uncertainty_metrics(log_p, labels, whole.scores)
    return Score(
        protocol,
        top1(predictions, labels),
        chosen,
        list(notes),
        predictions,
        log_p,
        metrics,
        uncertainty=whole.scores,
    )


def expand_to_all_classes(log_probabilities: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Expands columns [N, c] of ``classes`` int64 [c] to all classes [N, num_classes]; others are -inf."""
    whole = log_probabilities.new_full((len(log_probabilities), num_classes), -math.inf)
    whole[:, classes] = log_probabilities
    return whole


def _members(heads: Tensor, x: Tensor) -> Iterator[Tensor]:
    flat = heads.flatten(0, 1)
    rows = max(1, CHUNK_BYTES // (len(flat) * x.element_size()))
    for part in torch.split(x, rows):
        logits = (part @ flat.T).view(len(part), len(heads), -1)
        yield logits.log_softmax(dim=2).transpose(0, 1)

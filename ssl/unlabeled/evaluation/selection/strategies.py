"""Strategies that say which images of a pool to label next: pure functions of features and predictions.

No strategy is given a label of an image that has not been asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unlabeled.core.seeding import derive_seed
from unlabeled.evaluation.selection.k_center import k_center_rows
from unlabeled.evaluation.selection.nearest import Floats, Ints
from unlabeled.evaluation.selection.typicality import check_count, typical_rows
from unlabeled.evaluation.uncertainty.members import Pool

NEED_LABELS = ("entropy", "margin", "mutual_information")  # they ask a classifier
RANDOM = "random"
# Whose first images in active learning are drawn: there is nothing to ask, or, with k_center, no seed that would count
BEGIN_AT_RANDOM = (*NEED_LABELS, "k_center")  # as Sener and Savarese begin


@dataclass(frozen=True)
class Candidates:
    """All that a strategy sees of a pool of N images."""

    x: Floats  # [N, D], rows of length 1
    labelled: Ints  # [L], rows whose label is known
    pool: Pool | None  # predictions for :attr:`unlabelled`, in that order; None: nothing was fitted
    seed: int

    @property
    def unlabelled(self) -> Ints:
        """Returns the rows without a label, ascending, [N − L]."""
        return np.setdiff1d(np.arange(len(self.x)), self.labelled)


Strategy = Callable[[Candidates, int], Ints]  # how many rows → these rows, the most wanted first


def choose(strategy: str, candidates: Candidates, count: int) -> Ints:
    """Returns ``count`` rows without a label by a strategy's name, the most wanted first.

    Raises:
        UserError: there are fewer than ``count``.
    """
    check_count(count, len(candidates.x), candidates.labelled.tolist())
    return STRATEGIES[strategy](candidates, count)


def at_random(candidates: Candidates, count: int) -> Ints:
    """Draws rows evenly; the draw depends on the seed and on how many labels there are."""
    return _generator(candidates).permutation(candidates.unlabelled)[:count]


def by_entropy(candidates: Candidates, count: int) -> Ints:
    """Takes the largest entropy of the members' mean probabilities (Lewis and Gale 1994; Settles 2009, 3.1)."""
    return _largest(candidates, _pool(candidates).scores["entropy"], count)


def by_margin(candidates: Candidates, count: int) -> Ints:
    """Takes the smallest margin between the two likeliest classes (Scheffer et al. 2001)."""
    return _largest(candidates, -margins(_pool(candidates).log_probabilities), count)


def by_mutual_information(candidates: Candidates, count: int) -> Ints:
    """Takes those on which the members disagree most, H(mean p) − mean H(p) (BALD: Houlsby et al. 2011, 1112.5745)."""
    return _largest(candidates, _pool(candidates).scores["mutual_information"], count)


def by_k_center(candidates: Candidates, count: int) -> Ints:
    """Takes rows that are far from all labelled ones, one after another (core sets: 1708.00489, algorithm 1)."""
    return k_center_rows(candidates.x, count, candidates.labelled.tolist())[0]


def by_typicality(candidates: Candidates, count: int) -> Ints:
    """Takes the most typical row of clusters that have no label yet (TypiClust: 2202.02794, algorithm 1)."""
    return typical_rows(candidates.x, count, candidates.labelled.tolist(), candidates.seed)


STRATEGIES: dict[str, Strategy] = {
    "typical": by_typicality,
    "entropy": by_entropy,
    "margin": by_margin,
    "mutual_information": by_mutual_information,
    "k_center": by_k_center,
    RANDOM: at_random,
}


def margins(log_probabilities: Tensor) -> Tensor:
    """Returns the probability of the likeliest class minus that of the second, [N] from [N, C]; 1 for a single class.

    Equal classes give 0.
    """
    if log_probabilities.shape[1] == 1:
        return torch.ones(len(log_probabilities))
    first, second = log_probabilities.double().exp().topk(2, dim=1).values.unbind(dim=1)
    return first - second


def _largest(candidates: Candidates, scores: Tensor, count: int) -> Ints:
    """Equal scores come in random order: the order of files is often that of classes."""
    values = scores.double().cpu().numpy()
    order = np.lexsort((_generator(candidates).random(len(values)), -values))
    return candidates.unlabelled[order[:count]]


def _pool(candidates: Candidates) -> Pool:
    assert candidates.pool is not None, "a strategy of NEED_LABELS without a classifier"
    return candidates.pool


def _generator(candidates: Candidates) -> np.random.Generator:
    return np.random.default_rng(derive_seed(candidates.seed, len(candidates.labelled)))

"""What the features look like as points: how similar images are, and how many dimensions are used."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unlabeled.evaluation.features import Features
from unlabeled.pages.palette import PALETTE
from unlabeled.pages.plots import INK, new_figure, style_axes
from unlabeled.pages.section import Section, plot_section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 2000  # images, of which all pairs are compared
BINS = 80


def pair_similarities(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the cosines of all pairs of rows [N, D] of one class, and of all pairs of two classes."""
    unit = normalize(x.float())
    first, second = torch.triu_indices(len(x), len(x), 1)
    cosines, same = (unit @ unit.T)[first, second], labels[first] == labels[second]
    return cosines[same], cosines[~same]


def eigenvalue_shares(x: Tensor) -> Tensor:
    """Returns the share of the variance of rows [N, D] along each principal axis, the largest first."""
    rows = x.double() - x.double().mean(0)
    values = torch.linalg.svdvals(rows).square()
    shares: Tensor = values / values.sum().clamp(min=1e-300)
    return shares


def effective_rank(shares: Tensor) -> float:
    """Returns the effective rank of shares of variance: the exponential of the singular values' entropy.

    Roy and Vetterli 2007; the same number as of :func:`unlabeled.representation.spectrum.effective_rank`. 0 where all
    rows are equal.
    """
    p = shares.sqrt() / shares.sqrt().sum().clamp(min=1e-300)
    return float(torch.special.entr(p).sum().exp()) if float(shares.sum()) > 0 else 0.0


def geometry_sections(test: Features, folder: Path, seed: int = 0) -> list[Section]:
    """Makes both sections from at most 2,000 test images; writes similarities.png and spectrum.png into ``folder``."""
    rows = torch.randperm(len(test.x), generator=torch.Generator().manual_seed(seed))[:MOST]
    x, labels = test.x[rows.to(test.x.device)].float().cpu(), test.labels.cpu()[rows]
    made = [_spectrum_section(eigenvalue_shares(x), len(x), folder)]
    same, other = pair_similarities(x, labels)
    if len(same) and len(other):
        made.insert(0, _similarity_section(same, other, len(x), folder))
    return made


def _similarity_section(same: Tensor, other: Tensor, images: int, folder: Path) -> Section:
    words = (
        f"Cosines of all pairs of {images:,} test images: {float(same.mean()):.2f} in the mean within a class, "
        f"{float(other.mean()):.2f} between two. The less the two overlap, the better the classes are apart."
    )
    figure = new_figure(2.9)
    axes = figure.add_subplot()
    edges = torch.linspace(min(-0.05, float(torch.cat([same, other]).amin())), 1, BINS + 1)
    for cosines, colour, name in ((same, PALETTE[0], "one class"), (other, PALETTE[3], "two classes")):
        share = 100 * torch.histogram(cosines, edges).hist / len(cosines)
        axes.stairs(share.numpy(), edges.numpy(), color=colour, linewidth=1.4, label=name)
    style_axes(axes, "pairs in %")
    axes.set_xlabel("cosine similarity", color=INK)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="upper left")
    return plot_section(figure, folder, "similarities", "Similarities within and between classes", words)


def _spectrum_section(shares: Tensor, images: int, folder: Path) -> Section:
    ninety = int((shares.cumsum(0) < 0.9).sum()) + 1
    words = (
        f"Share of the variance along each principal axis of {images:,} test features. Effective rank (Roy and "
        f"Vetterli 2007) {effective_rank(shares):.1f} of {len(shares):,}; 90 % of the variance lie along {ninety:,} "
        "axes. A rank of a few means that the features have collapsed."
    )
    return plot_section(_spectrum(shares), folder, "spectrum", "Rank and spectrum", words)


def _spectrum(shares: Tensor) -> "Figure":
    figure = new_figure(2.9)
    axes = figure.add_subplot()
    seen = shares[shares > 1e-9]
    axes.loglog(range(1, len(seen) + 1), (100 * seen).tolist(), color=PALETTE[0], linewidth=1.4)
    style_axes(axes, "variance in %")
    axes.set_xlabel("principal axis", color=INK)
    return figure

"""Gallery of a method's own clusters: of each the images of which it is most certain."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unlabeled.core.escaping import in_markdown
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.reporting.gallery import ImagesOf, NameOf, short_name
from unlabeled.pages.section import Section, Tile, save_columns, tiles_html

SHOWN, IMAGES = 20, 8  # clusters, and images of each; 160 are loaded (our choice)


@dataclass(frozen=True)
class ShownCluster:
    """One of the clusters, with the images of which it is most certain."""

    number: int  # among the outputs of the method
    size: int  # images whose likeliest cluster it is
    label: int  # the class of most of them
    share: float  # of them that are of this class
    rows: list[int]  # the most certain first
    probabilities: list[float]

    def title(self, classes: Sequence[str]) -> str:
        return f"Cluster {self.number + 1}: {self.size:,} images, {self.share:.0%} {classes[self.label]}"


def largest_clusters(log_probabilities: Tensor, labels: Tensor) -> list[ShownCluster]:
    """Returns the largest clusters of [N, C], the largest first, those without an image left out.

    Args:
        log_probabilities: of each image, float [N, C] on the CPU.
        labels: of each image, int64 [N] on the CPU, from 0.
    """
    most, clusters = log_probabilities.exp().max(1)
    sizes = clusters.bincount(minlength=log_probabilities.shape[1])
    chosen = sizes.argsort(descending=True, stable=True)[:SHOWN]
    return [_shown(int(number), clusters, most, labels) for number in chosen if sizes[number]]


def _shown(number: int, clusters: Tensor, most: Tensor, labels: Tensor) -> ShownCluster:
    members = (clusters == number).nonzero().flatten()
    counts = labels[members].bincount()
    label = int(counts.argmax())
    order = members[most[members].argsort(descending=True, stable=True)][:IMAGES]
    share = int(counts[label]) / len(members)
    return ShownCluster(number, len(members), label, share, order.tolist(), most[order].tolist())


def clusters_section(
    log_probabilities: Tensor,
    test: Features,
    classes: Sequence[str],
    image: ImagesOf,
    folder: Path,
    name: NameOf = "{} {}".format,
) -> Section:
    """Makes the gallery of the test images; writes clusters.png into ``folder``. Loads at most 160 images."""
    labels, ids = test.labels.cpu(), test.ids.cpu()
    found = largest_clusters(log_probabilities, labels)
    pixels = [list(image("test", ids[torch.tensor(each.rows)].tolist()).cpu()) for each in found]
    full = [images for images in pixels if len(images) == min(IMAGES, max(map(len, pixels)))]
    columns = {str(place + 1): [images[place] for images in full] for place in range(len(full[0]))}
    save_columns(columns, folder / "clusters.png")
    groups = "".join(_group(*each, labels, ids, classes, name) for each in zip(found, pixels, strict=True))
    lines = [f"{place}. {in_markdown(each.title(classes))}" for place, each in enumerate(found, 1)]
    empty = log_probabilities.shape[1] - len(found) if len(found) < SHOWN else 0
    words = (
        f"The {len(found)} largest of {log_probabilities.shape[1]} clusters that the method makes without labels, each "
        f"with the {IMAGES} test images of which it is most certain, and their probability. "
        "Below each picture stands its true class; ✓ marks the class of most of the cluster."
        + (f" {empty} have no test image." if empty else "")
    )
    return Section(
        "Clusters and their most certain images",
        words,
        groups,
        "\n".join(["![Clusters and their most certain images](clusters.png)", "", *lines]),
        wide=True,
    )


def _group(
    cluster: ShownCluster, images: Sequence[Tensor], labels: Tensor, ids: Tensor, classes: Sequence[str], name: NameOf
) -> str:
    tiles = [
        Tile(
            pixels,
            [classes[int(labels[row])], f"{p:.3f} · {short_name(name('test', int(ids[row])))}"],
            int(labels[row]) == cluster.label,
        )
        for pixels, row, p in zip(images, cluster.rows, cluster.probabilities, strict=True)
    ]
    return tiles_html(cluster.title(classes), tiles)

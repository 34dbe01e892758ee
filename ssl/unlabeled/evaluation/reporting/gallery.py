"""Gallery of nearest neighbours: test images, each with the training images nearest to it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unlabeled.core.escaping import in_markdown
from unlabeled.evaluation.features import Features, unit_rows
from unlabeled.evaluation.knn import neighbours
from unlabeled.pages.section import Section, Tile, query_html, save_columns

ImagesOf = Callable[[str, Sequence[int]], Tensor]  # "train" or "test" and ids → float [n, 3, h, w] in [0, 1]

NameOf = Callable[[str, int], str]  # "train" or "test" and an id → what a user calls the image

LONGEST = 40  # characters of a name below a picture
NEIGHBOURS = 8
OF_EACH = 3  # queries of each kind, right and wrong: 54 images are loaded
CANDIDATES = 256  # test images to choose queries from: a whole large test set would take minutes


@dataclass(frozen=True)
class NeighbourQuery:
    """A test image and the training images nearest to it, nearest first."""

    id: int
    label: int
    ids: list[int]
    labels: list[int]
    cosines: list[float]

    @property
    def majority(self) -> int:
        """Returns the class that most neighbours have; the first among equals."""
        return max(dict.fromkeys(self.labels), key=self.labels.count)

    @property
    def right(self) -> bool:
        return self.majority == self.label


def choose_queries(train: Features, test: Features, seed: int, of_each: int = OF_EACH) -> list[NeighbourQuery]:
    """Draws test images, up to ``of_each`` that their neighbours classify right and as many that they do not.

    The same ``seed`` gives the same images; right ones come first. Cosine similarity, as in k-NN.
    """
    chosen = torch.randperm(len(test.x), generator=torch.Generator().manual_seed(seed))[:CANDIDATES]
    chosen = chosen.to(test.x.device)
    cosines, rows = neighbours(unit_rows(test.x[chosen]), unit_rows(train.x), min(NEIGHBOURS, len(train.x)))
    found = [
        NeighbourQuery(
            int(test.ids[row]), int(test.labels[row]), train.ids[near].tolist(), train.labels[near].tolist(), cosine
        )
        for row, near, cosine in zip(chosen.tolist(), rows, cosines.tolist(), strict=True)
    ]
    return [q for q in found if q.right][:of_each] + [q for q in found if not q.right][:of_each]


def neighbour_section(
    train: Features,
    test: Features,
    classes: Sequence[str],
    image: ImagesOf,
    folder: Path,
    seed: int = 0,
    name: NameOf = "{} {}".format,
) -> Section:
    """Makes the gallery; writes neighbours.png into ``folder``. Loads at most 54 images."""
    found = choose_queries(train, test, seed)
    beside = image("train", [id for query in found for id in query.ids]).cpu()
    near = list(torch.split(beside, len(found[0].ids)))
    asked = list(image("test", [query.id for query in found]).cpu())
    columns = {"query": asked} | {str(n + 1): [images[n] for images in near] for n in range(len(near[0]))}
    save_columns(columns, folder / "neighbours.png")
    rows = "".join(_row(*each, classes, name) for each in zip(found, asked, near, strict=True))
    lines = [f"{number}. {_sentence(query, classes, name)}" for number, query in enumerate(found, 1)]
    return Section(
        "Nearest training images",
        f"Test images drawn at random, each with the {len(near[0])} training images nearest to it by cosine: up to "
        f"{OF_EACH} whose neighbours vote for the right class, then up to {OF_EACH} where they vote for another. "
        "Their shares here are not an accuracy. Below each picture stands its true class; ✓ marks neighbours of the "
        "test image's class.",
        rows,
        "\n".join(["![Nearest training images](neighbours.png)", "", *lines]),
        wide=True,
    )


def said_of(label: str, predicted: str) -> str:
    """Returns the true class, and beside it the predicted one where it is another: alike in every gallery."""
    return label if label == predicted else f"{label}, taken for {predicted}"


def short_name(name: str) -> str:
    """Returns a path's last part; of a long one the beginning and the end."""
    short = name.rpartition("/")[2] or name
    half = LONGEST // 2
    return short if len(short) <= LONGEST else f"{short[:half]}…{short[1 - half :]}"


def _row(query: NeighbourQuery, asked: Tensor, near: Tensor, classes: Sequence[str], name: NameOf) -> str:
    said = said_of(classes[query.label], classes[query.majority])
    head = Tile(asked, [said, short_name(name("test", query.id))], query.right)
    each = zip(near, query.ids, query.labels, query.cosines, strict=True)
    tiles = [
        Tile(pixels, [classes[label], f"{cosine:.3f} · {short_name(name('train', id))}"], label == query.label)
        for pixels, id, label, cosine in each
    ]
    return query_html([head], tiles)


def _sentence(query: NeighbourQuery, classes: Sequence[str], name: NameOf) -> str:
    classes = [in_markdown(name) for name in classes]
    near = ", ".join(f"{classes[label]} {c:.3f}" for label, c in zip(query.labels, query.cosines, strict=True))
    verdict = "right" if query.right else f"wrong, voted {classes[query.majority]}"
    return f"**{classes[query.label]}** ({in_markdown(short_name(name('test', query.id)))}): {near}; {verdict}"

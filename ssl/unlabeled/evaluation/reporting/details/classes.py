"""How a probe does on each class, and the pairs of classes that it takes for one another, with examples."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from unlabeled.core.escaping import in_table
from unlabeled.evaluation.reporting.confusion import ConfusedClasses, most_confused
from unlabeled.evaluation.reporting.gallery import ImagesOf, NameOf, said_of, short_name
from unlabeled.pages.parts import joined, number_table
from unlabeled.pages.section import Section, Tile, save_columns, tiles_html

ALL, ENDS = 20, 10  # most classes that are all listed; of more, so many of the worst and of the best
PAIRS, EXAMPLES = 5, 6  # pairs of classes, and images of each (our choice)


class ClassScore(NamedTuple):
    """Test images of one class, and the share of them that is right."""

    label: int
    images: int
    accuracy: float


def class_scores(predictions: Tensor, labels: Tensor) -> list[ClassScore]:
    """Returns the classes that have test images, the worst first, of equals the lower first."""
    counts = labels.bincount()
    right = labels[predictions == labels].bincount(minlength=len(counts))
    shares = right.double() / counts.clamp(min=1)
    order = shares.argsort(stable=True)
    return [ClassScore(int(c), int(counts[c]), float(shares[c])) for c in order if counts[c]]


def class_section(predictions: Tensor, labels: Tensor, classes: Sequence[str], protocol: str) -> Section:
    """Lists the accuracy of up to 20 classes, the worst first; of more the ten worst and the ten best."""
    scores = class_scores(predictions.cpu(), labels.cpu())
    shown = scores if len(scores) <= ALL else [*scores[:ENDS], *scores[-ENDS:]]
    part = "" if shown is scores else f" The {ENDS} worst and the {ENDS} best of {len(scores):,} classes."
    head = ["class", "images", "right"]
    lines = [[classes[each.label], f"{each.images:,}", f"{each.accuracy:.1%}"] for each in shown]
    rows = [f"| {in_table(name)} | {images} | {share} |" for name, images, share in lines]
    return Section(
        "Accuracy of each class",
        f"Share of the test images of each class that is right, the worst class first; {protocol}.{part}",
        number_table(head, lines, [each.accuracy for each in shown]),
        "\n".join(["| class | images | right |", "| --- | ---: | ---: |", *rows]),
    )


def pairs_section(
    predictions: Tensor,
    labels: Tensor,
    ids: Tensor,
    classes: Sequence[str],
    protocol: str,
    image: ImagesOf,
    folder: Path,
    name: NameOf,
) -> Section | None:
    """Shows the pairs with most mistakes, either way, with test images; None where nothing is wrong.

    Writes pairs.png into ``folder``, and loads at most 30 images. All tensors int64 [N], of the test images.
    """
    predictions, labels, ids = predictions.cpu(), labels.cpu(), ids.cpu()
    found = hardest_pairs(predictions, labels)
    if not found:
        return None
    html, lines, columns = [], [], {}
    for number, (a, b, count) in enumerate(found, 1):
        wrong = ((labels == a) & (predictions == b)) | ((labels == b) & (predictions == a))
        rows = wrong.nonzero().flatten()[:EXAMPLES].tolist()
        pixels = list(image("test", ids[rows].tolist()).cpu())
        title = f"{classes[a]} and {classes[b]}: {count:,} mistake{'s' * (count > 1)}"
        tiles = zip(rows, pixels, strict=True)
        html.append(tiles_html(title, [_tile(*each, predictions, labels, ids, classes, name) for each in tiles]))
        lines.append(f"{number}. {in_table(title)}")
        columns[str(number)] = pixels
    save_columns(_even(columns), folder / "pairs.png")
    words = f"The pairs of classes that are most often taken for one another, either way, with test images; {protocol}."
    text = "\n".join(["![Hardest pairs of classes](pairs.png)", "", *lines])
    return Section("Hardest pairs of classes", words, joined(*html), text, wide=True)


def hardest_pairs(predictions: Tensor, labels: Tensor, most: int = PAIRS) -> list[tuple[int, int, int]]:
    """Returns pairs a < b with the number of images of one that were called the other, the largest first."""
    both: dict[tuple[int, int], int] = {}
    for each in most_confused(predictions, labels, len(labels)):
        pair = _ordered(each)
        both[pair] = both.get(pair, 0) + each.images
    return [(*pair, count) for pair, count in sorted(both.items(), key=lambda item: (-item[1], item[0]))[:most]]


def _ordered(each: ConfusedClasses) -> tuple[int, int]:
    return min(each.label, each.predicted), max(each.label, each.predicted)


def _tile(
    row: int, pixels: Tensor, predictions: Tensor, labels: Tensor, ids: Tensor, classes: Sequence[str], name: NameOf
) -> Tile:
    said = said_of(classes[int(labels[row])], classes[int(predictions[row])])
    return Tile(pixels, [said, short_name(name("test", int(ids[row])))], False)


def _even(columns: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """Fills shorter columns with white images."""
    longest = max(map(len, columns.values()))
    white = torch.ones_like(next(iter(columns.values()))[0])
    return {name: images + [white] * (longest - len(images)) for name, images in columns.items()}

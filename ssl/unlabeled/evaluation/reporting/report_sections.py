"""Makes the sections of the report besides numbers: images and plots, for the page and for Markdown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from unlabeled.data.padding import pad_to_largest
from unlabeled.evaluation.evaluate_probes import OWN_ANSWERS, Row
from unlabeled.evaluation.features import Features, eval_mode
from unlabeled.evaluation.reporting.attention import attention_pictures
from unlabeled.evaluation.reporting.calibration_plots import calibration_section, certainty_section
from unlabeled.evaluation.reporting.clusters import clusters_section
from unlabeled.evaluation.reporting.confusion import confusion_section
from unlabeled.evaluation.reporting.details.classes import class_section, pairs_section
from unlabeled.evaluation.reporting.details.geometry import geometry_sections
from unlabeled.evaluation.reporting.details.image_cache import Decode
from unlabeled.evaluation.reporting.details.points import MapPoints, Thumbnails, points_html
from unlabeled.evaluation.reporting.figures import draw_feature_map, label_curve, loss_curve, place_features
from unlabeled.evaluation.reporting.gallery import ImagesOf, NameOf, neighbour_section, short_name
from unlabeled.evaluation.reporting.templates import report_macros
from unlabeled.objective import Backbone, Batch, HasVisualization, Objective
from unlabeled.pages.section import Section, Tile, plot_section, save_columns, tile_html
from unlabeled.pages.template import safe
from unlabeled.views.pipeline import Views

PICTURES = 6  # images with attention and reconstructions
FEW_COLUMNS = 4  # columns up to which several images stand side by side


@dataclass
class ReportImages:
    """Inputs of the sections with images; about 90 images are asked for."""

    classes: Sequence[str]
    train: Features  # of the evaluated network, labelled images
    test: Features
    image: ImagesOf  # "train" or "test" and ids in their source → float [n, 3, h, w] in [0, 1], as evaluation sees them
    attention: dict[str, Tensor] | None = None  # columns [n, 3, h, w] in [0, 1], of attention_pictures
    pictures: dict[str, Tensor] | None = None  # likewise, of reconstructions
    name: NameOf = "{} {}".format  # of an image, by split and id
    small: Thumbnails | None = None  # of the map
    views: dict[str, Tensor] | None = None  # columns [n, 3, h, w] in [0, 1], of training images
    clusters: Tensor | None = None  # log probabilities of the test images [N, C], by the method's own clusters


def evaluation_images(decode: Decode, views: Views) -> ImagesOf:
    """Returns a function that decodes images and transforms them as evaluation does."""

    def image(split: str, ids: Sequence[int]) -> Tensor:
        images, sizes = pad_to_largest(decode(split, ids))
        return views.shown(views.evaluation_view(images, sizes))

    return image


def network_pictures(
    backbone: Backbone, objective: Objective | None, decode: Decode, views: Views, test: Features, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns attention and reconstructions of six random labelled test images; empty where there are none.

    Args:
        backbone: with the evaluated weights.
        objective: likewise, or None if the checkpoint has no objective.
        decode: gives images of the test split.
        views: of the run.
        test: features of the test images.
        seed: of the choice of images, and of the masks.
    """
    chosen = torch.randperm(len(test.ids), generator=torch.Generator().manual_seed(seed))[:PICTURES]
    images, sizes = pad_to_largest(decode("test", test.ids.cpu()[chosen].tolist()))
    device = next(backbone.parameters()).device
    seen = views.evaluation_view(images, sizes).to(device)
    painted = {} if objective is None else reconstructions(objective.to(device), views, seen, seed)
    return attention_pictures(backbone, views, seen), painted


@torch.no_grad()
def reconstructions(objective: Objective, views: Views, images: Tensor, seed: int) -> dict[str, Tensor]:
    """Returns the method's pictures of images, see :class:`HasVisualization`; keeps the objective's mode.

    Args:
        objective: on the device of ``images``.
        views: the views that made ``images``.
        images: [B, 3, h, w], as evaluation sees them.
        seed: of every random draw.

    Returns:
        Columns [B, 3, h, w] in [0, 1] on the CPU by their names; none if the method makes no pictures.
    """
    if not isinstance(objective, HasVisualization):
        return {}
    decoded, nothing = (views.to_pixels(images) * 255).round().byte(), torch.arange(len(images))
    batch = Batch(decoded, nothing, torch.full_like(nothing, -1), (images,))
    with eval_mode(objective):
        columns = objective.visualize(batch, seed)
    return {name: views.shown(column).cpu() for name, column in columns.items()}


def make_sections(
    folder: Path,
    rows: Sequence[Row],
    metrics: Path | None,
    collapsed_at: float | None,
    report_images: ReportImages | None,
) -> list[Section]:
    """Makes all sections, in the order of the report; pictures for Markdown are written to ``folder``."""
    made = []
    if metrics is not None and metrics.exists():
        words = "Training loss of every logged step and, where it was measured, accuracy of the online k-NN probe."
        curve = loss_curve(metrics, collapsed_at)
        made.append(plot_section(curve, folder, "loss_curve", "Loss and online k-NN while training", words))
    by_labels = label_curve(rows)
    if by_labels is not None:
        words = "Accuracy with few labelled images, mean of the draws and their range."
        made.append(plot_section(by_labels, folder, "labels", "Accuracy by labels", words, leads=True))
    return (
        made
        if report_images is None
        else made + _of_features(report_images, rows, folder) + _of_network(report_images, folder)
    )


def best_row(rows: Sequence[Row], fits: Callable[[Row], bool]) -> Row | None:
    """Returns the pretrained row of the best-known protocol that ``fits``: linear before k-NN before any other.

    A method that answers by itself, by classes or clusters, is judged by its answers first.
    Of several linear rows it takes the first, of k-NN likewise: never the best on the test set. Means over draws come
    last.
    """
    fitting = [row for row in rows if row.features == "pretrained" and fits(row)]
    fitting.sort(key=lambda row: len(row.draws) > 1)
    for family in (*OWN_ANSWERS, "linear/cached-lbfgs", "linear", "knn", ""):
        for row in fitting:
            if row.protocol.startswith(family):
                return row
    return None


def _of_features(report_images: ReportImages, rows: Sequence[Row], folder: Path) -> list[Section]:
    train, test, classes = report_images.train, report_images.test, report_images.classes
    predicted = best_row(rows, lambda row: row.predictions is not None)
    made = [_map_section(report_images, predicted, folder)]
    if report_images.clusters is not None:
        clusters, name = report_images.clusters, report_images.name
        made.append(clusters_section(clusters, test, classes, report_images.image, folder, name))
    if predicted is not None and predicted.predictions is not None:
        made.append(class_section(predicted.predictions, test.labels, classes, predicted.protocol))
        made.append(confusion_section(predicted.predictions, test.labels, classes, predicted.protocol, folder))
        of_mistakes = predicted.predictions, test.labels, test.ids, classes, predicted.protocol
        pairs = pairs_section(*of_mistakes, report_images.image, folder, report_images.name)
        made += [pairs] if pairs else []
    made += geometry_sections(test, folder)
    sure = best_row(rows, lambda row: row.predictions is not None and row.log_probabilities is not None)
    if sure is not None and sure.log_probabilities is not None:
        made.append(calibration_section(sure.log_probabilities, test.labels, sure.protocol, folder))
    made.append(neighbour_section(train, test, classes, report_images.image, folder, name=report_images.name))
    if sure is not None and sure.predictions is not None and sure.log_probabilities is not None:
        made.append(
            certainty_section(
                sure.predictions.cpu(),
                sure.log_probabilities.cpu(),
                test.labels.cpu(),
                test.ids.cpu(),
                classes,
                sure.protocol,
                report_images.image,
                folder,
                report_images.name,
            )
        )
    return made


def _map_section(report_images: ReportImages, predicted: Row | None, folder: Path) -> Section:
    test, classes = report_images.test, report_images.classes
    placed = place_features(test.x)
    words = (
        f"{placed.title}. Each dot is a test image; dots that lie together have similar features. Axes and distances "
        "between groups have no meaning. Point at a dot, or use the arrow keys, to see its image."
    )
    title = "Map of the test features"
    section = plot_section(draw_feature_map(placed, test.labels, classes), folder, "feature_map", title, words)
    ids, rows = test.ids.cpu()[placed.rows].tolist(), placed.rows
    said = None if predicted is None or predicted.predictions is None else predicted.predictions.cpu()[rows].tolist()
    small = None if report_images.small is None else report_images.small(ids)
    names = [short_name(report_images.name("test", id)) for id in ids]
    points = MapPoints(placed.positions, test.labels.cpu()[rows].tolist(), names, said, small)
    return replace(section, html=points_html(points, classes, placed.title))


def _of_network(report_images: ReportImages, folder: Path) -> list[Section]:
    words = (
        "Attention rollout (Abnar and Zuidema 2020), each image on its own scale: yellow where the features look, "
        "dark where they do not. It leaves values and perceptrons out: an illustration, not a measurement."
    )
    made = []
    if report_images.attention:
        made.append(image_columns_section(report_images.attention, folder, "attention", "Attention over images", words))
    if report_images.views:
        words_of_views = "Training images and the views of them that the method saw, with one random draw for each."
        views = report_images.views
        made.append(image_columns_section(views, folder, "views", "Views of training images", words_of_views))
    if report_images.pictures:
        words = "What the method makes of test images, with one random draw for each."
        made.append(image_columns_section(report_images.pictures, folder, "reconstructions", "Reconstructions", words))
    return made


def image_columns_section(columns: dict[str, Tensor], folder: Path, name: str, title: str, words: str) -> Section:
    """Shows columns of images side by side, also written to ``folder``/name.png."""
    save_columns({title: list(images) for title, images in columns.items()}, folder / f"{name}.png")
    groups = zip(*columns.values(), strict=True)
    tiles = [
        [safe(tile_html(Tile(pixels, [title]))) for title, pixels in zip(columns, images, strict=True)]
        for images in groups
    ]
    html = report_macros().groups(tiles, len(columns) > FEW_COLUMNS)
    return Section(title, words, html, f"![{title}]({name}.png)", wide=True)

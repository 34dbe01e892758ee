"""The report of a run without labelled test images: curves, health, rank, invariances, clusters, neighbours."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from unlabeled.core.environment import plain_values
from unlabeled.core.writing import write_atomic
from unlabeled.evaluation.exploring.findings import Findings
from unlabeled.evaluation.exploring.images import Explored
from unlabeled.evaluation.reporting.figures import loss_curve
from unlabeled.evaluation.reporting.gallery import ImagesOf, short_name
from unlabeled.evaluation.reporting.run_summary import provenance_facts
from unlabeled.evaluation.selection.nearest import Ints, duplicate_groups, usual_similarity
from unlabeled.pages.html import html_page
from unlabeled.pages.parts import (
    Part,
    contents,
    doubts,
    folded,
    joined,
    main_html,
    part_html,
    part_of_section,
    shown_part,
    text_table,
)
from unlabeled.pages.section import Tile, plot_section, query_html, tiles_html
from unlabeled.pages.style import STYLE
from unlabeled.pages.template import breakable, macros, shared
from unlabeled.representation.analysis import Analysis
from unlabeled.representation.report_files import measure_lines, plots

TITLE = "Report without labels"
CLUSTERS, CENTRAL, QUERIES, NEAR, FEW = 12, 8, 6, 8, 16  # how many of each are shown; our choice
FOLDED = ("versions", "machine", "run_config")


@dataclass(frozen=True)
class LookedAt:
    """The images of a run, what is found in their features, and how to show them."""

    explored: Explored
    found: Findings
    image: ImagesOf


def write_unlabelled_report(
    folder: Path,
    looked_at: LookedAt,
    analysis: Analysis | None,
    findings: Sequence[str],
    provenance: Mapping[str, Any],
    metrics: Path,
    collapsed_at: float | None,
    page: str,
) -> Path:
    """Writes report.html, and its plots as PNG, into ``folder``.

    Args:
        folder: made if it does not exist.
        looked_at: the images; about 200 of them are decoded.
        analysis: of the network; None where it could not be measured.
        findings: what is wrong with the run, a sentence each.
        provenance: checkpoint, data, settings, versions, machine.
        metrics: the run's metrics.jsonl.
        collapsed_at: loss of a collapsed network, for the learning curve.
        page: address of the explore page, from ``folder``.

    Returns:
        The path of report.html.
    """
    parts = [
        *(doubts("Warnings", findings) or [Part("Health", shared().paragraphs(["Nothing to warn of."]))]),
        *_curves(folder, metrics, collapsed_at),
        *([] if analysis is None else _measures(analysis, folder)),
        *_images(looked_at),
        _facts(provenance),
    ]
    top = _opening(looked_at, analysis, findings, provenance, page)
    body = main_html(top, contents(parts), *map(part_html, parts))
    write_atomic(folder / "report.html", html_page(TITLE, STYLE, body))
    return folder / "report.html"


def _opening(
    looked_at: LookedAt, analysis: Analysis | None, findings: Sequence[str], provenance: Mapping[str, Any], page: str
) -> str:
    checkpoint, data = provenance["checkpoint"], provenance["data"]
    under = [str(checkpoint["path"]), str(data["description"]), str(provenance["date"])]
    opening: str = macros(Path(__file__).with_suffix(".html")).opening(
        TITLE, under, _headline(looked_at, analysis, findings), page
    )
    return opening


def _headline(looked_at: LookedAt, analysis: Analysis | None, findings: Sequence[str]) -> str:
    found = looked_at.found
    health = "Nothing to warn of" if not findings else f"{len(findings)} warning{'s' * (len(findings) > 1)}"
    rank = ""
    if analysis is not None:
        space = analysis.spaces["backbone"]
        rank = f" {space['rankme']:.0f} of {space['dimensions']:,} dimensions are used (RankMe);"
    groups = _groups(found)
    twins = f"{len(groups):,} group{'s' * (len(groups) != 1)} of near duplicates"
    return f"{health}.{rank} {twins} among {len(found.unusual):,} images."


def _curves(folder: Path, metrics: Path, collapsed_at: float | None) -> list[Part]:
    if not metrics.exists():
        return []
    words = "Training loss of every logged step."
    section = plot_section(loss_curve(metrics, collapsed_at), folder, "loss_curve", "Loss while training", words)
    return [part_of_section(section)]


def _measures(analysis: Analysis, folder: Path) -> list[Part]:
    words = (
        "Ranks say how many dimensions the features fill; they compare between networks with equal images and "
        "dimensions alone. Invariance is 1 where an augmentation changes nothing, 0 where it changes an image as much "
        "as taking another. unlabeled represent measures more images."
    )
    notes = shared().listed([*map(breakable, analysis.notes)], "quiet")
    table = joined(text_table(["measure", *analysis.spaces], measure_lines(analysis)), notes)
    titles = {"spectrum": "Spectrum", "invariance": "Invariances", "cka": "Layers", "attention_distance": "Attention"}
    drawn = [
        part_of_section(plot_section(figure, folder, name, titles[name], said))
        for name, figure, said in plots(analysis)
    ]
    return [*drawn, Part("Rank and invariance", shared().shown(words, table))]


def _images(looked_at: LookedAt) -> list[Part]:
    """Sections with pictures; each image is decoded once for each that shows it."""
    found = looked_at.found
    shown: list[Callable[[LookedAt], Part | None]] = [_clusters, _neighbours, _outliers, _duplicates, _label_next]
    return [part for make in shown if (part := make(looked_at)) is not None] if len(found.unusual) > 1 else []


def _clusters(looked_at: LookedAt) -> Part:
    clusters = looked_at.found.clusters
    number = min(CLUSTERS, len(clusters))
    which = f"{number} largest of {len(clusters)}" if number < len(clusters) else str(number)
    by, shown = ("of the method itself", "most certain") if clusters.own else ("by k-means", "most central")
    words = f"The {which} clusters {by}, each with its {shown} images."
    rows = []
    for cluster in range(number):
        members = clusters.members(cluster)
        title = f"Cluster {cluster + 1}: {len(members):,} images"
        rows.append(tiles_html(title, _tiles(looked_at, members[:CENTRAL], lambda row: [])))
    return shown_part("Clusters", words, joined(*rows))


def _neighbours(looked_at: LookedAt) -> Part:
    found = looked_at.found
    queries = np.random.default_rng(0).permutation(len(found.near))[:QUERIES]
    rows = []
    for query in queries.tolist():
        near = found.near[query][:NEAR]
        cosines = dict(zip(near.tolist(), found.cosines[query][:NEAR].tolist(), strict=True))
        asked = _tiles(looked_at, np.array([query]), lambda row: [])
        beside = _tiles(looked_at, near, lambda row, of=cosines: [f"{of[row]:.3f}"])  # type: ignore[misc]
        rows.append(query_html(asked, beside))
    words = f"{len(queries)} images drawn at random, each with the images most similar to it by cosine."
    return shown_part("Nearest images", words, joined(*rows))


def _outliers(looked_at: LookedAt) -> Part:
    unusual = looked_at.found.unusual
    rows = np.argsort(-unusual, kind="stable")[:FEW]
    words = "The images least like the ten most similar to them: 1 minus the mean cosine."
    return shown_part("Outliers", words, tiles_html("", _tiles(looked_at, rows, lambda row: [f"{unusual[row]:.3f}"])))


def _groups(found: Findings) -> list[list[int]]:
    return duplicate_groups(found.near, found.cosines, usual_similarity(found.cosines))


def _duplicates(looked_at: LookedAt) -> Part | None:
    groups = _groups(looked_at.found)
    if not groups:
        return None
    rows = np.array([row for group in groups for row in group[:4]][: 2 * FEW], np.int64)
    number = {row: place for place, group in enumerate(groups, 1) for row in group}
    least = f"{usual_similarity(looked_at.found.cosines):g}"
    words = (
        f"Images whose cosine is {least} or more, up to four of each of {len(groups):,} groups: look whether they are."
    )
    tiles = _tiles(looked_at, rows, lambda row: [f"group {number[row]}"])
    return shown_part("Near duplicates", words, tiles_html("", tiles))


def _label_next(looked_at: LookedAt) -> Part:
    words = "Typical images of as many dense regions (TypiClust), by which a first label tells most."
    tiles = _tiles(looked_at, looked_at.found.typical[:FEW], lambda row: [])
    return shown_part("What to label first", words, tiles_html("", tiles))


def _tiles(looked_at: LookedAt, rows: Ints, said: Callable[[int], list[str]]) -> list[Tile]:
    made = zip(rows.tolist(), _pixels(looked_at, rows.tolist()), strict=True)
    names = looked_at.found.embeddings.names
    return [Tile(pixels, [short_name(names[row]), *said(row)]) for row, pixels in made]


def _pixels(looked_at: LookedAt, rows: Sequence[int]) -> list[Tensor]:
    """Pixels as evaluation sees them; images of several splits are decoded one by one."""
    splits, ids = looked_at.found.embeddings.splits, looked_at.explored.ids
    return [looked_at.image(splits[row], [ids[row]])[0].cpu() for row in rows]


def _facts(provenance: Mapping[str, Any]) -> Part:
    plain: Any = plain_values(provenance)
    shown = {key: value for key, value in plain.items() if key not in FOLDED}
    table = text_table(["what", "value"], [list(map(breakable, fact)) for fact in provenance_facts(shown)])
    return Part("Provenance", joined(table, *(folded(key, plain[key]) for key in FOLDED if plain.get(key))))

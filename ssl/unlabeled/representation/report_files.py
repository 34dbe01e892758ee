"""Writes an analysis to files: representation.json for programs, representation.md with pictures for people."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlabeled.core.environment import plain_values
from unlabeled.core.escaping import in_markdown
from unlabeled.core.writing import save_picture, save_plot, write_atomic
from unlabeled.pages.draw import draw_columns
from unlabeled.representation.analysis import Analysis
from unlabeled.representation.figures import distance_plot, invariance_plot, matrices, spectrum_plot
from unlabeled.representation.invariance import STRENGTHS
from unlabeled.representation.layers import POOLING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "representation"


def write_analysis(folder: Path, analysis: Analysis, protocol: Mapping[str, Any]) -> None:
    """Writes all files into ``folder``, which is made if it is missing.

    In the JSON, numbers are not rounded, and a number that is not finite is null.
    """
    pictures = {f"{NAME}_{name}.png": (figure, words) for name, figure, words in plots(analysis)}
    for name, (figure, _) in pictures.items():
        save_plot(folder / name, figure)
    shown = {name: words for name, (_, words) in pictures.items()}
    if analysis.rollouts:
        save_picture(folder / f"{NAME}_attention.png", draw_columns(analysis.rollouts))
        shown[f"{NAME}_attention.png"] = (
            "Attention rollout: where the features come from. To think with, no measurement."
        )
    values = json.dumps(
        plain_values(analysis_values(analysis, protocol)), indent=2, allow_nan=False, ensure_ascii=False
    )
    write_atomic(folder / f"{NAME}.json", values + "\n")
    write_atomic(folder / f"{NAME}.md", _page(analysis, protocol, shown))


def analysis_values(analysis: Analysis, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of representation.json."""
    values: dict[str, Any] = {"spaces": analysis.spaces, "notes": analysis.notes, "protocol": protocol}
    values["augmentations"] = STRENGTHS
    values["spectra"] = {name: spectrum.tolist() for name, spectrum in analysis.spectra.items()}
    if analysis.cka is not None:
        values["cka"] = {"layers": analysis.layers, "matrix": analysis.cka.tolist(), "pooling": POOLING}
        values["cka"] |= {"estimator": "linear, unbiased HSIC₁ over mini-batches", "images": analysis.cka_images}
    if analysis.distances is not None:
        values["attention_distance"] = {"pixels": analysis.distances.tolist(), "even": analysis.even_distance}
    return values


def measures_table(analysis: Analysis) -> str:
    """Returns the measures as a Markdown table."""
    lines = [["", *analysis.spaces], ["---", *["---:"] * len(analysis.spaces)], *measure_lines(analysis)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measure_lines(analysis: Analysis) -> list[list[str]]:
    """Returns a line for each measure: its name, and a cell for each space."""
    lines = [[title, *map(cell, analysis.spaces.values())] for title, cell in _LINES.items()]
    for name in next(iter(analysis.spaces.values()))["invariance"]:
        cells = (f"{space['invariance'][name]:.3f}" for space in analysis.spaces.values())
        lines.append([f"invariance to {name}", *cells])
    return lines


def _alpha(space: Mapping[str, Any]) -> str:
    if space["alpha"] is None:
        return "–"
    first, last = space["alpha_window"]
    return f"{space['alpha']:.2f} (R² {space['alpha_r_squared']:.3f}, ranks {first}–{last})"


_LINES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "images × dimensions": lambda space: f"{space['images']:,} × {space['dimensions']:,}",
    "RankMe": lambda space: f"{space['rankme']:.1f}",
    "RankMe, centred": lambda space: f"{space['rankme_centred']:.1f}",
    "effective rank, centred": lambda space: f"{space['effective_rank']:.1f}",
    "α-ReQ": _alpha,
    "LiDAR": lambda space: f"{space['lidar']:.1f} (n {space['lidar_images']:,}, q {space['lidar_views']})",
    "alignment of two views": lambda space: f"{space['alignment']:.3f}",
    "uniformity": lambda space: f"{space['uniformity']:.3f}",
    "std of normalised features": lambda space: f"{space['feature_std']:.4f}",
    "the same if isotropic": lambda space: f"{space['feature_std_isotropic']:.4f}",
}


def plots(analysis: Analysis) -> list[tuple[str, "Figure", str]]:
    """Returns the plots of an analysis: a name, the figure, what it shows."""
    spectrum = "Each relative to its largest; dashed, the lines that α-ReQ fits over its window."
    augmentations = "; ".join(f"{name}: {strength}" for name, strength in STRENGTHS.items())
    made = [
        ("spectrum", spectrum_plot(analysis.spectra, analysis.spaces), spectrum),
        ("invariance", invariance_plot(analysis.spaces), f"Each alone, on every image. {augmentations}."),
    ]
    if analysis.cka is not None:
        panel = (analysis.cka, ("layer", analysis.layers), ("layer", analysis.layers))
        words = f"Unbiased linear CKA between the layers, over {analysis.cka_images:,} images; {POOLING}."
        made.append(("cka", matrices([panel]), words))
    if analysis.distances is not None and analysis.even_distance is not None:
        words = "Between a patch and what it attends to; dashed, a head that attends to all patches alike."
        made.append(("attention_distance", distance_plot(analysis.distances, analysis.even_distance), words))
    return made


def _page(analysis: Analysis, protocol: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    checkpoint, data = protocol["checkpoint"], protocol["data"]
    parts = [
        "# Representation",
        f"{in_markdown(checkpoint['path'])} (sha256 {checkpoint['sha256'][:12]}), "
        f"{data['split']} split of {in_markdown(data['description'])}, "
        f"seed {protocol['seed']}. Ranks compare between networks with equal images, dimensions and transform alone.",
        measures_table(analysis),
        "\n".join(f"- {in_markdown(note)}" for note in analysis.notes),
        *(f"{words}\n\n![{name.removesuffix('.png')}]({name})" for name, words in pictures.items()),
        "<details><summary>protocol</summary>\n\n```json\n"
        + json.dumps(plain_values(protocol), indent=2, ensure_ascii=False)
        + "\n```\n\n</details>",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"

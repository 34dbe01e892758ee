"""Style of all plots of the report, and their output: a PNG for Markdown, an inline SVG for the page."""

import io
import re
import warnings
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from unlabeled.core.writing import save_plot
from unlabeled.pages.palette import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID = "#333333", "#DDDDDD"
WIDTH = 5.2  # inches: on a phone the letters keep three quarters of their size
DPI = 150  # of the PNG
CSS_PIXELS = 96 / 72  # of a browser in a point of matplotlib

# Colours that a page replaces in dark mode, with their CSS variables
THEMED = {INK: "--ink", GRID: "--line"} | {colour: f"--colour-{number}" for number, colour in enumerate(PALETTE)}


def new_figure(height: float, width: float = WIDTH) -> "Figure":
    """Makes an empty figure; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # pyplot would keep every figure and open a display

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def style_axes(axes: "Axes", title: str) -> None:
    """Styles the axes: title on the left, no frame, pale horizontal lines."""
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK)


def save_figure(figure: "Figure", path: Path, label: str) -> str:
    """Writes the PNG ``path`` on white and returns the plot as inline SVG; ``label`` is its text for screen readers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # e.g. Chinese names: only the PNG lacks them
        save_plot(path, figure)
        return figure_as_svg(figure, label)


def figure_as_svg(figure: "Figure", label: str) -> str:
    """Converts a figure to an SVG element on transparent ground, in the colours of the page that contains it."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):  # text stays text; ids reproducible
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _themed(_strip_metadata(buffer.getvalue(), label))


def plain_text(text: str, longest: int = 18) -> str:
    """Makes a name safe for a plot: no formula, not hidden for a leading ``_``, and cut where it is long."""
    cut = text if len(text) <= longest else text[: longest - 1].rstrip() + "…"
    shown = f"\u200b{cut}" if cut.startswith("_") else cut  # matplotlib leaves such labels out of a legend
    return shown.replace("$", r"\$")


def _strip_metadata(text: str, label: str) -> str:
    """Removes what matplotlib writes for a file of its own: declaration, metadata, global style, unused ids."""
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", text)
    head = re.match(r"<svg[^>]*>", text)
    assert head is not None
    return _head(head[0], label) + text[head.end() :]


def _head(head: str, label: str) -> str:
    box = re.search(r'viewBox="([^"]+)"', head)
    assert box is not None
    width = float(box[1].split()[2]) * CSS_PIXELS
    return (
        f'<svg class="plot" role="img" aria-label="{escape(label)}" viewBox="{box[1]}" '
        f'style="--natural: {width:.0f}px" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )


def _themed(text: str) -> str:
    def variable(found: "re.Match[str]") -> str:
        name = THEMED.get(found[0].upper())
        return f"var({name})" if name else found[0]

    return re.sub(r"#[0-9a-fA-F]{6}\b", variable, text)

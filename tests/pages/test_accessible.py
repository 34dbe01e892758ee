"""Pages in a real browser: axe-core finds nothing, nothing is wider than a phone, and names are no markup."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.browser import Browser, browser
from tests.views.preview.test_preview import Shift, pipeline
from unlabeled.commands.tune.history import Trial
from unlabeled.commands.tune.page import search_page
from unlabeled.commands.tune.space import Interval
from unlabeled.data.sources.digits import digits
from unlabeled.pages.html import inline_png
from unlabeled.pages.parts import Part, doubts, folded, number_table, part_of_section, sheet, shown_part, text_table
from unlabeled.pages.plots import new_figure, style_axes
from unlabeled.pages.section import Section, Tile, plot_section, query_html, tiles_html
from unlabeled.pages.template import breakable, shared
from unlabeled.views.preview.preview import Preview

MARKUP = "<script>document.title = 'obeyed'</script><b>"
LONG = "a_file_with_a_very_long_name_" * 12


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


def made_sheet(folder: Path) -> str:
    """A page with one of each thing that pages show, whose words are markup or too long for a phone."""
    tiles = [
        Tile(torch.rand(3, 8, 8), [name, LONG], right) for name, right in (("a", True), (MARKUP, False), ("c", None))
    ]
    figure = new_figure(2.0)
    axes = figure.add_subplot()
    axes.plot([1, 2, 3])
    style_axes(axes, "loss")
    picture = inline_png(torch.zeros(3, 40, 900, dtype=torch.uint8))
    parts = [
        Part("", number_table(["class", *["a number"] * 9], [[MARKUP, *["12.34"] * 9]], [0.5]), "wide"),
        *doubts("Warnings", [f"Something in {LONG} is wrong {MARKUP}."]),
        part_of_section(plot_section(figure, folder, "curve", "Training", "Loss.")),
        part_of_section(Section("Galleries", "Words.", tiles_html(MARKUP, tiles), "", wide=True)),
        shown_part("Nearest", MARKUP, query_html(tiles[:1], tiles)),
        Part("Pictures", shared().picture(MARKUP, picture), "wide"),
        Part("Links", text_table(["file", "what"], [[shared().link(f"x/{MARKUP}", MARKUP), breakable(LONG)]])),
        Part("Sets", shared().defined([(MARKUP, LONG)])),
        Part("Values", folded("settings", {MARKUP: LONG})),
    ]
    return sheet("A page", [MARKUP, LONG], f"The answer {MARKUP}.", parts, {"command": f"unlabeled x {LONG}{MARKUP}"})


def made_search(folder: Path) -> str:
    space = {
        "optimizer.lr": Interval(0.01, 1.0, log=True, whole=False),
        "seed": Interval(0.0, 9.0, log=False, whole=False),
    }
    trials = [
        Trial(0, {"optimizer.lr": 0.1, "seed": 3.0}, "ended", {1: 40.0, 2: 50.0}, 12.0),
        Trial(1, {"optimizer.lr": 0.5, "seed": 4.0}, "pruned", {1: 20.0}, 6.0),
        Trial(2, {"optimizer.lr": 0.2, "seed": 5.0}, "failed", {}, 1.0, MARKUP),
    ]
    return search_page([f"data.path={MARKUP}"], space, trials, {"optimizer.lr": 0.9, "seed": 0.1}, f"train {LONG}")


def made_preview(folder: Path) -> str:
    page, _ = Preview(pipeline(Shift(0.5, 0.9)), digits(24), 0, 64, 3).write(folder / "preview")
    return page.read_text()


@pytest.mark.parametrize("made", [made_sheet, made_search, made_preview], ids=["sheet", "search", "preview"])
@pytest.mark.parametrize(("width", "dark"), [(360, False), (1280, True)])
def test_axe_finds_nothing_and_nothing_is_obeyed_or_wider_than_the_screen(
    made: Callable[[Path], str], width: int, dark: bool, window: Browser, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    page.write_text(made(tmp_path))
    window.open(page, width, dark)
    assert window.complaints() == []
    assert window.violations() == []
    assert window.requests() == [page.as_uri()]
    assert window.run("const e = document.documentElement; return [e.scrollWidth, e.clientWidth]") == [width, width]
    assert window.run("return document.title") != "obeyed"

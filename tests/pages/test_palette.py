"""The palette of all pages: colours that differ, also for the colour-blind, and that can be read on their ground."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.browser import contrast
from unlabeled.evaluation.reporting.confusion import STRONGEST
from unlabeled.pages.palette import IN_THE_DARK, PALETTE, class_colour
from unlabeled.pages.plots import INK
from unlabeled.pages.style import DARK, LIGHT

Numbers = NDArray[np.float64]
SCHEMES = [pytest.param(PALETTE, LIGHT, id="light"), pytest.param(IN_THE_DARK, DARK, id="dark")]
LEAST = 15.0
# Machado, Oliveira and Fernandes 2009, table 1, deuteranomaly of severity 1.0; on linear RGB
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
# IEC 61966-2-1, linear sRGB to XYZ of illuminant D65
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])


def linear(colour: str) -> Numbers:
    channels = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb: Numbers) -> Numbers:
    ratio = XYZ @ rgb / WHITE
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def ciede2000(one: Numbers, other: Numbers) -> float:
    """Sharma, Wu and Dalal 2005, equations 2 to 22."""
    (l1, a1, b1), (l2, a2, b2) = one, other
    mean = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    g = 0.5 * (1 - np.sqrt(mean**7 / (mean**7 + 25.0**7)))
    c1, c2 = np.hypot(a1 * (1 + g), b1), np.hypot(a2 * (1 + g), b2)
    h1, h2 = (np.degrees(np.arctan2(b, a * (1 + g))) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = 0.0 if c1 * c2 == 0 else (h2 - h1 + 180) % 360 - 180
    dh = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn) / 2)
    h = h1 + h2 if c1 * c2 == 0 else (h1 + turn / 2) % 360
    l, c = (l1 + l2) / 2, (c1 + c2) / 2  # noqa: E741
    t = 1 - 0.17 * np.cos(np.radians(h - 30)) + 0.24 * np.cos(np.radians(2 * h))
    t += 0.32 * np.cos(np.radians(3 * h + 6)) - 0.20 * np.cos(np.radians(4 * h - 63))
    sl, sc, sh = 1 + 0.015 * (l - 50) ** 2 / np.sqrt(20 + (l - 50) ** 2), 1 + 0.045 * c, 1 + 0.015 * c * t
    rotation = -2 * np.sqrt(c**7 / (c**7 + 25.0**7)) * np.sin(np.radians(60 * np.exp(-(((h - 275) / 25) ** 2))))
    parts = (l2 - l1) / sl, (c2 - c1) / sc, dh / sh
    return float(np.sqrt(sum(part**2 for part in parts) + rotation * parts[1] * parts[2]))


def difference(one: str, other: str) -> float:
    """The smaller one of what most people and what deuteranopes see."""
    seen = [linear(one), linear(other)]
    blind = [np.clip(DEUTERANOPIA @ colour, 0, 1) for colour in seen]
    return min(ciede2000(lab(a), lab(b)) for a, b in (seen, blind))


def rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[place : place + 2], 16)) for place in (1, 3, 5))})"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
        ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_the_difference_of_two_colours_is_that_of_the_published_table(
    one: tuple[float, ...], other: tuple[float, ...], expected: float
) -> None:
    """Pairs 1, 17, 25 and 34 of Sharma, Wu and Dalal 2005, table 1."""
    assert ciede2000(np.array(one), np.array(other)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("colours", "scheme"), SCHEMES)
def test_any_two_of_ten_classes_and_any_two_classes_in_a_row_differ_for_the_colour_blind_too(
    colours: list[str], scheme: dict[str, str]
) -> None:
    assert len(colours) == len(set(colours)) == len(PALETTE) == 20
    assert min(difference(*pair) for pair in combinations(colours[:10], 2)) >= LEAST
    assert min(difference(*pair) for pair in pairwise([*colours, colours[0]])) >= LEAST


@pytest.mark.parametrize(("colours", "scheme"), SCHEMES)
def test_every_colour_can_be_the_colour_of_a_text(colours: list[str], scheme: dict[str, str]) -> None:
    assert min(contrast(rgb(colour), rgb(scheme["ground"])) for colour in colours) >= 4.5
    for name in ("ink", "quiet", "accent", "right", "wrong"):
        assert min(contrast(rgb(scheme[name]), rgb(scheme[ground])) for ground in ("ground", "box")) >= 4.5
    assert contrast(rgb(scheme["ink"]), rgb(scheme["doubt"])) >= 4.5


@pytest.mark.parametrize(
    ("blue", "ground", "ink"),
    [
        (PALETTE[0], LIGHT["ground"], LIGHT["ink"]),
        (IN_THE_DARK[0], DARK["ground"], DARK["ink"]),
        (PALETTE[0], "#FFFFFF", INK),
    ],
)
def test_the_number_on_a_full_cell_of_the_confusion_matrix_can_be_read(blue: str, ground: str, ink: str) -> None:
    places = (1, 3, 5)
    cell = [STRONGEST * int(blue[p : p + 2], 16) + (1 - STRONGEST) * int(ground[p : p + 2], 16) for p in places]
    assert contrast(rgb(ink), f"rgb({', '.join(str(round(value)) for value in cell)})") >= 4.5


def test_the_colours_of_many_classes_come_again_after_twenty() -> None:
    assert [class_colour(label) for label in (0, 19, 20, 205)] == [PALETTE[0], PALETTE[19], PALETTE[0], PALETTE[5]]

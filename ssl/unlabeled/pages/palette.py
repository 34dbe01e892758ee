"""The colours of classes, lines and dots on every page and picture: one palette, in a light and a dark scheme.

Made by search on a grid of sRGB. Of the first ten any two differ by ΔE ≥ 15 (CIEDE2000), also as somebody without
cones for green sees them (Machado et al. 2009, deuteranopia); of all twenty, each differs so from the next. All have a
contrast of at least 4.5 : 1 with the ground of their scheme, so that they can be the colour of a text too.
``tests/pages/test_palette.py`` measures this.
"""

PALETTE = ["#3366BB", "#774400", "#008855", "#EE0000", "#DD0099", "#1111AA", "#223311"]
PALETTE += ["#000000", "#555555", "#550044", "#773333", "#007788", "#777733", "#9944FF"]
PALETTE += ["#996677", "#554477", "#AA0055", "#003355", "#8866AA", "#005500"]
IN_THE_DARK = ["#5078F0", "#DCB400", "#508C64", "#C86400", "#F0B4F0", "#8C78A0", "#F0F0A0"]
IN_THE_DARK += ["#F0F0F0", "#A0A0A0", "#DCA08C", "#64DCC8", "#00B4F0", "#50C850", "#F050B4"]
IN_THE_DARK += ["#F05064", "#A0B4DC", "#F08CA0", "#008CB4", "#B4F000", "#B4F0B4"]


def class_colour(label: int) -> str:
    """Returns the colour of a class; after twenty classes the colours come again."""
    return PALETTE[label % len(PALETTE)]

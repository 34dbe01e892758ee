"""Makes pages of one HTML file with its pictures inside: no other file, no network."""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


def html_page(title: str, style: str, body: str, head: str = "") -> str:
    """Returns the whole text of a page.

    Args:
        title: plain text.
        style: CSS.
        body: HTML.
        head: HTML of further elements of the head.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{head}<title>{escape(title)}</title><style>{style}</style></head>\n<body>{body}</body></html>\n"
    )


def number_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a table whose first column names the lines and whose others hold numbers; all cells are plain text."""
    titles = f"<th>{escape(head[0])}</th>" + "".join(f'<th class="number">{escape(each)}</th>' for each in head[1:])
    rows = "".join(
        f'<tr><th scope="row">{escape(line[0])}</th>'
        + "".join(f'<td class="number">{escape(cell)}</td>' for cell in line[1:])
        + "</tr>"
        for line in lines
    )
    table = f'<table class="results"><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="scroll" tabindex="0">{table}</div>'


def inline_png(pixels: "Tensor") -> str:
    """Encodes uint8 [3, h, w] as a PNG data address, so that the picture lies in the page."""
    return _address(_picture(pixels), "PNG")


def inline_thumbnail(pixels: "Tensor") -> str:
    """Does the same; images of more than 64 pixels to a side become JPEGs, with a fifth of the bytes."""
    return _address(_picture(pixels), "PNG" if max(pixels.shape[1:]) <= 64 else "JPEG")


def _picture(pixels: "Tensor") -> "Image":
    from PIL import Image

    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())


def _address(picture: "Image", kind: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()

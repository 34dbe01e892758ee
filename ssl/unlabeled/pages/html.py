"""Makes pages of one HTML file with its pictures inside: no other file, no network."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

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


def number_table(head: Sequence[str], lines: Sequence[Sequence[str]], bars: Sequence[float] = ()) -> str:
    """Returns a table whose first column names the lines and whose others hold numbers; all cells are plain text.

    ``bars``: a share from 0 to 1 for each line, drawn in a column of its own.
    """
    titles = f"<th>{escape(head[0])}</th>" + "".join(f'<th class="number">{escape(each)}</th>' for each in head[1:])
    titles += "<td></td>" * bool(bars)
    drawn = [f'<td class="bar"><i style="width: {100 * bar:.1f}%"></i></td>' for bar in bars] or [""] * len(lines)
    rows = "".join(
        f'<tr><th scope="row">{escape(line[0])}</th>'
        + "".join(f'<td class="number">{escape(cell)}</td>' for cell in line[1:])
        + f"{bar}</tr>"
        for line, bar in zip(lines, drawn, strict=True)
    )
    table = f'<table class="results"><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="scroll" tabindex="0">{table}</div>'


def json_script(values: Mapping[str, Any], name: str) -> str:
    """Returns a script element that holds ``values``, for a script that finds it by its id."""
    return f'<script type="application/json" id="{name}">{script_json(values)}</script>'


def script_json(values: Mapping[str, Any]) -> str:
    """Formats JSON that ends no script, whatever a name holds."""
    text = json.dumps(values, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def inline_png(pixels: "Tensor") -> str:
    """Encodes uint8 [3, h, w] as a PNG data address, so that the picture lies in the page."""
    return picture_address(pixels, "PNG")


def inline_thumbnail(pixels: "Tensor") -> str:
    """Does the same; images of more than 64 pixels to a side become JPEGs, with a fifth of the bytes."""
    return picture_address(pixels, "PNG" if max(pixels.shape[1:]) <= 64 else "JPEG")


def picture_address(pixels: "Tensor", kind: str) -> str:
    """Encodes uint8 [3, h, w] as a data address of this kind: PNG or JPEG."""
    buffer = io.BytesIO()
    _picture(pixels).save(buffer, kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


def _picture(pixels: "Tensor") -> "Image":
    from PIL import Image

    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())

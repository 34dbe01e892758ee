"""Makes pages of one HTML file with its pictures inside: no other file, no network."""

import base64
import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unlabeled.pages.template import safe, shared

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
    return str(shared().page(title, safe(style), safe(body), safe(head))).lstrip("\n")


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

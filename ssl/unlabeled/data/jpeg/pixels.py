"""Decodes and resizes a JPEG with torchvision: the picture that Pillow gives, in less than half of its time."""

import multiprocessing

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.io import ImageReadMode  # here, so that workers share what is imported before they are forked
from torchvision.io import decode_jpeg as decode

from unlabeled.errors import UserError

_TURNED = {
    2: [2],
    3: [1, 2],
    4: [1],
    5: [],
    6: [2],
    7: [1, 2],
    8: [1],
}  # EXIF: axes to flip, after transposing from 5 on
MOST_THIN = 16  # times the pixels of the crop: a thinner image is left to Pillow, which resizes the crop alone


def decode_jpeg(data: bytes, orientation: int, size: int, square: bool, device: str = "cpu") -> Tensor | None:
    """Decodes one JPEG as :func:`unlabeled.data.decode.to_rgb` does; None where torchvision refuses it.

    The pixels before the resize are those of Pillow to the bit on a CPU, as both use libjpeg-turbo. The resize is the
    antialiased bicubic one of torch for uint8: ``benchmarks/results/jpeg_decode.md`` shows the differences, at most 2
    levels.

    Args:
        data: of a whole file; 8 bits, grey or three colours.
        orientation: EXIF's, 1..8; any other number counts as 1.
        size, square: as in ``to_rgb``.
        device: ``cpu``, or ``cuda`` for nvJPEG; the result is on the CPU.
    """
    try:
        image: Tensor = decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB, device=device)
    except RuntimeError:  # damaged, or a kind that it does not know: Pillow decides
        return None
    image = upright(image, orientation)
    image = _square(image, size) if square else _whole(image, size)  # type: ignore[assignment]
    return None if image is None else image.cpu().contiguous()


def check_process() -> None:
    """Raises UserError in a worker process, which cannot use a GPU that its parent uses."""
    if multiprocessing.parent_process() is not None:
        raise UserError("data.decode=cuda: worker processes cannot use the GPU: give num_workers=0")


def upright(image: Tensor, orientation: int) -> Tensor:
    """Turns [3, h, w] as EXIF asks for."""
    image = image.transpose(1, 2) if 5 <= orientation <= 8 else image
    axes = _TURNED.get(orientation)
    return image.flip(axes) if axes else image


def _square(image: Tensor, size: int) -> Tensor | None:
    height, width = image.shape[1:]
    short = min(height, width)
    across, down = int(size * width / short), int(size * height / short)
    if across * down > MOST_THIN * size * size:
        return None
    left, top = round((across - size) / 2), round((down - size) / 2)
    return _resized(image, down, across)[:, top : top + size, left : left + size]


def _whole(image: Tensor, size: int) -> Tensor:
    height, width = image.shape[1:]
    short, long = sorted((height, width))
    side, limit = (short, size) if long <= 2 * short else (long, 2 * size)
    if side <= limit:
        return image
    return _resized(image, *(max(1, int(limit * pixels // side)) for pixels in (height, width)))


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    if image.shape[1:] == (height, width):
        return image
    if image.is_cuda:  # without a kernel for uint8
        values = F.interpolate(image[None].float(), (height, width), mode="bicubic", antialias=True)[0]
        return values.round().clamp(0, 255).to(torch.uint8)
    return F.interpolate(image[None], (height, width), mode="bicubic", antialias=True)[0]

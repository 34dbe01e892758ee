"""Every Pillow mode, orientation and size comes out as the pixels one would expect."""

import errno
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from PIL.JpegImagePlugin import JpegImageFile
from sklearn.datasets import load_sample_images
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from unlabeled.data.decode import decode_bytes, read_header, to_rgb
from unlabeled.data.decoding import Decoding
from unlabeled.data.lists.pictures import looks_like_image
from unlabeled.data.source import CorruptImage
from unlabeled.errors import UserError
from unlabeled.views.pipeline import Views


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def encoded(image: Image.Image, kind: str, exif: Image.Exif | None = None) -> bytes:
    stream = io.BytesIO()
    if exif is None:
        image.save(stream, kind)
    else:
        image.save(stream, kind, exif=exif)
    return stream.getvalue()


def one_pixel(image: Image.Image) -> list[int]:
    pixels = to_rgb(image, 2)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 2, 2)
    assert (pixels == pixels[:, :1, :1]).all()
    return [int(value) for value in pixels[:, 0, 0]]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, [255, 255, 255]),
        ("L", 100, [100, 100, 100]),
        ("LA", (100, 7), [100, 100, 100]),
        ("La", (50, 128), [99, 99, 99]),
        ("RGB", (1, 2, 3), [1, 2, 3]),
        ("RGBX", (1, 2, 3, 4), [1, 2, 3]),
        ("RGBA", (10, 20, 30, 0), [10, 20, 30]),
        ("RGBa", (50, 25, 0, 128), [99, 49, 0]),
        ("CMYK", (255, 0, 0, 0), [0, 255, 255]),
        ("YCbCr", (76, 85, 255), [254, 0, 0]),
        ("HSV", (0, 255, 255), [255, 0, 0]),
        ("LAB", (112, 192, 170), [200, 28, 39]),
        ("I", 200, [200, 200, 200]),
        ("I", 65535, [255, 255, 255]),
        ("I", 32896, [128, 128, 128]),
        ("F", 0.5, [128, 128, 128]),
        ("F", 254.6, [255, 255, 255]),
        ("F", 25700.0, [100, 100, 100]),
        ("F", float("nan"), [0, 0, 0]),
    ],
)
def test_one_colour_of_each_mode_is_the_right_rgb(
    mode: str, colour: float | tuple[int, ...], expected: list[int]
) -> None:
    assert one_pixel(Image.new(mode, (2, 2), colour)) == expected


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_a_16_bit_image_keeps_its_brightness(mode: str) -> None:
    values = np.array([[0, 257], [32896, 65535]], dtype=">u2" if mode == "I;16B" else "<u2")
    image = Image.frombytes(mode, (2, 2), values.tobytes())
    assert to_rgb(image, 2)[1].tolist() == [[0, 1], [128, 255]]


def test_a_16_bit_png_file_keeps_its_brightness() -> None:
    values = np.array([[0, 257], [32896, 65535]], dtype=np.uint16)
    assert decode_bytes(encoded(Image.fromarray(values), "PNG"), "a.png", 2)[0].tolist() == [[0, 1], [128, 255]]


def test_values_beyond_any_usual_range_are_stretched_from_their_minimum_to_their_maximum() -> None:
    image = Image.fromarray(np.array([[-1000, 0], [500, 1000]], dtype=np.int32))
    assert to_rgb(image, 2)[0].tolist() == [[0, 128], [191, 255]]


def test_a_constant_image_beyond_any_usual_range_is_black() -> None:
    assert one_pixel(Image.new("I", (2, 2), -7)) == [0, 0, 0]


@pytest.mark.parametrize("transparency", [None, 0, b"\x00\x80"])
def test_a_palette_image_gives_its_palette_whatever_its_transparency(
    transparency: int | bytes | None, recwarn: pytest.WarningsRecorder
) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    image = image.resize((2, 2))
    if transparency is not None:
        image.info["transparency"] = transparency
    assert to_rgb(image, 2)[:, 0].T.tolist() == [[10, 20, 30], [40, 50, 60]]
    assert not [warning for warning in recwarn if "Transparency" in str(warning.message)]


def test_an_image_of_the_right_size_is_untouched() -> None:
    image = noise(24, 24)
    assert torch.equal(to_rgb(image, 24), torch.from_numpy(np.array(image)).permute(2, 0, 1))
    assert torch.equal(decode_bytes(encoded(image, "PNG"), "a.png", 24), to_rgb(image, 24))


@pytest.mark.parametrize("shape", [(50, 31), (31, 50), (37, 24), (24, 25), (12, 9), (40, 40)])
def test_another_size_is_resized_and_cropped_as_torchvision_does(shape: tuple[int, int]) -> None:
    image = noise(*shape)
    expected = F.center_crop(F.resize(image, 24, InterpolationMode.BICUBIC), [24, 24])
    difference = to_rgb(image, 24).int() - torch.from_numpy(np.array(expected)).permute(2, 0, 1).int()
    assert difference.abs().max() <= 1  # Pillow's crop box is float32
    assert (difference != 0).float().mean() < 0.01


def test_a_hair_thin_image_does_not_fill_the_memory() -> None:
    image = Image.new("RGB", (60_000, 1), (9, 8, 7))  # resized whole, before the crop: 224 × 13,440,000 pixels
    assert to_rgb(image, 224)[:, 0, 0].tolist() == [9, 8, 7]


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((640, 427), 256, (383, 256)),
        ((427, 640), 256, (256, 383)),
        ((60, 60), 24, (24, 24)),
        ((48, 24), 24, (48, 24)),  # fits as it is
        ((25, 24), 24, (25, 24)),
        ((25, 25), 24, (24, 24)),
        ((80, 40), 24, (48, 24)),  # twice as wide as high: either limit gives this
        ((81, 40), 24, (48, 23)),  # from here on the longer side decides
        ((100, 24), 24, (48, 11)),
        ((24, 100), 24, (11, 48)),
        ((50, 2), 24, (48, 1)),
        ((7, 3), 24, (7, 3)),  # never enlarged
        ((1, 1), 24, (1, 1)),
        ((60_000, 1), 224, (448, 1)),
        ((1, 60_000), 224, (1, 448)),
        ((3, 2), 1, (1, 1)),
    ],
)
def test_a_whole_image_keeps_its_shape_and_is_reduced_as_pillow_does_until_it_fits(
    shape: tuple[int, int], size: int, expected: tuple[int, int]
) -> None:
    image = noise(*shape)
    pixels = to_rgb(image, size, square=False)
    assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, expected[1], expected[0]))
    across = image.resize((expected[0], shape[1]), Image.Resampling.BICUBIC)
    theirs = np.array(across.resize(expected, Image.Resampling.BICUBIC))
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), theirs)
    at_once = np.array(image.resize(expected, Image.Resampling.BICUBIC))  # Pillow 13 begins with the cheaper axis
    assert np.abs(theirs.astype(int) - at_once).max() <= 2
    assert torch.equal(decode_bytes(encoded(image, "PNG"), "a.png", size, square=False), pixels)


def test_a_whole_image_is_torchvisions_resize_where_its_shorter_side_decides() -> None:
    for shape in ((640, 427), (427, 640), (333, 500), (500, 251)):
        image = noise(*shape)
        theirs = F.resize(image, 100, InterpolationMode.BICUBIC)
        assert np.array_equal(to_rgb(image, 100, square=False).permute(1, 2, 0).numpy(), np.array(theirs))


@pytest.mark.parametrize("size", [200, 224, 256])
def test_of_a_photograph_evaluation_sees_the_same_of_the_square_and_of_the_whole_image(size: int) -> None:
    # The margins of both are rounded alike at these sizes; at others, as 240, the regions may lie one pixel apart.
    views = Views(round(0.875 * size), [], None, None, 0.875, "bicubic")
    for photograph in load_sample_images().images:  # 427 × 640
        for picture in (Image.fromarray(photograph), Image.fromarray(photograph).transpose(Image.Transpose.ROTATE_90)):
            square, whole = (views.evaluation_view(to_rgb(picture, size, square)[None]) for square in (True, False))
            difference = (square - whole).abs() * 255
            assert float(difference.max()) <= 2
            assert float(difference.mean()) < 0.01


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_whole_image_is_turned_before_it_is_reduced(orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise(60, 30), "PNG", exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    pixels = decode_bytes(data, "a", 20, square=False)
    assert tuple(pixels.shape[1:]) == ((40, 20) if orientation in (6, 8) else (20, 40))
    assert torch.equal(pixels, to_rgb(upright, 20, square=False))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn a quarter clockwise
    image = Image.new("RGB", (16, 16), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 16, 8))  # black on top, which belongs to the right
    dark = decode_bytes(encoded(image, kind, exif), "a", 16).float().mean(0) < 128
    assert dark[:, 9:].all()
    assert not dark[:, :7].any()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise(8, 8), "PNG", exif)
    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(decode_bytes(data, "a", 8).permute(1, 2, 0).numpy(), expected)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_exif_does_not_lose_the_image() -> None:
    image = noise(8, 8)
    stream = io.BytesIO()
    image.save(stream, "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff garbage")
    assert torch.equal(decode_bytes(stream.getvalue(), "a", 8), to_rgb(image, 8))


def test_corrupt_data_names_the_image_and_the_reason_in_one_line(tmp_path: Path) -> None:
    jpeg = encoded(noise(64, 64), "JPEG")
    cases = {
        "a.jpg: OSError: image file is truncated": jpeg[: len(jpeg) // 2],
        "a.jpg: empty, 0 bytes": b"",
        "a.jpg: not an image that Pillow can read": b"hello\nworld",
    }
    for message, data in cases.items():
        file = tmp_path / "a.jpg"
        file.write_bytes(data)
        for given in (data, file):
            with pytest.raises(CorruptImage) as caught:
                decode_bytes(given, "a.jpg", 8)
            assert str(caught.value).startswith(message)
            assert "\n" not in str(caught.value)


def test_a_file_that_is_gone_is_corrupt(tmp_path: Path) -> None:
    with pytest.raises(CorruptImage, match=r"^b\.png: the file is gone$"):
        decode_bytes(tmp_path / "b.png", "b.png", 8)


def test_a_decompression_bomb_is_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(noise(64, 64), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(CorruptImage, match=r"^bomb\.png: refused as a decompression bomb .*4096 pixels"):
        decode_bytes(data, "bomb.png", 8)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_random_damage_is_always_reported_as_corrupt_or_decoded() -> None:
    random = np.random.default_rng(0)
    corrupt = 0
    for kind in ("JPEG", "PNG", "TIFF", "GIF", "BMP", "WEBP", "PPM"):
        for _ in range(30):
            data = bytearray(encoded(noise(16, 16), kind))
            for place in random.integers(0, min(len(data), 300), 12):
                data[place] = random.integers(0, 256)
            try:
                assert decode_bytes(bytes(data), "a", 8).shape == (3, 8, 8)
            except CorruptImage:
                corrupt += 1
    assert 30 < corrupt < 210


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """One of two, mirrored by seed, of any size."""
    image = Image.fromarray(load_sample_images().images[seed % 2])
    return image.resize((width, height), Image.Resampling.LANCZOS)


def jpeg(image: Image.Image, orientation: int = 1) -> bytes:
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image.save(stream, "JPEG", quality=95, exif=exif)
    return stream.getvalue()


def decoded_whole(data: bytes, size: int, square: bool) -> torch.Tensor:
    return to_rgb(Image.open(io.BytesIO(data)), size, square)


@pytest.mark.parametrize(
    ("short", "size", "expected"),
    [(79, 20, 79), (80, 20, 40), (159, 20, 80), (160, 20, 40), (320, 20, 40), (400, 20, 50), (81, 20, 41)],
)
def test_a_large_jpeg_is_decoded_at_the_least_scale_that_is_twice_the_size_needed(
    short: int, size: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, load = list[int](), JpegImageFile.load
    monkeypatch.setattr(JpegImageFile, "load", lambda image: loaded.append(min(image.size)) or load(image))  # type: ignore[func-returns-value]
    for shape in ((short, short), (short, 2 * short), (short + 7, short)):
        decode_bytes(jpeg(noise(*shape)), "a.jpg", size)
    assert set(loaded) == {expected}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("square", [True, False])
def test_scaled_decoding_shows_the_same_picture_at_the_same_place(orientation: int, square: bool) -> None:
    for shape in ((403, 301), (301, 407), (299, 640)):  # the last column and row of eight pixels are not full
        data = jpeg(photograph(*shape), orientation)
        for size in (16, 33, 70):
            ours, whole = decode_bytes(data, "a", size, square), decoded_whole(data, size, square)
            assert ours.shape == whole.shape
            assert not torch.equal(ours, whole)
            difference = (ours.float() - whole.float()).abs()
            moved = (whole[:, 1:, 1:].float() - whole[:, :-1, :-1].float()).abs()  # by one pixel
            assert float(difference.mean()) < 1.5
            assert float(difference.mean()) < 0.12 * float(moved.mean())
            edges = torch.cat([difference[:, 0], difference[:, -1], difference[..., 0], difference[..., -1]], -1)
            assert float(edges.mean()) < 2.5


def test_below_four_times_the_size_and_in_other_formats_every_bit_is_as_without_scaling() -> None:
    image = photograph(400, 300)
    assert torch.equal(decode_bytes(jpeg(image), "a", 76), decoded_whole(jpeg(image), 76, True))
    for kind in ("PNG", "BMP", "TIFF"):
        assert torch.equal(decode_bytes(encoded(image, kind), "a", 16), to_rgb(image, 16))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpegs_are_scaled_too(mode: str) -> None:
    data = encoded(photograph(400, 300).convert(mode), "JPEG")
    ours, whole = decode_bytes(data, "a", 30), decoded_whole(data, 30, True)
    assert float((ours.float() - whole.float()).abs().mean()) < 1.5
    assert not torch.equal(ours, whole)


def test_no_program_is_started_for_a_file_that_holds_postscript(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs, file = tmp_path / "programs", tmp_path / "photo.jpg"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch '{tmp_path}/started'\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # not looked for yet
    file.write_bytes(encoded(noise(8, 8), "EPS"))
    for given in (file, file.read_bytes()):
        for channels in (1, 3):
            with pytest.raises(CorruptImage, match="not an image that Pillow can read"):
                decode_bytes(given, "photo.jpg", 8, decoding=Decoding(channels=channels))
        assert not looks_like_image(given)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 5, 6])
def test_the_header_has_the_size_of_the_upright_image(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise(50, 30), kind, exif)
    header = read_header(data)
    assert (header.height, header.width) == decode_bytes(data, "a", 100, square=False).shape[1:]


@pytest.mark.parametrize("fault", [errno.EMFILE, errno.ESTALE, errno.ETIMEDOUT])
def test_a_fault_of_the_machine_does_not_make_an_image_corrupt(fault: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any, **more: Any) -> Any:
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(UserError, match=rf"^a\.png: {os.strerror(fault)}: not the file's fault"):
        decode_bytes(b"x", "a.png", 8)

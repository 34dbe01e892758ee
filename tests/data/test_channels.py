"""Images of other channels than RGB, of more than 8 bits, and larger than Pillow takes."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from unlabeled.data import decoding as told
from unlabeled.data.bands import as_bytes
from unlabeled.data.decode import decode_bytes, read_header
from unlabeled.data.decoding import Decoding, channels_of, in_colour
from unlabeled.data.fingerprint import fingerprint
from unlabeled.data.module import DataModule
from unlabeled.data.source import CorruptImage
from unlabeled.data.sources.folder import folder
from unlabeled.errors import UserError
from unlabeled.views.key import ViewKey
from unlabeled.views.operations import ColorJitter, Equalize, GaussianBlur, Grayscale, RandomResizedCrop, Solarize
from unlabeled.views.pipeline import ViewGroup, Views


@pytest.fixture(autouse=True)
def nothing_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(told, "_said", set())


def noise(*shape: int, dtype: Any = np.uint8, high: int = 256) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, high, shape).astype(dtype)


def tiff(path: Path, values: np.ndarray, **how: Any) -> Path:
    tifffile.imwrite(path, values, **how)
    return path


@pytest.mark.parametrize("bands", [2, 4, 5, 13])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "lzw", "deflate"])
def test_every_band_of_a_tiff_is_kept_to_the_bit(bands: int, planar: str, compression: Any, tmp_path: Path) -> None:
    values = noise(bands, 16, 16)
    given = values if planar == "separate" else np.ascontiguousarray(values.transpose(1, 2, 0))
    file = tiff(tmp_path / "a.tif", given, photometric="minisblack", planarconfig=planar, compression=compression)
    expected = torch.from_numpy(values)
    assert torch.equal(decode_bytes(file, "a.tif", 16, True, Decoding(bands)), expected)
    assert torch.equal(decode_bytes(file.read_bytes(), "a.tif", 16, True, Decoding(bands)), expected)


def test_bands_may_be_pages(tmp_path: Path) -> None:
    values = noise(6, 16, 16)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for band in values:
            writer.write(band, photometric="minisblack", metadata=None)
    assert torch.equal(decode_bytes(tmp_path / "a.tif", "a", 16, True, Decoding(6)), torch.from_numpy(values))


@pytest.mark.parametrize("square", [True, False])
def test_bands_are_resized_as_colours_are(square: bool, tmp_path: Path) -> None:
    values = noise(40, 90, 3)
    Image.fromarray(values).save(tmp_path / "a.png")
    five = np.concatenate([values, values[:, :, :2]], 2)
    file = tiff(tmp_path / "a.tif", five, photometric="minisblack", planarconfig="contig")
    colours = decode_bytes(tmp_path / "a.png", "a", 16, square)
    bands = decode_bytes(file, "a", 16, square, Decoding(5))
    assert torch.equal(bands[:3], colours)
    assert torch.equal(bands[3:], colours[:2])


def test_pngs_have_one_two_and_four_channels(tmp_path: Path) -> None:
    for mode, count in (("L", 1), ("LA", 2), ("RGBA", 4)):
        values = noise(16, 16, count)
        Image.fromarray(values[:, :, 0] if count == 1 else values, mode).save(tmp_path / "a.png")
        expected = torch.from_numpy(values.transpose(2, 0, 1).copy())
        assert torch.equal(decode_bytes(tmp_path / "a.png", "a", 16, True, Decoding(count)), expected)
    Image.fromarray(noise(16, 16, 3)).save(tmp_path / "c.png")
    grey = torch.from_numpy(np.asarray(Image.open(tmp_path / "c.png").convert("L")).copy())
    assert torch.equal(decode_bytes(tmp_path / "c.png", "c", 16, True, Decoding(1))[0], grey)
    with pytest.raises(CorruptImage, match=r"^c\.png: ValueError: 3 bands, and data\.channels=4$"):
        decode_bytes(tmp_path / "c.png", "c.png", 16, True, Decoding(4))


@pytest.mark.parametrize("bands", [4, 5])
def test_a_tiff_that_is_cut_to_three_bands_is_named_once(
    bands: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = ["unspecified"] * (bands - 3)
    for name in ("a.tif", "b.tif"):
        tiff(tmp_path / name, noise(16, 16, bands), photometric="rgb", planarconfig="contig", extrasamples=extra)
        assert decode_bytes(tmp_path / name, name, 16).shape == (3, 16, 16)
    said = capsys.readouterr().err
    assert said.splitlines() == [
        f"warning: a.tif: {bands} bands are cut to three; data.channels={bands} keeps them (and with the same number of"
        " entries views.mean and views.std)"
    ]


def test_alpha_is_no_band_that_is_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(noise(16, 16, 4), "RGBA").save(tmp_path / "a.tif")
    Image.fromarray(noise(16, 16, 4), "CMYK").save(tmp_path / "b.tif")
    for name in ("a.tif", "b.tif"):
        decode_bytes(tmp_path / name, name, 16)
    assert capsys.readouterr().err == ""


def test_twelve_bits_in_sixteen_come_out_dark_with_a_line_until_white_is_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = noise(16, 16, dtype=np.uint16, high=4096)
    values[0, 0] = 4095
    Image.fromarray(values).save(tmp_path / "a.png")
    file = tiff(tmp_path / "a.tif", values)
    dark = decode_bytes(tmp_path / "a.png", "a.png", 16)
    assert int(dark.max()) == 16
    assert capsys.readouterr().err == (
        "warning: a.png: of 16 bits at most 12 are used, so it comes out nearly black; data.bits=12 says what white is,"
        " auto takes it from each image\n"
    )
    expected = torch.from_numpy(np.rint(values * (255 / 4095)).astype(np.uint8))
    for bits in (12, "auto"):
        for image in (tmp_path / "a.png", file):
            assert torch.equal(decode_bytes(image, "a", 16, True, Decoding(3, bits))[1], expected)
            assert torch.equal(decode_bytes(image, "a", 16, True, Decoding(1, bits))[0], expected)
    assert torch.equal(decode_bytes(file, "a", 16, True, Decoding(3, 16)), dark)
    assert capsys.readouterr().err == ""
    with pytest.raises(CorruptImage, match=r"a value of 4095 is above 1023, which is white by data\.bits=10"):
        decode_bytes(file, "a", 16, True, Decoding(3, 10))


def test_deep_colours_of_a_tiff_keep_their_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = noise(16, 16, 3, dtype=np.uint16, high=4096)
    file = tiff(tmp_path / "a.tif", values, photometric="rgb")
    decode_bytes(file, "a.tif", 16)
    assert "data.bits=12" in capsys.readouterr().err
    expected = torch.from_numpy(np.rint(values * (255 / 4095)).astype(np.uint8).transpose(2, 0, 1))
    assert torch.equal(decode_bytes(file, "a.tif", 16, True, Decoding(3, 12)), expected)


@pytest.mark.parametrize(("high", "white"), [(1.0, 1.0), (200.0, 255.0), (60_000.0, 65535.0)])
@pytest.mark.parametrize("bands", [3, 6])
def test_floats_of_many_bands_keep_their_ratios(high: float, white: float, bands: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((bands, 16, 16), np.float32) * high
    values[0, 0, :2] = np.nan, high
    file = tiff(tmp_path / "a.tif", values, photometric="minisblack", planarconfig="separate")
    decoded = decode_bytes(file, "a.tif", 16, True, Decoding(bands))
    expected = np.rint(np.nan_to_num(values.astype(np.float64)) * 255 / white).astype(np.uint8)
    assert torch.equal(decoded, torch.from_numpy(expected))


def test_without_tifffile_other_channels_are_one_line_and_rgb_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tiff(tmp_path / "a.tif", noise(16, 16, 5), photometric="minisblack", planarconfig="contig")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UserError, match=r"^tifffile reads this TIFF and is not installed: pip install"):
        decode_bytes(file, "a.tif", 16, True, Decoding(5))
    Image.fromarray(noise(16, 16, 3)).save(tmp_path / "b.tif")
    decode_bytes(tmp_path / "b.tif", "b.tif", 16)


def test_the_limit_of_pixels_has_a_key_that_its_line_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back afterwards
    Image.fromarray(noise(64, 64, 3)).save(tmp_path / "a.png")
    for channels, file in ((3, tmp_path / "a.png"), (4, tiff(tmp_path / "b.tif", noise(64, 64, 4), photometric="rgb"))):
        with pytest.raises(CorruptImage, match=r"^big: .*data\.max_pixels"):
            decode_bytes(file, "big", 16, True, Decoding(channels, max_pixels=4000))
        decode_bytes(file, "big", 16, True, Decoding(channels, max_pixels=4096))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"channels": 0}, "data.channels=0: must be a whole number from 1 to 1024"),
        ({"bits": 7}, "data.bits=7: must be a whole number from 8 to 16, or auto"),
        ({"bits": "all"}, "data.bits=all: must be a whole number from 8 to 16, or auto"),
        ({"max_pixels": 0}, "data.max_pixels=0: must be a whole number of at least 1"),
    ],
)
def test_values_that_are_none_are_refused_by_their_keys(given: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        folder(str(tmp_path), **given)
    assert str(caught.value) == line


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("square", [True, False])
def test_a_folder_of_five_bands_is_served_from_memory_and_from_workers(
    workers: int, square: bool, tmp_path: Path
) -> None:
    for number in range(6):
        tiff(tmp_path / f"{number}.tif", noise(20 + number, 24, 5), photometric="minisblack", planarconfig="contig")
    splits = folder(str(tmp_path), image_size=16, square=square, channels=5)
    assert channels_of(splits.train) == 5
    served = []
    for gib in (8.0, 0.0):
        data = DataModule(splits, 2, workers, gib, 0)
        served.append([batch.images for batch in data.batches(data.train, torch.arange(6), 2)])
        assert not data.corrupt
    assert [images.shape[1] for images in served[0]] == [5, 5, 5]
    for first, second in zip(*served, strict=True):
        assert torch.equal(first, second)
    prints = {fingerprint(folder(str(tmp_path), image_size=16, channels=count).train) for count in (3, 5)}
    assert len(prints) == 2


def views(channels: int, *operations: Any, mean: list[float] | None = None) -> Views:
    crop = RandomResizedCrop(16, (0.2, 1.0), (0.75, 1.33), "bicubic", flip=0.5)
    group = ViewGroup(2, [crop, *operations])
    return Views(16, [group], mean, mean, 1.0, "bicubic", channels=channels)


def test_geometry_and_what_treats_channels_alike_is_for_any_number_of_them() -> None:
    images = torch.from_numpy(noise(4, 5, 24, 24))
    operations = (GaussianBlur((0.1, 2.0), 0.3, 1.0), Solarize(0.5, 1.0), Equalize(1.0))
    mean = [0.1, 0.2, 0.3, 0.4, 0.5]
    key = ViewKey(0, 0, 0, 4)
    five = views(5, *operations, mean=mean)(images, torch.arange(4), key)
    first = views(3, *operations, mean=mean[:3])(images[:, :3].contiguous(), torch.arange(4), key)
    last = views(3, *operations, mean=mean[2:])(images[:, 2:].contiguous(), torch.arange(4), key)
    for made, of_first, of_last in zip(five, first, last, strict=True):
        torch.testing.assert_close(made[:, :3], of_first)
        torch.testing.assert_close(made[:, 2:], of_last)
    plain = views(5, mean=mean).evaluation_view(images)
    assert plain.shape == (4, 5, 16, 16)
    torch.testing.assert_close(views(3, mean=mean[:3]).evaluation_view(images[:, :3].contiguous()), plain[:, :3])


def test_operations_on_colours_and_means_of_another_length_are_refused() -> None:
    for step in (ColorJitter(0.4, 0.4, 0.4, 0.1, 0.8), Grayscale(0.2)):
        with pytest.raises(UserError, match=rf"{type(step).__name__} is for RGB, and images have 5 channels"):
            views(5, step)
        views(3, step)
    with pytest.raises(UserError, match=r"^views\.mean=\[0\.5, 0\.5, 0\.5\]: images have 5 channels .*as many numbers"):
        views(5, mean=[0.5] * 3)
    with pytest.raises(UserError, match=r"views are made of uint8 \[B, 5, H, W\], and not of uint8 \[4, 3, 8, 8\]"):
        views(5).evaluation_view(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))


def test_a_source_of_other_channels_than_the_views_is_refused(tmp_path: Path) -> None:
    tiff(tmp_path / "a.tif", noise(16, 16, 5), photometric="minisblack", planarconfig="contig")
    source = folder(str(tmp_path), channels=5).train
    views(5).require_channels(source)
    with pytest.raises(UserError, match=r"^data\.channels=5: the views are of images with 3: give views\.channels=5"):
        views(3).require_channels(source)


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_pictures_show_grey_or_the_first_three_channels(channels: int, shown: list[int]) -> None:
    pixels = torch.rand(2, channels, 4, 4)
    assert torch.equal(in_colour(pixels), pixels[:, shown])


@pytest.mark.parametrize(("high", "seen"), [(255, 255), (65535, 255), (70000, 255)])
def test_a_deep_grey_image_is_as_bright_in_one_channel_as_in_three(high: int, seen: int, tmp_path: Path) -> None:
    values = np.linspace(0, high, 256).reshape(16, 16).astype(np.int32)
    Image.fromarray(values, "I").save(tmp_path / "a.tif")
    one = decode_bytes(tmp_path / "a.tif", "a", 16, True, Decoding(1))
    three = decode_bytes(tmp_path / "a.tif", "a", 16, True, Decoding(3))
    assert int(one.max()) == seen
    assert int((one[0].int() - three[0].int()).abs().max()) <= 1


def test_the_header_of_many_bands_is_read_and_every_page_counts_its_pixels(tmp_path: Path) -> None:
    file = tiff(
        tmp_path / "a.tif", noise(13, 20, 30, dtype=np.uint16), photometric="minisblack", planarconfig="separate"
    )
    assert read_header(file)[2:] == (20, 30)
    assert read_header(file.read_bytes()).format == "TIFF"
    with tifffile.TiffWriter(tmp_path / "b.tif") as writer:
        for side in (8, 600):
            writer.write(np.zeros((side, side), np.uint8), photometric="minisblack", metadata=None)
    with pytest.raises(CorruptImage, match=r"360,000 pixels are more than data.max_pixels=1000"):
        decode_bytes(tmp_path / "b.tif", "b", 16, True, Decoding(2, max_pixels=1000))


@pytest.mark.parametrize("bits", [8, 10, 12, "auto"])
def test_eight_bits_are_as_they_are_whatever_deeper_integers_have(bits: Any) -> None:
    values = noise(2, 4, 4)
    assert as_bytes(values, bits) is values
    if isinstance(bits, int) and bits > 8:
        assert as_bytes(np.full((1, 2, 2), 2**bits - 1, np.uint16), bits).tolist() == [[[255, 255]] * 2]


def test_one_channel_of_a_tiff_has_the_greys_that_pillow_sees(tmp_path: Path) -> None:
    values = noise(8, 8)
    colours = noise(3, 256, dtype=np.uint16, high=2**16)
    for how in ({"photometric": "miniswhite"}, {"photometric": "palette", "colormap": colours}):
        file = tiff(tmp_path / "a.tif", values, **how)
        expected = np.asarray(Image.open(file).convert("L"))
        assert np.array_equal(decode_bytes(file, "a.tif", 8, True, Decoding(1))[0].numpy(), expected)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_a_grey_tiff_of_floats_is_grey_as_a_colour_image(tmp_path: Path, kind: Any) -> None:
    values = noise(8, 8)
    file = tiff(tmp_path / "a.tif", (values / 255).astype(kind))
    pixels = decode_bytes(file, "a.tif", 8).numpy().astype(int)
    assert pixels.shape == (3, 8, 8)
    assert abs(pixels - values).max() <= 1  # float16 has 11 bits


def test_dark_bands_of_16_bits_are_warned_of_as_dark_colours_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bands = noise(8, 8, 13, dtype=np.uint16, high=3000)
    file = tiff(tmp_path / "a.tif", bands, photometric="minisblack", planarconfig="contig")
    decode_bytes(file, "a.tif", 8, True, Decoding(13))
    assert "a.tif: of 16 bits at most 12 are used, so it comes out nearly black" in "".join(capsys.readouterr())

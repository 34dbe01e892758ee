"""JPEG by torchvision: Pillow's picture within 2 levels, the same damage refused, and runs that keep their decoder."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError
from sklearn.datasets import load_sample_images

from unlabeled.commands.checks.decoder import with_earlier_decoder
from unlabeled.commands.checks.former_run import open_run
from unlabeled.commands.checks.machine import check_machine
from unlabeled.core.ranges import Decoder
from unlabeled.core.run_config import write_config
from unlabeled.data.decode import decode_bytes
from unlabeled.data.decoding import Decoding
from unlabeled.data.fingerprint import fingerprint
from unlabeled.data.jpeg.header import JpegHeader, jpeg_header
from unlabeled.data.source import CorruptImage
from unlabeled.data.sources.folder import folder
from unlabeled.errors import UserError

PILLOW, TORCHVISION = Decoding(decode="pillow"), Decoding(decode="torchvision")
MOST = 2  # levels of 255 by which torch's resize differs from Pillow's: fixed-point weights


def photograph(width: int, height: int, number: int = 0, mode: str = "RGB", **settings: Any) -> bytes:
    image = Image.fromarray(load_sample_images().images[number]).convert(mode)
    stream = io.BytesIO()
    image.resize((width, height), Image.Resampling.LANCZOS).save(stream, "JPEG", **{"quality": 90, **settings})
    return stream.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def both(data: bytes | Path, size: int, square: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(decode_bytes(data, "a.jpg", size, square, one) for one in (PILLOW, TORCHVISION))  # type: ignore[return-value]


def difference(data: bytes | Path, size: int, square: bool) -> int:
    a, b = both(data, size, square)
    assert a.shape == b.shape
    assert b.dtype == torch.uint8
    assert b.is_contiguous()
    return int((a.int() - b.int()).abs().max())


@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("shape", [(500, 375), (375, 500), (300, 300), (641, 200), (200, 90)])
def test_a_photograph_is_that_of_pillow_within_two_levels(shape: tuple[int, int], square: bool) -> None:
    for size in (100, 128, 199):
        for settings in ({}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}):
            a, b = both(photograph(*shape, **settings), size, square)
            assert a.shape == b.shape
            assert int((a.int() - b.int()).abs().max()) <= MOST
            assert float((a != b).float().mean()) < 0.02


def test_without_a_resize_every_bit_is_that_of_pillow() -> None:
    for shape in ((64, 64), (61, 33), (200, 150)):
        for mode in ("RGB", "L"):
            assert difference(photograph(*shape, mode=mode), 256, False) == 0
    assert difference(photograph(64, 64), 64, True) == 0
    assert difference(photograph(64, 90), 64, True) == 0  # a crop alone


@pytest.mark.parametrize("orientation", range(0, 10))
@pytest.mark.parametrize("square", [True, False])
def test_each_orientation_is_turned_as_pillow_turns_it(orientation: int, square: bool) -> None:
    data = photograph(120, 80, exif=turned(orientation))
    assert difference(data, 50, square) <= MOST
    assert difference(data, 200, False) == 0


def test_pillow_has_no_part_in_a_photograph_of_a_usual_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(photograph(500, 375, exif=turned(6)))
    grey = photograph(500, 375, mode="L")
    monkeypatch.setattr("unlabeled.data.decode.to_rgb", None)
    assert decode_bytes(tmp_path / "a.jpg", "a.jpg", 256, False, TORCHVISION).shape == (3, 341, 256)
    assert decode_bytes(grey, "a.jpg", 256, True, TORCHVISION).shape == (3, 256, 256)


def test_what_torchvision_is_not_meant_for_is_decoded_by_pillow_to_the_bit() -> None:
    cmyk = photograph(100, 80, mode="CMYK")
    assert jpeg_header(cmyk) is None
    tiny = photograph(900, 700)  # Pillow's scaled decoding is faster from 1/4 on
    thin = photograph(1200, 3)  # enlarged for a square, of which Pillow computes the crop alone
    png = io.BytesIO()
    Image.fromarray(load_sample_images().images[0]).save(png, "PNG")
    for data, size, square in ((cmyk, 50, True), (tiny, 64, False), (thin, 64, True), (png.getvalue(), 64, False)):
        assert difference(data, size, square) == 0


def test_the_header_is_read_without_its_pixels() -> None:
    assert jpeg_header(photograph(50, 40)) == JpegHeader(50, 40, False)
    assert jpeg_header(photograph(50, 40, progressive=True, mode="L")) == JpegHeader(50, 40, False)
    assert jpeg_header(photograph(50, 40, exif=turned(6))) == JpegHeader(50, 40, True)
    assert jpeg_header(b"\xff\xd8\xff") is None
    assert jpeg_header(b"\xff\xd8\xff\xe0\x00\x00") is None
    assert jpeg_header(b"\x89PNG") is None


def test_a_jpeg_with_more_pixels_than_allowed_is_corrupt() -> None:
    data = photograph(50, 40)
    with pytest.raises(CorruptImage, match=r"refused as a decompression bomb .*data\.max_pixels=… allows more"):
        decode_bytes(data, "a.jpg", 32, True, Decoding(max_pixels=1000, decode="torchvision"))
    assert decode_bytes(data, "a.jpg", 32, True, TORCHVISION).shape == (3, 32, 32)  # Pillow's own limit is back


def outcome(data: bytes, decoding: Decoding) -> torch.Tensor | str:
    try:
        return decode_bytes(data, "a.jpg", 512, False, decoding)
    except CorruptImage as error:
        return str(error)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("progressive", [False, True])
def test_a_damaged_file_is_refused_in_the_same_words_or_gives_the_same_pixels(progressive: bool) -> None:
    draw, whole = np.random.default_rng(0), photograph(64, 48, progressive=progressive)
    refused = other = 0
    for number in range(400):
        data = bytearray(whole)
        if number % 2:
            del data[int(draw.integers(2, len(data))) :]
        else:
            data[int(draw.integers(2, len(data)))] = int(draw.integers(0, 256))
        a, b = outcome(bytes(data), PILLOW), outcome(bytes(data), TORCHVISION)
        if isinstance(a, str) or isinstance(b, str):
            assert a == b
            refused += 1
        else:
            other += not torch.equal(a, b)
    assert refused > 200
    assert other <= 1  # a wrong colour space in a header, of which the two decoders make different colours


def test_every_cut_off_end_is_refused_as_pillow_refuses_it() -> None:
    whole = photograph(16, 16)
    for length in range(len(whole) - 40, len(whole) + 1):
        a, b = outcome(whole[:length], PILLOW), outcome(whole[:length], TORCHVISION)
        assert isinstance(a, str) == isinstance(b, str), length


def test_an_unknown_image_keeps_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xffhello")
    with pytest.raises(CorruptImage, match=r"^a\.jpg: not an image that Pillow can read$") as caught:
        decode_bytes(tmp_path / "a.jpg", "a.jpg", 8, True, TORCHVISION)
    assert isinstance(caught.value.__cause__, UnidentifiedImageError)
    with pytest.raises(CorruptImage, match=r"^b\.jpg: the file is gone$"):
        decode_bytes(tmp_path / "b.jpg", "b.jpg", 8, True, TORCHVISION)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(2):
        for name in "ab":
            (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "images" / name / f"{number}.jpg").write_bytes(photograph(100, 80, number))
    return tmp_path / "images"


def test_features_of_other_pixels_are_not_found_again(images: Path) -> None:
    def known(decode: Decoder) -> str | None:
        return fingerprint(folder(str(images), image_size=32, decode=decode).train)

    assert known("auto") == known("torchvision")
    assert known("auto") != known("pillow")


def test_stored_features_of_earlier_versions_are_found_with_the_decoder_of_then(images: Path) -> None:
    source = folder(str(images), image_size=32, decode="pillow").train
    now = fingerprint(source)
    del source.decoding  # type: ignore[attr-defined]
    assert fingerprint(source) == now


def config_of(run_dir: Path, **data: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.create({"name": "x", "run_dir": str(run_dir), "data": {"path": "here", **data}})


def begin(run_dir: Path, **data: Any) -> None:
    write_config(open_run(config_of(run_dir, **data)), run_dir)
    (run_dir / "checkpoints").mkdir()
    (run_dir / "checkpoints/last.ckpt").touch()


def test_a_new_run_records_the_decoder_that_auto_stands_for(tmp_path: Path) -> None:
    config = config_of(tmp_path, decode="auto")
    assert open_run(config)["data"]["decode"] == "torchvision"
    assert config.data.decode == "torchvision"  # what is built is what is recorded


@pytest.mark.parametrize("begun", [{}, {"decode": "pillow"}])
def test_a_run_that_began_with_pillow_goes_on_with_pillow_and_says_so(
    begun: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tmp_path, **begun)
    config = config_of(tmp_path, decode="auto")
    assert open_run(config)["data"]["decode"] == config.data.decode == "pillow"
    assert capsys.readouterr().out == "data.decode=auto: the run goes on with the decoder that it began with, pillow\n"
    with pytest.raises(UserError, match=r"holds a run with another data\.decode; "):
        open_run(config_of(tmp_path, decode="torchvision"))


def test_a_run_that_began_with_torchvision_is_not_continued_with_pillow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tmp_path, decode="auto")
    assert open_run(config_of(tmp_path, decode="auto"))["data"]["decode"] == "torchvision"
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match=r"holds a run with another data\.decode; "):
        open_run(config_of(tmp_path, decode="pillow"))


def test_a_checkpoint_of_an_earlier_version_is_evaluated_with_its_own_pixels() -> None:
    stored = {"_target_": "unlabeled.data.sources.folder.folder", "path": "x"}
    assert with_earlier_decoder(stored)["decode"] == "pillow"
    assert with_earlier_decoder({**stored, "decode": "cuda"})["decode"] == "cuda"
    digits = {"_target_": "unlabeled.data.sources.digits.digits", "image_size": 8}
    assert with_earlier_decoder(digits) == digits


def test_the_gpu_decoder_is_refused_in_one_line_without_a_gpu_and_with_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlabeled.commands.checks.machine._has", lambda accelerator: False)
    with pytest.raises(UserError, match=r"^data\.decode=cuda: torch finds no NVIDIA GPU on this machine: give auto, "):
        check_machine({"data": {"decode": "cuda"}, "num_workers": 0})
    monkeypatch.setattr("unlabeled.commands.checks.machine._has", lambda accelerator: True)
    with pytest.raises(UserError, match=r"^data\.decode=cuda: worker processes cannot use the GPU: give num_workers=0"):
        check_machine({"data": {"decode": "cuda"}, "num_workers": 2})
    check_machine({"data": {"decode": "cuda"}, "num_workers": 0})


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("orientation", [1, 6])
def test_nvjpeg_gives_the_same_picture_within_a_few_levels(orientation: int) -> None:
    data = photograph(500, 375, exif=turned(orientation))
    ours, pillow = (decode_bytes(data, "a", 256, False, Decoding(decode=kind)) for kind in ("cuda", "pillow"))
    assert ours.device.type == "cpu"
    assert ours.shape == pillow.shape
    assert float((ours.float() - pillow.float()).abs().mean()) < 1.5  # its upsampling of colours differs

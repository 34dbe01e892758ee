"""Decoding once into memory, and lazily around corrupt images."""

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from unlabeled.data.memory import ArraySource, bytes_needed, decode_all, decode_or_next, resize_images
from unlabeled.data.source import CorruptImage
from unlabeled.data.sources.digits import digits
from unlabeled.data.sources.folder import folder
from unlabeled.errors import UserError


class Counting:
    """Image i is filled with i; those in ``broken`` are corrupt."""

    def __init__(self, count: int, broken: set[int]) -> None:
        self.classes = ["only"]
        self.labels = torch.arange(count) % 7
        self.image_size, self.square = 2, True
        self._broken = broken

    def __len__(self) -> int:
        return len(self.labels)

    def decode(self, index: int) -> Tensor:
        if index in self._broken:
            raise CorruptImage(f"{self.name(index)}: torn")
        return torch.full((3, 2, 2), index % 251, dtype=torch.uint8)

    def name(self, index: int) -> str:
        return f"picture {index}"


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """256 images of 2 × 2 pixels at a time, so that 1,000 of them need four messages."""
    monkeypatch.setattr("unlabeled.data.memory._CHUNK_BYTES", 256 * 12)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("broken", [set(), {0}, {999}, {3, 4, 500, 255, 256}, set(range(250, 520))])
def test_decoding_keeps_order_and_leaves_out_only_what_is_corrupt(workers: int, broken: set[int]) -> None:
    decoded = decode_all(Counting(1000, broken), workers, progress=False)
    ids = [index for index in range(1000) if index not in broken]
    assert decoded.ids.tolist() == ids
    assert decoded.ids.dtype == decoded.labels.dtype == torch.int64
    assert decoded.labels.tolist() == [index % 7 for index in ids]
    assert isinstance(decoded.images, Tensor)
    assert decoded.images.shape == (len(ids), 3, 2, 2)
    assert decoded.images.dtype == torch.uint8
    assert (decoded.images.flatten(1) == torch.tensor(ids)[:, None] % 251).all()
    assert decoded.corrupt == [f"picture {index}: torn" for index in sorted(broken)]
    assert decoded.classes == ["only"]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("workers", [0, 2])
def test_decoding_leaves_the_global_random_state_alone(workers: int) -> None:
    before = torch.get_rng_state()
    decode_all(Counting(1000, set()), workers)
    assert torch.equal(before, torch.get_rng_state())


def test_corrupt_files_are_skipped_counted_and_listed_by_name(tmp_path: Path) -> None:
    for name, value in (("a.png", 10), ("c.png", 30), ("e.png", 50)):
        Image.new("L", (8, 8), value).save(tmp_path / name)
    Image.effect_noise((64, 64), 50).save(tmp_path / "b.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:1000])
    (tmp_path / "d.png").write_text("a text file")
    (tmp_path / "f.png").write_bytes(b"")
    decoded = decode_all(folder(str(tmp_path), image_size=8, square=True).train, workers=2)
    assert isinstance(decoded.images, Tensor)
    assert decoded.images[:, 0, 0, 0].tolist() == [10, 30, 50]
    assert decoded.ids.tolist() == [0, 2, 4]
    assert [line.split(": ")[0] for line in decoded.corrupt] == [
        str(tmp_path / name) for name in ("b.jpg", "d.png", "f.png")
    ]
    reasons = [line.split(": ", 1)[1] for line in decoded.corrupt]
    assert reasons[0].startswith("OSError: image file is truncated")
    assert reasons[1:] == ["not an image that Pillow can read", "empty, 0 bytes"]


def test_nothing_but_corrupt_images_is_an_error_in_one_line() -> None:
    source = Counting(3, {0, 1, 2})
    with pytest.raises(
        UserError, match=r"^none of the 3 images can be decoded \(picture 0: torn\).*data\.path="
    ) as caught:
        decode_all(source, 1)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="none of the 3 images"):
        decode_or_next(source, 1)


def test_images_in_memory_are_passed_on_without_a_copy() -> None:
    train = digits().train
    assert isinstance(train, ArraySource)
    decoded = decode_all(train, workers=2)
    assert isinstance(decoded.images, Tensor)
    assert decoded.images.data_ptr() == train.images.data_ptr()
    assert decoded.ids.tolist() == list(range(1347))
    assert decoded.corrupt == []
    assert bytes_needed(train) == 0


def test_writing_to_a_decoded_image_leaves_the_source_as_it_was() -> None:
    train = digits().train
    train.decode(0).fill_(77)
    assert (train.decode(0) != 77).any()


def test_bytes_needed_are_three_bytes_a_pixel() -> None:
    assert bytes_needed(Counting(1000, set())) == 1000 * 3 * 2 * 2


def test_a_corrupt_image_is_replaced_by_the_next_that_decodes_going_round() -> None:
    source = Counting(5, {0, 1, 4})
    chosen = [decode_or_next(source, index) for index in range(5)]
    assert [index for _, index in chosen] == [2, 2, 2, 3, 2]
    assert [int(image[0, 0, 0]) for image, _ in chosen] == [2, 2, 2, 3, 2]


def test_another_error_than_a_corrupt_image_is_not_swallowed() -> None:
    class Failing(Counting):
        def decode(self, index: int) -> Tensor:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        decode_all(Failing(3, set()), 0)  # with workers torch 2.15 takes 10 s to clear up after an error


def test_the_progress_bar_shows_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    decode_all(Counting(600, set()), 2, progress=True)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    decode_all(Counting(600, set()), 2, progress=False)
    assert capsys.readouterr() == ("", "")
    decode_all(Counting(600, set()), 2, progress=True)
    captured = capsys.readouterr()
    assert "Decoding images" in captured.err
    assert captured.out == ""


def test_resizing_keeps_equal_images_and_flat_colours() -> None:
    images = torch.full((2, 3, 4, 4), 9, dtype=torch.uint8)
    assert resize_images(images, 4) is images
    assert torch.equal(resize_images(images, 8), torch.full((2, 3, 8, 8), 9, dtype=torch.uint8))

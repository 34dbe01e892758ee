"""Sources whose images keep their own shape: the same batches from memory and from files, each image on a canvas."""

import io
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from unlabeled.data import memory
from unlabeled.data.loaders import ArrayLoader, LazyLoader
from unlabeled.data.memory import DecodedSource, bytes_needed, decode_all
from unlabeled.data.module import DataModule
from unlabeled.data.order import GlobalOrder
from unlabeled.data.source import CorruptImage, Source, Splits
from unlabeled.data.sources.folder import folder
from unlabeled.data.sources.parquet import parquet
from unlabeled.data.support import ClassBalanced
from unlabeled.objective import Batch, Support

SIZE = 12
SHAPES = [(9, 16), (20, 10), (12, 12), (5, 40), (1, 3), (30, 30), (16, 9)] * 2  # height and width of each file
KEPT = [(9, 16), (20, 10), (12, 12), (3, 24), (1, 3), (12, 12), (16, 9)] * 2  # within 12 × 24


def picture(shape: tuple[int, int], seed: int) -> Image.Image:
    """None of its pixels is black."""
    return Image.fromarray(np.random.default_rng(seed).integers(1, 256, (*shape, 3), dtype=np.uint8))


def pictures(root: Path, corrupt: tuple[int, ...] = ()) -> Source:
    """Two classes of seven images each; those in ``corrupt`` are text."""
    for number, shape in enumerate(SHAPES):
        file = root / "ab"[number // 7] / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(shape, number).save(file)
        if number in corrupt:
            file.write_text("text")
    return folder(str(root), image_size=SIZE).train


def order(start: int = 0, rank: int = 0, of: int = 1) -> GlobalOrder:
    return GlobalOrder(len(SHAPES), 4, 7, 0, rank, of, next_step=lambda: start)


def equal(a: Batch | Support, b: Batch | Support) -> bool:
    """Bit for bit, field by field."""
    for one, other in zip(a, b, strict=True):
        if isinstance(one, Support) and isinstance(other, Support):
            same = equal(one, other)
        else:
            same = torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one == other
        if not same:
            return False
    return True


def all_equal(a: Iterable[Batch], b: Iterable[Batch]) -> bool:
    return all(equal(one, other) for one, other in zip(a, b, strict=True))


def module(source: Source, lazy: bool, workers: int = 0, step: int = 0) -> DataModule:
    data = DataModule(Splits(source, source, "made up"), 4, workers, 0.0 if lazy else 1.0, seed=0)
    process = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = cast(Any, SimpleNamespace(global_rank=0, world_size=1, global_step=step, strategy=process))
    return data


def frames(batch: Batch) -> list[tuple[int, int]]:
    if batch.sizes is None:
        return [(batch.images.shape[2], batch.images.shape[3])] * len(batch.ids)
    return [(height, width) for height, width in batch.sizes.tolist()]


def assert_holds_its_images(batch: Batch, source: Source) -> None:
    assert frames(batch) == [KEPT[index] for index in batch.ids.tolist()]
    assert torch.equal(batch.labels, source.labels[batch.ids])
    for row, index, (height, width) in zip(batch.images, batch.ids.tolist(), frames(batch), strict=True):
        assert torch.equal(row[:, :height, :width], source.decode(index))
        assert int((row > 0).sum()) == 3 * height * width  # zeros beside the image


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("start", "rank", "of"), [(0, 0, 1), (4, 0, 1), (0, 1, 2)])
def test_batches_from_memory_and_from_files_are_equal_bit_for_bit(
    tmp_path: Path, workers: int, start: int, rank: int, of: int
) -> None:
    source, positions = pictures(tmp_path), order(start, rank, of)
    array = list(ArrayLoader(decode_all(source, workers), positions, torch.device("cpu")))
    lazy = list(LazyLoader(source, positions, workers, []))
    assert all_equal(array, lazy)
    assert [batch.ids.tolist() for batch in lazy] == list(positions)
    for batch in lazy:
        assert_holds_its_images(batch, source)
        highest, widest = (max(sides) for sides in zip(*frames(batch), strict=True))
        assert tuple(batch.images.shape) == (4 // of, 3, highest, widest)


def test_a_run_of_files_and_of_memory_sees_the_same_batches_and_goes_on_with_them(tmp_path: Path) -> None:
    source = pictures(tmp_path)
    seen = []
    for lazy in (False, True):
        whole, resumed = module(source, lazy), module(source, lazy, step=4)
        for data in (whole, resumed):
            data.plan(None, 7)
        seen.append(list(whole.train_dataloader()))
        assert all_equal(resumed.train_dataloader(), seen[-1][4:])
    assert all_equal(*seen)
    assert len({id for batch in seen[0][:3] for id in batch.ids.tolist()}) == 12  # an epoch shows none twice


@pytest.mark.parametrize("workers", [0, 2])
def test_the_images_beside_a_batch_come_with_their_sizes(tmp_path: Path, workers: int) -> None:
    source = pictures(tmp_path)
    seen = []
    for lazy in (False, True):
        data = module(source, lazy, workers)
        data.attach_support(ClassBalanced(None, None, 7, 0, classes_per_batch=2, images_per_class=3, views=1), 1)
        data.plan(None, 5)
        seen.append(list(data.train_dataloader()))
    assert all_equal(*seen)
    for batch in seen[0]:
        support = batch.support
        assert support is not None
        assert support.sizes is not None
        assert_holds_its_images(Batch(*support[:2], source.labels[support.ids], sizes=support.sizes), source)


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_images_are_left_out_of_memory_and_replaced_from_files(tmp_path: Path, workers: int) -> None:
    source, corrupt = pictures(tmp_path, corrupt=(0, 3, 4)), list[str]()
    decoded = decode_all(source, workers)
    assert decoded.ids.tolist() == [1, 2, *range(5, 14)]
    assert [image.shape[1:] for image in decoded.images] == [KEPT[index] for index in decoded.ids.tolist()]
    assert [line.partition(": ")[0] for line in decoded.corrupt] == [source.name(index) for index in (0, 3, 4)]
    (batch,) = LazyLoader(source, [[2, 3, 13, 0]], workers, corrupt)
    assert batch.ids.tolist() == [2, 5, 13, 1]
    assert_holds_its_images(batch, source)
    assert corrupt == [source.name(3), source.name(0)]


@pytest.mark.parametrize("lazy", [False, True])
def test_a_probe_sees_each_intact_image_with_its_size(tmp_path: Path, lazy: bool) -> None:
    source = pictures(tmp_path, corrupt=(0, 3, 13))
    batches = list(module(source, lazy).labelled("test", 5))
    assert [id for batch in batches for id in batch.ids.tolist()] == [1, 2, *range(4, 13)]
    for batch in batches:
        assert_holds_its_images(batch, source)


def test_images_of_one_size_need_no_canvas(tmp_path: Path) -> None:
    source = pictures(tmp_path)
    array, lazy = ArrayLoader(decode_all(source, 0), [[2, 5]], torch.device("cpu")), LazyLoader(source, [[2, 5]], 0, [])
    for loader in (array, lazy):
        (batch,) = loader
        assert batch.sizes is None
        assert tuple(batch.images.shape) == (2, 3, 12, 12)


@pytest.mark.parametrize("workers", [0, 2])
def test_whole_images_in_memory_lie_each_in_memory_of_its_own_that_no_worker_shares(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CHUNK_BYTES", 3 * 6 * SIZE**2)  # three images a message
    decoded = decode_all(pictures(tmp_path), workers)
    assert isinstance(decoded.images, list)
    for image, (height, width) in zip(decoded.images, KEPT, strict=True):
        assert image.untyped_storage().nbytes() == 3 * height * width
        assert not image.is_shared()  # type: ignore[no-untyped-call]
    first = next(iter(ArrayLoader(decoded, [[0, 1], [2]], torch.device("cpu"))))
    first.images.zero_()
    assert all(bool((image > 0).all()) for image in decoded.images)


class Mixture:
    """Whole images of random shapes, every fourth a panorama, the last half of them small; every n-th is corrupt."""

    classes: list[str] = []  # noqa: RUF012
    square = False

    def __init__(self, count: int, image_size: int, broken: int = 10**9) -> None:
        self.labels, self.image_size, self.broken = torch.full((count,), -1), image_size, broken
        self.random = np.random.default_rng(0).integers(image_size // 2, image_size + 1, (count, 2)).tolist()
        self.decoded = 0

    def __len__(self) -> int:
        return len(self.labels)

    def decode(self, index: int) -> Tensor:
        self.decoded += 1
        if (index + 1) % self.broken == 0:
            raise CorruptImage(self.name(index))
        height, width = self.random[index]
        height //= 1 if 2 * index < len(self) else 2
        return torch.ones(3, height, 2 * width if index % 4 == 0 else width, dtype=torch.uint8)

    def name(self, index: int) -> str:
        return f"image {index}"


class Panoramas(Mixture):
    """As large as images can be."""

    def decode(self, index: int) -> Tensor:
        return torch.ones(3, self.image_size, 2 * self.image_size, dtype=torch.uint8)


@pytest.mark.parametrize("broken", [10**9, 5, 2])
@pytest.mark.parametrize("count", [40, 997, 5000])
def test_the_memory_that_whole_images_need_is_guessed_from_64_of_them(count: int, broken: int) -> None:
    source = Mixture(count, 64, broken)
    guess = bytes_needed(source)
    assert source.decoded == min(count, 64)
    intact = [index for index in range(count) if (index + 1) % broken]
    mean = sum(source.decode(index).nbytes for index in intact) / len(intact)
    assert guess == pytest.approx(mean * count, rel=0.2)


def test_the_guess_of_images_in_files_is_their_bytes_or_the_most_there_can_be(tmp_path: Path) -> None:
    source = pictures(tmp_path)
    assert bytes_needed(source) == sum(3 * height * width for height, width in KEPT)
    assert bytes_needed(pictures(tmp_path, corrupt=tuple(range(14)))) == 14 * 3 * SIZE * 2 * SIZE


def test_a_set_that_does_not_fit_by_the_guess_is_read_from_files(tmp_path: Path) -> None:
    source = pictures(tmp_path)
    for spare, kept in ((1, True), (-1, False)):
        gib = (bytes_needed(source) + spare) / 2**30
        assert isinstance(DataModule(Splits(source, None, "x"), 4, 0, gib, 0).train, DecodedSource) == kept


def test_no_message_of_a_worker_is_larger_than_the_limit_but_for_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CHUNK_BYTES", 10_000)
    for image_size in (8, 20, 60):
        chunks = memory._Chunks(Panoramas(300, image_size))
        messages = [chunks[number] for number in range(len(chunks))]
        assert sum(len(shapes) for _, shapes, _ in messages) == 300
        assert all(pixels.nbytes <= 10_000 or len(shapes) == 1 for pixels, shapes, _ in messages)
        assert max(len(shapes) for _, shapes, _ in messages) == max(1, 10_000 // (6 * image_size**2))


def test_parquet_gives_whole_images_too_and_the_splits_say_what_was_kept(tmp_path: Path) -> None:
    rows = []
    for number, shape in enumerate(SHAPES):
        stream = io.BytesIO()
        picture(shape, number).save(stream, "PNG")
        rows.append({"bytes": stream.getvalue(), "path": "x.png"})
    pq.write_table(pa.table({"image": pa.array(rows), "label": pa.array([0, 1] * 7)}), tmp_path / "train.parquet")
    pictures(tmp_path / "files")
    splits = {
        square: (
            parquet(str(tmp_path), test=None, image_size=SIZE, square=square),
            folder(str(tmp_path / "files"), image_size=SIZE, square=square),
        )
        for square in (True, False)
    }
    for square, pair in splits.items():
        words = "squares of 12 pixels" if square else "whole images within 12 × 24 pixels"
        for each in pair:
            assert each.train.square == square
            assert each.description.endswith(f", {words}")
        for index, kept in enumerate(KEPT):
            one, other = (each.train.decode(index) for each in pair)
            assert torch.equal(one, other)
            assert tuple(one.shape[1:]) == ((SIZE, SIZE) if square else kept)
    assert parquet(str(tmp_path), test=None).train.square
    assert not folder(str(tmp_path / "files")).train.square

"""Parquet files that do not fit into memory: the same images, read by row groups, in an order by blocks of them."""

import io
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from unlabeled.data.module import DataModule
from unlabeled.data.order import GlobalOrder
from unlabeled.data.source import CorruptImage, Splits
from unlabeled.data.sources import parquet as module
from unlabeled.data.sources import rowgroups
from unlabeled.data.sources.parquet import ParquetSource, parquet
from unlabeled.data.sources.rowgroups import Blocks


def png(red: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def write(folder: Path) -> None:
    """Rows 0..9 and 10..16 in row groups of three, red value the row; row 4 without bytes."""
    for name, first, last in (("train-0", 0, 10), ("train-1", 10, 17)):
        images: list[Any] = [{"bytes": None if row == 4 else png(row), "path": "x" * 500} for row in range(first, last)]
        table = pa.table({"image": images, "label": [row % 2 for row in range(first, last)]})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=3)


@pytest.fixture
def lazy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ParquetSource:
    """17 rows in 7 row groups, of which a process keeps two."""
    write(tmp_path)
    metadata = pq.ParquetFile(tmp_path / "train-0.parquet").metadata
    size = metadata.row_group(2).column(0).total_uncompressed_size
    assert metadata.row_group(2).column(0).path_in_schema == "image.bytes"
    monkeypatch.setattr(module, "MEMORY", 0)
    monkeypatch.setattr(rowgroups, "WINDOW_BYTES", int(2.5 * size))
    source = parquet(str(tmp_path), train="train-*.parquet", test=None, image_size=4).train
    assert isinstance(source, ParquetSource)
    return source


def test_row_groups_give_the_images_labels_and_names_that_memory_gives(
    tmp_path: Path, lazy: ParquetSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MEMORY", 2**31)
    whole = parquet(str(tmp_path), train="train-*.parquet", test=None, image_size=4).train
    assert isinstance(whole, ParquetSource)
    assert whole.blocks is None
    assert whole.labels.tolist() == lazy.labels.tolist()
    for copy in (lazy, pickle.loads(pickle.dumps(lazy))):
        for row in (16, 3, *range(17)):
            assert copy.name(row) == whole.name(row)
            if row != 4:
                assert torch.equal(copy.decode(row), whole.decode(row))
        with pytest.raises(CorruptImage, match=r"train-0\.parquet row 4: the row holds no bytes$"):
            copy.decode(4)


def test_of_the_row_groups_the_last_ones_are_kept_and_no_more(
    lazy: ParquetSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lazy.blocks is not None
    assert (lazy.blocks.window, lazy.blocks.starts.tolist()) == (2, [0, 3, 6, 9, 10, 13, 16, 17])
    opened, real = list[str](), pq.ParquetFile
    monkeypatch.setattr(pq, "ParquetFile", lambda name, **given: opened.append(name) or real(name, **given))  # type: ignore[func-returns-value]
    for row in (0, 1, 2, 12, 0, 11, 2):
        lazy.decode(row)
    assert len(opened) == 2
    for row, expected in ((15, 3), (13, 3), (0, 3), (12, 4)):  # a third takes the place of the one unused the longest
        lazy.decode(row)
        assert len(opened) == expected


def test_a_file_that_goes_or_breaks_costs_its_rows(tmp_path: Path, lazy: ParquetSource) -> None:
    assert lazy.decode(0).shape == (3, 4, 4)
    file = tmp_path / "train-1.parquet"
    file.write_bytes(b"x" * 200)
    with pytest.raises(CorruptImage, match=r"train-1\.parquet row 0: row group 0 cannot be read \("):
        lazy.decode(10)
    file.unlink()
    with pytest.raises(CorruptImage, match=r"train-1\.parquet row 0: the file is gone$"):
        lazy.decode(10)
    assert lazy.decode(0).shape == (3, 4, 4)


def test_a_permutation_by_blocks_shows_every_row_once_whatever_their_sizes() -> None:
    blocks = Blocks(torch.tensor([0, 4, 5, 11, 13, 20]), 2)
    drawn = [blocks.permutation(generator(seed)).tolist() for seed in range(20)]
    assert all(sorted(rows) == list(range(20)) for rows in drawn)
    assert len({*map(tuple, drawn)}) == 20
    assert drawn[3] == blocks.permutation(generator(3)).tolist()


def test_one_window_comes_after_the_other_and_blocks_meet_in_any_pairs() -> None:
    pairs = set()
    for seed in range(100):
        owners = Blocks(torch.arange(0, 16, 3), 2).permutation(generator(seed)).view(-1) // 3  # five blocks of three
        windows = [frozenset(owners[first : first + 6].tolist()) for first in (0, 6, 12)]
        assert [len(window) for window in windows] == [2, 2, 1]
        assert len(frozenset.union(*windows)) == 5
        pairs.add(windows[0])
    assert len(pairs) == 10


def test_within_a_window_rows_of_its_blocks_are_mixed_evenly() -> None:
    blocks = Blocks(torch.arange(0, 4001, 1000), 2)
    rows = blocks.permutation(generator())
    first = (rows // 1000)[:1000]  # half of the first window
    assert len({*first.tolist()}) == 2
    # 500 of each block expected, hypergeometric: five standard deviations of sqrt(1000 · ¼ · ½)
    assert abs(int((first == first[0]).sum()) - 500) < 5 * (1000 / 8) ** 0.5
    whole = Blocks(torch.arange(0, 4001, 1000), 9).permutation(generator())
    assert len({*(whole // 1000)[:100].tolist()}) == 4


class Numbers:
    """Image i has the value i; they lie in three blocks of four."""

    classes, labels, image_size, square = ["x"], torch.zeros(12, dtype=torch.long), 2, True
    blocks = Blocks(torch.tensor([0, 4, 8, 12]), 1)

    def __len__(self) -> int:
        return 12

    def decode(self, index: int) -> Tensor:
        return torch.full((3, 2, 2), index, dtype=torch.uint8)

    def name(self, index: int) -> str:
        return str(index)


@pytest.mark.parametrize("gib", [0.0, 1.0])
def test_the_order_of_a_run_goes_by_blocks_whether_the_images_are_in_memory_or_not(gib: float) -> None:
    data = DataModule(Splits(Numbers(), None, "made up"), 4, 0, gib, seed=0)
    process = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = cast(Any, SimpleNamespace(global_rank=0, world_size=1, global_step=0, strategy=process))
    data.plan(None, 5)
    batches = [batch.ids.tolist() for batch in data.train_dataloader()]
    assert all(len({row // 4 for row in batch}) == 1 for batch in batches)
    assert batches == list(GlobalOrder(12, 4, 5, 0, 0, 1, lambda: 0, blocks=Numbers.blocks))


def test_any_step_of_an_order_by_blocks_is_reached_without_those_before() -> None:
    def order(start: int, rank: int = 0, of: int = 1) -> list[list[int]]:
        return list(GlobalOrder(20, 4, 12, 0, rank, of, lambda: start, blocks=Blocks(torch.tensor([0, 9, 10, 20]), 1)))

    assert order(7) == order(0)[7:]
    assert [a + b for a, b in zip(order(0, 0, 2), order(0, 1, 2), strict=True)] == order(0)
    assert order(0)[:5] != order(0)[5:10]

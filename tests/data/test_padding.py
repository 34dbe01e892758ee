"""Images of several sizes share a tensor without touching each other, and their sizes travel with them."""

from typing import Any

import pytest
import torch
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.launches import fake_gpu
from unlabeled.data.padding import JoinedImages, batch_to_device, image_sizes, pad_to_largest
from unlabeled.objective import Batch, Support

SIZES = [(3, 5), (4, 2), (1, 1), (4, 5)]


def images(sizes: list[tuple[int, int]]) -> list[Tensor]:
    """None of their pixels is 0."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]


def mixed_batch() -> Batch:
    made, sizes = pad_to_largest(images(SIZES))
    ids = torch.arange(4)
    support = Support(made[:2], ids[:2], ids[:2], sizes=torch.tensor(SIZES[:2]))
    return Batch(made, ids, ids, support=support, sizes=sizes)


def test_each_image_lies_in_the_upper_left_corner_and_all_else_is_zero() -> None:
    given = images(SIZES)
    made, sizes = pad_to_largest(given)
    assert (made.dtype, tuple(made.shape)) == (torch.uint8, (4, 3, 4, 5))
    assert sizes is not None
    assert (sizes.dtype, sizes.tolist()) == (torch.int64, [list(size) for size in SIZES])
    for row, image, (height, width) in zip(made, given, SIZES, strict=True):
        assert torch.equal(row[:, :height, :width], image)
        assert int((row > 0).sum()) == 3 * height * width


def test_the_canvas_is_as_high_as_the_highest_and_as_wide_as_the_widest_though_no_image_is_both() -> None:
    made, sizes = pad_to_largest(images([(7, 2), (3, 6)]))
    assert tuple(made.shape) == (2, 3, 7, 6)
    assert sizes is not None


@pytest.mark.parametrize("size", [(4, 4), (2, 5)])
def test_images_of_one_size_fill_their_tensor_and_need_no_sizes(size: tuple[int, int]) -> None:
    given = images([size] * 3)
    made, sizes = pad_to_largest(given)
    assert sizes is None
    assert torch.equal(made, torch.stack(given))
    assert image_sizes(made, sizes).tolist() == [list(size)] * 3


def test_a_canvas_shares_no_memory_with_its_images() -> None:
    for given in (images(SIZES), images([(2, 2)])):
        pad_to_largest(given)[0].zero_()
        assert all(bool((image > 0).all()) for image in given)


def test_known_sizes_are_kept() -> None:
    batch = mixed_batch()
    assert torch.equal(image_sizes(batch.images, batch.sizes), torch.tensor(SIZES))
    seen, sizes = batch_to_device(batch, "cpu")
    assert torch.equal(seen, batch.images)
    assert sizes is not None
    assert batch_to_device(batch._replace(sizes=None), "cpu")[1] is None


@pytest.mark.parametrize("positions", [[0, 1, 2, 3], [3, 0, 3], [1, 1], [2], [0, 2, 0]])
def test_images_joined_on_a_device_make_the_same_batches(positions: list[int]) -> None:
    given = images(SIZES)
    joined = JoinedImages(given, torch.device("cpu"))
    made, sizes = joined.take(positions)
    wanted, wanted_sizes = pad_to_largest([given[position] for position in positions])
    assert torch.equal(made, wanted)
    assert made.dtype == torch.uint8
    assert (sizes is None) == (wanted_sizes is None)
    assert sizes is None or torch.equal(sizes, torch.tensor([SIZES[position] for position in positions]))
    made.zero_()
    assert torch.equal(joined.take(positions)[0], wanted)


@pytest.mark.parametrize("count", [8, 64])
def test_a_batch_of_joined_images_is_a_few_kernels_and_one_copy_from_pinned_memory(count: int) -> None:
    with fake_gpu() as launches:
        joined = JoinedImages(images(SIZES), torch.device("cuda"))
        launches.counts["views"] = type(launches.counts["views"])()
        made, sizes = joined.take([number % 4 for number in range(count)])
    counts = launches.counts["views"]
    assert (tuple(made.shape), made.device.type) == ((count, 3, 4, 5), "cuda")
    assert sizes is not None
    assert sizes.device.type == "cuda"
    assert (counts.total <= 20, counts.copies, dict(counts.waits)) == (True, 1, {})


class OneBatch(Dataset[Batch]):
    def __getitems__(self, indices: list[int]) -> Batch:
        return mixed_batch()

    def __len__(self) -> int:
        return 4


def same(batch: Any) -> Any:
    return batch


@pytest.mark.parametrize("workers", [0, 1])
def test_sizes_survive_a_workers_message_and_lightnings_way_to_the_device(workers: int) -> None:
    (arrived,) = DataLoader(OneBatch(), batch_size=4, num_workers=workers, collate_fn=same)
    for batch in (arrived, move_data_to_device(arrived, torch.device("cpu"))):
        assert isinstance(batch, Batch)
        assert batch.sizes is not None
        assert torch.equal(batch.sizes, torch.tensor(SIZES))
        assert isinstance(batch.support, Support)
        assert batch.support.sizes is not None
        assert torch.equal(batch.support.sizes, torch.tensor(SIZES[:2]))
    on_meta = move_data_to_device(arrived, torch.device("meta"))
    assert on_meta.sizes.device.type == on_meta.support.sizes.device.type == "meta"
    without = move_data_to_device(arrived._replace(sizes=None), torch.device("cpu"))
    assert without.sizes is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only memory for a GPU is pinned")
def test_sizes_are_pinned_and_moved_with_their_images() -> None:
    (pinned,) = DataLoader(OneBatch(), batch_size=4, collate_fn=same, pin_memory=True)
    assert pinned.sizes.is_pinned()
    seen, sizes = batch_to_device(pinned, "cuda")
    assert sizes is not None
    assert seen.device == sizes.device
    assert sizes.tolist() == [list(size) for size in SIZES]

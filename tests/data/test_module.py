"""Batches from memory and from workers are the same ones, and a corrupt image stops neither."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from unlabeled.data.loaders import ArrayLoader, LazyLoader
from unlabeled.data.memory import ArraySource, DecodedSource, decode_all
from unlabeled.data.module import DataModule
from unlabeled.data.order import GlobalOrder
from unlabeled.data.source import CorruptImage, Source, Splits
from unlabeled.data.sources.folder import folder
from unlabeled.errors import UserError
from unlabeled.objective import Batch, Support

SIZE, IMAGES = 6, 14


def pictures(root: Path, corrupt: tuple[int, ...] = ()) -> Source:
    """Two classes of seven small images each; those in ``corrupt`` are text."""
    generator = torch.Generator().manual_seed(0)
    for number in range(IMAGES):
        file = root / "ab"[number // 7] / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(file)
        if number in corrupt:
            file.write_text("text")
    return folder(str(root), image_size=SIZE, square=True).train


class SomeLabelled(ArraySource):
    """In memory, yet decoded one by one: odd images have no label, and those of ``broken`` cannot be decoded."""

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        images = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 3, 2, 2).contiguous()
        super().__init__(images, torch.tensor([0, -1, 1, -1, 0, -1, 1, -1, 0, -1]), ["x", "y"], "made up")
        self.broken = broken

    def decode(self, index: int) -> Tensor:
        if index in self.broken:
            raise CorruptImage(f"image {index}")
        return super().decode(index)


def order(start: int = 0, rank: int = 0, of: int = 1) -> GlobalOrder:
    return GlobalOrder(IMAGES, 4, 7, 0, rank, of, next_step=lambda: start)  # three batches per epoch


def equal(a: Iterable[Batch], b: Iterable[Batch]) -> bool:
    return all(
        torch.equal(x.images, y.images) and torch.equal(x.ids, y.ids) and torch.equal(x.labels, y.labels)
        for x, y in zip(a, b, strict=True)
    )


def module(source: Source, memory_gib: float, batch_size: int = 4, test: Source | None = None) -> DataModule:
    data = DataModule(Splits(source, test, "made up"), batch_size, 0, memory_gib, seed=0)
    process = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = cast(Any, SimpleNamespace(global_rank=0, world_size=1, global_step=0, strategy=process))
    return data


@pytest.mark.parametrize(("start", "rank", "of"), [(0, 0, 1), (4, 0, 1), (0, 1, 2)])
def test_batches_from_memory_and_from_files_are_equal(tmp_path: Path, start: int, rank: int, of: int) -> None:
    source = pictures(tmp_path)
    positions = order(start, rank, of)
    array = list(ArrayLoader(decode_all(source, 0), positions, torch.device("cpu")))
    lazy = list(LazyLoader(source, positions, 0, []))
    assert equal(array, lazy)
    assert [batch.ids.tolist() for batch in lazy] == list(positions)
    assert {(batch.images.dtype, tuple(batch.images.shape)) for batch in lazy} == {
        (torch.uint8, (4 // of, 3, SIZE, SIZE))
    }
    for batch in lazy:
        assert torch.equal(batch.images, torch.stack([source.decode(position) for position in batch.ids.tolist()]))
        assert torch.equal(batch.labels, source.labels[batch.ids])
    assert len(ArrayLoader(decode_all(source, 0), positions, torch.device("cpu"))) == len(positions)


def test_two_workers_give_the_batches_of_none_and_leave_the_global_random_state(tmp_path: Path) -> None:
    source = pictures(tmp_path, corrupt=(3,))
    corrupt: tuple[list[str], list[str]] = ([], [])
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        alone = list(LazyLoader(source, order(), 0, corrupt[0]))
        with_workers = list(LazyLoader(source, order(), 2, corrupt[1]))
        assert torch.equal(torch.get_rng_state(), before)
    assert equal(alone, with_workers)
    assert corrupt[0] == corrupt[1] == [source.name(3)]


def test_the_successor_takes_the_place_of_a_corrupt_image_which_is_listed_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, corrupt = pictures(tmp_path, corrupt=(3, 4, 13)), list[str]()
    loader = LazyLoader(source, [[2, 3, 4, 5], [13, 3, 0, 1]], 0, corrupt)
    first, second = loader
    assert first.ids.tolist() == [2, 5, 5, 5]
    assert second.ids.tolist() == [0, 5, 0, 1]  # after the last image comes the first
    assert torch.equal(first.images[1], source.decode(5))
    assert second.labels.tolist() == [0, 0, 0, 0]
    assert corrupt == [source.name(3), source.name(4), source.name(13)]
    assert capsys.readouterr().out.count("skipped a corrupt image") == 3


def test_images_that_are_corrupt_are_left_out_of_memory_and_their_successors_keep_their_ids(tmp_path: Path) -> None:
    data = module(pictures(tmp_path, corrupt=(3, 4)), memory_gib=1)
    assert isinstance(data.train, DecodedSource)
    assert data.train.ids.tolist() == [0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    assert [name.partition(": ")[0] for name in data.corrupt] == [
        str(tmp_path / "a/03.png"),
        str(tmp_path / "a/04.png"),
    ]
    data.plan(1, None)
    assert data.steps_per_epoch == 3
    batches = list(data.train_dataloader())
    assert sorted(id for batch in batches for id in batch.ids.tolist()) == data.train.ids.tolist()


def test_a_run_of_files_and_of_memory_sees_the_same_batches_and_the_array_is_not_a_copy(tmp_path: Path) -> None:
    source = pictures(tmp_path)
    data, lazy = module(source, memory_gib=1), module(source, memory_gib=0)
    for one in (data, lazy):
        one.plan(None, 7)
        assert (one.steps_per_epoch, one.total_steps) == (3, 7)
    loaders = data.train_dataloader(), lazy.train_dataloader()
    assert [type(loader) for loader in loaders] == [ArrayLoader, LazyLoader]
    assert equal(*loaders)
    assert data.train is data.train
    assert isinstance(data.train, DecodedSource)
    assert isinstance(loaders[0], ArrayLoader)
    assert loaders[0].source.images is data.train.images
    chosen = torch.tensor([5, 2])
    assert equal(data.batches(data.train, chosen, 1), lazy.batches(lazy.train, chosen, 1))


def test_a_run_goes_on_at_the_trainers_step(tmp_path: Path) -> None:
    data = module(pictures(tmp_path), memory_gib=1)
    data.plan(None, 7)
    loader = data.train_dataloader()
    whole = list(loader)
    cast(Any, data.trainer).global_step = 4
    assert equal(loader, whole[4:])


@pytest.mark.parametrize("memory_gib", [0, 1])
def test_labelled_images_come_in_their_own_order_and_others_not_at_all(memory_gib: float, tmp_path: Path) -> None:
    source = pictures(tmp_path)
    source.labels[[1, 8, 9]] = -1
    data = module(source, memory_gib, test=source)
    for split in ("train", "test"):
        batches = list(data.labelled(split, 4))
        assert [len(batch.ids) for batch in batches] == [4, 4, 3]
        ids = torch.cat([batch.ids for batch in batches])
        assert ids.tolist() == [0, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13]
        assert torch.equal(torch.cat([batch.labels for batch in batches]), source.labels[ids])
        assert torch.equal(batches[1].images[0], source.decode(5))


def test_a_probe_sees_neither_a_corrupt_image_nor_its_successor_in_its_place() -> None:
    source, corrupt = SomeLabelled(broken=(2, 4, 8)), list[str]()
    in_order = LazyLoader(source, [[0, 2, 4, 6], [8]], 0, corrupt, keep_shape=False)
    (batch,) = in_order
    assert (batch.ids.tolist(), batch.labels.tolist()) == ([0, 6], [0, 1])
    assert corrupt == ["made up image 2", "made up image 4", "made up image 8"]


def test_probes_of_files_and_of_memory_see_the_same_images_where_some_are_corrupt(tmp_path: Path) -> None:
    source = pictures(tmp_path, corrupt=(0, 3, 13))
    array, lazy = module(source, memory_gib=1), module(source, memory_gib=0)
    ids = [torch.cat([batch.ids for batch in data.labelled("train", 5)]).tolist() for data in (array, lazy)]
    assert ids[0] == ids[1] == [1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    (batch,) = lazy.batches(lazy.train, torch.tensor([2, 3, 4]), 8)
    assert batch.ids.tolist() == [2, 4]


def test_an_array_source_is_served_without_being_decoded_whatever_the_memory() -> None:
    data = module(SomeLabelled(broken=tuple(range(10))), memory_gib=0)
    data.plan(1, None)
    assert isinstance(data.train_dataloader(), ArrayLoader)
    assert torch.cat([batch.ids for batch in data.labelled("train", 2)]).tolist() == [0, 2, 4, 6, 8]


def test_a_batch_that_is_larger_than_what_can_be_decoded_is_refused_by_its_key(tmp_path: Path) -> None:
    data = module(pictures(tmp_path, corrupt=(3,)), memory_gib=1, batch_size=14)
    with pytest.raises(UserError, match=r"^batch_size=14: it must lie between 1 and the 13 training images$"):
        data.plan(1, None)


def test_batches_gathered_from_memory_do_not_share_it(tmp_path: Path) -> None:
    decoded = decode_all(pictures(tmp_path), 0)
    assert isinstance(decoded.images, Tensor)
    kept = decoded.images.clone()
    for batch in ArrayLoader(decoded, order(), torch.device("cpu")):
        batch.images.zero_()
    assert torch.equal(decoded.images, kept)


def test_every_tensor_of_a_batch_and_its_support_is_pinned_and_copied_without_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, ids = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.arange(2)
    support = Support(images, ids, ids, sizes=torch.ones(2, 2))
    batch = Batch(images, ids, ids, support=support, sizes=torch.ones(2, 2))
    calls: list[tuple[str, Any]] = []

    def pin(tensor: Tensor) -> Tensor:
        calls.append(("pinned", None))
        return tensor.clone()

    def to(tensor: Tensor, device: torch.device, non_blocking: bool = False) -> Tensor:
        calls.append(("copied", (device.type, non_blocking)))
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "to", to)
    pinned = pin_memory(batch)  # type: ignore[no-untyped-call]
    assert isinstance(pinned, Batch)
    assert isinstance(pinned.support, Support)
    moved = move_data_to_device(pinned, torch.device("meta"))
    assert isinstance(moved, Batch)
    assert isinstance(moved.support, Support)
    assert calls == [("pinned", None)] * 8 + [("copied", ("meta", True))] * 8


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_worker_killed_while_it_hands_a_batch_over_is_said_to_be_so(tmp_path: Path, error: Exception) -> None:
    loader = LazyLoader(pictures(tmp_path), [[0, 1]], 0, [])

    class Broken:
        def __iter__(self) -> Iterator[Batch]:
            raise error

    loader.loader = cast(Any, Broken())
    with pytest.raises(UserError, match=r"a worker process was killed, .*: give fewer num_workers"):
        list(loader)

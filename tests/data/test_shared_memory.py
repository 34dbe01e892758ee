"""Processes of one machine decode their images once, and map them."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.forked import SERVER
from tests.group import leave
from unlabeled.data.memory import DecodedSource, decode_all
from unlabeled.data.module import DataModule
from unlabeled.data.shared_memory import decode_once_per_machine
from unlabeled.data.source import CorruptImage, Splits
from unlabeled.errors import UserError

CPU = torch.device("cpu")


class Telling:
    """Image i is filled with i, number 3 is corrupt; writes down which process decodes."""

    def __init__(self, record: Path, square: bool) -> None:
        self.record, self.square, self.image_size = record, square, 2
        self.classes, self.labels = ["only"], torch.zeros(20, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.labels)

    def decode(self, index: int) -> Tensor:
        with open(self.record, "a") as record:
            record.write(f"{os.getpid()}\n")
        if index == 3:
            raise CorruptImage(f"{self.name(index)}: torn")
        return torch.full((3, 2, 2 if self.square else 1 + index % 3), index, dtype=torch.uint8)

    def name(self, index: int) -> str:
        return f"picture {index}"


def end_all(work: "partial[None]", processes: int) -> list[int | None]:
    """Exit code of each."""
    started = [SERVER.Process(target=work, args=(rank,)) for rank in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join(30)
        process.kill()
    return [process.exitcode for process in started]


def group(folder: Path, rank: int, processes: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder / 'group'}", rank=rank, world_size=processes)


def plan_together(folder: Path, rank: int) -> None:
    group(folder, rank, 3)
    for square in (True, False):
        source = Telling(folder / f"square {square}", square)
        data = DataModule(Splits(source, None, "made up"), 4, 0, 1, seed=0)
        data.plan(1, None, CPU)
        sampled = 0 if square else 3 * 20  # each process guesses by itself how much memory whole images need
        assert len(source.record.read_text().split()) == sampled + 20
        expected = decode_all(Telling(folder / f"own {rank}", square), 0)
        decoded = data.train
        assert isinstance(decoded, DecodedSource)
        assert decoded.ids.tolist() == expected.ids.tolist()
        assert decoded.labels.tolist() == [0] * 19
        assert decoded.corrupt == data.corrupt == ["picture 3: torn"]
        assert decoded.classes == ["only"]
        assert all(torch.equal(a, b) for a, b in zip(decoded.images, expected.images, strict=True))
        assert data.steps_per_epoch == 4
        images = decoded.images if square else decoded.images[0]
        assert isinstance(images, Tensor)
        images[0] = 77 + rank  # a private copy of that page: nobody else sees it
        torch.distributed.barrier()
        assert (images[0] == 77 + rank).all()
    leave()


def test_three_processes_decode_once_and_have_the_images_of_one(tmp_path: Path) -> None:
    assert end_all(partial(plan_together, tmp_path), 3) == [0, 0, 0]


def lose_the_first(folder: Path, rank: int) -> None:
    group(folder, rank, 2)

    def die(processes: int) -> DecodedSource:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    with pytest.raises(UserError, match="process 0, which decodes the images for this machine, has ended"):
        decode_once_per_machine(die, CPU)
    os._exit(0)


def test_who_waits_for_a_process_that_is_killed_while_it_decodes_says_so(tmp_path: Path) -> None:
    assert end_all(partial(lose_the_first, tmp_path), 2) == [-signal.SIGKILL, 0]

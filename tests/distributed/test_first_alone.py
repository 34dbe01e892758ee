"""The first process works without the others, which wait for longer than a collective may take."""

import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from tests.forked import spawn
from unlabeled.distributed import first_alone, world_size

PATIENCE, WORK = 1.0, 3.0  # seconds of the run's own group, and of the work


def one_of_two(rank: int, folder: str) -> None:
    place, patience = f"file://{folder}/group", timedelta(seconds=PATIENCE)
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=2, timeout=patience)

    def work() -> None:
        assert world_size() == 1
        time.sleep(WORK)
        (Path(folder) / f"done by {rank}").touch()

    first_alone(work)
    assert [path.name for path in Path(folder).glob("done*")] == ["done by 0"]
    assert world_size() == 2
    dist.destroy_process_group()


def test_the_others_wait_until_the_first_has_done_its_work(tmp_path: Path) -> None:
    spawn(one_of_two, (str(tmp_path),), 2)


def test_a_single_process_just_works() -> None:
    done: list[int] = []
    first_alone(lambda: done.append(1))
    assert done == [1]

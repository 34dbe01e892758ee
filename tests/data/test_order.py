"""The order of samples: permutations that depend on (seed, epoch), shared out alike to any number of processes."""

import tracemalloc
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from unlabeled.data.order import DEFAULT_BATCH_SIZE, GlobalOrder, batch_size_for, check_batch_size, plan_steps
from unlabeled.errors import UserError


def order(
    size: int = 50, batch: int = 8, steps: int = 18, seed: int = 0, rank: int = 0, of: int = 1, start: int = 0
) -> GlobalOrder:
    return GlobalOrder(size, batch, steps, seed, rank, of, next_step=lambda: start)


def test_each_epoch_shows_no_image_twice_and_leaves_out_fewer_than_a_batch() -> None:
    batches = list(order())  # three epochs of six batches
    for epoch in range(3):
        seen = [position for batch in batches[6 * epoch : 6 * epoch + 6] for position in batch]
        assert len(set(seen)) == len(seen) == 48
        assert set(seen) <= set(range(50))


def test_an_epoch_of_whole_batches_shows_every_image_once() -> None:
    seen = [position for batch in order(size=48, steps=6) for position in batch]
    assert sorted(seen) == list(range(48))


def test_every_image_is_shown_as_often_as_any_other_in_the_long_run() -> None:
    counts = torch.bincount(torch.tensor(list(order(size=10, batch=4, steps=4000))).flatten(), minlength=10)
    assert int(counts.sum()) == 16_000
    # an image is left out of an epoch of two batches with probability 2/10: five standard errors of 2,000 epochs
    assert float((counts - 1600).abs().max()) < 5 * (2000 * 0.2 * 0.8) ** 0.5


def test_epochs_and_seeds_differ_and_the_same_ones_are_equal() -> None:
    one = order()
    assert one.epoch(0).shape == (6, 1, 8)
    assert torch.equal(one.epoch(1), order().epoch(1))
    assert not torch.equal(one.epoch(0), one.epoch(1))
    assert not torch.equal(one.epoch(1), order(seed=1).epoch(0))  # seed and epoch are not simply added
    assert not torch.equal(one.epoch(0), order(seed=1).epoch(0))


def test_the_global_random_state_is_neither_read_nor_moved() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before, first = torch.get_rng_state(), list(order())
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(5)
        assert list(order()) == first


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_in_order_of_rank_see_the_batch_of_one_process(processes: int) -> None:
    parts = [list(order(rank=rank, of=processes)) for rank in range(processes)]
    joined = [[position for share in shares for position in share] for shares in zip(*parts, strict=True)]
    assert joined == list(order())
    assert {len(batch) for part in parts for batch in part} == {8 // processes}


@pytest.mark.parametrize("start", [0, 1, 5, 6, 7, 17, 18])
@pytest.mark.parametrize("processes", [1, 2])
def test_going_on_in_the_middle_gives_exactly_the_batches_that_remain(start: int, processes: int) -> None:
    rank = processes - 1
    whole = list(order(rank=rank, of=processes))
    assert list(order(rank=rank, of=processes, start=start)) == whole[start:]


@pytest.mark.parametrize("steps", [1, 5, 6, 7, 13, 18])
def test_a_run_has_as_many_batches_as_steps_whether_or_not_they_fill_an_epoch(steps: int) -> None:
    assert len(order(steps=steps)) == steps
    assert list(order(steps=steps)) == list(order())[:steps]


def test_the_next_step_is_asked_at_each_iteration_and_not_before() -> None:
    now = [0]
    asked = GlobalOrder(50, 8, 18, 0, 0, 1, next_step=lambda: now[0])
    whole = list(asked)
    now[0] = 10
    assert list(asked) == whole[10:]


@pytest.mark.parametrize(
    ("epochs", "steps", "per_epoch", "planned"),
    [(3, None, 6, 18), (None, 7, 6, 7), (3, 7, 6, 7), (1, 100, 6, 6), (1, 1, 1, 1)],
)
def test_whichever_limit_comes_first_ends_the_run(
    epochs: int | None, steps: int | None, per_epoch: int, planned: int
) -> None:
    assert plan_steps(epochs, steps, per_epoch) == planned


@pytest.mark.parametrize(("epochs", "steps"), [(None, None), (0, None), (None, 0), (-1, 5), (3, -2)])
def test_a_run_without_a_limit_or_without_a_step_is_refused_by_its_keys(epochs: int | None, steps: int | None) -> None:
    with pytest.raises(UserError, match=rf"^max_epochs={epochs} and max_steps={steps}: one of them must be at least 1"):
        plan_steps(epochs, steps, 6)


@pytest.mark.parametrize(("batch", "of", "reason"), [(0, 1, "between 1 and the 50"), (51, 1, "between 1 and the 50")])
def test_a_batch_that_cannot_be_drawn_is_refused(batch: int, of: int, reason: str) -> None:
    with pytest.raises(UserError, match=rf"^batch_size={batch}: it must lie {reason} training images$"):
        check_batch_size(batch, 50, of)
    with pytest.raises(UserError, match=rf"^batch_size={batch}"):
        order(batch=batch)


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(UserError, match=r"^batch_size=9 is global and must be a multiple of the 2 processes$"):
        check_batch_size(9, 50, 2)
    check_batch_size(50, 50, 2)


@pytest.mark.parametrize(("images", "expected"), [(20, 16), (1, 1), (255, 128), (256, 256), (100_000, 256)])
def test_the_default_batch_size_shrinks_to_a_power_of_two_of_few_images(images: int, expected: int) -> None:
    assert batch_size_for(DEFAULT_BATCH_SIZE, images) == expected


def test_a_batch_size_that_was_chosen_is_never_another() -> None:
    assert batch_size_for(64, 20) == 64
    assert OmegaConf.load(Path(__file__).parents[2] / "conf" / "train.yaml").batch_size == DEFAULT_BATCH_SIZE


def test_an_epoch_is_never_held_as_python_integers() -> None:
    """They would take 55 bytes an image: 11 MB here, 55 GB for a billion images."""
    order = GlobalOrder(200_000, 10, 20_000, 0, 0, 1, lambda: 0)
    tracemalloc.start()
    assert len(next(iter(order))) == 10
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000

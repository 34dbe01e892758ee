"""Masks of blocks against the official generators' loops: the distributions of 20,000 draws."""

import math
import random

import numpy as np
import pytest
import torch
from numpy.random import Generator
from torch import Tensor

from unlabeled import distributed
from unlabeled.errors import UserError
from unlabeled.objective import Progress
from unlabeled.objectives.parts.masks import Masks, block_masks, of_this_process, ratios_at_random, ratios_in_steps

DRAWS, LITERAL = 20_000, 3_000
# wanted, grid, least, most: iBOT at a ratio of 0.3, DINOv2 at one of 0.4, data2vec
RULES = {
    "ibot": (58.8, 14, 16, math.inf),
    "dinov2": (78, 14, 4, 98),
    "data2vec": (75, 14, 16, 196),
    "8": (20, 8, 4, 32),
}


def literal_mask(wanted: float, grid: int, least: float, most: float, rng: random.Random) -> list[list[bool]]:
    """beit/masking_generator.py, MaskingGenerator.__call__ and _mask."""
    mask, count = [[False] * grid for _ in range(grid)], 0
    while count < wanted:
        room, delta = min(wanted - count, most), 0
        for _ in range(10):
            area = rng.uniform(least, room)
            aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if w < grid and h < grid:
                top, left = rng.randint(0, grid - h), rng.randint(0, grid - w)
                new = [(i, j) for i in range(top, top + h) for j in range(left, left + w) if not mask[i][j]]
                if 0 < len(new) <= room:
                    for i, j in new:
                        mask[i][j] = True
                    delta = len(new)
                    break
        if delta == 0:
            break
        count += delta
    return mask


def generator(seed: int = 0) -> Generator:
    return np.random.default_rng(seed)


def assert_same_mean(ours: Tensor, theirs: Tensor) -> None:
    """[n, quantities] each: means are equal within 4.5 standard errors."""
    error = (ours.var(0) / len(ours) + theirs.var(0) / len(theirs)).sqrt() + 1e-12
    assert float(((ours.mean(0) - theirs.mean(0)).abs() / error).max()) < 4.5


@pytest.mark.parametrize("rule", RULES)
def test_counts_places_and_shapes_are_distributed_as_by_the_official_loops(rule: str) -> None:
    wanted, grid, least, most = RULES[rule]
    rng = random.Random(0)
    theirs = torch.tensor([literal_mask(wanted, grid, least, most, rng) for _ in range(LITERAL)]).double()
    drawn = block_masks(np.full(DRAWS, wanted), grid, least, most, generator())
    ours = torch.from_numpy(drawn).reshape(DRAWS, grid, grid).double()
    counts = [masks.sum((1, 2)) for masks in (ours, theirs)]
    assert float(counts[0].max()) <= wanted
    levels = torch.arange(wanted - 30, wanted + 1)
    assert_same_mean(*((each[:, None] <= levels).double() for each in counts))  # cumulative histogram
    assert_same_mean(ours.flatten(1), theirs.flatten(1))  # the share of each place
    for neighbour in (ours[:, 1:] * ours[:, :-1], ours[:, :, 1:] * ours[:, :, :-1], ours[:, 3:] * ours[:, :-3]):
        assert float(neighbour.mean()) > 1.1 * float(ours.mean()) ** 2  # blocks, not single patches
    pairs = [
        torch.stack([(each[:, n:] * each[:, :-n]).sum((1, 2)) for n in (1, 2, 3, 5)], 1) for each in (ours, theirs)
    ]
    assert_same_mean(*pairs)  # lengths of blocks
    edges = [(each[:, :, 1:] - each[:, :, :-1]).abs().sum((1, 2))[:, None] for each in (ours, theirs)]
    assert_same_mean(*edges)


def test_an_exact_number_is_reached_in_every_mask_and_the_blocks_stay() -> None:
    wanted = np.array([75, 0, 20, 196, 1] * 200)
    plain = block_masks(wanted, 14, 16, 196, generator())
    exact = block_masks(wanted, 14, 16, 196, generator(), exact=True)
    assert exact.sum(1).tolist() == wanted.tolist()
    assert (exact >= plain).all()
    assert (plain.sum(1) < wanted).any()
    assert plain[1::5].sum() == 0


def test_half_of_ibots_ratios_are_0_and_the_others_uniform() -> None:
    ratios = ratios_at_random(DRAWS, 0.5, 0.1, 0.5, generator())
    drawn = ratios[ratios > 0]
    assert abs(len(drawn) / DRAWS - 0.5) < 4 * 0.5 / math.sqrt(DRAWS)
    histogram = np.histogram(drawn, 8, (0.1, 0.5))[0] / len(drawn)
    assert np.abs(histogram - 1 / 8).max() < 4.5 * math.sqrt(1 / 8 * 7 / 8 / len(drawn))


def test_dinov2s_ratios_are_one_in_each_step_for_exactly_half_of_the_crops_in_random_order() -> None:
    ratios = ratios_in_steps(41, 0.5, 0.1, 0.5, generator())
    masked = ratios[ratios > 0]
    assert (len(ratios), len(masked)) == (41, 20)
    assert np.floor((np.sort(masked) - 0.1) / 0.4 * 20).tolist() == list(range(20))
    places = np.stack([ratios_in_steps(4, 0.5, 0.1, 0.5, generator(seed)) > 0 for seed in range(2000)])
    assert np.abs(places.mean(0) - 0.5).max() < 4 * 0.5 / math.sqrt(2000)
    assert ratios_in_steps(3, 0.0, 0.1, 0.5, generator()).tolist() == [0, 0, 0]


def test_the_masks_of_1_2_and_4_processes_are_the_same_and_those_of_two_steps_differ(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def draw(count: int, drawn_by: Generator) -> Masks:
        return block_masks(36 * ratios_at_random(count, 0.5, 0.1, 0.5, drawn_by), 6, 4, math.inf, drawn_by)

    found = {}
    for processes in (1, 2, 4):
        monkeypatch.setattr(distributed, "world_size", lambda processes=processes: processes)
        parts = []
        for rank in range(processes):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            parts.append(of_this_process(Progress(3, 10, 5, 7), 2, 8 // processes, draw))
        found[processes] = np.concatenate(parts, 1)
    assert found[1].shape == (2, 8, 36)
    assert np.array_equal(found[1], found[2])
    assert np.array_equal(found[1], found[4])
    monkeypatch.undo()
    for other in (Progress(4, 10, 5, 7), Progress(3, 10, 5, 8)):
        assert not np.array_equal(of_this_process(other, 2, 8, draw), found[1])
    assert not np.array_equal(found[1][0], found[1][1])


def test_a_block_without_area_is_refused() -> None:
    with pytest.raises(UserError, match=r"^block_masks: smallest=0 must be above 0"):
        block_masks(np.ones(2), 4, 0, math.inf, generator())

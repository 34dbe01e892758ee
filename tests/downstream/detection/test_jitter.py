"""The objects follow their image through flips, sizes and crops."""

import pytest
import torch
from torch import Tensor

from unlabeled.downstream.detection.annotated.jitter import Jitter, boxes_of, fitted, flipped, resized, what_is_left

MEAN = (0.25, 0.5, 0.75)


def scene(height: int, width: int, *boxes: tuple[int, int, int, int]) -> tuple[Tensor, dict[str, Tensor]]:
    """A black image in which each object is white, with its mask."""
    image, masks = torch.zeros(3, height, width), torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for row, (left, top, right, bottom) in enumerate(boxes):
        image[:, top:bottom, left:right] = 1
        masks[row, top:bottom, left:right] = 1
    labels = torch.arange(1, len(boxes) + 1)
    return image, {"boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4), "labels": labels, "masks": masks}


def test_a_flip_mirrors_boxes_and_masks() -> None:
    image, target = flipped(scene(8, 10, (1, 2, 4, 7)))
    assert target["boxes"].tolist() == [[6, 2, 9, 7]]
    assert torch.equal(target["masks"][0].bool(), image[0] > 0.5)
    assert torch.equal(boxes_of(target["masks"]), target["boxes"])


def test_the_shorter_side_has_the_size_that_is_asked_for_unless_the_longer_one_would_be_too_long() -> None:
    assert fitted(torch.zeros(3, 480, 640), 800, 1333) == (800, 1067)
    assert fitted(torch.zeros(3, 300, 900), 800, 1333) == (444, 1333)
    image, target = resized(scene(20, 40, (10, 5, 30, 15)), 40, 80)
    assert image.shape == (3, 40, 80)
    assert target["boxes"].tolist() == [[20, 10, 60, 30]]
    assert target["masks"].shape == (1, 40, 80)
    assert int(target["masks"].sum()) == 40 * 20


def test_boxes_without_masks_are_scaled_and_clipped_and_what_is_outside_is_left_out() -> None:
    boxes = torch.tensor([[-5.0, 2, 5, 30], [12, 0, 15, 3], [0, -8, 3, 0]])
    left = what_is_left({"boxes": boxes, "labels": torch.tensor([1, 2, 3])}, 20, 10)
    assert left["boxes"].tolist() == [[0, 2, 5, 20]]
    assert left["labels"].tolist() == [1]


@pytest.mark.parametrize("seed", range(6))
def test_in_large_scale_jitter_objects_stay_where_they_are_in_the_picture(seed: int) -> None:
    jitter = Jitter(64, (0.1, 2.0), (), 0, flip=True, fill=MEAN)
    generator = torch.Generator().manual_seed(seed)
    image, target = jitter(scene(40, 60, (6, 4, 24, 22), (30, 10, 54, 36)), generator)
    assert image.shape == (3, 64, 64)
    assert target["masks"].shape[1:] == (64, 64)
    drawn = target["masks"].bool().any(0)
    beyond = (image - torch.tensor(MEAN)[:, None, None]).abs().amax(0) < 1e-6
    assert bool((image[0][drawn & ~beyond] > 0.3).float().mean() > 0.9)
    assert bool((image[0][~drawn & ~beyond] < 0.7).float().mean() > 0.9)
    assert not (drawn & beyond).any()
    assert torch.equal(boxes_of(target["masks"]), target["boxes"])


def test_the_scale_is_uniform_and_the_whole_image_is_fitted_into_it() -> None:
    jitter = Jitter(64, (0.1, 1.0), (), 0, flip=False, fill=MEAN)
    sizes = []
    for seed in range(200):
        image, _ = jitter(scene(32, 64), torch.Generator().manual_seed(seed))
        seen = (image - torch.tensor(MEAN)[:, None, None]).abs().amax(0) > 1e-3
        rows, columns = int(seen.any(1).sum()), int(seen.any(0).sum())
        assert abs(columns - 2 * rows) <= 1
        sizes.append(columns / 64)
    assert min(sizes) >= 0.09
    assert sum(sizes) / len(sizes) == pytest.approx(0.55, abs=0.06)


def test_one_of_the_shorter_sizes_is_drawn_and_the_same_seed_draws_the_same() -> None:
    jitter = Jitter(0, None, (16, 24, 32), 100, flip=True, fill=MEAN)
    seen = {jitter(scene(8, 12), torch.Generator().manual_seed(seed))[0].shape[1] for seed in range(30)}
    assert seen == {16, 24, 32}
    one, two = (jitter(scene(8, 12, (1, 2, 4, 7)), torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1]["boxes"], two[1]["boxes"])


def test_an_image_without_objects_stays_one() -> None:
    for jitter in (Jitter(16, (0.5, 2.0), (), 0, True, MEAN), Jitter(0, None, (8,), 99, True, MEAN)):
        _, target = jitter(scene(10, 12), torch.Generator().manual_seed(0))
        assert target["boxes"].shape == (0, 4)
        assert target["masks"].shape[0] == 0

"""Label maps, crops, windows and metrics against loops; what a linear head learns; neighbours and the foreground."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score, jaccard_score
from torch.nn import functional as F

from tests.downstream.shapes import scene, write_shapes
from unlabeled.commands.evaluate.segment import _images
from unlabeled.downstream.segmentation.confusion import Confusion
from unlabeled.downstream.segmentation.crops import random_crop, shorter_side, slide, windows
from unlabeled.downstream.segmentation.label_maps import IGNORED, count_classes, read_splits
from unlabeled.downstream.segmentation.patches import PatchNeighbours, _bank, foreground, patch_labels
from unlabeled.downstream.segmentation.training import (
    Learner,
    SegmentationRecipe,
    measure,
    pixel_loss,
    train_segmenter,
)
from unlabeled.errors import UserError


def test_the_mean_iou_is_that_of_a_loop_over_classes_and_of_scikit_learn() -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 4, (3, 9, 7), generator=draw)
    predictions = torch.randint(4, (3, 9, 7), generator=draw)
    found = Confusion(5)  # the last class is nowhere
    for row in range(3):
        found.add(predictions[row], labels[row])
    seen = labels != IGNORED
    ious, accuracies = [], []
    for each in range(4):
        true, said = (labels == each) & seen, (predictions == each) & seen
        ious.append(float((true & said).sum() / (true | said).sum()))
        accuracies.append(float((true & said).sum() / true.sum()))
    assert found.mean_iou == pytest.approx(100 * np.mean(ious))
    assert found.mean_accuracy == pytest.approx(100 * np.mean(accuracies))
    assert found.mean_iou == pytest.approx(100 * jaccard_score(labels[seen], predictions[seen], average="macro"))
    assert found.mean_accuracy == pytest.approx(100 * balanced_accuracy_score(labels[seen], predictions[seen]))
    assert found.pixel_accuracy == pytest.approx(100 * accuracy_score(labels[seen], predictions[seen]))
    assert repr(found).startswith(f"mIoU {found.mean_iou:.2f} %, pixel accuracy {found.pixel_accuracy:.2f} %")
    assert bool(found.iou[4].isnan())


def test_own_folders_ade20k_and_voc_are_read_with_their_numbers_of_no_class(tmp_path: Path) -> None:
    numbers = np.array([[0, 1, 2], [255, 1, 0]], np.uint8)
    layouts = {
        "own": ("train/images", "train/masks", "val/images", "val/masks"),
        "ade": ("images/training", "annotations/training", "images/validation", "annotations/validation"),
        "voc": ("JPEGImages", "SegmentationClass", "JPEGImages", "SegmentationClass"),
    }
    for name, folders in layouts.items():
        for place, part in enumerate(folders):
            (tmp_path / name / part).mkdir(parents=True, exist_ok=True)
            file = tmp_path / name / part / f"{place // 2}.png"
            if place % 2:
                picture = Image.fromarray(numbers, "P" if name == "voc" else "L")
                if name == "voc":
                    picture.putpalette([9, 9, 9] * 256)  # colours do not count
                picture.save(file)
            else:
                Image.new("RGB", (3, 2)).save(file)
    lists = tmp_path / "voc" / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n")
    (lists / "val.txt").write_text("1\n")
    for name in layouts:
        train, test, _ = read_splits(tmp_path / name, 255, None)
        assert len(train) == len(test) == 1
        wanted = [[-1, 0, 1], [-1, 0, -1]] if name == "ade" else [[0, 1, 2], [-1, 1, 0]]
        assert train.labels(0).tolist() == wanted, name
        assert count_classes(train) == (2 if name == "ade" else 3)
    (tmp_path / "own" / "train" / "images" / "more.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1 of 2 images have no image or no label map: more; add a .png"):
        read_splits(tmp_path / "own", 255, None)
    with pytest.raises(UserError, match=r"holds no images with label maps that are known here"):
        read_splits(tmp_path / "ade" / "images", 255, None)
    Image.new("L", (5, 5)).save(tmp_path / "own" / "train" / "masks" / "more.png")
    train, _, _ = read_splits(tmp_path / "own", 255, None)
    with pytest.raises(UserError, match=r"more.png: cannot be decoded"):
        train.pair(1)
    Image.new("RGB", (3, 2)).save(tmp_path / "own" / "train" / "images" / "more.png")
    with pytest.raises(UserError, match=r"masks/more.png: has 5 × 5 pixels, its image 3 × 2"):
        train.pair(1)


def test_a_missing_split_is_told_by_its_name(tmp_path: Path) -> None:
    folder = write_shapes(tmp_path / "shapes", 1, 1, 16)
    (folder / "test").rename(folder / "kept")
    with pytest.raises(UserError, match=r"images to train on and none to test: put some into test/images"):
        read_splits(folder, 255, None)
    (folder / "train").rename(folder / "val")
    with pytest.raises(UserError, match=r"images to test, in val/images, and none to train on: .*train/images"):
        read_splits(folder, 255, None)
    (tmp_path / "ade/annotations/training").mkdir(parents=True)
    (tmp_path / "ade/images/training").mkdir(parents=True)
    Image.new("L", (2, 2)).save(tmp_path / "ade/annotations/training/a.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "ade/images/training/a.png")
    with pytest.raises(UserError, match=r"images/validation: no such folder"):
        read_splits(tmp_path / "ade", 255, None)


def test_each_test_image_is_predicted_once_and_the_first_ones_are_kept(tmp_path: Path) -> None:
    _, test, _ = read_splits(write_shapes(tmp_path, 1, 3, 16), 255, None)
    recipe = SegmentationRecipe(1, 1, 1e-3, 0.0, 0, (1.0, 1.0), 16, 16, 0)
    calls = []

    def logits(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return torch.cat([images[:, :2], torch.full_like(images[:, :2], -1)], 1)

    found, kept = measure(logits, test, lambda image: image.float() / 255, 4, recipe, torch.device("cpu"), shown=2)
    assert calls == [1, 1, 1]
    assert [tuple(each.shape) for each in kept] == [(16, 16)] * 2
    assert torch.equal(kept[0], (test.image(0)[1] > test.image(0)[0]).long())
    assert int(found.counts.sum()) == 3 * 16 * 16


def test_windows_cover_every_pixel_and_a_mean_of_constant_logits_is_their_softmax() -> None:
    assert list(windows(10, 7, 4, 3)) == [(top, left) for top in (0, 3, 6) for left in (0, 3)]
    assert list(windows(4, 4, 4, 3)) == [(0, 0)]
    logits = torch.tensor([0.0, 1.0, 3.0])
    made = slide(lambda part: logits[None, :, None, None].expand(1, 3, 4, 4), torch.zeros(3, 10, 7), 3, 4, 3)
    assert torch.allclose(made, logits.softmax(0)[:, None, None].expand(3, 10, 7))


def test_a_crop_keeps_pixels_and_labels_together_and_pads_with_no_class() -> None:
    labels = torch.arange(12)[:, None].expand(12, 12).contiguous() // 4
    image = labels.float().expand(3, 12, 12).contiguous()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        seen, numbers = random_crop((image, labels), 12, (0.5, 2.0), generator)
        assert seen.shape == (3, 12, 12)
        known = numbers != IGNORED
        assert float((seen[0] - numbers)[known].abs().mean()) < 0.25  # bilinear at the borders of the classes
        assert float(seen[0][~known].abs().sum()) == 0
    assert shorter_side(torch.zeros(3, 10, 20), 5).shape == (3, 5, 10)


def test_the_rate_rises_from_a_millionth_and_falls_along_a_cosine_to_nothing() -> None:
    recipe = SegmentationRecipe(100, 2, 1e-3, 1e-3, 20, (0.5, 2.0), 16, 8, 0)
    assert recipe.rate(0) == pytest.approx(1e-9)
    assert recipe.rate(10) == pytest.approx(0.5e-3, rel=1e-5)
    assert recipe.rate(20) == pytest.approx(1e-3)
    assert recipe.rate(60) == pytest.approx(0.5e-3)
    assert recipe.rate(99) < 1e-6


def test_pixels_without_a_class_have_no_part_in_the_loss() -> None:
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(-1, 3, (2, 4, 4), generator=torch.Generator().manual_seed(1))
    terms = [
        -float(logits[n, :, y, x].log_softmax(0)[labels[n, y, x]])
        for n in range(2)
        for y in range(4)
        for x in range(4)
        if labels[n, y, x] != IGNORED
    ]
    assert float(pixel_loss(logits, labels)) == pytest.approx(np.mean(terms), rel=1e-5)
    assert float(pixel_loss(logits, torch.full_like(labels, IGNORED))) == 0


def test_labels_of_patches_are_shares_of_their_pixels_and_the_nearest_patch_gives_its_own() -> None:
    labels = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1], [2, 2, -1, -1], [2, 2, -1, -1]])
    shares = patch_labels(labels, 2, 2, 3)
    assert shares.tolist() == [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    bank = torch.eye(4)
    dense = torch.eye(4).T.reshape(4, 2, 2)
    found = PatchNeighbours(bank, shares, k=1)(dense)
    assert torch.allclose(found.flatten(1).T, shares)
    both = PatchNeighbours(bank, shares, k=2, temperature=1.0)(torch.tensor([1.0, 1.0, 0, 0])[:, None, None])
    assert torch.allclose(both.flatten(), (shares[0] + shares[1]) / 2)


def test_the_first_component_parts_shapes_from_the_background_whatever_its_sign() -> None:
    maps = torch.zeros(2, 3, 6, 6) + 0.01 * torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    maps[:, 1, 2:4, 2:4] += 1.0
    for sign in (1, -1):
        score = foreground(sign * maps)
        assert bool((score[:, 2:4, 2:4] > 0).all())
        assert bool((score[:, [0, -1]] < 0).all())


def test_shapes_are_what_their_label_maps_say(tmp_path: Path) -> None:
    image, labels, shapes = scene(3)
    assert image.size == labels.size == (64, 64)
    assert set(np.unique(np.asarray(labels))) <= {0, *(kind for kind, _ in shapes)}
    train, test, names = read_splits(write_shapes(tmp_path, 2, 1), 255, None)
    assert (len(train), len(test), names) == (2, 1, ["background", "disc", "square", "triangle"])


def maps_of(folder: Path, *masks: np.ndarray) -> Path:
    """Two images to train on and two to test on, with these label maps."""
    for split in ("train", "test"):
        for part in ("images", "masks"):
            (folder / split / part).mkdir(parents=True, exist_ok=True)
        for number, mask in enumerate(masks):
            Image.new("RGB", mask.shape[::-1], (40 * number, 9, 9)).save(folder / split / "images" / f"{number}.jpg")
            Image.fromarray(mask).save(folder / split / "masks" / f"{number}.png")
    return folder


def test_masks_that_leave_one_class_or_far_too_many_are_refused_with_what_to_do(tmp_path: Path) -> None:
    asked = {"ignore": 255, "zero_is_no_class": None}
    usual = np.zeros((4, 6), np.uint8)
    usual[1:3, 2:5] = 255
    with pytest.raises(UserError, match=r"the class 0 alone.*of masks with 0 and 255 make 0 and 1"):
        _images({"folder": str(maps_of(tmp_path / "usual", usual, usual)), **asked})
    with pytest.raises(UserError, match=r"0.png: has the class number 65535, and 4,096 classes are the most"):
        _images({"folder": str(maps_of(tmp_path / "deep", usual.astype(np.uint16) * 257)), **asked})
    two = maps_of(tmp_path / "two", usual // 255, usual // 255)
    for text in ("sky\ncell", "sky\r\ncell\r\n", "sky\ncell\n\n"):
        (two / "classes.txt").write_bytes(text.encode())
        assert _images({"folder": str(two), **asked})[2] == ["sky", "cell"]
    Image.new("RGB", (6, 4)).save(two / "train/images/0.png")
    with pytest.raises(UserError, match=r"holds 0.jpg and 0.png, which have one label map"):
        _images({"folder": str(two), **asked})


def test_the_bank_of_patches_has_those_that_are_drawn_of_all_and_keeps_no_others(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    train, _, _ = read_splits(maps_of(tmp_path, *draw.integers(0, 3, (3, 8, 8), np.uint8)), 255, None)

    def map_of(images: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(images, 2)

    def normalise(image: torch.Tensor) -> torch.Tensor:
        return image.float()

    pairs = [train.pair(row) for row in range(3)]
    whole = torch.cat([map_of(image[None].float())[0].flatten(1).T for image, _ in pairs])
    labels = torch.cat([patch_labels(truth, 4, 4, 3) for _, truth in pairs])
    for most in (1, 20, 48, 99):
        drawn = torch.randperm(48, generator=torch.Generator().manual_seed(5))[:most]
        bank, known = _bank(map_of, train, normalise, 8, 3, most, 5, torch.device("cpu"))
        assert torch.equal(bank, whole[drawn])
        assert torch.equal(known, labels[drawn])


def test_a_training_that_diverged_is_said_and_is_no_number(tmp_path: Path) -> None:
    train, _, _ = read_splits(maps_of(tmp_path, *np.eye(8, dtype=np.uint8)[None]), 255, None)
    recipe = SegmentationRecipe(4, 1, 1e30, 0.0, 0, (1.0, 1.0), 8, 8, 0)
    network = torch.nn.Conv2d(3, 2, 1)
    learner = Learner(network, torch.optim.SGD(network.parameters(), 1.0), lambda step: math.inf, 4)
    with pytest.raises(UserError, match=r"lr: the training diverged, its loss is (nan|inf) in step"):
        train_segmenter(learner, train, lambda image: image.float(), recipe, torch.device("cpu"), lambda *_: None)

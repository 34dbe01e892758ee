"""The torchvision data sets, read from tiny files in the official layout on disk."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from unlabeled.data.memory import ArraySource, decode_all
from unlabeled.data.source import Splits
from unlabeled.data.sources import torchvision as vision
from unlabeled.errors import UserError


@pytest.fixture
def no_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generated files cannot have the official md5."""
    for module in ("cifar", "stl10"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.check_integrity", lambda path, md5=None: Path(path).exists()
        )


def pixels(count: int, side: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), dtype=np.uint8)


def dump(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(content))


@pytest.mark.usefixtures("no_checksums")
def test_cifar10_is_read_batch_after_batch(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for seed, name in enumerate(names):
        dump(folder / name, {"data": pixels(2, 32, seed).reshape(2, -1), "labels": [seed, 9]})
    dump(folder / "batches.meta", {"label_names": [f"c{label}" for label in range(10)]})
    splits = vision.cifar10(str(tmp_path), download=False)
    assert splits.test is not None
    assert splits.train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert splits.test.labels.tolist() == [5, 9]
    assert splits.train.classes == [f"c{label}" for label in range(10)]
    expected = torch.from_numpy(np.concatenate([pixels(2, 32, seed) for seed in range(5)]))
    decoded = decode_all(splits.train, 1).images
    assert isinstance(decoded, torch.Tensor)
    assert torch.equal(decoded, expected)
    assert torch.equal(splits.test.decode(1), torch.from_numpy(pixels(2, 32, 5)[1]))
    assert splits.test.name(1) == "CIFAR-10 test image 1"
    assert vision.cifar10(str(tmp_path), False, image_size=16).train.decode(0).shape == (3, 16, 16)


@pytest.mark.usefixtures("no_checksums")
def test_cifar100_has_its_fine_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    for seed, name in enumerate(("train", "test")):
        content = {"data": pixels(3, 32, seed).reshape(3, -1), "fine_labels": [7, 99, seed], "coarse_labels": [1, 1, 1]}
        dump(folder / name, content)
    dump(folder / "meta", {"fine_label_names": [f"f{label}" for label in range(100)], "coarse_label_names": ["x"]})
    splits = vision.cifar100(str(tmp_path), download=False)
    assert splits.test is not None
    assert (splits.train.labels.tolist(), splits.test.labels.tolist()) == ([7, 99, 0], [7, 99, 1])
    assert len(splits.train.classes) == 100
    assert torch.equal(splits.train.decode(2), torch.from_numpy(pixels(3, 32, 0)[2]))


@pytest.mark.usefixtures("no_checksums")
def test_stl10_trains_on_labelled_then_unlabelled_images_turned_upright(tmp_path: Path) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    images = {name: pixels(count, 96, count) for name, count in (("train", 2), ("unlabeled", 3), ("test", 4))}
    for name, values in images.items():
        values.transpose(0, 1, 3, 2).tofile(folder / f"{name}_X.bin")  # the files are column-major
    np.array([1, 10], dtype=np.uint8).tofile(folder / "train_y.bin")  # and count classes from 1
    np.array([2, 3, 4, 5], dtype=np.uint8).tofile(folder / "test_y.bin")
    (folder / "class_names.txt").write_text("\n".join(f"s{label}" for label in range(10)))
    splits = vision.stl10(str(tmp_path), download=False)
    assert splits.test is not None
    assert splits.train.labels.tolist() == [0, 9, -1, -1, -1]
    assert splits.test.labels.tolist() == [1, 2, 3, 4]
    assert isinstance(splits.train, ArraySource)
    assert splits.train.images.is_contiguous()
    expected = torch.from_numpy(np.concatenate([images["train"], images["unlabeled"]]))
    assert torch.equal(splits.train.images, expected)
    assert splits.train.classes[9] == "s9"


@pytest.mark.parametrize("load", [vision.cifar10, vision.cifar100, vision.stl10])
def test_a_missing_root_names_the_path_and_both_ways_out(load: Callable[[str, bool], Splits], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(str(tmp_path / "nowhere"), False)
    message = str(caught.value)
    assert f"data.root={tmp_path}/nowhere" in message
    assert "data.download=true" in message
    assert "\n" not in message


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no\nnetwork")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(
        UserError, match=r"^CIFAR-10 could not be downloaded to data\.root=.*: no network; .*copy its data.root here"
    ):
        vision.cifar10(str(tmp_path), True)

"""A pack reads back as the data set that it was made of; a killed one goes on, and damage is noticed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import ENVIRONMENT, ROOT
from unlabeled.commands.arguments.data_path import with_data_source
from unlabeled.core.writing import Unwritable
from unlabeled.data.pack.images import Encoding, member_name
from unlabeled.data.pack.pack import Packed, check_pack, pack
from unlabeled.data.pack.shard import ShardRecord, write_shard
from unlabeled.data.source import Source, Splits
from unlabeled.data.sources.digits import digits
from unlabeled.data.sources.folder import folder
from unlabeled.data.sources.parquet import parquet
from unlabeled.data.sources.shards import shards
from unlabeled.errors import UserError

CIFAR = Path(os.environ.get("CIFAR10_PARQUET", ROOT.parent / "shared/data/cifar10"))
LOSS = 3.0  # mean levels of 255 that JPEG of quality 95 may cost: 4:2:0 halves the resolution of colours


def packed(splits: Splits, out: Path, encoding: Encoding = "png", shard_images: int = 16, workers: int = 0) -> Packed:
    return pack(splits, out, encoding, 95, shard_images, workers, lambda line: None)


def read(out: Path, size: int, **given: Any) -> Splits:
    return shards(str(out), train="train-*.tar", image_size=size, **given)


def differences(a: Source, b: Source, every: int = 1) -> list[float]:
    """Mean difference of each image, in levels."""
    assert len(a) == len(b)
    assert a.labels.tolist() == b.labels.tolist()
    found = []
    for index in range(0, len(a), every):
        one, other = a.decode(index), b.decode(index)
        assert one.shape == other.shape
        found.append(float((one.int() - other.int()).abs().float().mean()))
    return found


def photograph(seed: int, width: int, height: int) -> Image.Image:
    """Smooth structure of two scales and some noise."""
    generator, picture = np.random.default_rng(seed), np.zeros((height, width, 3))
    for cells, weight in ((4, 90), (16, 30)):
        noise = Image.fromarray(generator.integers(0, 256, (cells, cells, 3)).astype(np.uint8))
        picture += weight * (np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) / 127.5 - 1)
    return Image.fromarray((128 + picture).clip(0, 255).astype(np.uint8))


def write_images(place: Path, count: int, extension: str = "jpg", size: tuple[int, int] = (60, 45)) -> Path:
    for number in range(count):
        path = place / "train" / ("cat" if number % 3 else "dog") / f"{number:04}.a.{extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(number, *(size if number % 2 else size[::-1])).save(path)
    return place


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of 40 training and 6 test images, one of each damaged."""
    place = write_images(tmp_path_factory.mktemp("images"), 40)
    for number in range(6):
        path = place / "test" / ("cat" if number % 3 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(100 + number, 30, 30).save(path)
    (place / "train/cat/0001.a.jpg").write_bytes((place / "train/cat/0001.a.jpg").read_bytes()[:300])
    (place / "test/cat/1.png").write_bytes(b"no image")
    return place


@pytest.mark.skipif(not CIFAR.is_dir(), reason="needs CIFAR-10 as parquet, CIFAR10_PARQUET=…")
@pytest.mark.parametrize("encoding", ["png", "raw", "jpeg"])
def test_the_ten_thousand_test_images_of_cifar_read_back_equal_to_the_bit_or_within_a_bound(
    encoding: Encoding, tmp_path: Path
) -> None:
    splits = parquet(str(CIFAR), train="test.parquet", test=None)
    if encoding != "png":
        splits = replace(splits, train=Part(splits.train, 1000))
    made = packed(splits, tmp_path / "pack", encoding, 2500)
    again = read(tmp_path / "pack", 32).train
    assert made.images == len(again) == (10_000 if encoding == "png" else 1000)
    found = differences(splits.train, again)
    assert max(found) == 0 if encoding != "jpeg" else 0 < np.mean(found) < LOSS


class Part:
    """The first images of a source."""

    def __init__(self, source: Source, count: int) -> None:
        self._source, self._count = source, count
        self.classes, self.labels = source.classes, source.labels[:count]
        self.image_size, self.square = source.image_size, source.square

    def __len__(self) -> int:
        return self._count

    def decode(self, index: int) -> torch.Tensor:
        return self._source.decode(index)

    def name(self, index: int) -> str:
        return self._source.name(index)


def test_two_thousand_photographs_read_back_as_they_are_decoded(tmp_path: Path) -> None:
    splits = folder(str(write_images(tmp_path / "images", 2000)), image_size=48, test="none")
    made = packed(splits, tmp_path / "pack", "jpeg", 700, workers=2)
    again = read(tmp_path / "pack", 48).train
    assert (made.images, len(made.records)) == (2000, 3)
    assert max(differences(splits.train, again, every=7)) == 0  # within 48 × 96 pixels: stored as they are
    assert again.classes == splits.train.classes == ["cat", "dog"]
    one = splits.train.name(7).removeprefix(f"{tmp_path}/images/train/").removesuffix(".jpg")
    assert unquote(again.name(7)) == f"{tmp_path}/pack/train-000000.tar/000000007/{one}.jpg"


def test_photographs_that_are_resized_cost_the_loss_of_one_jpeg(tmp_path: Path) -> None:
    splits = folder(str(write_images(tmp_path / "images", 12, size=(300, 200))), image_size=64, test="none")
    packed(splits, tmp_path / "pack", "jpeg")
    found = differences(splits.train, read(tmp_path / "pack", 64).train)
    assert 0 < max(found) < LOSS


def test_splits_labels_names_and_corrupt_images_are_in_the_pack_and_its_report(images: Path, tmp_path: Path) -> None:
    made = packed(folder(str(images), image_size=32), tmp_path / "pack", "png")
    found, splits = read(tmp_path / "pack", 32, test="test-*.tar"), folder(str(images), image_size=32)
    assert found.test is not None
    assert (len(found.train), len(found.test)) == (39, 5)
    assert found.train.classes == ["cat", "dog"]
    kept = [row for row in range(40) if "0001.a" not in splits.train.name(row)]
    assert found.train.labels.tolist() == splits.train.labels[kept].tolist()
    assert all(torch.equal(found.train.decode(new), splits.train.decode(old)) for new, old in enumerate(kept))
    report = json.loads((tmp_path / "pack/pack.json").read_text())
    assert (report["images"], len(report["corrupt"]), made.written) == (44, 2, 4)
    assert "cat/0001.a.jpg: OSError: " in report["corrupt"][0]
    assert report["bytes"] == sum(path.stat().st_size for path in (tmp_path / "pack").glob("*.tar"))
    assert sorted(path.name for path in (tmp_path / "pack").iterdir()) == [
        "SHA256SUMS",
        "pack.json",
        "test-000000.tar",
        *(f"train-00000{number}.tar" for number in range(3)),
    ]


def test_what_lies_in_memory_and_has_no_labels_is_packed_too(tmp_path: Path) -> None:
    splits = digits()
    splits.train.labels = torch.full_like(splits.train.labels, -1)
    splits = replace(splits, test=None)
    packed(splits, tmp_path / "pack", "raw", 500)
    again = read(tmp_path / "pack", 8).train
    assert max(differences(splits.train, again)) == 0
    assert again.classes == []


def test_any_name_is_a_key_of_its_own() -> None:
    assert member_name("a/b.c.jpg", 7, "png") == "000000007/a/b%2Ec.png"
    assert member_name("train.parquet row 3", 3, "jpeg") == "000000003/train%2Eparquet row 3.jpg"
    assert member_name(".jpg", 0, "raw") == "000000000/%2Ejpg.ppm"
    assert len({member_name(name, row, "jpeg") for row, name in enumerate(["x.jpg", "x.png", "x"])}) == 3


def test_names_of_any_length_and_letters_are_read_back(tmp_path: Path) -> None:
    long = tmp_path / "images" / ("k" * 120) / ("ä" * 90 + ".png")
    long.parent.mkdir(parents=True)
    photograph(0, 8, 8).save(long)
    photograph(1, 8, 8).save(long.parent / "y.png")
    packed(folder(str(tmp_path / "images"), image_size=8, labels="none", test="none"), tmp_path / "pack")
    again = read(tmp_path / "pack", 8).train
    assert {again.name(row).rpartition("/")[2] for row in range(2)} == {"ä" * 90 + ".png", "y.png"}


COMMAND = [sys.executable, "-m", "unlabeled.data.pack", "encoding=png", "shard_images=4", "num_workers=2"]


def start(images: Path, out: Path) -> "subprocess.Popen[str]":
    keys = ["data=folder", f"data.path={images}", "image_size=32", f"out={out}"]
    return subprocess.Popen(
        [*COMMAND, *keys],
        env=os.environ | ENVIRONMENT,
        cwd=ROOT,
        stdout=-1,
        stderr=-2,
        text=True,
        start_new_session=True,
    )


def test_a_pack_that_is_killed_goes_on_and_has_the_bytes_of_one_that_was_not(tmp_path: Path) -> None:
    images, out = write_images(tmp_path / "images", 400, size=(120, 90)), tmp_path / "pack"
    process, deadline = start(images, out), time.monotonic() + 120
    while len([*out.glob("records/*.json")]) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {
        path.name: path.stat().st_mtime_ns for path in out.glob("*.tar") if (out / f"records/{path.name}.json").exists()
    }
    assert 3 <= len(kept) < 100
    assert not (out / "pack.json").exists()
    process = start(images, out)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert "400 images in 100 shards" in said
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    packed(folder(str(images), image_size=32), tmp_path / "whole", "png", 4)
    assert (tmp_path / "whole/SHA256SUMS").read_text() == (out / "SHA256SUMS").read_text()


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:700] + b"x" + data[701:], None])
def test_a_damaged_shard_is_noticed_by_its_checksum_and_written_again(
    damage: Callable[[bytes], bytes] | None, images: Path, tmp_path: Path
) -> None:
    splits, out = folder(str(images), image_size=32), tmp_path / "pack"
    packed(splits, out)
    whole, place = (out / "SHA256SUMS").read_text(), out / "train-000001.tar"
    assert check_pack(out) == (4, [])
    if damage is None:
        place.unlink()
    else:
        place.write_bytes(damage(place.read_bytes()))
    assert check_pack(out) == (4, ["train-000001.tar"])
    made = packed(splits, out)
    assert (made.written, made.damaged) == (1, ["train-000001.tar"])
    assert check_pack(out) == (4, [])
    assert (out / "SHA256SUMS").read_text() == whole
    assert packed(splits, out).written == 0


def test_the_command_says_which_shards_are_damaged_in_one_line(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from unlabeled.commands.setup.pack import pack_data

    packed(folder(str(images), image_size=32), tmp_path / "pack")
    keys: dict[str, Any] = {"out": str(tmp_path / "pack"), "check": True}
    pack_data({}, keys)
    assert capsys.readouterr().out == f"{tmp_path}/pack: 4 shards, all match their checksums\n"
    (tmp_path / "pack/test-000000.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of 4 shards do not match their checksums \(test-000000\.tar\); the"):
        pack_data({}, keys)


def test_other_settings_other_images_and_foreign_folders_are_one_line(images: Path, tmp_path: Path) -> None:
    splits, out = folder(str(images), image_size=32), tmp_path / "pack"
    packed(splits, out)
    with pytest.raises(UserError, match=r"holds a pack with another encoding \(png\), quality \(None\); give another"):
        packed(splits, out, "jpeg")
    with pytest.raises(UserError, match=r"holds a pack with another image_size \(32\), images; "):
        packed(folder(str(images), image_size=16), out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/train-000000.tar").touch()
    with pytest.raises(UserError, match=r"there are tar files in it that no pack wrote"):
        packed(splits, tmp_path / "other")
    with pytest.raises(UserError, match=r"data\.channels=4: a pack holds images of 3 channels"):
        packed(folder(str(images), image_size=32, channels=4), tmp_path / "four")
    with pytest.raises(UserError, match=r"there is no pack\.json in it"):
        check_pack(tmp_path / "none")


def test_a_disk_that_is_full_is_one_line_and_what_was_written_stays(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unlabeled.data.pack import pack as module

    write = write_shard

    def full(plan: Any, *rest: Any) -> ShardRecord:
        if plan.name == "train-000002.tar":
            raise Unwritable(f"{plan.name}: cannot be written (No space left on device)")
        return write(plan, *rest)

    splits, out = folder(str(images), image_size=32), tmp_path / "pack"
    monkeypatch.setattr(module, "write_shard", full)
    with pytest.raises(Unwritable, match=r"No space left on device\); the same command goes on from 2 of 4 shards$"):
        packed(splits, out)
    monkeypatch.setattr(module, "write_shard", write)
    assert packed(splits, out).written == 2


def test_images_that_cannot_be_decoded_at_all_are_one_line(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "x.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"^none of the images can be decoded \(.*a/x\.png: not an image"):
        packed(folder(str(tmp_path / "images"), image_size=32, test="none"), tmp_path / "pack")


def test_a_folder_of_a_pack_is_enough_for_a_training_with_its_test_split(images: Path, tmp_path: Path) -> None:
    packed(folder(str(images), image_size=32), tmp_path / "pack")
    whole = ["data=shards", f"data.path={tmp_path}/pack", "data.test=test-*.tar"]
    assert with_data_source([f"data={tmp_path}/pack"]) == whole
    assert with_data_source([f"data={tmp_path}/pack", "data.test=null"]) == [*whole[:2], "data.test=null"]


def test_a_pack_without_loss_gives_the_pixels_of_the_run_that_decodes(images: Path, tmp_path: Path) -> None:
    splits = folder(str(images), image_size=32)
    packed(splits, tmp_path / "raw", "raw")
    packed(splits, tmp_path / "png", "png")
    a, b = (read(tmp_path / each, 32).train for each in ("raw", "png"))
    assert max(differences(a, b)) == 0


def test_two_sets_of_one_length_that_have_no_files_are_told_apart(tmp_path: Path) -> None:
    packed(replace(digits(), test=None), tmp_path / "pack", "raw", 500)
    other = replace(digits(), test=None)
    other.train.labels = other.train.labels.flip(0)
    with pytest.raises(UserError, match=r"holds a pack with another images"):
        packed(other, tmp_path / "pack", "raw", 500)

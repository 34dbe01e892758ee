"""Kept features: found again bit for bit, never after anything has changed that decides them, never damaged."""

import importlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from unlabeled.backbones.resnet import ResNet
from unlabeled.backbones.vit import ViT
from unlabeled.data.fingerprint import fingerprint
from unlabeled.data.module import DataModule
from unlabeled.data.source import Splits
from unlabeled.data.sources.digits import digits
from unlabeled.data.sources.folder import folder
from unlabeled.data.sources.parquet import parquet
from unlabeled.errors import UserError
from unlabeled.evaluation.cache import TensorCache
from unlabeled.evaluation.extractor import Extractor, network_key
from unlabeled.evaluation.features import PixelNetwork
from unlabeled.views.pipeline import Views


def views(**changed: Any) -> Views:
    settings: dict[str, Any] = {"mean": None, "std": None, "evaluation_crop": 1.0}
    return Views(8, [], **(settings | {"evaluation_interpolation": "bilinear"} | changed))


def extractor(place: Path, splits: Splits | None = None, **changed: Any) -> Extractor:
    data = DataModule(splits or digits(), 64, 0, 8, 0)
    cache = TensorCache(str(place), 1)
    settings: dict[str, Any] = {"views": views(), "device": torch.device("cpu"), "precision": "32-true"}
    return Extractor(data, batch_size=100, cache=cache, **(settings | changed))


def network(seed: int = 0, stem: Any = "cifar") -> ResNet:
    torch.manual_seed(seed)
    return ResNet(10, 0.125, stem)


def pictures(root: Path) -> Splits:
    """Four images in two classes, read again from the disk at each call."""
    for number in range(4):
        for split in ("train", "test"):
            place = root / split / "ab"[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            if not (place / f"{number}.png").exists():
                Image.new("RGB", (8, 8), (60 * number, 9, 9)).save(place / f"{number}.png")
    return folder(str(root), image_size=8, square=True)


def test_a_second_evaluation_gets_the_same_bits_and_reads_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = extractor(tmp_path / "kept", pictures(tmp_path / "data"))
    kinds = ("last", "last4")
    made = {split: first(network(), split, kinds) for split in ("train", "test")}
    assert [(each["split"], each["images"]) for each in first.passes] == [("train", 4), ("test", 4)]
    splits = pictures(tmp_path / "data")
    for source in (splits.train, splits.test):
        monkeypatch.setattr(source, "decode", lambda index: pytest.fail("an image was read"))
    second = extractor(tmp_path / "kept", splits)
    for split, features in made.items():
        again = second(network(), split, kinds)
        assert torch.equal(again.x, features.x)
        assert torch.equal(again.others["last4"], features.others["last4"])
        assert torch.equal(again.labels, features.labels)
        assert torch.equal(again.ids, features.ids)
    assert second.passes == []


def test_only_the_kinds_that_are_missing_are_extracted(tmp_path: Path) -> None:
    first = extractor(tmp_path)
    first(network(), "test", ("last",))
    found = first(network(), "test", ("last", "last4", "tokens"))
    assert [each["kinds"] for each in first.passes] == [["last"], ["last4", "tokens"]]
    whole = Extractor(first.data, views(), torch.device("cpu"), "32-true", 100)(network(), "test", ("last4", "tokens"))
    for kind in ("last4", "tokens"):
        assert torch.equal(found.others[kind], whole.others[kind])


CHANGES: dict[str, Callable[[Path], Any]] = {
    "weights": lambda place: extractor(place)(network(1), "test"),
    "geometry": lambda place: extractor(place)(strided(), "test"),
    "network": lambda place: extractor(place)(PixelNetwork(), "test"),
    "crop": lambda place: extractor(place, views=views(evaluation_crop=0.9))(network(), "test"),
    "interpolation": lambda place: extractor(place, views=views(evaluation_interpolation="bicubic"))(network(), "test"),
    "mean": lambda place: extractor(place, views=views(mean=[0.5] * 3, std=[0.5] * 3))(network(), "test"),
    "precision": lambda place: extractor(place, precision="bf16-mixed")(network(), "test"),
    "split": lambda place: extractor(place)(network(), "train"),
    "image size": lambda place: extractor(place, digits(9))(network(), "test"),
}


def strided() -> ResNet:
    """The same weights, another geometry: what a state dict does not show."""
    changed = network()
    changed.conv1.stride = (2, 2)
    return changed


def vit(**changed: Any) -> ViT:
    torch.manual_seed(0)
    return ViT(**({"image_size": 8, "patch_size": 4, "width": 24, "depth": 2, "heads": 2} | changed))


def test_a_vits_heads_and_pooling_which_no_weight_shows_are_part_of_the_key(tmp_path: Path) -> None:
    found = [extractor(tmp_path)(vit(**changed), "test").x for changed in ({}, {"heads": 4}, {"pooling": "gap"})]
    assert len(list(tmp_path.iterdir())) == 3
    assert not torch.allclose(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
    again = extractor(tmp_path)
    assert torch.equal(again(vit(), "test").x, found[0])
    assert again.passes == []


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_kept_is_used_after_a_change_of(change: str, tmp_path: Path) -> None:
    extractor(tmp_path)(network(), "test")
    before = set(tmp_path.iterdir())
    CHANGES[change](tmp_path)
    assert len(set(tmp_path.iterdir()) - before) == 1


def test_an_image_that_was_written_anew_changes_the_fingerprint_and_a_label_does(tmp_path: Path) -> None:
    splits = pictures(tmp_path)
    before = fingerprint(splits.train)
    assert before == fingerprint(pictures(tmp_path).train)
    assert before != fingerprint(splits.test) if splits.test is not None else False
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "train" / "a" / "0.png")
    os.utime(tmp_path / "train" / "a" / "0.png", (1, 1))
    after = pictures(tmp_path)
    assert fingerprint(after.train) != before
    again = fingerprint(after.train)
    after.train.labels[0] = 1
    assert fingerprint(after.train) != again


def test_a_copy_in_another_folder_is_the_same_data_and_a_longer_file_is_not(tmp_path: Path) -> None:
    pictures(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there" / "deeper")
    here, there = folder(str(tmp_path / "here")), folder(str(tmp_path / "there" / "deeper"))
    assert fingerprint(here.train, moved=True) == fingerprint(there.train, moved=True)
    assert fingerprint(here.train) != fingerprint(there.train)
    with (tmp_path / "there" / "deeper" / "train" / "a" / "0.png").open("ab") as file:
        file.write(b"more")
    assert fingerprint(here.train, moved=True) != fingerprint(there.train, moved=True)


def test_another_column_of_the_same_file_is_other_data(tmp_path: Path) -> None:
    columns = {"image": [b"a", b"b"], "mask": [b"c", b"d"], "label": [0, 1]}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    splits = [parquet(str(tmp_path), test=None, image_column=name) for name in ("image", "mask", "image")]
    for moved in (False, True):
        prints = [fingerprint(each.train, moved) for each in splits]
        assert prints[0] == prints[2] != prints[1]


def test_a_source_whose_changes_nobody_can_see_is_never_kept(tmp_path: Path) -> None:
    given = digits().train

    class Elsewhere:
        classes, image_size, square = given.classes, 8, True
        labels = given.labels

        def __len__(self) -> int:
            return len(self.labels)

        def decode(self, index: int) -> torch.Tensor:
            return given.decode(0)

        def name(self, index: int) -> str:
            return str(index)

    assert fingerprint(Elsewhere()) is None
    splits = Splits(Elsewhere(), digits().test, "")
    splits.train.labels[50:] = -1
    extractor(tmp_path, splits)(network(), "train")
    assert not list(tmp_path.iterdir())


def test_a_flipped_bit_is_noticed_and_the_features_are_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = extractor(tmp_path)(network(), "test")
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    again = extractor(tmp_path)
    assert torch.equal(again(network(), "test").x, made.x)
    assert f"{file} is damaged" in capsys.readouterr().out
    assert len(again.passes) == 1
    file.write_bytes(b"cut short")
    assert torch.equal(extractor(tmp_path)(network(), "test").x, made.x)


def test_the_folder_stays_below_its_size_and_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = TensorCache(str(tmp_path), 2500 / 2**30)
    for number in range(3):
        cache.put({"number": number}, {"x": torch.full((200,), float(number))})
        (file,) = set(tmp_path.iterdir()) - {each for each in tmp_path.iterdir() if each.stat().st_mtime < 100}
        os.utime(file, (number + 1, number + 1))
    assert cache.get({"number": 0}) is None
    found = cache.get({"number": 2})
    assert found is not None
    assert torch.equal(found[0]["x"], torch.full((200,), 2.0))
    cache.put({"number": 3}, {"x": torch.zeros(2000)})
    assert cache.get({"number": 3}) is None
    assert TensorCache(str(tmp_path), 0).get({"number": 2}) is None
    with pytest.raises(UserError, match="cache_gib=-1: must be 0"):
        TensorCache(str(tmp_path), -1)


def test_a_folder_that_cannot_be_written_to_costs_a_line_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert len(extractor(tmp_path / "file")(network(), "test").x) == 450
    assert "features cannot be kept in" in capsys.readouterr().out


def test_corrupt_images_are_reported_by_a_second_evaluation_too(tmp_path: Path) -> None:
    pictures(tmp_path / "data")
    (tmp_path / "data" / "train" / "a" / "0.png").write_bytes(b"no picture")
    made = extractor(tmp_path / "kept", pictures(tmp_path / "data"))
    assert made(network(), "train").ids.tolist() == [1, 2, 3]
    again = extractor(tmp_path / "kept", pictures(tmp_path / "data"))
    assert again(network(), "train").ids.tolist() == [1, 2, 3]
    assert len(again.data.corrupt) == 1
    assert again.data.corrupt == made.data.corrupt


def test_a_change_of_the_users_own_code_is_another_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    keys = []
    for factor in (1, 2):
        text = f"from torch import nn\nclass Own(nn.Linear):\n    def forward(self, x):\n        return {factor} * x\n"
        (tmp_path / "own_network.py").write_text(text)
        sys.modules.pop("own_network", None)
        importlib.invalidate_caches()
        network = importlib.import_module("own_network").Own(2, 2)
        torch.nn.init.ones_(network.weight)
        torch.nn.init.ones_(network.bias)
        keys.append(network_key(network, {}, "32-true", torch.device("cpu")))
    sys.modules.pop("own_network")
    assert keys[0]["weights"] == keys[1]["weights"]
    assert keys[0] != keys[1]

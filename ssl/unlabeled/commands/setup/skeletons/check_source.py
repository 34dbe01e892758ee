"""What must hold of this source: python -m pytest test_skeleton.py"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unlabeled.commands.arguments.compose import composed
from unlabeled.commands.build.run import build_data
from unlabeled.commands.setup.skeletons.source import skeleton
from unlabeled.errors import UserError

CONF = Path(__file__).parent / "conf"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for number in range(6):
        pixels = random.integers(0, 256, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    lines = [f"{number}.png,{'cat' if number % 2 else 'dog'}" for number in range(5)]
    (tmp_path / "train.csv").write_text("\n".join(["path,label", *lines]))
    (tmp_path / "test.csv").write_text("path,label\n5.png,cat\n")
    return tmp_path


def test_images_labels_and_names_are_those_of_the_table(folder: Path) -> None:
    splits = skeleton(str(folder), 16)
    assert splits.train.classes == ["cat", "dog"]
    assert splits.train.labels.tolist() == [1, 0, 1, 0, 1]
    assert splits.test is not None
    assert len(splits.test) == 1
    stored = torch.from_numpy(np.array(Image.open(folder / "3.png"))).permute(2, 0, 1)
    assert torch.equal(splits.train.decode(3), stored)
    assert splits.train.name(3) == str(folder / "3.png")


def test_a_folder_without_its_table_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*train\.csv"):
        skeleton(str(tmp_path))


def test_its_yaml_gives_batches(folder: Path) -> None:
    chosen = ["data=skeleton", f"data.path={folder}", "batch_size=4", "num_workers=0"]
    data = build_data(composed("train", [f"--config-dir={CONF}", *chosen]))
    batch = next(iter(data.batches(data.train, torch.arange(4), 4)))
    assert batch.images.shape[:2] == (4, 3)
    assert batch.labels.tolist() == [1, 0, 1, 0]

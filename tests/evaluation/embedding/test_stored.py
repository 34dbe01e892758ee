"""Tables of features are read as they were written, and what is none is one line."""

from pathlib import Path

import numpy as np
import pytest

from unlabeled.errors import UserError
from unlabeled.evaluation.embedding.embeddings import Embeddings
from unlabeled.evaluation.embedding.stored import READERS, read_embeddings


def some(classes: list[str]) -> Embeddings:
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    names = ["=1+1.png", "a,b\n.png", "'x", "<b>.png", "鳥.png"]
    labels = np.array([1, -1, 0, 1, 1]) if classes else np.full(5, -1)
    return Embeddings(x, names, labels, ["train"] * 3 + ["test"] * 2, classes)


@pytest.mark.parametrize("classes", [["=cat", "dog"], []], ids=["labels", "none"])
@pytest.mark.parametrize("ending", READERS)
def test_a_table_is_read_as_it_was_written(ending: str, classes: list[str], tmp_path: Path) -> None:
    written = some(classes)
    read = read_embeddings(written.save(tmp_path / f"x{ending}"), "embeddings=x")
    assert np.array_equal(read.x, written.x)
    assert read.labels.tolist() == written.labels.tolist()
    assert (read.names, read.splits, read.classes) == (written.names, written.splits, classes)


@pytest.mark.parametrize("ending", READERS)
def test_what_is_no_table_or_cut_short_is_one_line(ending: str, tmp_path: Path) -> None:
    path = some(["cat", "dog"]).save(tmp_path / f"x{ending}")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match=r"^embeddings=x: ") as caught:
        read_embeddings(path, "embeddings=x")
    assert "\n" not in str(caught.value)


def test_names_that_are_not_beside_a_table_of_numbers_are_one_line(tmp_path: Path) -> None:
    path = some([]).save(tmp_path / "x.npy")
    (tmp_path / "x.rows.csv").unlink()
    with pytest.raises(UserError, match=r"^embeddings=x: x\.rows\.csv is not beside it"):
        read_embeddings(path, "embeddings=x")

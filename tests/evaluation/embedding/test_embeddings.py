"""What is asked of embeddings, against plain loops; and what is read back from every format."""

import csv
import zipfile
from pathlib import Path

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from unlabeled.errors import UserError
from unlabeled.evaluation.embedding import rows
from unlabeled.evaluation.embedding.embeddings import Embeddings

NAMES = ["a.jpg", 'with, a "comma"', "ä/ö 図.png", "=1+1", "two\nlines", "", "12"]
CELLS = [f"'{name}" if name.startswith("=") else name for name in NAMES]  # a spreadsheet must not compute it
SPLITS = ["train", "train", "train", "test", "test", "test-2", "test"]


def some(count: int = 7, width: int = 5) -> Embeddings:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((count, width)).astype(np.float32) * np.float32(1e-3)
    x[0, :3] = np.array([1 / 3, 1e-45, 3.4e38], np.float32)  # the smallest and nearly the largest float32
    labels = np.array([0, 1, -1, 1, 0, -1, 2][:count])
    return Embeddings(x, NAMES[:count], labels, SPLITS[:count], ["cat", "dog", "Ente"])


@pytest.fixture(autouse=True)
def two_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "CHUNK_BYTES", 40)


def test_parquet_is_read_back_equal_by_pandas_and_pyarrow(tmp_path: Path) -> None:
    table = pandas.read_parquet(some().save(tmp_path / "x.parquet"))
    assert list(table) == ["name", "label", "split", "features", "class"]
    assert np.array_equal(np.stack(table["features"].to_list()), some().x)
    assert table["features"][0].dtype == np.float32
    assert table["label"].tolist() == some().labels.tolist()
    assert (table["name"].tolist(), table["split"].tolist()) == (NAMES, SPLITS)
    assert [None if pandas.isna(each) else each for each in table["class"]] == CLASSES
    read = pq.read_table(tmp_path / "x.parquet")
    assert np.array_equal(read["features"].combine_chunks().values.to_numpy().reshape(7, 5), some().x)


CLASSES = ["cat", "dog", None, "dog", "cat", None, "Ente"]


def test_a_csv_is_read_back_equal_by_pandas_and_by_python(tmp_path: Path) -> None:
    some().save(tmp_path / "x.csv")
    table = pandas.read_csv(tmp_path / "x.csv", keep_default_na=False)
    assert list(table) == ["name", "label", "class", "split", *(f"f{place}" for place in range(5))]
    assert np.array_equal(table[[f"f{place}" for place in range(5)]].to_numpy().astype(np.float32), some().x)
    assert (table["name"].tolist(), table["split"].tolist()) == (CELLS, SPLITS)
    assert (table["label"].tolist(), table["class"].tolist()) == (
        some().labels.tolist(),
        [each or "" for each in CLASSES],
    )
    with (tmp_path / "x.csv").open(newline="") as file:
        assert [line[0] for line in csv.reader(file)][1:] == CELLS


def test_npy_npz_and_safetensors_are_read_back_equal_by_their_own_libraries(tmp_path: Path) -> None:
    assert np.array_equal(np.load(some().save(tmp_path / "x.npy")), some().x)
    assert np.load(tmp_path / "x.npy", mmap_mode="r").dtype == np.float32
    read = load_file(some().save(tmp_path / "y.safetensors"))
    assert np.array_equal(read["features"], some().x)
    assert np.array_equal(read["label"], some().labels)
    for beside in ("x.rows.csv", "y.rows.csv"):
        table = pandas.read_csv(tmp_path / beside, keep_default_na=False)
        assert (table["name"].tolist(), table["split"].tolist()) == (CELLS, SPLITS)
        assert list(table) == ["name", "label", "class", "split"]
    archive = np.load(some().save(tmp_path / "z.npz"))
    assert np.array_equal(archive["features"], some().x)
    assert np.array_equal(archive["label"], some().labels)
    assert (archive["name"].tolist(), archive["split"].tolist()) == (NAMES, SPLITS)
    assert archive["classes"].tolist() == ["cat", "dog", "Ente"]
    assert zipfile.ZipFile(tmp_path / "z.npz").testzip() is None


@pytest.mark.parametrize("ending", ["parquet", "csv", "npy", "npz", "safetensors"])
def test_one_row_and_classes_that_are_numbers_are_written_too(ending: str, tmp_path: Path) -> None:
    one = Embeddings(some(1).x, ["a"], np.array([-1]), ["train"], ["0", "1"])
    file = one.save(tmp_path / "new" / f"x.{ending}")
    if ending == "parquet":
        assert list(pandas.read_parquet(file)) == ["name", "label", "split", "features"]
    assert {path.name for path in file.parent.iterdir()} <= {f"x.{ending}", "x.rows.csv"}


def test_another_ending_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^out=.*x\.hdf5: the ending says how it is written; allowed: \.parquet, \.npy, "
    ):
        some().save(tmp_path / "x.hdf5")


def clouds() -> Embeddings:
    """Three clouds of 10, an image far from all, and one of each cloud twice."""
    generator = np.random.default_rng(1)
    centres = np.eye(3, 8)
    x = np.concatenate([centres[row] + 0.05 * generator.standard_normal((10, 8)) for row in range(3)])
    x = np.concatenate([x, -np.ones((1, 8)), 2.5 * x[[0, 10, 20]]]).astype(np.float32)
    return Embeddings(x, [str(row) for row in range(34)], np.full(34, -1), ["train"] * 34, [])


def cosines() -> np.ndarray:
    x = clouds().x.astype(np.float64)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(unit @ unit.T)


def test_neighbours_are_those_of_a_plain_loop_without_the_image_itself() -> None:
    found, similarity = clouds().neighbours(4)
    expected = cosines()
    np.fill_diagonal(expected, -np.inf)
    for row in range(34):
        np.testing.assert_allclose(similarity[row], np.sort(expected[row])[::-1][:4], atol=1e-5)
        np.testing.assert_allclose(similarity[row], expected[row][found[row]], atol=1e-5)
    assert found[0, 0] == 31
    assert found[31, 0] == 0


def test_of_many_equal_images_none_is_its_own_neighbour() -> None:
    same = Embeddings(np.ones((6, 3), np.float32), list("abcdef"), np.full(6, -1), ["train"] * 6, [])
    found, _ = same.neighbours(2)
    assert found.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1], [0, 1]]


def test_clusters_are_the_clouds_and_the_same_at_every_call() -> None:
    found = clouds().rows(slice(0, 30)).clusters(3)
    assert [len(set(found[first : first + 10])) for first in (0, 10, 20)] == [1, 1, 1]
    assert len(set(found)) == 3
    assert np.array_equal(found, clouds().rows(slice(0, 30)).clusters(3))


def test_the_image_far_from_all_is_the_first_outlier() -> None:
    order, unusual = clouds().outliers(k=5)
    expected = cosines()
    np.fill_diagonal(expected, -np.inf)
    mean = 1 - np.sort(expected, axis=1)[:, -5:].mean(axis=1)
    assert order[0] == 30
    np.testing.assert_allclose(unusual, mean[order], atol=1e-5)
    assert np.all(np.diff(unusual) <= 0)


def test_duplicates_are_all_pairs_above_the_similarity() -> None:
    pairs, similarity = clouds().duplicates(1.0)
    assert sorted(map(tuple, pairs.tolist())) == [(0, 31), (10, 32), (20, 33)]
    np.testing.assert_allclose(similarity, 1, atol=1e-6)
    near = cosines()
    expected = {(a, b) for a in range(34) for b in range(a + 1, 34) if near[a, b] >= 0.97}
    assert set(map(tuple, clouds().duplicates(0.97)[0].tolist())) == expected
    assert len(clouds().rows([0, 10]).duplicates(0.99)[0]) == 0


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: clouds().neighbours(34), "k=34: allowed: 1 to 33"),
        (lambda: clouds().neighbours(0), "k=0: allowed: 1 to 33"),
        (lambda: clouds().clusters(35), "k=35: allowed: 1 to 34"),
        (lambda: clouds().outliers(0), "k=0: allowed: 1 or more"),
        (lambda: clouds().duplicates(0), "similarity=0: must be above 0 and at most 1"),
    ],
)
def test_a_number_out_of_range_is_one_line(call: object, line: str) -> None:
    with pytest.raises(UserError) as caught:
        call()  # type: ignore[operator]
    assert str(caught.value) == line


@pytest.mark.parametrize("name", ["=1+1", "+a", "-x.png", "@sum(a)", "\t=1", "\r=1"])
def test_no_cell_of_a_csv_is_computed_by_a_spreadsheet(name: str, tmp_path: Path) -> None:
    table = Embeddings(some(2).x, [name, "-1.5"], np.array([0, 1]), ["train", "test"], [name, "plain"])
    for file in (table.save(tmp_path / "x.csv"), table.save(tmp_path / "x.npy").with_name("x.rows.csv")):
        read = pandas.read_csv(file, keep_default_na=False, dtype=str)
        assert read["name"].tolist() == [f"'{name}", "-1.5"]
        assert read["class"].tolist() == [f"'{name}", "plain"]

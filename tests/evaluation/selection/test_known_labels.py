"""Lists of labels that a person filled in, and the lists that say what to label next."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from unlabeled.data.labels import LabelSelection
from unlabeled.data.source import Source
from unlabeled.data.sources.folder import folder
from unlabeled.errors import UserError
from unlabeled.evaluation.selection.known_labels import read_known_labels
from unlabeled.evaluation.selection.wanted import Wanted, write_wanted


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("photos")
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/=3.png"):
        (place / "flat" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), 0, 0)).save(place / "flat" / name)
    return place


def source(photos: Path, labels: bool = False) -> Source:
    found = folder(str(photos / "flat"), image_size=8).train
    if not labels:
        found.classes, found.labels = [], torch.full((len(found),), -1)
    return found


def wanted(of: Source) -> Wanted:
    return Wanted([of.name(id) for id in (3, 0, 2)], [3, 0, 2], "typical")


@pytest.mark.parametrize("where", ["next.csv", "flat/next.csv", "other/next.csv"])
def test_a_list_to_fill_in_names_its_images_when_it_is_read_again(photos: Path, where: str) -> None:
    ours, out = source(photos), photos / where
    write_wanted(out, wanted(ours), ours)
    lines = out.read_text().splitlines()
    assert lines[0] == "path,label"
    assert not any(line.startswith("=") for line in lines)
    filled = [f"{line}{label}" for line, label in zip(lines[1:], ("dog", "cat", ""), strict=True)]
    out.write_text("\n".join([lines[0], *filled]))
    known = read_known_labels(out, "labels=x", ours)
    assert (known.rows, known.classes, known.labels) == ([3, 0], ["cat", "dog"], [1, 0])
    assert len(folder(str(out), image_size=8).train) == 3
    out.unlink()


def test_a_list_of_names_is_a_labels_file_and_takes_the_labels_of_the_pool(photos: Path) -> None:
    ours, out = source(photos, labels=True), photos / "next.txt"
    write_wanted(out, wanted(ours), ours)
    assert out.read_text().splitlines() == ["b/=3.png", "a/1.png", "b/1.png"]
    assert LabelSelection(str(out), None, None, 0, "x").of(ours).ids.tolist() == [0, 2, 3]
    known = read_known_labels(out, "labels=x", ours)
    assert (known.rows, known.labels, known.classes) == ([3, 0, 2], [1, 0, 1], ["a", "b"])


@pytest.mark.parametrize(
    ("text", "labels", "message"),
    [
        ("path,label\na/1.png,\n", False, "x: no row has a label; fill in its column label"),
        ("path,label\na/9.png,cat\n", False, "x: 1 of 1 names are not among the images: a/9.png; mend the list"),
        ("path,label\n1.png,cat\n", False, "x: 1 of 1 names are ambiguous: 1.png"),
        ("path,label\na/1.png,cat\na/1.png,dog\n", False, "x: names a/1.png twice"),
        ("path,label\na/1.png,cat\n", True, "x: class cat is none of the images' own: a, b"),
    ],
)
def test_a_list_that_does_not_fit_is_refused_in_one_line(
    photos: Path, tmp_path: Path, text: str, labels: bool, message: str
) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=f"^{message}"):
        read_known_labels(tmp_path / "list.csv", "x", source(photos, labels))


def test_names_alone_are_refused_where_the_pool_has_no_labels(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a/1.png\n")
    with pytest.raises(UserError, match=r"^x: a/1.png has no label among the images; give a .csv with columns"):
        read_known_labels(tmp_path / "list.txt", "x", source(photos))

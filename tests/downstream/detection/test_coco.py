"""Images with boxes and masks, from COCO's json and from Pascal VOC's xml, and everything that is wrong in them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as tools

from tests.downstream.shapes import run_lengths, write_coco
from unlabeled.downstream.detection.annotated.coco import CLIPPED, NO_AREA, OUTSIDE, read_coco
from unlabeled.downstream.detection.annotated.images import DetectionImages
from unlabeled.downstream.detection.annotated.masks import mask_of, problem_of
from unlabeled.downstream.detection.annotated.voc import read_voc
from unlabeled.errors import UserError

WIDE, HIGH = 40, 30
SQUARE = [[2.0, 3.0, 12.0, 3.0, 12.0, 13.0, 2.0, 13.0]]
Content = dict[str, Any]


def write(folder: Path, change: Callable[[Content], object] = lambda content: None) -> Path:
    """Two images, one of which has no annotation, with a polygon and a crowd; ``change`` is made to the train file."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number in (7, 9):
        Image.new("RGB", (WIDE, HIGH), (number, 0, 0)).save(folder / "images" / f"{number}.png")
    crowd = np.zeros((HIGH, WIDE), bool)
    crowd[20:26, 30:38] = True
    boxes: list[Content] = [
        {"id": 5, "image_id": 7, "category_id": 40, "bbox": [2, 3, 10, 10], "segmentation": SQUARE, "area": 100},
        {"id": 6, "image_id": 7, "category_id": 3, "bbox": [30, 20, 8, 6], "iscrowd": 1, "area": 48}
        | {"segmentation": {"size": [HIGH, WIDE], "counts": run_lengths(crowd)}},
    ]
    for split in ("train", "val"):
        content: Content = {
            "images": [{"id": n, "file_name": f"{n}.png", "height": HIGH, "width": WIDE} for n in (7, 9)],
            "annotations": json.loads(json.dumps(boxes)),
            "categories": [{"id": 40, "name": "cup"}, {"id": 3, "name": "dog"}],
        }
        if split == "train":
            change(content)
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def train_of(folder: Path) -> DetectionImages:
    return read_coco(folder, "data=x")[0]


def test_categories_with_gaps_become_labels_from_one_and_crowds_and_empty_images_are_kept_apart(tmp_path: Path) -> None:
    train = train_of(write(tmp_path))
    assert train.classes == ["dog", "cup"]
    assert [[(thing.label, thing.crowd) for thing in picture.things] for picture in train.pictures] == [
        [(2, False), (1, True)],
        [],
    ]
    target = train.target(0, masks=True)
    assert target["boxes"].tolist() == [[2, 3, 12, 13]]
    assert target["labels"].tolist() == [2]
    assert int(target["masks"].sum()) == 100
    assert train.target(1, masks=True)["masks"].shape == (0, HIGH, WIDE)
    assert [picture.given for picture in train.with_objects().pictures] == [7]
    assert {*train.image(1)[0].flatten().tolist()} == {9}


def test_run_lengths_plain_and_compressed_are_what_pycocotools_makes_of_a_mask() -> None:
    for seed in range(20):
        draw = np.random.default_rng(seed)
        mask = (draw.random((int(draw.integers(1, 40)), int(draw.integers(1, 300)))) < draw.random()).astype(np.uint8)
        packed = tools.encode(np.asfortranarray(mask))
        given = {"size": list(mask.shape), "counts": packed["counts"].decode()}
        assert problem_of(given, *mask.shape) is None
        assert np.array_equal(mask_of(given, *mask.shape), mask)
        plain = {"size": list(mask.shape), "counts": run_lengths(mask.astype(bool))}
        assert problem_of(plain, *mask.shape) is None
        assert np.array_equal(mask_of(plain, *mask.shape), mask)


def test_several_polygons_are_one_mask_and_run_lengths_may_be_compressed(tmp_path: Path) -> None:
    far = [20.0, 3.0, 24.0, 3.0, 24.0, 7.0, 20.0, 7.0]

    def change(content: Content) -> None:
        content["annotations"][0]["segmentation"] = [*SQUARE, far]
        packed = tools.encode(np.asfortranarray(np.ones((HIGH, WIDE), np.uint8)))
        content["annotations"].append(
            {"id": 8, "image_id": 9, "category_id": 3, "bbox": [0, 0, WIDE, HIGH]}
            | {"segmentation": {"size": [HIGH, WIDE], "counts": packed["counts"].decode()}}
        )

    train = train_of(write(tmp_path, change))
    assert int(train.target(0, masks=True)["masks"].sum()) == 116
    assert int(train.target(1, masks=True)["masks"].sum()) == HIGH * WIDE
    assert train.has_masks


def first(content: Content, **keys: Any) -> None:
    content["annotations"][0].update(keys)


def runs(counts: Any, size: Any = (HIGH, WIDE)) -> Content:
    return {"size": list(size), "counts": counts}


BAD: dict[str, tuple[Callable[[Content], object], str]] = {
    "missing image": (
        lambda c: c["images"][1].update(file_name="no.png"),
        r"1 of 2 images are not there: image 9 \(no",
    ),
    "image outside": (lambda c: c["images"][0].update(file_name="../x.png"), r"image 7 names \.\./x\.png, which is no"),
    "image without a name": (lambda c: c["images"][0].pop("file_name"), r"image 7 names None"),
    "size": (lambda c: c["images"][0].update(width=-1), r"image 7: has height 30 and width -1"),
    "no images": (lambda c: c.update(images=[], annotations=[]), r"there is no image in it"),
    "no categories": (lambda c: c.update(categories=[]), r"there is no category in it"),
    "image twice": (lambda c: c["images"][1].update(id=7), r"image 7 is there twice"),
    "annotation twice": (lambda c: c["annotations"][1].update(id=5), r"annotation 5 is there twice"),
    "category twice": (lambda c: c["categories"][1].update(id=40), r"category 40 is there twice"),
    "no id": (lambda c: c["annotations"][1].pop("id"), r"annotation number 2 of the list has id None"),
    "unknown category": (lambda c: first(c, category_id=41), r"annotation 5: category 41 is not among the categories"),
    "unknown image": (lambda c: first(c, image_id=8), r"annotation 5: image 8 is not among the images"),
    "category a list": (lambda c: first(c, category_id=[40]), r"annotation 5: category \[40\] is not among"),
    "box of three": (lambda c: first(c, bbox=[1, 2, 3]), r"annotation 5: its bbox is \[1, 2, 3\]; give four numbers"),
    "box of nan": (lambda c: first(c, bbox=[1, 2, 3, float("nan")]), r"annotation 5: its bbox is \[1, 2, 3, nan\]"),
    "no box": (lambda c: c["annotations"][0].pop("bbox"), r"annotation 5: its bbox is None"),
    "area": (lambda c: first(c, area="large"), r"annotation 5: its area is 'large'"),
    "crowd": (lambda c: first(c, iscrowd=2), r"annotation 5: iscrowd is 2; give 0 or 1"),
    "polygon of two": (lambda c: first(c, segmentation=[[1, 2, 3, 4]]), r"annotation 5: a polygon of it has 4 numbers"),
    "polygon of text": (lambda c: first(c, segmentation=[["a"] * 6]), r"annotation 5: a polygon of it is no list"),
    "polygon far off": (lambda c: first(c, segmentation=[[1e9] * 6]), r"annotation 5: a polygon of it is far outside"),
    "mask a number": (lambda c: first(c, segmentation=3), r"annotation 5: its segmentation is neither"),
    "short runs": (
        lambda c: first(c, segmentation=runs([3, 4])),
        r"annotation 5: its run lengths do not count the 1,200",
    ),
    "runs of text": (lambda c: first(c, segmentation=runs(["3"])), r"annotation 5: its run lengths do not count"),
    "broken runs": (lambda c: first(c, segmentation=runs("o")), r"annotation 5: its run lengths do not count"),
    "runs of another size": (lambda c: first(c, segmentation=runs([9], (3, 3))), r"annotation 5: .*size \[3, 3\]"),
    "other names": (lambda c: c["categories"][0].update(name="mug"), r"val\.json: category 40 is 'cup', in .* 'mug'"),
    "no list": (lambda c: c.update(annotations={}), r"has no list of annotations; give COCO's form"),
    "row no table": (lambda c: c["annotations"].append(3), r"has no list of annotations"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_contradicts_itself_is_one_line_with_the_id(name: str, tmp_path: Path) -> None:
    change, line = BAD[name]
    with pytest.raises(UserError, match=line) as refused:
        train_of(write(tmp_path, change))
    assert "\n" not in str(refused.value)
    assert "train.json" in str(refused.value) or name == "other names"


def test_what_real_files_have_is_left_out_or_clipped_counted_and_listed(tmp_path: Path) -> None:
    def change(content: Content) -> None:
        for number, box in enumerate(([5, 5, 0, 4], [5, 5, 3, -1], [50, 5, 4, 4], [35, 25, 9, 9], [0, 0, 40.2, 30])):
            content["annotations"].append({"id": 20 + number, "image_id": 9, "category_id": 3, "bbox": box})

    train = train_of(write(tmp_path, change))
    assert train.notes == {NO_AREA: ["20", "21"], OUTSIDE: ["22"], CLIPPED: ["23"]}
    assert [thing.box for thing in train.pictures[1].things] == [(35, 25, 40, 30), (0, 0, 40, 30)]
    assert not train.has_masks


def test_a_damaged_file_no_annotation_and_a_picture_of_another_size_are_one_line(tmp_path: Path) -> None:
    folder = write(tmp_path, lambda content: content.update(annotations=[]))
    train = train_of(folder)
    with pytest.raises(UserError, match=r"train\.json: no image has an annotation; give images with objects"):
        train.with_objects()
    Image.new("RGB", (3, 3)).save(folder / "images" / "7.png")
    with pytest.raises(UserError, match=r"image 7 has 40 × 30 pixels there, 7\.png has 3 × 3"):
        train.image(0)
    (folder / "images" / "9.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"9\.png: cannot be decoded"):
        train.image(1)
    (folder / "train.json").write_text('{"images": [')
    with pytest.raises(UserError, match=r"train\.json: no json \("):
        train_of(folder)
    (folder / "train.json").unlink()
    (folder / "val.json").unlink()
    with pytest.raises(UserError, match=r"data=x: holds no images with boxes that are known here"):
        train_of(folder)


def test_cocos_own_layout_and_one_folder_for_each_split_are_read(tmp_path: Path) -> None:
    made = write_coco(tmp_path / "own", 3, 2, size=32)
    for split, name in (("train", "train2017"), ("val", "val2017")):
        own = tmp_path / "coco"
        (own / name).mkdir(parents=True)
        (own / "annotations").mkdir(exist_ok=True)
        content = json.loads((made / f"{split}.json").read_text())
        for row in content["images"]:
            (made / "images" / row["file_name"]).rename(own / name / row["file_name"])
            del row["height"], row["width"]
        (own / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))
    train, val = read_coco(own, "x")
    assert (len(train), len(val), train.classes) == (3, 2, ["disc", "square", "triangle"])
    assert {(picture.height, picture.width) for picture in train.pictures} == {(32, 32)}


XML = """<annotation><size><width>40</width><height>30</height></size>{}</annotation>"""
OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
    "<ymax>{}</ymax></bndbox></object>"
)


def write_voc(folder: Path) -> Path:
    """One image for each list of VOC2007 and VOC2012, with a dog and a difficult cat."""
    for year, lists in (("VOC2007", {"trainval": "1", "test": "2"}), ("VOC2012", {"trainval": "3"})):
        for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (folder / year / part).mkdir(parents=True)
        for name, stem in lists.items():
            (folder / year / "ImageSets" / "Main" / f"{name}.txt").write_text(f"{stem}\n")
            Image.new("RGB", (40, 30)).save(folder / year / "JPEGImages" / f"{stem}.jpg")
            things = OBJECT.format("dog", 0, 1, 1, 40, 30) + OBJECT.format("cat", 1, 11, 6, 20, 15)
            (folder / year / "Annotations" / f"{stem}.xml").write_text(XML.format(things))
    return folder


def test_pascal_voc_counts_pixels_from_one_and_a_difficult_object_counts_in_training_alone(tmp_path: Path) -> None:
    train, val = read_voc(write_voc(tmp_path))
    assert ([each.given for each in train.pictures], [each.given for each in val.pictures]) == (
        ["VOC2007/1", "VOC2012/3"],
        ["VOC2007/2"],
    )
    assert (len(train.classes), train.voc07, val.voc07) == (20, False, True)
    dog, cat = val.pictures[0].things
    assert (dog.box, dog.crowd, val.classes[dog.label - 1]) == ((0, 0, 40, 30), False, "dog")
    assert (cat.box, cat.crowd, val.classes[cat.label - 1]) == ((10, 5, 20, 15), True, "cat")
    assert not train.pictures[0].things[1].crowd
    assert torch.equal(train.target(0, masks=False)["labels"], torch.tensor([12, 8]))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("<annotation>", r"1\.xml: no xml \("),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', r"1\.xml: has entities"),
        (
            XML.format(OBJECT.format("dog", 0, "x", 1, 2, 2)),
            r"VOC2007/Annotations/1\.xml: object 1: its bndbox is \['x', '1', '2', '2'\]",
        ),
        (XML.format(OBJECT.format("dog", "maybe", 1, 1, 2, 2)), r"1\.xml: object 1: difficult is 'maybe'; give 0 or 1"),
    ],
)
def test_a_damaged_xml_is_one_line(text: str, line: str, tmp_path: Path) -> None:
    folder = write_voc(tmp_path)
    (folder / "VOC2007" / "Annotations" / "1.xml").write_text(text)
    with pytest.raises(UserError, match=line):
        read_voc(folder)


def test_a_folder_with_one_of_two_descriptions_says_which_is_missing(tmp_path: Path) -> None:
    folder = write_coco(tmp_path, 2, 1, size=32)
    (folder / "val.json").rename(tmp_path / "kept.json")
    with pytest.raises(UserError, match=r"^data=x: has train's boxes, train\.json, and none of val: put val\.json "):
        read_coco(folder, "data=x")
    (folder / "train.json").rename(folder / "val.json")
    with pytest.raises(UserError, match=r"^data=x: has val's boxes, val\.json, and none of train: put train\.json "):
        read_coco(folder, "data=x")


def test_a_photograph_that_its_exif_turns_has_the_size_that_is_seen(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6

    def change(content: Content) -> None:
        content["images"] = [{"id": 7, "file_name": "7.jpg"}]
        content["annotations"] = content["annotations"][:1]

    write(tmp_path, change)
    Image.new("RGB", (WIDE, HIGH)).save(tmp_path / "images/7.jpg", exif=turned)
    train = train_of(tmp_path)
    assert (train.pictures[0].height, train.pictures[0].width) == (WIDE, HIGH)
    assert train.image(0).shape == (3, WIDE, HIGH)

"""Pascal VOC's images and xml in COCO's form: ``VOC2007/JPEGImages``, ``Annotations`` and ``ImageSets/Main``.

With VOC2007 alone or beside VOC2012, train is ``trainval`` of all, and val is ``test`` of 2007, as detectors are
compared (07+12); where there is no ``test``, train is ``train`` and val is ``val``. Objects that are marked difficult
are trained on, as in detectron2, and count neither way in val, as the data set's own rules have it.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from unlabeled.core.phrases import one_line
from unlabeled.core.reading import name_inside, read_text
from unlabeled.downstream.detection.annotated.coco import Names, split_of
from unlabeled.downstream.detection.annotated.images import DetectionImages
from unlabeled.errors import UserError

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
MOST = 2**20  # bytes of an xml


def years_of(folder: Path) -> list[Path]:
    """Returns the years in Pascal VOC's folder, or the folder itself if it is a year; none where it is neither."""
    years = [folder] if (folder / "Annotations").is_dir() else sorted(folder.glob("VOC20[0-9][0-9]"))
    return [year for year in years if (year / "ImageSets" / "Main").is_dir()]


def read_voc(folder: Path) -> tuple[DetectionImages, DetectionImages]:
    """Returns train and val. Raises UserError for a list that is missing, or an xml that is damaged."""
    years = years_of(folder)
    tested = [year for year in years if _list(year, "test").is_file()]
    if not tested and not _list(years[0], "train").is_file():
        raise UserError(f"{_list(years[0], 'test')}: no such file; give it, or train.txt and val.txt beside it")
    train = [(year, "trainval" if tested else "train") for year in years]
    val = [(year, "test" if tested else "val") for year in (tested or years)]
    contents = [_content(each, difficult) for each, difficult in ((train, False), (val, True))]
    found = {row["name"] for content in contents for row in content["objects"]}
    names = [*CLASSES, *sorted(found - set(CLASSES))] if found & set(CLASSES) else sorted(found)
    first, second = (_split(content, dict(enumerate(names, 1)), folder, list(years)) for content in contents)
    return first, replace(second, voc07=bool(tested) and all(year.name == "VOC2007" for year in tested))


def _list(year: Path, name: str) -> Path:
    return year / "ImageSets" / "Main" / f"{name}.txt"


def _content(lists: list[tuple[Path, str]], difficult: bool) -> dict[str, Any]:
    """Returns images and objects in COCO's form, but for the numbers of the classes."""
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for year, name in lists:
        for stem in read_text(_list(year, name), str(_list(year, name))).split():
            image = f"{year.name}/{stem}"
            file = year / "Annotations" / f"{name_inside(stem, str(_list(year, name)))}.xml"
            root = _parsed(file)
            images.append({"id": image, "file_name": f"{year.name}/JPEGImages/{stem}.jpg", **_size(root, image)})
            objects += _objects(root, image, file, difficult)
    return {"images": images, "objects": objects}


def _parsed(file: Path) -> ElementTree.Element:
    text = read_text(file, str(file), MOST)
    if "<!ENTITY" in text:
        raise UserError(f"{file}: has entities, which no annotation needs; get the file anew")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise UserError(f"{file}: no xml ({one_line(error)}); get the file anew") from error


def _size(root: ElementTree.Element, image: str) -> dict[str, int | None]:
    given = (root.findtext(f"size/{side}") for side in ("width", "height"))
    width, height = (int(text) if text is not None and text.strip().isdecimal() else 0 for text in given)
    return {"width": width or None, "height": height or None}  # null: of the picture


def _objects(root: ElementTree.Element, image: str, file: Path, difficult: bool) -> Iterator[dict[str, Any]]:
    for place, each in enumerate(root.iter("object"), 1):
        corners = [each.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        try:
            left, top, right, bottom = (float(str(text)) for text in corners)
        except ValueError as error:
            raise UserError(
                f"{file}: object {place}: its bndbox is {corners}; give xmin, ymin, xmax and ymax in pixels"
            ) from error
        # VOC counts pixels from 1, and the last pixel belongs to the box
        box = [left - 1, top - 1, right - left + 1, bottom - top + 1]
        marked = (each.findtext("difficult") or "0").strip()
        if marked not in ("0", "1"):
            raise UserError(f"{file}: object {place}: difficult is {marked!r}; give 0 or 1")
        row = {"id": f"{image}, object {place}", "image_id": image, "bbox": box, "name": each.findtext("name") or ""}
        yield row | {"iscrowd": int(difficult and marked == "1")}


def _split(content: dict[str, Any], names: Names, folder: Path, years: list[Path]) -> DetectionImages:
    numbers = {name: number for number, name in names.items()}
    rows = [{**row, "category_id": numbers[row["name"]]} for row in content["objects"]]
    whole = {"images": content["images"], "annotations": rows, "categories": []}
    identity = sha256(json.dumps(whole).encode()).hexdigest()
    return split_of(whole, names, str(folder), [year.parent for year in years], identity)

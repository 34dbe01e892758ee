"""Images with objects in COCO's form: a folder of images and a json with images, annotations and categories.

What contradicts itself is an error that names the id. What real files have here and there, boxes without area or
outside their image, is left out or clipped, counted and listed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from unlabeled.core.parsing import parse_json
from unlabeled.core.phrases import one_line, shorten_list
from unlabeled.core.reading import name_inside, read_text, require_regular, shown_path
from unlabeled.data.decode import read_header
from unlabeled.downstream.detection.annotated.images import DetectionImages, Picture, Thing
from unlabeled.downstream.detection.annotated.masks import problem_of
from unlabeled.errors import UserError

NO_AREA, OUTSIDE, CLIPPED = "boxes without area, left out", "boxes outside their image, left out", "boxes clipped"
MOST = 2**33  # bytes of a description; COCO's has 470 MB
SPLITS = (("train2017", "train"), ("val2017", "val", "valid", "validation", "test"))
LAYOUTS = (
    "holds no images with boxes that are known here; give a folder with train.json, val.json and images/, COCO's with "
    "annotations/instances_train2017.json and train2017/, or Pascal VOC's with VOC2007/"
)
Content = Mapping[str, Any]
Names = dict[Any, str]  # id of a category → its name, in the order of the ids


def read_coco(folder: Path, given: str) -> tuple[DetectionImages, DetectionImages]:
    """Returns train and val of a folder in one of COCO's layouts.

    Args:
        folder: of the images and their descriptions.
        given: the key and value that name it; an error of the layout begins with them.

    Raises:
        UserError: no layout that is known, or a description that is damaged or contradicts itself.
    """
    files = [next(_descriptions(folder, names), None) for names in SPLITS]
    if files[0] is None and files[1] is None:
        raise UserError(f"{given}: {LAYOUTS}")
    if files[0] is None or files[1] is None:
        there, lacking = ("train", "val") if files[1] is None else ("val", "train")
        name = next(file.name for file, _ in filter(None, files))
        raise UserError(f"{given}: has {there}'s boxes, {name}, and none of {lacking}: put {lacking}.json beside it")
    texts = [read_text(file, str(file), MOST) for file, _ in (files[0], files[1])]
    contents = [_parsed(text, file) for text, (file, _) in zip(texts, (files[0], files[1]), strict=True)]
    names = categories_of(contents[0], str(files[0][0]))
    _check_same(names, categories_of(contents[1], str(files[1][0])), files[0][0], files[1][0])
    train, val = (
        split_of(content, names, str(file), places, sha256(text.encode()).hexdigest())
        for content, text, (file, places) in zip(contents, texts, (files[0], files[1]), strict=True)
    )
    return train, val


def _descriptions(folder: Path, names: Sequence[str]) -> Iterator[tuple[Path, list[Path]]]:
    """Yields the descriptions of a split, each with the folders in which its images may be."""
    for name in names:
        places = [folder / name, folder / name / "images", folder / "images" / name, folder / "images", folder]
        below = folder / "annotations"
        for file in (
            *(below / f"instances_{name}.json", below / f"{name}.json", folder / f"{name}.json"),
            folder / name / "_annotations.coco.json",
        ):
            if file.is_file():
                yield file, places


def _parsed(text: str, file: Path) -> Content:
    try:
        content = parse_json(text)
    except ValueError as error:
        raise UserError(f"{file}: no json ({one_line(error)}); get the file anew") from error
    for key in ("images", "annotations", "categories"):
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(each, dict) for each in rows):
            raise UserError(f"{file}: has no list of {key}; give COCO's form, with images, annotations and categories")
    found: Content = content
    return found


def categories_of(content: Content, origin: str) -> Names:
    """Returns name by id, the ids ascending. Raises UserError for none, or ids that are no numbers or there twice."""
    names = {number: str(row.get("name", number)) for number, row in _by_id(content["categories"], "category", origin)}
    if not names:
        raise UserError(f"{origin}: there is no category in it")
    return dict(sorted(names.items()))


def _check_same(train: Names, val: Names, train_file: Path, val_file: Path) -> None:
    for number, name in val.items():
        if train.get(number) != name:
            there = repr(train[number]) if number in train else "missing"
            raise UserError(f"{val_file}: category {number} is {name!r}, in {train_file} it is {there}; give the same")


def split_of(content: Content, names: Names, origin: str, places: Sequence[Path], identity: str) -> DetectionImages:
    """Returns the images with their objects, from plain values in COCO's form.

    Args:
        content: lists ``images``, ``annotations`` and ``categories``.
        names: of all categories, by id; labels are their order, from 1.
        origin: what messages begin with.
        places: folders in which an image may be, the first that has it counts.
        identity: sha256 of the description.

    Raises:
        UserError: a missing image, an unknown category or image, an id that is there twice, a malformed annotation.
    """
    pictures = _pictures(content["images"], origin, places)
    labels = {number: place for place, number in enumerate(names, 1)}
    notes: dict[str, list[str]] = {}
    for number, row in _by_id(content["annotations"], "annotation", origin):
        said = f"{origin}: annotation {number}"
        picture = _of(pictures, row.get("image_id"))
        label = _of(labels, row.get("category_id"))
        if picture is None or label is None:
            what, known = ("image", pictures) if picture is None else ("category", labels)
            there = shorten_list([str(each) for each in known])
            raise UserError(
                f"{said}: {what} {row.get(f'{what}_id')!r} is not among the {_many(what)} of the file ({there}); add it"
                " there, or remove the annotation"
            )
        thing = _thing(row, label, picture, said, notes, str(number))
        if thing is not None:
            picture.things.append(thing)
    return DetectionImages(origin, list(pictures.values()), list(names.values()), identity, notes)


def _many(what: str) -> str:
    return "images" if what == "image" else "categories"


def _of(table: Mapping[Any, Any], key: Any) -> Any:
    key = _whole(key)
    return table.get(key) if isinstance(key, int | str) and not isinstance(key, bool) else None


def _whole(number: Any) -> Any:
    """Returns 3 for 3.0, as files have it that went through a table with gaps; all else as it is."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _by_id(rows: Sequence[Content], what: str, origin: str) -> Iterator[tuple[Any, Content]]:
    """Yields each row with its id. Raises UserError for one that is missing, of a wrong type, or there twice."""
    seen: set[Any] = set()
    for place, row in enumerate(rows):
        number = _whole(row.get("id"))
        kinds = int if what == "category" else int | str
        give = "a whole number" if what == "category" else "a whole number or text"
        if not isinstance(number, kinds) or isinstance(number, bool):
            raise UserError(f"{origin}: {what} number {place + 1} of the list has id {number!r}; give {give}")
        if number in seen:
            raise UserError(f"{origin}: {what} {number} is there twice; an id belongs to one {what}")
        seen.add(number)
        yield number, row


def _pictures(rows: Sequence[Content], origin: str, places: Sequence[Path]) -> dict[Any, Picture]:
    pictures, missing = {}, []
    for number, row in _by_id(rows, "image", origin):
        name = name_inside(row.get("file_name"), f"{origin}: image {number}")
        path = next((place / name for place in places if (place / name).is_file()), None)
        if path is None:
            missing.append(f"{number} ({shown_path(name)})")
            continue
        height, width = _size(row, path, f"{origin}: image {number}")
        pictures[number] = Picture(path, height, width, number, [])
    if missing:
        raise UserError(
            f"{origin}: {len(missing)} of {len(rows)} images are not there: image {shorten_list(missing, 3)}; looked "
            f"in {', '.join(str(place) for place in places)}"
        )
    if not pictures:
        raise UserError(f"{origin}: there is no image in it")
    return pictures


def _size(row: Content, path: Path, said: str) -> tuple[int, int]:
    """Returns height and width in the file, or where it does not say them, of the picture."""
    if row.get("height") is None or row.get("width") is None:
        try:
            require_regular(path)
            header = read_header(path)  # as the image is seen: turned where its EXIF says so
            return header.height, header.width
        except Exception as error:  # on damaged data Pillow's plugins raise nearly anything
            raise UserError(f"{said}: {path} cannot be decoded: {one_line(error)}") from error
    height, width = row["height"], row["width"]
    if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in (height, width)):
        raise UserError(f"{said}: has height {height!r} and width {width!r}; give whole numbers above 0")
    return height, width


def _thing(
    row: Content, label: int, picture: Picture, said: str, notes: dict[str, list[str]], number: str
) -> Thing | None:
    """Returns an annotation with its box within the image; None where nothing of it is left, which is noted."""
    left, top, width, height = _numbers(row.get("bbox"), said)
    if width <= 0 or height <= 0:
        notes.setdefault(NO_AREA, []).append(number)
        return None
    whole = (left, top, left + width, top + height)
    limits = (picture.width, picture.height) * 2
    box = tuple(min(max(0.0, side), float(limit)) for side, limit in zip(whole, limits, strict=True))
    if box[0] >= box[2] or box[1] >= box[3]:
        notes.setdefault(OUTSIDE, []).append(number)
        return None
    if max(abs(a - b) for a, b in zip(box, whole, strict=True)) > ROUNDING:
        notes.setdefault(CLIPPED, []).append(number)
    problem = problem_of(row.get("segmentation"), picture.height, picture.width)
    if problem is not None:
        raise UserError(f"{said}: {problem}")
    crowd = row.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise UserError(f"{said}: iscrowd is {crowd!r}; give 0 or 1")
    return Thing(box, label, bool(crowd), _area(row.get("area"), said), row.get("segmentation") or None)  # type: ignore[arg-type]


ROUNDING = 0.5  # pixels beyond the image that are no finding: files have boxes with rounded decimals


def _area(given: Any, said: str) -> float | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given) or given < 0:
        raise UserError(f"{said}: its area is {given!r}; give a number of pixels")
    return float(given)


def _numbers(box: Any, said: str) -> list[float]:
    right = isinstance(box, list) and len(box) == 4
    if not right or not all(type(each) in (int, float) and math.isfinite(each) for each in box):
        raise UserError(f"{said}: its bbox is {str(box)[:60]}; give four numbers: left, top, width, height in pixels")
    return [float(each) for each in box]

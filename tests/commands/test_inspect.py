"""The report on a data set against what was planted in it; hashes and pairs against literal searches."""

import io
import json
import pickle
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from unlabeled.data.inspect.decode_speed import decode_speed
from unlabeled.data.inspect.duplicates import MOST_PAIRS, find_duplicates, find_equal, find_near, first_of_equal
from unlabeled.data.inspect.perceptual import brightness, near_pairs, perceptual_hash
from unlabeled.data.inspect.survey import Survey, survey
from unlabeled.data.source import HasEncodedImages
from unlabeled.data.sources.digits import digits
from unlabeled.data.sources.folder import folder
from unlabeled.data.sources.parquet import parquet

Command = Callable[..., str]


def photograph(seed: int, width: int = 96, height: int = 72) -> Image.Image:
    """Smooth structure of several scales and some noise, as photographs have."""
    generator = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3))
    for cells, weight in ((3, 90), (6, 50), (12, 25), (48, 6)):
        noise = Image.fromarray(generator.integers(0, 256, (cells, cells, 3)).astype(np.uint8))
        picture += weight * (np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) / 127.5 - 1)
    return Image.fromarray((128 + picture).clip(0, 255).astype(np.uint8))


def tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def hashed(*images: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    return perceptual_hash(torch.stack([brightness(tensor(image)) for image in images]))


def bits(a: np.ndarray, b: np.ndarray) -> int:
    return sum(int(one).bit_count() for one in a ^ b)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs ``unlabeled inspect`` in an empty folder, in this process; returns what it printed.

    Refused commands must have exit code 2 and one line.
    """

    def run(*overrides: str, refused: bool = False) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["inspect", *overrides])
        monkeypatch.delitem(sys.modules, "unlabeled.commands.inspect", raising=False)
        if not refused:
            runpy.run_module("unlabeled.commands.inspect", run_name="__main__")
            return capfd.readouterr().out
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module("unlabeled.commands.inspect", run_name="__main__")
        assert stopped.value.code == 2
        line = capfd.readouterr().err.strip()
        assert "\n" not in line
        return line

    return run


def report(where: Path) -> dict[str, Any]:
    """Without what is timed."""
    found: dict[str, Any] = json.loads((where / "inspect.json").read_text())
    return {key: value for key, value in found.items() if key != "speed"}


def plant(root: Path) -> None:
    """Two classes in train and test with every kind of fault in them."""
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (root / name).mkdir(parents=True)
    for number in range(6):
        photograph(number).save(root / f"train/cat/{number}.png")
        photograph(10 + number).save(root / f"train/dog/{number}.png")
        photograph(20 + number).save(root / f"test/cat/{number}.png")
        photograph(30 + number).save(root / f"test/dog/{number}.png")
    photograph(0).save(root / "train/cat/again.bmp")  # the same pixels in another file
    photograph(1).save(root / "train/dog/mistaken.png")  # … under another label
    photograph(2).save(root / "test/cat/leaked.png")  # … in test
    recompressed(photograph(3), 50).save(root / "train/cat/jpeg.png")
    ImageEnhance.Brightness(photograph(12)).enhance(1.1).save(root / "test/cat/brighter.png")  # a dog in train
    photograph(21).resize((80, 60), Image.Resampling.BICUBIC).save(root / "test/cat/small.png")
    for number, grey in enumerate((0, 90, 255)):
        Image.new("RGB", (96, 72), (grey, grey, grey)).save(root / f"train/dog/flat{number}.png")
    (root / "train/dog/broken.jpg").write_bytes(b"no image")


FOLDER = ("data=folder", "data.path=photos", "data.image_size=64")


def test_everything_planted_is_found_and_nothing_else(command: Command, tmp_path: Path) -> None:
    plant(tmp_path / "photos")
    printed = command(*FOLDER, "num_workers=0")
    found = report(tmp_path / "outputs" / "inspect-folder")
    train, test, pairs = found["splits"]["train"], found["splits"]["test"], found["duplicates"]
    assert (train["images"], train["decoded"], test["images"], test["decoded"]) == (19, 18, 15, 15)
    (broken,) = train["corrupt"]
    assert broken["reason"].endswith("train/dog/broken.jpg: not an image that Pillow can read")
    assert broken["reason"] in printed
    assert test["corrupt"] == []

    exact = pairs["exact"]
    assert exact["repeated"] == {"train": 2, "train and test": 1, "test": 0}
    groups = [({Path(each["name"]).name for each in group["images"]}, group["conflict"]) for group in exact["groups"]]
    assert groups == [
        ({"0.png", "again.bmp"}, False),
        ({"1.png", "mistaken.png"}, True),
        ({"2.png", "leaked.png"}, False),
    ]
    assert exact["conflicts"] == 1

    near = pairs["near"]
    listed = {frozenset(Path(each["name"]).name for each in pair["images"]): pair for pair in near["listed"]}
    assert set(listed) == {
        frozenset({"3.png", "jpeg.png"}),
        frozenset({"2.png", "brighter.png"}),
        frozenset({"1.png", "small.png"}),
    }
    assert near["pairs"] == {"train": 1, "train and test": 1, "test": 1}
    assert [pair["conflict"] for pair in listed.values()].count(True) == near["conflicts"] == 1
    across = listed[frozenset({"2.png", "brighter.png"})]
    assert [each["class"] for each in across["images"]] == ["dog", "cat"]
    assert across["conflict"]
    assert near["test_images"] == 1  # the leaked one equals a train image, and counts there
    assert train["plain"]["count"] == 3
    assert [Path(name).name for name in train["plain"]["images"]] == ["flat0.png", "flat1.png", "flat2.png"]
    assert "2 in train, 0 in test; 1 test images are in train. 3 pictures occur more than once, 1 of them" in printed
    assert (
        "1 within train, 1 within test, 1 between them; 1 of all pairs have two labels. 1 test images (6.67%)"
        in printed
    )
    assert "**two labels**: train photos/train/dog/2.png (dog) ~ test photos/test/cat/brighter.png (cat)" in printed
    with Image.open(tmp_path / "outputs" / "inspect-folder" / "near_duplicates.png") as picture:
        assert picture.size == (2 * (2 * 85 + 4), 16 + 3 * (2 * 85 + 4))  # 85 × 64 pixels, enlarged twice


def test_the_report_is_the_same_for_any_number_of_workers(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unlabeled.data.inspect.survey._CHUNK", 4)  # so that two workers have something to do
    plant(tmp_path / "photos")
    for workers in (0, 2):
        command(*FOLDER, f"num_workers={workers}", f"out=out{workers}")
    assert report(tmp_path / "out0") == report(tmp_path / "out2")
    texts = [(tmp_path / f"out{workers}" / "inspect.md").read_text().split("## Decoding")[0] for workers in (0, 2)]
    assert texts[0] == texts[1]
    pictures = [(tmp_path / f"out{workers}" / "near_duplicates.png").read_bytes() for workers in (0, 2)]
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize("square", [False, True])
def test_mean_and_std_are_those_of_all_pixels_of_train(tmp_path: Path, square: bool) -> None:
    for number, width in enumerate((40, 64, 96, 130, 200)):
        photograph(number, width).save(tmp_path / f"{number}.png")
    source = folder(str(tmp_path), image_size=48, square=square).train
    pixels = np.concatenate([source.decode(index).flatten(1).numpy() for index in range(5)], 1) / 255
    mean, std = survey(source, np.arange(5), 0, "").mean_and_std()
    np.testing.assert_allclose(mean, pixels.mean(1), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(1), rtol=1e-12)


def test_the_digits_mean_and_std_are_printed_as_a_yaml_takes_them(command: Command, tmp_path: Path) -> None:
    printed = command("data=digits", "num_workers=0", "near_distance=null")
    pixels = digits().train.images.double() / 255  # type: ignore[attr-defined]
    mean, std = float(pixels.mean()), float(pixels.std(correction=0))
    assert f"mean: [{mean:.4f}, {mean:.4f}, {mean:.4f}]\nstd: [{std:.4f}, {std:.4f}, {std:.4f}]\n" in printed
    found = report(tmp_path / "outputs" / "inspect-digits")
    np.testing.assert_allclose(found["normalisation"]["mean"], mean, rtol=1e-12)
    np.testing.assert_allclose(found["normalisation"]["std"], std, rtol=1e-12)
    assert found["normalisation"]["pixels"] == 1347 * 64
    assert found["duplicates"]["near"] is None
    assert found["splits"]["train"]["kinds"] == {"pixels in memory": 1347}
    assert not (tmp_path / "outputs" / "inspect-digits" / "near_duplicates.png").exists()


def test_sizes_and_modes_are_those_of_the_files_before_they_are_decoded(command: Command, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    photograph(0, 100, 50).convert("L").save(photos / "grey.jpg")
    photograph(1, 40, 40).convert("RGBA").save(photos / "alpha.png")
    Image.fromarray(np.arange(60 * 90, dtype=np.uint16).reshape(90, 60)).save(photos / "deep.png")
    photograph(2, 300, 100).save(photos / "wide.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # shown with a quarter turn: 70 wide and 110 high
    photograph(3, 110, 70).save(photos / "turned.jpg", exif=turned)
    command(*FOLDER, "num_workers=0")
    found = report(tmp_path / "outputs" / "inspect-folder")["splits"]
    train = found["train"]
    assert train["kinds"] == {"JPEG L": 1, "JPEG RGB": 1, "PNG I;16": 1, "PNG RGB": 1, "PNG RGBA": 1}
    assert train["height"] == {"min": 40, "median": 90, "max": 110}
    assert train["width"] == {"min": 40, "median": 70, "max": 300}
    counts = [("up to 1:2", 0), ("up to 3:4", 2), ("up to 1:1", 0), ("1:1", 1), ("up to 4:3", 0), ("up to 2:1", 1)]
    assert train["aspect"] == dict([*counts, ("wider", 1)])
    assert train["smaller"] == 3 / 5  # 50, 40 and 60 of 64
    assert train["stored_bytes"] == sum(path.stat().st_size for path in photos.iterdir())
    assert train["classes"] is None
    assert "test" not in found


def test_the_speed_of_decoding_says_how_many_workers_feed_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photograph(0).save(tmp_path / "0.png")
    photograph(1).save(tmp_path / "1.png")
    length = sum(path.stat().st_size for path in tmp_path.iterdir())
    clock = iter([10.0, 10.1, 10.25, 10.25])  # at the start, after each of the two, at the end
    monkeypatch.setattr("unlabeled.data.inspect.decode_speed.time.perf_counter", lambda: next(clock))
    speed = decode_speed(folder(str(tmp_path)).train, np.arange(2), 17)
    assert (speed["images"], speed["encoded"], speed["workers"]) == (2, True, 3)  # 8 images/s of each
    assert speed["images_per_second"] == pytest.approx(8)
    assert speed["megabytes_per_second"] == pytest.approx(length / 0.25 / 1e6)


def test_classes_are_counted_with_the_empty_and_the_unlabelled(command: Command, tmp_path: Path) -> None:
    stream = io.BytesIO()
    photograph(0, 32, 32).save(stream, "PNG")
    for name, labels in (("train", [0, 0, 0, 0, 2, 2, None, 4, 4, None]), ("test", [0, 2])):
        table = pa.table({"image": pa.array([stream.getvalue()] * len(labels)), "label": pa.array(labels)})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    printed = command("data=parquet", f"data.path={tmp_path}", "num_workers=0")
    found = report(tmp_path / "outputs" / "inspect-parquet")
    train = found["splits"]["train"]["classes"]
    assert train["counts"] == {"0": 4, "1": 0, "2": 2, "3": 0, "4": 2}
    assert (train["min"], train["median"], train["max"], train["imbalance"]) == (0, 2, 4, 2)
    assert (train["empty"], train["labelled"], train["unlabelled"]) == (["1", "3"], 8, 2)
    assert "2 classes without an image: 1, 3" in printed
    assert found["duplicates"]["exact"]["repeated"] == {"train": 9, "train and test": 2, "test": 1}
    assert found["duplicates"]["exact"]["conflicts"] == 1
    assert found["duplicates"]["near"]["listed"] == []  # equal ones are not near besides


def test_a_limit_looks_at_images_evenly_spaced(command: Command, tmp_path: Path) -> None:
    printed = command("data=digits", "num_workers=0", "limit=100")
    train = report(tmp_path / "outputs" / "inspect-digits")["splits"]["train"]
    assert (train["images"], train["looked_at"], train["decoded"]) == (1347, 100, 100)
    assert train["classes"]["labelled"] == 1347
    assert "train: 1,347 images, 100 of them checked" in printed
    pixels = digits().train.images[torch.arange(100) * 1347 // 100].double() / 255  # type: ignore[attr-defined]
    found = report(tmp_path / "outputs" / "inspect-digits")["normalisation"]
    np.testing.assert_allclose(found["mean"], float(pixels.mean()), rtol=1e-12)


@pytest.mark.parametrize(("seed", "distance"), [(0, 0), (1, 2), (2, 3), (3, 4), (4, 6), (5, 7), (6, 8), (7, 11)])
def test_near_pairs_are_those_of_a_search_through_all_pairs_each_once(
    seed: int, distance: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unlabeled.data.inspect.perceptual._CANDIDATES", 97)  # so that pieces are cut everywhere
    generator = np.random.default_rng(seed)
    centres = generator.integers(0, 2**16, (12, 4)).astype(np.uint16)
    flips = generator.random((240, 64)) < 0.07
    hashes = np.repeat(centres, 20, 0) ^ np.packbits(flips, axis=1).view(np.uint16)
    parts = [np.stack(pair, 1) for pair in near_pairs(hashes, distance)]
    found = sorted(map(tuple, np.concatenate(parts).tolist()))
    apart = np.unpackbits((hashes[:, None] ^ hashes[None]).view(np.uint8), axis=2).sum(2, dtype=np.int64)
    wanted = [(a, b, int(apart[a, b])) for a in range(240) for b in range(a + 1, 240) if apart[a, b] <= distance]
    assert found == wanted
    assert len(wanted) >= (1 if distance >= 2 else 0)


def test_pieces_of_pairs_stay_small_though_all_hashes_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlabeled.data.inspect.perceptual._CANDIDATES", 5000)
    sizes = [len(first) for first, _, _ in near_pairs(np.zeros((600, 4), np.uint16), 6)]
    assert sum(sizes) == 600 * 599 // 2
    assert max(sizes) <= 5000


def test_of_more_pairs_than_are_kept_the_nearest_stay_and_all_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlabeled.data.inspect.duplicates.MOST_PAIRS", 10)
    monkeypatch.setattr("unlabeled.data.inspect.perceptual._CANDIDATES", 50)
    hashes = np.zeros((40, 4), np.uint16)
    hashes[:, 0] = [0b111 if number % 4 else 0 for number in range(40)]  # 10 of one, 30 of another, 3 bits apart
    seen = Survey(
        np.arange(40),
        np.ones((40, 2), np.int32),
        np.arange(80, dtype=np.uint64).reshape(40, 2),
        hashes,
        np.zeros(40, bool),
    )
    images = find_duplicates([seen], [np.full(40, -1)])
    near = find_near(images, find_equal(images), 6)
    assert near.count == {"train": 780, "train and test": 0, "test": 0}
    assert near.pairs.tolist() == [[0, other, 0] for other in (4, 8, 12, 16, 20, 24, 28, 32, 36)] + [[1, 2, 0]]
    assert MOST_PAIRS == 100_000


def test_test_images_like_train_are_counted_with_their_equals_and_not_twice() -> None:
    rows = [[0, 0, 0, 0], [2, 0, 0, 0], [1, 0, 0, 0], [9, 9, 9, 9], [1, 0, 0, 0], [0, 0, 0, 0], [9, 9, 9, 8]]
    hashes = np.array(rows, np.uint16)
    digests = np.array([[0, each] for each in (0, 1, 2, 3, 2, 0, 6)], np.uint64)
    parts = [slice(0, 2), slice(2, 7)]  # two of train and five of test: 2 and 4 are near 0, 5 equals it
    surveys = [
        Survey(
            np.arange(7)[part], np.ones((7, 2), np.int32)[part], digests[part], hashes[part], np.zeros(7, bool)[part]
        )
        for part in parts
    ]
    images = find_duplicates(surveys, [np.array([0, 0]), np.array([1, 2, -1, 0, -1])])
    exact = find_equal(images)
    assert exact.repeated == {"train": 0, "train and test": 1, "test": 1}
    assert [group.tolist() for group in exact.groups] == [[0, 5], [2, 4]]
    assert exact.conflicts == [False, False]  # no label is not another label
    near = find_near(images, exact, 1)
    assert near.pairs.tolist() == [[0, 1, 1], [0, 2, 1], [3, 6, 1]]
    assert near.count == {"train": 1, "train and test": 1, "test": 1}
    assert (near.test_images, near.conflicts) == (2, 1)


def test_the_first_of_equal_digests_is_found() -> None:
    digests = np.array([[5, 1], [5, 2], [4, 1], [5, 1], [4, 1], [5, 1]], np.uint64)
    assert first_of_equal(digests).tolist() == [0, 1, 2, 0, 2, 0]
    assert first_of_equal(digests[:0]).tolist() == []


def test_the_hash_is_the_signs_of_a_literal_cosine_transform() -> None:
    image = photograph(5)
    grey = brightness(tensor(image)).double().numpy()
    strengths = {}
    for v in range(16):
        for u in range(16):
            basis = np.outer(*(np.cos(np.pi * (2 * np.arange(32) + 1) * k / 64) for k in (v, u)))
            strengths[v, u] = (grey * basis).sum()
    lowest = sorted(strengths, key=lambda at: (sum(at), at[0]))[1:65]
    ((found,), (plain,)) = hashed(image)
    truth = [strengths[at] > 0 for at in lowest]
    bands = [truth[start::4] for start in range(4)]
    assert found.tobytes() == np.packbits(np.array(bands), axis=1).tobytes()
    assert not plain


def test_other_copies_of_a_photograph_differ_in_few_bits_and_other_photographs_in_many() -> None:
    for seed in range(20):
        image = photograph(seed)
        copies = [
            recompressed(image, 30),
            ImageEnhance.Brightness(image).enhance(1.08),
            ImageEnhance.Contrast(image).enhance(0.8),
            image.resize((48, 36), Image.Resampling.BICUBIC),
            image.convert("L").convert("RGB"),
            image.resize((192, 144), Image.Resampling.BILINEAR),
        ]
        hashes, plain = hashed(image, *copies, photograph(100 + seed))
        assert max(bits(hashes[0], copy) for copy in hashes[1:-1]) <= 6
        assert 14 <= bits(hashes[0], hashes[-1]) <= 50
        assert not plain.any()


def test_flat_images_and_straight_gradients_are_plain_and_have_the_same_bits_at_any_brightness() -> None:
    flat = [Image.new("RGB", (50, 40), (grey, grey, 255 - grey)) for grey in (0, 3, 77, 255)]
    hashes, plain = hashed(*flat)
    assert plain.all()
    assert hashes.max() == 0
    ramp = Image.fromarray(np.tile(np.arange(0, 256, 4).astype(np.uint8)[None, :, None], (64, 1, 3)))
    assert hashed(ramp)[1].all()


def test_equal_bytes_in_another_shape_are_another_picture(tmp_path: Path) -> None:
    for name, shape in (("high", (20, 40)), ("same", (20, 40)), ("wide", (40, 20))):
        Image.new("RGB", shape, (9, 9, 9)).save(tmp_path / f"{name}.png")
    seen = survey(folder(str(tmp_path)).train, np.arange(3), 0, "")
    assert first_of_equal(seen.digests).tolist() == [0, 0, 2]


def test_what_a_survey_keeps_of_an_image_is_less_than_100_bytes() -> None:
    source = digits().train
    seen = survey(source, np.arange(1000), 0, "")
    kept = [values for values in vars(seen).values() if isinstance(values, np.ndarray) and len(values) == 1000]
    assert sum(values.nbytes for values in kept) == 1000 * (8 + 8 + 16 + 8 + 1)
    assert len(pickle.dumps(seen)) < 1000 * 41 + 2000


def test_sources_of_files_give_them_and_those_of_arrays_do_not(tmp_path: Path) -> None:
    photograph(0).save(tmp_path / "0.png")
    source = folder(str(tmp_path)).train
    assert isinstance(source, HasEncodedImages)
    assert source.encoded(0) == tmp_path / "0.png"
    assert not isinstance(digits().train, HasEncodedImages)
    table = pa.table({"image": pa.array([b"abc", None]), "label": pa.array([0, 0])})
    pq.write_table(table, tmp_path / "train.parquet")
    rows = parquet(str(tmp_path), test=None).train
    assert isinstance(rows, HasEncodedImages)
    assert rows.encoded(0) == b"abc"


def test_where_nothing_can_be_decoded_the_files_are_listed(command: Command, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(25):
        (tmp_path / "photos" / f"{number:02}.png").write_bytes(b"")
    printed = command(*FOLDER, "num_workers=0")
    found = report(tmp_path / "outputs" / "inspect-folder")
    assert len(found["splits"]["train"]["corrupt"]) == 25
    assert found["normalisation"] == {"mean": None, "std": None, "pixels": 0}
    assert "19.png: empty, 0 bytes" in printed
    assert "20.png" not in printed
    assert "… 5 more" in printed
    assert "have two labels" in printed
    assert "within train;" in printed  # and not a word of the test split that is not there
    assert "24.png" in (tmp_path / "outputs" / "inspect-folder" / "inspect.md").read_text()


def test_ctrl_c_leaves_no_file(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unlabeled.data.inspect.duplicates.find_near", interrupted)
    with pytest.raises(SystemExit) as stopped:
        command("data=digits", "num_workers=0")
    assert stopped.value.code == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["num_worker=1"], "did you mean num_workers?"),
        (["near_distance=12"], "near_distance=12: must be a whole number, from 0 to 11"),
        (["near_distance=few"], "a whole number, from 0 to 11 or null"),
        (["limit=0"], "limit=0: must be a whole number, at least 1"),
        (["num_workers=-1"], "num_workers=-1"),
        (["images_per_second=0"], "images_per_second=0"),
        (["out="], "out=: must be a path"),
        (["data=folder", "data.path=/nowhere"], "/nowhere"),
    ],
)
def test_a_mistake_in_the_command_costs_one_line(command: Command, overrides: list[str], words: str) -> None:
    assert words in command(*overrides, refused=True)

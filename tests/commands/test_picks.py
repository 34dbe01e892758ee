"""``unlabeled train data=PATH``: what suits the images is picked, and nothing that was given is changed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.small import composed
from unlabeled.commands.arguments import compose
from unlabeled.commands.arguments.data_path import with_data_source
from unlabeled.commands.train import picks
from unlabeled.commands.train.picks import Look, completed, own_of, pick_for, recipe_of
from unlabeled.errors import UserError


def pictures(folder: Path, count: int, height: int, width: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.full((height, width, 3), number, np.uint8)).save(folder / f"{number}.png")


def picked(seen: Look, **given: str) -> dict[str, object]:
    return {key: value for pick in pick_for(seen, given) for key, value in pick.values.items()}


def seen(images: int, side: int, gpu: bool, labelled: int = 0, tested: int = 0) -> Look:
    return Look("photos", images, side, 2 if labelled else 0, labelled, tested, gpu)


def test_size_batch_epochs_and_backbone_follow_from_the_images_and_the_device() -> None:
    large = picked(seen(1_000_000, 400, gpu=True))
    assert (large["views"], large["views.size"], large["data.image_size"]) == ("simclr", 224, 256)
    assert (large["backbone"], large["batch_size"], large["max_epochs"]) == ("resnet50", 256, 100)
    few = picked(seen(1000, 33, gpu=False))
    assert (few["views"], few["views.size"], few["data.image_size"]) == ("simclr_small", 32, 33)
    assert (few["backbone"], few["batch_size"], few["max_epochs"]) == ("resnet_thin", 128, 200)
    assert picked(seen(50_000, 400, gpu=False))["views.size"] == 64  # no GPU: 224 pixels would be twelve times the work
    assert picked(seen(20, 400, gpu=False))["batch_size"] == 8


def test_a_moco_queue_is_shorter_than_the_data_and_a_knn_has_as_many_neighbours_as_there_are_labels() -> None:
    found = picked(seen(1000, 32, gpu=False, labelled=50, tested=10), objective="moco_v2")
    assert (found["views"], found["objective.queue_size"]) == ("moco_small", 384)
    assert found["probe.knn.k"] == "[20]"
    assert "probe.knn.k" not in picked(seen(1000, 32, gpu=False, labelled=1000, tested=10))
    assert "objective.temperature" not in found


def test_a_folder_gets_all_that_is_left_open_and_the_whole_command_composes(tmp_path: Path) -> None:
    pictures(tmp_path / "my photos" / "train" / "a", 30, 40, 60)
    pictures(tmp_path / "my photos" / "train" / "b", 30, 40, 60)
    pictures(tmp_path / "my photos" / "test" / "a", 3, 40, 60)
    pictures(tmp_path / "my photos" / "test" / "b", 3, 40, 60)
    said: list[str] = []
    whole = completed([f"data={tmp_path / 'my photos'}", "max_epochs=7", "optimizer=lars"], said.append)
    assert said[0].endswith("my photos: 60 images, shorter side 40 pixels (median), 2 classes, 6 test images")
    config = composed(*whole)
    assert (config.max_epochs, config.views.size, config.batch_size, config.name) == (7, 32, 8, "my-photos")
    assert config.data.path == str(tmp_path / "my photos")
    assert config.optimizer.optimizer._target_ == "unlabeled.optimizers.LARS"  # as given
    assert config.optimizer.lr == 0.3  # and so are its own values
    assert not [each for each in whole if each.startswith("optimizer.")]
    assert completed(whole, said.append) == whole  # the whole command is what it says


def test_a_run_that_its_steps_end_has_the_warm_up_and_the_time_of_so_many_epochs() -> None:
    batch = int(str(picked(seen(1000, 32, gpu=False))["batch_size"]))
    picks_of_run = pick_for(seen(1000, 32, gpu=False), {"max_steps": "40"})
    (why,) = [pick.why for pick in picks_of_run if "max_epochs" in pick.values]
    assert why.startswith(f"{40 * batch:,} images seen")
    warm_up = picked(seen(1000, 32, gpu=False), max_steps="40")["optimizer.warmup_epochs"]
    assert warm_up == pytest.approx(40 * batch / 1000 / 20, abs=0.01)


def test_an_experiment_is_left_as_it_is_and_so_is_a_choice(tmp_path: Path) -> None:
    pictures(tmp_path / "x", 20, 8, 8)
    given = [f"data={tmp_path / 'x'}", "experiment=cifar10_cpu"]
    assert completed(given) == ["data=folder", f"data.path={tmp_path / 'x'}", "experiment=cifar10_cpu"]
    assert completed(["data=digits"]) == ["data=digits"]
    assert completed(["data=digts"]) == ["data=digts"]  # Hydra knows the nearest


def test_too_few_images_are_refused_in_words(tmp_path: Path) -> None:
    pictures(tmp_path / "x", 3, 8, 8)
    with pytest.raises(UserError, match="3 images, 3 that can be read: give 16 at least"):
        completed([f"data={tmp_path / 'x'}"])


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("train-0.tar", "shards"),
        ("train.parquet", "parquet"),
        ("dataset_dict.json", "huggingface"),
        ("train/index.json", "litdata"),
        ("a.png", "folder"),
    ],
)
def test_the_files_say_which_source_reads_them(tmp_path: Path, file: str, source: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    assert with_data_source(["seed=1", f"data={tmp_path}"]) == ["seed=1", f"data={source}", f"data.path={tmp_path}"]
    (tmp_path / "test").mkdir()
    last = with_data_source([f"data={tmp_path}"])[-1]
    assert (last == "data.test=test") == (source in ("huggingface", "litdata"))


def test_an_archive_beside_the_images_it_held_is_no_shard(tmp_path: Path) -> None:
    pictures(tmp_path / "train" / "cat", 1, 8, 8)
    (tmp_path / "train.tar").touch()
    assert with_data_source([f"data={tmp_path}"])[0] == "data=folder"
    (tmp_path / "pack.json").touch()
    assert with_data_source([f"data={tmp_path}"])[0] == "data=shards"


def test_what_was_typed_is_checked_before_an_image_is_looked_at_whatever_may_be_picked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked(path: str, overrides: list[str]) -> None:
        raise AssertionError("looked")

    monkeypatch.setattr(picks, "look", looked)
    data = f"data={tmp_path}/"
    for typed, message in (
        ("batch_size=0", "batch_size=0: must be a whole number"),
        ("optimizer.momentun=1", "optimizer.momentun: no such key"),
        ("views.size=0", "views.size=0: must be"),
    ):
        with pytest.raises(UserError, match=message):
            completed([data, typed])
    for right in (
        *(["backbone.stem=cifar"], ["optimizer.optimizer.momentum=0.8"], ["objective=moco_v2", "views.size=64"]),
        *(["objective=swav", "optimizer.optimizer.trust_coefficient=0.01"], ["batch_size=32,64", "-m"]),
        ["seed=choice(1,2)", "--multirun"],
    ):
        with pytest.raises((AssertionError, UserError)) as stopped:
            completed([data, *right])
        assert str(stopped.value) == "looked", right


def test_one_minute_is_one_minute() -> None:
    assert "about 1 minute on" in next(
        p.why for p in pick_for(seen(100, 32, gpu=False), {}) if "max_epochs" in p.values
    )


@pytest.mark.parametrize("objective", ["byol", "dino", "mae", "swav", "supcon"])
def test_a_method_that_was_not_tried_on_folders_starts_from_its_recipe_for_a_cpu(
    objective: str, tmp_path: Path
) -> None:
    recipe = composed(f"experiment={objective}_cifar10_cpu")
    pictures(tmp_path / "photos" / "a", 40, 40, 40)
    lines: list[str] = []
    whole = completed([f"data={tmp_path / 'photos'}", f"objective={objective}", "name=x"], lines.append)
    config = composed(*whole)
    assert config.views.size == recipe.views.size
    assert len(config.views.groups) == len(recipe.views.groups)
    assert config.backbone._target_ == recipe.backbone._target_
    assert config.optimizer.lr == recipe.optimizer.lr
    assert config.optimizer.warmup_epochs == config.max_epochs // 20
    assert f"experiment={objective}_cifar10_cpu" in "".join(lines)


@pytest.mark.parametrize(
    ("objective", "given", "expected"),
    [
        ("fixmatch", {}, {"objective.classes": 3, "objective.support.classes_per_batch": 3}),
        (
            "paws",
            {"objective.support.per_class": "4"},
            {"objective.support.classes_per_batch": 3, "objective.support.images_per_class": 4},
        ),
        ("paws", {}, {"objective.support.classes_per_batch": 3, "objective.support.images_per_class": 2}),
        ("scan", {}, {"objective.clusters": 3}),
        ("supervised", {}, {"objective.classes": 3}),
        ("simclr", {}, {}),
    ],
)
def test_classes_clusters_and_labelled_images_of_a_step_follow_from_the_data(
    objective: str, given: dict[str, str], expected: dict[str, int]
) -> None:
    look = Look("photos", 90, 32, 3, 80, 10, gpu=False, fewest=20)  # a tenth of the rarest class are two images
    picks_of = pick_for(look, given | {"objective": objective}, recipe_of(objective), own_of(objective))
    found = {key: value for pick in picks_of for key, value in pick.values.items()}
    assert {key: value for key, value in found.items() if key in expected or "support" in key} == expected


def test_the_probes_of_a_method_are_picked_and_a_typed_choice_of_labels_replaces_the_recipes(tmp_path: Path) -> None:
    for label in ("a", "b"):
        pictures(tmp_path / "photos" / label, 10, 8, 8)
    whole = completed([f"data={tmp_path / 'photos'}", "objective=fixmatch", "objective.support.per_class=2"], print)
    config = compose.composed("train", whole)
    assert list(config.probe) == ["classifier", "knn", "linear"]
    assert (config.objective.classes, config.objective.support.classes_per_batch) == (2, 2)
    support = config.objective.support
    assert (support.per_class, support.fraction, support.labels_file) == (2, None, None)

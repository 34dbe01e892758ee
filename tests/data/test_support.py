"""The support of a step: balanced, a function of the step alone, of listed images only, and refused if it cannot be."""

import itertools
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torch import Tensor

from unlabeled.core.seeding import derive_seed
from unlabeled.data.labels import LabelSelection, shared_names
from unlabeled.data.loaders import ArrayLoader, LazyLoader
from unlabeled.data.memory import ArraySource
from unlabeled.data.module import DataModule
from unlabeled.data.source import CorruptImage, Source, Splits
from unlabeled.data.sources.folder import folder
from unlabeled.data.support import ClassBalanced, SupportOrder, decode_labelled
from unlabeled.errors import UserError
from unlabeled.objective import Progress, Support
from unlabeled.training.pretraining import _SUPPORT, Pretraining
from unlabeled.views.key import ViewKey
from unlabeled.views.operations import RandomResizedCrop
from unlabeled.views.pipeline import ViewGroup, Views

CLASSES, EACH = 5, 8


def in_memory(labels: list[int] | None = None) -> ArraySource:
    """Image i is filled with the value i; classes take turns: 0, 1, 2, 3, 4, 0, …"""
    given = list(range(CLASSES)) * EACH if labels is None else labels
    images = torch.arange(len(given), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2).contiguous()
    return ArraySource(images, torch.tensor(given), list("abcdefghij"[: max(given) + 1]), "made up train")


class Files:
    """The same as if it were too large for memory; images of ``broken`` cannot be decoded."""

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self._images, self._broken = in_memory(), broken
        self.labels, self.classes = self._images.labels, self._images.classes
        self.image_size, self.square = 2, True

    def __len__(self) -> int:
        return len(self._images)

    def decode(self, index: int) -> Tensor:
        if index in self._broken:
            raise CorruptImage(f"{self.name(index)}: torn")
        return self._images.decode(index)

    def name(self, index: int) -> str:
        return self._images.name(index)


def settings(**changed: Any) -> ClassBalanced:
    given: dict[str, Any] = {
        "labels_file": None,
        "fraction": None,
        "per_class": 6,
        "seed": 0,
        "classes_per_batch": 2,
        "images_per_class": 3,
        "views": 1,
    }
    return ClassBalanced(**(given | changed))


def order(rank: int = 0, of: int = 1, start: int = 0, seed: int = 0, **changed: Any) -> SupportOrder:
    wanted = settings(**changed)
    labels = wanted.choose(in_memory(), of)
    return SupportOrder(wanted, labels.labels, labels.ids, seed, rank, of, lambda: start)


def module(source: Source, lazy: bool, step: int = 0, rank: int = 0, of: int = 1, workers: int = 0) -> DataModule:
    data = DataModule(Splits(source, None, "made up"), 4, workers, 0.0 if lazy else 1.0, seed=3)
    process = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = cast(Any, SimpleNamespace(global_rank=rank, world_size=of, global_step=step, strategy=process))
    data.attach_support(settings(), of)
    data.plan(2, None)
    return data


def supports(data: DataModule) -> list[Support]:
    found = [batch.support for batch in data.train_dataloader()]
    assert None not in found
    return cast(list[Support], found)


def test_every_step_has_as_many_images_of_each_class_in_rows_that_go_through_the_classes_in_turn() -> None:
    source, steps = in_memory(), order()
    for step in range(30):
        labels = source.labels[steps.rows(step)].view(3, 2)
        assert bool((labels == labels[0]).all())
        assert labels[0, 0] != labels[0, 1]


def test_the_classes_of_a_round_are_different_ones_and_all_have_their_turn() -> None:
    source, steps = in_memory(), order()
    seen: Counter[int] = Counter()
    for turn in range(50):  # a round of 5 classes has 2 steps of 2
        classes = source.labels[torch.cat([steps.rows(2 * turn), steps.rows(2 * turn + 1)])].tolist()
        assert len(set(classes)) == 4
        seen.update(set(classes))
    assert set(seen) == set(range(CLASSES))
    assert min(seen.values()) > 30  # 40 are expected


def test_no_image_comes_again_before_the_others_of_its_class_and_then_in_another_order() -> None:
    steps = order(classes_per_batch=5)
    source = in_memory()
    for first in range(0, 12, 2):  # 6 images, 3 a step: an inner epoch is two steps
        rows = torch.cat([steps.rows(first), steps.rows(first + 1)])
        assert len(set(rows.tolist())) == 30
        assert Counter(source.labels[rows].tolist()) == dict.fromkeys(range(CLASSES), 6)
    pairs = {tuple(sorted(steps.rows(step)[:5].tolist())) for step in range(0, 20, 2)}
    assert len(pairs) > 5


def test_the_support_of_a_step_does_not_depend_on_where_the_run_was_started() -> None:
    whole = list(itertools.islice(order(), 12))
    assert list(itertools.islice(order(start=7), 5)) == whole[7:]
    assert [order().rows(step).tolist() for step in (11, 3)] == [whole[11], whole[3]]
    assert list(itertools.islice(order(seed=1), 12)) != whole


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_the_shares_of_the_processes_make_up_the_support_of_one_with_its_slots(processes: int) -> None:
    one, shares = order(), [order(rank, processes) for rank in range(processes)]
    for step, whole in enumerate(itertools.islice(one, 8)):
        assert [row for share in shares for row in share.rows(step)[share._mine].tolist()] == whole
    assert torch.cat([share.slots for share in shares]).tolist() == one.slots.tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("lazy", [False, True])
def test_a_batch_comes_with_listed_images_and_their_slots_from_memory_and_from_files(lazy: bool) -> None:
    source = in_memory()
    data = module(Files() if lazy else source, lazy)
    assert isinstance(data.train_dataloader(), LazyLoader if lazy else ArrayLoader)
    assert data.labels is not None
    found = supports(data)
    assert len(found) == 20
    for support, rows in zip(
        found, SupportOrder(settings(), data.labels.labels, data.labels.ids, 3, 0, 1, int), strict=False
    ):
        assert support.ids.tolist() == rows
        assert set(rows) <= set(data.labels.ids.tolist())
        assert support.slots.tolist() == [0, 1, 0, 1, 0, 1]
        assert torch.equal(support.images, source.images[support.ids])
    without = DataModule(data.splits, 4, 0, 0.0 if lazy else 1.0, seed=3)
    without.trainer = data.trainer
    without.plan(2, None)
    for beside, alone in zip(data.train_dataloader(), without.train_dataloader(), strict=True):
        assert alone.support is None
        assert torch.equal(beside.ids, alone.ids)
        assert torch.equal(beside.images, alone.images)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_run_that_goes_on_and_several_processes_see_the_supports_of_one_uninterrupted_run(lazy: bool) -> None:
    source = Files() if lazy else in_memory()
    whole = [support.ids.tolist() for support in supports(module(source, lazy))]
    assert [support.ids.tolist() for support in supports(module(source, lazy, step=7))] == whole[7:]
    halves = [supports(module(source, lazy, rank=rank, of=2)) for rank in range(2)]
    joined = [a.ids.tolist() + b.ids.tolist() for a, b in zip(*halves, strict=True)]
    assert joined == whole
    assert torch.cat([half[0].slots for half in halves]).tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_supports_are_seen_as_the_first_views_are_with_draws_of_their_own_whatever_the_number_of_processes(
    processes: int,
) -> None:
    crop = RandomResizedCrop(4, (0.3, 1.0), (0.75, 4 / 3), "bilinear", 0.5)
    views = Views(4, [ViewGroup(2, [crop]), ViewGroup(1, [crop])], None, None, 1.0, "bilinear")
    images = torch.randint(0, 256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    parts = []
    for rank, share in enumerate(images.chunk(processes)):
        objective = SimpleNamespace(support=settings(views=2))
        progress = Progress(3, 9, 9, 5)
        run = SimpleNamespace(objective=objective, views=views, seed=5, progress=progress, global_rank=rank)
        run.views_of = partial(Pretraining.views_of, cast(Any, run))
        made = Pretraining._support_with_views(
            cast(Any, run), Support(share, torch.arange(len(share)), torch.arange(1))
        )
        assert made is not None
        assert len(made.views) == 2
        parts.append(torch.stack(made.views))
    whole = torch.cat(parts, 1)
    assert whole.shape == (2, 6, 3, 4, 4)
    of_the_batch = torch.stack(views(images, torch.arange(6), ViewKey(5, 3, 0, 6), first=2))
    assert not bool((whole == of_the_batch).flatten(2).all(2).any())
    key = ViewKey(derive_seed(5, _SUPPORT), 3, 0, 6)
    assert torch.equal(whole, torch.stack(views(images, torch.arange(6), key, first=2)))


def test_two_workers_give_the_supports_of_none() -> None:
    alone, two = supports(module(Files(), True)), supports(module(Files(), True, workers=2))
    for a, b in zip(alone, two, strict=True):
        assert torch.equal(a.ids, b.ids)
        assert torch.equal(a.images, b.images)


def test_a_corrupt_labelled_image_is_replaced_by_a_listed_one_of_its_class_counted_and_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    listed = settings().choose(in_memory(), 1).ids
    broken = int(listed[7])
    data = module(Files((broken,)), True)
    whole = supports(module(Files(), True))
    for support, asked in zip(supports(data), whole, strict=True):
        assert torch.equal(data.splits.train.labels[support.ids], data.splits.train.labels[asked.ids])
        assert bool(torch.isin(support.ids, listed).all())
        assert broken not in support.ids.tolist()
        assert torch.equal(support.ids[asked.ids != broken], asked.ids[asked.ids != broken])
    assert data.corrupt == [f"made up train image {broken}"]
    assert capsys.readouterr().out.count("skipped a corrupt image") == 1


def test_a_corrupt_image_has_the_next_of_its_class_and_a_class_that_is_all_corrupt_stops_the_run() -> None:
    listed = torch.tensor([0, 5, 10, 1, 6]).sort().values
    assert decode_labelled(Files(), 5, listed)[1] == 5
    assert decode_labelled(Files((5,)), 5, listed)[1] == 10
    assert decode_labelled(Files((5, 10)), 5, listed)[1] == 0
    with pytest.raises(UserError) as caught:
        decode_labelled(Files((0, 5, 10)), 10, listed)
    assert str(caught.value) == (
        "made up train image 10: torn; none of the 3 labelled images of class a can be decoded: mend data.path"
    )


def test_corrupt_images_that_were_left_out_of_memory_leave_their_class_with_too_few(tmp_path: Path) -> None:
    for number, name in itertools.product(range(4), "ab"):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
    for number in (1, 2):
        (tmp_path / "b" / f"{number}.png").write_text("text")
    data = DataModule(folder(str(tmp_path), image_size=4), 2, 0, 1.0, seed=0)
    data.attach_support(settings(per_class=4), 1)
    with pytest.raises(UserError, match=r"^objective\.support\.images_per_class=3: class b has 2 labelled images;"):
        data.plan(1, None)


@pytest.mark.parametrize(("fraction", "expected"), [(0.5, 4), (0.25, 2), (0.01, 1), (1.0, 8)])
def test_a_fraction_is_of_each_class_and_at_least_one_image(fraction: float, expected: int) -> None:
    labels = LabelSelection(None, fraction, None, 0, "k").of(in_memory())
    assert labels.labels.bincount().tolist() == [expected] * CLASSES
    assert torch.equal(labels.labels, in_memory().labels[labels.ids])
    assert bool((labels.ids.diff() > 0).all())


def test_a_smaller_draw_is_part_of_a_larger_one_and_another_seed_draws_others() -> None:
    source = in_memory()
    few, many = (set(LabelSelection(None, None, number, 0, "k").of(source).ids.tolist()) for number in (2, 5))
    assert few < many
    assert set(LabelSelection(None, None, 2, 1, "k").of(source).ids.tolist()) != few


def test_a_list_can_be_written_down_and_read_again_and_has_the_hash_of_its_file(tmp_path: Path) -> None:
    import hashlib

    drawn = LabelSelection(None, None, 3, 0, "k").of(in_memory())
    (tmp_path / "labels.txt").write_text(drawn.text)
    again = LabelSelection(str(tmp_path / "labels.txt"), None, None, 0, "k").of(in_memory())
    assert torch.equal(again.ids, drawn.ids)
    assert drawn.sha256 == again.sha256 == hashlib.sha256((tmp_path / "labels.txt").read_bytes()).hexdigest()
    assert str(drawn) == f"15 labelled images, 3 in each of 5 classes, sha256 {drawn.sha256}"
    assert drawn.summary() == {"images": 15, "classes": 5, "sha256": drawn.sha256}


def pictures(root: Path) -> Source:
    """Two classes of two files whose names occur once, and one that occurs in both."""
    for name in ("cat/a.png", "cat/both.png", "dog/b.png", "dog/both.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)
    return folder(str(root), image_size=4).train


def test_a_line_is_a_files_name_the_end_of_its_path_its_whole_path_or_a_number(tmp_path: Path) -> None:
    source = pictures(tmp_path / "images")
    lines = ["b.png", "cat/both.png", f"{tmp_path}/images/dog/both.png", "0"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    labels = LabelSelection(str(tmp_path / "list.txt"), None, None, 0, "k").of(source)
    assert labels.ids.tolist() == [0, 1, 2, 3]
    assert labels.names == ["cat/a.png", "cat/both.png", "dog/b.png", "dog/both.png"]  # wherever the folder lies


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a.png\nx.png\ny.png", "2 of 3 images unknown in the training split: x.png, y.png"),
        ("both.png\na.png", "1 of 2 images ambiguous in the training split: both.png"),
        ("a.png\ncat/a.png", "1 of 2 images named twice in the training split: cat/a.png"),
        ("0\n4", "1 of 2 images unknown in the training split: 4"),
        ("\n".join("abcdefg"), "7 of 7 images unknown in the training split: a, b, c, d, e, …"),
        ("\n", "names no image"),
    ],
)
def test_a_list_that_does_not_fit_the_data_is_refused_with_the_number_and_the_first_names(
    lines: str, message: str, tmp_path: Path
) -> None:
    source = pictures(tmp_path / "images")
    file = tmp_path / "list.txt"
    file.write_text(lines)
    with pytest.raises(UserError) as caught:
        LabelSelection(str(file), None, None, 0, "k").of(source)
    assert str(caught.value) == f"k.labels_file={file}: {message}"


@pytest.mark.parametrize(
    ("changed", "processes", "message"),
    [
        ({"per_class": None}, 1, "objective.support: give one of labels_file, fraction and per_class, not none"),
        (
            {"fraction": 0.5},
            1,
            "objective.support: give one of labels_file, fraction and per_class, not fraction=0.5 and per_class=6:"
            " add objective.support.fraction=null for per_class=6 alone",
        ),
        (
            {"per_class": None, "fraction": 1.5},
            1,
            "objective.support.fraction=1.5: must be above 0 and at most 1",
        ),
        ({"per_class": 0}, 1, "objective.support.per_class=0: must be at least 1"),
        ({"views": 0}, 1, "objective.support.views=0: must be at least 1"),
        ({"per_class": 9}, 1, "objective.support.per_class=9: class a has 8 labelled images; give no more than that"),
        (
            {"classes_per_batch": 6},
            1,
            "objective.support.classes_per_batch=6: 5 classes have labelled images; give no more than that",
        ),
        (
            {"images_per_class": 7},
            1,
            "objective.support.images_per_class=7: class a has 6 labelled images; give no more than that, or more"
            " labels, or objective.support.repeats=true",
        ),
        (
            {},
            4,
            "objective.support: 2 classes × 3 images must be a multiple of the 4 processes; change"
            " objective.support.images_per_class",
        ),
        (
            {"per_class": None, "labels_file": "nowhere.txt"},
            1,
            "objective.support.labels_file=nowhere.txt: no such file",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line_that_names_the_key(
    changed: dict[str, Any], processes: int, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        settings(**changed).choose(in_memory(), processes)
    assert str(caught.value) == message


def test_data_without_labels_and_listed_images_without_one_are_refused(tmp_path: Path) -> None:
    source = in_memory()
    source.labels[3:] = -1
    (tmp_path / "list.txt").write_text("made up train image 2\nmade up train image 3")
    with pytest.raises(UserError, match=r"1 of 2 images without a label in the training split: made up train image 3$"):
        settings(per_class=None, labels_file=str(tmp_path / "list.txt")).choose(source, 1)
    source.labels[:] = -1
    with pytest.raises(UserError, match=r"^objective\.support: the training images have no labels; give data=… that"):
        settings().choose(source, 1)


def test_listed_images_that_the_evaluation_split_has_too_are_found(tmp_path: Path) -> None:
    source = pictures(tmp_path)
    labels = LabelSelection(None, None, 1, 0, "k").of(source)
    assert shared_names(labels, source, source) == [source.name(id) for id in labels.ids.tolist()]
    assert shared_names(labels, source, in_memory()) == []


def test_a_class_without_a_labelled_image_is_no_class_of_a_draw() -> None:
    source = in_memory([0, 0, 0, 2, 2, 2, -1])
    chosen = LabelSelection(None, None, 2, 0, "k").of(source)
    assert chosen.labels.tolist() == [0, 0, 2, 2]

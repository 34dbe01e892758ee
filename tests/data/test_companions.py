"""Companions of images: drawn uniformly, by a function of the step alone, the same for any processes and workers."""

import itertools
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.data.test_support import CLASSES, EACH, Files, in_memory
from unlabeled.core.seeding import derive_seed
from unlabeled.data.companions import _COMPANIONS as DRAWS
from unlabeled.data.companions import Companions
from unlabeled.data.module import DataModule
from unlabeled.data.source import Source, Splits
from unlabeled.errors import UserError
from unlabeled.objective import Batch, Progress
from unlabeled.training.pretraining import _COMPANIONS, Pretraining
from unlabeled.views.key import ViewKey
from unlabeled.views.operations import RandomResizedCrop
from unlabeled.views.pipeline import ViewGroup, Views

IMAGES = CLASSES * EACH


@pytest.fixture(scope="module")
def table() -> Tensor:
    """Three neighbours of each image, far from it."""
    return (torch.arange(IMAGES)[:, None] + torch.tensor([7, 11, 20])) % IMAGES


@pytest.fixture(scope="module")
def file(table: Tensor, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("table") / "neighbours.safetensors"
    save_file({"neighbours": table}, path)
    return str(path)


def module(
    source: Source, file: str | None, lazy: bool = False, step: int = 0, rank: int = 0, of: int = 1, workers: int = 0
) -> DataModule:
    data = DataModule(Splits(source, None, "made up"), 4, workers, 0.0 if lazy else 1.0, seed=3, accumulate=2)
    process = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = cast(Any, SimpleNamespace(global_rank=rank, world_size=of, global_step=step, strategy=process))
    data.attach_companions(Companions(file, 1))
    data.plan(4, None)
    return data


def batches(data: DataModule) -> list[tuple[Batch, Batch]]:
    found = []
    for batch in data.train_dataloader():
        assert batch.companions is not None
        found.append((batch, batch.companions))
    return found


def ids(data: DataModule) -> list[list[int]]:
    return [companions.ids.tolist() for _, companions in batches(data)]


@pytest.mark.parametrize("lazy", [False, True])
def test_each_image_has_one_of_its_neighbours_drawn_from_seed_batch_and_place(
    lazy: bool, table: Tensor, file: str
) -> None:
    source = in_memory()
    found = batches(module(Files() if lazy else source, file, lazy))
    assert len(found) == 4 * (IMAGES // 8) * 2
    for number, (batch, companions) in enumerate(found):
        generator = torch.Generator().manual_seed(derive_seed(3, DRAWS, number))
        shares = torch.rand(4, generator=generator, dtype=torch.float64)
        wanted = [int(table[image, int(share * 3)]) for image, share in zip(batch.ids.tolist(), shares, strict=True)]
        assert companions.ids.tolist() == wanted
        assert torch.equal(companions.images, source.images[companions.ids])
        assert torch.equal(companions.labels, source.labels[companions.ids])
    places = Counter(
        int((table[image] == other).nonzero())
        for batch, others in found
        for image, other in zip(batch.ids, others.ids, strict=True)
    )
    assert sorted(places) == [0, 1, 2]
    assert min(places.values()) > 30  # 53 of 160 are expected


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("by_class", [False, True])
def test_a_run_that_goes_on_several_processes_and_workers_see_those_of_one_uninterrupted_run(
    lazy: bool, by_class: bool, file: str
) -> None:
    source, given = Files() if lazy else in_memory(), None if by_class else file
    whole = ids(module(source, given, lazy))
    assert ids(module(source, given, lazy, step=3)) == whole[6:]
    for processes in (2, 4):
        shares = [ids(module(source, given, lazy, rank=rank, of=processes)) for rank in range(processes)]
        assert [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)] == whole
    if lazy and not by_class:
        assert ids(module(source, given, lazy, workers=2)) == whole


def test_an_image_of_the_same_class_is_any_other_one_equally_often_and_itself_only_where_it_is_alone() -> None:
    source = in_memory([0, 1, 1, 1, 1, 2, 2])
    source.labels[6] = -1
    choice = Companions(None, 1).choice(source)
    shares = torch.linspace(0, 1, 301, dtype=torch.float64)[:-1]
    for image, others in ((0, [0]), (1, [2, 3, 4]), (3, [1, 2, 4]), (4, [1, 2, 3]), (5, [5]), (6, [6])):
        drawn = choice(torch.full((300,), image), shares)
        assert Counter(drawn.tolist()) == dict.fromkeys(others, 300 // len(others))


def test_a_companion_that_cannot_be_decoded_is_replaced_by_its_image(table: Tensor, file: str) -> None:
    broken = 5
    whole = batches(module(Files(), file, lazy=True))
    data = module(Files((broken,)), file, lazy=True)
    met = 0
    for (batch, companions), (asked, wanted) in zip(batches(data), whole, strict=True):
        for image, own, now, before in zip(batch.ids, asked.ids, companions.ids, wanted.ids, strict=True):
            met += int(before == broken)
            assert int(now) == (int(image) if broken in (int(before), int(own)) else int(before))
    assert met
    assert data.corrupt == [f"made up train image {broken}"]


def test_companions_are_seen_as_the_first_views_are_with_draws_of_their_own() -> None:
    crop = RandomResizedCrop(4, (0.3, 1.0), (0.75, 4 / 3), "bilinear", 0.5)
    views = Views(4, [ViewGroup(2, [crop]), ViewGroup(1, [crop])], None, None, 1.0, "bilinear")
    images = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    parts = []
    for rank, share in enumerate(images.chunk(2)):
        objective, progress = SimpleNamespace(companions=Companions("x", 2)), Progress(3, 9, 9, 5)
        run = SimpleNamespace(objective=objective, views=views, seed=5, progress=progress, global_rank=rank)
        run.batch_size = 4
        run.views_of = partial(Pretraining.views_of, cast(Any, run))
        run.view_key = partial(Pretraining.view_key, cast(Any, run))
        places = torch.arange(2) + 2 * rank
        made = Pretraining._companions_with_views(cast(Any, run), Batch(share, places, places))
        assert made is not None
        parts.append(torch.stack(made.views))
    key = ViewKey(derive_seed(5, _COMPANIONS), 3, 0, 4)
    assert torch.equal(torch.cat(parts, 1), torch.stack(views(images, torch.arange(4), key, first=2)))


def test_views_of_their_own_are_the_last_ones_and_the_batch_has_the_others() -> None:
    crop = RandomResizedCrop(4, (0.3, 1.0), (0.75, 4 / 3), "bilinear", 0.5)
    views = Views(4, [ViewGroup(2, [crop]), ViewGroup(1, [crop])], None, None, 1.0, "bilinear")
    images = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    ids, key = torch.arange(4), ViewKey(5, 3, 0, 4)
    whole, wanted = views(images, ids, key), Companions("x", 1, own_views=True)
    assert (wanted.of_batch(views.count), wanted.own(views.count)) == (2, range(2, 3))
    assert torch.equal(torch.stack(views(images, ids, key, 2)), torch.stack(whole[:2]))
    (last,) = views(images, ids, key, 3, skipped=2)
    assert torch.equal(last, whole[2])
    (second,) = views(images, ids, key, 2, skipped=1)
    assert torch.equal(second, whole[1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"other": torch.zeros(3)}, "no file of safetensors with a tensor neighbours"),
        ({"neighbours": torch.zeros(IMAGES, 3)}, "neighbours is torch.float32 [40, 3]; give int64 [40, k]"),
        ({"neighbours": torch.zeros(9, 3, dtype=torch.long)}, "neighbours is torch.int64 [9, 3]; give int64 [40, k]"),
        (
            {"neighbours": torch.full((IMAGES, 1), IMAGES)},
            "names images that are none of the 40 training images",
        ),
    ],
)
def test_a_table_that_does_not_fit_is_refused(content: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    save_file(content, tmp_path / "table")
    with pytest.raises(UserError) as caught:
        Companions(str(tmp_path / "table"), 1).choice(in_memory())
    assert f"objective.companions.neighbours_file={tmp_path}/table: " in str(caught.value)
    assert message in str(caught.value)


def test_data_without_labels_have_no_class_to_draw_from() -> None:
    source = in_memory()
    source.labels[:] = -1
    with pytest.raises(UserError, match=r"^objective\.companions: the training images have no labels"):
        Companions(None, 1).choice(source)

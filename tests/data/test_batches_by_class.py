"""Batches of P classes with K images of each: exact, the same for any processes, resumed, and refused where too few."""

import itertools
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.data.test_support import CLASSES, EACH, Files, in_memory
from tests.small import small_run
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.data.module import DataModule
from unlabeled.data.source import Source, Splits
from unlabeled.errors import UserError


def module(
    source: Source, lazy: bool = False, step: int = 0, rank: int = 0, of: int = 1, workers: int = 0
) -> DataModule:
    """Four classes of two images."""
    data = DataModule(Splits(source, None, "made up"), 8, workers, 0.0 if lazy else 1.0, seed=3, accumulate=2)
    process = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = cast(Any, SimpleNamespace(global_rank=rank, world_size=of, global_step=step, strategy=process))
    data.draw_by_class(2)
    data.plan(6, None)
    return data


def ids(data: DataModule) -> list[list[int]]:
    return [batch.ids.tolist() for batch in data.train_dataloader()]


@pytest.mark.parametrize("lazy", [False, True])
def test_a_batch_has_two_images_of_each_of_four_classes_and_all_images_have_their_turn(lazy: bool) -> None:
    source = in_memory()
    data = module(Files() if lazy else source, lazy)
    found = ids(data)
    assert len(found) == data.total_steps * 2 == 6 * (CLASSES * EACH // 16) * 2
    for rows in found:
        labels = source.labels[rows]
        assert sorted(Counter(labels.tolist()).values()) == [2, 2, 2, 2]
        assert len(set(rows)) == 8
        assert torch.equal(labels[:4], labels[4:])  # rows go through the classes in turn
    assert len({image for rows in found for image in rows}) == CLASSES * EACH
    for batch, rows in zip(data.train_dataloader(), found, strict=True):
        assert torch.equal(batch.images, source.images[rows])
        assert torch.equal(batch.labels, source.labels[rows])


@pytest.mark.parametrize("lazy", [False, True])
def test_a_run_that_goes_on_several_processes_and_workers_see_the_batches_of_one_uninterrupted_run(lazy: bool) -> None:
    source = Files() if lazy else in_memory()
    whole = ids(module(source, lazy))
    assert ids(module(source, lazy, step=3)) == whole[6:]
    for processes in (2, 4):
        shares = [ids(module(source, lazy, rank=rank, of=processes)) for rank in range(processes)]
        assert [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)] == whole
    if lazy:
        assert ids(module(source, lazy, workers=2)) == whole


def test_images_without_a_label_are_left_out() -> None:
    source = in_memory()
    source.labels[::6] = -1
    assert all(bool((source.labels[rows] >= 0).all()) for rows in ids(module(source)))


@pytest.mark.parametrize(
    ("batch_size", "images", "labels", "message"),
    [
        (9, 2, None, "images_per_class=2: batch_size=9 must be a multiple of it"),
        (
            12,
            2,
            None,
            "images_per_class=2: a batch of 12 has 6 classes, and 5 have labelled images: give batch_size=10, or more "
            "images_per_class",
        ),
        (
            6,
            3,
            [0, 0, 0, 0, 1, 1, 1, 2, 2],
            "images_per_class=3: class c has only 2 images (1 of 3 classes have fewer than 3): give "
            "images_per_class=2 or less",
        ),
    ],
)
def test_what_cannot_be_drawn_is_one_line(batch_size: int, images: int, labels: list[int] | None, message: str) -> None:
    data = DataModule(Splits(in_memory(labels), None, "made up"), batch_size, 0, 1.0, seed=0)
    with pytest.raises(UserError) as caught:
        data.draw_by_class(images)
    assert str(caught.value) == message


def test_triplets_train_on_such_batches_and_the_monitor_finds_nothing(tmp_path: Path) -> None:
    own = ["data=digits", "batch_size=40", "images_per_class=4", "max_steps=6", "num_workers=0", "pictures=null"]
    own += ["optimizer.lr=0.01", "optimizer.warmup_epochs=0", "log_every_n_steps=1", "health.every_n_steps=2"]
    resolved = open_run(config := small_run("triplet", tmp_path, *own))
    run = build_run(config, resolved)
    seen: list[Tensor] = []
    run.module.output_hooks.append(lambda batch, output: seen.append(batch.labels))
    run.fit(resolved)
    assert len(seen) == 6
    assert all(sorted(Counter(labels.tolist()).values()) == [4] * 10 for labels in seen)
    assert json.loads((tmp_path / "health.json").read_text())["findings"] == []

"""Whoever makes something of a batch of images of several sizes is told the sizes."""

from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from unlabeled.data.memory import DecodedSource
from unlabeled.data.module import DataModule
from unlabeled.data.padding import pad_to_largest
from unlabeled.data.source import Splits
from unlabeled.objective import Batch, Objective, Output, Progress, Support
from unlabeled.training.online_knn import OnlineKNN
from unlabeled.training.pictures import Pictures
from unlabeled.training.pretraining import Pretraining
from unlabeled.views.pipeline import Views

SHAPES = [(20, 30), (40, 16), (16, 16), (9, 50)] * 10


def images() -> list[Tensor]:
    """Of one colour each, which only zeros from beside the image could darken; label 0 is dark and 1 bright."""
    return [torch.full((3, *shape), 60 + 100 * (number % 2), dtype=torch.uint8) for number, shape in enumerate(SHAPES)]


def data_module() -> DataModule:
    labels = torch.arange(len(SHAPES)) % 2
    source = DecodedSource(images(), torch.arange(len(SHAPES)), labels, ["dark", "bright"])
    data = DataModule(Splits(cast(Any, source), None, "made up"), 4, 0, 1.0, seed=0)
    data._train = source
    return data


class Seeing(nn.Module):
    """Records the sizes that it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Tensor | None] = []

    def forward(
        self, images: Tensor, ids: Tensor, key: Any, first: int | None = None, sizes: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        self.told.append(sizes)
        return (images.float(),)


@pytest.mark.parametrize("known", [True, False])
def test_views_of_a_batch_and_of_its_support_are_made_with_their_sizes(known: bool) -> None:
    together, sizes = pad_to_largest(images()[:4])
    beside, others = pad_to_largest(images()[1:3])
    assert sizes is not None
    assert others is not None
    if not known:
        sizes = others = None
    support = Support(beside, torch.arange(2), torch.arange(2), sizes=others)
    batch = Batch(together, torch.arange(4), torch.arange(4), support=support, sizes=sizes)
    views = Seeing()
    loss = torch.zeros(())
    # as an objective, to see what it is given
    wanted = partial(lambda batch, progress: SimpleNamespace(loss=loss, sizes=batch.sizes, support=batch.support))
    wanted.parameters = lambda: iter(())  # type: ignore[attr-defined]
    wanted.support = SimpleNamespace(views=1, images_per_step=2)  # type: ignore[attr-defined]
    progress = Progress(0, 1, 1, 0)
    run = SimpleNamespace(objective=wanted, views=views, seed=0, progress=progress, global_rank=0, batch_size=4)
    run.overlap = run.views_of_batch = None
    for method in (Pretraining.view_key, Pretraining.views_of, Pretraining._support_with_views):
        setattr(run, method.__name__, partial(method, cast(Any, run)))
    made: Any = Pretraining.output_of(cast(Any, run), batch)
    assert len(views.told) == 2
    assert all(told is given for told, given in zip(views.told, (sizes, others), strict=True))
    assert made.sizes is sizes
    assert made.support is not None
    assert made.support.sizes is others


class Painter(Objective):
    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Batch] = []

    def forward(self, batch: Batch, progress: Progress) -> Output:
        raise NotImplementedError

    def visualize(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        self.batches.append(batch)
        return {"seen": batch.views[0]}


class Mean(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([images.mean((1, 2, 3)), torch.ones(len(images))], 1)


def test_pictures_show_the_centre_of_each_image_and_nothing_beside_it() -> None:
    visualized_objective = Painter()
    module = SimpleNamespace(seed=3, objective=visualized_objective, views=Views(12, [], None, None, 1.0, "bilinear"))
    columns = Pictures(1, 4, 4).reconstructions(cast(Any, module), data_module(), torch.device("cpu"))
    (batch,) = visualized_objective.batches
    assert batch.sizes is not None
    assert batch.sizes.tolist() == [list(SHAPES[index]) for index in batch.ids.tolist()]
    colours = torch.tensor([160.0 if index % 2 else 60.0 for index in batch.ids.tolist()])
    expected = (colours / 255)[:, None, None, None].expand(4, 3, 12, 12)
    torch.testing.assert_close(columns["seen"], expected, rtol=0, atol=1e-5)


def test_knn_while_training_sees_each_image_and_nothing_beside_it() -> None:
    network = Mean()
    objective = SimpleNamespace(backbone=network, product=lambda: network)
    trainer = SimpleNamespace(precision="32-true")
    views = Views(12, [], None, None, 1.0, "bilinear")
    module = SimpleNamespace(seed=0, objective=objective, views=views, trainer=trainer)
    probe = OnlineKNN(every_n_epochs=1, queries=20, bank=20, k=1, temperature=0.1, batch_size=8)
    features = probe._extract(cast(Any, module), data_module(), torch.arange(40), torch.device("cpu"))
    colours = torch.tensor([60.0, 160.0]).repeat(20) / 255
    torch.testing.assert_close(features.x[:, 0], colours, rtol=0, atol=1e-5)
    assert probe.measure(cast(Any, module), data_module(), torch.device("cpu")) == 100

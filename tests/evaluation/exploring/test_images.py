"""Thumbnails and features of the same images, in one pass and beside a table; and where images stand on the map."""

import base64
import io
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from unlabeled.data.module import DataModule
from unlabeled.data.source import CorruptImage, Splits
from unlabeled.errors import UserError
from unlabeled.evaluation.embedding.stream import Embedder, Images
from unlabeled.evaluation.embedding.table import embed_in_memory
from unlabeled.evaluation.exploring import layout
from unlabeled.evaluation.exploring.images import look_at, look_beside
from unlabeled.evaluation.exploring.layout import map_positions
from unlabeled.evaluation.exploring.thumbnails import sheets, thumbnail_size, thumbnails
from unlabeled.evaluation.selection.nearest import unit


class Painted:
    """Images of one colour each, of different sizes; one is corrupt."""

    square, image_size, classes = False, 8, ["cat", "dog"]

    def __init__(self, count: int, first: int, corrupt: Sequence[int] = ()) -> None:
        self.first, self.corrupt, self.labels = first, corrupt, torch.arange(count) % 2

    def __len__(self) -> int:
        return len(self.labels)

    def decode(self, index: int) -> Tensor:
        if index in self.corrupt:
            raise CorruptImage(f"{self.name(index)}: corrupt")
        return torch.full((3, 6 + index % 3, 8), self.first + index, dtype=torch.uint8)

    def name(self, index: int) -> str:
        return f"{self.first + index}.png"


class Mean(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images.flatten(1).amax(1, keepdim=True), torch.ones(len(images), 1)], dim=1)


def images() -> Images:
    splits = Splits(Painted(9, 10, [4]), Painted(5, 100), "painted")
    return Images(DataModule(splits, 4, 0, 0, 0), 4)


def embedder() -> Embedder:
    return Embedder(Mean(), lambda pixels, sizes: pixels.float(), "as it is", torch.device("cpu"))


def test_one_pass_gives_the_features_of_embed_and_the_thumbnail_of_each() -> None:
    found, embedded = look_at(embedder(), images(), 100, 0, print), embed_in_memory(embedder(), images(), print)
    assert np.array_equal(found.embeddings.x, embedded.x)
    assert (found.embeddings.names, found.embeddings.splits) == (embedded.names, embedded.splits)
    assert found.embeddings.labels.tolist() == embedded.labels.tolist()
    assert found.ids == [0, 1, 2, 3, 5, 6, 7, 8, 0, 1, 2, 3, 4]
    assert found.thumbnails[:, 0, 0, 0].tolist() == found.embeddings.x[:, 0].tolist()  # of one colour
    assert found.thumbnails.min(axis=(1, 2, 3)).tolist() == found.thumbnails.max(axis=(1, 2, 3)).tolist()


def test_of_more_images_some_are_drawn_and_a_table_of_them_finds_their_thumbnails_by_name() -> None:
    found = look_at(embedder(), images(), 6, 2, print)
    assert (len(found.embeddings), found.total) == (6, 14)
    again = look_beside(found.embeddings, images(), 100, 0, print)
    assert np.array_equal(again.thumbnails, found.thumbnails)
    assert again.ids == found.ids
    other = Images(DataModule(Splits(Painted(9, 10), None, "others"), 4, 0, 0, 0), 4)
    with pytest.raises(UserError, match=r"^embeddings: \d of 6 images are not in the data \(10\d\.png\); give data=…"):
        look_beside(found.embeddings, other, 100, 0, print)


def test_a_thumbnail_is_the_middle_of_an_image_and_small_ones_keep_their_pixels() -> None:
    pixels = torch.arange(6 * 4 * 3, dtype=torch.uint8).view(1, 3, 4, 6)
    found = thumbnails(pixels, None, 8)
    assert np.array_equal(found[0], np.kron(pixels[0, :, :, 1:5].permute(1, 2, 0).numpy(), np.ones((2, 2, 1), int)))
    sizes = torch.tensor([[4, 2]])
    assert np.array_equal(thumbnails(pixels, sizes, 2)[0], pixels[0, :, 1:3, :2].permute(1, 2, 0).numpy())
    assert thumbnails(pixels[:, :1], None, 4)[0, 0, 0].tolist() == [1, 1, 1]
    assert [thumbnail_size(count) for count in (3, 500, 501, 12_000, 50_000)] == [96, 96, 64, 48, 32]


def test_sheets_hold_all_thumbnails_row_after_row() -> None:
    made = np.repeat(np.arange(22 * 22, dtype=np.uint8)[:, None, None, None], 96, 1).repeat(96, 2).repeat(3, 3)
    parts = [np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet)))) for sheet in sheets(made)]
    assert [part.shape for part in parts] == [(21 * 96, 21 * 96, 3), (3 * 96, 21 * 96, 3)]
    for number in (0, 20, 21, 440, 441, 483):
        place = number % 441
        middle = parts[number // 441][place // 21 * 96 + 48, place % 21 * 96 + 48]
        assert np.abs(middle.astype(int) - number % 256).max() <= 2


def test_an_image_that_is_not_projected_stands_among_those_most_similar_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MOST_POINTS", 20)
    monkeypatch.setattr(layout, "project", lambda x, seed: ("taken", x[:, :2].numpy()))
    x = unit(np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32))
    method, found = map_positions(x, 0)
    chosen = np.random.default_rng(0).permutation(30)[:20].tolist()
    expected = np.zeros((30, 2))
    for row in range(30):
        if row in chosen:
            expected[row] = x[row, :2]
            continue
        gaps = {other: float(((x[row].astype(np.float64) - x[other]) ** 2).sum()) for other in chosen}
        near = sorted(gaps, key=gaps.__getitem__)[:8]
        weights = [1 / gaps[other] for other in near]
        expected[row] = sum(w * x[other, :2] for w, other in zip(weights, near, strict=True)) / sum(weights)
    extent = (expected.max(axis=0) - expected.min(axis=0)).max()
    middle = (expected.max(axis=0) + expected.min(axis=0)) / 2
    assert method == "taken"
    np.testing.assert_allclose(found, (expected - middle) / extent + 0.5, atol=1e-4)
    assert found.min() >= 0
    assert found.max() <= 1

"""The nearest key of a queue; what is enqueued, and on several processes, stands in tests/objectives/test_moco.py."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.objectives import moco
from unlabeled.objectives.parts.queue import KeyQueue


def rows(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 6, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def test_the_nearest_key_is_that_of_the_largest_cosine_in_a_double_loop() -> None:
    queue, z = KeyQueue(11, 6).double(), rows(5, 1) * torch.tensor([[1e-3], [1.0], [7.0], [1e3], [2.0]])
    found = queue.nearest(z)
    for row, nearest in zip(z, found, strict=True):
        cosines = [float((row * key).sum() / (row.norm() * key.norm())) for key in queue.keys]
        assert torch.equal(nearest, queue.keys[cosines.index(max(cosines))])


def test_a_row_that_was_enqueued_finds_itself_as_a_unit_row() -> None:
    queue, z = KeyQueue(8, 6).double(), rows(4, 2)
    queue.enqueue(z)
    torch.testing.assert_close(queue.nearest(-3 * -z), F.normalize(z, dim=1), rtol=0, atol=1e-15)


def test_neighbours_have_no_gradient_and_do_not_change_when_the_queue_does() -> None:
    queue, z = KeyQueue(4, 6), rows(2, 3, torch.float32).requires_grad_()
    found = queue.nearest(z)
    before = found.clone()
    queue.enqueue(rows(4, 4, torch.float32))
    assert torch.equal(found, before)
    assert not found.requires_grad


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^KeyQueue\.nearest: shapes do not fit: got queue \[4, 6\], z \[2, 5\]"):
        KeyQueue(4, 6).nearest(torch.zeros(2, 5))


def test_under_autocast_similarities_are_compared_in_float32() -> None:
    queue, z = KeyQueue(2, 6), torch.ones(1, 6)
    queue.keys.copy_(F.normalize(torch.tensor([[1.0] * 6, [1.0] * 5 + [0.98]]), dim=1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(queue.nearest(z), queue.keys[:1])
    assert moco.KeyQueue is KeyQueue

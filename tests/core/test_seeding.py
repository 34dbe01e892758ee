"""Random draws for rows of a batch do not depend on how many processes share it."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from unlabeled.core.seeding import Rows, bernoulli_of_rows, hold_rows


@pytest.fixture(autouse=True)
def _nothing_held() -> Iterator[None]:
    yield
    hold_rows(None)


def drawn(rows: Rows | None, like: Tensor) -> Tensor:
    torch.manual_seed(5)
    hold_rows(rows)
    return bernoulli_of_rows(like, 0.7)


def test_processes_draw_for_each_view_the_rows_that_one_process_draws() -> None:
    whole = drawn(Rows(0, 8, 8), torch.ones(3 * 8, 5, 2)).view(3, 8)
    assert torch.equal(whole.flatten(), drawn(None, torch.ones(3 * 8, 5, 2)).flatten())
    assert 0 < whole.mean() < 1
    for processes in (2, 4):
        count = 8 // processes
        shares = [drawn(Rows(rank * count, count, 8), torch.ones(3 * count, 5, 2)) for rank in range(processes)]
        assert shares[0].shape == (3 * count, 1, 1)
        assert torch.equal(torch.cat([share.view(3, count) for share in shares], 1), whole)


def test_other_numbers_of_rows_than_a_multiple_of_the_batch_are_drawn_as_they_are() -> None:
    assert torch.equal(drawn(Rows(4, 4, 8), torch.ones(6, 2)), drawn(None, torch.ones(6, 2)))

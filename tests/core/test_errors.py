"""The error that users see as one line."""

from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from unlabeled.errors import UserError


class Refusing(Dataset[Any]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        try:
            raise KeyError("a cause")
        except KeyError as error:
            raise UserError("data.channels=5: give 3 or 4") from error


@pytest.mark.parametrize("workers", [0, 1])
def test_the_error_of_a_worker_is_its_own_line_without_a_traceback(workers: int) -> None:
    with pytest.raises(UserError) as caught:
        list(DataLoader(Refusing(), num_workers=workers))
    assert str(caught.value) == "data.channels=5: give 3 or 4"

"""A loss that is not float32 is refused, whoever wrote the method."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from unlabeled.errors import UserError
from unlabeled.objective import Batch, Output, Progress
from unlabeled.training.pretraining import Pretraining


class Careless(nn.Module):
    """Computes its loss in the type that it is told."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, batch: Any, progress: Progress) -> Output:
        return Output(torch.ones((), dtype=self.dtype), torch.ones(2, 3))


def loss_of(dtype: torch.dtype) -> torch.Tensor:
    progress = Progress(0, 1, 1, 0)
    run: Any = SimpleNamespace(seed=0, global_rank=0, progress=progress, objective=Careless(dtype), overlap=None)
    run.views_of_batch = None
    run.view_key, run.views_of = (lambda batch: None), (lambda batch, key, shown: ())
    nothing = torch.zeros(2, dtype=torch.long)
    return Pretraining.output_of(run, Batch(nothing, nothing, nothing, ())).loss


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_loss_of_another_type_stops_the_run_with_the_name_of_the_method_and_the_remedy(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(UserError, match=rf"loss of Careless is {name}, and must be float32.*full_precision"):
        loss_of(dtype)


def test_a_loss_in_float32_is_taken() -> None:
    assert float(loss_of(torch.float32)) == 1.0

"""What a loss reaches: every trained parameter, each view that is predicted from, and nothing of a teacher."""

import pytest
import torch
from hydra.utils import instantiate

from tests.small import batch_of, members, small_objective
from unlabeled.objective import Progress
from unlabeled.views.key import ViewKey

KEYS_ALONE = {"moco_v1": {1}, "moco_v2": {1}, "self_label": {0}}  # views of which only keys or targets are made


@pytest.mark.parametrize("name", members("objective"))
def test_a_loss_reaches_every_trained_parameter_and_every_view_and_no_teacher(name: str) -> None:
    torch.manual_seed(0)
    config, objective = small_objective(name)
    images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8)
    ids = torch.arange(16)
    views = [view.requires_grad_() for view in instantiate(config.views)(images, ids, ViewKey(0, 0, 0, 16))]
    torch.autograd.backward(objective(batch_of(objective, images, ids % 4, views), Progress(0, 9, 3, 0)).loss)
    missed = {key for key, each in objective.named_parameters() if each.requires_grad and each.grad is None}
    assert not missed
    for key, each in objective.named_parameters():
        assert each.requires_grad or each.grad is None, key
        assert not each.requires_grad or bool(each.grad.isfinite().all()), key  # type: ignore[union-attr]
    unseen = {number for number, view in enumerate(views) if view.grad is None or not bool(view.grad.any())}
    assert unseen == KEYS_ALONE.get(name, set())

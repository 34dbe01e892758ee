"""What must hold of this operation and of the views with it: python -m pytest test_skeleton.py"""

from pathlib import Path

import torch
from hydra.utils import instantiate

from unlabeled.commands.arguments.compose import composed
from unlabeled.commands.setup.skeletons.view import Skeleton
from unlabeled.views.key import ViewKey

CONF = Path(__file__).parent / "conf"


def test_values_are_raised_to_the_power_that_was_drawn() -> None:
    images = torch.tensor([0.0, 0.25, 1.0]).expand(2, 3, 1, 3).clone()
    made = Skeleton(2.0, 1.0).apply(images, {"gamma": torch.tensor([2.0, 0.5])})
    torch.testing.assert_close(made[0, 0, 0], torch.tensor([0.0, 0.0625, 1.0]))
    torch.testing.assert_close(made[1, 0, 0], torch.tensor([0.0, 0.5, 1.0]))


def test_draws_lie_in_their_range_and_the_share_is_that_asked_for() -> None:
    gamma = Skeleton(2.0, 0.25).sample(10_000, torch.Generator().manual_seed(0))["gamma"]
    assert float(gamma.min()) >= 0.5
    assert float(gamma.max()) <= 2.0
    assert abs(float((gamma != 1).float().mean()) - 0.25) < 0.02


def test_its_yaml_makes_two_views_and_a_batch_in_two_parts_gives_those_of_the_whole() -> None:
    views = instantiate(composed("train", [f"--config-dir={CONF}", "views=skeleton", "views.size=8"]).views)
    images = torch.randint(0, 256, (6, 3, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(6)
    whole = views(images, ids, ViewKey(0, 0, 0, 6))
    parts = [views(images[rows], ids[rows], ViewKey(0, 0, rows.start, 6)) for rows in (slice(0, 2), slice(2, 6))]
    assert [view.shape for view in whole] == [(6, 3, 8, 8)] * 2
    for number, view in enumerate(whole):
        assert torch.equal(view, torch.cat([part[number] for part in parts]))

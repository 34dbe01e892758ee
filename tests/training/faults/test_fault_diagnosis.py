"""The first bad tensor of a step is named, and how much of it is bad."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from unlabeled.objective import Backbone, Batch, Objective, Output, Plan, Progress
from unlabeled.training.faults.diagnosis import (
    GRADIENTS,
    NOWHERE,
    OUTPUTS,
    VIEWS,
    WEIGHTS,
    NonFiniteFinding,
    find_non_finite,
)
from unlabeled.training.faults.guard import NonFiniteGuard
from unlabeled.training.faults.replay import PretrainingAtStep
from unlabeled.views.pipeline import Views


class Chain(Backbone):
    """Mean colour of an image → 2 numbers, through three layers."""

    num_features = 2

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.5)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images.mean((2, 3)))
        return features


class Tiny(Objective):
    """The mean square of the features of one view; NaN as the loss, or as the gradient of weights, on request."""

    def __init__(self, *bad_gradients: str, bad_loss: bool = False) -> None:
        super().__init__()
        self.backbone = Chain()
        self.bad_loss = bad_loss
        for name in bad_gradients:
            spoilt = self.get_parameter(name)
            spoilt.register_hook(lambda gradient: gradient.index_fill(0, _FIRST, torch.nan))  # type: ignore[no-untyped-call]

    def forward(self, batch: Batch, progress: Progress) -> Output:
        features = self.backbone(batch.views[0])
        loss = features.pow(2).mean()
        return Output(loss * (torch.nan if self.bad_loss else 1), features.detach())


_FIRST = torch.tensor([0])


class PlainViews(Views):
    """One view: the image itself, with one value of chosen images spoilt."""

    def __init__(self, *bad: int) -> None:
        super().__init__(2, [], None, None, 1.0, "bilinear")
        self.bad = bad

    def forward(self, images: Tensor, ids: Tensor, *rest: Any, **more: Any) -> tuple[Tensor, ...]:
        view = images.float()
        view[torch.isin(ids, torch.tensor(self.bad)), 1, 0, 0] = torch.inf
        return (view,)


def found(objective: Objective, *bad: int) -> NonFiniteFinding:
    plan, optimizer, guard = Plan(4, 1, 40, (8, 8)), cast(Any, None), NonFiniteGuard(Path(), 1)
    module = PretrainingAtStep(objective, PlainViews(*bad), optimizer, plan, 1, 10, 5, 0, 1, {}, guard)
    module.train()
    batch = Batch(torch.full((4, 3, 2, 2), 2, dtype=torch.uint8), torch.tensor([11, 12, 13, 14]), torch.zeros(4).long())
    return find_non_finite(module, batch, nullcontext())


def test_nothing_is_found_where_all_is_finite() -> None:
    finding = found(Tiny())
    hidden = 0.5 * 2 * 3 + 0.5  # three colours of 2, and the bias
    feature = 0.5 * hidden * 4 + 0.5
    assert finding == (NOWHERE, "nothing when it was computed again", feature**2)


def test_the_first_module_with_a_bad_output_is_named_and_not_those_that_follow_from_it() -> None:
    objective = Tiny()
    with torch.no_grad():
        objective.backbone.layers[0].weight[1] = 3e38  # type: ignore[index, union-attr]
        finding = found_with_grad(objective)
    assert finding.name == "backbone.layers.0 output has 4 non-finite of 16 values"  # one of four numbers of 4 images
    assert finding.place == OUTPUTS + 1
    assert finding.loss == torch.inf
    assert str(finding) == "backbone.layers.0 output has 4 non-finite of 16 values; loss inf"


def found_with_grad(objective: Objective, *bad: int) -> NonFiniteFinding:
    with torch.enable_grad():
        return found(objective, *bad)


def test_a_view_is_named_before_what_it_spoils_with_its_images() -> None:
    finding = found(Tiny(bad_loss=True), 12, 14)
    assert finding[:2] == (VIEWS, "view 0 of image 12, 14 has 2 non-finite of 48 values")


def test_weights_that_were_bad_before_come_first() -> None:
    objective = Tiny()
    nn.init.constant_(objective.backbone.layers[2].bias, torch.nan)  # type: ignore[index, union-attr]
    finding = found(objective, 12)
    assert finding[:2] == (WEIGHTS, "backbone.layers.2.bias has 2 non-finite of 2 values before the step")


def test_a_loss_that_goes_bad_by_itself_is_named() -> None:
    finding = found(Tiny(bad_loss=True))
    assert finding.name == str(finding) == "the loss of finite outputs is nan"


def test_a_gradient_is_named_where_all_else_is_finite() -> None:
    finding = found(Tiny("backbone.layers.0.weight"))
    assert finding[:2] == (GRADIENTS, "the gradient of backbone.layers.0.weight has 3 non-finite of 12 values")
    assert finding.loss == pytest.approx(7.5**2)


def test_of_several_bad_gradients_the_one_nearest_to_the_loss_is_named_and_older_ones_do_not_count() -> None:
    objective = Tiny("backbone.layers.0.weight", "backbone.layers.2.weight")
    objective.backbone.layers[2].bias.grad = torch.full((2,), torch.nan)  # type: ignore[index, union-attr]
    assert found(objective).name == "the gradient of backbone.layers.2.weight has 4 non-finite of 8 values"


def test_hooks_are_gone_afterwards() -> None:
    objective = Tiny()
    found(objective)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in objective.modules())

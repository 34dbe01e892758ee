"""What must hold of this objective: python -m pytest test_skeleton.py"""

import math
from pathlib import Path

import torch

from unlabeled.commands.arguments.compose import composed
from unlabeled.commands.build.network import build_objective
from unlabeled.commands.setup.skeletons.objective import skeleton_loss
from unlabeled.objective import Batch, Progress

CONF = Path(__file__).parent / "conf"


def test_the_loss_is_that_of_a_literal_loop() -> None:
    torch.manual_seed(0)
    z1, z2 = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    unit = [z / z.norm(dim=1, keepdim=True) for z in (z1, z2)]
    alignment = sum(float((a - b).square().sum()) for a, b in zip(*unit, strict=True)) / 5
    spread = 0.0
    for z in unit:
        pairs = [math.exp(-2 * float((z[i] - z[j]).square().sum())) for i in range(5) for j in range(5) if i != j]
        spread += math.log(sum(pairs) / len(pairs)) / 2
    assert math.isclose(float(skeleton_loss(z1, z2, 0.5)), alignment + 0.5 * spread, rel_tol=1e-9)


def test_equal_embeddings_have_the_loss_of_a_collapse() -> None:
    z = torch.ones(4, 3)
    assert abs(float(skeleton_loss(z, z, 1.0))) < 1e-5


def test_its_yaml_builds_it_and_steps_lower_its_loss() -> None:
    chosen = ["objective=skeleton", "backbone=resnet_thin", "backbone.width=0.125"]
    objective = build_objective(composed("train", [f"--config-dir={CONF}", *chosen]))
    torch.manual_seed(0)
    views, ids = (torch.rand(16, 3, 8, 8), torch.rand(16, 3, 8, 8)), torch.arange(16)
    batch = Batch(torch.zeros(16, 3, 8, 8, dtype=torch.uint8), ids, ids, views)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    losses = []
    for step in range(5):
        output = objective(batch, Progress(step, 5, 5, 0))
        assert output.features.shape == (16, objective.backbone.num_features)
        assert not output.features.requires_grad
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.loss.detach()))
    assert losses[-1] < losses[0]

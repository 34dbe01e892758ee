"""What must hold of this probe: python -m pytest test_skeleton.py"""

from pathlib import Path

import torch

from unlabeled.commands.arguments.compose import composed
from unlabeled.commands.build.run import build_probes
from unlabeled.commands.setup.skeletons.probe import Skeleton
from unlabeled.evaluation.features import Features

CONF = Path(__file__).parent / "conf"


def features(rows: list[list[float]], labels: list[int]) -> Features:
    return Features(torch.tensor(rows), torch.tensor(labels), torch.arange(len(labels)))


def test_the_nearest_mean_wins() -> None:
    train = features([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0]], [0, 0, 1])
    test = features([[2.0, 0.1], [0.1, 3.0], [1.0, 0.0]], [0, 1, 1])
    (score,) = Skeleton(0.1).fit_predict(train, test, 2)
    assert score.predictions is not None
    assert score.predictions.tolist() == [0, 1, 0]
    assert abs(score.top1 - 200 / 3) < 1e-4


def test_its_probabilities_add_up_to_one() -> None:
    train, test = features([[1.0, 0.0], [0.0, 1.0]], [0, 1]), features([[1.0, 1.0]], [0])
    (score,) = Skeleton(0.1).fit_predict(train, test, 2)
    assert score.log_probabilities is not None
    torch.testing.assert_close(score.log_probabilities.exp(), torch.tensor([[0.5, 0.5]]))


def test_its_yaml_builds_it() -> None:
    probes = build_probes(composed("train", [f"--config-dir={CONF}", "probe=skeleton"]))
    assert list(probes) == ["skeleton"]

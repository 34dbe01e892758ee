from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn

from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate_probes import Extract, Row, chance_rows, evaluate_probes
from unlabeled.evaluation.features import Features, extract, split_batches
from unlabeled.evaluation.probe import Score
from unlabeled.evaluation.probes.knn import KNN
from unlabeled.evaluation.probes.logistic import LogisticRegressionProbe
from unlabeled.evaluation.probes.sgd_grid import SGDGrid
from unlabeled.objective import Batch

CONF = Path(__file__).parents[2] / "conf"


def scale(x: Tensor, sizes: Tensor | None = None) -> Tensor:
    return x.float() / 255


def split(n: int, seed: int, unlabelled: int = 0) -> list[Batch]:
    """Class 0 is dark on the left, class 1 on the right; all else is noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (n,), generator=generator)
    images = torch.randint(256, (n, 3, 4, 4), generator=generator)
    half = torch.arange(4)[None] // 2 == labels[:, None]
    images = torch.where(half[:, None, None, :], images // 4, images).to(torch.uint8)
    labels[:unlabelled] = -1
    return split_batches(images, labels, torch.arange(n), 32)


class Halves(nn.Module):
    """The features that solve the task."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(2))

    def forward(self, images: Tensor) -> Tensor:
        return images.reshape(-1, 3, 4, 2, 2).mean(dim=(1, 2, 4)) * self.gain


class Blind(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, :2, 0] * 0 + 1


class Recorder:
    needs = 1

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def fit_predict(self, train: Features, test: Features, num_classes: int) -> list[Score]:
        self.sizes.append((len(train.x), len(test.x)))
        return [Score("recorder", 50.0)]


def looks(train: Any = None, test: Any = None, transform: Any = scale) -> Extract:
    """Extracts anew each time; a split may be any iterable of batches."""
    splits = {"train": split(200, 0) if train is None else train, "test": split(100, 1) if test is None else test}
    return lambda network, name, kinds: extract(network, splits[name], transform, "cpu", kinds=kinds)


def run(backbone: nn.Module, probes: dict[str, Any], train: Any = None, test: Any = None, **given: Any) -> list[Row]:
    settings: dict[str, Any] = {"random_backbone": Blind(), "num_classes": 2, "log": lambda line: None}
    return evaluate_probes(backbone, extract=looks(train, test), probes=probes, **(settings | given))


def test_good_features_beat_blind_ones_and_every_row_says_its_protocol() -> None:
    rows = run(Halves(), {"knn": KNN([5], 0.1), "linear": LogisticRegressionProbe([0.1, 1.0], 0.1, 0, 100)})
    scores = {(row.features, row.protocol): row.top1 for row in rows}
    for protocol in ("knn/cosine-exp/k=5/T=0.1", "linear/cached-lbfgs-v1"):
        assert scores["pretrained", protocol] == 100
        assert 35 <= scores["random init", protocol] <= 65
        assert scores["raw pixels", protocol] > 80
    assert [row.features for row in rows] == ["pretrained"] * 2 + ["random init"] * 2 + ["raw pixels"] * 2 + [
        "chance"
    ] * 2
    assert {(row.n_train, row.n_test) for row in rows[:6]} == {(200, 100)}


def test_images_without_a_label_reach_no_probe() -> None:
    recorder = Recorder()
    rows = run(Halves(), {"r": recorder}, train=split(200, 0, unlabelled=50), test=split(100, 1, unlabelled=10))
    assert recorder.sizes == [(150, 90)] * 3
    assert (rows[0].n_train, rows[0].n_test) == (150, 90)
    with pytest.raises(UserError, match="none of the 200 train images has a label"):
        run(Halves(), {"r": recorder}, train=split(200, 0, unlabelled=200))


def test_chance_is_the_largest_share_of_test_and_one_of_the_classes() -> None:
    majority, uniform = chance_rows(torch.tensor([0, 3, 3, 3, 1, 1, 0, 2]), 5)
    assert (majority.protocol, majority.top1) == ("chance/majority-class", 37.5)
    assert majority.chosen == {"class_counted_on": "test"}
    assert (uniform.protocol, uniform.top1) == ("chance/uniform", 20.0)


def test_a_backbone_that_changes_while_it_is_judged_is_refused() -> None:
    backbone = nn.Sequential(Halves(), nn.BatchNorm1d(2))

    def learns_in_eval_mode(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        module.get_buffer("running_mean")[0] += 1e-6

    backbone[1].register_forward_hook(learns_in_eval_mode)
    with pytest.raises(RuntimeError, match=r"the evaluation changed the backbone .* numbers are void"):
        run(backbone, {"r": Recorder()})


def test_a_transform_that_changes_the_backbone_is_refused() -> None:
    backbone = Halves()

    def meddles(x: Tensor, sizes: Tensor | None) -> Tensor:
        backbone.gain.data[0] = 2.0
        return scale(x)

    with pytest.raises(RuntimeError, match="the evaluation changed the backbone"):
        evaluate_probes(backbone, Blind(), looks(transform=meddles), {"r": Recorder()}, 2, log=lambda line: None)


def test_the_random_state_and_the_scores_do_not_depend_on_each_other() -> None:
    probes = {
        "sgd": SGDGrid([0.01, 0.1], 2, 16, [0.0], 0.9, 0.1, 0),
        "linear": LogisticRegressionProbe([0.1, 1.0], 0.1, 0, 50),
    }
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(run(Halves(), probes))
        assert torch.equal(torch.get_rng_state(), before)
    for first, second in zip(*results, strict=True):
        assert first.as_dict() == second.as_dict()
        if first.predictions is not None and second.predictions is not None:
            assert torch.equal(first.predictions, second.predictions)


def test_a_generator_and_labels_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="a generator can be read only once"):
        run(Halves(), {"r": Recorder()}, train=iter(split(20, 0)))
    with pytest.raises(UserError, match="train label 1; with 1 classes, 0 to 0"):
        run(Halves(), {"r": Recorder()}, num_classes=1)


def test_weights_that_were_never_trained_are_noted() -> None:
    rows = run(Halves(), {"r": Recorder()}, random_backbone=Halves(), raw_pixels=False)
    assert [row.features for row in rows] == ["pretrained", "random init", "chance", "chance"]
    assert rows[0].notes == ["The pretrained weights are those of the random initialisation: nothing was learnt."]
    assert run(Halves(), {"r": Recorder()})[0].notes == []


def test_progress_says_what_was_done_and_how_long_it_took() -> None:
    lines: list[str] = []
    run(Halves(), {"r": Recorder()}, log=lines.append)
    assert lines[0].startswith("pretrained: 2 features of 200 train images in ")
    assert lines[2].startswith("pretrained: 50.00 % recorder (")
    assert len(lines) == 9


@pytest.mark.parametrize(
    ("name", "protocols"),
    [
        ("knn", ["knn/cosine-exp/k=20/T=0.1", "knn/cosine-exp/k=200/T=0.1"]),
        ("linear", ["linear/cached-lbfgs-v1"]),
        ("linear_sgd", ["linear/cached-sgd-grid-v2/epochs=100/batch=256/wd=0"]),
        ("quick", ["knn/cosine-exp/k=20/T=0.1", "knn/cosine-exp/k=200/T=0.1", "linear/cached-lbfgs-v1"]),
    ],
)
def test_every_probe_yaml_builds_probes_that_report_these_protocols(name: str, protocols: list[str]) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        probes = instantiate(compose(f"probe/{name}").probe)
    rows = run(Halves(), probes, train=split(400, 0), raw_pixels=False)
    assert [row.protocol for row in rows if row.features == "pretrained"] == protocols
    assert all(row.top1 > 95 for row in rows if row.features == "pretrained")

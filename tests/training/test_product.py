"""The network that a method publishes, its backbone or a teacher, is the one that is evaluated, loaded and exported."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

import unlabeled
from tests.small import small_run
from unlabeled.commands.build.network import build_backbone, projector_of
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.errors import UserError
from unlabeled.evaluation.features import extract
from unlabeled.objective import Plan
from unlabeled.training import online_knn
from unlabeled.training.run import Run
from unlabeled.weights import load_backbone, read_checkpoint

STEPS = ["data=digits", "max_steps=3", "num_workers=0", "health=none", "optimizer.lr=2", "optimizer.warmup_epochs=0"]


def trained(folder: Path, objective: str, *overrides: str) -> Run:
    config = small_run(objective, folder, *STEPS, *overrides)
    resolved = open_run(config)
    run = build_run(config, resolved)
    with closing(run):
        run.fit(resolved)
    return run


@pytest.fixture(scope="module")
def teacher_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("runs") / "teacher", "byol", "objective.evaluated=target")


def part(run: Run, name: str) -> dict[str, Tensor]:
    """One network of the objective in the run's checkpoint."""
    state = torch.load(run.checkpoint, weights_only=True)["state_dict"]
    return {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}


def loaded(run: Run, path: Path | None = None) -> dict[str, Tensor]:
    config = run.module.config["backbone"]
    backbone = build_backbone(OmegaConf.create(config), 7)
    return load_backbone(path or run.checkpoint, backbone).state_dict()


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_checkpoint_holds_backbone_and_teacher_and_the_one_it_names_is_loaded(teacher_run: Run) -> None:
    checkpoint = torch.load(teacher_run.checkpoint, weights_only=True)
    assert checkpoint["product"] == "target_backbone"
    student, teacher = part(teacher_run, "objective.backbone."), part(teacher_run, "objective.target_backbone.")
    assert not equal(student, teacher)
    assert equal(loaded(teacher_run), teacher)
    read = read_checkpoint(teacher_run.checkpoint)
    assert (read.product, read.part) == ("target_backbone", "the objective's target_backbone, as the method says")


def test_without_a_name_as_in_older_checkpoints_it_is_the_backbone(teacher_run: Run, tmp_path: Path) -> None:
    content = torch.load(teacher_run.checkpoint, weights_only=True)
    del content["product"]
    torch.save(content, tmp_path / "old.ckpt")
    assert equal(loaded(teacher_run, tmp_path / "old.ckpt"), part(teacher_run, "objective.backbone."))


@pytest.mark.parametrize("product", ["", "projector_", "teacher", 3, ["backbone"]])
def test_a_name_of_nothing_in_the_file_is_refused(teacher_run: Run, tmp_path: Path, product: Any) -> None:
    content = torch.load(teacher_run.checkpoint, weights_only=True) | {"product": product}
    torch.save(content, tmp_path / "wrong.ckpt")
    with pytest.raises(UserError, match="its product is no network of its objective"):
        read_checkpoint(tmp_path / "wrong.ckpt")


def test_the_loaded_network_gives_the_teachers_features(teacher_run: Run) -> None:
    network = unlabeled.load(str(teacher_run.checkpoints.folder.parent))
    images = torch.rand(4, 3, 8, 8)
    teacher = teacher_run.module.objective.product().eval()
    with torch.no_grad():
        torch.testing.assert_close(network(images), teacher(images))


def test_the_online_knn_asks_the_teacher(teacher_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def remembered(network: Any, *more: Any) -> Any:
        asked.append(network)
        return extract(network, *more)

    monkeypatch.setattr(online_knn, "extract", remembered)
    probe = online_knn.OnlineKNN(1, 20, 40, 5, 0.1, 32)
    assert probe.measure(teacher_run.module, teacher_run.data, torch.device("cpu")) is not None
    assert asked == [teacher_run.module.objective.target_backbone] * 2


def test_lidar_sees_the_teachers_projector(teacher_run: Run) -> None:
    config = OmegaConf.create(teacher_run.module.config)
    projector = projector_of(config, read_checkpoint(teacher_run.checkpoint))
    assert projector is not None
    assert equal(dict(projector.state_dict()), part(teacher_run, "objective.target_projector."))


@pytest.mark.parametrize("objective", ["moco_v2", "byol"])
def test_methods_that_publish_their_backbone_name_nothing(objective: str, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", objective)
    content = torch.load(run.checkpoint, weights_only=True)
    assert not {"product", "uses_labels"} & content.keys()
    assert equal(loaded(run), part(run, "objective.backbone."))


def test_a_plan_knows_the_classes_of_the_training_images_and_a_method_may_need_them(teacher_run: Run) -> None:
    assert teacher_run.module.plan.classes == 10
    assert teacher_run.module.plan.needs_labels() == 10
    with pytest.raises(UserError, match=r"^objective: it trains with labels, and the training images have none"):
        Plan(8, 1, 100, (8, 8)).needs_labels()

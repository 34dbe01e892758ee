"""Training of a detector: rates, groups, order of images; a training that was stopped goes on bit for bit."""

import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from tests.downstream.shapes import write_coco
from unlabeled.backbones.resnet import ResNet
from unlabeled.commands.build.detection import build_trainer
from unlabeled.downstream.detection.annotated.batches import Jittered, Steps, TrainingBatches
from unlabeled.downstream.detection.annotated.coco import read_coco
from unlabeled.downstream.detection.annotated.images import DetectionImages
from unlabeled.downstream.detection.model import Inputs, detector
from unlabeled.downstream.detection.networks.heads import Heads
from unlabeled.downstream.detection.recipe import DetectionRecipe, decay_groups
from unlabeled.downstream.detection.training import DetectionTraining, States, detect_all
from unlabeled.errors import UserError
from unlabeled.training.checkpoints import CheckpointFolder

VALUES: dict[str, Any] = {
    **{"neck": "fpn", "masks": True, "batchnorm": "trained", "head_norm": None, "anchor": None},
    **{"width": 8, "proposals": 20, "regions": 16},
    **{"steps": 6, "batch_size": 2, "images_per_pass": None, "layer_decay": None, "drop_path": 0.0},
    **{"optimizer": partial(torch.optim.SGD, momentum=0.9), "lr": 0.02, "weight_decay": 1e-4},
    **{"warmup_steps": 2, "warmup_factor": 0.1, "milestones": [4, 5], "gamma": 0.1, "clip_norm": 1.0},
    **{"scale": None, "size": 32, "shorter": [32, 40], "longest": 64, "test_size": 32, "flip": True, "empty": False},
}
RECIPE = DetectionRecipe(**VALUES)
ASKED = {"accelerator": "cpu", "precision": "32-true"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> DetectionImages:
    return read_coco(write_coco(tmp_path_factory.mktemp("shapes"), 5, 1, size=32), "x")[0]


def thin(masks: bool = True) -> nn.Module:
    torch.manual_seed(1)
    heads, inputs = Heads(width=8, hidden=16, proposals=20, regions=16), Inputs((32,), 64, resize_training=False)
    return detector(ResNet(10, 0.125, "imagenet"), neck="fpn", classes=3, masks=masks, inputs=inputs, heads=heads)


def train(
    images: DetectionImages,
    folder: Path,
    recipe: DetectionRecipe = RECIPE,
    stop: Callable[[int], None] = lambda _: None,
) -> DetectionTraining:
    """Trains from the state in the folder, if there is one; ``stop`` gets the number of each step that is done."""
    states = CheckpointFolder(folder, 1)
    training = DetectionTraining(thin(), recipe, 0, {}, lambda line: None)
    trainer = build_trainer(ASKED, States(states, 2, recipe.steps, print), folder)
    trainer.callbacks.append(Stopping(stop))  # type: ignore[attr-defined]
    steps = Steps(len(images), recipe.batch_size, recipe.steps, 0, lambda: trainer.global_step)
    loader: Any = TrainingBatches(Jittered(images, recipe.jitter((0.5, 0.5, 0.5)), True), steps, 0)
    trainer.fit(training, loader, ckpt_path=states.find())
    return training


class Stopping(pl.Callback):
    def __init__(self, stop: Callable[[int], None]) -> None:
        self.stop = stop

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        self.stop(trainer.global_step)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def whole(images: DetectionImages, tmp_path_factory: pytest.TempPathFactory) -> DetectionTraining:
    return train(images, tmp_path_factory.mktemp("whole"))


def test_a_training_that_was_killed_goes_on_bit_for_bit(
    images: DetectionImages, whole: DetectionTraining, tmp_path: Path
) -> None:
    def kill(step: int) -> None:
        if step == 5:  # the state is that of step 4
            raise Killed

    with pytest.raises(Killed):
        train(images, tmp_path / "killed", stop=kill)
    torch.manual_seed(99)
    resumed = train(images, tmp_path / "killed")
    assert resumed.losses == whole.losses
    assert len(whole.losses) == 6
    assert [*resumed.state_dict()] == [*whole.state_dict()]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    kept = torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 6


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_training_after_a_step_whose_state_is_written(
    images: DetectionImages, whole: DetectionTraining, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    before = signal.getsignal(number)

    def send(step: int) -> None:
        if step == 4:
            signal.raise_signal(number)

    with pytest.raises(SystemExit) as ended:
        train(images, tmp_path, stop=send)
    assert ended.value.code == status
    assert signal.getsignal(number) is before
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 5
    resumed = train(images, tmp_path)
    assert resumed.losses == whole.losses
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_file_that_cannot_be_decoded_is_one_line_from_a_worker_too(tmp_path: Path) -> None:
    images = read_coco(write_coco(tmp_path, 2, 1, size=32), "x")[0]
    images.pictures[0].path.write_text("not an image")
    steps = Steps(2, 2, 1, 0, lambda: 0)
    batches = TrainingBatches(Jittered(images, RECIPE.jitter((0.5,) * 3), True), steps, 1)
    with pytest.raises(UserError) as refused:
        next(iter(batches))
    line = str(refused.value)
    assert line.startswith(f"{images.pictures[0].path}: cannot be decoded: cannot identify image file")
    assert line.endswith("put the whole file there, and the same command goes on")
    assert "Traceback" not in line


def test_a_step_in_two_passes_has_the_losses_of_both_weighted_by_their_images(images: DetectionImages) -> None:
    one = DetectionTraining(thin(), replace(RECIPE, images_per_pass=1), 0, {}, lambda line: None)
    sums: list[Tensor] = []
    one.manual_backward = sums.append  # type: ignore[method-assign,assignment]
    batch: list[Any] = [Jittered(images, RECIPE.jitter((0.5,) * 3), True)[row, row] for row in range(2)]
    parts = [one._pass(batch, first, 0) for first in range(2)]
    assert [float(each.detach()) for each in sums] == parts
    assert parts[0] == pytest.approx(one._pass(batch[:1], 0, 0) / 2, rel=1e-5)


def test_the_rate_rises_linearly_and_falls_at_the_milestones() -> None:
    rates = [RECIPE.rate(step) / 0.02 for step in range(6)]
    assert rates == pytest.approx([0.1, 0.55, 1, 1, 0.1, 0.01])
    with pytest.raises(UserError, match=r"detection\.warmup_steps=6: must be less than detection\.steps=6"):
        replace(RECIPE, warmup_steps=6).check()
    with pytest.raises(UserError) as refused:
        replace(RECIPE, steps=3, warmup_steps=3).check()
    assert str(refused.value) == (
        "detection.warmup_steps=3 and detection.milestones=[4,5]: must be less than detection.steps=3; give for "
        "example detection.warmup_steps=0 detection.milestones=[2]"
    )


def test_norms_are_not_decayed_and_biases_are_as_in_detectron2() -> None:
    network = thin()
    decayed, spared = decay_groups(network, 0.1)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert {id(each) for each in spared["params"]} == {
        id(each) for module in network.modules() if isinstance(module, nn.BatchNorm2d) for each in module.parameters()
    }
    assert any(names[id(each)].endswith("bias") for each in decayed["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_layer_decay_is_refused_without_blocks() -> None:
    with pytest.raises(UserError, match=r"detection\.layer_decay=0\.7: is for a ViT"):
        replace(RECIPE, layer_decay=0.7).build_optimizer(thin())


def test_each_pass_over_the_images_has_all_of_them_and_a_later_start_has_the_same_steps() -> None:
    whole = [*Steps(5, 2, 10, 3, lambda: 0)]
    rows = [row for step in whole for row, _ in step]
    assert [sorted(rows[first : first + 5]) for first in range(0, 20, 5)] == [[0, 1, 2, 3, 4]] * 4
    assert rows[:5] != rows[5:10]
    assert [*Steps(5, 2, 10, 3, lambda: 7)] == whole[7:]
    seeds = [seed for step in whole for _, seed in step]
    assert len({*seeds}) == 20


def test_a_loss_that_is_not_finite_ends_the_training_in_one_line(images: DetectionImages, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"detection\.lr=1e\+06: the training diverged in step \d"):
        train(images, tmp_path, replace(RECIPE, lr=1e6, warmup_steps=0, clip_norm=None))


def test_detections_are_of_the_size_of_the_image_and_the_network_stays_as_it_is(images: DetectionImages) -> None:
    network = thin()
    network.roi_heads.score_thresh = 0.0  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    done: list[int] = []
    found = detect_all(network, images, torch.device("cpu"), "32-true", done.append)
    assert done == [1, 2, 3, 4, 5]
    assert all(len(each.scores) for each in found)
    assert found[0].masks is not None
    assert found[0].masks[0]["size"] == [32, 32]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

"""Pictures during training: where they lie, what they show, and that training does not notice them."""

from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from torchvision.transforms.functional import pil_to_tensor

from unlabeled.build import build_run
from unlabeled.config import open_run
from unlabeled.evaluation.features import state_hash
from unlabeled.pictures import GAP, TITLE, Pictures, draw, log_picture
from unlabeled.run import Run

CONF = Path(__file__).parents[1] / "conf"
MAE = (
    "objective=mae",
    "backbone=vit_tiny_small",
    "views=mae_small",
    "optimizer=adamw_mae",
    "views.size=16",
    "backbone.width=16",
    "backbone.heads=2",
    "backbone.depth=1",
    "objective.decoder_width=8",
    "objective.decoder_heads=2",
    "objective.decoder_depth=1",
)


def make_run(folder: Path, *overrides: str) -> Run:
    common = ["name=x", "data=digits", "batch_size=400", "trainer.accelerator=cpu", "num_workers=0", "online_knn=null"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [*common, f"run_dir={folder}", *overrides])
    resolved = open_run(config)
    run = build_run(config, resolved)
    run.fit(resolved)
    return run


def test_they_are_written_after_every_nth_epoch_and_the_last_step_a_row_per_image(tmp_path: Path) -> None:
    run = make_run(tmp_path, *MAE, "max_steps=8", "pictures.every_n_epochs=2", "pictures.images=5")
    files = sorted((tmp_path / "pictures").iterdir())
    assert [file.name for file in files] == ["step-00000006.png", "step-00000008.png"]  # 3 steps an epoch
    columns = Pictures(1, 5).make(run.module, run.data, torch.device("cpu"))
    assert list(columns) == ["seen", "reconstructed", "original"]
    assert all(column.shape == (5, 3, 16, 16) for column in columns.values())
    assert torch.equal(pil_to_tensor(Image.open(files[1])), pil_to_tensor(draw(columns)))
    originals = pil_to_tensor(Image.open(files[0]))[:, :, 2 * (128 + GAP) :]  # the same images each time
    assert torch.equal(originals[:, TITLE:], pil_to_tensor(Image.open(files[1]))[:, TITLE:, 2 * (128 + GAP) :])


def test_a_run_with_them_ends_bit_for_bit_where_a_run_without_them_does(tmp_path: Path) -> None:
    watched = make_run(tmp_path / "watched", *MAE, "max_steps=4", "pictures.every_n_epochs=1")
    alone = make_run(tmp_path / "alone", *MAE, "max_steps=4", "pictures=null")
    assert state_hash(watched.module) == state_hash(alone.module)
    assert not (tmp_path / "alone" / "pictures").exists()
    watched.module.train()
    before = torch.get_rng_state()
    Pictures(1, 3).make(watched.module, watched.data, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(part.training for part in watched.module.modules())


def test_a_method_that_paints_nothing_leaves_no_folder(tmp_path: Path) -> None:
    make_run(tmp_path, "backbone=resnet_thin", "backbone.width=0.125", "views.size=8", "max_steps=1")
    assert not (tmp_path / "pictures").exists()


def test_a_picture_holds_each_image_enlarged_in_its_row_and_column() -> None:
    columns = {
        name: torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(n)) for n, name in enumerate("ab")
    }
    picture = pil_to_tensor(draw(columns))
    side = 3 * 48  # the first multiple of 48 that is not below 128
    assert picture.shape == (3, TITLE + 2 * (side + GAP), 2 * (side + GAP))
    for number, column in enumerate(columns.values()):
        for row, image in enumerate(column):
            top, left = TITLE + row * (side + GAP), number * (side + GAP)
            tile = picture[:, top : top + side, left : left + side]
            for offset in range(3):
                assert torch.equal(tile[:, offset::3, offset::3], (image * 255).round().byte())
    assert int((picture[:, :TITLE] < 255).sum()) > 0  # the titles


def test_tensorboard_gets_the_picture(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    logger = TensorBoardLogger(tmp_path, name="", version="")
    picture = draw({"one": torch.rand(1, 3, 128, 128)})
    log_picture([object(), logger], picture, 7)
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0})
    events.Reload()
    (event,) = events.Images("pictures")
    assert (event.step, event.height, event.width) == (7, picture.height, picture.width)

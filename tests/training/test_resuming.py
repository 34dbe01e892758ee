"""What a run writes down of itself: once, whole, of the step that it names, and refused where it is damaged."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from tests.small import small_run
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import check_same, open_run
from unlabeled.errors import UserError
from unlabeled.training.loggers import MLflow, load_or_create_id
from unlabeled.training.run import Run


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    generator = torch.Generator().manual_seed(0)
    for number in range(48):
        (folder / str(number % 2)).mkdir(exist_ok=True)
        pixels = torch.randint(256, (16, 16, 3), dtype=torch.uint8, generator=generator).numpy()
        Image.fromarray(pixels).save(folder / str(number % 2) / f"{number}.png")
    return folder


def config_of(images: Path, run_dir: Path, *overrides: str, objective: str = "simclr") -> DictConfig:
    chosen = ["data=folder", f"data.path={images}", "data.image_size=16", "num_workers=0", "max_epochs=null"]
    return small_run(objective, run_dir, *chosen, "max_steps=7", *overrides)  # 3 steps in an epoch


def trained(config: DictConfig) -> Run:
    resolved = open_run(config)
    run = build_run(config, resolved)
    try:
        run.fit(resolved)
    finally:
        run.close()
    return run


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    trained(config_of(images, run_dir))
    return run_dir


def lines(run_dir: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "train/loss" in row]


def test_metrics_of_the_first_and_the_last_step_are_always_written(images: Path, tmp_path: Path) -> None:
    trained(config_of(images, tmp_path / "run", "log_every_n_steps=3"))
    assert [row["step"] for row in lines(tmp_path / "run")] == [1, 3, 6, 7]
    trained(config_of(images, tmp_path / "never", "log_every_n_steps=1000"))
    assert [row["step"] for row in lines(tmp_path / "never")] == [1, 7]


def test_a_line_of_progress_has_the_values_of_the_step_that_it_names(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(config_of(images, tmp_path / "run"))
    said = re.findall(r"step (\d+)/7  loss ([\d.]+)  lr ([\d.e+-]+)", capsys.readouterr().out)
    assert [int(step) for step, _, _ in said] == [3, 6, 7]
    wanted = {row["step"]: (row["train/loss"], row["train/learning_rate"]) for row in lines(tmp_path / "run")}
    for step, loss, rate in said:
        shown_loss, shown_rate = wanted[int(step)]
        assert (loss, rate) == (f"{shown_loss:.3f}", f"{shown_rate:.2e}")
    assert len({rate for _, _, rate in said}) == 3
    assert run.module.steps_taken == 7


def test_the_configuration_is_written_once(finished: Path, images: Path) -> None:
    before = (finished / "config.yaml").stat()
    trained(config_of(images, finished, "num_workers=0", "log_every_n_steps=2"))
    after = (finished / "config.yaml").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not (finished / "lock").exists()


DAMAGE: dict[str, bytes] = {
    "cut": b"name: x\nviews: {size: [1,",
    "empty": b"",
    "binary": bytes(range(256)),
    "a list": b"- 1\n",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_configuration_is_one_line_and_without_it_the_checkpoint_says_what_was_run(
    how: str, finished: Path, images: Path
) -> None:
    path, whole = finished / "config.yaml", (finished / "config.yaml").read_bytes()
    path.write_bytes(DAMAGE[how])
    try:
        with pytest.raises(UserError, match=r"config\.yaml is damaged.*remove it: the checkpoints hold"):
            open_run(config_of(images, finished))
        path.unlink()
        config = config_of(images, finished, "objective.temperature=0.7")
        with pytest.raises(UserError, match=r"holds a run with another objective\.temperature; give another name"):
            build_run(config, open_run(config))
        trained(config_of(images, finished))
        assert OmegaConf.load(path) == OmegaConf.create(whole.decode())
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"two words\n", b"x" * 10_000, None])
def test_a_damaged_id_of_a_logger_is_one_line(content: bytes | None, tmp_path: Path) -> None:
    for name in ("wandb_run_id", "mlflow_run_id"):
        os.mkfifo(tmp_path / name) if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"wandb_run_id is damaged: it holds no id of a run; remove it"):
        load_or_create_id(tmp_path / "wandb_run_id")
    with pytest.raises(UserError, match=r"mlflow_run_id is damaged: it holds no id of a run; remove it"):
        MLflow(str(tmp_path), "x", "x", f"file:{tmp_path}/mlruns")


OTHERS = {
    "a wider network": ["backbone.width=0.25"],
    "another head": [],
    "another optimizer": ["optimizer=adamw"],
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_state_of_another_network_or_optimizer_is_one_line(what: str, finished: Path, images: Path) -> None:
    config = config_of(images, finished, "resume=override", "max_steps=9", *OTHERS[what])
    if what == "another head":  # small_run has its own
        config.objective.projection_dim = 24
    before = (finished / "config.yaml").read_bytes()
    with pytest.raises(UserError) as refused:
        trained(config)
    words = str(refused.value)
    assert re.search(
        r"last\.ckpt is the state of a run with another network or optimizer: .*; give another name=…", words
    )
    assert len(words.splitlines()) == 1
    assert ("the optimizer was SGD and is AdamW" in words) == (what == "another optimizer")
    assert (finished / "config.yaml").read_bytes() == before


def test_a_folder_whose_name_chains_file_systems_is_refused_before_a_step(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no state could be written to a folder with :: in its name"):
        open_run(config_of(images, tmp_path / "a::b"))


def test_a_run_that_would_have_other_steps_than_it_began_with_is_refused(
    images: Path, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    config = config_of(images, tmp_path / "run")
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    state["progress"]["steps_per_epoch"] = 2
    torch.save(state, tmp_path / "run/checkpoints/last.ckpt")
    with pytest.raises(UserError, match=r"began with steps_per_epoch=2 and would go on with 3.*memory_gib"):
        trained(config)


def test_a_damaged_image_in_memory_or_not_is_another_order_and_is_refused(images: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(images, tmp_path / "images"))
    next(copied.rglob("7.png")).write_bytes(b"cut")  # 47 images or 48: four steps an epoch both ways
    trained(config_of(copied, tmp_path / "run", "batch_size=10"))
    again = config_of(copied, tmp_path / "run", "batch_size=10", "memory_gib=0")
    with pytest.raises(UserError, match=r"began with images=47 and would go on with 48: .* another memory_gib"):
        trained(again)


@pytest.mark.parametrize("key", ["gradient_clip_val=0.5", "sync_batchnorm=true"])
def test_settings_of_the_trainer_that_change_numbers_are_refused_and_others_not(key: str, tmp_path: Path) -> None:
    before = OmegaConf.to_container(small_run("simclr", tmp_path), resolve=True)
    after = OmegaConf.to_container(small_run("simclr", tmp_path, f"trainer.{key}", "trainer.devices=2"), resolve=True)
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    with pytest.raises(UserError, match=rf"another trainer\.{key.partition('=')[0]}; give"):
        check_same({str(name): value for name, value in before.items()}, {str(n): v for n, v in after.items()})

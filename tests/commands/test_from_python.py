"""The commands called from Python give what they give in a shell, and leave the process as they found it."""

import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from PIL import Image

import unlabeled
from tests.conftest import Script
from unlabeled.commands.arguments.asked import forgotten_afterwards
from unlabeled.commands.arguments.compose import composed, overrides_of
from unlabeled.commands.entry_points.run_from_python import Run
from unlabeled.commands.from_file import data_of
from unlabeled.core.run_config import read_yaml, to_yaml

KEYS: dict[str, Any] = {
    "experiment": "digits",
    "max_steps": 3,
    "batch_size": 64,
    "backbone": {"width": 0.125},
    "online_knn": None,
    "pictures": None,
    "num_workers": 0,
    "log_every_n_steps": 1,
    "probe": "knn",
    "probe.knn.k": [20],
    "trainer": {"accelerator": "cpu"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("python")


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return unlabeled.train(out=folder / "run", **KEYS)


def state(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return dict(checkpoint["state_dict"])


def assert_same(ours: Path, theirs: Path) -> None:
    assert (ours / "metrics.jsonl").read_text() == (theirs / "metrics.jsonl").read_text()
    first, second = state(ours), state(theirs)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_a_run_says_what_it_wrote(run: Run, folder: Path) -> None:
    assert run.folder == folder / "run"
    assert [line["step"] for line in run.metrics if "train/loss" in line] == [1, 2, 3]
    assert run.metrics[-1]["score/knn/cosine-exp/k20/T0.1"] == pytest.approx(run.results["knn"].top1)  # type: ignore[index]
    assert run.findings == []
    assert run.report is not None
    assert run.report.exists()
    assert run.results is not None
    low, high = run.results["knn"].interval or (100, 0)
    assert low < run.results["knn"].top1 < high
    assert run.results.row("knn", "raw pixels").top1 > 90
    assert run.results.table.count("\n") >= 5


def test_in_a_shell_the_same_command_gives_the_same_bits(run: Run, script: Script, tmp_path: Path) -> None:
    finished = script("train.py", *overrides_of(KEYS), "name=shell")
    assert finished.returncode == 0, finished.stderr
    assert_same(tmp_path / "outputs" / "shell", run.folder)


def test_a_run_in_a_thread_has_the_same_bits_too(run: Run, folder: Path) -> None:
    found: list[Run] = []
    thread = threading.Thread(target=lambda: found.append(unlabeled.train(out=folder / "thread", **KEYS)))
    thread.start()
    thread.join()
    assert_same(found[0].folder, run.folder)


def test_a_call_leaves_the_process_as_it_found_it(run: Run) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state(), list(warnings.filters), logging.getLogger("pytorch_lightning").level
    assert unlabeled.train(out=run.folder, **KEYS).metrics == run.metrics  # it has ended: nothing more to do
    assert torch.equal(before[0], torch.get_rng_state())
    assert (list(warnings.filters), logging.getLogger("pytorch_lightning").level) == before[1:]
    assert GlobalHydra.instance().hydra is None
    assert HydraConfig.instance().cfg is None


def test_an_evaluation_returns_its_rows_and_prints_no_table(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    keys: dict[str, Any] = {"probe": "knn", "probe.knn.k": [20], "num_workers": 0, "report_dir": run.folder / "again"}
    results = unlabeled.evaluate(run, **keys)
    assert "top-1" not in capsys.readouterr().out
    assert run.results is not None
    assert [row.top1 for row in results.rows] == [row.top1 for row in run.results.rows]
    with pytest.raises(KeyError, match="no such protocol of pretrained; there are"):
        results["linear"]
    command = json.loads((run.folder / "again" / "results.json").read_text())["provenance"]["command"]
    assert command.startswith(f"unlabeled evaluate run={run.folder} ")


def test_a_loaded_backbone_gives_the_features_of_the_run_for_all_kinds_of_images(run: Run) -> None:
    model = unlabeled.load(run)
    assert not model.training
    assert (model.num_features, model.image_size) == (64, 16)
    weights = {name.removeprefix("objective."): value for name, value in state(run.folder).items()}
    ours = model.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], weights[name])] == []
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    images = [model.transform(each) for each in (Image.fromarray(pixels), pixels, tensor)]
    assert images[0].shape == (3, 16, 16)
    assert all(torch.equal(images[0], image) for image in images[1:])
    assert torch.equal(model.transform([pixels, pixels]), model.transform(np.stack([pixels, pixels])))
    assert model(images[0][None]).shape == (1, 64)
    with pytest.raises(unlabeled.UserError, match=r"an image of float32 \[3, 9, 12\]: give uint8"):
        model.transform(tensor.float())
    with pytest.raises(unlabeled.UserError, match="str: give a Pillow image"):
        model.transform("cat.jpg")


def test_an_export_returns_its_folder(run: Run, folder: Path) -> None:
    written = unlabeled.export(run.folder, "safetensors", out=folder / "exported", data_images=0)
    assert (written / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: unlabeled.train(experiment="digit"), "experiment=digit: unknown; did you mean digits?"),
        (lambda: unlabeled.train(batchsize=3), "batchsize: no such key; did you mean batch_size?"),
        (lambda: unlabeled.train(objective={"temprature": 1}), "objective.temprature: no such key; did you mean "),
        (lambda: unlabeled.train(batch_size=2.5), "batch_size=2.5: must be a whole number"),
        (lambda: unlabeled.train(data="/no/where"), "data.path=/no/where: /no/where does not exist"),
        (lambda: unlabeled.train(data="folder"), "data.path: has no default; give data.path="),
        (lambda: unlabeled.train(batch_size=object), "batch_size=<class 'object'>: must be text, a number"),
        (
            lambda: unlabeled.train(preview=8),
            "preview: gives nothing back to Python; call unlabeled preview in a shell",
        ),
        (lambda: unlabeled.evaluate("/no/run"), "run=/no/run: no such folder"),
        (lambda: unlabeled.evaluate("x", compare=["a", "b"]), "compare: gives nothing back to Python"),
        (lambda: unlabeled.load("/no/run"), "run=/no/run: no such folder"),
        (
            lambda: unlabeled.load(cast(Any, 3)),
            "3: give the folder of a run, a file of weights, or what unlabeled.train returned",
        ),
        (lambda: unlabeled.evaluate(cast(Any, None)), "None: give the folder of a run, a file of weights, or what "),
        (
            lambda: unlabeled.predict("x", "digits", risk=0.05, samples=4),
            "risk=0.05: is chosen for one classifier; leave members and samples out, or risk",
        ),
        (
            lambda: unlabeled.label("x", strategy="typical", out="next.parquet"),
            "out=next.parquet: the ending says how it is written; allowed: .csv, .txt",
        ),
        (lambda: unlabeled.explore("x", out="page.csv"), "out=page.csv: give the name of a page like explore.html"),
        (lambda: unlabeled.export("/no/run", "tim"), "to=tim: did you mean timm? must be timm or torchvision or "),
    ],
)
def test_a_mistake_is_a_user_error_with_the_line_of_the_command(call: Any, line: str) -> None:
    with pytest.raises(unlabeled.UserError) as caught:
        call()
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    ["a b", "it's", "12", "null", "a=b,c", "[x]", "100%", "ä/ö.png", 'q"q', "back\\slash", True, 1e-5, ["a", "x y"]],
)
def test_a_value_comes_through_as_it_was_given(value: Any) -> None:
    key = "run" if isinstance(value, str) else "runs"
    name = "health" if isinstance(value, str) else "table"
    if not isinstance(value, str | list):
        key, name = {True: ("refine", "saliency")}.get(value, ("threshold", "saliency"))
    extra = ["out=x"] if name == "saliency" else []
    assert composed(name, [*overrides_of({key: value}), *extra])[key] == value


def test_names_that_are_not_there_are_no_attributes_and_all_others_are() -> None:
    for name in unlabeled.__all__:
        assert getattr(unlabeled, name) is not None
    assert set(unlabeled.__all__) <= set(dir(unlabeled))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        unlabeled.trian  # noqa: B018


def test_importing_takes_no_torch_and_no_hydra() -> None:
    code = "import sys, unlabeled; print([name for name in ('torch', 'hydra', 'numpy') if name in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, timeout=60)
    assert finished.stdout == "[]\n", finished.stderr


@pytest.mark.parametrize(("value", "text"), [(np.float64(1e-3), "0.001"), (np.int64(3), "3"), (np.bool_(True), "true")])
def test_numbers_of_numpy_are_numbers(value: Any, text: str) -> None:
    assert overrides_of({"key": value, "keys": [value]}) == [f"key={text}", f"keys=[{text}]"]


def test_a_tilde_is_the_home_folder_as_in_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert composed("train", overrides_of({"experiment": "digits", "run_dir": Path("~/r")})).run_dir == "/home/me/r"


OWN = """
from unlabeled.backbones.resnet import ResNet

class Mine(ResNet):
    pass
"""


def test_a_backbone_of_an_own_folder_of_yamls_is_loaded_and_evaluated(folder: Path, run: Run) -> None:
    own = folder / "own"
    (own / "conf" / "backbone").mkdir(parents=True)
    (own / "own_backbone.py").write_text(OWN)
    settings = read_yaml(run.folder / "config.yaml")["backbone"] | {"_target_": "own_backbone.Mine"}
    (own / "conf" / "backbone" / "mine.yaml").write_text(to_yaml(settings))
    named = [f"--config-dir={own / 'conf'}"]
    keys = {key: value for key, value in KEYS.items() if key != "backbone"}
    made = unlabeled.train(out=folder / "mine", backbone="mine", overrides=named, **keys)
    found = unlabeled.load(made, overrides=["--config-dir", str(own / "conf")])
    assert type(found.backbone).__name__ == "Mine"
    with pytest.raises(unlabeled.UserError, match=r"own_backbone\.Mine: is no backbone of this package"):
        unlabeled.load(made)
    rows = unlabeled.evaluate(made, overrides=named, probe="knn", **{"probe.knn.k": [20]})
    assert made.results is not None
    assert rows["knn"].top1 == made.results["knn"].top1


def test_a_key_that_is_given_with_the_value_of_its_yaml_is_not_replaced_by_the_runs(tmp_path: Path) -> None:
    folder = str(tmp_path)
    own = composed("embed", ["data=folder", f"data.path={folder}", "data.image_size=16"]).data
    for keys, size in (([], 16), (["data.image_size=256"], 256)):
        given = composed("embed", ["data=folder", f"data.path={folder}", *keys]).data
        found = data_of(given, {"data": OmegaConf.to_container(own)}, tmp_path / "run.ckpt")
        assert found is not None
        assert found.image_size == size
    with forgotten_afterwards():
        pass

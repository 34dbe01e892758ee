"""The wheel as a stranger has it: in a new environment, in an empty folder, with no checkout on any path."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT

SHORT = ("max_epochs=1", "batch_size=64", "backbone.width=0.125", "online_knn=null", "num_workers=0")
TINY = (*SHORT, "probe=knn", "probe.knn.k=[20]", "trainer.accelerator=cpu")
TWO = ("trainer.accelerator=cpu", "trainer.devices=2")
NOT_NEEDED = ("kornia", "wandb", "tensorboard", "mlflow", "pytest_cov")  # by a plain run


class Installed:
    """An environment that holds the wheel and, for its dependencies, sees this one's packages."""

    def __init__(self, folder: Path) -> None:
        self.built, self.folder = folder / "built", folder / "empty"
        self.folder.mkdir()
        build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(self.built), str(ROOT)]
        subprocess.run(build, check=True, capture_output=True, timeout=300)
        (self.wheel,), (self.sdist,) = self.built.glob("*.whl"), self.built.glob("*.tar.gz")
        environment = folder / "environment"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True, timeout=100)
        self.python = environment / "bin" / "python"
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--no-deps", "--no-index"]
        subprocess.run([*pip, str(self.wheel)], check=True, capture_output=True, timeout=100)
        (packages,) = (environment / "lib").glob("python*/site-packages")
        lines = [f"import sys; sys.modules.update(dict.fromkeys({NOT_NEEDED}))", sysconfig.get_path("purelib")]
        (packages / "ours.pth").write_text("\n".join(lines) + "\n")

    def __call__(self, *command: str, status: int = 0) -> str:
        """What a command prints, ``unlabeled …`` or ``python …``."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LOCAL_RANK")}
        finished = subprocess.run(
            [str(self.python.with_name(command[0])), *command[1:]],
            cwd=self.folder,
            env=kept | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert finished.returncode == status, finished.stdout + finished.stderr
        return finished.stdout + finished.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("package"))


def test_the_wheel_holds_the_configurations_and_types_and_is_small_and_the_sdist_has_no_benchmark(
    installed: Installed,
) -> None:
    names = zipfile.ZipFile(installed.wheel).namelist()
    ours = {f"unlabeled/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert ours <= set(names)
    assert "unlabeled/py.typed" in names
    assert installed.wheel.stat().st_size < 2e6
    with tarfile.open(installed.sdist) as archive:
        assert not [name for name in archive.getnames() if "/benchmarks" in name]


def test_importing_it_takes_no_torch_and_a_tenth_of_a_second(installed: Installed) -> None:
    code = "import sys, time; t = time.perf_counter(); import unlabeled; s = time.perf_counter() - t; "
    code += "print(unlabeled.__file__); print('torch' in sys.modules, s < 0.1, unlabeled.__version__)"
    where, found = installed("python", "-c", code).split()[0], installed("python", "-c", code).split()[1:]
    assert not Path(where).is_relative_to(ROOT)
    assert found == ["False", "True", "0.1.0"]


def test_a_digits_run_is_trained_judged_and_exported_from_an_empty_folder(installed: Installed) -> None:
    printed = installed("unlabeled", "train", "experiment=digits", *TINY)
    assert "% of 450 test images by knn (random network " in printed
    assert "unlabeled evaluate run=outputs/digits data=FOLDER" in printed
    assert "unlabeled train experiment=digits batch_size=64" in printed  # what goes on for longer
    judged = installed("unlabeled", "evaluate", "outputs/digits", "probe=knn", "probe.knn.k=[20]", "report_dir=again")
    assert "| pretrained " in judged
    first = json.loads((installed.folder / "outputs/digits/report/results.json").read_text())
    again = json.loads((installed.folder / "again" / "results.json").read_text())
    assert [row["top1"] for row in again["rows"]] == [row["top1"] for row in first["rows"]]
    assert first["provenance"]["command"].startswith("unlabeled train experiment=digits ")
    written = installed("unlabeled", "embed", "run=outputs/digits", "data=digits", "out=x.parquet")
    assert written.startswith("x.parquet: 1,797 images (1,347 train, 450 test) with ")
    code = "import unlabeled, pandas, numpy; t = pandas.read_parquet('x.parquet'); print(len(t), list(t), "
    code += "numpy.array_equal(numpy.stack(t.features), unlabeled.embed('outputs/digits', 'digits').x))"
    assert installed("python", "-c", code) == "1797 ['name', 'label', 'split', 'features'] True\n"
    installed("unlabeled", "export", "outputs/digits", "to=safetensors", "out=exported")
    assert (installed.folder / "exported" / "model.safetensors").exists()


def test_doctor_says_what_is_there_and_what_is_missing(installed: Installed) -> None:
    printed = installed("unlabeled", "doctor")
    assert f"torch {torch.__version__.split('+')[0]}" in printed
    assert "JPEGs of 500 × 375 pixels a second" in printed
    assert "missing      kornia for views by kornia, unlabeled saliency: pip install 'unlabeled[kornia]'" in printed


def test_an_own_objective_passes_its_test_and_trains_on_two_processes_that_the_command_starts(
    installed: Installed,
) -> None:
    installed("unlabeled", "new", "objective", "mine")
    assert "3 passed" in installed("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py")
    chosen = ["--config-dir=conf", "objective=mine", "backbone=resnet_thin", "views.size=8", "data=digits"]
    printed = installed("unlabeled", "train", *chosen, *SHORT, "name=mine", "max_steps=2", "probe=none", *TWO)
    assert printed.count("2 processes on 1 machine, all-reduce") == 1
    assert "nothing was evaluated" in printed
    progress = torch.load(installed.folder / "outputs/mine/checkpoints/last.ckpt", weights_only=True)["progress"]
    assert progress["step"] == 2


def test_a_command_that_lacks_a_package_says_how_to_get_it(installed: Installed) -> None:
    line = installed("unlabeled", "saliency", "out=masks.pt", status=2)
    assert line == "error: kornia is not installed: pip install 'unlabeled[kornia]'\n"

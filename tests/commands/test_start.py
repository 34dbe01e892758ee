"""What a command does before it does anything: imports."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from unlabeled.commands.importing import heavy_imports

ROOT = Path(__file__).parents[2]
# pandas, where it is installed, is imported by scikit-learn, and imports pyarrow
RUN = f"import runpy, sys; sys.modules['pandas'] = None; runpy.run_path('{ROOT / 'train.py'}', run_name='__main__')"
TINY = "experiment=digits max_epochs=null max_steps=1 probe=none online_knn=null pictures=null num_workers=0"
NOT_NEEDED = ("kornia", "onnx", "pyarrow", "timm", "wandb")


def python(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("batch_siz=3", 2), ("objective.temprature=1", 2)])
def test_help_and_a_mistyped_key_are_answered_without_torch(argument: str, code: int) -> None:
    done = python(f"import sys; sys.modules['torch'] = None; {RUN}", argument)
    assert done.returncode == code, done.stderr
    assert ("no such key" in done.stderr) == (code == 2)


def test_a_first_step_imports_nothing_that_it_does_not_need_and_nothing_is_said_at_the_end(tmp_path: Path) -> None:
    done = python(f"{RUN}; print({set(NOT_NEEDED)} & set(sys.modules))", *TINY.split(), f"run_dir={tmp_path}")
    assert done.stdout.splitlines()[-1:] == ["set()"]
    assert "leaked" not in done.stderr  # Triton's bindings say so of what is frozen when Python ends


def test_what_is_imported_is_collected_neither_meanwhile_nor_later() -> None:
    with heavy_imports():
        assert not gc.isenabled()
        kept: list[dict[str, int]] = [{} for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() > len(kept)
    assert not {id(each) for each in gc.get_objects()} & {id(each) for each in kept}
    gc.unfreeze()
    assert gc.get_freeze_count() == 0


def test_a_mistake_while_importing_leaves_the_collector_on() -> None:
    with pytest.raises(ImportError), heavy_imports():
        raise ImportError
    assert gc.isenabled()
    gc.unfreeze()

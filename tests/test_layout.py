"""The folder ``ssl/`` is a source root and must never become a package that hides Python's own ssl."""

import ast
import multiprocessing
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from importlinter.cli import lint_imports
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ssl" / "unlabeled"
SOURCES = sorted(PACKAGE.rglob("*.py"))


def where_ssl_lies() -> str:
    import ssl

    assert ssl.SSLContext is not None
    return str(ssl.__file__)


class SslFile(Dataset[str]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> str:
        return where_ssl_lies()


def test_the_source_root_holds_one_package_and_nothing_else() -> None:
    assert [path.name for path in (ROOT / "ssl").iterdir() if path.name != "__pycache__"] == ["unlabeled"]


def test_no_two_test_files_have_one_name_since_pytest_would_take_the_first_for_both() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert [name for name in sorted(set(names)) if names.count(name) > 1] == []


def test_under_pytest_ssl_is_the_standard_librarys() -> None:
    assert Path(where_ssl_lies()).parent == Path(sysconfig.get_path("stdlib"))


def test_from_the_repository_root_ssl_is_the_standard_librarys() -> None:
    code = "import ssl, torch; print(ssl.SSLContext.__name__)"
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert finished.stdout.strip() == "SSLContext", finished.stderr


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_loader_workers_ssl_is_the_standard_librarys(method: str) -> None:
    loader = DataLoader(SslFile(), num_workers=1, multiprocessing_context=multiprocessing.get_context(method))
    assert Path(next(iter(loader))[0]).parent == Path(sysconfig.get_path("stdlib"))


def imports(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def test_only_the_commands_know_hydra() -> None:
    knowing = {path for path in SOURCES if "hydra" in {name.split(".")[0] for name in imports(path)}}
    assert knowing
    assert not [path for path in knowing if (PACKAGE / "commands") not in path.parents]


def test_the_root_holds_the_contract_and_no_room_but_the_catalogue_of_methods_has_more_than_sixteen_files() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} <= {"__init__.py", "__main__.py", "errors.py", "objective.py"}
    rooms = [path for path in PACKAGE.rglob("*") if path.is_dir() and path.name != "__pycache__"]
    counts = {
        str(room.relative_to(PACKAGE)): len([each for each in room.iterdir() if each.is_file()]) for room in rooms
    }
    catalogue = "objectives"  # one file a method: it is as long as the list of methods
    assert {room: count for room, count in counts.items() if count > 16 and room != catalogue} == {}


def test_every_room_says_what_it_is_for() -> None:
    silent = [path for path in PACKAGE.rglob("__init__.py") if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_imports_run_downwards_only_and_in_no_circle_and_none_is_excepted() -> None:
    config = ROOT / "pyproject.toml"
    contracts = tomllib.loads(config.read_text())["tool"]["importlinter"]["contracts"]
    assert [contract["type"] for contract in contracts] == ["layers", "acyclic_siblings"]
    assert not any("ignore_imports" in contract for contract in contracts)
    assert lint_imports(config_filename=str(config), no_cache=True) == 0


def test_no_objective_imports_another() -> None:
    for path in (ROOT / "ssl" / "unlabeled" / "objectives").glob("*.py"):
        others = [name for name in imports(path) if name.startswith("unlabeled.objectives.")]
        assert not [name for name in others if not name.startswith("unlabeled.objectives.parts")], path


def test_no_state_is_loaded_in_part_and_no_constructor_takes_any_keyword() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "load_state_dict":
                assert not [keyword for keyword in node.keywords if keyword.arg == "strict"], path
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                assert node.args.kwarg is None, path

"""The tutorials of ``docs/notebooks/`` run from nothing to a model in use, and their pages show them."""

import ast
import resource
from pathlib import Path
from typing import Any

import nbformat
import pytest

from benchmarks.notebooks import FOLDER, commands, executed, page, pictures
from tests.conftest import ENVIRONMENT

NAMES = ("few_labels", "own_photographs")
Books = dict[str, Any]


def seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> tuple[Books, float]:
    """Both, executed, and what they took of a processor."""
    before, folder = seconds(), tmp_path_factory.mktemp("tutorials")
    with pytest.MonkeyPatch.context() as environment:
        for name, value in ENVIRONMENT.items():
            environment.setenv(name, value)
        return {name: executed(name, folder) for name in NAMES}, seconds() - before


def results(book: Any) -> list[str]:
    return [
        output.data["text/plain"]
        for cell in book.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "execute_result"
    ]


@pytest.mark.filterwarnings("ignore")
def test_both_run_in_under_four_minutes(books: tuple[Books, float]) -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)
    assert books[1] < 240


def test_the_tutorial_without_labels_finds_what_is_there_twice_and_what_is_no_photograph(
    books: tuple[Books, float],
) -> None:
    found = [ast.literal_eval(text) for text in results(books[0]["own_photographs"]) if text.startswith("[(")]
    pairs, outliers = found
    assert {frozenset(pair[:2]) for pair in pairs} >= {
        frozenset((f"IMG_{number:04d}.jpg", f"IMG_{number:04d} (1).jpg")) for number in (17, 101)
    }
    assert "scan_error.png" in [name for name, _ in outliers]


def test_the_tutorial_of_few_labels_ends_with_a_better_classifier_than_chance(books: tuple[Books, float]) -> None:
    told = [float(text.strip("'").split(" %")[0]) for text in results(books[0]["few_labels"]) if " % of 1,737 " in text]
    frozen, tuned = told
    assert min(frozen, tuned) > 60


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_that_of_the_stored_notebook_which_has_at_most_fifteen_commands(name: str) -> None:
    stored = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    assert 5 <= commands(stored) <= 15
    assert (FOLDER / f"{name}.md").read_text() == page(stored).replace("NAME_", f"{name}_")
    for number, picture in enumerate(pictures(stored), 1):
        assert (FOLDER / f"{name}_{number}.png").read_bytes() == picture
    assert f"notebooks/{name}.md" in (Path(__file__).parents[2] / "README.md").read_text()

"""What the documentation site is made of: links, the list of pages, and the check of what was built."""

import shlex
from pathlib import Path

import pytest

from docs.site.api import homes, pages
from docs.site.check import problems
from docs.site.nav import filled
from docs.site.repository import pages_elsewhere, with_blank_lines, with_links
from tests.conftest import ROOT
from unlabeled import __all__ as public_names

ELSEWHERE = {"CONTRIBUTING.md": "guides/add_a_method.md", "benchmarks/results/a.md": "benchmarks/a.md"}


@pytest.mark.parametrize(
    ("source", "text", "wanted"),
    [
        ("docs/speed.md", "[a](../benchmarks/results/a.md#b)", "[a](benchmarks/a.md#b)"),
        ("docs/commands/new.md", "[c](../../CONTRIBUTING.md)", "[c](../guides/add_a_method.md)"),
        ("benchmarks/results/a.md", "![d](../../docs/report.png)", "![d](../report.png)"),
        ("CONTRIBUTING.md", "[e](docs/architecture.md)", "[e](../architecture.md)"),
        ("docs/speed.md", "[conf](../conf/train.yaml)", "conf"),
        ("docs/speed.md", "[gone](../no/where.md)", "[gone](../no/where.md)"),
        ("docs/speed.md", "[web](https://a.org/b) [here](#place)", "[web](https://a.org/b) [here](#place)"),
        ("docs/speed.md", "```\n[f](../conf/train.yaml)\n```", "```\n[f](../conf/train.yaml)\n```"),
    ],
)
def test_a_link_of_the_repository_leads_to_the_page_on_the_site(source: str, text: str, wanted: str) -> None:
    assert with_links(text, source, ELSEWHERE) == wanted


def test_a_list_after_a_paragraph_gets_the_blank_line_that_github_does_not_need() -> None:
    assert with_blank_lines("a:\n- b\n  c\n- d\n") == "a:\n\n- b\n  c\n- d\n"
    assert with_blank_lines("```\na\n- b\n```\n") == "```\na\n- b\n```\n"


def test_a_pattern_takes_the_pages_that_are_named_nowhere() -> None:
    nav = [{"A": ["a.md", "*.md"]}, {"B": ["b.md", "c/*.md"]}]
    assert filled(nav, ["d.md", "b.md", "a.md", "c/e.md", "c/f/g.md"]) == [
        {"A": ["a.md", "d.md"]},
        {"B": ["b.md", "c/e.md"]},
    ]


def test_a_built_site_with_a_dead_link_or_a_request_to_another_host_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.html").write_text('<h2 id="here">c</h2><a href="../a.html#top">a</a>')
    (tmp_path / "a.html").write_text('<p id="top"><a href="b/c.html#here">c</a><a href="https://a.org">web</a></p>')
    assert problems(tmp_path) == []
    (tmp_path / "a.html").write_text(
        '<p id="top"><a href="b/c.html#there">c</a><a href="d.html">d</a><img src="e.png">'
        '<script src="https://cdn.org/x.js"></script></p>'
    )
    (tmp_path / "s.css").write_text("a { background: url(https://cdn.org/y.png) }")
    assert problems(tmp_path) == [
        "a.html: asks another host for https://cdn.org/x.js",
        "a.html: b/c.html#there: no such place on that page",
        "a.html: d.html is not there",
        "a.html: e.png is not there",
        "s.css: asks another host for https://cdn.org/y.png",
    ]


def test_every_public_function_is_in_the_reference_and_every_measured_table_is_a_page() -> None:
    assert sorted(homes()) == sorted(name for name in public_names if name != "__version__")
    text = "\n".join(pages().values())
    assert [name for name in homes().values() if f"::: {name}\n" not in text] == []
    tables = {path.name for path in (ROOT / "benchmarks" / "results").glob("*.md")}
    assert {f"benchmarks/{name}" for name in tables} <= set(pages_elsewhere().values())


def test_the_text_of_results_and_the_guide_to_methods_give_the_same_numbers() -> None:
    """A row of the guide: method, epochs, minutes, k-NN, random start, gain."""
    results = [line.split(" | ") for line in (ROOT / "docs" / "results.md").read_text().splitlines() if " | " in line]
    known = {row[0].strip("| "): [each.strip(" |") for each in row[1:5]] for row in results}
    guide = (ROOT / "docs" / "guides" / "which_method.md").read_text().split("## What was measured here")[1]
    rows = [line.strip("| ").split(" | ") for line in guide.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 11
    for name, *numbers, gain in rows:
        assert numbers == known[name], name
        assert gain == f"{float(numbers[2]) - float(numbers[3]):+.1f}"


def test_the_commands_of_the_guides_are_commands() -> None:
    from unlabeled.commands.entry_points.console import COMMANDS

    files = [*(ROOT / "docs" / "guides").glob("*.md"), ROOT / "docs" / "start.md"]
    lines = [line for file in files for line in file.read_text().splitlines() if line.startswith("unlabeled ")]
    assert len(lines) > 20
    assert {shlex.split(line, comments=True)[1] for line in lines} <= set(COMMANDS)

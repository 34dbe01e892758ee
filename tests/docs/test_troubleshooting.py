"""Troubleshooting has each message that the code can print, with what to do; read from the source, so it is current."""

import ast
import html
import re
from pathlib import Path

import pytest

from docs.site import troubleshooting
from docs.site.messages import ERRORS, Message, messages, of_file, pattern
from docs.site.remedies import DEFAULTS, meaning, parts, remedy
from docs.site.templates import PACKAGE
from tests.conftest import ROOT

LEAST = 12  # letters of a part of a message that is looked for


@pytest.fixture(scope="module")
def found() -> list[Message]:
    return messages()


@pytest.fixture(scope="module")
def text(found: list[Message]) -> str:
    """All pages, as they are read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(troubleshooting, "messages", lambda: found)
        pages = troubleshooting.pages()
    return html.unescape(re.sub(r"\\(.)", r"\1", "\n".join(pages.values())))


def literal_parts(node: ast.AST) -> list[str]:
    """The words that stand in a message as they are, whatever is filled in between them."""
    pieces = node.values if isinstance(node, ast.JoinedStr) else [node]
    words = [
        " ".join(each.value.split()) for each in pieces if isinstance(each, ast.Constant) and str is type(each.value)
    ]
    return [each for each in words if len(each) >= LEAST]


def test_the_words_of_every_error_in_the_source_are_on_the_pages(text: str) -> None:
    calls = [
        node
        for path in PACKAGE.rglob("*.py")
        if "skeletons" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ERRORS and node.args
    ]
    assert len(calls) > 600
    assert [part for node in calls for part in literal_parts(node.args[0]) if part not in text] == []


def test_every_message_has_a_heading_of_its_own_and_a_sentence_of_what_to_do(found: list[Message], text: str) -> None:
    assert [each.text for each in found if f"#### {each.text} {{ .message }}" not in text] == []
    assert [each.text for each in found if not remedy(each).endswith((".", "?", "!", "…"))] == []
    assert text.count("**Do:** ") == len(found)


def test_nine_of_ten_errors_say_what_to_do_by_their_own_words_or_their_kind(found: list[Message]) -> None:
    errors = [each for each in found if each.kind == "error"]
    general = [each for each in errors if remedy(each) == DEFAULTS["error"]]
    assert len(general) < len(errors) / 9


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("weights=‹origin›: no such file; give a file", "Give a file."),
        ("backbone.stem=‹stem› is neither imagenet nor cifar", "Give imagenet or cifar."),
        ("views.size=‹size›: must be a multiple of 16", "Must be a multiple of 16."),
        ("backbone.image_size=‹size›: ‹model› takes no image size, leave it null", "Leave it null."),
        ("run=null: give the folder of a run: unlabeled health run=outputs/digits", None),
        ("‹given›: no such file", "Check the spelling, and that the path starts from the folder in which"),
    ],
)
def test_the_remedy_is_what_the_message_says_or_that_of_its_kind(said: str, wanted: str | None) -> None:
    message = Message("error", said, "", "", "core/places.py", 1)
    told = wanted or "Give the folder of a run: unlabeled health run=outputs/digits."
    assert remedy(message).startswith(told)


def test_a_text_that_is_put_together_is_followed_to_where_its_words_are(tmp_path: Path) -> None:
    code = """
ALLOWED = ("png", "jpg")
HINT = "give another"
def why(given):
    if given:
        return f"{given} is a folder"
    return "there is none"
def check(given, many):
    if many:
        raise UserError(f"out={given}: {why(given)}; {HINT}, one of {', '.join(ALLOWED)}")
    raise UserError(str(given))
"""
    (tmp_path / "check.py").write_text(code)
    said = sorted(each.text for each in of_file(tmp_path / "check.py", "check.py"))
    assert said == [
        "out=‹given›: there is none; give another, one of png, jpg",
        "out=‹given›: ‹given› is a folder; give another, one of png, jpg",
    ]


def test_a_finding_of_the_health_monitor_has_its_meaning_and_what_to_try(found: list[Message]) -> None:
    (frozen,) = [each for each in found if each.text.startswith("teacher-is-frozen")]
    assert frozen.kind == "finding"
    assert meaning(frozen)
    assert remedy(frozen) == "Check objective.momentum and that after_step runs."
    assert parts(frozen)[0] == "teacher-is-frozen: the teacher has not changed at all"


def test_each_line_that_a_mistake_costs_in_the_pages_of_commands_is_found(found: list[Message]) -> None:
    patterns = [pattern(each) for each in found]
    lines = [
        line.removeprefix("error: ")
        for page in sorted((ROOT / "docs" / "commands").glob("*.md"))
        for line in page.read_text().splitlines()
        if line.startswith("error: ") and "…" not in line
    ]
    assert len(lines) > 30
    assert [line for line in lines if not any(each.fullmatch(line) for each in patterns)] == []

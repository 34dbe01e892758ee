"""The reference has every key of every yaml, with its value and the whole of its comment."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from docs.site.troubleshooting import escaped
from docs.site.yamls import CONF, keys_of, pages

FILES = sorted(CONF.rglob("*.yaml"))


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return pages()


def section(file: Path, made: dict[str, str]) -> str:
    group = "commands" if file.parent == CONF else file.parent.name
    name = file.stem if file.parent == CONF else f"{group}={file.stem}"
    parts = made[f"reference/yaml/{group}.md"].split("\n## ")
    (found,) = [each for each in parts if each.split("\n")[0] == escaped(name)]
    return found


def paths(node: Any, path: str = "") -> Iterator[str]:
    """Every key, as the reference writes it."""
    for key, value in node.items() if isinstance(node, dict) else ():
        own = f"{path}.{key}" if path else str(key)
        yield own
        yield from paths(value, own)
    for place, value in enumerate(node) if isinstance(node, list) else ():
        yield from paths(value, f"{path}[{place}]")


def test_every_key_of_every_yaml_is_in_the_reference(made: dict[str, str]) -> None:
    assert len(FILES) > 200
    for file in FILES:
        wanted = [each for each in paths(yaml.safe_load(file.read_text()) or {}) if not each.startswith("hydra")]
        found = re.findall(r"^\| `([^`]+)` \|", section(file, made), re.MULTILINE)
        assert sorted(found) == sorted(wanted), file


def test_no_word_of_a_comment_is_lost(made: dict[str, str]) -> None:
    for file in FILES:
        text = section(file, made)
        for line in file.read_text().split("\nhydra:")[0].splitlines():
            comment = re.search(r"(?:^|\s)# ?(.*)", line)
            if comment and "@package" not in line and '"' not in line.split("#")[0]:
                said = comment[1].strip()
                assert said in text or escaped(said) in text, (file, said)


@pytest.mark.parametrize(
    ("file", "path", "value", "begins", "ends"),
    [
        ("train", "memory_gib", "8", "GiB; a split that fits", "if it has room"),
        ("train", "compile", "null", "Mode of torch.compile", "views.compile compiles the views."),
        ("train", "plan.trial_steps", "3", "steps on a temporary copy", "(our choice)"),
        ("data/folder", "path", "???", "folder with train/ and test/", "relative to the list's folder"),
        ("views/simclr", "groups[0].operations[0].scale", "[0.08, 1.0]", "area_range", "area_range"),
        ("optimizer/lars", "optimizer.momentum", "0.9", "--momentum", "--momentum"),
        ("optimizer/lars", "optimizer", "", "", ""),
    ],
)
def test_a_comment_is_that_of_its_key(file: str, path: str, value: str, begins: str, ends: str) -> None:
    (key,) = [each for each in keys_of(CONF / f"{file}.yaml") if each.path == path]
    assert key.value == value
    assert key.comment.startswith(begins)
    assert key.comment.endswith(ends)

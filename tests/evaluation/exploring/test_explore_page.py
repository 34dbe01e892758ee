"""The page to look through images, in a real browser: it asks for nothing, and does what its buttons say."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.browser import Browser, browser
from unlabeled.evaluation.embedding.embeddings import Embeddings
from unlabeled.evaluation.exploring.images import Explored
from unlabeled.evaluation.exploring.write import write_page
from unlabeled.evaluation.selection.nearest import nearest_others, unit

MARKUP = "<img src=x onerror=\"document.title='obeyed'\">&amp;</script><b>.png"


def written(folder: Path, count: int) -> tuple[Path, Embeddings]:
    """Four clouds of images of one colour each; the first two are near duplicates."""
    generator = np.random.default_rng(0)
    x = (3 * np.eye(4, 8)[np.arange(count) % 4] + 0.3 * generator.standard_normal((count, 8))).astype(np.float32)
    x[1 % count] = x[0]
    names = [MARKUP, *(f"/photos/{number}.png" for number in range(1, count))]
    classes = ["<i>cat</i>", "dog"]
    table = Embeddings(x, names, np.arange(count) % 2, ["train"] * count, classes)
    colours = np.random.default_rng(1).integers(0, 256, (count, 1, 1, 3), np.uint8)
    explored = Explored(table, colours.repeat(96, 1).repeat(96, 2), count, list(range(count)))
    page = folder / f"explore{count}.html"
    write_page(page, explored, [MARKUP], lambda line: None, label_next=5)
    return page, table


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Embeddings]:
    return written(tmp_path_factory.mktemp("explore"), 300)


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


def opened(window: Browser, page: Path, width: int = 1280, dark: bool = False) -> None:
    window.open(page, width, dark)
    window.wait("return document.documentElement.dataset.ready")


def numbers(text: str, name: str, kind: str) -> Any:
    block = re.search(rf'id="{name}">([^<]*)<', text)
    assert block is not None
    return np.frombuffer(base64.b64decode(block[1]), kind)


def test_every_name_is_in_the_page_and_none_as_markup(made: tuple[Path, Embeddings]) -> None:
    page, table = made
    text = page.read_text()
    about = json.loads(re.search(r'id="about">(.*?)</script>', text)[1])  # type: ignore[index]
    assert [about["root"] + name for name in about["names"]] == table.names
    assert about["classes"] == table.classes
    for mark in ("<img", "<b>", "<i>", "http://", "https://"):
        assert mark not in text


def test_the_numbers_in_the_page_are_those_of_the_features(made: tuple[Path, Embeddings]) -> None:
    page, table = made
    text = page.read_text()
    rows, cosines = nearest_others(unit(table.x), 12)
    assert np.array_equal(numbers(text, "near", "<u4").reshape(-1, 12), rows)
    np.testing.assert_allclose(numbers(text, "cosine", "<u2").reshape(-1, 12) / 65535 * 2 - 1, cosines, atol=2e-5)
    members, clusters = numbers(text, "members", "<u4"), numbers(text, "cluster", "<u2")
    assert sorted(members) == list(range(300))
    assert np.all(np.diff(clusters[members].astype(int)) >= 0)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_it_draws_asks_for_nothing_and_is_as_wide_as_the_screen(
    made: tuple[Path, Embeddings], window: Browser, width: int, dark: bool
) -> None:
    opened(window, made[0], width, dark)
    assert window.complaints() == []
    assert window.requests() == [made[0].as_uri()]
    assert window.violations() == []
    assert window.run("return document.documentElement.scrollWidth") <= width
    drawn = "const c = document.querySelector('.map > canvas'); const p = c.getContext('2d').getImageData(0, 0, "
    assert window.run(f"{drawn}c.width, c.height).data; return p.filter((v, i) => i % 4 === 3 && v > 0).length") > 5000
    assert window.run("return document.title") != "obeyed"


def test_a_click_shows_the_neighbours_as_text_and_a_selection_is_the_list(
    made: tuple[Path, Embeddings], window: Browser
) -> None:
    page, table = made
    opened(window, page)
    saved = (
        "window.saved = null; URL.createObjectURL = (blob) => { blob.text().then((t) => { saved = t; }); return '#'; };"
    )
    window.run(saved)
    window.run("document.querySelector('.tile[data-row]').click()")
    row = table.names.index(_shown(window, table))
    near = nearest_others(unit(table.x), 12)[0][row]
    tiles = "return [...document.querySelectorAll('#panel .tiles .tile')].map((each) => Number(each.dataset.row))"
    assert window.run(tiles) == near.tolist()
    _press(window, "select them")
    window.run("document.querySelector('[data-panel=selection]').click()")
    window.run("document.getElementById('save').click()")
    text = window.wait("return window.saved")
    assert text.splitlines() == [table.names[each] for each in sorted(near.tolist())]


def test_near_duplicates_of_markup_are_named_as_text(made: tuple[Path, Embeddings], window: Browser) -> None:
    opened(window, made[0])
    window.run("document.querySelector('[data-panel=duplicates]').click()")
    window.run("const s = document.getElementById('similarity'); s.value = 1; s.oninput()")
    assert window.run("return [...document.querySelectorAll('#panel .tile')].map((e) => e.dataset.row)") == ["0", "1"]
    window.run("document.querySelector('#panel .tile').click()")
    assert window.run("return document.querySelector('.one b').textContent") == MARKUP
    assert "<i>cat</i>" in window.run("return document.querySelector('.one dl').textContent")
    assert window.run("return document.querySelectorAll('#page img, #page i:not(.swatch)').length") == 0


def test_a_box_on_the_map_selects_and_the_pointer_shows_an_image(
    made: tuple[Path, Embeddings], window: Browser
) -> None:
    opened(window, made[0])
    send = (
        "const c = document.querySelector('.map > canvas'), f = c.getBoundingClientRect();"
        "c.setPointerCapture = () => {}; const go = (kind, x, y) => c.dispatchEvent(new PointerEvent(kind, "
        "{pointerId: 1, clientX: f.left + x, clientY: f.top + y, bubbles: true}));"
    )
    scan = "for (let x = 0; x < f.width; x += 5) for (let y = 0; y < f.height; y += 5) {"
    found = "go('pointermove', x, y); const t = document.querySelector('.tip'); if (!t.hidden) return t.dataset.row; }"
    row = int(window.run(f"{send}{scan}{found}"))
    assert window.run("return document.querySelector('.tip span').textContent") in made[1].names[row]
    window.run("document.querySelector('[data-tool=box]').click()")
    window.run(
        f"{send}go('pointerdown', 1, 1); go('pointermove', f.width - 1, f.height - 1); go('pointerup', 900, 600);"
    )
    assert "300 images" in window.wait("return document.getElementById('panel').textContent")


@pytest.mark.parametrize("count", [1, 3])
def test_few_images_are_a_page_too(count: int, tmp_path: Path, window: Browser) -> None:
    page, _ = written(tmp_path, count)
    opened(window, page)
    for panel in ("image", "clusters", "outliers", "duplicates", "label", "selection"):
        window.run(f"document.querySelector('[data-panel={panel}]').click()")
    assert window.complaints() == []


def _shown(window: Browser, table: Embeddings) -> str:
    shown: str = window.run("return document.querySelector('.one b').textContent")
    return next(name for name in table.names if name.endswith(shown))


def _press(window: Browser, words: str) -> None:
    window.run(f"[...document.querySelectorAll('#panel button')].find((e) => e.textContent === '{words}').click()")

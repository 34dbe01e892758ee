"""Names and texts of files are shown escaped, whatever bytes they are of; damaged and hostile reports are one line."""

import csv
import io
import json
import math
import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.core.test_reading import OTHERS
from tests.health.dashboard.test_watch_runs import listed
from tests.small import CONF
from unlabeled.commands.inspect import inspect_data
from unlabeled.commands.table import make_table
from unlabeled.commands.train.ending import training_of
from unlabeled.core.escaping import escaped, in_csv, in_markdown, in_table
from unlabeled.core.parsing import parse_json
from unlabeled.core.run_config import read_yaml
from unlabeled.data.labels import LabelSelection
from unlabeled.data.sources.folder import folder
from unlabeled.errors import UserError
from unlabeled.evaluation.comparison.compare import compare
from unlabeled.evaluation.comparison.table_text import as_csv, as_latex, as_markdown
from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.predictions import read_predictions, write_predictions
from unlabeled.evaluation.reporting.figures import read_metrics
from unlabeled.evaluation.reporting.report import write_report
from unlabeled.evaluation.uncertainty.least_sure import write_least_certain
from unlabeled.health.folder import diagnose_run
from unlabeled.health.heartbeat import Heartbeat
from unlabeled.training.plan.plan import read_trial

HOSTILE = "<img src=x onerror=alert(1)>\x1b]0;owned\x07\x9b31m\u202e![p](http://x/y)|\n=cmd|' /C calc'!A0"
NAMES = [b"caf\xe9.png", b"line\nbreak.png", b"\x1b[31mred.png", b"<b>bold<b>.png", b"=1+1.png", "ünï.png".encode()]


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_text_is_shown_in_one_line_that_any_terminal_and_file_takes_and_ordinary_text_as_it_is(text: str) -> None:
    line = escaped(text)
    assert not re.search("[\0-\x1f\x7f-\x9f\u2028-\u202e\ud800-\udfff]", line)
    assert line.encode().decode() == line
    assert len(line.splitlines()) <= 1
    assert escaped(line) == line
    if text.isprintable():
        assert line == text
    assert "<" not in in_markdown(text).replace("< ", "")  # before a space it opens nothing
    assert "](" not in in_markdown(text)
    assert not re.search(r"(?<!\\)\|", in_table(text))
    assert not in_csv(text).startswith(("=", "@"))


def test_bytes_that_are_no_utf8_are_shown_as_themselves() -> None:
    assert escaped(os.fsdecode(b"caf\xe9")) == r"caf\xe9"
    assert escaped("a\tb\u202ec\x1b") == r"a\tb\u202ec\x1b"
    assert [in_csv(each) for each in ("=1", "-1.5", "+x", "-", "x")] == ["'=1", "-1.5", "'+x", "'-", "x"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Class folders and images whose names hold whatever a file system takes."""
    for number, label in enumerate((b"caf\xe9", b"<i>|cl\nass\x1b[1m")):
        for place, name in enumerate(NAMES):
            path = os.path.join(os.fsencode(tmp_path), b"images", label, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                Image.new("RGB", (9, 9), (40 * place, 90 * number, 7)).save(file, "PNG")
    return tmp_path / "images"


def test_images_of_any_name_are_decoded_listed_and_named_in_print(images: Path, tmp_path: Path) -> None:
    train = folder(str(images), labels="folders").train
    assert len(train) == 2 * len(NAMES)
    assert train.classes == [r"<i>|cl\nass\x1b[1m", r"caf\xe9"]
    names = [train.name(index) for index in range(len(train))]
    assert len(set(names)) == len(names)
    assert all(escaped(name) == name for name in names)
    assert all(train.decode(index).shape == (3, 9, 9) for index in range(len(train)))
    listed = LabelSelection(None, None, 2, 0, "x").of(train)
    (tmp_path / "labels.txt").write_text(listed.text, encoding="utf-8")
    again = LabelSelection(str(tmp_path / "labels.txt"), None, None, 0, "x").of(train)
    assert (again.names, again.sha256) == (listed.names, listed.sha256)
    (tmp_path / "latin.txt").write_bytes("é.png\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"byte 0 is no UTF-8; save the list as UTF-8"):
        LabelSelection(str(tmp_path / "latin.txt"), None, None, 0, "x").of(train)


def printable(text: str) -> None:
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", text)


def harmless(text: str) -> None:
    """On a page of Markdown."""
    printable(text)
    assert "<img" not in text
    assert "<b>" not in text
    assert "![p](http" not in text


def run_of(folder: Path, protocol: str, description: str, **more: Any) -> Path:
    """The folder of a run that was judged, all text in it from outside."""
    labels = torch.arange(20) % 2
    row = Row("pretrained", protocol, 100.0, n_test=20, predictions=labels, notes=[description], **more)
    data = {"description": description, "train_labels_sha256": description, "test_labels_sha256": description}
    write_report(folder / "report", [row], {"data": data, "views": {"size": description}, "checkpoint": {"step": 1}})
    write_predictions(folder / "report", [row], labels, torch.arange(20))
    config = {"seed": 0, "objective": {"_target_": HOSTILE, "x": description}, HOSTILE: folder.name}
    (folder / "config.yaml").write_text(json.dumps(config))
    return folder


def test_tables_comparisons_and_reports_hold_no_html_no_formula_and_no_order_to_a_terminal(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / f"=1<b>\x1b[3{place}m", HOSTILE, HOSTILE) for place in range(2)]
    table = make_table([*runs, tmp_path / "<b>no run"], baselines=True)
    harmless(as_markdown(table))
    printable(as_latex(table))
    lines = list(csv.reader(io.StringIO(as_csv(table))))
    assert {len(line) for line in lines} == {len(lines[0])}
    assert not [cell for line in lines for cell in line if cell.startswith(("=", "@", "+"))]
    (tmp_path / "b").mkdir()
    harmless(compare([str(run) for run in runs], str(tmp_path / "b")))
    harmless((tmp_path / "b" / "compare.md").read_text())
    page = (runs[0] / "report" / "report.md").read_text()
    harmless(re.sub(r"```json.*?```", "", page, flags=re.DOTALL))  # in a block of code nothing is markup
    classes = ["=cmd()", "@b"]
    write_least_certain(
        tmp_path / "x.csv", ["=1+1", "+a"], torch.tensor([0, 1]), torch.zeros(2, 2).log_softmax(1), {}, classes
    )
    cells = [cell for line in csv.reader((tmp_path / "x.csv").open()) for cell in line]
    assert {"'=1+1", "'+a", "'=cmd()", "'@b"} <= set(cells)


def test_the_page_of_inspect_shows_names_escaped(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / os.fsdecode(b"caf\xe9") / "<img>.png").write_bytes(b"no picture")
    given = [f"data.path={images}", f"out={tmp_path / 'out'}", "num_workers=0", "images_per_second=1000"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("inspect", ["data=folder", "data.labels=folders", *given])
    inspect_data(config, {str(key): config[key] for key in config})
    page = (tmp_path / "out" / "inspect.md").read_text()
    for text in (page, capsys.readouterr().out):
        harmless(text)
        assert r"caf\xe9" in text
    json.loads((tmp_path / "out" / "inspect.json").read_bytes().decode())


DEEP = "[" * 100_000
VALUES: list[Any] = [None, 1, -1, 10**400, math.nan, "x", HOSTILE, [], [[1]], {}, {"a": 1}, True]


def test_json_without_an_end_of_depth_is_a_value_error() -> None:
    for text in (DEEP, DEEP.encode(), '{"a":' * 100_000):
        with pytest.raises(ValueError, match=r"nested too deeply|Expecting|delimiter"):
            parse_json(text)


def _paths(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of every value in a tree."""
    below = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else []
    return [path, *(deeper for key, each in below for deeper in _paths(each, (*path, key)))]


def _replaced(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = dict(node) if isinstance(node, dict) else list(node)
    copy[path[0]] = _replaced(node[path[0]], path[1:], value)
    return copy


def every_reader(folder: Path) -> list[Callable[[], Any]]:
    """All that read a run's folder without building anything."""
    return [
        lambda: as_markdown(make_table([folder], baselines=True)),
        lambda: as_csv(make_table([folder])),
        lambda: compare([str(folder), str(folder.parent / "other")], str(folder.parent / "compared")),
        lambda: diagnose_run(folder).describe(),
    ]


FACTS = {"objective": "SimCLR", "collapsed_at": 3.0, "total_steps": 9, "features": 4, "signs": []}
FACTS["signs"] = [
    {"name": "a", "metric": "m", "at_least": 0, "at_most": 1, "meaning": "b", "remedy": "c", "lasting": False}
]


FILES = ["report/results.json", "health.json", "config.yaml", "metrics.jsonl"]


@pytest.mark.parametrize("file", FILES)
def test_a_file_of_a_run_with_any_value_replaced_is_read_or_refused_in_one_line(tmp_path: Path, file: str) -> None:
    run_of(tmp_path / "run", "knn", "toy", chosen={"k": 1}, metrics={"nll": 1.0}, draws=[1.0, 2.0])
    run_of(tmp_path / "other", "knn", "toy")
    (tmp_path / "run" / "health.json").write_text(json.dumps({"facts": FACTS, "findings": []}))
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.1, "train/loss": 3.0, "m": 5}\n')
    path = tmp_path / "run" / file
    whole = json.loads(path.read_text())
    texts = [json.dumps(_replaced(whole, place, value)) for place in _paths(whole) for value in VALUES]
    for text in [*texts, DEEP, "", "\0", "{", "é"]:
        path.write_bytes(text.encode("latin-1" if text == "é" else "utf-8"))
        for read in every_reader(tmp_path / "run"):
            with suppress(UserError):
                printable(str(read()))


@pytest.mark.parametrize("file", [*FILES, "training.json", "state.json", "plan.json", "report/predictions.safetensors"])
@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_of_a_run_that_is_no_regular_file_is_never_waited_for(kind: str, file: str, tmp_path: Path) -> None:
    for name in ("run", "other"):
        run_of(tmp_path / name, "knn", "toy")
    (tmp_path / "run" / "health.json").write_text(json.dumps({"facts": FACTS, "findings": []}))
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "train/loss": 3.0}\n')
    path = tmp_path / "run" / file
    path.unlink(missing_ok=True)
    OTHERS[kind](path)
    readers: list[Callable[[], Any]] = [*every_reader(tmp_path / "run"), *readers_of_training(tmp_path / "run")]
    readers.append(lambda: listed(tmp_path))
    ended: list[str] = []

    def read_all() -> None:
        for read in readers:
            with suppress(UserError, OSError):
                read()
            ended.append("whatever came of it")

    reader = threading.Thread(target=read_all, daemon=True)
    reader.start()
    reader.join(60)
    assert len(ended) == len(readers)


def readers_of_training(folder: Path) -> list[Callable[[], Any]]:
    return [
        lambda: read_metrics(folder / "metrics.jsonl"),
        lambda: training_of(folder),
        lambda: read_trial(folder / "plan.json", "x"),
        lambda: read_predictions(folder / "report"),
        lambda: read_yaml(folder / "config.yaml"),
        lambda: Heartbeat(folder / "state.json"),
    ]


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200))
def test_files_of_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("run")
    (folder / "report").mkdir()
    for name in (
        "report/results.json",
        "report/predictions.safetensors",
        "config.yaml",
        "metrics.jsonl",
        "health.json",
    ):
        (folder / name).write_bytes(content)
    for read in every_reader(folder):
        with suppress(UserError):
            printable(str(read()))

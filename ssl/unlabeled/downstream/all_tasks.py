"""One page of all tasks on which one network was judged: classification, transfer, segmentation, detection.

It is made of the JSON files that ``unlabeled evaluate``, ``transfer``, ``segment`` and ``detect`` write into their
folders of one run, and is written again whenever transfer or segment is done.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlabeled.core.environment import plain_values
from unlabeled.core.run_config import read_yaml
from unlabeled.core.writing import write_atomic
from unlabeled.downstream.published import COUNTS, Asked, Published, published_for
from unlabeled.downstream.transfer_table import markdown_table
from unlabeled.evaluation.provenance import read_json
from unlabeled.pages.parts import Part, sheet, text_table
from unlabeled.pages.template import breakable, shared

TITLE = "All tasks of one network"
RANDOM = "random init"
HEAD = ["task", "data", "protocol", "metric", "this network, %", "random weights, %", "published, %", "what differs"]
HOW = (
    "Each line is a number of one of the pages in this folder, where its protocol is explained; random weights are the "
    "same network before any training. A published number is of the same method and architecture; what differs is said "
    "beside it, so far as the source tells it."
)


@dataclass(frozen=True)
class Line:
    """One number of one network."""

    task: str
    data: str
    protocol: str
    metric: str
    value: float  # per cent
    random: float | None
    page: str  # relative
    sha256: str | None  # of the checkpoint
    published: list[Published] = field(default_factory=list)


def write_all_tasks(folder: Path) -> Path | None:
    """Writes ``tasks.html``, ``tasks.md`` and ``tasks.json`` into a run's folder; returns the page.

    None, and nothing is written, where there is no result of transfer, segmentation or detection.
    """
    lines = list(read_lines(folder))
    if all(line.task == "classification" for line in lines):
        return None
    several = len({line.sha256 for line in lines}) > 1
    content = {"title": TITLE, "lines": plain_values([vars(each) for each in _plain(lines)])}
    write_atomic(folder / "tasks.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    cells = [_cells(line, several) for line in lines]
    write_atomic(folder / "tasks.md", f"# {TITLE}\n\n{HOW}\n\n{markdown_table(HEAD, cells)}\n")
    write_atomic(folder / "tasks.html", _page(folder, lines, cells))
    return folder / "tasks.html"


def read_lines(folder: Path) -> Iterator[Line]:
    """Yields the lines of all results in a run's folder; a file that is missing or damaged gives none."""
    config = read_yaml(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}
    readers = {
        "report/results.json": lambda found, _: _classification(found),
        "transfer/transfer.json": _transfer,
        "segment/segment.json": _segmentation,
        "detect/detect.json": _detection,
    }
    for name, lines_of in readers.items():
        try:
            yield from list(lines_of(read_json(folder / name), config))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):  # of another version, or of no one here
            warnings.warn(f"{folder / name}: is not as this version writes it, and is left out", stacklevel=2)


def _classification(results: Mapping[str, Any]) -> Iterator[Line]:
    rows = results.get("rows", [])
    random = {row["protocol"]: row["top1"] for row in rows if row["features"] == RANDOM}
    facts = results.get("provenance", {})
    data = str(facts.get("data", {}).get("description", "the run's own"))
    for row in rows:
        if row["features"] == "pretrained":
            known = [each for each in results.get("references", []) if each["ours_protocol"] == row["protocol"]]
            published = [Published(each["published"], each["source"], each["differs"]) for each in known]
            yield Line(
                *("classification", data, row["protocol"], "top-1", row["top1"], random.get(row["protocol"])),
                *("report/report.html", facts.get("checkpoint", {}).get("sha256"), published),
            )


def _transfer(results: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[Line]:
    if not results:
        return
    first, facts = results["networks"][0], results["provenance"]
    for task in results["tasks"]:
        for protocol, found in task.get("judged", {}).get(first, {}).items():
            random = task["judged"].get(RANDOM, {}).get(protocol, {}).get("value")
            checkpoint = facts["checkpoints"][0]
            asked = Asked("transfer", task["name"], protocol, config, str(checkpoint["path"]), facts["settings"])
            yield Line(
                *("transfer", task["name"], protocol, task["metric"], found["value"], random),
                *("transfer/transfer.html", checkpoint.get("sha256"), published_for(asked)),
            )


def _segmentation(results: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[Line]:
    if not results:
        return
    facts, named = results["provenance"], [name.rpartition(" / ") for name in results["found"]]
    first, checkpoint, settings = named[0][0], facts["checkpoint"], facts["settings"]
    counts = (facts["images"]["train"], facts["images"]["test"], len(results["classes"]))
    data = COUNTS.get(counts, Path(settings["folder"]).name)
    for network, _, protocol in named:
        if network == first:
            random = results["found"].get(f"{RANDOM} / {protocol}", {}).get("mean_iou")
            value = results["found"][f"{network} / {protocol}"]["mean_iou"]
            asked = Asked("segmentation", data, protocol, config, str(checkpoint["path"]), settings)
            yield Line(
                *("segmentation", data, protocol, "mIoU", value, random),
                *("segment/segment.html", checkpoint.get("sha256"), published_for(asked)),
            )


KINDS = {"bbox": "box AP", "segm": "mask AP", "voc07": "VOC 2007's box AP"}


def _detection(results: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[Line]:
    if not results:
        return
    facts, (first, *_) = results["provenance"], results["found"]
    checkpoint, settings = facts["checkpoints"][0], facts["settings"]
    counts = (facts["images"]["train"], facts["images"]["val"], len(results["classes"]))
    data = COUNTS.get(counts, Path(settings["folder"]).name)
    for kind, protocol in KINDS.items():
        value = results["found"][first].get(kind, {}).get("ap")
        if value is not None:
            random = results["found"].get(RANDOM, {}).get(kind, {}).get("ap")
            asked = Asked("detection", data, protocol, config, str(checkpoint["path"]), settings)
            yield Line(
                *("detection", data, protocol, "AP", value, random),
                *("detect/detect.html", checkpoint.get("sha256"), published_for(asked)),
            )


def _plain(lines: list[Line]) -> Iterator[Line]:
    for line in lines:
        yield Line(**{**vars(line), "published": [vars(each) for each in line.published]})


def _cells(line: Line, several: bool) -> list[str]:
    """Returns the cells of a line as plain text; ``several``: the lines are of more than one checkpoint."""
    differs = [each for known in line.published for each in known.differs]
    if several and line.sha256:
        differs.insert(0, f"of the state {line.sha256[:8]}")
    numbers = ["–" if value is None else f"{value:.2f}" for value in (line.value, line.random)]
    published = "; ".join(f"{each.value:g} ({each.source})" for each in line.published) or "–"
    return [line.task, line.data, line.protocol, line.metric, *numbers, published, "; ".join(differs) or "–"]


def _page(folder: Path, lines: list[Line], cells: list[list[str]]) -> str:
    linked = [
        [shared().link(line.page, row[0]), *(breakable(cell) for cell in row[1:])]
        for line, row in zip(lines, cells, strict=True)
    ]
    parts = [
        Part("", text_table(HEAD, linked), "wide"),
        Part("How to read it", shared().paragraphs([HOW]), "wide"),
    ]
    return sheet(TITLE, [], f"{folder.absolute().name}: {_headline(lines)}", parts)


def _headline(lines: list[Line]) -> str:
    compared = [line for line in lines if line.random is not None]
    better = sum(line.value > line.random for line in compared if line.random is not None)
    tasks = sorted({line.task for line in lines})
    return f"{len(lines)} numbers of {', '.join(tasks)}; {better} of {len(compared)} are above those of random weights."

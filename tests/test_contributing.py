"""The worked examples of ``CONTRIBUTING.md`` run as they stand there, outside of the repository."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from tests import forked
from tests.conftest import ENVIRONMENT, ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
EXAMPLES = TEXT[TEXT.index("## Four worked examples") :]


def files() -> dict[str, str]:
    """What stands below each name of a file."""
    return dict(re.findall(r"^`(mine/[^`]+)`\n\n```\w+\n(.*?)^```$", EXAMPLES, re.M | re.S))


def commands() -> list[list[str]]:
    """The lines of all blocks of shell, as words."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", EXAMPLES, re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    assert lines[0] == "export PYTHONPATH=$PWD/mine"
    return [shlex.split(line) for line in lines[1:]]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write all files and run all commands, in their order."""
    folder = tmp_path_factory.mktemp("outside")
    for name, content in files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": f"{ROOT / 'ssl'}:{folder / 'mine'}"}
    GlobalHydra.instance().clear()
    for python, name, *arguments in commands():
        assert python == "python"
        if (ROOT / name).is_file():
            ended = forked.script(ROOT / name, arguments, folder, environment)
        else:
            ended = subprocess.run([sys.executable, name], cwd=folder, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, (name, arguments, ended.stdout[-500:], ended.stderr[-2000:])
    return folder / "outputs"


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


def rows(run: Path) -> dict[str, float]:
    stored = json.loads((run / "report" / "results.json").read_text())["rows"]
    return {row["protocol"]: row["top1"] for row in stored if row["features"] == "pretrained"}


def test_a_new_objective_learns_from_one_file_and_one_yaml(outputs: Path) -> None:
    found = losses(outputs / "alignment")
    assert found[-1] < found[0]


def test_a_new_view_pipeline_can_be_looked_at_from_one_yaml(outputs: Path) -> None:
    page = (outputs / "rotated" / "preview" / "index.html").read_text()
    assert page.count("<img") == 4 * 3  # four images, each with two views


def test_a_new_data_source_is_trained_on_and_evaluated(outputs: Path) -> None:
    assert rows(outputs / "arrays")  # brightness tells the four classes apart
    assert max(rows(outputs / "arrays").values()) > 50


def test_a_new_probe_stands_in_the_report_beside_the_others(outputs: Path) -> None:
    found = rows(outputs / "alignment")
    assert found["nearest-mean/cosine"] > 20
    assert any(protocol.startswith("knn/") for protocol in found)

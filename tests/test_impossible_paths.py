"""A path that no file can have is one line wherever a path is taken: too long a name, too long a path, a NUL in it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unlabeled.commands.arguments.data_path import data_path, with_data_source
from unlabeled.commands.entry_points.console import folders_as
from unlabeled.commands.entry_points.run_from_python import kind_of
from unlabeled.commands.export import check_replaceable
from unlabeled.commands.table import folders_as_override, make_table
from unlabeled.commands.watch import make_listing
from unlabeled.core.reading import read_text
from unlabeled.core.run_config import read_yaml
from unlabeled.core.writing import check_file, check_folder
from unlabeled.data.sources.folder import folder
from unlabeled.data.sources.huggingface import huggingface
from unlabeled.data.sources.litdata import litdata
from unlabeled.data.sources.parquet import parquet
from unlabeled.data.sources.shards import shards
from unlabeled.errors import UserError
from unlabeled.evaluation.comparison.table_text import as_markdown
from unlabeled.evaluation.predictions import read_predictions
from unlabeled.evaluation.provenance import read_json
from unlabeled.health.folder import diagnose_run
from unlabeled.training.faults.record import read_record
from unlabeled.views.masks import open_masks
from unlabeled.weights import read_checkpoint
from unlabeled.weights.starting.start import read_start

NAMES = ["x" * 300, "x/" * 3000, "a\0b", "/" + "y" * 300, "~/" + "z" * 300]
REFUSED: dict[str, Callable[[str], Any]] = {
    "checkpoint": lambda name: read_checkpoint(Path(name)),
    "replay": read_record,
    "weights": lambda name: read_start(name, "backbone", None),
    "views.masks": open_masks,
    "labels_file": lambda name: read_text(name, "x"),
    "report_dir": lambda name: read_predictions(Path(name)),
    "health": lambda name: diagnose_run(Path(name)),
    "watch": make_listing,
    "folder": lambda name: folder(name),
    "shards": lambda name: shards(name),
    "parquet": lambda name: parquet(name, test=None),
    "huggingface": huggingface,
    "litdata": litdata,
    "out, a folder": lambda name: check_folder("out", Path(name)),
    "out, a file": lambda name: check_file("out", Path(name)),
}
TAKEN: dict[str, Callable[[str], Any]] = {
    "table": lambda name: as_markdown(make_table([Path(name.replace("\0", ""))])),  # no key takes a NUL
    "read_json": lambda name: read_json(Path(name)),
    "folders of unlabeled": lambda name: folders_as("run", [name, f"seed={name}"]),
    "folders of table": lambda name: folders_as_override([name, f"out={name}"]),
    "data=": lambda name: (data_path([f"data={name}"]), with_data_source([f"data={name}"])),
    "unlabeled.embed(MODEL)": kind_of,
    "export": lambda name: check_replaceable(Path(name)),
}


@pytest.mark.parametrize("name", NAMES, ids=["name", "path", "NUL", "absolute", "home"])
@pytest.mark.parametrize("where", REFUSED)
def test_it_is_refused_in_one_line(where: str, name: str) -> None:
    with pytest.raises(UserError) as refused:
        REFUSED[where](name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", NAMES, ids=["name", "path", "NUL", "absolute", "home"])
@pytest.mark.parametrize("where", TAKEN)
def test_where_it_is_not_opened_it_is_a_name_like_others(where: str, name: str) -> None:
    TAKEN[where](name)


@pytest.mark.parametrize("name", NAMES, ids=["name", "path", "NUL", "absolute", "home"])
def test_a_configuration_there_cannot_be_read(name: str) -> None:
    with pytest.raises((OSError, ValueError)):
        read_yaml(Path(name))

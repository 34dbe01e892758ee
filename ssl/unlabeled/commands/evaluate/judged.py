"""What the commands share that judge one network on several tasks: where their pages go, and what was judged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from unlabeled.commands.build.transfer import Network
from unlabeled.downstream.all_tasks import write_all_tasks
from unlabeled.weights import Checkpoint, folder_of


def folder_of_page(out: str | None, checkpoint: Checkpoint | None, name: str) -> Path:
    """Returns ``out``, or the folder ``name`` beside the checkpoint."""
    if out is None:
        assert checkpoint is not None
        return folder_of(checkpoint.path) / name
    return Path(out).expanduser()


def given_network(network: Network) -> dict[str, Any]:
    """Returns what a page says of a network that was given from Python, in place of its checkpoint."""
    return {"path": f"a {network.name} given from Python"}


def page_of_all_tasks(page: Path, name: str, log: Callable[[str], None]) -> None:
    """Writes the page of all tasks above a result that lies in a folder of its command's ``name``."""
    if page.parent.name == name and (written := write_all_tasks(page.parent.parent)) is not None:
        log(f"all tasks of this network are in {written}")

"""Frozen features on many data sets: ``unlabeled transfer run=outputs/NAME data=[dtd,flowers102,PATH]``."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unlabeled.commands.arguments.typed import typed_command
from unlabeled.commands.build.transfer import RANDOM, DataSet, Network, build_networks, build_set, features_of
from unlabeled.commands.evaluate.judged import folder_of_page, given_network, page_of_all_tasks
from unlabeled.core.environment import git_state, machine, versions
from unlabeled.core.writing import kept_anyway
from unlabeled.downstream.protocols import PENALTIES, Judged, few_shots, linear, nearest_neighbours
from unlabeled.downstream.transfer_report import write_transfer
from unlabeled.downstream.transfer_table import TaskResult, TransferTable, headline
from unlabeled.downstream.vision_task import VisionTask, vision_task
from unlabeled.errors import UserError
from unlabeled.evaluation.provenance import checkpoint_provenance
from unlabeled.weights import Checkpoint
from unlabeled.weights.starting.named import read_named


def transfer(
    config: DictConfig,
    resolved: dict[str, Any],
    log: Callable[[str], None] = print,
    command: str | None = None,
    loaded: Network | None = None,
) -> TransferTable:
    """Judges every network on every data set and writes the page; a set that cannot be had is a line that says why.

    Args:
        config: as composed from ``conf/transfer.yaml``.
        resolved: the same as plain values.
        log: takes lines.
        command: for the page; None: what was typed.
        loaded: from Python, in place of one that ``config`` names.

    Raises:
        UserError: a mistake in the networks, or none of the data sets could be had.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    networks, checkpoints = _around(loaded, config, resolved) if loaded else networks_of(config, resolved)
    table = TransferTable([network.name for network in networks], [])
    for named in resolved["sets"]:
        table.tasks.append(_judge(config, resolved, networks, named))
        log(_line(table.tasks[-1], table.networks))
    if not table.measured:
        raise UserError(f"data: none of the data sets could be had; {table.tasks[0].name}: {table.tasks[0].problem}")
    facts = {
        "command": command or typed_command(),
        "date": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 1),
        "checkpoints": [*([given_network(loaded)] if loaded else []), *map(checkpoint_provenance, checkpoints)],
        "settings": {key: resolved[key] for key in SETTINGS},
        "machine": machine(),
        "git": git_state(),
        "versions": versions(),
    }
    folder = folder_of_page(resolved["out"], None if loaded else checkpoints[0], "transfer")
    table.page = kept_anyway(folder, lambda place: write_transfer(place, table, facts))
    log(f"\n{headline(table)}\nthe page is {table.page}")
    page_of_all_tasks(table.page, "transfer", log)
    return table


SETTINGS = ("c", "max_iter", "k", "temperature", "few", "draws", "few_c", "image_size", "seed", "precision")


def networks_of(config: DictConfig, resolved: dict[str, Any]) -> tuple[list[Network], list[Checkpoint]]:
    """Returns the network that is asked about, its random start, and those it stands against, with their files."""
    named = {key: resolved[key] for key in ("run", "checkpoint", "weights")}
    checkpoint = read_named(**named)
    first = next(str(value) for value in named.values() if value is not None)
    networks = build_networks(config, checkpoint, name_of(resolved), resolved["random"])
    others, checkpoints = _against(config, resolved)
    return _told_apart([*networks, *others], [first, *resolved["against"]]), [checkpoint, *checkpoints]


def _around(loaded: Network, config: DictConfig, resolved: dict[str, Any]) -> tuple[list[Network], list[Checkpoint]]:
    """Returns a network that was given from Python and those it stands against, with the files of the latter."""
    others, checkpoints = _against(config, resolved)
    return _told_apart([loaded, *others], [loaded.name, *resolved["against"]]), checkpoints


def _against(config: DictConfig, resolved: dict[str, Any]) -> tuple[list[Network], list[Checkpoint]]:
    networks, checkpoints = [], []
    for given in resolved["against"]:
        checkpoints.append(read_named(None, None, given))
        other = OmegaConf.create({**config, "weights": given, "views": None, "backbone": None})
        networks += build_networks(other, checkpoints[-1], _short(given), random=False)
    return networks, checkpoints


def name_of(resolved: dict[str, Any]) -> str:
    """Returns how the network is called that ``run``, ``checkpoint`` or ``weights`` names."""
    return _short(next(str(resolved[key]) for key in ("run", "checkpoint", "weights") if resolved[key] is not None))


def _short(given: str) -> str:
    """Returns the last part of a path; names in libraries stay as they are."""
    path = os.path.abspath(os.path.expanduser(given))
    return os.path.basename(path) if os.path.exists(path) else given


def _told_apart(networks: list[Network], given: Sequence[str]) -> list[Network]:
    """Returns the networks; those of one name are called by their whole path, and one that comes again has a number."""
    named = [network for network in networks if network.name != RANDOM]
    short = [network.name for network in named]
    seen: Counter[str] = Counter()
    for network, path in zip(named, given, strict=True):
        name = network.name if short.count(network.name) == 1 else path
        seen[name] += 1
        network.name = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return networks


def _judge(config: DictConfig, resolved: dict[str, Any], networks: Sequence[Network], given: str) -> TaskResult:
    try:
        data = build_set(config, given)
        tasks = [(network.name, _task(config, network, data)) for network in networks]
        judged = {name: list(_protocols(task, resolved)) for name, task in tasks}
    except UserError as error:
        return TaskResult(given, problem=_as_typed(str(error)))
    return TaskResult(data.name, data.metric, _facts(data, tasks[0][1]), tasks[0][1].test.labels, judged)


def _as_typed(problem: str) -> str:
    """Returns a sentence with the keys of this command in place of those of ``data=torchvision``."""
    return problem.replace("data.root", "root").replace("data.download", "download").replace("data.name=", "data=")


def _task(config: DictConfig, network: Network, data: DataSet) -> VisionTask:
    train, validation, test = features_of(config, network, data)
    return vision_task(data.name, data.metric, data.images.splits.train.classes, train, validation, test, config.seed)


def _protocols(task: VisionTask, asked: dict[str, Any]) -> Iterator[Judged]:
    yield linear(task, asked["c"] or PENALTIES, asked["max_iter"])
    yield nearest_neighbours(task, asked["k"], asked["temperature"])
    for count in sorted(asked["few"]):
        yield few_shots(task, count, asked["draws"], asked["few_c"], asked["max_iter"], asked["seed"])


def _facts(data: DataSet, task: VisionTask) -> dict[str, Any]:
    counts = {split: len(getattr(task, split).labels) for split in ("train", "validation", "test")}
    facts = {"description": data.images.splits.description, "classes": len(task.classes), **counts}
    return facts | {"published_validation": task.published}


def _line(task: TaskResult, networks: Sequence[str]) -> str:
    if task.problem is not None:
        return f"{task.name}: could not be had: {task.problem}"
    shown = ", ".join(f"{name} {task.judged[name][0].value:.2f} %" for name in networks)
    return f"{task.name}, {task.metric} by linear probes: {shown}"

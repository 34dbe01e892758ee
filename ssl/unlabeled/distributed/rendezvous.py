"""Lets processes find each other and compare settings through a store on the first process, before any collective."""

import contextlib
import json
import os
import socket
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from unlabeled.core.run_config import differences
from unlabeled.errors import UserError


class RendezvousInfo(NamedTuple):
    """Says where the processes meet, and which of them this is."""

    address: str
    port: int
    rank: int
    processes: int


def open_store(place: RendezvousInfo, patience: float) -> Store:
    """Opens the store on the first process that all processes write to; torchrun's, if it has one."""
    serves = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if not serves and not _until(lambda: is_reachable(place), patience):  # torch would print C++ traces
        raise UserError(
            f"process {place.rank} on {socket.gethostname()}: the first process does not answer at"
            f" {place.address}:{place.port} within {patience:.0f} s"
        )
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            place.address,
            place.port,
            place.processes,
            is_master=serves,
            timeout=timedelta(seconds=patience),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except dist.DistNetworkError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{place.address}:{place.port} cannot be used ({reason}); give another MASTER_PORT") from None
    return PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def is_reachable(place: RendezvousInfo) -> bool:
    """Returns whether the store can be reached."""
    with contextlib.suppress(OSError), socket.create_connection((place.address, place.port), timeout=1):
        return True
    return False


def _until(there: Callable[[], bool], patience: float) -> bool:
    deadline = time.monotonic() + patience
    while not there():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def wait_and_compare(
    store: Store,
    place: RendezvousInfo,
    facts: dict[str, Any],
    patience: float,
    hopeless: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Waits for all processes and compares their facts with those of the first.

    Args:
        store: from :func:`open_store`.
        place: says which process this is.
        facts: a tree of plain values that must be equal on all processes.
        patience: seconds.
        hopeless: returns whether a process will never come.

    Returns:
        The hosts of all processes, on the first one; an empty list on the others.

    Raises:
        UserError: on the first process, naming the processes that are missing or differ, the differences and the hosts;
            the others then exit with code 2.
    """
    if place.rank > 0:
        _wait_for_answer(store, place.rank, facts, patience)
        return []
    others = range(1, place.processes)
    store.set("facts", json.dumps(facts))
    _until(lambda: store.check([f"process {rank}" for rank in others]) or hopeless(), patience)
    said: dict[int, Any] = {0: {"host": socket.gethostname(), "differs": []}}
    said |= {rank: json.loads(store.get(f"process {rank}")) for rank in others if store.check([f"process {rank}"])}
    wrong = _missing(said, place.processes, patience) or _different(said)
    store.set("verdict", wrong)
    if wrong:
        time.sleep(0.5)  # the others still read the store, which this process holds
        raise UserError(wrong)
    return [said[rank]["host"] for rank in range(place.processes)]


def _wait_for_answer(store: Store, rank: int, facts: dict[str, Any], patience: float) -> None:
    """Waits for the first process's answer. It may start as late as this one, and must then hear from all others."""
    me = f"process {rank} on {socket.gethostname()}"
    try:
        if not _until(lambda: store.check(["facts"]), patience):
            raise UserError(f"{me}: process 0 has not come within {patience:.0f} s (preflight_seconds)")
        first = json.loads(store.get("facts"))
        differs = [_difference(name, facts, first) for name in differences(facts, first)]
        store.set(f"process {rank}", json.dumps({"host": socket.gethostname(), "differs": differs}))
        if not _until(lambda: store.check(["verdict"]), 2 * patience) or store.get("verdict"):
            raise SystemExit(2)  # the first process says why
    except dist.DistError:
        raise UserError(f"{me}: process 0 has ended") from None


def _difference(name: str, facts: dict[str, Any], first: dict[str, Any]) -> str:
    mine, theirs = (str(_at(tree, name))[:80] for tree in (facts, first))
    return f"{name.removeprefix('config.')} is {mine} and not {theirs}"


def _at(tree: Any, name: str) -> Any:
    for key in name.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _missing(said: dict[int, Any], processes: int, patience: float) -> str:
    missing = [rank for rank in range(processes) if rank not in said]
    if not missing:
        return ""
    return (
        f"{_names(missing)} of {processes} missing after {patience:.0f} s (preflight_seconds), there: "
        f"{_with_hosts(list(said), said)}; were all started, by srun or torchrun on every machine?"
    )


def _different(said: dict[int, Any]) -> str:
    ranks = defaultdict(list)
    for rank, words in said.items():
        for difference in words["differs"]:
            ranks[difference].append(rank)
    found = [f"{difference} on {_with_hosts(which, said)}" for difference, which in list(ranks.items())[:6]]
    return f"not as on process 0 on {said[0]['host']}: {'; '.join(found)}" if found else ""


def _with_hosts(ranks: list[int], said: dict[int, Any]) -> str:
    by_host = defaultdict(list)
    for rank in sorted(ranks):
        by_host[said[rank]["host"]].append(rank)
    return ", ".join(f"{_names(which)} on {host}" for host, which in by_host.items())


def _names(ranks: list[int]) -> str:
    return f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"

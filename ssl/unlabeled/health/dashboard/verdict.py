"""Decides whether a run is alive, from the files that it wrote last and from its process."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from unlabeled.health.dashboard.documents import finite_or_none

ENDED = ("finished", "interrupted", "failed")
# Our choice: heartbeats come every two seconds, or once a step if steps are longer
GONE_AFTER = 8.0  # seconds without heartbeat until a process that is not visible (another container) is gone
SILENT_AFTER = 60.0  # seconds without heartbeat until the page says so
STEPS = 5  # the same in steps, if that is longer
FRESH = 120.0  # seconds for which a run of an earlier version counts as alive after its last write

GOES_ON = "The same command goes on from the last checkpoint."


class Verdict(NamedTuple):
    """A word for the state, and a sentence if there is more to say."""

    state: str
    sentence: str = ""


def classify_run(state: Mapping[str, Any], now: float) -> Verdict:
    """Classifies a run by the content of ``state.json``.

    Args:
        state: as the heartbeat writes it; any value may be missing or of another type.
        now: Unix time.
    """
    said, step = state.get("state"), finite_or_none(state.get("step")) or 0
    if said == "failed":
        return Verdict("failed", str(state.get("error") or "It failed, and does not say why.")[:1000])
    if said == "interrupted":
        return Verdict("interrupted", f"Stopped from outside after step {step:,.0f}. {GOES_ON}")
    if said == "finished":
        return Verdict("finished")
    if said != "running":
        return Verdict("unknown", f"state.json says {str(said)[:80]!r}, which is no state of a run.")
    return _classify_running(state, now, f"after step {step:,.0f}")


def _classify_running(state: Mapping[str, Any], now: float, after: str) -> Verdict:
    pid, host = finite_or_none(state.get("pid")), str(state.get("host"))
    silence = now - (finite_or_none(state.get("updated")) or 0)
    patience = STEPS * (finite_or_none(state.get("seconds_per_step")) or 0)
    here = host == socket.gethostname()
    if here and pid and not process_is_alive(int(pid)) and silence > max(GONE_AFTER, patience):
        reason = f"process {pid:.0f} is gone: killed, out of memory, or the machine was restarted"
        return Verdict("killed", f"Stopped without a word {after}: {reason}. {GOES_ON}")
    if silence <= max(SILENT_AFTER, patience):
        return Verdict("running")
    if here:
        return Verdict(
            "silent", f"Its process is there, but no step has ended {after}: a long evaluation, or it hangs."
        )
    reason = f"whether process {pid or 0:.0f} on {host[:80]} is there cannot be seen from here"
    return Verdict("silent", f"No step has ended {after}; {reason}.")


def classify_run_without_state(ended: bool, begun: float | None, written: float | None, now: float) -> Verdict:
    """Classifies a run that left no ``state.json``.

    Args:
        ended: whether the run wrote its summary, or its last step.
        begun: Unix time of its ``config.yaml``; None if it has none.
        written: Unix time of its metrics; None if it has none.
        now: Unix time.
    """
    if ended:
        return Verdict("finished")
    if written is not None and now - written < FRESH:
        return Verdict("running", "It writes no state.json: judged by the time of metrics.jsonl.")
    if written is None and begun is not None and now - begun < FRESH:
        return Verdict("starting")
    return Verdict("unknown", "It left no state.json, and nothing has been written for long.")


def process_is_alive(pid: int) -> bool:
    """Returns whether a process of this machine runs; a zombie does not."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's process
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1] not in ("Z", "X")
    except OSError:  # macOS has no such folder
        return True

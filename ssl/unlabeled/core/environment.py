"""Describes the software, the machine and the data that affect a result, as plain values for reports."""

import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PACKAGES = ["torch", "torchvision", "pytorch-lightning", "scikit-learn", "Pillow"]


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that affect results; "not installed" for a missing one."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | {"torch": str(torch.__version__)}  # includes +cpu or +cu128


def machine() -> dict[str, Any]:
    """Returns the operating system, number and model of CPUs, and the GPUs."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"system": platform.platform(), "cpus": os.cpu_count(), "cpu": _cpu_model(), "gpus": gpus}


def git_state(folder: Path = Path(__file__).parent) -> dict[str, Any]:
    """Returns the commit of the code in ``folder`` and whether it has uncommitted changes; None if unknown.

    An installed copy has no commit, even inside of another repository: git must track these files.
    """
    try:
        if not _git(folder, "ls-files", "."):
            return {"commit": None, "dirty": None}
        return {"commit": _git(folder, "rev-parse", "HEAD"), "dirty": bool(_git(folder, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):  # no git, no repository, or one of another user
        return {"commit": None, "dirty": None}


def _git(folder: Path, *command: str) -> str:
    # no optional locks: this must not disturb a commit in progress
    asked = ["git", "--no-optional-locks", "-C", str(folder), *command]
    return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def summarize_provenance(provenances: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the versions, machines and dates of several reports, each once: two lines for below a table."""
    used = {json.dumps(each["versions"]) for each in provenances}
    described = [", ".join(f"{name} {version}" for name, version in json.loads(each).items()) for each in used]
    computers = {f"{each['machine']['cpu']}, {each['machine']['cpus']} cores" for each in provenances}
    dates = sorted(each["date"][:10] for each in provenances)
    return [
        f"Versions: {'; '.join(sorted(described))}.",
        f"Machine: {'; '.join(sorted(computers))}. Dates: {dates[0]} to {dates[-1]}.",
    ]


def hash_labels(labels: Tensor) -> str:
    """Returns the SHA-256 of a list of labels int64 [N] in its order, as little-endian bytes."""
    return hashlib.sha256(labels.to("cpu", torch.int64).contiguous().numpy().astype("<i8").tobytes()).hexdigest()


def plain_values(value: Any) -> Any:
    """Replaces paths by text and numbers that are not finite by None: a NaN loss must not lose a report."""
    if isinstance(value, Mapping):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

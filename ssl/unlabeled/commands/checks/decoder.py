"""What ``data.decode=auto`` stands for: a run that goes on keeps the decoder, and so the pixels, that it began with."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from unlabeled.commands.checks.signatures import parameters_of
from unlabeled.core.ranges import NEW_DECODER
from unlabeled.core.run_config import EARLIER_VALUES, read_yaml

EARLIER = EARLIER_VALUES["data.decode"]


def settle_decoder(config: DictConfig) -> None:
    """Puts a decoder in the place of ``auto``; says it in one line where it is not that of a new run.

    A value that was typed stays: whether it may differ is a matter of ``resume=…``, as for every key.
    """
    data = config.get("data")
    if not data or data.get("decode") != "auto":
        return
    known = _of_the_run(Path(str(config.get("run_dir"))))
    data.decode = known or NEW_DECODER
    if known not in (None, NEW_DECODER) and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"data.decode=auto: the run goes on with the decoder that it began with, {known}")


def with_earlier_decoder(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data of a file's configuration, with the decoder that was in effect before there was a key for it."""
    target = data.get("_target_")
    lacks = isinstance(target, str) and "decode" not in data and "decode" in parameters_of(target, "data")
    return {**data, "decode": EARLIER} if lacks else dict(data)


def _of_the_run(run_dir: Path) -> str | None:
    """The decoder of the run that is in this folder; None where there is none, or one without a configuration."""
    if not any((run_dir / "checkpoints").glob("*.ckpt")):
        return None
    try:
        data = read_yaml(run_dir / "config.yaml")["data"]
        found = data.get("decode", EARLIER)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # whatever is wrong is said by who reads the run
    return found if found in ("pillow", "torchvision", "cuda") else None

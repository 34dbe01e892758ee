"""Checks that a state fits the run that resumes from it. With ``resume=override`` it may be of another network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unlabeled.errors import UserError
from unlabeled.training.pretraining import Pretraining

NAMED = 3  # how many tensors that do not fit are named


def check_fits(path: Path, module: Pretraining) -> None:
    """Raises UserError for the state of another network or another optimizer.

    Args:
        path: of the run's checkpoint.
        module: of the run that would resume from it.
    """
    state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    problems = _of_network(state.get("state_dict", {}), module.state_dict()) or _of_optimizer(state, module)
    if problems:
        more = f" and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise UserError(
            f"{path} is the state of a run with another network or optimizer: {'; '.join(problems[:NAMED])}{more}; "
            "give another name=… to begin anew"
        )


def check_length(path: Path, module: Pretraining) -> None:
    """Raises UserError where the run would have other steps or images than it began with, and was not asked to."""
    state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    progress = state.get("progress")
    if not isinstance(progress, Mapping) or module.config.get("resume") == "override":
        return
    saved, now = {**progress, "images": state.get("images")}, module.progress._asdict() | {"images": module.images}
    for name in ("steps_per_epoch", "total_steps", "images"):
        if saved.get(name) is not None and saved[name] != now[name]:
            raise UserError(
                f"{path}: the run began with {name}={saved[name]} and would go on with {now[name]}: images that cannot"
                " be decoded count with another memory_gib; give the earlier one, or resume=override"
            )


def _of_network(saved: Mapping[str, torch.Tensor], now: Mapping[str, torch.Tensor]) -> list[str]:
    both = [name for name in now if name in saved]
    return (
        [f"{name} is missing" for name in now if name not in saved]
        + [f"{name} is unknown" for name in saved if name not in now]
        + [
            f"{name} has shape {list(saved[name].shape)} instead of {list(now[name].shape)}"
            for name in both
            if saved[name].shape != now[name].shape
        ]
    )


def _of_optimizer(state: Mapping[str, Any], module: Pretraining) -> list[str]:
    before, now = (_optimizer_of(config) for config in (state.get("config"), module.config))
    if None not in (before, now) and before != now:
        return [f"the optimizer was {before} and is {now}"]
    saved = [len(group["params"]) for each in state.get("optimizer_states", []) for group in each["param_groups"]]
    groups = module.optimizer_config.build(module.objective, module.images_per_step).param_groups
    wanted = [len(group["params"]) for group in groups]
    if saved and saved != wanted:
        return [f"the optimizer had groups of {saved} parameters and has {wanted}"]
    return []


def _optimizer_of(config: Any) -> str | None:
    """Returns the optimizer's class name from a configuration in plain values."""
    try:
        return str(config["optimizer"]["optimizer"]["_target_"]).rpartition(".")[2]
    except (KeyError, TypeError):
        return None

"""Trains a whole network on labels and keeps it: ``unlabeled finetune run=outputs/NAME data=labelled/``."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unlabeled.commands.arguments.typed import typed_command
from unlabeled.commands.build.finetune import FineTuning, build_finetuning
from unlabeled.core.environment import git_state, machine, plain_values, versions
from unlabeled.core.places import NEWEST, folder_of
from unlabeled.core.run_config import write_config
from unlabeled.core.writing import make_folder, save_tensors, write_atomic
from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.features import top1
from unlabeled.evaluation.heads.finetuning import Calibrating, FineTuned, fine_tune
from unlabeled.evaluation.heads.kept import FOLDER, HeadContext, read_head, write_heads
from unlabeled.evaluation.heads.predicted import joined
from unlabeled.evaluation.heads.predictor import Predictor
from unlabeled.evaluation.predictions import add_intervals, write_predictions
from unlabeled.evaluation.provenance import checkpoint_provenance
from unlabeled.evaluation.recipes.labels import select_labelled
from unlabeled.evaluation.uncertainty.calibration import ece
from unlabeled.weights import Checkpoint, read_checkpoint
from unlabeled.weights.starting.named import read_named


def finetune(config: Any, resolved: dict[str, Any], log: Callable[[str], None] = print) -> tuple[Path, Row]:
    """Trains, writes the network as a run's checkpoint with its head beside it, and tries it on the test split.

    Args:
        config: as composed from ``conf/finetune.yaml``.
        resolved: the same as plain values.
        log: takes lines.

    Returns:
        The folder, and the row of the test images; its top1 is not a number where there are none.

    Raises:
        UserError: a mistake.
    """
    clock = time.perf_counter()
    start = read_named(resolved["run"], resolved["checkpoint"], resolved["weights"])
    out = Path(resolved["out"] or folder_of(start.path) / "finetuned").expanduser()
    parts = build_finetuning(config, start)
    calibrating = Calibrating(resolved["holdout"], resolved["refit"])
    tuned = fine_tune(parts.recipe, parts.task, calibrating, resolved["least_steps"], log)
    make_folder(out / NEWEST.parent)
    content = _content(parts, tuned, out.name)
    save_tensors(out / NEWEST, content)
    write_config(content["config"], out)  # beside checkpoints/: the folder of a run, whose data may be opened
    row = _tried(parts, tuned, read_checkpoint(out / NEWEST), out)
    facts = {
        "command": typed_command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 1),
        "started_from": checkpoint_provenance(start),
        "labels": select_labelled(parts.recipe.choice, parts.task).summary(),
        "held_out_top1": tuned.held_top1,
        "train_loss": tuned.loss,
        **{"machine": machine(), "git": git_state(), "versions": versions(), "config": resolved},
    }
    plain = plain_values(row.as_dict() | facts)
    write_atomic(out / "finetune.json", json.dumps(plain, indent=2, allow_nan=False) + "\n")
    log(_told(row, tuned, out))
    return out, row


def _content(parts: FineTuning, tuned: FineTuned, name: str) -> dict[str, Any]:
    """Makes what a run's checkpoint holds: its network alone, and what that was made with."""
    state = tuned.network.state_dict()
    return {
        "state_dict": {f"objective.backbone.{key}": value.detach().cpu().clone() for key, value in state.items()},
        "config": {"name": name, **parts.config},
        "progress": {"step": tuned.steps, "total_steps": tuned.steps, "seed": parts.recipe.training.seed},
        "product": "backbone",
        "uses_labels": True,
    }


def _tried(parts: FineTuning, tuned: FineTuned, kept: Checkpoint, out: Path) -> Row:
    """Keeps the head, and has it classify the test split as ``unlabeled predict`` does."""
    folder, splits = out / "report" / FOLDER, parts.data.splits
    passes = min(parts.recipe.training.batch_size, tuned.images)
    context = HeadContext(splits.train.classes, kept.sha256, parts.views.evaluation(), parts.precision, passes)
    row = Row("pretrained", _protocol(parts, tuned), float("nan"), n_train=tuned.images, head=tuned.head)
    write_heads(folder, [row], context)
    if splits.test is None or not bool((splits.test.labels >= 0).any()):
        return row
    head = read_head(folder, row.protocol)
    network = tuned.network.to(parts.device)
    predictor = Predictor(head, network, parts.views.evaluation_view, parts.device)
    found = joined(list(predictor.predict(parts.data, splits.test)))
    known = ((splits.test.labels >= 0) & (found.numbers >= 0)).nonzero().flatten()
    labels, row.predictions = splits.test.labels[known], found.numbers[known]
    row.top1, row.n_test = top1(row.predictions, labels), len(known)
    row.metrics["temperature"] = head.calibration.temperature
    row.metrics["ece_after_temperature"] = ece(found.probabilities[known].log(), labels)
    add_intervals([row], labels)
    write_predictions(out / "report", [row], labels, known)
    write_heads(folder, [row], context)  # with the number
    return row


def _protocol(parts: FineTuning, tuned: FineTuned) -> str:
    named = parts.recipe.protocol.split("/epochs=")[0]
    return f"{named}/{tuned.images} labels/steps={tuned.steps}"


def _told(row: Row, tuned: FineTuned, out: Path) -> str:
    said = [f"{out} holds the network and its classifier, trained on {tuned.images:,} labels"]
    if row.interval is not None:
        low, high = row.interval
        said.append(f"{row.top1:.1f} % of {row.n_test:,} test images are right ({low:.1f} to {high:.1f})")
    elif tuned.held_top1 is not None:
        said.append(f"{tuned.held_top1:.1f} % of the held-out images were right; there is no test split")
    said.append(f"use it: unlabeled predict run={out} data=FOLDER out=predictions.csv")
    return "\n".join(said)

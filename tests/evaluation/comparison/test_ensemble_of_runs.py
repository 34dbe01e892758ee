"""Several runs as one classifier, from what their reports keep."""

import json
from pathlib import Path

import pytest
import torch

from unlabeled.errors import UserError
from unlabeled.evaluation.comparison.ensemble_of_runs import ensemble
from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.predictions import write_predictions


def run(folder: Path, seed: int, labels: torch.Tensor) -> torch.Tensor:
    """A report with one row; returns its probabilities."""
    generator = torch.Generator().manual_seed(seed)
    log_p = (torch.randn(len(labels), 4, generator=generator) + 1.5 * torch.eye(4)[labels]).log_softmax(1)
    predictions = log_p.argmax(1)
    top1 = 100 * float((predictions == labels).double().mean())
    row = Row("pretrained", "linear/x", top1, n_test=len(labels), predictions=predictions, log_probabilities=log_p)
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"rows": [row.as_dict()], "provenance": {}}))
    write_predictions(folder, [row], labels, torch.arange(len(labels)))
    return log_p.exp()


def test_it_scores_the_mean_probabilities_beside_the_mean_of_the_runs(tmp_path: Path) -> None:
    labels = torch.arange(200) % 4
    p = [run(tmp_path / f"run{seed}", seed, labels) for seed in range(3)]
    text = ensemble([str(tmp_path / f"run{seed}") for seed in range(3)], str(tmp_path / "out"))
    together = 100 * float((sum(p).argmax(1) == labels).double().mean())  # type: ignore[union-attr]
    each = sum(100 * float((one.argmax(1) == labels).double().mean()) for one in p) / 3
    line = next(line for line in text.splitlines() if line.startswith("| ensemble/3 runs/linear/x |"))
    assert f"| {each:.2f} | {together:.2f} |" in line
    assert together > each
    assert (tmp_path / "out" / "ensemble.md").read_text() in text


def test_one_run_and_runs_on_other_images_are_refused(tmp_path: Path) -> None:
    run(tmp_path / "a", 0, torch.arange(200) % 4)
    run(tmp_path / "b", 1, torch.arange(200) % 3)
    with pytest.raises(UserError, match="was given 1 of them; it needs at least 2"):
        ensemble([str(tmp_path / "a")])
    with pytest.raises(UserError, match="was evaluated on other test images"):
        ensemble([str(tmp_path / "a"), str(tmp_path / "b")])

"""The stored checkpoint reaches its stored accuracies, and nothing else does."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Script
from unlabeled.evaluation import self_test as module
from unlabeled.evaluation.self_test import FILE, STORED, shuffle_weights
from unlabeled.weights import read_checkpoint


def test_the_stored_checkpoint_reaches_its_accuracies_exactly_and_shuffled_weights_do_not(script: Script) -> None:
    finished = script("eval_linear.py", "self_test=true")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    stored = json.loads(STORED.read_text())
    assert len(stored) == 2
    lines = finished.stdout.splitlines()[-3:]
    for line, (protocol, top1) in zip(lines[:-1], stored.items(), strict=True):
        assert line.startswith(f"{protocol}: stored {top1:.4f} %, found {top1:.4f} %, with shuffled weights ")
    assert lines[-1].startswith("self-test passed")
    refused = script("eval_linear.py", "self_test=true", "probe=knn")
    assert refused.returncode == 2
    assert refused.stderr == "error: self_test=… takes everything else from what it names: leave out probe=knn\n"


def test_shuffling_keeps_every_value_in_its_tensor_and_moves_nearly_all() -> None:
    checkpoint = read_checkpoint(FILE)
    mixed = shuffle_weights(checkpoint)
    for key, value in checkpoint.tensors.items():
        assert torch.equal(value.flatten().sort().values, mixed.tensors[key].flatten().sort().values)
    weight = "state_dict.objective.backbone.layer4.0.conv1.weight"
    assert float((checkpoint.tensors[weight] == mixed.tensors[weight]).float().mean()) < 0.01
    assert FILE.stat().st_size < 250_000


@pytest.mark.parametrize(
    ("found", "spoilt", "verdict", "passed"),
    [
        (90.0, 50.0, "equal", True),
        (89.9, 50.0, "NOT EQUAL", False),
        (90.0, 86.0, "SHUFFLED WEIGHTS DO AS WELL", False),
    ],
)
def test_it_fails_for_another_accuracy_and_where_the_weights_do_not_matter(
    found: float,
    spoilt: float,
    verdict: str,
    passed: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "stored.json").write_text('{"knn": 90.0}')
    monkeypatch.setattr(module, "STORED", tmp_path / "stored.json")
    original = read_checkpoint(FILE)

    def accuracies(evaluation: Any, checkpoint: Any) -> dict[str, float]:
        key = next(iter(original.tensors))
        same = torch.equal(checkpoint.tensors[key], original.tensors[key])
        return {"knn": found if same else spoilt}

    monkeypatch.setattr(module, "_accuracies", accuracies)
    assert module.self_test(lambda checkpoint: dataclasses.replace(checkpoint)) is passed  # type: ignore[arg-type, return-value]
    assert verdict in capsys.readouterr().out.splitlines()[0]

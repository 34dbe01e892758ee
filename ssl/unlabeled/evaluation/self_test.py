"""Self-test of the evaluation on this machine: a stored checkpoint must reach its stored accuracies.

The checkpoint is a small network that was pretrained on scikit-learn's digits; ``benchmarks/self_test.py`` makes it. It
takes the same way as any other: reading, loading, features, probes, report. With its weights shuffled within each
tensor it must be much worse, or the measurement does not depend on the weights.
"""

import contextlib
import dataclasses
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from unlabeled.evaluation.evaluate import Evaluation, evaluate
from unlabeled.weights import Checkpoint, read_checkpoint

FILE = Path(__file__).with_name("self_test.ckpt")
STORED = Path(__file__).with_name("self_test.json")  # protocol → top-1 in per cent
WORSE_BY = 5.0  # points that shuffled weights must lose: over three standard errors of 450 images


def self_test(build: Callable[[Checkpoint], Evaluation]) -> bool:
    """Prints the stored and the measured accuracies; returns whether they agree.

    Args:
        build: makes the evaluation of a checkpoint from the settings in it, without storing features.
    """
    started = time.perf_counter()
    torch.set_num_threads(1)  # one order of sums, and no waiting for threads on a busy machine
    stored: dict[str, float] = json.loads(STORED.read_text())
    checkpoint = read_checkpoint(FILE)
    found = _accuracies(build(checkpoint), checkpoint)
    spoilt = _accuracies(build(checkpoint), shuffle_weights(checkpoint))
    passed = True
    for protocol, wanted in stored.items():
        exact, lost = found[protocol] == wanted, spoilt[protocol] <= wanted - WORSE_BY
        passed &= exact and lost
        verdict = "equal" if exact and lost else "NOT EQUAL" if lost else "SHUFFLED WEIGHTS DO AS WELL"
        print(
            f"{protocol}: stored {wanted:.4f} %, found {found[protocol]:.4f} %, "
            f"with shuffled weights {spoilt[protocol]:.2f} %: {verdict}"
        )
    seconds = time.perf_counter() - started
    print(f"self-test {'passed' if passed else 'FAILED: do not believe evaluations here'} ({seconds:.0f} s)")
    return passed


def shuffle_weights(checkpoint: Checkpoint, seed: int = 0) -> Checkpoint:
    """Shuffles the values of every tensor at random within the tensor."""
    generator = torch.Generator().manual_seed(seed)
    mixed = {
        path: value.flatten()[torch.randperm(value.numel(), generator=generator)].view(value.shape)
        for path, value in checkpoint.tensors.items()
    }
    return dataclasses.replace(checkpoint, tensors=mixed)


def _accuracies(evaluation: Evaluation, checkpoint: Checkpoint) -> dict[str, float]:
    without_baselines = dataclasses.replace(evaluation, random_backbone=None)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        rows = evaluate(without_baselines, checkpoint, Path(folder), "self-test")
    return {row.protocol: row.top1 for row in rows if row.features == "pretrained"}

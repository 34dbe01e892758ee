"""Evaluates several runs as one classifier: ``python eval_linear.py ensemble=[RUN_A,RUN_B]``; reads the runs only."""

from collections.abc import Sequence
from pathlib import Path

from unlabeled.core.escaping import in_markdown, in_table
from unlabeled.core.writing import check_folder, kept_anyway, write_atomic
from unlabeled.evaluation.comparison.evaluated_run import read_evaluated_run
from unlabeled.evaluation.predictions import read_predictions
from unlabeled.evaluation.probe import Score
from unlabeled.evaluation.probes.ensembles import ensemble_of_reports
from unlabeled.evaluation.statistics import accuracy_interval

SHOWN = ("nll", "brier", "ece", "auroc_mutual_information")


def ensemble(runs: Sequence[str], folder: str | None = None) -> str:
    """Averages the probabilities of separate runs by protocol, writes ``ensemble.md``, and returns its text.

    Args:
        runs: two or more folders of runs or reports, evaluated on the same test images.
        folder: made where it does not exist; None: ``outputs/ensemble-RUN-RUN…``.

    Raises:
        UserError: as :func:`ensemble_of_reports`.
    """
    judged = [read_evaluated_run(Path(run)) for run in runs]
    names = [each.name for each in judged]
    path = Path(folder or f"outputs/ensemble-{'-'.join(names)}") / "ensemble.md"
    check_folder("report_dir", path.parent, [path.name])
    scores = ensemble_of_reports([each.report for each in judged])
    images = len(read_predictions(judged[0].report).labels)
    joined_names = in_markdown(", ".join(names))
    lines = [_line(score, images) for score in scores]
    notes = dict.fromkeys(note for score in scores for note in score.notes)
    words = in_markdown(" ".join(notes))
    text = "\n".join(
        [
            f"# Ensemble of {joined_names}",
            "",
            f"Mean probabilities of {len(names)} runs on the same {images:,} test images. {words}",
            "",
            f"| protocol | mean of the runs, % | ensemble, % | 95 % interval | {' | '.join(SHOWN)} |",
            f"| --- |{' ---: |' * (3 + len(SHOWN))}",
            *lines,
            "",
        ]
    )
    kept_anyway(path.parent, lambda folder: write_atomic(folder / path.name, text))
    return f"{text}\nthis is in {path}"


def _line(score: Score, images: int) -> str:
    low, high = accuracy_interval(round(score.top1 * images / 100), images)
    values = [f"{score.metrics[name]:.4f}" if name in score.metrics else "–" for name in SHOWN]
    cells = [
        in_table(score.protocol),
        f"{score.metrics['member_top1']:.2f}",
        f"{score.top1:.2f}",
        f"{low:.2f} to {high:.2f}",
    ]
    return f"| {' | '.join([*cells, *values])} |"

"""The two sides of a comparison, its results, and its text as Markdown."""

from dataclasses import dataclass
from math import isfinite
from typing import Any

from unlabeled.core.escaping import in_markdown, in_table
from unlabeled.core.run_config import differences
from unlabeled.evaluation.comparison.evaluated_run import EvaluatedRun, run_identity
from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.predictions import Predictions
from unlabeled.evaluation.statistics import Difference

PRETRAINED = "pretrained"  # only pretrained features are compared, not the baselines
SIGNIFICANT = 0.05
NAMED = 12  # most differing keys that are listed


@dataclass
class RunGroup:
    """One side of the comparison: a run, or several that differ only in their seed."""

    runs: list[EvaluatedRun]
    predictions: list[Predictions]

    def protocols(self) -> list[str]:
        """Returns the protocols that all its runs have, in the order of the first report."""
        each = [[row.protocol for row in _measured(run)] for run in self.runs]
        return [protocol for protocol in dict.fromkeys(each[0]) if all(protocol in others for others in each)]

    def rows(self, protocol: str) -> list[Row]:
        """Returns the rows of pretrained features, one of each run."""
        return [next(row for row in _measured(run) if row.protocol == protocol) for run in self.runs]


def _measured(run: EvaluatedRun) -> list[Row]:
    return [row for row in run.rows if row.features == PRETRAINED and isfinite(row.top1)]


@dataclass
class ProtocolComparison:
    """Result of the comparison by one protocol."""

    protocol: str
    a: str  # accuracy and interval, or mean and deviation
    b: str
    difference: Difference
    test: str
    p: float | None = None  # p of the difference, corrected for the number of protocols


def comparison_markdown(a: RunGroup, b: RunGroup, found: list[ProtocolComparison]) -> str:
    """Formats a page of Markdown: a sentence per protocol, the table, rows of only one report, the tests used."""
    parts = [
        f"# A: {_names(a)}, B: {_names(b)}",
        f"{len(a.predictions[0].labels):,} test images: {in_markdown(a.runs[0].data()['description'])}.",
        "\n".join(f"- {in_markdown(each.protocol)}: {describe_difference(each)}" for each in found),
        _table(found),
        "\n".join(_only_in_one(a, b) + _how_runs_differ(a, b)),
        " ".join(_notes(a, found)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def describe_difference(found: ProtocolComparison) -> str:
    """Says which of the two is better and by how much, or that the test shows no difference."""
    points, (low, high) = found.difference.points, found.difference.interval
    if found.p is None:
        return f"A − B is {points:+.1f} points; no test, as the seeds of each gave one and the same number"
    if found.p >= SIGNIFICANT:
        return f"no difference shown, A − B is {points:+.1f} points ({low:+.1f} to {high:+.1f}), {_format_p(found.p)}"
    better, sign = ("A", 1) if points > 0 else ("B", -1)
    low, high = sorted((sign * low, sign * high))
    return f"{better} is better by {abs(points):.1f} points ({low:.1f} to {high:.1f}), {_format_p(found.p)}"


def _format_p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def _table(found: list[ProtocolComparison]) -> str:
    lines = ["| protocol | A, % | B, % | A − B | right in A alone | in B alone | test | p | p, Holm |"]
    lines.append("| --- " + "| ---: " * 5 + "| --- | ---: | ---: |")
    for each in found:
        difference = each.difference
        low, high = difference.interval
        images = ["–" if count is None else f"{count:,}" for count in (difference.only_a, difference.only_b)]
        p = ["–" if p is None else f"{p:.2g}" for p in (difference.p, each.p)]
        cells = [in_table(each.protocol), each.a, each.b, f"{difference.points:+.2f} ({low:+.2f} to {high:+.2f})"]
        lines.append("| " + " | ".join([*cells, *images, each.test, *p]) + " |")
    return "\n".join(lines)


def _only_in_one(a: RunGroup, b: RunGroup) -> list[str]:
    ours, theirs = a.protocols(), b.protocols()
    lacking = {"A": [p for p in ours if p not in theirs], "B": [p for p in theirs if p not in ours]}
    return [
        f"- Only in {name}, so not compared: {in_markdown(', '.join(each))}." for name, each in lacking.items() if each
    ]


def _how_runs_differ(a: RunGroup, b: RunGroup) -> list[str]:
    lines = []
    keys = differences(run_identity(a.runs[0].config), run_identity(b.runs[0].config))
    if not (a.runs[0].config and b.runs[0].config):
        lines.append("- What the runs were trained with is not known of both.")
    elif keys:
        more = f" and {len(keys) - NAMED} keys more" if len(keys) > NAMED else ""
        lines.append(f"- The runs differ in {in_markdown(', '.join(keys[:NAMED]))}{more}.")
    else:
        lines.append(f"- The runs' configurations agree{_but_seeds(a, b)}.")
    keys = differences(a.runs[0].transform(), b.runs[0].transform())
    if keys:
        lines.append(
            f"- The images were seen differently: {in_markdown(', '.join(keys))} of the evaluation's transform."
        )
    if keys := _other_settings(a.runs[0].settings(), b.runs[0].settings()):
        lines.append(f"- The probes had other settings: {in_markdown(', '.join(keys[:NAMED]))}.")
    for name, side in (("A", a), ("B", b)):
        keys = [
            key
            for run in side.runs[1:]
            for key in differences(run_identity(side.runs[0].config), run_identity(run.config))
        ]
        if keys:
            lines.append(
                f"- The runs of {name} differ in more than their seed: {in_markdown(', '.join(dict.fromkeys(keys)))}."
            )
    return lines


def _other_settings(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Keys in which two evaluations differ, of the probes that both have."""
    shared = ours["probe"].keys() & theirs["probe"].keys()
    both = [{**each, "probe": {name: each["probe"][name] for name in shared}} for each in (ours, theirs)]
    known = all(each["precision"] is not None for each in both)
    return differences(both[0], both[1]) if known else []


def _but_seeds(a: RunGroup, b: RunGroup) -> str:
    ours, theirs = a.runs[0].seed, b.runs[0].seed
    return "" if len(a.runs) > 1 or ours == theirs else f" but for the seed, {ours} and {theirs}"


def _notes(a: RunGroup, found: list[ProtocolComparison]) -> list[str]:
    corrected = f"p is corrected for {len(found)} protocols (Holm)." if len(found) > 1 else ""
    if len(a.runs) > 1:
        return ["Means ± deviations over seeds, on the same test images; intervals are of 95 %.", corrected]
    return [
        "Intervals are of 95 %, from a bootstrap of the test images; that of the difference is paired.",
        corrected,
        "The test says whether these two networks differ, not whether their recipes do: that takes seeds,",
        "compare=[[A0,A1,A2],[B0,B1,B2]].",
    ]


def _names(side: RunGroup) -> str:
    return in_markdown(", ".join(str(run.folder) for run in side.runs))

"""The page of what was measured: a line a row, and where the time of its steps goes."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.pretraining.limit import efficiencies
from benchmarks.pretraining.phases import PARTS
from unlabeled.core.environment import summarize_provenance


@dataclass(frozen=True)
class Speed:
    """The numbers of a row, from the blocks of its run and of its limit."""

    run: float  # images per second, end to end
    limit: float  # images per second
    efficiency: float  # median over the blocks of the run
    least: float
    most: float


def speed(result: dict[str, Any]) -> Speed:
    """Medians over the blocks; of a checkpoint each block is charged the part that its images are of an epoch."""
    images = result["row"]["steps"] * result["images_per_step"]
    charged = result["checkpoint"] * images / result["row"]["epoch"]
    run = [seconds + charged for seconds in result["run"]]
    each = efficiencies(run, result["limit"])
    return Speed(
        images / statistics.median(run),
        images / statistics.median(result["limit"]),
        statistics.median(each),
        min(each),
        max(each),
    )


def page(device: str, measured: Sequence[dict[str, Any]], small: Sequence[dict[str, Any]]) -> str:
    """The whole page; ``small`` are GPU rows in a setting that fits a CPU, and may be none."""
    lines = [
        f"# Speed of pretraining: {device}",
        "",
        *NOTES,
        *summarize_provenance([*measured, *small]),
        "",
        *_speeds(measured),
    ]
    lines += ["", "## Where the time of a step goes", "", *PART_NOTES, "", *_parts(measured)]
    if small:
        lines += ["", "## Rows for a GPU, unmeasured", "", *SMALL_NOTES, "", *_speeds(small), "", *_parts(small)]
    return "\n".join([*lines, ""])


NOTES = [
    "By `python benchmarks/pretrain.py`. **End to end** is a run as `train.py` makes it, with its log, its guard",
    "against faults and its checkpoint (one an epoch, charged by images), without probes. **Limit** is the same",
    "objective and optimizer, in the same precision, on float views that are on the device already: forward, loss,",
    "backward, optimizer, the method's own update; no data, views, loop, log. Both take blocks of steps in turn in one",
    "process; efficiency is limit's time over the run's, each block of the run beside the two of the limit around it.",
    "Medians; least and most in brackets. Peak memory: of a GPU the tensors, on a CPU the process with its libraries",
    "and the data set.",
    "",
]
PART_NOTES = [
    "From a run of its own, with a synchronised clock around each part. Data: the batch and its way to the device;",
    "views: with their memory format; forward: with the loss; optimizer: with the method's own update; faults: verdict",
    "and snapshot; rest: Lightning's loop, callbacks, progress.",
]
SMALL_NOTES = [
    "No GPU was at hand: **how fast these rows are on one is not known**. Here they ran on the CPU above, with tiny",
    "batches and images, which shows that each runs from its first to its last line; their efficiencies say nothing of",
    "a GPU.",
]


def _speeds(results: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| | precision | batch | end to end, images/s | limit, images/s | efficiency | bound | peak, GiB | W |"]
    lines.append("|---|---|---:|---:|---:|---:|---|---:|---:|")
    for result in results:
        found, power = speed(result), result["watts"]
        cells = [
            _name(result),
            result["precision"],
            f"{result['images_per_step']:,}",
            _number(found.run),
            _number(found.limit),
            f"{found.efficiency:.3f} ({found.least:.3f} – {found.most:.3f})",
            _verdict(found.efficiency, result["row"]["bound"]),
            f"{result['peak_bytes'] / 2**30:.1f}",
            f"{statistics.median(power):.0f}" if power else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _parts(results: Sequence[dict[str, Any]]) -> list[str]:
    parts = [*PARTS, "rest"]
    lines = [f"| | precision | step, ms | {' | '.join(f'{name}, %' for name in parts)} | checkpoint, ms |"]
    lines.append(f"|---|---|---:|{'---:|' * len(parts)}---:|")
    for result in results:
        shares = " | ".join(f"{100 * result['phases'][name] / result['step']:.1f}" for name in parts)
        start = f"| {_name(result)} | {result['precision']} | {1000 * result['step']:.1f}"
        lines.append(f"{start} | {shares} | {1000 * result['checkpoint']:.0f} |")
    return lines


def _name(result: dict[str, Any]) -> str:
    return str(result["row"]["name"]).removesuffix(f", {result['precision']}")


def _verdict(efficiency: float, bound: float | None) -> str:
    if bound is None:
        return ""
    return f"≥ {bound:.2f} {'holds' if efficiency >= bound else '**does not hold**'}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"

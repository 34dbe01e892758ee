"""What a step costs against its size: batches, views and images larger and larger, each beside its limit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pretraining.images import parquet_files
from benchmarks.pretraining.phases import PARTS
from benchmarks.pretraining.rows import CIFAR, IMAGENET, Row
from benchmarks.pretraining.table import speed
from unlabeled.core.environment import summarize_provenance

BATCHES = (64, 128, 256, 512, 1024, 2048, 4096)
VIEWS = (2, 4, 6, 8, 10)
SIZES = (32, 64, 96, 128, 160, 224)
BLOCK = 4 * 256 * 2 * 32**2  # pixels of all views in a block of steps
BEND = 1.25  # times the least cost of a pixel; less may be the drift of a machine from one process to the next

Measured = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Sweep:
    """Rows that differ in one number."""

    title: str
    values: tuple[int, ...]
    rows: list[Row]


def batches(work: Path, gpu: bool) -> Sweep:
    backbone = "resnet18" if gpu else "resnet_thin"
    given = ("experiment=simclr_cifar10", f"backbone={backbone}", *_images(work, 32, 10_240), *_on(gpu))
    rows = [
        Row(f"SimCLR, batch {size}", (*given, f"batch_size={size}"), _steps(size * 2 * 32**2), CIFAR)
        for size in BATCHES
    ]
    return Sweep(f"Batch size (SimCLR, {backbone}, two views of 32 px)", BATCHES, rows)


def views(work: Path, gpu: bool) -> Sweep:
    backbone = "resnet18" if gpu else "resnet_thin"
    given = ("experiment=swav_cifar10", f"backbone={backbone}", "objective.queue_length=0", *_on(gpu))
    given = (*given, *_images(work, 32, 10_240), "batch_size=256")
    rows = [
        Row(
            f"SwAV, {count} views",
            (*given, f"views.groups.1.count={count - 2}"),
            _steps(256 * (2 * 32**2 + (count - 2) * 16**2)),
            CIFAR,
        )
        for count in VIEWS
    ]
    return Sweep(f"Views (SwAV, {backbone}, two of 32 px and the others of 16 px, batch 256)", VIEWS, rows)


def images(work: Path, gpu: bool) -> Sweep:
    backbone, batch = ("resnet50", 256) if gpu else ("resnet_thin", 64)
    given = ("experiment=simclr_cifar10", f"backbone={backbone}", f"batch_size={batch}", *_on(gpu))
    rows = [
        Row(
            f"SimCLR, images of {size} px",
            (*given, *_images(work, size, 4 * batch), f"views.size={size}", f"data.image_size={size}"),
            _steps(batch * 2 * size**2),
            IMAGENET,
        )
        for size in SIZES
    ]
    return Sweep(f"Image size, pixels (SimCLR, {backbone}, two views, batch {batch})", SIZES, rows)


SWEEPS: dict[str, Callable[[Path, bool], Sweep]] = {"batch": batches, "views": views, "image": images}


def _images(work: Path, size: int, count: int) -> tuple[str, ...]:
    return ("data=parquet", f"data.path={parquet_files(work / f'images_{size}_{count}', count, size).resolve()}")


def _on(gpu: bool) -> tuple[str, ...]:
    return (f"trainer.accelerator={'gpu' if gpu else 'cpu'}", "trainer.precision=bf16-mixed")


def _steps(pixels: int) -> int:
    return max(1, min(20, BLOCK // pixels))


def sizes_page(device: str, results: Sequence[tuple[Sweep, Measured]], picture: Path) -> str:
    """Sentences, the picture, which is drawn, and the numbers; of what has been measured so far."""
    begun = [(sweep, found) for sweep, found in results if found]
    draw(begun, picture)
    lines = [f"# Cost of pretraining against size: {device}", "", *NOTES, ""]
    lines += summarize_provenance([each for _, found in begun for each in found])
    lines += ["", f"![pixels of views per second against size]({picture.name})"]
    for sweep, found in begun:
        values = _values(sweep, found)
        missing = ", ".join(f"{value:,}" for value in sweep.values if value not in values)
        lines += ["", f"## {sweep.title}", "", bends(values, found)]
        lines += ["", f"Not measured yet: {missing}."] if missing else []
        lines += ["", *_table(values, found)]
    return "\n".join([*lines, ""])


def _values(sweep: Sweep, found: Measured) -> list[int]:
    """Of the rows that have been measured."""
    names = [result["row"]["name"] for result in found]
    return [value for value, row in zip(sweep.values, sweep.rows, strict=True) if row.name in names]


NOTES = [
    "By `python benchmarks/pretrain.py --sizes`, bf16-mixed; end to end and limit as in the page of the rows. A pixel",
    "is one of a view: were the work per pixel all that counts, it would cost the same at every size. Where it costs",
    f"more than {BEND:g} times the least the curve bends, and the sentence says which part of a step costs more there.",
    "Each row is a process of its own, and a shared machine may drift by 10 to 20 % from one to the next.",
]


def bends(values: Sequence[int], found: Measured) -> str:
    """Where a pixel costs least, and what costs more at the ends where it is dear."""
    costs = [_per_pixel(result, 1 / speed(result).run) for result in found]
    best = min(range(len(costs)), key=costs.__getitem__)
    even = [number for number, cost in enumerate(costs) if cost <= BEND * costs[best]]
    words = f"A pixel costs {1e9 * min(costs):.0f} to {1e9 * max(costs):.0f} ns, least at {values[best]:,}"
    if even[0]:
        words += f"; below {values[even[0]]:,} the curve bends: at {values[0]:,} {_more(found[best], found[0])}"
    if even[-1] + 1 < len(costs):
        words += f"; above {values[even[-1]]:,} the curve bends: at {values[-1]:,} {_more(found[best], found[-1])}"
    return words + ("." if len(even) < len(costs) else f": no bend of more than {100 * BEND - 100:.0f} %.")


def _more(best: dict[str, Any], other: dict[str, Any]) -> str:
    """How much more a pixel costs in another row, the limit's too, and in which part of the step most of it arises."""
    run, limit = (
        _per_pixel(other, 1 / getattr(speed(other), which)) / _per_pixel(best, 1 / getattr(speed(best), which)) - 1
        for which in ("run", "limit")
    )
    rises = {name: _part(other, name) - _part(best, name) for name in (*PARTS, "rest")}
    most = max(rises, key=rises.__getitem__)
    of_all = rises[most] / sum(rise for rise in rises.values() if rise > 0)
    return f"{100 * run:+.0f} % (the limit {100 * limit:+.0f} %), of which {most} makes {100 * of_all:.0f} %"


def _part(result: dict[str, Any], name: str) -> float:
    return _per_pixel(result, result["phases"][name] / result["images_per_step"])


def _per_pixel(result: dict[str, Any], seconds_per_image: float) -> float:
    return seconds_per_image / int(result["view_pixels"])


def _table(values: Sequence[int], found: Measured) -> list[str]:
    lines = [
        "| | end to end, images/s | limit, images/s | efficiency | ns a pixel | peak, GiB | views, % | forward, % |"
    ]
    lines[0] += " backward, % | other, % |"
    lines.append(f"|---:|{'---:|' * 9}")
    for value, result in zip(values, found, strict=True):
        got = speed(result)
        shares = [100 * result["phases"][name] / result["step"] for name in ("views", "forward", "backward")]
        cells = [f"{value:,}", f"{got.run:,.0f}", f"{got.limit:,.0f}", f"{got.efficiency:.3f}"]
        cells += [f"{1e9 * _per_pixel(result, 1 / got.run):.0f}", f"{result['peak_bytes'] / 2**30:.1f}"]
        cells += [f"{share:.1f}" for share in (*shares, 100 - sum(shares))]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw(begun: Sequence[tuple[Sweep, Measured]], picture: Path) -> None:
    """Pixels of views per second, a panel for each sweep: where size is all that counts, the line is level."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(begun), 3.4), layout="constrained")
    for place, (sweep, found) in enumerate(begun):
        axes, values = figure.add_subplot(1, len(begun), place + 1), _values(sweep, found)
        for which, style, label in (("limit", "s--", "limit"), ("run", "o-", "end to end")):
            costs = [_per_pixel(result, 1 / getattr(speed(result), which)) for result in found]
            axes.plot(values, [1e-6 / cost for cost in costs], style, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(values, [str(value) for value in values], rotation=45)
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel(sweep.title.partition(" (")[0])
        axes.set_ylabel("million pixels of views per second")
        axes.set_title(sweep.title.partition(" (")[2].removesuffix(")"), fontsize=7)
        axes.legend(fontsize=7)
    figure.savefig(picture, dpi=90)

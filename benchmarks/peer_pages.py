"""The page of what ``benchmarks/peers.py`` measured."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OURS = "unlabeled"
NETWORKS = {"thin": "thin ResNet-10, width ¼", "resnet18": "ResNet-18"}
VALUE = {"thin": "step", "resnet18": "step", "first_step": "first_step"}  # what settings are chosen by
BATCH_SIZE, QUERIES, RATES = 256, 10_000, 13

NOTES = """
- The network is this project's `backbone.resnet_thin` or `resnet18` with the CIFAR stem, built from the same file in
  each process; all have SGD with momentum, temperature 0.1, bf16 autocast and weights in channels_last. Networks are
  not compiled.
- This project is `train.py` itself, with its log, its fault guard and its checkpoint. The others have neither logger,
  checkpoints nor progress bar, in Lightning's `Trainer` as their examples have it; stable-pretraining adds callbacks of
  its own to every trainer, and its `make_it_fast()` is called.
- lightly and stable-pretraining's kornia views crop bilinearly, and cannot do otherwise; the others bicubically.
  solo-learn normalises by mean and deviation. lightly's projector has one more bias.
- solo-learn asks for torch 1.9.1 and Lightning 1.4.7, which there are for no Python that this project runs on. Its
  modules are used with the torch of the others; `benchmarks/peer_drivers/solo_learn_simclr.py` mends what that breaks.
  It trains a linear head beside, which cannot be switched off. Its command line and DALI's loader were not tried.
- Workers fetch the next batches while a step is computed, on the same cores. Each library has the workers and views
  that were fastest when all were tried once, for each network and for the first step. Time of a step is the mean over
  the timed steps of a process, and includes the wait for data.
- First step: from the start of Python to the end of the first optimizer step of the thin network, on a folder of 2,048
  PNG files; each library through its own folder data set.
- Memory: the peak of the training process and what each worker holds for itself at the end; on a GPU, the peak of
  torch's allocator. stable-pretraining and lightly read the same array of CIFAR-10 as solo-learn, 147 MiB.
- k-NN: k = 20, T = 0.1, with normalisation. lightly's `knn_predict` gets 500 queries at a time. solo-learn's
  `WeightedKNNClassifier` tells accuracies only; how many predictions it shares was found by giving it this project's
  predictions as labels. stable-pretraining compares with a queue while training and has none for kept features.
- Linear head: one epoch of 50,000 kept features, batches of 256, 10 classes. No peer trains several rates at once, or
  keeps features: their linear modules were given the features as images and Identity as backbone; 13 rates are 13
  times one. `torch` is the loop of `benchmarks/probes.py` with nn.Linear and torch.optim.SGD.
""".strip().splitlines()

NO_GPU = """
- No GPU was at hand: **how fast any of them is on one is not known**. The script measures it where there is one, and
  4 times each peer is wanted at 32 px.
""".strip()


@dataclass(frozen=True)
class Record:
    """What one process answered."""

    library: str
    part: str
    round: str  # a number, or "choice" where settings were tried
    workers: int
    views: str
    classes: int
    found: dict[str, Any]


def best_setting(records: Sequence[Record], library: str, part: str) -> tuple[int, str]:
    """Workers and views that took least time when they were tried."""
    tried = [each for each in records if (each.library, each.part, each.round) == (library, part, "choice")]
    best = min(tried, key=lambda each: float(each.found[VALUE[part]]))
    return best.workers, best.views


def rounds(records: Iterable[Record], part: str, classes: int = 10) -> dict[str, dict[str, Record]]:
    """Of a part, by library and number of the round; without the trials of settings."""
    found: dict[str, dict[str, Record]] = {}
    for each in records:
        if (each.part, each.classes) == (part, classes) and each.round != "choice":
            found.setdefault(each.library, {})[each.round] = each
    return found


def ratios(theirs: Mapping[str, Record], ours: Mapping[str, Record], name: str) -> list[float]:
    """Theirs over ours of each round that both have: above 1 this project is faster, or smaller."""
    return [float(theirs[key].found[name]) / float(ours[key].found[name]) for key in theirs if key in ours]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range."""
    if not values:
        return "unmeasured"
    if len(values) == 1:
        return f"{values[0]:.{digits}f} (once)"
    low, middle, high = (f"{each:.{digits}f}" for each in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def page(
    records: Sequence[Record],
    versions: Mapping[str, str],
    machine: str,
    device: str,
) -> str:
    """All tables and notes; parts without records are said to be unmeasured."""
    wanted = "at least 4 at 32 px" if device == "cuda" else "at least 1.2 with the thin network"
    lines = [
        f"# The same work in lightly, solo-learn and stable-pretraining: {machine}",
        "",
        "By `benchmarks/peers.py`, all in turn, a process each. Medians over the rounds, and their ranges; a ratio is",
        "that of neighbouring processes, theirs over ours: above 1 this project needs less.",
        "",
        *(f"- {library}: {version}" for library, version in versions.items()),
        "",
        f"## Training: SimCLR, batch {BATCH_SIZE}, 32 px (wanted: {wanted})",
        "",
        *training(records),
        "",
        "## From the command to the end of the first step (wanted: no later than the fastest)",
        "",
        *first_step(records),
        "",
        "## k-NN, 10,000 queries, 50,000 × 512 features",
        "",
        *neighbours(records),
        "",
        f"## Linear head, {RATES} learning rates (wanted: at least 8 times as fast as one by one)",
        "",
        *heads(records),
        "",
        "## Settings that were tried, once each",
        "",
        *trials(records),
        "",
        "## What is the same and what is not",
        "",
        *NOTES,
        *([] if device == "cuda" else [NO_GPU]),
    ]
    return "\n".join(lines) + "\n"


def training(records: Sequence[Record]) -> list[str]:
    lines = ["| network | library | workers | views | s a step | images/s | time, ours = 1 | MiB | memory, ours = 1 |"]
    lines.append("|---|---|---:|---|---:|---:|---:|---:|---:|")
    for part, network in NETWORKS.items():
        found = rounds(records, part)
        for library, own in found.items():
            some = next(iter(own.values()))
            step, memory = ([float(each.found[name]) for each in own.values()] for name in ("step", "memory_mib"))
            faster, smaller = (ratios(own, found.get(OURS, {}), name) for name in ("step", "memory_mib"))
            numbers = [spread(step, 3), f"{BATCH_SIZE / statistics.median(step):,.0f}", spread(faster)]
            numbers += [f"{statistics.median(memory):,.0f}", spread(smaller)]
            workers = "none" if library == OURS else str(some.workers)
            lines.append(f"| {network} | {library} | {workers} | {some.views} | {' | '.join(numbers)} |")
        lines += [] if found else [f"| {network} | unmeasured | | | | | | | |"]
    return lines


def first_step(records: Sequence[Record]) -> list[str]:
    lines = ["| library | workers | s | time, ours = 1 |", "|---|---:|---:|---:|"]
    found = rounds(records, "first_step")
    for library, own in found.items():
        seconds = [float(each.found["first_step"]) for each in own.values()]
        ratio = spread(ratios(own, found.get(OURS, {}), "first_step"))
        lines.append(f"| {library} | {next(iter(own.values())).workers} | {spread(seconds, 1)} | {ratio} |")
    return lines


def neighbours(records: Sequence[Record]) -> list[str]:
    lines = [
        "| classes | library | s | time, ours = 1 | predictions unlike ours | correct |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for classes in (10, 1000):
        found = rounds(records, "knn", classes)
        for library, own in found.items():
            last = list(own.values())[-1].found
            ratio = spread(ratios(own, found.get(OURS, {}), "knn"))
            seconds = spread([float(each.found["knn"]) for each in own.values()])
            counts = [f"{round(last[name]):,}" if name in last else "" for name in ("differ", "correct")]
            lines.append(f"| {classes:,} | {library} | {seconds} | {ratio} | {' | '.join(counts)} |")
    return lines


def heads(records: Sequence[Record]) -> list[str]:
    """This project in one pass beside torch one by one, and each library's one rate 13 times."""
    lines = ["| | s for 13 rates | time, ours = 1 |", "|---|---:|---:|"]
    found = rounds(records, "linear")
    ours = found.get(OURS, {})
    grid = {key: float(each.found["grid"]) for key, each in ours.items()}
    alone = {key: float(each.found["one_by_one"]) for key, each in ours.items()}
    rows = {f"{OURS}, one pass": grid, "torch, one by one": alone}
    for library, own in found.items():
        if library != OURS:
            rows[f"{library}, 13 × one rate"] = {
                key: RATES * float(each.found["one_rate"]) for key, each in own.items()
            }
    for name, seconds in rows.items():
        ratio = spread([seconds[key] / grid[key] for key in seconds if key in grid], 1)
        lines.append(f"| {name} | {spread(list(seconds.values()), 3)} | {ratio} |")
    return lines


def trials(records: Sequence[Record]) -> list[str]:
    lines = ["| | library | workers | views | s |", "|---|---|---:|---|---:|"]
    for each in (each for each in records if each.round == "choice"):
        seconds = float(each.found[VALUE[each.part]])
        name = NETWORKS.get(each.part, "first step")
        lines.append(f"| {name} | {each.library} | {each.workers} | {each.views} | {seconds:.3f} |")
    return lines

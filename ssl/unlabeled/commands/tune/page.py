"""The page of a search: how the score grew, which keys mattered, every trial, and the command of the best."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlabeled.commands.tune.history import Trial, best_trial
from unlabeled.commands.tune.space import Choices, Interval, Space
from unlabeled.pages.palette import PALETTE
from unlabeled.pages.parts import Part, joined, sheet, shown_part
from unlabeled.pages.plots import GRID, INK, figure_as_svg, new_figure, plain_text, style_axes
from unlabeled.pages.template import macros, shared

if TYPE_CHECKING:
    from matplotlib.axes import Axes

JUDGED = (
    "A trial is a training; its score is the top-1 of the online k-NN in per cent: up to 1,000 of the labelled "
    "training images are classified by others of them. The test split was not used. With 1,000 images a score has a "
    "standard error of up to 1.6 points, and the best of many trials is lucky too: train it with other seeds before "
    "you rely on it. An objective that trains with labels has seen those of the images that judge it."
)

IMPORTANCE = (
    "How much worse a random forest, fitted to the trials, tells the score when the values of a key are shuffled; "
    "with few trials it means little."
)


def search_page(
    fixed: Sequence[str],
    space: Space,
    trials: Sequence[Trial],
    importances: Mapping[str, float],
    command: str | None,
) -> str:
    """Returns the page.

    Args:
        fixed: overrides of every trial.
        space: what is searched.
        trials: that are over.
        importances: share of each key, of 1; empty where it is unknown.
        command: that trains with the best values; None while no trial was trained to its end.
    """
    found = best_trial(list(trials))
    if found is None or command is None:
        best = _macros().best("No trial was trained to its end.", "")
    else:
        best = _macros().best(f"Best: {found.score:.2f} % in trial {found.number}.", command)
    parts = [Part("", joined(best, shared().paragraphs([JUDGED], "quiet")))]
    if found is not None:
        parts += [_plot("Score by trial", _history(trials)), _plot("Values of each trial", _lines(space, trials))]
    if importances:
        parts.append(shown_part("Which key matters", IMPORTANCE, _importance_bars(importances), wide=False))
    parts.append(Part("Every trial", _table(space, trials), "wide"))
    parts.append(Part("The same for every trial", _macros().fixed(fixed), "wide"))
    return sheet(f"Search over {len(space)} keys, {len(trials)} trials", [], "", parts)


def _macros() -> Any:
    return macros(Path(__file__).with_name("search.html"))


def _plot(title: str, drawn: str) -> Part:
    return Part(title, shared().scrolled(drawn), "shown")


def _history(trials: Sequence[Trial]) -> str:
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(3.0)
    axes = figure.add_subplot()
    style_axes(axes, "")
    for state, colour, name in (("ended", PALETTE[0], "trained to its end"), ("pruned", PALETTE[8], "ended early")):
        shown = [trial for trial in trials if trial.state == state and trial.score is not None]
        axes.scatter([each.number for each in shown], [each.score or 0.0 for each in shown], 18, colour, label=name)
    ended = [trial for trial in trials if trial.state == "ended" and trial.score is not None]
    best = [max(each.score or 0.0 for each in ended[: position + 1]) for position in range(len(ended))]
    axes.step([each.number for each in ended], best, PALETTE[3], where="post", label="best so far")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial", color=INK)
    axes.set_ylabel("k-NN top-1, %", color=INK)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return figure_as_svg(figure, "Score by trial")


def _lines(space: Space, trials: Sequence[Trial]) -> str:
    """Parallel coordinates: an axis for each key and one for the score, a line for each trial."""
    scored = [trial for trial in trials if trial.score is not None]
    low, high = min(trial.score or 0.0 for trial in scored), max(trial.score or 0.0 for trial in scored)
    figure = new_figure(3.4, max(5.2, 1.3 * (len(space) + 1)))
    axes = figure.add_subplot()
    for trial in sorted(scored, key=lambda each: each.score or 0.0):
        share = ((trial.score or 0.0) - low) / (high - low or 1.0)
        heights = [dimension.place(trial.values[key]) for key, dimension in space.items()]
        best = trial == best_trial(list(trials))
        style: dict[str, Any] = {"color": PALETTE[3] if best else PALETTE[0], "linewidth": 2.4 if best else 1.0}
        axes.plot([*heights, share], alpha=1.0 if best else 0.15 + 0.6 * share, zorder=3 if best else 2, **style)
    _label_axes(axes, space, low, high)
    return figure_as_svg(figure, "Values of each trial; the best is the thick line")


def _label_axes(axes: "Axes", space: Space, low: float, high: float) -> None:
    """Writes the ends of each axis, or its choices."""
    names = [*(plain_text(key.rpartition(".")[2], 16) for key in space), "score, %"]
    axes.set_xticks(range(len(names)), names, color=INK, fontsize=9)
    axes.set_yticks([])
    axes.set_ylim(-0.1, 1.1)
    axes.set_xlim(-0.35, len(names) - 0.65)
    axes.spines[:].set_visible(False)
    ends = [_ticks(dimension) for dimension in space.values()] + [{0.0: f"{low:.1f}", 1.0: f"{high:.1f}"}]
    for position, ticks in enumerate(ends):
        axes.axvline(position, color=GRID, linewidth=1.2, zorder=1)
        for height, text in ticks.items():
            place = {"va": "center", "ha": "right", "fontsize": 8, "color": INK}
            axes.text(position - 0.04, height, plain_text(text, 12), **place)  # type: ignore[arg-type]


def _ticks(dimension: Interval | Choices) -> dict[float, str]:
    if isinstance(dimension, Interval):
        return {0.0: f"{dimension.low:g}", 1.0: f"{dimension.high:g}"}
    return {dimension.place(value): value for value in dimension.values}


def _importance_bars(importances: Mapping[str, float]) -> str:
    figure = new_figure(0.6 + 0.32 * len(importances))
    axes = figure.add_subplot()
    style_axes(axes, "")
    names = [plain_text(key, 30) for key in importances]
    axes.barh(names[::-1], list(importances.values())[::-1], color=PALETTE[0], height=0.6)
    axes.grid(visible=False)
    axes.set_xlabel("share of importance", color=INK)
    return figure_as_svg(figure, "Which key matters")


def _table(space: Space, trials: Sequence[Trial]) -> str:
    ordered = sorted(trials, key=lambda trial: (trial.state != "ended", -(trial.score or 0.0)))
    head = ["trial", *space, "score, %", "epochs", "seconds", "state"]
    return str(_macros().trials(head, [_row(space, each) for each in ordered]))


def _row(space: Space, trial: Trial) -> tuple[list[str], str]:
    """Returns the numbers of a trial, and how it ended."""
    values = [trial.values[key] for key in space]
    texts = [f"{each:.4g}" if isinstance(each, float) else str(each) for each in values]
    score = "–" if trial.score is None else f"{trial.score:.2f}"
    epochs = max(trial.scores, default=0)
    states = {"ended": "trained to its end", "pruned": "ended early", "failed": f"failed: {trial.reason}"}
    return [str(trial.number), *texts, score, str(epochs), f"{trial.seconds:.0f}"], states[trial.state]

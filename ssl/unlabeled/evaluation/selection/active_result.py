"""All courses of active learning, and what each strategy saves against random labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from unlabeled.evaluation.selection.course import Course
from unlabeled.evaluation.selection.savings import Savings, savings
from unlabeled.evaluation.selection.strategies import RANDOM
from unlabeled.evaluation.statistics import SeedStatistics

TABLE = ("last top-1, %", "minus random's", "minus random's, mean of the rounds", "labels saved")


@dataclass(frozen=True, repr=False)
class Active:
    """All courses, of random and of each strategy with each seed."""

    courses: Sequence[Course]
    names: Sequence[str]  # of the images of the pool, by row
    classes: Sequence[str]
    page: Path

    @cached_property
    def savings(self) -> dict[str, Savings]:
        """Returns what each strategy saves; random against itself saves nothing."""
        of = {each.strategy: [c for c in self.courses if c.strategy == each.strategy] for each in self.courses}
        return {name: savings(courses, of[RANDOM]) for name, courses in of.items()}

    @property
    def counts(self) -> list[int]:
        """Returns the number of labels of each round."""
        return self.courses[0].counts

    @property
    def headline(self) -> str:
        """Returns a sentence: which strategies save labels, which cost some, and of which neither can be said."""
        others = [each for name, each in self.savings.items() if name != RANDOM]
        surely = [each for each in others if _sign(each)]
        verb = {1: "saves", -1: "costs"}
        told = [f"{each.strategy} {verb[_sign(each)]} {_absolute(each.saved)}" for each in surely]
        unsure = [each.strategy for each in others if not _sign(each)]
        told += [f"of {' and '.join(unsure)} neither can be told from chance"] if unsure else []
        last, target = self.counts[-1], self.savings[RANDOM].top1[-1].mean
        return f"Of the {last:,} labels by which random reaches {target:.2f} %: {'; '.join(told)}."

    @property
    def table(self) -> str:
        """Returns accuracies and savings as a Markdown table."""
        lines = [["", *TABLE], ["---", *["---:"] * len(TABLE)]]
        lines += [[name, *cells] for name, cells in table_cells(self)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def __repr__(self) -> str:
        return self.table

    def _repr_markdown_(self) -> str:
        """Returns the table for a notebook."""
        return self.table

    def lists(self) -> dict[str, str]:
        """Returns a list of names for each course, in the order in which it asked: its first n lines are n labels."""
        return {
            f"{each.strategy}_seed{each.seed}.txt": "".join(f"{self.names[row]}\n" for row in each.asked)
            for each in self.courses
        }


def _sign(each: Savings) -> int:
    """Returns 1 where a strategy saves labels, −1 where it costs some, 0 where the interval holds 0."""
    low, high = each.saved.interval or (0.0, 0.0)
    return int(low > 0) - int(high < 0)


def _absolute(saved: SeedStatistics) -> str:
    ends = sorted(abs(end) for end in saved.interval or ())
    return f"{abs(saved.mean):,.0f} [{', '.join(f'{end:,.0f}' for end in ends)}]"


def table_cells(found: Active) -> list[tuple[str, list[str]]]:
    """Returns the cells of each strategy's line, as in ``TABLE``."""
    return [
        (
            name,
            [
                number(each.top1[-1], ".2f"),
                *([""] * 3 if name == RANDOM else [number(each.last_gain, "+.2f"), number(each.gain, "+.2f")]),
                *([] if name == RANDOM else [number(each.saved, ",.0f")]),
            ],
        )
        for name, each in found.savings.items()
    ]


def number(value: SeedStatistics, form: str) -> str:
    """Returns a mean with its interval."""
    return f"{value.mean:{form}} {_interval(value, form)}"


def _interval(value: SeedStatistics, form: str) -> str:
    return "" if value.interval is None else f"[{value.interval[0]:{form}}, {value.interval[1]:{form}}]"

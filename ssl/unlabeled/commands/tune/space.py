"""What is searched: keys with ranges, in the grammar of Hydra's sweeps. No torch and no Optuna in here."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from unlabeled.commands.arguments.compose import overrides_of
from unlabeled.errors import UserError

MOST_VALUES = 1000  # of a range that is written out
REMEDY = "give a range as interval(a,b), tag(log,interval(a,b)), int(interval(a,b)), range(a,b,step) or choice(x,y)"


@dataclass(frozen=True)
class Interval:
    """Numbers between two others.

    Args:
        low, high: the ends, both included; ``low`` below ``high``.
        log: whether draws are even on a logarithmic scale.
        whole: whether only whole numbers are drawn.
    """

    low: float
    high: float
    log: bool
    whole: bool

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Values of which all must be allowed."""
        return (self.low, self.high)

    def place(self, value: Any) -> float:
        """Returns where a value lies between the ends, from 0 to 1, on the scale of the draws."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return float(value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Choices:
    """Some values, each a text as it stands behind the ``=`` of an override."""

    values: tuple[str, ...]

    @property
    def extremes(self) -> tuple[Any, ...]:
        return self.values

    def place(self, value: Any) -> float:
        """Returns the position of a value among the choices, from 0 to 1."""
        count = len(self.values)
        return 0.5 if count == 1 else self.values.index(str(value)) / (count - 1)


Space = Mapping[str, Interval | Choices]


def split(arguments: Sequence[str]) -> tuple[list[str], dict[str, Interval | Choices]]:
    """Returns the arguments without a range, and what those with a range may be.

    Raises:
        UserError: a range that Hydra cannot read, that is empty, or of a key that is given twice.
    """
    fixed: list[str] = []
    space: dict[str, Interval | Choices] = {}
    for argument in arguments:
        sweep = _sweep(argument)
        if sweep is None:
            fixed.append(argument)
            continue
        key = sweep.get_key_element()
        if key in space or any(each.startswith(f"{key}=") for each in arguments if each != argument):
            raise UserError(f"{key}: is given twice; a key has one value or one range")
        space[key] = _dimension(key, sweep)
    return fixed, space


def assignments(values: Mapping[str, Any]) -> list[str]:
    """``key=value`` each: what :func:`split` read as a choice stands as it was typed."""
    return [
        f"{key}={value}" if isinstance(value, str) else overrides_of({key: value})[0] for key, value in values.items()
    ]


def corners(space: Space) -> Iterator[dict[str, Any]]:
    """Few points in which every extreme of every key occurs: they are checked before the first trial."""
    rows = {key: dimension.extremes for key, dimension in space.items()}
    for number in range(max(map(len, rows.values()), default=0)):
        yield {key: values[min(number, len(values) - 1)] for key, values in rows.items()}


def _text(value: Any) -> str:
    return overrides_of({"": value})[0].partition("=")[2]


def _sweep(argument: str) -> Override | None:
    """The override, if it has a range; what Hydra cannot read is no range unless it begins like one."""
    value = argument.partition("=")[2]
    try:
        parsed: Override = OverridesParser.create().parse_override(argument)
    except HydraException as error:
        if value.startswith(("interval(", "tag(", "choice(", "range(", "int(", "float(", "shuffle(", "glob(")):
            raise UserError(f"{argument}: {REMEDY}") from error
        return None
    return parsed if parsed.is_sweep_override() else None


def _dimension(key: str, override: Override) -> Interval | Choices:
    sweep = override.value()
    allowed = {"log"} if isinstance(sweep, IntervalSweep) else set()
    if wrong := sorted(set(getattr(sweep, "tags", ()) or ()) - allowed):
        raise UserError(f"{key}: tag({wrong[0]},…) is not known: {REMEDY}")
    if isinstance(sweep, IntervalSweep):
        return _interval(key, sweep)
    if isinstance(sweep, RangeSweep):
        return Choices(tuple(_text(each) for each in _steps(key, sweep)))
    if isinstance(sweep, ChoiceSweep):
        values = tuple(override.sweep_string_iterator())
        return Choices(tuple(dict.fromkeys(values)))
    raise UserError(f"{key}: {REMEDY}")


def _interval(key: str, sweep: IntervalSweep) -> Interval:
    assert sweep.start is not None
    assert sweep.end is not None
    low, high, log = sweep.start, sweep.end, "log" in sweep.tags
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"{key}=interval({low},{high}): the first number must be below the second")
    if log and low <= 0:
        raise UserError(f"{key}=tag(log,interval({low},{high})): the first number must be above 0")
    return Interval(low, high, log, isinstance(low, int) and isinstance(high, int))


def _steps(key: str, sweep: RangeSweep) -> list[Any]:
    start, stop, step = sweep.start, sweep.stop, sweep.step
    assert start is not None
    assert stop is not None
    count = math.ceil((stop - start) / step - 1e-9) if step else 0
    if not 0 < count <= MOST_VALUES:
        raise UserError(f"{key}=range({start},{stop},{step}): must have 1 to {MOST_VALUES} values")
    values = [start + position * step for position in range(count)]
    return values if isinstance(step, int) and isinstance(start, int) else [float(f"{each:.12g}") for each in values]

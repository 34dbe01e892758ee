"""Whether a value is what its key may have, and if not, what it may: types with ranges, as signatures give them."""

import difflib
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Interval, Le, Len, Lt, MaxLen, MinLen

from unlabeled.core.ranges import LARGEST, Ascending, Distinct, Increasing, InFile
from unlabeled.errors import UserError

LISTS = (list, tuple, Sequence, Iterable)
SHOWN = 80  # letters of a value in a message


class Order(NamedTuple):
    """Of the elements of a list."""

    words: str
    holds: Callable[[Sequence[Any]], bool]


ORDERS = {
    Ascending: Order("in ascending order", lambda values: all(a <= b for a, b in itertools.pairwise(values))),
    Increasing: Order("each above the one before", lambda values: all(a < b for a, b in itertools.pairwise(values))),
    Distinct: Order("each once", lambda values: len(set(values)) == len(values)),
}


class _Anything(type):
    """So that ``Built`` has any attribute and takes any argument: it stands for ``nn`` in ``nn.Module`` as well."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Built

    def __getitem__(cls, key: Any) -> Any:
        return Built


class Built(metaclass=_Anything):
    """Stands in a signature for what is no plain value: a ``_target_`` builds it."""


WORDS = {bool: "true or false", NoneType: "null", Built: "what a _target_ builds"}


class Range(NamedTuple):
    """Of a number: which ends belong to it, and whether the type names them."""

    low: float
    high: float
    above: bool = False  # whether low itself is outside
    below: bool = False

    def holds(self, value: float) -> bool:
        """Never for what is not finite."""
        enough = value > self.low if self.above else value >= self.low
        return enough and (value < self.high if self.below else value <= self.high)


def check_value(value: Any, expected: Any, path: str) -> None:
    """Raise UserError for a value that its key cannot have.

    Args:
        value: plain, as a yaml has it.
        expected: a type with its range; ``Any`` takes all but numbers that are not finite.
        path: the key, for the message.
    """
    if fits(value, expected):
        return
    elements = _elements(value, expected)
    if elements:
        for position, (element, kind) in enumerate(zip(value, elements, strict=True)):
            check_value(element, kind, f"{path}[{position}]")
    raise UserError(f"{path}={_shown(value)}: {_suggestion(value, expected)}must be {in_words(expected, value)}")


def _suggestion(value: Any, expected: Any) -> str:
    """Names the choice that is spelled most like a value, where there is one."""
    kinds = _options(plain(expected)[0]) or [expected]
    words = [str(each) for kind in kinds for each in get_args(kind) if get_origin(kind) is Literal]
    close = difflib.get_close_matches(str(value), words, n=1)
    return f"did you mean {close[0]}? " if close else ""


def fits(value: Any, expected: Any) -> bool:
    """Whether a plain value is of a type and in its range."""
    kind, marks = plain(expected)
    if options := _options(kind):
        return any(fits(value, each) for each in options)
    if get_origin(kind) is Literal:
        return any(value == each and type(value) is type(each) for each in get_args(kind))
    if kind in (int, float):
        return _is_number(value, kind) and range_of(kind, marks).holds(value)
    if kind is str:
        return isinstance(value, str) and "\0" not in value and _right_length(value, [MinLen(1), *marks])
    if kind in (bool, NoneType):
        return isinstance(value, kind)
    if kind is Built:
        return isinstance(value, dict) and "_target_" in value
    if get_origin(kind) in LISTS:
        return _is_list(value, kind, marks)
    if get_origin(kind) is dict or kind is dict:
        return isinstance(value, dict)
    return not isinstance(value, float) or math.isfinite(value)  # no type: whoever takes it looks at it


def in_words(expected: Any, value: Any = None) -> str:
    """What is allowed, for a message or a table; an end that no type names is said where ``value`` is beyond it."""
    kind, marks = plain(expected)
    if options := _options(kind):
        return " or ".join(in_words(each, value) for each in options)
    if get_origin(kind) is Literal:
        return " or ".join(_shown(each) for each in get_args(kind))
    if kind in (int, float):
        words = "a whole number" if kind is int else "a number"
        return ", ".join([words, *_ends(kind, marks, value)])
    if kind is str:
        return "a path" if any(isinstance(mark, InFile) for mark in marks) else "text"
    if get_origin(kind) in LISTS:
        return _list_in_words(kind, marks)
    if kind is dict or get_origin(kind) is dict:
        return "key: value pairs"
    return WORDS.get(kind, "a finite value")


def plain(expected: Any) -> tuple[Any, list[Any]]:
    """A type without its marks, and those, of ``Annotated`` in ``Annotated`` too."""
    if get_origin(expected) is not Annotated:
        return expected, []
    inner, *marks = get_args(expected)
    kind, within = plain(inner)
    return kind, [*within, *marks]


def range_of(kind: type, marks: Sequence[Any]) -> Range:
    """Where a number may lie."""
    largest = LARGEST[kind]
    low, high, above, below = -largest, largest, False, False
    for mark in marks:
        if isinstance(mark, Gt | Interval) and mark.gt is not None:
            low, above = float(mark.gt), True  # type: ignore[arg-type]
        if isinstance(mark, Ge | Interval) and mark.ge is not None:
            low, above = mark.ge, False  # type: ignore[assignment]
        if isinstance(mark, Lt | Interval) and mark.lt is not None:
            high, below = mark.lt, True  # type: ignore[assignment]
        if isinstance(mark, Le | Interval) and mark.le is not None:
            high, below = mark.le, False  # type: ignore[assignment]
    return Range(low, high, above, below)


def takes(expected: Any, mark: type) -> bool:
    """Whether a type, or one of those it is made of, bears a mark."""
    kind, marks = plain(expected)
    if any(isinstance(each, mark) for each in marks):
        return True
    return get_origin(kind) is not Literal and any(takes(each, mark) for each in get_args(kind))


def alternatives(expected: Any) -> list[Any]:
    """The types, without their marks, of which a value must be one."""
    kind, _ = plain(expected)
    return [found for each in _options(kind) for found in alternatives(each)] or [kind]


def _options(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else ()


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)


def _right_length(value: Sequence[Any], marks: Sequence[Any]) -> bool:
    least, most = _lengths(marks)
    return least <= len(value) and (most is None or len(value) <= most)


def _lengths(marks: Sequence[Any]) -> tuple[int, int | None]:
    least, most = 0, None
    for mark in marks:
        least = mark.min_length if isinstance(mark, MinLen | Len) else least
        most = mark.max_length if isinstance(mark, MaxLen | Len) else most
    return least, most


def _is_list(value: Any, kind: Any, marks: Sequence[Any]) -> bool:
    elements = _kinds_of_elements(value, kind, marks)
    if elements is None or not all(map(fits, value, elements)):
        return False
    return all(ORDERS[type(mark)].holds(value) for mark in marks if type(mark) in ORDERS)


def _kinds_of_elements(value: Any, kind: Any, marks: Sequence[Any]) -> list[Any] | None:
    """A type for each element of a list; None for what is none, or of another length."""
    if not isinstance(value, list | tuple):
        return None
    arguments = get_args(kind)
    if get_origin(kind) is tuple and arguments[-1] is not ...:
        return list(arguments) if len(value) == len(arguments) else None
    return [arguments[0]] * len(value) if _right_length(value, marks) else None


def _elements(value: Any, expected: Any) -> list[Any] | None:
    """Types of the elements that are to blame, where only one kind of list is allowed and its length is right."""
    kind, marks = plain(expected)
    lists = [found for each in _options(kind) if (found := _elements(value, each))]
    if lists:
        return lists[0]
    if get_origin(kind) not in LISTS:
        return None
    return _kinds_of_elements(value, kind, marks)


def _ends(kind: type, marks: Sequence[Any], value: Any) -> list[str]:
    low, high, above, below = range_of(kind, marks)
    number = value if _is_number(value, float) else 0
    lowest = (
        [] if low == -LARGEST[kind] and not number < low else [f"{'above' if above else 'at least'} {_number(low)}"]
    )
    hidden = high == LARGEST[kind] and not number > high
    highest = [] if hidden else [f"{'below' if below else 'at most'} {_number(high)}"]
    if lowest and highest and not above and not below:
        return [f"from {_number(low)} to {_number(high)}"]
    return [" and ".join(lowest + highest)] if lowest + highest else []


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _list_in_words(kind: Any, marks: Sequence[Any]) -> str:
    arguments = get_args(kind)
    if get_origin(kind) is tuple and arguments[-1] is not ...:
        length = f"a list of {len(arguments)}"
        each = " / ".join(dict.fromkeys(in_words(argument) for argument in arguments))
    else:
        least, most = _lengths(marks)
        exact = f"a list of {least}" if least == most else f"a list of {least} or more"
        length = {0: "a list", 1: "a list of one or more"}.get(least, exact) if least != most else exact
        each = in_words(arguments[0])
    words = f"{length}, each {each}"
    orders = [ORDERS[type(mark)].words for mark in marks if type(mark) in ORDERS]
    return ", ".join([words, *orders])


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"

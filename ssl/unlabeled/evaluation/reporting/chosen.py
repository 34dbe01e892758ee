"""What was chosen for each number, and on which images: for Markdown a line each, for the page a table each."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.reporting.run_summary import format_value, is_list_of_mappings


class ChosenSettings(NamedTuple):
    """The hyper-parameters of one number, with the images that they were chosen on."""

    features: str
    protocol: str
    values: str
    lists: dict[str, Any]  # values too long for a line: one entry per draw


def chosen_settings(rows: Sequence[Row]) -> list[ChosenSettings]:
    """Returns one entry for each row but those of chance."""
    found = []
    for row in rows:
        if row.features != "chance":
            lists = {key: value for key, value in row.chosen.items() if is_list_of_mappings(value)}
            values = ", ".join(
                f"{key} = {format_value(value)}" for key, value in row.chosen.items() if key not in lists
            )
            found.append(
                ChosenSettings(row.features, row.protocol, values or ("in each draw" if lists else "nothing"), lists)
            )
    return found


class ChosenTable(NamedTuple):
    """What was chosen for one protocol: a line for each kind of features, a column for each key that differs."""

    protocol: str
    common: list[tuple[str, str]]  # keys with one value for all
    keys: list[str]
    lines: list[tuple[str, list[str]]]
    folded: list[tuple[str, str]]  # values too long for a cell: their keys, and as JSON


def chosen_tables(rows: Sequence[Row]) -> list[ChosenTable]:
    """Returns a table for each protocol of rows that are not of chance."""
    by_protocol: dict[str, list[Row]] = {}
    for row in rows:
        if row.features != "chance":
            by_protocol.setdefault(row.protocol, []).append(row)
    return [_chosen_table(protocol, each) for protocol, each in by_protocol.items()]


def _chosen_table(protocol: str, rows: Sequence[Row]) -> ChosenTable:
    each = [_cells(row.chosen) for row in rows]
    keys = list(dict.fromkeys(key for cells in each for key in cells))
    values = {key: [cells.get(key, "–") for cells in each] for key in keys}
    differing = [key for key in keys if len(set(values[key])) > 1]
    common = [(key, values[key][0]) for key in keys if key not in differing]
    lines = [(row.features, [values[key][place] for key in differing]) for place, row in enumerate(rows)]
    return ChosenTable(protocol, common, differing, lines if differing else [], _folded(rows))


def _cells(chosen: Mapping[str, Any]) -> dict[str, str]:
    """Returns values that fit into a cell; of each draw those that are numbers or words."""
    cells = {key: format_value(value) for key, value in chosen.items() if not _is_long(value)}
    draws: Any = chosen.get("of_each_draw")
    for key in draws[0] if is_list_of_mappings(draws) else ():
        if not any(_is_long(draw.get(key)) for draw in draws):
            drawn = [format_value(draw.get(key)) for draw in draws]
            cells[key] = drawn[0] if len(set(drawn)) == 1 else ", ".join(drawn)
    return cells


def _folded(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Returns all long values of a protocol as one text, by the kinds of features."""
    long = {row.features: {key: value for key, value in row.chosen.items() if _is_long(value)} for row in rows}
    keys = dict.fromkeys(key.replace("_", " ") for values in long.values() for key in values)
    text = json.dumps({name: values for name, values in long.items() if values}, indent=2, ensure_ascii=False)
    return [(" and ".join(keys), text)] if keys else []


def _is_long(value: Any) -> bool:
    return isinstance(value, Mapping) or is_list_of_mappings(value)

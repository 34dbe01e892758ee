"""Text of a report about its numbers, the same on the page and in Markdown: sentences and flat tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.reporting.report_sections import best_row
from unlabeled.evaluation.reporting.results_table import format_signed, format_uncertainty, short_names

# Parts of the provenance that are long: folded on the page
FOLDED = ("run_config", "config", "settings", "plan", "findings")
FIRST = ("command", "date", "seconds", "images_per_second", "checkpoint", "git", "machine", "versions", "data")
LABELS = "LABELS WERE USED: the network was trained with labels; compare it with no method that sees none."
CORRUPT_LISTED = 3  # names listed in a warning
MOST_LISTED = 4  # rows listed in a warning
BEATEN = {
    "random init": "random weights",
    "raw pixels": "raw pixels",
    "start": "the weights at the start",
}
Reference = Mapping[str, Any]  # as references_for gives it


def headline(rows: Sequence[Row]) -> str:
    """States the result in one sentence, of the best-known protocol, against all that it has to beat."""
    row = best_row(rows, lambda row: True)
    if row is None:
        return "No pretrained features were evaluated."
    beside = {other.features: other.top1 for other in rows if other.protocol == row.protocol}
    gains = [
        f"{format_signed(row.top1 - beside[features])} points against {name}"
        for features, name in BEATEN.items()
        if features in beside
    ]
    sure = " ".join(format_uncertainty(row))
    name = short_names([row.protocol])[row.protocol]
    told = f"{row.top1:.2f} % {sure + ' ' if sure else ''}of {row.n_test:,} test images by {name}"
    return "; ".join([told, *([", ".join(gains)] if gains else [])]) + "."


def report_warnings(
    rows: Sequence[Row], provenance: Mapping[str, Any], references: Sequence[Reference] = ()
) -> list[str]:
    """Returns every warning about the numbers once, with the rows that it concerns."""
    concerned: dict[str, list[str]] = {}
    for row in rows:
        for note in row.notes:
            concerned.setdefault(note, []).append(f"{row.features}, {row.protocol}")
    found = [f"{note} ({_listed(which)})" for note, which in concerned.items()]
    return found + _no_gain(rows) + _of_references(references) + _of_provenance(provenance)


def _no_gain(rows: Sequence[Row]) -> list[str]:
    found = []
    beaten = {"start": "those of the weights at the start", "random init": "those of random weights"}
    for features, name in (beaten | {"raw pixels": "raw pixels"}).items():
        beside = {row.protocol: row.top1 for row in rows if row.features == features}
        worse = [
            row.protocol
            for row in rows
            if row.features == "pretrained" and row.protocol in beside and row.top1 <= beside[row.protocol]
        ]
        found += [f"Pretrained features are no better than {name} ({_listed(worse)})."] if worse else []
    return found


def _of_references(references: Sequence[Reference]) -> list[str]:
    return [
        f"{each['name']}: differs from what was published in {_count(len(each['differs']))} listed below."
        for each in references
        if each.get("differs")
    ]


def _listed(names: Sequence[str]) -> str:
    """Lists the first few names, and how many more there are."""
    more = len(names) - MOST_LISTED
    return "; ".join(names[:MOST_LISTED]) + (f"; and {more} more" if more > 0 else "")


def _count(n: int) -> str:
    return f"{n} thing" if n == 1 else f"{n} things"


def _of_provenance(provenance: Mapping[str, Any]) -> list[str]:
    git, data, checkpoint = (provenance.get(name) or {} for name in ("git", "data", "checkpoint"))
    found = [LABELS] if isinstance(checkpoint, Mapping) and checkpoint.get("uses_labels") else []
    found += [f"{note}." for note in checkpoint.get("notes", ())] if isinstance(checkpoint, Mapping) else []
    if git.get("dirty"):
        found.append("The code had changes that are in no commit.")
    if isinstance(data, Mapping) and data.get("corrupt_images"):
        names, more = data.get("corrupt_names") or [], data["corrupt_images"] > CORRUPT_LISTED
        few = f" ({'; '.join(names[:CORRUPT_LISTED])}{'; …' if more else ''})" if names else ""
        found.append(f"{data['corrupt_images']} images could not be decoded and were left out{few}.")
    if isinstance(data, Mapping):
        found += [f"Of the data were left out: {each}." for each in data.get("left_out") or ()]
        found += [f"{warning}." for warning in data.get("warnings") or ()]
    return found


def _earlier_note(rows: Sequence[Row]) -> str:
    """Says which numbers an earlier evaluation has measured."""
    dates = [row.measured for row in rows if row.measured]
    old = {row.protocol: row.measured[:10] for row in rows if row.measured and row.measured != max(dates)}
    names = short_names([*old])
    days = {day: [names[protocol] for protocol in old if old[protocol] == day] for day in old.values()}
    told = "; ".join(f"{', '.join(each)} on {day}" for day, each in days.items())
    return f"Measured earlier, of the same checkpoint and images: {told}. " if told else ""


def measurement_notes(rows: Sequence[Row]) -> str:
    """Says on which images the numbers were measured, how sure they are, and how they compare."""
    measured = [row for row in rows if row.features != "chance"]
    if not measured:
        return ""
    shares = sorted({each["holdout"] for row in measured for each in _choices(row) if "holdout" in each})
    share = " and ".join(f"{100 * share:g} %" for share in shares)
    chosen = f"Hyper-parameters were chosen on {share} of train. " if shares else "No hyper-parameter was chosen. "
    n_test = measured[0].n_test
    error = max(math.sqrt(row.top1 * (100 - row.top1) / n_test) for row in measured)  # binomial
    return (
        f"The last epoch was evaluated, not the best one. {chosen}The test set was used once, for these numbers. "
        f"{measured[0].n_train:,} labelled train images, {n_test:,} labelled test images; from the number "
        f"of test images alone a score has a standard error of up to {error:.2f} points. {_plus_minus_note(measured)}"
        f"{_earlier_note(measured)}Columns are different protocols: compare within a column."
    )


def _choices(row: Row) -> list[Mapping[str, Any]]:
    """Returns the values chosen for a row, and in each of its draws."""
    of_draws = [each for value in row.chosen.values() if is_list_of_mappings(value) for each in value]
    return [row.chosen, *of_draws]


def _plus_minus_note(rows: Sequence[Row]) -> str:
    draws = max((len(row.draws) for row in rows), default=0)
    of_draws = ", or of the mean over draws and test images" if draws > 1 else ""
    interval = f"Brackets: 95 % intervals, by resampling test images{of_draws}. "
    deviation = f"±: standard deviation over up to {draws} draws. " if draws > 1 else ""
    return (interval if any(row.interval for row in rows) else "") + deviation


def provenance_facts(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the provenance as flat pairs, the most important first; without the folded parts."""
    order = [key for key in FIRST if key in provenance] + [key for key in provenance if key not in FIRST]
    said = {key: provenance[key] for key in order if key not in FOLDED}
    if said.get("images_per_second", 0) is None:
        said["images_per_second"] = "no image was read, all features came from the cache"
    return flatten(said)


def provenance_groups(provenance: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Returns the provenance by its first keys; single values come first, under ``this evaluation``."""
    groups: dict[str, list[tuple[str, str]]] = {"this evaluation": []}
    for key, value in provenance_facts(provenance):
        group, dot, rest = key.partition(".")
        groups.setdefault(group if dot else "this evaluation", []).append((rest if dot else key, value))
    return groups


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flattens nested values to pairs of ``a.b`` and text."""
    lines: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            lines += flatten(value, f"{prefix}{key}.")
        else:
            lines.append((f"{prefix}{key}", format_value(value)))
    return lines


def format_reference(each: Reference) -> list[str]:
    """Formats the cells of a published number below REFERENCE_HEAD."""
    numbers = [_number(each.get(key)) for key in ("published", "ours")]
    difference = each.get("difference")
    points = "–" if difference is None else format_signed(difference)
    differs = "; ".join(each.get("differs") or []) or "nothing known"
    protocols = [str(each["protocol"]), str(each.get("ours_protocol") or "–")]
    return [str(each["name"]), *protocols, *numbers, points, differs, str(each.get("source", ""))]


REFERENCE_HEAD = ["recipe", "published by", "here by", "published", "here", "difference", "what differs", "source"]


def is_list_of_mappings(value: Any) -> bool:
    """Says whether a value has one entry for each draw."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(each, Mapping) for each in value)


def format_value(value: Any) -> str:
    """Formats a value for a reader: six digits, lists without brackets."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {format_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return ", ".join(format_value(item) for item in value) or "none"
    if value is None:
        return "unknown"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.2f}"

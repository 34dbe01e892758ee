"""Turns records of metrics into findings; gives the same result during training and from a copied folder."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from unlabeled.core.escaping import escaped
from unlabeled.health.facts import RunFacts
from unlabeled.health.rules import Rule, Severity, rules_for
from unlabeled.health.signals import MetricRecord

LARGEST = sys.float_info.max  # NaN compares as false
ORDER: tuple[Severity, ...] = ("alarm", "warning", "note")


class Finding(NamedTuple):
    """One unhealthy condition, in a sentence."""

    name: str
    severity: Severity
    since: int  # step of the first unhealthy value
    last: int  # step of the last unhealthy value in a row
    holds: bool  # whether the newest value is still unhealthy
    collapse: bool  # whether the finding means that the run has collapsed
    sentence: str


@dataclass
class _Stretch:
    """A series of consecutive unhealthy values."""

    since: int
    last: int
    value: float
    turns: int = 1
    holds: bool = True


class Diagnosis:
    """Follows a run and finds what is unhealthy: at most one finding for each rule.

    Args:
        facts: of the run.
    """

    def __init__(self, facts: RunFacts) -> None:
        self.facts, self.rules = facts, list(rules_for(facts))
        self.last_step = 0
        self._before: dict[str, float] = {}
        self._first: dict[str, float] = {}
        self._most: dict[str, float] = {}
        self._now: dict[tuple[str, str], _Stretch] = {}  # by rule and part of the network; also too short ones
        self._found: dict[str, tuple[str, _Stretch]] = {}  # the last long enough, by rule

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds one set of metrics as the loggers get it; values that are not finite count as missing."""
        numbers = {name: float(v) for name, v in metrics.items() if isinstance(v, int | float) and abs(v) <= LARGEST}
        self._first = numbers | self._first
        self._most |= {name: max(value, self._most.get(name, value)) for name, value in numbers.items()}
        record = MetricRecord(numbers, self._before, self._first, self._most, self.facts)
        for rule in self.rules:
            for of, value in rule.values(record).items():
                self._follow(rule, of, step, value)
        self._before |= numbers
        self.last_step = max(self.last_step, step)

    def _follow(self, rule: Rule, of: str, step: int, value: float) -> None:
        key = rule.name, of
        stretch = self._now.get(key)
        if step < rule.after or not rule.holds(value, self.facts):
            if stretch is not None:
                self._now.pop(key).holds = False
            return
        if stretch is None:
            stretch = self._now[key] = _Stretch(step, step, value)
        else:
            stretch.last, stretch.value, stretch.turns = step, value, stretch.turns + 1
        long_enough = stretch.turns >= rule.turns and step - stretch.since >= rule.steps(self.facts)
        if long_enough and not self._holds_elsewhere(rule.name, stretch):
            self._found[rule.name] = (of, stretch)

    def _holds_elsewhere(self, rule: str, stretch: _Stretch) -> bool:
        """Returns whether another part of the network already has this finding."""
        return rule in self._found and self._found[rule][1].holds and self._found[rule][1] is not stretch

    @property
    def findings(self) -> list[Finding]:
        """Returns the findings, the most severe and earliest first; none for a healthy run."""
        found = [_finding(rule, *self._found[rule.name]) for rule in self.rules if rule.name in self._found]
        return sorted(found, key=lambda finding: (ORDER.index(finding.severity), finding.since))

    def describe(self) -> str:
        """Returns a line for each finding, or one that there is none, and how much of the run was examined."""
        of = f" of {self.facts.total_steps:,}" if self.facts.total_steps else ""
        upto = f"after {self.last_step:,}{of} steps ({escaped(self.facts.objective)})"
        lines = [f"{finding.severity}: {finding.sentence}" for finding in self.findings]
        return "\n".join([*lines, f"{len(lines)} findings, {upto}"] if lines else [f"healthy: no finding, {upto}"])


def _finding(rule: Rule, of: str, stretch: _Stretch) -> Finding:
    what = rule.what.format(value=stretch.value, of=escaped(of.replace("_", " ")))
    when = f"since step {stretch.since}" if stretch.holds else f"from step {stretch.since} to {stretch.last}"
    sentence = f"{what[:1].upper()}{what[1:]}, {when}: {escaped(rule.meaning)}. Try: {escaped(rule.remedy)}."
    return Finding(rule.name, rule.severity, stretch.since, stretch.last, stretch.holds, rule.collapse, sentence)

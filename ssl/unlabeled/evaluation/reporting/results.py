"""What an evaluation has found, for Python."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.reporting.results_table import accuracy_table


@dataclass(frozen=True, repr=False)
class Results:
    """The rows of a report. ``results["linear"].top1`` is the number of the pretrained features.

    ``rows`` holds those of the random network, raw pixels and chance too; ``report`` is the page.
    """

    rows: Sequence[Row]
    report: Path

    @property
    def table(self) -> str:
        """Top-1 in per cent, markdown."""
        return accuracy_table(self.rows)

    def __repr__(self) -> str:
        return self.table

    def _repr_markdown_(self) -> str:
        """How a notebook shows it."""
        return self.table

    def __getitem__(self, protocol: str) -> Row:
        """The row of the pretrained features under a protocol, given whole or by its first words: ``"linear"``."""
        return self.row(protocol)

    def row(self, protocol: str, features: str = "pretrained") -> Row:
        """The first row of these features under a protocol, given whole or by its first words.

        Raises:
            KeyError: there is none; names those that there are.
        """
        known = [row for row in self.rows if row.features == features]
        exact = [row for row in known if row.protocol == protocol]
        found = exact or [row for row in known if row.protocol.startswith(protocol)]
        if not found:
            raise KeyError(f"{protocol}: no such protocol of {features}; there are {[row.protocol for row in known]}")
        return found[0]

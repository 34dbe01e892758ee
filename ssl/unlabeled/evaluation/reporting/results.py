"""Results of an evaluation as a Python object."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.reporting.results_table import accuracy_table


@dataclass(frozen=True, repr=False)
class Results:
    """Holds the rows of a report. ``results["linear"].top1`` is the number of the pretrained features.

    ``rows`` also holds the random network, raw pixels and chance; ``report`` is the path of the page.
    """

    rows: Sequence[Row]
    report: Path

    @property
    def table(self) -> str:
        """Returns top-1 in per cent as a markdown table."""
        return accuracy_table(self.rows)

    def __repr__(self) -> str:
        return self.table

    def _repr_markdown_(self) -> str:
        """Returns the table for a notebook."""
        return self.table

    def __getitem__(self, protocol: str) -> Row:
        """Returns the pretrained row of a protocol, given whole or by its first words: ``"linear"``."""
        return self.row(protocol)

    def row(self, protocol: str, features: str = "pretrained") -> Row:
        """Returns the first row of these features for a protocol, given whole or by its first words.

        Raises:
            KeyError: there is none; the message names the existing protocols.
        """
        known = [row for row in self.rows if row.features == features]
        exact = [row for row in known if row.protocol == protocol]
        found = exact or [row for row in known if row.protocol.startswith(protocol)]
        if not found:
            raise KeyError(f"{protocol}: no such protocol of {features}; there are {[row.protocol for row in known]}")
        return found[0]

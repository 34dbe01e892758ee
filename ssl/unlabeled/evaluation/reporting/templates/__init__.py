"""The macros of the report's page, as functions that give HTML."""

from pathlib import Path
from typing import Any

from unlabeled.pages.template import macros

FOLDER = Path(__file__).parent


def report_macros() -> Any:
    """Returns the macros of ``report.html``."""
    return macros(FOLDER / "report.html")

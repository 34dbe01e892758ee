"""Compares two evaluated runs (``unlabeled compare A B``) or the layers of two networks (``first=A second=B``)."""

from collections.abc import Sequence
from typing import Any

from unlabeled.commands.arguments.data_path import with_data_source
from unlabeled.commands.arguments.sides import compose_side
from unlabeled.commands.config import run_module
from unlabeled.commands.importing import heavy_imports

USAGE = """Compares two evaluated runs by a paired test, image by image; several seeds of each in brackets:

  unlabeled compare outputs/A outputs/B
  unlabeled compare 'compare=[[outputs/A0,outputs/A1],[outputs/B0,outputs/B1]]' report_dir=outputs/A-and-B

Compares the layers of two networks, trained or not, by CKA; all of its keys: unlabeled compare first=A second=B --help

  unlabeled compare first=outputs/A second=outputs/B out=cka.png"""


def main(arguments: Sequence[str]) -> None:
    """Whichever of the two is meant: that of networks knows the keys first and second."""
    if any(argument.startswith(("first=", "second=")) for argument in arguments):
        run_module("representation_compare", compare_networks, with_data_source(arguments))
    elif not arguments or {"--help", "-h"} & set(arguments):
        print(USAGE)
    else:
        from unlabeled.commands.evaluate.evaluate import main as evaluate

        evaluate(arguments)


def compare_networks(config: Any, resolved: dict[str, Any]) -> None:
    """The layers of two networks, whose own keys are checked before torch is imported."""
    for which in ("first", "second"):
        compose_side(which, resolved[which])
    with heavy_imports():
        from unlabeled.commands.compare_representations import compare_command
    compare_command(config, resolved)

"""Compares two evaluated runs (``unlabeled compare A B``) or the layers of two networks (``first=A second=B``)."""

from collections.abc import Sequence

from unlabeled.commands.config import run_module

USAGE = """Compares two evaluated runs by a paired test, image by image; several seeds of each in brackets:

  unlabeled compare outputs/A outputs/B
  unlabeled compare 'compare=[[outputs/A0,outputs/A1],[outputs/B0,outputs/B1]]' report_dir=outputs/A-and-B

Compares the layers of two networks, trained or not, by CKA; all of its keys: unlabeled compare first=A second=B --help

  unlabeled compare first=outputs/A second=outputs/B out=cka.png"""


def main(arguments: Sequence[str]) -> None:
    """Whichever of the two is meant: that of networks knows the keys first and second."""
    if any(argument.startswith(("first=", "second=")) for argument in arguments):
        from unlabeled.commands.compare_representations import compare_command

        run_module("representation_compare", compare_command, arguments)
    elif not arguments or {"--help", "-h"} & set(arguments):
        print(USAGE)
    else:
        from unlabeled.commands.evaluate.evaluate import main as evaluate

        evaluate(arguments)

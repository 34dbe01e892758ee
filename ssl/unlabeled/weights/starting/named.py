"""The weights that a command names by ``run=``, ``checkpoint=`` or ``weights=``."""

from collections.abc import Iterator
from contextlib import contextmanager

from unlabeled.core.places import check_one_named, checkpoint_path
from unlabeled.errors import UserError
from unlabeled.weights.checkpoint import Checkpoint
from unlabeled.weights.load import read_checkpoint
from unlabeled.weights.starting.description import describe
from unlabeled.weights.starting.libraries import READERS
from unlabeled.weights.starting.start import read_start


def read_named(run: str | None, checkpoint: str | None, weights: str | None) -> Checkpoint:
    """Reads the one of the three that is given; with what a library says of its weights.

    Raises:
        UserError: several or none are given, there is no such thing, or it is no checkpoint.
    """
    check_one_named(run, checkpoint, weights)
    if weights is None:
        return read_checkpoint(checkpoint_path(run, checkpoint))
    found = read_start(weights, "backbone", None).checkpoint
    if weights.partition(":")[0] in READERS and ":" in weights:
        found.described = describe(weights)
    return found


@contextmanager
def named_as_given(checkpoint: Checkpoint, weights: str | None) -> Iterator[None]:
    """Lets mistakes that are found in ``weights=`` name it so, not as a checkpoint."""
    try:
        yield
    except UserError as error:
        if weights is None:
            raise
        raise UserError(str(error).replace(f"checkpoint={checkpoint.path}", f"weights={weights}", 1)) from error

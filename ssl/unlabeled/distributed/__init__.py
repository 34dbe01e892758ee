"""Communication between processes; the collectives can be imported from here."""

from unlabeled.distributed.collectives import (
    first_alone,
    gather,
    gather_rows,
    local_only,
    maximum,
    mean,
    rank,
    total,
    world_size,
)

__all__ = ["first_alone", "gather", "gather_rows", "local_only", "maximum", "mean", "rank", "total", "world_size"]

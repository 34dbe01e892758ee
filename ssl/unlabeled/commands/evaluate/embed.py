"""Features of images as a table: ``unlabeled embed run=outputs/NAME out=features.parquet``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from unlabeled.commands.arguments.typed import typed_command
from unlabeled.commands.build.embedding import build_of_checkpoint
from unlabeled.commands.config import run_module
from unlabeled.core.environment import git_state
from unlabeled.distributed import rank
from unlabeled.distributed.launch import process_group
from unlabeled.evaluation.embedding.table import Written, check_out, embed_to_file
from unlabeled.evaluation.provenance import checkpoint_provenance
from unlabeled.weights.starting.named import read_named


def embed(config: Any, resolved: dict[str, Any], log: Callable[[str], None] = print) -> Written:
    """Runs all images through one backbone and writes its features.

    Args:
        config: as composed from ``conf/embed.yaml``.
        resolved: the same as plain values.
        log: takes lines.

    Raises:
        UserError: a mistake; or ``out`` is there and was made otherwise.
    """
    out = Path(resolved["out"]).expanduser()
    check_out(out)
    checkpoint = read_named(resolved["run"], resolved["checkpoint"], resolved["weights"])
    with process_group(config.accelerator):
        embedder, images = build_of_checkpoint(config, checkpoint)
        if rank() == 0 and resolved["weights"] is not None:
            origin = f"weights={resolved['weights']} ({checkpoint.layout}: {checkpoint.part})"
            log("; ".join([origin, *checkpoint.notes]))
        about = {
            "command": typed_command(),
            "checkpoint": checkpoint_provenance(checkpoint),
            "data": images.data.splits.description,
            "git": git_state(),
        }
        written = embed_to_file(out, embedder, images, about, log)
        if rank() == 0:
            _tell(out, written, log)
    return written


def _tell(out: Path, written: Written, log: Callable[[str], None]) -> None:
    if not written.files:
        log(f"{out} is there already, made with the same settings")
        return
    count, width = written.shape
    splits = ", ".join(f"{rows:,} {split}" for split, rows in written.counts.items())
    what = "image is" if written.corrupt == 1 else "images are"
    left = f"; {written.corrupt:,} corrupt {what} left out" if written.corrupt else ""
    log(
        f"{out}: {count:,} images ({splits}) with {width:,} features each, {written.images_per_second:,.0f} "
        f"images/s{left}"
    )
    log(f"also written: {', '.join(str(each) for each in written.files[1:])}")


if __name__ == "__main__":
    run_module("embed", embed)

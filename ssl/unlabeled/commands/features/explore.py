"""A page to look through images without labels: ``unlabeled explore run=outputs/NAME``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from unlabeled.commands.build.embedding import build_images, build_of_checkpoint
from unlabeled.commands.config import run_module
from unlabeled.core.writing import check_file
from unlabeled.evaluation.embedding.stored import read_embeddings
from unlabeled.evaluation.embedding.stream import Embedder, Images
from unlabeled.evaluation.exploring.images import Explored, look_at, look_beside
from unlabeled.evaluation.exploring.write import write_page
from unlabeled.weights import folder_of
from unlabeled.weights.starting.named import read_named

PAGE = "explore.html"


def explore(config: Any, resolved: dict[str, Any], log: Callable[[str], None] = print) -> Path:
    """Makes the page of a network's features, or of features that lie in a file.

    Args:
        config: as composed from ``conf/explore.yaml``.
        resolved: the same as plain values.
        log: takes lines.

    Raises:
        UserError: a mistake, or the page cannot be written.
    """
    if resolved["embeddings"] is not None:
        table = Path(resolved["embeddings"]).expanduser()
        embeddings = read_embeddings(table, f"embeddings={resolved['embeddings']}")
        images = build_images(config, None)
        explored = look_beside(embeddings, images, resolved["images"], resolved["seed"], log)
        out = page_path(resolved, table.parent)
        return _write(out, explored, [str(table), images.data.splits.description], resolved, log)
    checkpoint = read_named(resolved["run"], resolved["checkpoint"], resolved["weights"])
    out = page_path(resolved, folder_of(checkpoint.path) if resolved["weights"] is None else Path())
    check_file("out", out)
    built = build_of_checkpoint(as_embedding(config), checkpoint)
    return explore_built(out, *built, str(resolved["weights"] or checkpoint.path), resolved, log)


def explore_built(
    out: Path, embedder: Embedder, images: Images, origin: str, keys: dict[str, Any], log: Callable[[str], None]
) -> Path:
    """Makes the page of a network that is built; ``origin`` says what it is."""
    explored = look_at(embedder, images, keys["images"], keys["seed"], log)
    return _write(out, explored, [origin, images.data.splits.description], keys, log)


def _write(out: Path, explored: Explored, about: list[str], keys: dict[str, Any], log: Callable[[str], None]) -> Path:
    write_page(out, explored, about, log, keys["clusters"], keys["label_next"], keys["seed"])
    log(f"the page is {out}, {out.stat().st_size / 2**20:.2g} MiB; it needs no other file")
    return out


def page_path(resolved: dict[str, Any], beside: Path) -> Path:
    """Returns the file of the page: ``out``, else in the folder of the run or of the file."""
    return Path(resolved["out"]).expanduser() if resolved["out"] else beside / PAGE


def as_embedding(config: Any) -> Any:
    """The configuration with what an embedding needs besides: neighbours go by the cosine, whatever the length."""
    return OmegaConf.create({**config, "normalize": False})


if __name__ == "__main__":
    run_module("explore", explore)

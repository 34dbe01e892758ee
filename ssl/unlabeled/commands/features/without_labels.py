"""How a run ends that has no labelled test images: with a page to look through them, and with a report."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from unlabeled.commands.build.network import build_backbone, build_objective, projector_of
from unlabeled.commands.features.explore import PAGE
from unlabeled.core.environment import git_state, machine, versions
from unlabeled.core.writing import kept_anyway
from unlabeled.data.fingerprint import fingerprint
from unlabeled.data.module import DataModule
from unlabeled.errors import UserError
from unlabeled.evaluation.embedding.stream import Embedder, Images
from unlabeled.evaluation.exploring.images import Explored, look_at
from unlabeled.evaluation.exploring.write import write_page
from unlabeled.evaluation.features import Features, apply_head
from unlabeled.evaluation.provenance import checkpoint_provenance, read_json
from unlabeled.evaluation.reporting.report_sections import evaluation_images
from unlabeled.evaluation.selection.clusters import Clusters, own_clusters
from unlabeled.objective import HasClusters
from unlabeled.representation.analysis import Analysis, AnalysisSubject, Settings, analyse
from unlabeled.representation.unlabelled_report import LookedAt, write_unlabelled_report
from unlabeled.views.pipeline import Views
from unlabeled.weights import Checkpoint, load_backbone, load_objective, read_checkpoint

if TYPE_CHECKING:
    from unlabeled.objective import Backbone

# Images of the measures, and of those in several views: a tenth of what unlabeled represent takes (our choice: on two
# cores about as long as an epoch of a thousand images)
MEASURED, IN_VIEWS, VIEWS, WINDOW = 1024, 64, 4, (11, 100)

Log = Callable[[str], None]


def write_pages(
    config: DictConfig, data: DataModule, checkpoint_file: Path, command: str, warnings: Sequence[str], log: Log
) -> list[Path]:
    """Writes ``explore.html`` into the run's folder and ``report/report.html``; returns both.

    Args:
        config: of the run, resolved.
        data: what the run has loaded already.
        checkpoint_file: its last state.
        command: that made it.
        warnings: what is wrong with the run, a sentence each.
        log: takes lines.
    """
    run_dir, most = Path(config.run_dir), config.explore_images
    checkpoint = read_checkpoint(checkpoint_file)
    subject = _subject(config, checkpoint, data)
    described = subject.views.evaluation()
    images = Images(data, min(config.batch_size, 256))
    embedder = Embedder(subject.backbone, subject.views.evaluation_view, described, subject.device)
    explored = look_at(embedder, images, most, config.seed, log)
    about = [str(checkpoint_file), data.splits.description]
    page = run_dir / PAGE
    own = _own_clusters(config, checkpoint, explored)
    found = write_page(page, explored, about, log, own, seed=config.seed)
    looked_at = LookedAt(explored, found, evaluation_images(_decode(images), subject.views))
    analysis = _analysis(subject, config, log)
    told = _provenance(config, checkpoint, subject, command)
    training = read_json(run_dir / "training.json")

    def write(folder: Path) -> None:
        write_unlabelled_report(
            *(folder, looked_at, analysis, warnings, told, run_dir / "metrics.jsonl", training.get("collapsed_at")),
            f"../{PAGE}",
        )

    kept_anyway(run_dir / "report", write)
    return [page, run_dir / "report" / "report.html"]


def _subject(config: DictConfig, checkpoint: Checkpoint, data: DataModule) -> AnalysisSubject:
    backbone: Backbone = load_backbone(checkpoint, build_backbone(config.backbone, config.seed))
    views: Views = instantiate(config.views)
    views.compiles = False
    gpu = config.trainer.accelerator != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    return AnalysisSubject(backbone, projector_of(config, checkpoint), views, data, data.splits.train, device)


def _own_clusters(config: DictConfig, checkpoint: Checkpoint, explored: Explored) -> Clusters | None:
    """Returns the clusters that the run's method makes; None where it makes none."""
    objective = build_objective(config)
    if not isinstance(objective, HasClusters):
        return None
    load_objective(checkpoint, objective)
    head = objective.clusters()
    x = torch.from_numpy(explored.embeddings.x)
    nothing = torch.full((len(x),), -1)
    return own_clusters(explored.embeddings.x, apply_head(head, Features(x, nothing, nothing)).x.numpy())


def _decode(images: Images) -> Any:
    def decode(split: str, ids: Any) -> Any:
        return [images.sources[split].decode(id) for id in ids]

    return decode


def _analysis(subject: AnalysisSubject, config: DictConfig, log: Log) -> Analysis | None:
    """Measures the network; None, said in a line, where there are too few images for it."""
    settings = Settings(MEASURED, IN_VIEWS, VIEWS, WINDOW, min(config.batch_size, 256), config.seed)
    try:
        return analyse(subject, settings, lambda line: None)
    except UserError as error:
        log(f"rank and invariance are not measured: {error}")
        return None


def _provenance(config: DictConfig, checkpoint: Checkpoint, subject: AnalysisSubject, command: str) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": checkpoint_provenance(checkpoint),
        "data": {
            "description": subject.data.splits.description,
            "fingerprint": fingerprint(subject.source, moved=True),
            "corrupt_images": len(subject.data.corrupt),
        },
        "transform": subject.views.evaluation(),
        "seed": config.seed,
        "git": git_state(),
        "versions": versions(),
        "machine": machine(),
        "run_config": plain,
    }

"""SCAN and self-labelling as runs: neighbours are found once, and the chain of both goes on where it stopped."""

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from safetensors.torch import load_file

import unlabeled
from tests.small import small_run
from unlabeled.commands.arguments.compose import overrides_of
from unlabeled.commands.arguments.data_path import with_data_source
from unlabeled.commands.build.companions import FILE
from unlabeled.commands.build.network import build_objective
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.commands.cluster import cluster as command
from unlabeled.commands.train.train import train as pretrain
from unlabeled.errors import UserError
from unlabeled.evaluation.features import unit_rows
from unlabeled.training.run import Run
from unlabeled.weights import load_objective, read_checkpoint

SHORT = ("data=digits", "max_steps=2", "num_workers=0", "plan=null")
KEYS: dict[str, Any] = {
    "max_steps": 2,
    "batch_size": 64,
    "online_knn": None,
    "pictures": None,
    "num_workers": 0,
    "trainer": {"accelerator": "cpu", "precision": "32-true"},
    "probe": {"knn": {"k": [20]}, "kmeans": {"restarts": 1}},
    "log_every_n_steps": 1,
}


def trained(config: DictConfig) -> Run:
    resolved = open_run(config)
    run = build_run(config, resolved)
    with closing(run):
        run.fit(resolved)
    return run


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "digits"
    trained(small_run("simclr", folder, *SHORT))
    return folder


@torch.no_grad()
def cosines(pretrained: Path, run: Run) -> torch.Tensor:
    """Of what the projector of the pretrained run makes of all training images, [N, N]."""
    checkpoint = read_checkpoint(pretrained / "checkpoints" / "last.ckpt")
    assert checkpoint.config is not None
    objective: Any = load_objective(checkpoint, build_objective(OmegaConf.create(checkpoint.config))).eval()
    source = run.data.splits.train
    seen = run.module.views.evaluation_view(torch.stack([source.decode(number) for number in range(len(source))]))
    z = unit_rows(objective.projector(objective.backbone(seen))).double()
    return z @ z.T


def test_neighbours_are_the_nearest_by_the_pretext_embeddings_and_a_run_that_goes_on_needs_the_same_file(
    pretrained: Path, tmp_path: Path
) -> None:
    config = small_run("scan", tmp_path / "run", *SHORT, f"weights={pretrained}", "max_steps=1")
    run = trained(config)
    table, found = load_file(tmp_path / "run" / FILE)["neighbours"], cosines(pretrained, run)
    assert table.shape == (1347, 21)
    assert torch.equal(table[:, 0], torch.arange(1347))
    expected = found.fill_diagonal_(-2).topk(20).values
    torch.testing.assert_close(found.gather(1, table[:, 1:]), expected, rtol=0, atol=1e-6)
    before = (tmp_path / "run" / FILE).stat().st_mtime_ns
    config.update({"max_steps": 2, "resume": "override"})
    trained(config)
    assert (tmp_path / "run" / FILE).stat().st_mtime_ns == before
    (tmp_path / "run" / FILE).unlink()
    with pytest.raises(UserError, match=r"neighbours\.safetensors: is gone, the neighbours that this run began with"):
        trained(config)


def test_a_plan_looks_for_no_neighbours_and_those_of_random_weights_are_called_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_run("scan", tmp_path / "run", *SHORT[:-1], "plan_only=true")
    build_run(config, open_run(config)).close()
    assert not (tmp_path / "run" / FILE).exists()
    config = small_run("scan", tmp_path / "run", *SHORT)
    build_run(config, open_run(config)).close()
    assert "by the cosine of features of RANDOM weights: give weights=RUN" in capsys.readouterr().out
    assert (tmp_path / "run" / FILE).exists()


def test_the_chain_goes_on_where_it_stopped_and_compares_its_clusters_with_k_means_of_the_start(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(config: DictConfig, *rest: Any) -> Any:
        if "SelfLabel" in config.objective._target_:
            raise SystemExit(130)
        return pretrain(config, *rest)

    given = KEYS | {"out": tmp_path / "c"}
    with monkeypatch.context() as patch:
        patch.setattr(command, "train", stopped)
        with pytest.raises(KeyboardInterrupt):
            unlabeled.cluster(pretrained, **given)
    first = (tmp_path / "c" / "scan" / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    found = unlabeled.cluster(pretrained, **given)
    assert (tmp_path / "c" / "scan" / "checkpoints" / "last.ckpt").stat().st_mtime_ns == first
    assert [line[0] for line in found.table] == ["k-means of the features at the start", "SCAN", "Self-labelling"]
    assert all(0 <= float(number) <= 100 for line in found.table for number in line[1:] if float(number) > 1)
    page = found.page.read_text()
    assert 'href="self_label/report/report.html"' in page
    assert "Clusters and their most certain images" in (found.runs[1] / "report" / "report.html").read_text()
    views = OmegaConf.load(found.runs[0] / "config.yaml").views  # an eighth and half of the run's 8 pixels
    assert [views.size, *(views.groups[1].operations[n][key] for n, key in ((1, "padding"), (3, "size")))] == [8, 1, 4]
    with pytest.raises(UserError, match=r"^views\.size=24: the run saw images of 8 pixels"):
        unlabeled.cluster(pretrained, **given, views={"size": 24})
    scan, labelled = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in found.runs)
    assert labelled["weights"]["origin"] == str(found.runs[0].absolute())
    assert (scan["weights"]["of"], labelled["weights"]["of"]) == ("backbone", "all")
    with pytest.raises(UserError, match=r"holds a run with another objective\.clusters"):
        unlabeled.cluster(pretrained, **given, clusters=5)


def test_other_images_are_decoded_as_those_of_the_run(pretrained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for number in range(24):
        place = tmp_path / "first" / "train" / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (10 * number, 0, 0)).save(place)
    shutil.copytree(tmp_path / "first", tmp_path / "moved")
    small = ("max_steps=1", "num_workers=0", "plan=null", "data=folder", "data.image_size=10")
    trained(small_run("simclr", run, *small, f"data.path={tmp_path}/first"))
    for given in ({"data": tmp_path / "moved"}, {"data": {"path": str(tmp_path / "moved")}}):
        others = ["max_steps=1", *with_data_source(overrides_of(given))]
        keys = {"run": str(run), "out": None, "clusters": 2, "scan": "scan_cifar10_cpu", "self_label": None}
        config = command._config(keys, "scan", str(run), tmp_path / "c", others)
        command._with_parts_of(run / "checkpoints" / "last.ckpt", [config], others, lambda line: None)
        assert (config.data.path, config.data.image_size) == (str(tmp_path / "moved"), 10)


def test_a_probe_of_clusters_is_refused_for_a_method_that_makes_none(pretrained: Path) -> None:
    with pytest.raises(UserError, match=r"^probe\.clusters: SimCLR makes no clusters of its own: give probe=kmeans"):
        unlabeled.evaluate(pretrained, probe="clusters", num_workers=0)

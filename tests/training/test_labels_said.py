"""A run that is trained with labels says so in its log, checkpoint, report and card; no other method reads them."""

import json
from contextlib import closing
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

import unlabeled
from tests.small import batch_of, members, small_objective, small_run
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.evaluation.provenance import checkpoint_provenance
from unlabeled.evaluation.reporting.run_summary import report_warnings
from unlabeled.objective import Progress
from unlabeled.views.key import ViewKey
from unlabeled.weights import read_checkpoint


def train(folder: Path, objective: str) -> Path:
    config = small_run(objective, folder, "data=digits", "max_steps=2", "num_workers=0", "health=none", "plan=null")
    resolved = open_run(config)
    run = build_run(config, resolved)
    with closing(run):
        run.fit(resolved)
    return run.checkpoint


@pytest.mark.parametrize(("objective", "labels"), [("paws", True), ("simsiam", False)])
def test_log_checkpoint_report_and_card_say_whether_labels_were_used(
    objective: str, labels: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = train(tmp_path / "run", objective)
    assert ("LABELS ARE USED: PAWS trains with them" in capsys.readouterr().out) == labels
    assert torch.load(path, weights_only=True).get("uses_labels", False) is labels
    assert json.loads((tmp_path / "run" / "training.json").read_text()).get("uses_labels", False) is labels
    checkpoint = read_checkpoint(path)
    assert checkpoint.uses_labels is labels
    warnings = report_warnings([], {"checkpoint": checkpoint_provenance(checkpoint)})
    assert [each for each in warnings if each.startswith("LABELS WERE USED")] == warnings[: int(labels)]
    unlabeled.export(run=str(tmp_path / "run"), to="safetensors", out=str(tmp_path / "out"), data_images=0)
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("pretrained WITH the labels of its images" in card) == labels
    assert ("pretrained without labels" in card) != labels
    assert ("  - self-supervised-learning" in card) != labels


@pytest.mark.parametrize("name", members("objective"))
def test_a_method_that_does_not_say_so_has_the_same_loss_whatever_the_labels(name: str) -> None:
    config, objective = small_objective(name)
    if objective.uses_labels:
        return  # it says so
    views, images = instantiate(config.views), torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8)
    ids = torch.arange(12)
    made = views(images, ids, ViewKey(0, 0, 0, 12))
    before = {key: value.clone() for key, value in objective.state_dict().items()}
    losses = []
    for labels in (torch.zeros_like(ids), ids % 3, torch.full_like(ids, -1)):
        objective.load_state_dict(before)
        losses.append(objective(batch_of(objective, images, labels, made), Progress(0, 3, 3, 0)).loss.detach())
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])

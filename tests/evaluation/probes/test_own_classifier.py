"""The classifier that a method has trained itself: its row is of the evaluated network, and predict uses it."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import unlabeled
from tests.small import small_run
from unlabeled.commands.build.evaluation import build_evaluation
from unlabeled.commands.build.network import build_backbone
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate import evaluate
from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.features import Features, extract
from unlabeled.evaluation.probes.own_classifier import OwnClassifier
from unlabeled.training.run import Run
from unlabeled.weights import load_backbone, read_checkpoint

OWN = ("data=digits", "batch_size=64", "max_steps=6", "num_workers=0", "health=none", "plan=null", "optimizer.lr=0.2")


def judged(objective: str, folder: Path, *more: str) -> tuple[Run, list[Row], Any]:
    config = small_run(objective, folder, *OWN, "probe=[classifier,knn]", *more)
    resolved = open_run(config)
    run = build_run(config, resolved)
    with closing(run):
        run.fit(resolved)
    evaluation = build_evaluation(config, run.data, "cpu")
    checkpoint = read_checkpoint(run.checkpoint)
    return run, evaluate(evaluation, checkpoint, folder / "report", "test", lambda line: None), evaluation


@pytest.mark.parametrize(("objective", "prefix", "labels"), [("fixmatch", "ema_", 673), ("supervised", "", 1347)])
def test_the_row_is_that_of_the_products_own_classifier_and_predict_says_the_same(
    objective: str, prefix: str, labels: int, tmp_path: Path
) -> None:
    run, rows, evaluation = judged(objective, tmp_path, "objective.classes=10")
    own = [row for row in rows if row.protocol == "classifier/of the run"]
    assert [row.features for row in own] == ["pretrained"]  # of no untrained classifier
    state = torch.load(run.checkpoint, weights_only=True)["state_dict"]
    weight, bias = (state[f"objective.{prefix}classifier.{name}"] for name in ("weight", "bias"))
    config = OmegaConf.create(run.module.config["backbone"])
    network = load_backbone(run.checkpoint, build_backbone(config, 7))
    test = run.data.labelled("test", 64)
    features = extract(network, test, evaluation.extractor.views.evaluation_view, "cpu")
    logits = features.x @ weight.T + bias
    assert own[0].top1 == pytest.approx(100 * float((logits.argmax(1) == features.labels).float().mean()), abs=0.3)
    assert own[0].log_probabilities is not None
    torch.testing.assert_close(own[0].log_probabilities, logits.log_softmax(1), rtol=1e-4, atol=1e-4)
    assert own[0].n_train == labels
    table = unlabeled.predict(tmp_path, head="classifier", accelerator="cpu", num_workers=0)
    assert own[0].predictions is not None
    assert torch.equal(table.numbers, own[0].predictions)


def test_a_method_without_one_and_images_of_more_classes_are_refused(tmp_path: Path) -> None:
    config = small_run("simclr", tmp_path, *OWN, "probe=classifier")
    run = build_run(config, open_run(config))
    run.close()
    with pytest.raises(UserError, match=r"^probe\.classifier: the method of this run has no classifier of its own"):
        build_evaluation(config, run.data, "cpu")
    probe = OwnClassifier()
    probe.prepare(torch.nn.Linear(4, 3), None)
    features = Features(torch.randn(8, 4), torch.arange(8) % 2, torch.arange(8))
    assert probe.fit_predict(features, features, 3)[0].head is not None
    with pytest.raises(UserError, match=r"^probe\.classifier: the classifier of the run knows 3 classes, and these"):
        probe.fit_predict(features, features, 4)


def test_outputs_are_matched_to_classes_by_their_names(tmp_path: Path) -> None:
    probe, features = OwnClassifier(), Features(torch.eye(3), torch.arange(3), torch.arange(3))
    layer = torch.nn.Linear(3, 3)
    torch.nn.init.eye_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    probe.prepare(layer, None)
    for known, classes, right in (
        (["a", "b", "c"], ["a", "b", "c"], 100.0),
        (["c", "a", "b"], ["a", "b", "c"], 0.0),  # image n is of the output n, which is another class
        ([], ["a", "b", "c"], 100.0),  # an older run
        (["0", "1", "2"], ["a", "b", "c"], 100.0),
    ):
        probe.match(known, classes)
        assert probe.fit_predict(features, features, 3)[0].top1 == right
    with pytest.raises(UserError, match=r"does not know these classes of the images: d; leave the probe out"):
        probe.match(["a", "b", "c"], ["a", "d"])
    with pytest.raises(UserError, match=r"has 3 classes, these images 2, and not both have names"):
        probe.match(["0", "1", "2"], ["cat", "dog"])


def test_a_run_keeps_the_names_of_its_classes(tmp_path: Path) -> None:
    run, _rows, _evaluation = judged("supervised", tmp_path, "objective.classes=10")
    assert read_checkpoint(run.checkpoint).classes == [str(digit) for digit in range(10)]

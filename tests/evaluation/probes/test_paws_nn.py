"""Soft nearest neighbours by hand, on the listed images alone, behind the head of the checkpoint."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from tests.conftest import Script
from unlabeled.commands.build.evaluation import build_evaluation, complete_config
from unlabeled.commands.build.network import build_backbone, build_objective
from unlabeled.commands.build.run import build_data
from unlabeled.data.labels import LabelSelection
from unlabeled.data.memory import ArraySource
from unlabeled.data.support import NeedsSupport
from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate import evaluate
from unlabeled.evaluation.evaluate_probes import evaluate_probes
from unlabeled.evaluation.features import Features, apply_head, extract
from unlabeled.evaluation.probes.paws_nn import SoftNearestNeighbours, soft_votes
from unlabeled.objective import HasHead
from unlabeled.weights import read_checkpoint

CONF = Path(__file__).parents[3] / "conf"
TINY = (
    "experiment=paws_cifar10_cpu",
    "data=digits",
    "views.size=8",
    "batch_size=64",
    "objective.support.per_class=20",
    "objective.support.images_per_class=4",
    "backbone.width=0.125",
    "online_knn=null",
    "num_workers=0",
    "trainer.accelerator=cpu",
    "log_every_n_steps=1",
    "probe.knn.k=[20]",
)


def features_of(rows: int, seed: int, classes: int = 4) -> Features:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    return Features(x, torch.arange(rows) % classes, torch.arange(rows))


def source_of(features: Features) -> ArraySource:
    images = torch.zeros(len(features.labels), 3, 1, 1, dtype=torch.uint8)
    return ArraySource(images, features.labels, list("abcd"), "made up")


def literal_prediction(query: Tensor, train: Features, listed: list[int], classes: int) -> int:
    total = [0.0] * classes
    for row in listed:
        cosine = float(query @ train.x[row]) / float(query.norm() * train.x[row].norm())
        total[int(train.labels[row])] += math.exp(cosine / 0.1)
    return total.index(max(total))


def test_predictions_are_those_of_a_loop_over_the_listed_images_and_of_no_others() -> None:
    train, test = features_of(60, 0), features_of(40, 1)
    choice = LabelSelection(None, None, 5, 7, "k")
    listed = choice.of(source_of(train)).ids.tolist()
    probe = SoftNearestNeighbours(0.1, None, None, 5, 7)
    probe.prepare(source_of(train), None, "backbone")
    (score,) = probe.fit_predict(train, test, 4)
    expected = [literal_prediction(query, train, listed, 4) for query in test.x]
    assert score.top1 == pytest.approx(100 * sum(p == int(y) for p, y in zip(expected, test.labels, strict=True)) / 40)
    assert score.protocol == "paws_nn/backbone/20 labels/T=0.1"
    assert score.chosen == {"chosen_on": "nothing", **choice.of(source_of(train)).summary()}
    changed = Features(train.x.clone(), train.labels, train.ids)
    changed.x[[row for row in range(60) if row not in listed]] *= -3
    assert probe.fit_predict(changed, test, 4)[0].top1 == score.top1


def test_without_a_choice_of_its_own_the_probe_takes_the_list_of_the_run_or_asks_for_one() -> None:
    train = features_of(60, 0)
    probe = SoftNearestNeighbours(0.1, None, None, None, 0)
    probe.prepare(source_of(train), LabelSelection(None, None, 3, 0, "k"), "head")
    assert probe.protocol() == "paws_nn/head/12 labels/T=0.1"
    with pytest.raises(
        UserError, match=r"^probe\.paws_nn: the run has no list of labels; give probe\.paws_nn\.per_class"
    ):
        probe.prepare(source_of(train), None, "backbone")
    with pytest.raises(UserError, match=r"^probe\.paws_nn: give one of labels_file, fraction and per_class, not"):
        SoftNearestNeighbours(0.1, None, 0.5, 3, 0)
    with pytest.raises(UserError, match=r"^probe\.paws_nn\.temperature=0: must be above 0"):
        SoftNearestNeighbours(0, None, None, 3, 0)


def test_listed_images_that_could_not_be_decoded_are_said_to_be_missing() -> None:
    train = features_of(60, 0)
    probe = SoftNearestNeighbours(0.1, None, 1.0, None, 0)
    probe.prepare(source_of(train), None, "backbone")
    left = Features(train.x[2:], train.labels[2:], train.ids[2:])
    (score,) = probe.fit_predict(left, features_of(10, 1), 4)
    assert score.notes == ["2 of the listed images could not be decoded and were left out."]


def test_a_head_goes_before_its_probe_only_and_kinds_without_one_are_left_out() -> None:
    class Mean(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3))

    class Seen:
        needs = 1

        def __init__(self) -> None:
            self.x: list[Tensor] = []

        def fit_predict(self, train: Features, test: Features, num_classes: int) -> list[Any]:
            self.x.append(train.x)
            return []

    head = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).train()
    plain, embedded = Seen(), Seen()
    data = build_data(compose_with("data=digits"))
    batches = data.labelled("test", 100)
    network = Mean()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    evaluate_probes(
        network,
        Mean(),
        lambda network, split, kinds: extract(network, batches, lambda images, sizes: images.float(), "cpu"),
        {"plain": plain, "embedded": embedded},
        10,
        log=lambda line: None,
        heads={"embedded": {"pretrained": head}},
    )
    assert [x.shape[1] for x in plain.x] == [3, 3, 192]
    assert [x.shape[1] for x in embedded.x] == [2]
    torch.testing.assert_close(embedded.x[0], head.eval()(plain.x[0]))
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def compose_with(*overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["name=x", *overrides])


def test_a_run_is_judged_behind_its_own_head_on_its_own_list_which_is_recorded(script: Script, tmp_path: Path) -> None:
    finished = script("train.py", *TINY, "name=tiny", "max_steps=6")
    assert finished.returncode == 0, finished.stderr
    run = tmp_path / "outputs" / "tiny"
    training = json.loads((run / "training.json").read_text())
    assert training["labels"]["images"] == len((run / "labels.txt").read_text().splitlines()) == 200
    assert training["collapsed_at"] == 0
    printed = finished.stdout.splitlines()
    assert printed[0].startswith("LABELS ARE USED: PAWS")
    assert printed[2].startswith(
        f"200 labelled images, 20 in each of 10 classes, sha256 {training['labels']['sha256']}; none "
    )
    results = json.loads((run / "report" / "results.json").read_text())
    assert results["provenance"]["training"]["labels"] == training["labels"]
    rows = {(row["features"], row["protocol"]): row for row in results["rows"]}
    protocol = "paws_nn/head/200 labels/T=0.1"
    assert ("raw pixels", protocol) not in rows
    assert rows["pretrained", protocol]["chosen"]["sha256"] == training["labels"]["sha256"]

    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    config = compose_with(*TINY)
    objective = build_objective(config)
    objective.load_state_dict({key.removeprefix("objective."): value for key, value in checkpoint.state_dict.items()})
    data = build_data(config)
    views = build_evaluation(config, data).extractor.views
    train, test = (
        extract(objective.backbone, data.labelled(s, 64), views.evaluation_view, "cpu") for s in ("train", "test")
    )
    assert isinstance(objective, HasHead)
    assert isinstance(objective, NeedsSupport)
    head, support = objective.head(), objective.support
    listed = support.choose(data.splits.train, 1).ids.tolist()
    bank, queries = apply_head(head, train), apply_head(head, test)
    right = [literal_prediction(q, bank, listed, 10) == int(y) for q, y in zip(queries.x, queries.labels, strict=True)]
    assert rows["pretrained", protocol]["top1"] == pytest.approx(100 * sum(right) / len(right), abs=0.5)

    judged = script("eval_linear.py", "run=outputs/tiny", "probe=paws_nn", "report_dir=again", "accelerator=cpu")
    assert judged.returncode == 0, judged.stderr
    again = json.loads((tmp_path / "again" / "results.json").read_text())["rows"]
    expected = {key[0]: row["top1"] for key, row in rows.items() if key[1] == protocol}
    assert {row["features"]: row["top1"] for row in again if row["protocol"] == protocol} == expected

    (run / "labels.txt").write_text("another list\n")
    refused = script("train.py", *TINY, "name=tiny", "max_steps=6")
    assert refused.returncode == 2
    assert "labels.txt is not the list of labelled images" in refused.stderr


def test_a_backbone_from_elsewhere_is_judged_without_a_head_on_a_list_that_is_given(tmp_path: Path) -> None:
    config = compose_with(
        "data=digits", "backbone=resnet_thin", "views.size=8", "probe=paws_nn", "probe.paws_nn.per_class=5"
    )
    torch.save(build_backbone(config.backbone, 1).state_dict(), tmp_path / "weights.pt")
    checkpoint = read_checkpoint(tmp_path / "weights.pt")
    rows = evaluate(
        build_evaluation(complete_config(config, checkpoint), None, "cpu"), checkpoint, tmp_path / "report", ""
    )
    protocols = {row.protocol for row in rows if row.features != "chance"}
    assert protocols == {"paws_nn/backbone/50 labels/T=0.1"}
    assert {row.features for row in rows} == {"pretrained", "random init", "raw pixels", "chance"}


def test_log_probabilities_are_those_of_the_loop_and_a_class_without_a_support_has_none() -> None:
    train, test = features_of(60, 0), features_of(40, 1)
    probe = SoftNearestNeighbours(0.1, None, None, 5, 7)
    probe.prepare(source_of(train), None, "backbone")
    (score,) = probe.fit_predict(train, test, 6)
    listed = LabelSelection(None, None, 5, 7, "k").of(source_of(train)).ids.tolist()
    assert score.log_probabilities is not None
    assert score.predictions is not None
    assert score.log_probabilities.dtype == torch.float32
    assert bool(score.log_probabilities[:, 4:].eq(-math.inf).all())
    for query, row, predicted in zip(test.x, score.log_probabilities, score.predictions, strict=True):
        weight = [math.exp(float(torch.cosine_similarity(query, train.x[each], dim=0)) / 0.1) for each in listed]
        share = [0.0] * 4
        for each, value in zip(listed, weight, strict=True):
            share[int(train.labels[each])] += value / sum(weight)
        assert row[:4].exp().tolist() == pytest.approx(share, abs=1e-6)
        assert int(predicted) == share.index(max(share))


def test_a_class_whose_supports_are_all_far_is_improbable_and_not_impossible() -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    log_p = soft_votes(x, Features(x, torch.tensor([0, 2]), torch.arange(2)), 0.001, 3)
    assert log_p[0].tolist() == pytest.approx([0, -math.inf, math.log(torch.finfo(torch.float32).tiny)], abs=1e-3)


def test_another_kind_of_features_is_compared_and_named_but_not_behind_a_head() -> None:
    train, test = features_of(60, 0), features_of(40, 1)
    probe = SoftNearestNeighbours(0.1, None, None, 5, 7, features="cls")
    probe.prepare(source_of(train), None, "backbone")
    plain = SoftNearestNeighbours(0.1, None, None, 5, 7)
    plain.prepare(source_of(train), None, "backbone")
    hidden = [Features(torch.zeros_like(f.x), f.labels, f.ids, {"cls": f.x}) for f in (train, test)]
    (score,), (expected,) = probe.fit_predict(hidden[0], hidden[1], 4), plain.fit_predict(train, test, 4)
    assert score.top1 == expected.top1
    assert score.protocol == f"{expected.protocol}/features=cls"
    with pytest.raises(UserError, match=r"^probe\.paws_nn\.features=cls: only last goes through the head"):
        probe.prepare(source_of(train), None, "head")

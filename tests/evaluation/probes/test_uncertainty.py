"""Pooled predictions against literal loops, dropout that is left on, and the probes with several heads."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unlabeled.core.seeding import derive_seed
from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.predictions import write_predictions
from unlabeled.evaluation.probe import Score
from unlabeled.evaluation.probes.clustering import KMeans
from unlabeled.evaluation.probes.ensembles import Bootstrap, deep_ensemble, ensemble_of_reports, resample
from unlabeled.evaluation.probes.linear import split_holdout, standardise
from unlabeled.evaluation.probes.logistic import LogisticRegressionProbe, fit_logistic
from unlabeled.evaluation.probes.mc_dropout import MCDropout
from unlabeled.evaluation.probes.paws_nn import AllSupports
from unlabeled.evaluation.uncertainty.calibration import calibration_metrics, fit_temperature, nll
from unlabeled.evaluation.uncertainty.least_sure import write_least_certain
from unlabeled.evaluation.uncertainty.members import (
    entropy,
    expand_to_all_classes,
    expected_entropy,
    log_mean_probabilities,
    mutual_information,
    pool_heads,
    pool_members,
    uncertainty_metrics,
    variation_ratio,
)
from unlabeled.evaluation.uncertainty.selective import aurc


def data(n: int, dim: int, classes: int, seed: int, noise: float = 2.0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (n,), generator=generator)
    x = centres[labels] + noise * torch.randn(n, dim, generator=generator)
    return Features(3 * x + 5, labels, torch.arange(n))


def members(s: int, n: int, classes: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(s, n, classes, generator=generator, dtype=torch.float64)).log_softmax(dim=2)


def literal_entropy(p: list[float]) -> float:
    return -sum(each * math.log(each) for each in p if each > 0)


def test_pooled_predictions_and_all_scores_are_those_of_a_loop() -> None:
    log_p = members(5, 8, 3, 0)
    log_p[:, 3] = torch.tensor([0.0, -math.inf, -math.inf])  # all certain
    log_p[:2, 4], log_p[2:, 4] = torch.tensor([0.0, -math.inf, -math.inf]), torch.tensor([-math.inf, 0.0, -math.inf])
    found = pool_members(log_p)
    for image in range(8):
        p = [[math.exp(value) for value in member[image].tolist()] for member in log_p]
        mean = [sum(member[k] for member in p) / 5 for k in range(3)]
        votes = [member.index(max(member)) for member in p]
        expected = sum(map(literal_entropy, p)) / 5
        assert found.log_probabilities[image].exp().tolist() == pytest.approx(mean, abs=1e-6)
        assert {name: float(score[image]) for name, score in found.scores.items()} == pytest.approx(
            {
                "entropy": literal_entropy(mean),
                "least_confidence": 1 - max(mean),
                "expected_entropy": expected,
                "mutual_information": literal_entropy(mean) - expected,
                "variation_ratio": 1 - max(map(votes.count, votes)) / 5,
            },
            abs=1e-6,
        )
        assert found.predictions[:, image].tolist() == votes


def test_probabilities_are_averaged_not_logits() -> None:
    torch.testing.assert_close(log_mean_probabilities(members(4, 6, 3, 1)).exp(), members(4, 6, 3, 1).exp().mean(dim=0))


def test_members_that_agree_share_all_doubt_and_ones_that_are_certain_of_other_classes_share_none() -> None:
    same = members(1, 50, 4, 2).float().expand(7, -1, -1)
    assert bool((mutual_information(same) >= 0).all())
    torch.testing.assert_close(mutual_information(same), torch.zeros(50), rtol=0, atol=1e-6)
    torch.testing.assert_close(expected_entropy(same), entropy(log_mean_probabilities(same)))
    assert bool((variation_ratio(same) == 0).all())
    apart = torch.eye(4, dtype=torch.float64).log()[:, None]
    assert float(mutual_information(apart)) == pytest.approx(math.log(4))
    assert float(expected_entropy(apart)) == 0
    assert float(variation_ratio(apart)) == 0.75


def test_mutual_information_is_the_mean_divergence_of_the_members_from_their_pool() -> None:
    log_p = members(6, 20, 5, 3)
    divergence = (log_p.exp() * (log_p - log_mean_probabilities(log_p))).sum(dim=2).mean(dim=0)
    torch.testing.assert_close(mutual_information(log_p), divergence)


@pytest.mark.parametrize("chunk_bytes", [1, 3000, 2**28])
def test_heads_are_pooled_alike_for_any_chunk(chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlabeled.evaluation.uncertainty.members.CHUNK_BYTES", chunk_bytes)
    generator = torch.Generator().manual_seed(0)
    heads, x = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((4, 3, 6), (30, 6)))
    found, whole = pool_heads(heads, x), pool_members(torch.einsum("scd,nd->snc", heads, x).log_softmax(dim=2))
    torch.testing.assert_close(found.log_probabilities, whole.log_probabilities)
    assert torch.equal(found.predictions, whole.predictions)
    for name, score in whole.scores.items():
        torch.testing.assert_close(found.scores[name], score, rtol=0, atol=1e-6)


def test_a_resample_keeps_every_class_at_its_size_and_draws_with_replacement() -> None:
    labels = torch.tensor([2] * 300 + [0] * 40 + [1])[torch.randperm(341, generator=torch.Generator().manual_seed(0))]
    rows = resample(labels, 5)
    assert labels[rows].bincount().tolist() == [40, 1, 300]
    assert torch.equal(rows, resample(labels, 5))
    assert not torch.equal(rows, resample(labels, 6))
    assert len(set(rows.tolist())) / 341 == pytest.approx(1 - math.exp(-1), abs=0.06)


def bootstrap() -> Bootstrap:
    return Bootstrap(4, [0.01, 0.1, 1.0], 0.2, 3, 1000)


def test_bootstrap_heads_are_separate_fits_on_resamples_with_the_c_of_the_linear_probe() -> None:
    train, test = data(200, 6, 3, 0), data(150, 6, 3, 1)
    (score,), (single,) = (
        bootstrap().fit_predict(train, test, 3),
        LogisticRegressionProbe([0.01, 0.1, 1.0], 0.2, 3, 1000).fit_predict(train, test, 3),
    )
    assert score.chosen["C"] == single.chosen["C"]
    assert score.metrics["single_top1"] == single.top1

    def literal(x: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
        x, queries = (part.float() for part in standardise(x, queries))
        drawn = [resample(labels, derive_seed(3, member)) for member in range(4)]
        heads = [fit_logistic(x[rows], labels[rows], single.chosen["C"], 3, 1000)[0].float() for rows in drawn]
        return sum((queries @ head.T).softmax(dim=1) for head in heads).log() - math.log(4)  # type: ignore[union-attr]

    log_p = literal(train.x, train.labels, test.x)
    assert score.log_probabilities is not None
    assert score.predictions is not None
    torch.testing.assert_close(score.log_probabilities, log_p, rtol=0, atol=1e-3)
    assert score.top1 == 100 * int((score.predictions == test.labels).sum()) / 150
    fit, held = split_holdout(train.labels, 0.2, 3)
    t = fit_temperature(literal(train.x[fit], train.labels[fit], train.x[held]), train.labels[held])
    assert score.metrics["temperature"] == pytest.approx(t, rel=1e-3)
    assert float(score.uncertainty["mutual_information"].mean()) > 0
    assert score.protocol == "ensemble/bootstrap-lbfgs/M=4"
    assert any("the problem is convex" in note for note in score.notes)


def mc_dropout(samples: int = 60) -> MCDropout:
    return MCDropout(0.5, samples, [0.001, 0.01, 0.05], 6, 32, 0.9, 0.2, 0)


def test_the_dropout_head_is_trained_as_torch_trains_one_behind_such_masks() -> None:
    probe, train = mc_dropout(), data(100, 6, 3, 0)
    (x,) = standardise(train.x)
    heads = probe.fit(x, train.labels, 3, [0.01, 0.1])
    for rate, head in zip([0.01, 0.1], heads, strict=True):
        model = nn.Linear(7, 3, bias=False, dtype=torch.float64)
        nn.init.zeros_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6 * 4)
        generator = torch.Generator().manual_seed(0)
        for _ in range(6):
            for rows in torch.split(torch.randperm(100, generator=generator), 32):
                kept = torch.rand(len(rows), 7, generator=generator) >= 0.5
                kept[:, 6] = True
                scale = torch.tensor([2.0] * 6 + [1.0], dtype=torch.float64)
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x[rows] * kept * scale), train.labels[rows])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        torch.testing.assert_close(head, model.weight.detach(), rtol=1e-9, atol=1e-11)


def test_masks_on_the_features_are_heads_and_their_mean_comes_near_that_of_masks_for_each_image() -> None:
    probe, train, test = mc_dropout(4000), data(200, 6, 3, 0), data(40, 6, 3, 1)
    x, queries = standardise(train.x, test.x)
    head = probe.fit(x, train.labels, 3, [0.01])[0]
    ours = probe._pool(head, queries).log_probabilities.exp().double()
    drop = nn.Dropout(0.5)
    torch.manual_seed(0)
    passes = [(torch.cat([drop(queries[:, :-1]), queries[:, -1:]], dim=1) @ head.T).softmax(dim=1) for _ in range(4000)]
    torch.testing.assert_close(ours, torch.stack(passes).mean(dim=0), rtol=0, atol=0.03)


def test_the_learning_rate_is_the_smallest_near_the_least_held_out_nll_without_dropout() -> None:
    probe, train, test = mc_dropout(), data(200, 6, 3, 0), data(150, 6, 3, 1)
    (score,) = probe.fit_predict(train, test, 3)
    fit, held = split_holdout(train.labels, 0.2, 0)
    part, rest = standardise(train.x[fit], train.x[held])
    heads = probe.fit(part, train.labels[fit], 3, probe.learning_rates)
    losses = [float(nn.functional.cross_entropy(rest @ head.T, train.labels[held])) for head in heads]
    assert list(score.chosen["holdout_nll"].values()) == pytest.approx(losses)
    near = [loss <= min(losses) + 0.001 for loss in losses]
    assert score.chosen["learning_rate"] == probe.learning_rates[near.index(True)]
    assert score.protocol == "mc-dropout/linear/p=0.5/S=60"
    assert score.top1 > 60


@pytest.mark.parametrize("make", [bootstrap, mc_dropout])
def test_test_labels_change_neither_choice_nor_prediction_and_gaps_change_only_names(make: Any) -> None:
    train, test, state = data(200, 6, 3, 0), data(150, 6, 3, 1), torch.get_rng_state()
    (score,) = make().fit_predict(train, test, 3)
    (other,) = make().fit_predict(train, Features(test.x, (test.labels + 1) % 3, test.ids), 3)
    assert torch.equal(score.log_probabilities, other.log_probabilities)
    assert (score.chosen, score.metrics["temperature"]) == (other.chosen, other.metrics["temperature"])
    names = torch.tensor([2, 5, 11])
    (sparse,) = make().fit_predict(*(Features(f.x, names[f.labels], f.ids) for f in (train, test)), 13)
    assert torch.equal(sparse.predictions, names[score.predictions])
    assert torch.equal(sparse.log_probabilities[:, names], score.log_probabilities)
    assert bool(sparse.log_probabilities[:, [0, 1, 12]].eq(-math.inf).all())
    assert sparse.metrics == pytest.approx(score.metrics)
    assert "10 of 13 classes have no train image and are never predicted." in sparse.notes
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("make", [bootstrap, mc_dropout])
def test_every_metric_of_the_pool_is_that_of_its_log_probabilities(make: Any) -> None:
    train, test = data(200, 6, 3, 0), data(150, 6, 3, 1)
    score: Score = make().fit_predict(train, test, 3)[0]
    log_p, predictions = score.log_probabilities, score.predictions
    assert log_p is not None
    assert predictions is not None
    wrong = predictions != test.labels
    expected = calibration_metrics(log_p, test.labels) | uncertainty_metrics(log_p, test.labels, score.uncertainty)
    assert {name: score.metrics[name] for name in expected} == expected
    assert score.metrics["aurc_mutual_information"] == aurc(wrong, score.uncertainty["mutual_information"])
    assert score.metrics["nll"] == nll(log_p, test.labels)
    assert {f"auroc_{name}" for name in score.uncertainty} <= set(score.metrics)
    assert {"member_top1", "temperature", "nll_after_temperature", "ece_after_temperature"} <= set(score.metrics)
    assert score.chosen["temperature_on"] == f"{score.chosen['holdout_images']} held-out train images"


@pytest.mark.parametrize(
    "make",
    [
        lambda kind: Bootstrap(2, [0.1], 0.2, 0, 1000, kind),
        lambda kind: MCDropout(0.5, 5, [0.01], 2, 32, 0.9, 0.2, 0, kind),
        lambda kind: KMeans(None, "l2", 1, 300, 0, kind),
        lambda kind: AllSupports(0.1, kind),
    ],
    ids=["ensemble", "mc_dropout", "kmeans", "soft_nn"],
)
def test_another_kind_of_features_is_looked_at_and_named(make: Any) -> None:
    train, test = data(200, 6, 3, 0), data(150, 6, 3, 1)
    hidden = [Features(torch.zeros_like(f.x), f.labels, f.ids, {"cls": f.x}) for f in (train, test)]
    (score,), (plain,) = make("cls").fit_predict(*hidden, 3), make("last").fit_predict(train, test, 3)
    assert make("cls").kinds == ("cls",)
    assert score.protocol == f"{plain.protocol}/features=cls"
    assert torch.equal(score.predictions, plain.predictions)


def test_one_member_is_a_single_network_and_of_several_each_counts_alike() -> None:
    runs, labels = list(members(3, 50, 4, 4).float()), torch.arange(50) % 4
    score = deep_ensemble(runs, labels, "linear/cached-lbfgs-v1")
    assert score.protocol == "ensemble/3 runs/linear/cached-lbfgs-v1"
    right = [100 * float((run.argmax(dim=1) == labels).double().mean()) for run in runs]
    assert score.metrics["member_top1"] == pytest.approx(sum(right) / 3)
    assert score.metrics["nll"] == pytest.approx(nll(log_mean_probabilities(torch.stack(runs)), labels), rel=1e-5)
    assert "temperature" not in score.metrics
    with pytest.raises(UserError, match="needs the same 50 test images and classes of each run"):
        deep_ensemble([runs[0], runs[1][:, :3]], labels, "p")


def judged(folder: Path, log_p: Tensor, labels: Tensor, ids: Tensor, protocol: str = "linear/cached-lbfgs-v1") -> Path:
    predictions = log_p.argmax(dim=1)
    rows = [
        Row("pretrained", protocol, 0.0, predictions=predictions, log_probabilities=log_p),
        Row("pretrained", "kmeans", 0.0, predictions=predictions),
        Row("random init", protocol, 0.0, predictions=predictions, log_probabilities=log_p),
    ]
    write_predictions(folder, rows, labels, ids)
    return folder


def test_runs_are_pooled_from_what_their_evaluations_kept(tmp_path: Path) -> None:
    runs, labels, ids = members(3, 50, 4, 4).float(), torch.arange(50) % 4, torch.arange(50)
    runs[:, :, 3] = -math.inf
    runs = runs.log_softmax(dim=2)
    folders = [judged(tmp_path / str(place), run, labels, ids) for place, run in enumerate(runs)]
    (score,) = ensemble_of_reports(folders)
    assert score.protocol == "ensemble/3 runs/linear/cached-lbfgs-v1"
    assert score.log_probabilities is not None
    torch.testing.assert_close(score.log_probabilities, log_mean_probabilities(runs), rtol=0, atol=5e-3)
    torch.testing.assert_close(score.log_probabilities.exp().sum(dim=1), torch.ones(50))
    assert float(score.uncertainty["mutual_information"].mean()) > 0.1


def test_runs_on_other_images_or_without_a_protocol_in_common_are_not_pooled(tmp_path: Path) -> None:
    run, labels, ids = members(1, 50, 4, 4)[0], torch.arange(50) % 4, torch.arange(50)
    first = judged(tmp_path / "a", run, labels, ids)
    with pytest.raises(UserError, match=r"/b was evaluated on other test images than .*/a"):
        ensemble_of_reports([first, judged(tmp_path / "b", run, labels, ids + 1)])
    with pytest.raises(UserError, match="the runs have no protocol with log-probabilities in common"):
        ensemble_of_reports([first, judged(tmp_path / "c", run, labels, ids, "other")])
    with pytest.raises(UserError, match="an ensemble of runs was given 1 of them"):
        ensemble_of_reports([first])


def test_the_least_sure_images_come_first_in_a_table_with_their_names(tmp_path: Path) -> None:
    p = torch.tensor([[0.9, 0.1, 0.0], [0.4, 0.3, 0.3], [1.0, 0.0, 0.0], [0.2, 0.8, 0.0]])
    scores = {"entropy": torch.zeros(4), "mutual_information": torch.tensor([0.1, 0.2, 0.0, 0.25])}
    names, labels = ["a.png", 'b, "2".png', "c.png", "d.png"], torch.tensor([0, 2, -1, 1])
    write_least_certain(tmp_path / "least.csv", names, labels, p.log(), scores, ["cat", "dog", "owl"])
    with (tmp_path / "least.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ['b, "2".png', "d.png", "a.png", "c.png"]
    assert rows[0] == {
        "name": 'b, "2".png',
        "label": "owl",
        "predicted": "cat",
        "probability": "0.4",
        "entropy": f"{literal_entropy([0.4, 0.3, 0.3]):.6g}",
        "mutual_information": "0.2",
    }
    assert [(row["label"], row["predicted"]) for row in rows[1:]] == [("dog", "dog"), ("cat", "cat"), ("", "cat")]
    write_least_certain(tmp_path / "numbers.csv", names, labels, p.log(), {})
    first = (tmp_path / "numbers.csv").read_text().splitlines()[1]
    assert first == f'"b, ""2"".png",2,0,0.4,{literal_entropy([0.4, 0.3, 0.3]):.6g}'


def test_columns_of_some_classes_stand_among_all_of_them() -> None:
    whole = expand_to_all_classes(torch.tensor([[-1.0, -2.0]]), torch.tensor([3, 1]), 4)
    assert whole.tolist() == [[-math.inf, -2.0, -math.inf, -1.0]]


def test_impossible_settings_name_the_key() -> None:
    with pytest.raises(UserError, match=r"probe\.ensemble\.members=1: must be at least 2"):
        Bootstrap(1, [0.1], 0.1, 0, 10)
    with pytest.raises(UserError, match=r"probe\.mc_dropout\.p=0: must be above 0 and below 1"):
        MCDropout(0, 5, [0.1], 1, 1, 0.9, 0.1, 0)
    with pytest.raises(UserError, match=r"probe\.mc_dropout\.samples=1: must be at least 2"):
        MCDropout(0.5, 1, [0.1], 1, 1, 0.9, 0.1, 0)
    with pytest.raises(UserError, match=r"probe\.mc_dropout\.holdout is 0\.9; allowed: above 0, at most 0\.5"):
        MCDropout(0.5, 5, [0.1], 1, 1, 0.9, 0.9, 0)
    with pytest.raises(UserError, match=r"probe\.mc_dropout\.epochs is 0; allowed: 1 or more"):
        MCDropout(0.5, 5, [0.1], 0, 1, 0.9, 0.1, 0)
    with pytest.raises(UserError, match=r"probe\.mc_dropout\.learning_rates is \[\]"):
        MCDropout(0.5, 2, [], 1, 1, 0.9, 0.1, 0)

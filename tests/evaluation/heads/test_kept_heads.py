"""A report's classifiers predict again what the report says, and say how sure they may be."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.stats import binom  # type: ignore[import-untyped]
from torch import Tensor

from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate_probes import Row, make_row
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.heads.calibration import Calibration, calibrate_knn, leave_one_out, smooth, threshold
from unlabeled.evaluation.heads.kept import HeadContext, read_head, write_heads
from unlabeled.evaluation.heads.predictor import classify_features
from unlabeled.evaluation.probe import Head, Probe
from unlabeled.evaluation.probes.knn import KNN
from unlabeled.evaluation.probes.logistic import LogisticRegressionProbe
from unlabeled.evaluation.probes.sgd_grid import SGDGrid

CLASSES = ["bird", "=cat", "dog", "nobody"]
CONTEXT = HeadContext(CLASSES, "0" * 64, {"size": 8}, "32-true", 256)


def features(n: int, seed: int) -> Features:
    """Three overlapping classes of four; the last has no image."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    x = torch.randn(n, 5, generator=generator) + 1.5 * torch.eye(5)[labels]
    return Features(x, labels, torch.arange(n), {"cls": 3 * x.flip(1) + 1})


TRAIN, TEST = features(150, 0), features(60, 1)
PROBES: dict[str, Probe] = {
    "linear": LogisticRegressionProbe([0.01, 1.0], 0.2, 0, 100),
    "linear of cls": LogisticRegressionProbe([0.01, 1.0], 0.2, 0, 100, "cls"),
    "sgd": SGDGrid([0.1, 1.0], 2, 32, [0.0], 0.9, 0.2, 0, ["last", "cls"]),
    "knn": KNN([5, 20], 0.1),
    "knn of cls": KNN([3], None, "euclidean", "uniform", "cls"),
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    scores = [score for probe in PROBES.values() for score in probe.fit_predict(TRAIN, TEST, len(CLASSES))]
    rows = [make_row("pretrained", score, 150, 60) for score in scores]
    rows += [make_row("random init", score, 150, 60) for score in scores]
    calibrate_knn(rows, TEST.labels, len(CLASSES))
    folder = tmp_path_factory.mktemp("report") / "heads"
    assert write_heads(folder, rows, CONTEXT) == []
    return folder, rows[: len(scores)]


def test_every_kept_head_predicts_what_its_row_says_to_the_bit(rows: tuple[Path, list[Row]]) -> None:
    folder, known = rows
    assert len(known) == 6
    for row in known:
        kept = read_head(folder, row.protocol)
        assert (kept.context, kept.protocol, kept.top1, kept.n_train) == (CONTEXT, row.protocol, row.top1, 150)
        predictions, log_p = classify_features(kept, TEST)
        assert torch.equal(predictions, row.predictions if row.predictions is not None else log_p)
        assert row.log_probabilities is not None
        assert torch.equal(log_p, row.log_probabilities)
        assert kept.calibration.temperature == row.metrics.get("temperature", kept.calibration.temperature)


def test_files_hold_no_features_twice_and_none_of_an_earlier_report(
    rows: tuple[Path, list[Row]], tmp_path: Path
) -> None:
    folder, known = rows
    banks = sorted(path.name for path in folder.glob("bank-*"))
    assert banks == ["bank-cls.safetensors", "bank-last.safetensors"]
    write_heads(tmp_path, known, CONTEXT)
    write_heads(tmp_path, known[:1], CONTEXT)
    assert [path.name for path in tmp_path.iterdir()] == ["linear-cached-lbfgs-v1.safetensors"]


def test_a_head_is_named_by_its_first_words_and_the_best_known_kind_is_the_default(
    rows: tuple[Path, list[Row]],
) -> None:
    assert read_head(rows[0], None).protocol == "linear/cached-lbfgs-v1"
    assert read_head(rows[0], "knn/cosine").protocol == "knn/cosine-exp/k=20/T=0.1"
    with pytest.raises(UserError, match=r"head=mlp: this report has none of it; there are knn, "):
        read_head(rows[0], "mlp")
    with pytest.raises(UserError, match=r"none of it; did you mean linear\? there are knn, .*linear"):
        read_head(rows[0], "lineer")
    with pytest.raises(UserError, match=r"none of it; (did you mean knn/\S+\? )?there are knn/cosine"):
        read_head(rows[0], "knn/l2")


@pytest.mark.parametrize(
    "mistake",
    [
        {"temperature": 0.0},
        {"temperature": "1"},
        {"kind": "pickle"},
        {"classes": ["one"]},
        {"settings": None},
        {"features": "../../etc"},
        {"images_per_pass": 0},
    ],
)
def test_a_description_that_is_not_ours_is_damage(
    rows: tuple[Path, list[Row]], tmp_path: Path, mistake: dict[str, object]
) -> None:
    from safetensors import safe_open

    source = rows[0] / "knn-cosine-exp-k=5-T=0.1.safetensors"
    with safe_open(source, "pt") as file:
        described = json.loads(file.metadata()["head"])
    (tmp_path / "bank-last.safetensors").write_bytes((rows[0] / "bank-last.safetensors").read_bytes())
    save_file(load_file(source), tmp_path / "x.safetensors", {"head": json.dumps(described | mistake)})
    with pytest.raises(UserError, match=r"x\.safetensors: damaged"):
        read_head(tmp_path, "")


def loop_of_others(x: Tensor, labels: Tensor, row: int, k: int, temperature: float) -> list[float]:
    """Votes by class of the k most similar among all but one, shares of their sum."""
    unit = x.double() / x.double().norm(dim=1, keepdim=True)
    near = sorted(((float(unit[row] @ unit[other]), -other) for other in range(len(x)) if other != row), reverse=True)
    votes = [0.0] * len(CLASSES)
    for similarity, other in near[:k]:
        votes[int(labels[-other])] += float(torch.tensor((similarity - near[0][0]) / temperature).exp())
    return [vote / sum(votes) for vote in votes]


def test_k_nn_is_calibrated_on_images_that_are_compared_with_all_others() -> None:
    head = KNN([5], 0.1).fit_predict(TRAIN, TEST, len(CLASSES))[0].head
    assert head is not None
    found = leave_one_out(head, len(CLASSES))
    assert found is not None
    assert torch.equal(found[1], TRAIN.labels)
    for row in (0, 70, 149):
        wanted = torch.tensor(loop_of_others(TRAIN.x, TRAIN.labels, row, 5, 0.1))
        torch.testing.assert_close(found[0][row].exp(), wanted, rtol=1e-4, atol=1e-5)


def test_an_image_that_is_there_many_times_is_left_out_once() -> None:
    same = Head("knn", "last", {"bank": torch.ones(9, 2), "labels": torch.arange(9) % 2}, KNN_RULE)
    found = leave_one_out(same, 2)
    assert found is not None
    # of nine equal rows the first two others vote: for row 0 rows 1 and 2, one of each class
    torch.testing.assert_close(found[0][0].exp(), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(found[0][8].exp(), torch.tensor([0.5, 0.5]))


KNN_RULE = {"k": 2, "temperature": None, "distance": "cosine", "weights": "uniform"}


def test_smoothing_adds_a_part_of_a_vote_to_every_class() -> None:
    shares = torch.tensor([[0.75, 0.25, 0.0, 0.0]])
    expected = (4 * shares.double() + 0.25) / 5  # four neighbours, and one that is shared
    torch.testing.assert_close(smooth(shares.log(), 1 / 4).exp(), expected)
    assert smooth(shares, 0.0) is shares


def guaranteed(confidence: list[float], wrong: list[bool], risk: float) -> tuple[int, int]:
    """Algorithm 1 of Geifman and El-Yaniv by loops: images covered, and the errors among them."""
    order = sorted(confidence, reverse=True)
    steps = math.ceil(math.log2(len(order) + 1))
    rates = np.arange(10_001) / 10_000
    low, high, best = 0, len(order), (0, 0)
    while low < high:
        place = math.ceil((low + high) / 2)
        kept = [bad for sure, bad in zip(confidence, wrong, strict=True) if sure >= order[place - 1]]
        at_most = rates[binom.cdf(sum(kept), len(kept), rates) >= 0.05 / steps][-1]
        if at_most <= risk:
            low, best = place, (len(kept), sum(kept))
        else:
            high = place - 1
    return best


@pytest.mark.parametrize("risk", [0.01, 0.3, 0.45, 0.6])
def test_the_threshold_promises_the_risk_with_95_per_cent_certainty(risk: float) -> None:
    generator = torch.Generator().manual_seed(3)
    confidence = (torch.rand(200, generator=generator) * 20).round().double() / 20  # many equal ones
    wrong = torch.rand(200, generator=generator) > confidence
    found = threshold(Calibration(1.0, 0.0, confidence, wrong), risk)
    covered, errors = guaranteed(confidence.tolist(), wrong.tolist(), risk)
    assert (found.covered, found.images) == (covered, 200)
    assert (covered > 0) == (risk > 0.01)
    if covered:
        assert int((confidence >= found.confidence).sum()) == covered
        assert found.risk == pytest.approx(errors / covered)
        assert found.risk < found.bound <= risk
    else:
        assert found.confidence == float("inf")


def test_without_held_out_images_no_risk_can_be_chosen() -> None:
    nothing = Calibration(1.0, 0.0, torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    with pytest.raises(UserError, match="risk: this head was not tried on held-out images"):
        threshold(nothing, 0.1)


@pytest.mark.parametrize("wrong", ["weight", "columns", "settings"])
def test_a_head_of_anybody_whose_parts_do_not_fit_is_damaged_in_one_line(
    wrong: str, rows: tuple[Path, list[Row]], tmp_path: Path
) -> None:
    folder, _ = rows
    kind = "knn" if wrong == "settings" else "linear"
    files = [file for file in folder.glob("*.safetensors") if file.name.startswith(kind)]
    file = tmp_path / "report" / "heads" / files[0].name
    file.parent.mkdir(parents=True)
    for other in folder.iterdir():
        (file.parent / other.name).write_bytes(other.read_bytes())
    with safe_open(file, "pt") as opened:
        notes = json.loads(opened.metadata()["head"])
    tensors = load_file(file)
    if wrong == "settings":
        notes["settings"].pop("k")
    else:
        tensors[wrong] = tensors[wrong][:, :2].contiguous() if wrong == "weight" else torch.tensor(1)
    save_file(tensors, file, {"head": json.dumps(notes)})
    with pytest.raises(UserError, match=r"damaged \(its (weight|classes|settings)"):
        read_head(file.parent, notes["protocol"])

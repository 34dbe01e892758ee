"""A classifier that is exported gives, in the library that it is for, the probabilities that ``predict`` gives here."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import unlabeled
from tests.commands.test_export import VIT_GAP, a_run, network, run_the_card
from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate_probes import Row, make_row
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.heads.kept import HeadContext, read_head, write_heads
from unlabeled.evaluation.heads.predictor import classify_features
from unlabeled.evaluation.probes.knn import KNN
from unlabeled.evaluation.probes.logistic import LogisticRegressionProbe
from unlabeled.weights import read_checkpoint
from unlabeled.weights.feature_comparison import generate_images
from unlabeled.weights.preprocess import read_preprocess

RESNET = {"_target_": "unlabeled.backbones.resnet.ResNet", "depth": 18, "width": 1.0, "stem": "imagenet"}
CLASSES = ["cat", "<dog>", "nobody", "ελιά"]
TARGETS = ["timm", "torchvision", "safetensors", "huggingface", "onnx", "torch_export"]


def evaluated(folder: Path, spec: dict[str, Any]) -> Path:
    """A run whose report has heads, fitted on the network's features of generated images; one class has no image."""
    run = a_run(folder, spec)
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert checkpoint.config is not None
    views = read_preprocess(checkpoint.config["views"]).views()
    with torch.no_grad():
        x = network(spec)(views.evaluation_view(generate_images(24, 40)))
    labels = torch.tensor([0, 1, 3])[torch.arange(24) % 3]
    train = Features(x, labels, torch.arange(24))
    probes: list[Any] = [LogisticRegressionProbe([0.01, 0.1], 0.2, 0, 100), KNN([3], 0.1)]
    scores = [score for probe in probes for score in probe.fit_predict(train, train, len(CLASSES))]
    rows: list[Row] = [make_row("pretrained", score, 24, 24) for score in scores]
    context = HeadContext(CLASSES, checkpoint.sha256, views.evaluation(), "32-true", 256)
    write_heads(run / "report" / "heads", rows, context)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluated(tmp_path_factory.mktemp("resnet") / "run", RESNET)


def probabilities(run: Path, spec: dict[str, Any], images: Tensor) -> Tensor:
    """What predict makes of images [B, 3, h, w]: of the three classes that the head was fitted with."""
    kept = read_head(run / "report" / "heads", "linear")
    with torch.no_grad():
        x = network(spec)(images)
    nobody = torch.zeros(len(x), dtype=torch.long)
    _, log_p = classify_features(kept, Features(x, nobody, nobody))
    return kept.calibration.apply(log_p).exp()[:, [0, 1, 3]]


@pytest.mark.parametrize("to", TARGETS)
def test_the_lines_of_the_card_give_the_probabilities_of_predict(
    run: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if to == "onnx" and find_spec("onnxruntime") is None:
        pytest.skip("needs onnx, onnxscript and onnxruntime")
    folder = unlabeled.export(run, to, head="linear", data_images=0)
    assert folder.name == f"{to}-linear"
    left = run_the_card(folder, monkeypatch)
    found = torch.as_tensor(left["logits"]).double().softmax(1)
    torch.testing.assert_close(found, probabilities(run, RESNET, left["images"]), rtol=1e-4, atol=1e-6)
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "<dog>", "2": "ελιά"}
    page = (folder / "README.md").read_text()
    assert "logits of 3 classes out" in page
    assert "pipeline_tag: image-classification" in page


def test_a_vit_of_timm_and_transformers_has_the_classes_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = evaluated(tmp_path / "run", VIT_GAP)
    folder = unlabeled.export(run, "huggingface", head="linear", data_images=0)
    left = run_the_card(folder, monkeypatch)
    wanted = probabilities(run, VIT_GAP, left["images"])
    torch.testing.assert_close(torch.as_tensor(left["logits"]).double().softmax(1), wanted, rtol=1e-4, atol=1e-6)
    assert left["model"].num_classes == 3
    if find_spec("transformers") is None:
        pytest.skip("timm is compared; transformers is not installed")
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    assert model.config.id2label == {0: "cat", 1: "<dog>", 2: "ελιά"}
    with torch.no_grad():
        found = model(left["images"]).logits.double().softmax(1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_without_a_head_the_backbone_alone_goes_to_torch_export(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = run_the_card(unlabeled.export(run, "torch_export", data_images=0), monkeypatch)
    with torch.no_grad():
        wanted = network(RESNET)(left["images"])
    torch.testing.assert_close(left["features"], wanted, rtol=1e-4, atol=1e-5)


def test_k_nn_is_no_layer_and_is_refused(run: Path) -> None:
    with pytest.raises(UserError, match=r"head=knn: knn/cosine-exp/k=3/T=0.1 is no linear classifier"):
        unlabeled.export(run, "onnx", head="knn")
    assert not (run / "export" / "onnx-knn").exists()

"""Writes each export target: files in a folder, and the lines of Python that compute features from them.

The model card shows the same lines that are run to compare features, so that the card cannot be wrong. Their inputs are
``folder`` (text) and ``images`` (float32 [B, 3, size, size]), their result is ``features``, [B, num_features].
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unlabeled.core.writing import save_by, save_safetensors, save_tensors, write_atomic
from unlabeled.errors import UserError
from unlabeled.objective import Backbone
from unlabeled.weights.architecture import LibraryModel, to_timm, to_torchvision
from unlabeled.weights.classifier import LinearClassifier, joined, outputs
from unlabeled.weights.preprocess import Preprocess

OPSET = 18  # the oldest that torch's exporter writes without converting; onnxruntime reads it since 1.14 (2023)
ONE_ONNX_FILE = 1_900_000_000  # bytes of weights in one file: protobuf's limit is 2 GiB
WRAPPERS = ("_orig_mod.", "module.", "backbone.")  # of torch.compile, DDP and objectives
PLAIN_USE = "with torch.inference_mode():\n    features = model(images)"


@dataclass(frozen=True)
class ExportSource:
    """The backbone to export, with its description."""

    backbone: Backbone  # float32 on the CPU, in eval mode
    spec: Mapping[str, Any]  # what it was built from, the ``backbone`` of a configuration as plain values
    preprocess: Preprocess
    classifier: LinearClassifier | None = None  # logits are written then, and compared

    @property
    def result(self) -> str:
        """Returns what the written lines make of images."""
        return "features" if self.classifier is None else "logits"

    @property
    def use(self) -> str:
        """Returns the lines for a model that is called."""
        return PLAIN_USE.replace("features", self.result)


@dataclass(frozen=True)
class ExportedModel:
    """The result of an export to one target."""

    load: str  # lines that make what ``use`` needs from ``folder``
    use: str  # lines that make ``features`` of ``images``, or ``logits``
    library: str  # as the Hugging Face Hub calls it
    packages: tuple[str, ...]  # whose versions belong on the card
    notes: tuple[str, ...] = ()  # sentences for the card


Writer = Callable[[ExportSource, Path], ExportedModel]


def write_safetensors(source: ExportSource, folder: Path) -> ExportedModel:
    """Writes ``model.safetensors`` with our names, which are torchvision's or timm's, and ``config.json``."""
    own = {} if source.classifier is None else source.classifier.state("classifier")
    _save_safetensors(source.backbone.state_dict() | own, folder / "model.safetensors")
    config: dict[str, Any] = {"backbone": source.spec, "preprocess": source.preprocess.as_dict()}
    config |= {"num_features": source.backbone.num_features}
    _write_json(folder / "config.json", config | (source.classifier.labels() if source.classifier else {}))
    module, _, name = str(source.spec["_target_"]).rpartition(".")
    build = _call(name, *_named({key: value for key, value in source.spec.items() if not key.startswith("_")}))
    load = (
        f"import torch\nfrom safetensors.torch import load_file\nfrom {module} import {name}\n\nmodel = {build}\n"
        'model.load_state_dict(load_file(f"{folder}/model.safetensors"))\nmodel.eval()'
    )
    if source.classifier is None:
        return ExportedModel(load, PLAIN_USE, "unlabeled", ("safetensors",))
    whole = 'model.load_state_dict(load_file(f"{folder}/model.safetensors"))'
    parts = (
        'state = load_file(f"{folder}/model.safetensors")\n'
        'weight, bias = state.pop("classifier.weight"), state.pop("classifier.bias")\nmodel.load_state_dict(state)'
    )
    use = "with torch.inference_mode():\n    logits = torch.nn.functional.linear(model(images), weight, bias)"
    return ExportedModel(load.replace(whole, parts), use, "unlabeled", ("safetensors",))


def write_torchvision(source: ExportSource, folder: Path) -> ExportedModel:
    """Writes ``model.pth`` without a classifier: a made-up one would give made-up classes without an error."""
    network = to_torchvision(source.backbone, source.spec, "torchvision")
    own = source.classifier
    save_tensors(folder / "model.pth", _clean(network.state | (own.state(network.classifier) if own else {})))
    _write_labels(source, folder)
    layer = f"torch.nn.Linear({own.weight.shape[1]}, {len(own.bias)})" if own else "torch.nn.Identity()"
    build = _call("torchvision.models.get_model", repr(network.name), "weights=None", *_named(network.arguments))
    load = (
        f"import torch\nimport torchvision\n\nmodel = {build}\n"
        f'model.set_submodule("{network.classifier}", {layer})\n'
        'model.load_state_dict(torch.load(f"{folder}/model.pth", weights_only=True))\nmodel.eval()'
    )
    note = f"`model.pth` has no classifier: put your own in the place of `{network.classifier}` after loading."
    return ExportedModel(load, source.use, "torchvision", ("torchvision",), () if own else (note,))


def write_timm(source: ExportSource, folder: Path) -> ExportedModel:
    """Writes ``model.safetensors`` for ``timm.create_model(…, checkpoint_path=FILE)``, which loads it strictly."""
    network = to_timm(source.backbone, source.spec, "timm")
    _save_safetensors(_with_classifier(network, source), folder / "model.safetensors")
    _write_labels(source, folder)
    count = f"num_classes={_count(source)}"
    file = 'checkpoint_path=f"{folder}/model.safetensors"'
    overlay = f"pretrained_cfg_overlay={source.preprocess.timm()!r}"
    build = _call("timm.create_model", repr(network.name), count, file, *_named(network.arguments), overlay)
    load = f"import timm\nimport torch\n\nmodel = {build}.eval()"
    return ExportedModel(load, source.use, "timm", ("timm", "safetensors"), (TIMM_TRANSFORM,))


def _count(source: ExportSource) -> int:
    """Returns timm's number of classes; 0 is a model without a classifier."""
    return 0 if source.classifier is None else len(source.classifier.bias)


def _with_classifier(network: LibraryModel, source: ExportSource) -> Mapping[str, Tensor]:
    """Adds the classifier's tensors under the name that timm's model has for them."""
    if source.classifier is None:
        return network.state
    return {**network.state, **source.classifier.state(_timm_classifier(network, source))}


def _timm_classifier(network: LibraryModel, source: ExportSource) -> str:
    import timm

    model = timm.create_model(network.name, num_classes=_count(source), **network.arguments)
    own = model.get_classifier()
    return str(next(name for name, module in model.named_modules() if module is own))


TIMM_TRANSFORM = (
    "`timm.data.create_transform(**timm.data.resolve_model_data_config(model))` prepares images in the same way, but "
    "resizes before it crops."
)


TRANSFORMERS = (
    "`transformers.AutoModel.from_pretrained(folder)` reads this folder too, where it is installed beside timm; "
    "features are its `pooler_output`. That was not checked here."
)
TRANSFORMERS_CLASSIFIER = (
    "`transformers.AutoModelForImageClassification.from_pretrained(folder)` reads this folder too, where it is "
    "installed beside timm; its `config.id2label` names the classes. That was not checked here."
)


def write_huggingface(source: ExportSource, folder: Path) -> ExportedModel:
    """Writes a folder in the form of timm and the Hub: ``model.safetensors`` and ``config.json``."""
    network = to_timm(source.backbone, source.spec, "huggingface")
    _save_safetensors(_with_classifier(network, source), folder / "model.safetensors")
    _write_json(folder / "config.json", _hub_config(network, source))
    count = ", num_classes=0" if source.classifier is None else ""
    load = (
        "import timm\nimport torch\n\n"
        f'model = timm.create_model(f"local-dir:{{folder}}", pretrained=True{count}).eval()'
    )
    notes = (
        TIMM_TRANSFORM,
        "From the Hub, timm takes `hf-hub:OWNER/NAME`.",
        TRANSFORMERS if source.classifier is None else TRANSFORMERS_CLASSIFIER,
    )
    return ExportedModel(load, source.use, "timm", ("timm", "safetensors"), notes)


def _hub_config(network: LibraryModel, source: ExportSource) -> dict[str, Any]:
    """Makes config.json without timm's entries for its own weights of this name, such as licence and classes."""
    import timm

    known = timm.models.get_pretrained_cfg(network.name)
    theirs = known.to_dict() if known else {}
    kept = {key: theirs[key] for key in ("first_conv", "classifier", "fixed_input_size") if key in theirs}
    config: dict[str, Any] = {
        "architecture": network.name.partition(".")[0],
        "num_classes": _count(source),
        "num_features": source.backbone.num_features,
        "pretrained_cfg": {"custom_load": False, "num_classes": _count(source), **source.preprocess.timm(), **kept},
    }
    if source.classifier is not None:
        config["pretrained_cfg"]["classifier"] = _timm_classifier(network, source)
        config |= {"label_names": list(source.classifier.classes), **source.classifier.labels()}
    return config | ({"model_args": network.arguments} if network.arguments else {})


def write_onnx(source: ExportSource, folder: Path) -> ExportedModel:
    """Writes ``model.onnx`` by torch's exporter, for images of their own size and batches of any size."""
    size, file = source.preprocess.size, folder / "model.onnx"
    big = sum(value.numel() * value.element_size() for value in source.backbone.state_dict().values()) > ONE_ONNX_FILE
    _write_labels(source, folder)
    torch.onnx.export(
        joined(source.backbone, source.classifier),
        (torch.zeros(2, 3, size, size),),  # two images: the exporter would take a batch of 1 for a constant
        file,
        dynamo=True,
        opset_version=OPSET,
        input_names=["images"],
        output_names=[source.result],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=big,
        verbose=False,
    )
    load = (
        "import onnxruntime\n\n"
        'session = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])'
    )
    name = source.result
    use = f'{name} = session.run(["{name}"], {{"images": images.numpy()}})[0]'
    note = (
        f"ONNX opset {_opset(file)}; input `images` float32 [batch, 3, {size}, {size}], output `{name}` float32 "
        f"[batch, {outputs(source.backbone, source.classifier)}]; the size of the batch is free, that of the images is "
        "not."
    )
    return ExportedModel(load, use, "onnx", ("onnx", "onnxscript", "onnxruntime"), (note,))


def write_torch_export(source: ExportSource, folder: Path) -> ExportedModel:
    """Writes ``model.pt2`` by ``torch.export``, for images of their own size and batches of any size."""
    size = source.preprocess.size
    program = torch.export.export(
        joined(source.backbone, source.classifier),
        (torch.zeros(2, 3, size, size),),  # two images: a batch of 1 would be taken for a constant
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    _write_labels(source, folder)
    save_by(folder / "model.pt2", lambda file: torch.export.save(program, file))
    load = 'import torch\n\nmodel = torch.export.load(f"{folder}/model.pt2").module()'
    note = f"The size of the batch is free, that of the images is not: {size} × {size} pixels."
    return ExportedModel(load, source.use, "pytorch", (), (note,))


def _write_labels(source: ExportSource, folder: Path) -> None:
    """Names the classes in a file of its own where the format has no place for them."""
    if source.classifier is not None:
        _write_json(folder / "config.json", source.classifier.labels())


def _opset(file: Path) -> int:
    import onnx

    model = onnx.load(str(file), load_external_data=False)
    return next(int(each.version) for each in model.opset_import if each.domain in ("", "ai.onnx"))


WRITERS: dict[str, Writer] = {
    "timm": write_timm,
    "torchvision": write_torchvision,
    "safetensors": write_safetensors,
    "huggingface": write_huggingface,
    "onnx": write_onnx,
    "torch_export": write_torch_export,
}
NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime")}  # packages besides the project's own requirements


def require_packages(to: str) -> None:
    """Raises UserError unless all packages that a target needs for writing and reading are installed."""
    missing = [name for name in NEEDS.get(to, ()) if find_spec(name) is None]
    if missing:
        raise UserError(f"to={to}: {' and '.join(missing)} not installed: pip install 'unlabeled[export]'")


def reload_export(written: ExportedModel, folder: Path) -> Callable[[Tensor], Tensor]:
    """Runs the lines of the card: returns what is in ``folder`` as a function from images to features."""
    names: dict[str, Any] = {"folder": str(folder)}
    exec(written.load, names)

    def features(images: Tensor) -> Tensor:
        names["images"] = images
        exec(written.use, names)
        return torch.as_tensor(names["logits" if "logits" in names else "features"])

    return features


def _clean(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies tensors so that none share memory; refuses wrappers' names in keys, a mistake of ours."""
    wrapped = [key for key in state if key.startswith(WRAPPERS) or "_orig_mod." in key]
    if wrapped:
        raise ValueError(f"names of wrappers among the tensors: {', '.join(wrapped)}")
    return {key: value.detach().clone().contiguous() for key, value in state.items()}


def _save_safetensors(state: Mapping[str, Tensor], file: Path) -> None:
    save_safetensors(file, _clean(state), {"format": "pt"})


def _call(function: str, *arguments: str) -> str:
    """Formats a call, in one line where there is room."""
    line = f"{function}({', '.join(arguments)})"
    return line if len(line) <= 100 else f"{function}(\n" + "".join(f"    {each},\n" for each in arguments) + ")"


def _named(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value!r}" for key, value in values.items()]


def _write_json(file: Path, content: Any) -> None:
    write_atomic(file, json.dumps(content, indent=2) + "\n")


def count_parameters(network: nn.Module) -> int:
    """Counts trained and fixed parameters, without buffers."""
    return sum(parameter.numel() for parameter in network.parameters())

"""A compiled network is the network: its numbers, its names, its resumed runs; and it is compiled once."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import pytest
import torch
import torch._dynamo.config
from hydra.utils import instantiate
from torch import Tensor
from torch._dynamo.utils import counters

from tests.small import chosen_for, composed, missing_keys, shrink
from unlabeled.commands.build.network import build_objective
from unlabeled.data.support import NeedsSupport
from unlabeled.distributed import batchnorm
from unlabeled.errors import UserError
from unlabeled.evaluation.features import extract, split_batches
from unlabeled.objective import Batch, Objective, Plan, Progress, Support
from unlabeled.training.faults.diagnosis import find_non_finite
from unlabeled.training.machine.compilation import Mode, compile_network
from unlabeled.training.pretraining import Pretraining
from unlabeled.views.key import ViewKey

CPU = torch.device("cpu")
SMALL = {
    "resnet": ("resnet_thin", ["backbone.width=0.125"]),
    "vit": ("vit_tiny_small", ["backbone.depth=1", "backbone.width=24", "backbone.heads=2"]),
}
OBJECTIVES = {
    "simclr": (),
    "moco_v2": ("objective.bn_splits=2", "objective.queue_size=64"),
    "swav": ("objective.prototypes=20", "objective.freeze_prototypes_epochs=0.1"),
    "relicv2": ("objective.negatives=4",),
    "paws": ("objective.support.classes_per_batch=2",),
    "mae": ("objective.decoder_depth=1", "objective.decoder_width=16", "objective.decoder_heads=2"),
    "ijepa": ("objective.predictor_depth=1", "objective.predictor_width=16", "objective.predictor_heads=2"),
}


def built(name: str, backbone: str, *overrides: str) -> tuple[Objective, list[Batch]]:
    """An objective on a small backbone, and six batches with its views."""
    config = composed(*chosen_for(name, SMALL[backbone][0]), *SMALL[backbone][1], *OBJECTIVES[name], *overrides)
    config.views.update({key: None for key in missing_keys(config.views)})
    shrink(config.views, 16)
    objective = build_objective(config).to(memory_format=torch.channels_last)
    views, drawn = instantiate(config.views), torch.Generator().manual_seed(0)
    images, ids = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=drawn), torch.arange(8)
    made = [views(images, ids, ViewKey(0, step, 0, 8)) for step in range(6)]
    needed = isinstance(objective, NeedsSupport)
    supports = [Support(images, ids, ids % 2, seen[:1], labels=ids % 2) if needed else None for seen in made]
    return objective, [Batch(images, ids, ids, seen, each) for seen, each in zip(made, supports, strict=True)]


def steps(objective: Objective, batches: list[Batch], first: int = 0) -> Iterator[dict[str, Tensor]]:
    """Loss, gradients and state of one step after the other."""
    optimizer = torch.optim.SGD([each for each in objective.parameters() if each.requires_grad], lr=0.01)
    for step, batch in enumerate(batches, first):
        torch.manual_seed(step)
        loss = objective(batch, Progress(step, 6, 6, 0)).loss
        optimizer.zero_grad()
        loss.backward()
        gradients = {f"gradient of {name}": p.grad for name, p in objective.named_parameters() if p.grad is not None}
        optimizer.step()
        objective.after_step(Progress(step, 6, 6, 0))
        yield {"loss": loss.detach(), **gradients, **objective.state_dict()}


@contextmanager
def nothing_is_compiled_again() -> Iterator[None]:
    before = counters["stats"]["unique_graphs"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    assert counters["stats"]["unique_graphs"] == before


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "ijepa"])
def test_each_objective_is_compiled_once_gives_what_it_gave_and_is_evaluated_uncompiled(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(batchnorm, "few_launches", lambda device: True)  # uncompiled in the form that is compiled
    backbone = "vit" if name == "mae" else "resnet"
    (plain, batches), (compiled, _) = built(name, backbone), built(name, backbone)
    compile_network(compiled, "default", CPU, 1, False)
    with torch.compiler.set_stance("default", force_backend="aot_eager"):
        counters.clear()
        pairs = zip(steps(plain, batches[:1]), steps(compiled, batches[:1]), strict=True)
        compare(pairs)
        assert counters["stats"]["unique_graphs"] > 0
        with nothing_is_compiled_again():
            images, ids = batches[0].images[:5], torch.arange(5)
            few = split_batches(images, ids, ids, 3)  # of three images, and of two
            features = [extract(each.backbone, few, lambda x, _: x.float(), CPU).x for each in (plain, compiled)]
            compare(zip(steps(plain, batches[1:], 1), steps(compiled, batches[1:], 1), strict=True))
    assert torch.allclose(features[1], features[0], rtol=1e-5, atol=1e-6)
    assert list(compiled.state_dict()) == list(plain.state_dict())


def compare(pairs: Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]], tolerance: float = 1e-4) -> None:
    for expected, found in pairs:
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            atol = tolerance * max(0.01, float(value.abs().max()))  # a bias before a BatchNorm has a gradient of noise
            torch.testing.assert_close(found[name], value, rtol=tolerance, atol=atol, msg=name)


@pytest.mark.parametrize(
    ("name", "backbone", "override"),
    [("simclr", "resnet", "seed=0"), ("mae", "vit", "backbone.gradient_checkpointing=true")],
)
def test_machine_code_gives_loss_gradients_and_statistics_within_rounding(
    name: str, backbone: str, override: str
) -> None:
    torch._dynamo.reset()
    (plain, batches), (compiled, _) = built(name, backbone), built(name, backbone, override)
    compile_network(compiled, "default", CPU, 1, False)
    compare(zip(steps(plain, batches[:2]), steps(compiled, batches[:2]), strict=True), 1e-3)
    with torch.no_grad(), nothing_is_compiled_again():
        copied = copy.deepcopy(compiled.backbone)(batches[0].views[0])  # what is copied is not compiled
    assert torch.isfinite(copied).all()


def test_a_method_whose_shapes_vary_is_compiled_for_all_lengths_and_gets_no_cuda_graph() -> None:
    torch._dynamo.reset()
    (plain, batches), (compiled, _) = (
        built("ijepa", "vit", "backbone.patch_size=2"),
        built("ijepa", "vit", "backbone.patch_size=2"),
    )
    for mode in ("reduce-overhead", "graph"):
        with pytest.raises(UserError, match=rf"^compile={mode}: a CUDA graph repeats one shape, and blocks of IJEPA"):
            compile_network(compiled, mode, torch.device("cuda"), 1, False)
    compile_network(compiled, "default", CPU, 1, False)
    with torch.compiler.set_stance("default", force_backend="aot_eager"):
        counters.clear()
        compare(zip(steps(plain, batches), steps(compiled, batches), strict=True))
    parts = 3 + 1 + 3  # of encoder, predictor and teacher
    assert 0 < counters["stats"]["unique_graphs"] <= 2 * parts


def test_a_step_looked_at_again_is_not_compiled_and_names_the_tensor_within() -> None:
    torch._dynamo.reset()
    objective, batches = built("simclr", "resnet")
    compile_network(objective, "default", CPU, 1, False)
    objective.backbone.get_submodule("layer3.0.conv1").register_forward_hook(lambda module, given, made: made / 0)
    counters.clear()
    views, nothing = cast(Any, lambda *given, **named: batches[0].views), cast(Any, None)
    module = Pretraining(objective, views, nothing, Plan(8, 1, 48, (16, 16)), 1, 6, 6, 0, 1, {}, nothing)
    finding = find_non_finite(module, batches[0]._replace(views=()), nullcontext())
    assert finding.name.startswith("backbone.layer3.0.conv1 output has")
    assert not counters["stats"]


@pytest.mark.parametrize("mode", ["reduce-overhead", "graph"])
def test_cuda_graphs_begin_anew_with_each_step_and_not_with_each_accumulated_batch(
    mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(1))
    objective, batches = built("simclr", "resnet")
    compile_network(objective, mode, torch.device("cuda"), 1, False)
    with torch.compiler.set_stance("force_eager"):
        for part in range(3):
            objective(batches[0], Progress(0, 6, 6, 0, part, 3))
    assert begun == [1]


@pytest.mark.parametrize(
    ("mode", "device", "processes", "sharded", "message"),
    [
        ("default", "cpu", 2, True, "compile=default: does not go with trainer.strategy=fsdp"),
        ("reduce-overhead", "cpu", 1, False, "compile=reduce-overhead: needs a GPU, and this run is on a CPU"),
        ("max-autotune", "cuda", 2, False, "compile=max-autotune: torch makes no CUDA graphs of BatchNorm under ddp"),
        ("graph", "cpu", 1, False, "compile=graph: needs a GPU, and this run is on a CPU; leave compile out"),
        ("default", "cpu", 1, False, "compile=default: does not go with gradient checkpointing of BatchNorm"),
    ],
)
def test_what_cannot_be_compiled_is_refused_by_the_key(
    mode: Mode, device: str, processes: int, sharded: bool, message: str
) -> None:
    objective, _ = built("simclr", "resnet", "backbone.gradient_checkpointing=true")
    with pytest.raises(UserError, match=message):
        compile_network(objective, mode, torch.device(device), processes, sharded)

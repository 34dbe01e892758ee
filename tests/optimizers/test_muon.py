"""Muon: matrices and kernels of the blocks against a literal float64 loop, everything else against torch's AdamW."""

import copy
import gc
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.small import composed
from unlabeled.backbones.resnet import ResNet
from unlabeled.backbones.vit import ViT
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.errors import UserError
from unlabeled.objective import Progress
from unlabeled.optimizers import Muon, OptimizerConfig
from unlabeled.training.faults.guard import _why_not_deferred
from unlabeled.training.plan.memory import optimizer_slots

Array = NDArray[np.float64]
RATES = [0.01, 0.02, 0.03, 0.02, 0.01]
DECAY = 0.1
BFLOAT16 = 2**-8  # of what is made orthogonal in bfloat16


def recipe() -> OptimizerConfig:
    return OptimizerConfig(
        partial(Muon, momentum=0.9, betas=(0.8, 0.95)),
        lr=0.01,
        lr_scaling="none",
        warmup_epochs=0,
        weight_decay=DECAY,
        decay_bias_and_norm=False,
    )


class Method(nn.Module):
    """A backbone and a head, as a method has them."""

    def __init__(self, kind: str = "vit") -> None:
        super().__init__()
        torch.manual_seed(0)
        vit = kind == "vit"
        network = ViT(image_size=16, patch_size=8, width=32, depth=2, heads=2) if vit else ResNet(10, 0.125, "cifar")
        self.backbone: Any = network
        self.head = nn.Linear(32, 5)


def gradients(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = RATES[step]
        gradients(module, step)
        optimizer.step()


def orthogonal(matrix: Array) -> Array:
    """Jordan 2024: five steps of a polynomial of fifth degree, which bring singular values near 1."""
    tall = matrix.shape[0] > matrix.shape[1]
    x: Array = matrix.T if tall else matrix
    x = x / np.sqrt((x**2).sum())
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    nearest: Array = x.T if tall else x
    return nearest


def literal(weight: Array, given: list[Array]) -> Array:
    """arXiv:2502.16982, equations 1 to 4, with Nesterov's momentum 0.9 and decoupled weight decay."""
    shape = weight.shape
    weight = weight.reshape(len(weight), -1)
    mean = np.zeros_like(weight)
    for gradient, rate in zip(given, RATES, strict=True):
        row = gradient.reshape(weight.shape)
        mean = 0.9 * mean + 0.1 * row
        update = orthogonal(0.1 * row + 0.9 * mean)
        weight = weight * (1 - rate * DECAY) - rate * 0.2 * math.sqrt(max(weight.shape)) * update
    return weight.reshape(shape)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("kind", "count"), [("vit", 8), ("resnet", 11)])
def test_each_matrix_and_kernel_of_the_blocks_takes_the_steps_of_the_papers_in_float64(
    kind: str, count: int, memory: torch.memory_format
) -> None:
    method = Method(kind).to(memory_format=memory)
    before = {name: each.detach().double().numpy().copy() for name, each in method.named_parameters()}
    drawn: dict[str, list[Array]] = {name: [] for name in before}
    for step in range(len(RATES)):
        gradients(method, step)
        for name, each in method.named_parameters():
            if each.grad is not None:
                drawn[name].append(each.grad.double().numpy().copy())
    train(method, recipe().build(method, 256), range(len(RATES)))
    moved = [name for name, each in method.named_parameters() if is_of_a_block(name) and each.ndim > 1]
    assert len(moved) == count  # four in a block of a ViT; eight 3 × 3 and three 1 × 1 of ResNet-10
    for name in moved:
        weight, start = method.get_parameter(name), before[name]
        wanted = literal(start, drawn[name]) - start
        error = np.abs(weight.detach().double().numpy() - start - wanted)
        assert np.sqrt((error**2).mean()) < 4 * BFLOAT16 * np.sqrt((wanted**2).mean()), name


def is_of_a_block(name: str) -> bool:
    return name.startswith(("backbone.blocks.", "backbone.layer"))


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_the_first_layer_the_heads_biases_and_norms_take_the_steps_of_adamw(kind: str) -> None:
    ours, theirs = Method(kind), Method(kind)
    optimizer = recipe().build(ours, 256)
    matrices = {id(each) for name, each in ours.named_parameters() if is_of_a_block(name) and each.ndim > 1}
    kinds = {id(each): group["orthogonal"] for group in optimizer.param_groups for each in group["params"]}
    assert {key for key, is_orthogonal in kinds.items() if is_orthogonal} == matrices
    decayed = [{"params": [each], "weight_decay": DECAY if each.ndim > 1 else 0.0} for each in theirs.parameters()]
    train(ours, optimizer, range(len(RATES)))
    train(theirs, torch.optim.AdamW(decayed, lr=0.01, betas=(0.8, 0.95)), range(len(RATES)))
    for name, weight in ours.named_parameters():
        if id(weight) not in matrices and weight.requires_grad:
            torch.testing.assert_close(weight, theirs.get_parameter(name), rtol=1e-6, atol=1e-7, msg=name)


def test_a_step_has_singular_values_near_one_and_the_length_of_one_of_adamw() -> None:
    method = Method()
    weight = method.backbone.blocks.get_parameter("0.mlp.fc1.weight")
    before = weight.detach().clone()
    optimizer = recipe().build(method, 256)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    train(method, optimizer, range(1))
    step = (weight.detach() - before).div(-RATES[0] * 0.2 * math.sqrt(max(weight.shape)))
    values = torch.linalg.svdvals(step.double())
    assert float(values.min()) > 0.5  # where five iterations end, in torch's own words
    assert float(values.max()) < 1.5
    root_mean_square = float((weight.detach() - before).square().mean().sqrt())
    assert 0.14 * RATES[0] < root_mean_square < 0.26 * RATES[0]  # 0.2: arXiv:2502.16982, section 2.2


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_resumed_run_takes_the_steps_of_an_uninterrupted_one_bit_for_bit(kind: str) -> None:
    whole, first = Method(kind), Method(kind)
    train(whole, recipe().build(whole, 256), range(len(RATES)))
    optimizer = recipe().build(first, 256)
    train(first, optimizer, range(3))
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(first.state_dict())
    resumed = Method(kind)
    resumed.load_state_dict(weights)
    again = recipe().build(resumed, 256)
    again.load_state_dict(saved)
    train(resumed, again, range(3, len(RATES)))
    assert all(torch.equal(mine, wanted) for mine, wanted in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_nothing_holds_the_gradients_of_a_step_after_zero_grad() -> None:
    method = Method("resnet")
    optimizer = recipe().build(method, 256)
    train(method, optimizer, range(1))
    places = {each.grad.data_ptr() for each in method.parameters() if each.grad is not None}
    optimizer.zero_grad()
    tensors = [each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter)]  # others may have no memory
    held = [each for each in tensors if each.data_ptr() in places]
    assert held == []


def test_rates_and_decay_of_a_step_reach_both_kinds() -> None:
    method = Method()
    settings = recipe()
    optimizer = settings.build(method, 256)
    settings.set_step(optimizer, Progress(50, 100, 10, seed=0), 256)
    rates = {group["orthogonal"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({True: 0.005, False: 0.005})  # half of a cosine
    assert {group["weight_decay"] for group in optimizer.param_groups} == {DECAY, 0.0}


def test_a_closure_is_called_with_gradients() -> None:
    method = Method()
    optimizer = recipe().build(method, 256)
    images = torch.zeros(2, 3, 16, 16)

    def closure() -> float:
        loss: Tensor = method.head(method.backbone(images)).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    assert optimizer.step(closure) > 0


def test_frozen_blocks_are_refused_in_one_line_and_of_unknown_blocks_all_but_the_first_are_taken() -> None:
    frozen, unknown = Method(), Method()
    for block in frozen.backbone.blocks:
        block.requires_grad_(False)
    with pytest.raises(UserError, match=r"^optimizer=muon: ViT has no block that is trained: give a smaller backb"):
        recipe().build(frozen, 256)
    unknown.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 32))
    groups = recipe().build(unknown, 256).param_groups
    moved = {id(each) for group in groups if group["orthogonal"] for each in group["params"]}
    assert moved == {id(unknown.backbone[1].weight), id(unknown.backbone[3].weight)}


def test_the_memory_of_two_numbers_for_adamw_and_one_for_muon_is_counted() -> None:
    method = Method()
    optimizer = recipe().build(method, 256)
    train(method, optimizer, range(1))
    kept = sum(slot.numel() for state in optimizer.state.values() for name, slot in state.items() if name != "step")
    trained = sum(each.numel() for each in method.parameters() if each.requires_grad)
    assert optimizer_slots(optimizer) == pytest.approx(kept / trained, rel=1e-12)
    assert 1 < optimizer_slots(optimizer) < 2


def test_a_run_that_muon_cannot_train_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    given = ("data=digits", "backbone=vit_tiny_small", "optimizer=muon", "trainer.accelerator=cpu")
    config = composed(*given, "trainer.strategy=fsdp", f"run_dir={tmp_path}/run")
    with pytest.raises(UserError, match=r"^optimizer=muon: takes whole matrices, which fsdp cuts: give trainer"):
        build_run(config, open_run(config))
    assert {each.name for each in (tmp_path / "run").glob("*")} <= {"lock"}  # which ends with the process


def test_that_each_step_waits_on_a_gpu_is_said_without_a_remedy_that_is_none() -> None:
    trainer = SimpleNamespace(precision_plugin=None, strategy=None, optimizers=[recipe().build(Method(), 256)])
    assert _why_not_deferred(trainer) == "Muon cannot skip a step"  # type: ignore[arg-type]


@pytest.mark.usefixtures("alone")
def test_weights_that_are_cut_are_refused_with_what_to_take_instead() -> None:
    method = Method()
    fully_shard(method, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(UserError, match=r"sharded weights: give trainer\.strategy=ddp, or optimizer=adamw$"):
        recipe().build(method, 256)

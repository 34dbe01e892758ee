"""Muon: matrices of the blocks against a literal float64 loop, everything else against torch's AdamW."""

import copy
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from unlabeled.backbones.resnet import ResNet
from unlabeled.backbones.vit import ViT
from unlabeled.errors import UserError
from unlabeled.objective import Progress
from unlabeled.optimizers import Muon, OptimizerConfig

Array = NDArray[np.float64]
RATES = [0.01, 0.02, 0.03, 0.02, 0.01]
DECAY = 0.1
BFLOAT16 = 2**-8  # of what is made orthogonal in bfloat16


def recipe() -> OptimizerConfig:
    return OptimizerConfig(
        partial(Muon, momentum=0.9, betas=[0.8, 0.95]),
        lr=0.01,
        lr_scaling="none",
        warmup_epochs=0,
        weight_decay=DECAY,
        decay_bias_and_norm=False,
    )


class Method(nn.Module):
    """A backbone and a head, as a method has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = ViT(image_size=16, patch_size=8, width=32, depth=2, heads=2)
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
    mean = np.zeros_like(weight)
    for gradient, rate in zip(given, RATES, strict=True):
        mean = 0.9 * mean + 0.1 * gradient
        update = orthogonal(0.1 * gradient + 0.9 * mean)
        weight = weight * (1 - rate * DECAY) - rate * 0.2 * math.sqrt(max(weight.shape)) * update
    return weight


def test_each_matrix_of_the_blocks_takes_the_steps_of_the_papers_in_float64() -> None:
    method = Method()
    before = {name: each.detach().double().numpy().copy() for name, each in method.named_parameters()}
    drawn: dict[str, list[Array]] = {name: [] for name in before}
    for step in range(len(RATES)):
        gradients(method, step)
        for name, each in method.named_parameters():
            if each.grad is not None:
                drawn[name].append(each.grad.double().numpy().copy())
    train(method, recipe().build(method, 256), range(len(RATES)))
    moved = [name for name, each in method.backbone.blocks.named_parameters() if each.ndim == 2]
    assert len(moved) == 8  # four in each block: queries with keys and values, their projection, two of the MLP
    for name in moved:
        weight, start = method.backbone.blocks.get_parameter(name), before[f"backbone.blocks.{name}"]
        wanted = literal(start, drawn[f"backbone.blocks.{name}"]) - start
        error = np.abs(weight.detach().double().numpy() - start - wanted)
        assert np.sqrt((error**2).mean()) < 4 * BFLOAT16 * np.sqrt((wanted**2).mean()), name


def test_the_first_layer_the_heads_biases_and_norms_take_the_steps_of_adamw() -> None:
    ours, theirs = Method(), Method()
    optimizer = recipe().build(ours, 256)
    matrices = {id(each) for each in ours.backbone.blocks.parameters() if each.ndim == 2}
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


def test_a_resumed_run_takes_the_steps_of_an_uninterrupted_one_bit_for_bit() -> None:
    whole, first = Method(), Method()
    train(whole, recipe().build(whole, 256), range(len(RATES)))
    optimizer = recipe().build(first, 256)
    train(first, optimizer, range(3))
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(first.state_dict())
    resumed = Method()
    resumed.load_state_dict(weights)
    again = recipe().build(resumed, 256)
    again.load_state_dict(saved)
    train(resumed, again, range(3, len(RATES)))
    assert all(torch.equal(mine, wanted) for mine, wanted in zip(resumed.parameters(), whole.parameters(), strict=True))


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


def test_a_backbone_without_matrices_in_its_blocks_is_refused_in_one_line() -> None:
    module = nn.Module()
    module.backbone = ResNet(10, 0.125, "cifar")
    with pytest.raises(UserError, match=r"^optimizer=muon: the blocks of ResNet have no matrices: take a ViT, or"):
        recipe().build(module, 256)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_weights_that_are_cut_are_refused_with_what_to_take_instead() -> None:
    method = Method()
    fully_shard(method, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(UserError, match=r"sharded weights: give trainer\.strategy=ddp, or optimizer=adamw$"):
        recipe().build(method, 256)

"""BatchNorm over two processes is BatchNorm over their joined batch."""

import copy
import os
import socket

import pytest
import torch
from torch import Tensor, nn

from tests.forked import spawn
from unlabeled.backbones.resnet import ResNet
from unlabeled.distributed.batchnorm import SplitBatchNorm, SyncedBatchNorm, split_batchnorm
from unlabeled.distributed.sync_batchnorm import SyncBatchNorms, average_tensors, batchnorm_statistics
from unlabeled.errors import UserError

SHAPES = {"2d": (6, 3, 4, 5), "1d": (6, 3), "sequence": (6, 3, 7), "3d": (6, 3, 2, 2, 2)}


def layer(kind: str, **settings: bool | float | None) -> nn.modules.batchnorm._BatchNorm:
    made = {"1d": nn.BatchNorm1d, "sequence": nn.BatchNorm1d, "2d": nn.BatchNorm2d, "3d": nn.BatchNorm3d}[kind]
    torch.manual_seed(0)
    norm = made(3, **settings).double()  # type: ignore[arg-type]
    if norm.affine:
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    return norm


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    """Values whose mean and spread change along the batch, so that a process's part is unlike the whole."""
    level = torch.linspace(1, 5, shape[0], dtype=torch.float64).view(-1, *[1] * (len(shape) - 1))
    return level * (1 + torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))


def after_two_steps(norm: nn.Module, x: Tensor, pull: Tensor) -> list[Tensor]:
    """Output, gradients of the input and of the parameters, and buffers; the loss is a weighted sum of the outputs."""
    x = x.clone().requires_grad_()
    norm(x.detach() * 0.5)
    output = norm(x)
    (output * pull).sum().backward()
    gradients = [each.grad for each in norm.parameters() if each.grad is not None]
    assert x.grad is not None
    return [output.detach(), x.grad, *gradients, *norm.buffers()]


def compare(kind: str, rank: int, **settings: bool | float | None) -> None:
    x, pull = drawn(SHAPES[kind], 1), drawn(SHAPES[kind], 2)
    norm = layer(kind, **settings)
    expected = after_two_steps(copy.deepcopy(norm), x, pull)
    network = SyncBatchNorms().apply(nn.Sequential(norm))
    assert isinstance(network[0], SyncedBatchNorm)  # type: ignore[index]
    mine = slice(3 * rank, 3 * rank + 3)
    found = after_two_steps(network, x[mine], pull[mine])
    for place, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if place < 2:  # rows of this process
            theirs = theirs[mine]
        elif place < 2 + len(list(norm.parameters())):  # DDP averages what this adds up
            ours = ours.clone()
            torch.distributed.all_reduce(ours)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def compare_under_autocast(rank: int) -> None:
    """Statistics of bfloat16 images are float32; 1000 values near 100 have none in bfloat16."""
    x = (100 + drawn((6, 3, 16, 16), 3)).bfloat16()
    network = SyncBatchNorms().apply(nn.Sequential(nn.BatchNorm2d(3)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(x[3 * rank : 3 * rank + 3])
    assert output.dtype == torch.bfloat16
    variance, mean = torch.var_mean(x.double(), (0, 2, 3))
    torch.testing.assert_close(network[0].running_mean.double(), 0.1 * mean, rtol=1e-6, atol=0)  # type: ignore[index]
    running = 0.9 + 0.1 * variance
    torch.testing.assert_close(network[0].running_var.double(), running, rtol=1e-6, atol=0)  # type: ignore[index]


def compare_split_statistics(rank: int) -> None:
    """Four parts on two processes leave the running statistics of four parts on one."""
    x = drawn((8, 3, 2, 2), 4)
    shared = SplitBatchNorm(layer("2d"), 4)  # type: ignore[arg-type]
    parts = [copy.deepcopy(layer("2d")) for _ in range(4)]
    for _ in range(2):
        for norm, part in zip(parts, x.chunk(4), strict=True):
            norm(part)
        shared(x[4 * rank : 4 * rank + 4])
    before = shared.running_mean.clone()
    average_tensors(batchnorm_statistics(nn.Sequential(shared, SyncedBatchNorm(layer("2d")))))
    assert float((shared.running_mean - before).abs().max()) > 0.01
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(part, name) for part in parts]).mean(0)
        torch.testing.assert_close(getattr(shared, name), mean, rtol=1e-12, atol=0)


def one_of_two(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    for kind in SHAPES:
        compare(kind, rank)
    compare("2d", rank, affine=False)
    compare("2d", rank, momentum=None)  # a plain mean over all batches
    compare("2d", rank, track_running_stats=False)
    compare_under_autocast(rank)
    compare_split_statistics(rank)


def test_values_gradients_and_statistics_over_two_processes_are_those_of_the_joined_batch() -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    spawn(one_of_two, (port,), 2)


@pytest.mark.usefixtures("alone")
def test_a_network_keeps_the_names_of_its_state_its_split_layers_and_its_values_in_evaluation() -> None:
    network = nn.Sequential(ResNet(10, 0.125, "cifar"), split := ResNet(10, 0.125, "cifar"))
    split_batchnorm(split, 2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.rand(2, 3, 8, 8)
    expected = network[0].eval()(images)
    plugin = SyncBatchNorms()
    for after in (plugin.apply(network), plugin.revert(network), plugin.apply(network)):
        assert after.state_dict().keys() == before.keys()
        assert all(torch.equal(after.state_dict()[name], value) for name, value in before.items())
        kinds = [type(module).__name__ for module in after.modules()]
        assert (kinds.count("SyncedBatchNorm"), kinds.count("SplitBatchNorm")) == (12, 12)
        assert "BatchNorm2d" not in kinds
        assert torch.equal(network[0](images), expected)


@pytest.mark.usefixtures("alone")
def test_a_layer_that_does_more_than_batchnorm_is_refused_on_cpus_and_keeps_it_on_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from timm.layers import BatchNormAct2d

    network = nn.Sequential(BatchNormAct2d(3)).eval()
    with pytest.raises(UserError, match=r"^trainer\.sync_batchnorm=true: .* BatchNormAct2d; set it to false"):
        SyncBatchNorms().apply(network)
    images = torch.randn(2, 3, 4, 4)
    expected = network(images)
    assert float(expected.detach().min()) == 0  # it ends in ReLU
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "nccl")
    on_gpus = SyncBatchNorms().apply(network)
    assert isinstance(on_gpus[0], nn.SyncBatchNorm)  # type: ignore[index]
    assert torch.equal(on_gpus.eval()(images), expected)

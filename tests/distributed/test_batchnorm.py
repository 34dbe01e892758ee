"""A split BatchNorm is one BatchNorm per part of the batch."""

import copy

import pytest
import torch
from torch import nn

from unlabeled.backbones.resnet import ResNet
from unlabeled.distributed import batchnorm
from unlabeled.distributed.batchnorm import SplitBatchNorm, split_batchnorm, split_layers
from unlabeled.errors import UserError


def norm() -> nn.BatchNorm2d:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = nn.BatchNorm2d(3).double()
        nn.init.uniform_(made.weight, 0.5, 2)
        nn.init.normal_(made.bias)
        nn.init.uniform_(made.running_var, 0.5, 2)  # type: ignore[arg-type]
    return made


def images(count: int) -> torch.Tensor:
    level = torch.arange(count, dtype=torch.float64).view(-1, 1, 1, 1)
    return level + torch.randn(count, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_each_part_is_normalised_by_its_own_statistics_which_move_the_running_ones_by_their_mean(
    memory_format: torch.memory_format,
) -> None:
    x = images(8).contiguous(memory_format=memory_format)
    parts = [copy.deepcopy(norm()) for _ in range(4)]
    expected = torch.cat([part(x[2 * i : 2 * i + 2]) for i, part in enumerate(parts)])
    split = SplitBatchNorm(norm(), 4)
    torch.testing.assert_close(split(x), expected, rtol=0, atol=1e-12)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(part, name) for part in parts]).mean(0)
        torch.testing.assert_close(getattr(split, name), mean, rtol=0, atol=1e-12)
    assert int(split.num_batches_tracked) == 1
    assert float((split(x) - norm()(x)).detach().abs().max()) > 0.5  # and not by those of the whole batch


def test_in_evaluation_it_is_the_layer_it_replaced_and_learns_nothing() -> None:
    split, plain = SplitBatchNorm(norm(), 2).eval(), norm().eval()
    assert torch.equal(split(images(4)), plain(images(4)))
    assert torch.equal(split.running_mean, torch.zeros(3, dtype=torch.float64))


def test_a_resnet_keeps_the_names_and_values_of_its_state_and_sync_batchnorm_does_not_undo_the_split() -> None:
    network = ResNet(10, 0.125, "cifar")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    split_batchnorm(network, 2)
    after = nn.SyncBatchNorm.convert_sync_batchnorm(network).state_dict()  # type: ignore[no-untyped-call]
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    kinds = [type(module).__name__ for module in network.modules()]
    assert kinds.count("SplitBatchNorm") == 12  # a stem, two per block, three shortcuts
    assert "BatchNorm2d" not in kinds


def test_networks_without_batchnorm_or_with_another_kind_are_refused_by_the_key() -> None:
    with pytest.raises(UserError, match=r"^objective\.bn_splits=8: the backbone has no BatchNorm in it"):
        split_batchnorm(nn.Sequential(nn.Linear(2, 2)), 8)
    with pytest.raises(UserError, match=r"^objective\.bn_splits=8: the backbone has BatchNorm1d in it"):
        split_batchnorm(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm2d(2)), 8)


def both_forms(network: nn.Module, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Output, gradients and state of two batches, part by part as on a CPU, and in one call as on a GPU."""
    found = []
    for at_once in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(batchnorm, "few_launches", lambda device, at_once=at_once: at_once)
            own, images = copy.deepcopy(network), x.clone().requires_grad_()
            made = [own(images), own(images.flip(0))]
            (made[0].pow(3).sum() + made[1].abs().sum()).backward()
        grads = {name: each.grad for name, each in own.named_parameters() if each.grad is not None}
        assert images.grad is not None
        state = {f"state {name}": value for name, value in own.state_dict().items()}
        found.append({"output": made[0].detach(), "images": images.grad, **grads, **state})
    return found


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 3e-5)])
def test_all_parts_in_one_call_give_outputs_gradients_and_statistics_of_part_by_part(
    monkeypatch: pytest.MonkeyPatch, memory_format: torch.memory_format, dtype: torch.dtype, tolerance: float
) -> None:
    x = images(12).to(dtype).contiguous(memory_format=memory_format)
    one_by_one, at_once = both_forms(SplitBatchNorm(norm().to(dtype), 3), x, monkeypatch)
    assert at_once["output"].is_contiguous(memory_format=memory_format)
    for name, value in one_by_one.items():
        torch.testing.assert_close(at_once[name], value, rtol=tolerance, atol=tolerance, msg=name)


def test_a_network_updates_the_statistics_of_all_its_layers_together_and_so_does_its_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = ResNet(10, 0.125, "cifar").double()
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        split_batchnorm(network, 4)
    assert all(layer.in_network for layer in split_layers(network))
    x = torch.randn(8, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one_by_one, at_once = both_forms(network, x, monkeypatch)
    assert int(at_once["state bn1.num_batches_tracked"]) == 2
    for name, value in one_by_one.items():
        torch.testing.assert_close(at_once[name], value, rtol=1e-7, atol=1e-9, msg=name)


def test_bfloat16_images_in_one_call_are_the_float32_result_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batchnorm, "few_launches", lambda device: True)
    split, x = SplitBatchNorm(norm().float(), 4), images(8).bfloat16()
    exact = copy.deepcopy(split)(x.float())
    assert torch.equal(split(x), exact.bfloat16())

"""A split BatchNorm is one BatchNorm per part of the batch."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from unlabeled.backbones.resnet import ResNet
from unlabeled.distributed import batchnorm, parts
from unlabeled.distributed.batchnorm import SplitBatchNorm, split_batchnorm, split_layers
from unlabeled.distributed.parts import _BetweenCopies, _InTwoKernels
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


SHAPES = [((8, 6, 5, 5), 2), ((12, 70, 4, 5), 3), ((16, 3, 40, 40), 2), ((6, 1, 2, 1), 3)]  # images; parts


def differences_of_kernels(device: str) -> list[float]:
    """Largest differences from float64, over the largest value: output, mean, inverse, gradients of each shape."""
    found = []
    for (shape, count), affine in [(SHAPES[0], False), *((each, True) for each in SHAPES)]:
        drawn = torch.Generator().manual_seed(0)
        level = torch.arange(shape[0]).view(-1, 1, 1, 1)
        x = torch.randn(shape, generator=drawn) * 2 + level
        slope, *affine_values = (torch.randn(size, generator=drawn) for size in (shape, shape[1], shape[1]))
        made = []
        for form, kind, place in ((_InTwoKernels, torch.float32, device), (_BetweenCopies, torch.float64, "cpu")):
            given = [
                each.to(place, kind).requires_grad_()
                for each in (x.contiguous(memory_format=torch.channels_last), *affine_values)
            ]
            normal = form.apply(given[0], *(given[1:] if affine else (None, None)), count, 1e-5)
            gradients = torch.autograd.grad(normal[0], given[: 3 if affine else 1], slope.to(place, kind))
            made.append([each.detach().cpu().double() for each in (*normal, *gradients)])
        found += [float((a - b).abs().max() / b.abs().max()) for a, b in zip(*made, strict=True)]
    return found


def test_the_kernels_of_a_gpu_give_the_numbers_of_float64_in_the_interpreter() -> None:
    """In a process of its own: Triton reads the variable when it is imported."""
    pytest.importorskip("triton")
    code = (
        "import torch; from tests.distributed.test_batchnorm import differences_of_kernels; "
        "from unlabeled.distributed import parts; "
        "torch.library.impl(parts._OPERATORS, 'normalise_parts', 'CPU')(parts._forward); "
        "torch.library.impl(parts._OPERATORS, 'normalise_parts_backward', 'CPU')(parts._backward); "
        "print(*differences_of_kernels('cpu'))"
    )
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    given = {"env": environment, "cwd": Path(__file__).parents[2], "capture_output": True, "text": True}
    finished = subprocess.run([sys.executable, "-c", code], timeout=100, **given)  # type: ignore[call-overload]
    assert finished.returncode == 0, finished.stderr
    differences = [float(each) for each in finished.stdout.split()]
    assert len(differences) == 4 + 6 * len(SHAPES)
    assert max(differences) < 2e-6


def test_the_kernels_are_machine_code_for_an_h100() -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]
    from triton.compiler import ASTSource  # type: ignore[import-untyped]

    from unlabeled.distributed import split_kernels

    kernels = (split_kernels.statistics, split_kernels.normalise, split_kernels.gradient_sums)
    for kernel in (*kernels, split_kernels.gradient_of_images):
        names = kernel.arg_names
        fixed = {name: value for name, value in {"AFFINE": True, "ROWS": 64, "COLUMNS": 64}.items() if name in names}
        kinds = dict.fromkeys(("x", "made", "gradient"), "*bf16") | {"eps": "fp32"}
        kinds |= dict.fromkeys(("rows", "channels", "piece_rows", "pieces"), "i32") | dict.fromkeys(fixed, "constexpr")
        places = {(names.index(name),): value for name, value in fixed.items()}
        source = ASTSource(kernel, {name: kinds.get(name, "*fp32") for name in names}, places)
        assert len(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]) > 1000


def test_kernels_that_cannot_be_built_or_are_wrong_are_one_line_and_are_not_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(device: torch.device) -> float:
        raise RuntimeError("no compiler\nat all")

    pytest.importorskip("triton")
    for number, (difference, reason) in enumerate(((broken, "no compiler"), (lambda device: 0.5, "differ by 0.5"))):
        monkeypatch.setattr(parts, "_largest_difference", difference)
        for _ in range(2):  # said once
            assert not parts.kernels_work(torch.device("cuda", number))
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith("split BatchNorm runs between two copies, which is slower: ")
        assert line.endswith(reason)
    parts.kernels_work.cache_clear()
    assert not parts.kernels_work(torch.device("cpu"))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_kernels_are_used_and_give_the_numbers_of_float64() -> None:
    assert parts.kernels_work(torch.device("cuda", 0))
    assert max(differences_of_kernels("cuda")) < 1e-5


def test_the_check_of_the_kernels_is_no_part_of_a_block_that_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_InTwoKernels", parts._BetweenCopies)  # a CPU has no kernels to compare
    differences: list[float] = []

    def block(x: torch.Tensor) -> torch.Tensor:
        if not differences:  # once, as kernels_work keeps it
            differences.append(parts._largest_difference(torch.device("cpu")))
        return x.square().sin()

    x = torch.linspace(0, 1, 5, requires_grad=True)
    torch.autograd.backward(checkpoint(block, x, use_reentrant=False).sum())
    assert differences == [0.0]
    torch.testing.assert_close(x.grad, 2 * x.detach() * x.detach().square().cos())

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unlabeled.backbones.resnet import ResNet
from unlabeled.data.padding import pad_to_largest
from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features, _one_ahead, extract, pixel_features, split_batches, state_hash
from unlabeled.objective import Batch
from unlabeled.views.pipeline import Views

N = 23


class Net(nn.Module):
    """Has everything that an evaluation could disturb: BatchNorm statistics, dropout, and draws of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.norm = nn.BatchNorm2d(5)
        self.drop = nn.Dropout(0.5)
        self.seen: list[tuple[bool, torch.dtype]] = []

    def forward(self, images: Tensor) -> Tensor:
        torch.rand(1)  # as MAE, which masks in eval mode too
        maps = self.drop(self.norm(self.conv(images)))
        self.seen.append((images.is_contiguous(memory_format=torch.channels_last), maps.dtype))
        return torch.as_tensor(maps.mean(dim=(2, 3)))


def images(n: int = N, size: int = 8) -> Tensor:
    return torch.randint(256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def batches(size: int = 5) -> list[Batch]:
    return split_batches(images(), torch.arange(N) % 3 - 1, torch.arange(N) + 100, size)


def scale(x: Tensor, sizes: Tensor | None = None) -> Tensor:
    return x.float() / 255


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_features_are_those_of_eval_mode_in_the_order_of_the_images() -> None:
    network = net()
    features = extract(network, batches(), scale, "cpu")
    assert all(channels_last for channels_last, _ in network.seen)
    expected = network.eval()(scale(images())).detach()
    torch.testing.assert_close(features.x, expected, rtol=1e-5, atol=1e-6)
    assert features.x.dtype == torch.float32
    assert not features.x.requires_grad
    assert features.ids.tolist() == list(range(100, 100 + N))
    assert features.labels.tolist() == [i % 3 - 1 for i in range(N)]


def test_rows_without_a_label_are_left_out_together_with_their_ids() -> None:
    labelled = extract(net(), batches(), scale, "cpu").labelled()
    assert labelled.ids.tolist() == [100 + i for i in range(N) if i % 3]
    assert labelled.labels.min() == 0
    assert len(labelled.x) == len(labelled.labels)


def test_extraction_leaves_modes_buffers_and_random_state_as_they_were() -> None:
    network = net().train()
    network.norm.eval()  # a frozen layer in a training network must stay frozen
    before, random, modes = state_hash(network), torch.get_rng_state(), [m.training for m in network.modules()]
    extract(network, batches(), scale, "cpu")
    assert state_hash(network) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in network.modules()] == modes == [True, True, False, True]


def test_modes_come_back_when_the_extraction_fails() -> None:
    network = net().train()
    with pytest.raises(RuntimeError):
        extract(network, batches(), lambda x, sizes: scale(x)[:, :2], "cpu")
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_precision_decides_the_arithmetic_whatever_the_caller_runs_under(precision: str, dtype: torch.dtype) -> None:
    network = net()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "32-true"):
        features = extract(network, batches(), scale, "cpu", precision)
    assert {seen for _, seen in network.seen} == {dtype}
    assert features.x.dtype == torch.float32


def test_the_batch_size_does_not_change_the_features() -> None:
    small, large = (extract(net(), batches(size), scale, "cpu").x for size in (1, N))
    torch.testing.assert_close(small, large, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_features_of_images_on_a_canvas_are_those_of_each_image_by_itself(size: int) -> None:
    shapes = [(9, 30), (24, 11), (16, 16), (40, 25)]
    generator = torch.Generator().manual_seed(1)
    alone = [torch.randint(256, (3, *shape), dtype=torch.uint8, generator=generator) for shape in shapes]
    views = Views(16, [], [0.5, 0.4, 0.3], [0.2, 0.2, 0.2], 0.875, "bicubic")
    labels, ids = torch.tensor([2, 0, -1, 1]), torch.arange(4)
    together, sizes = pad_to_largest(alone)
    found = extract(net(), split_batches(together, labels, ids, size, sizes), views.evaluation_view, "cpu")
    one_by_one = [Batch(image[None], ids[i, None], labels[i, None]) for i, image in enumerate(alone)]
    expected = extract(net(), one_by_one, views.evaluation_view, "cpu")
    torch.testing.assert_close(found.x, expected.x, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.labels, expected.labels)


def test_batches_may_be_lazy_but_an_exhausted_generator_is_refused() -> None:
    lazy = (batch for batch in batches())
    assert len(extract(net(), lazy, scale, "cpu").x) == N
    with pytest.raises(ValueError, match="a generator can be read only once"):
        extract(net(), lazy, scale, "cpu")


def test_features_that_are_not_finite_name_the_first_image() -> None:
    def broken(x: Tensor, sizes: Tensor | None) -> Tensor:
        return torch.where(torch.arange(len(x))[:, None, None, None] == 3, math.inf, scale(x))

    with pytest.raises(UserError, match=r"1 of 23 images are not finite \(first id 103\) under precision 32-true"):
        extract(net(), batches(N), broken, "cpu")
    with pytest.raises(UserError, match=r"precision '16' is unknown.*32-true, bf16-mixed, 16-mixed"):
        extract(net(), batches(), scale, "cpu", "16")


def test_pixels_are_the_flattened_transform_and_large_images_are_averaged_to_16() -> None:
    features = pixel_features(batches(), scale)
    torch.testing.assert_close(features.x, scale(images()).flatten(1), rtol=0, atol=0)
    large = images(2, 32)
    halved = pixel_features(split_batches(large, torch.zeros(2).long(), torch.arange(2), 2), scale).x
    expected = scale(large).view(2, 3, 16, 2, 16, 2).mean(dim=(3, 5)).flatten(1)
    torch.testing.assert_close(halved, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64, torch.bool])
def test_one_flipped_bit_or_another_name_changes_the_state_hash(dtype: torch.dtype) -> None:
    module = nn.Module()
    module.register_buffer("a", torch.zeros(4, 3).to(dtype))
    module.register_buffer("scalar", torch.tensor(7))
    first = state_hash(module)
    assert first == state_hash(module)
    assert len(first) == 64
    values = module.get_buffer("a").view(torch.uint8)
    values.view(-1)[5] ^= 1
    assert state_hash(module) != first
    values.view(-1)[5] ^= 1
    assert state_hash(module) == first
    for name, value in [("b", torch.zeros(4, 3).to(dtype)), ("a", torch.zeros(3, 4).to(dtype))]:
        other = nn.Module()
        other.register_buffer(name, value)
        other.register_buffer("scalar", torch.tensor(7))
        assert state_hash(other) != first


def test_negative_zero_is_another_state() -> None:
    module = nn.Linear(2, 2)
    hashes = set()
    for zero in (0.0, -0.0):
        nn.init.constant_(module.weight, zero)
        hashes.add(state_hash(module))
    assert len(hashes) == 2


def test_features_keep_their_rows_when_moved() -> None:
    features = Features(torch.ones(2, 3), torch.tensor([0, 1]), torch.tensor([5, 6])).to("cpu")
    assert features.ids.tolist() == [5, 6]


def test_every_kind_comes_from_one_pass_and_equals_the_networks_own() -> None:
    torch.manual_seed(0)
    network, images = ResNet(18, 0.125, "cifar"), torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8)
    calls: list[int] = []
    network.conv1.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    batches = split_batches(images, torch.arange(10) - 1, torch.arange(10), 4)
    found = extract(network, batches, lambda x, sizes: x.float() / 255, "cpu", kinds=["last4", "tokens"])
    assert calls == [4, 4, 2]
    network.eval()
    with torch.no_grad():
        wanted = network.features(images.float() / 255, ["last", "last4", "tokens"])
    assert torch.allclose(found.x, wanted["last"], atol=1e-6)
    assert torch.allclose(found.of("last4").x, wanted["last4"], atol=1e-6)
    assert torch.allclose(found.of("tokens").x, wanted["tokens"].flatten(1), atol=1e-6)
    assert found.labelled().others["tokens"].shape == (9, 1, 64)


def test_on_a_gpu_a_batch_begins_before_the_host_waits_for_the_features_of_the_one_before() -> None:
    for count in range(4):
        told: list[str] = []

        def begun(count: int = count, told: list[str] = told) -> Iterator[Any]:
            for number in range(count):
                told.append(f"begun {number}")
                yield number

        for each in _one_ahead(begun()):
            told.append(f"taken {each}")
        turns = [(f"begun {number}", f"taken {number - 1}") for number in range(count + 1)]
        every = [each for turn in turns for each in turn]
        assert told == [each for each in every if each not in (f"begun {count}", "taken -1")]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_features_of_many_batches_are_those_of_a_cpu() -> None:
    network, given = ResNet(10, 0.125, "cifar"), torch.randint(0, 256, (90, 3, 16, 16), dtype=torch.uint8)
    batches = split_batches(given, torch.arange(90) % 3, torch.arange(90), 8)
    here, there = (extract(network, batches, lambda x, _: x.float() / 255, device) for device in ("cpu", "cuda"))
    torch.testing.assert_close(there.x, here.x, rtol=1e-2, atol=1e-2)  # convolutions in TF32
    assert torch.equal(there.ids, here.ids)
    assert not there.x.is_pinned()

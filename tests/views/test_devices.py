"""What a GPU needs of the views, as far as a CPU can tell: precision, compiled code, bounded memory, products."""

import copy
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.small import composed, members, missing_keys, shrink
from unlabeled.errors import UserError
from unlabeled.views import draw_ahead, operations, pipeline, rand_augment
from unlabeled.views.draw_ahead import DrawAhead, Draws, draw
from unlabeled.views.kernels import colour, resample
from unlabeled.views.key import ViewKey
from unlabeled.views.operations import (
    ColorJitter,
    Equalize,
    GaussianBlur,
    Grayscale,
    Operation,
    RandomResizedCrop,
    Solarize,
)
from unlabeled.views.per_image import PerImageTransform
from unlabeled.views.pipeline import ViewGroup, Views

CROP = RandomResizedCrop(24, (0.08, 1.0), (0.75, 4 / 3), "bicubic", 0.5)
COLOURS: list[Operation] = [
    ColorJitter(0.8, 0.8, 0.8, 0.2, 0.8),
    ColorJitter(0.4, 0.4, 0.2, 0.1, 0.8, additive_brightness=True),
    Grayscale(0.5),
    GaussianBlur((0.1, 2.0), 0.2, 0.5),
    Solarize((0.0, 1.0), 0.5),
    Equalize(0.5),
]


def photographs(count: int, height: int, width: int) -> Tensor:
    sources = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images]
    return torch.stack([sources[row % 2][:, row % 7 : row % 7 + height, row : row + width] for row in range(count)])


def everything(compile: bool = False) -> Views:
    first, second = ViewGroup(2, [CROP, *COLOURS]), ViewGroup(1, [CROP, *COLOURS[2:]])
    return Views(24, [first, second], [0.5, 0.4, 0.3], [0.2, 0.25, 0.3], 1.0, "bicubic", compile=compile)


@pytest.mark.parametrize("operation", [CROP, *COLOURS], ids=lambda each: type(each).__name__)
def test_bfloat16_images_come_out_as_the_float32_result_rounded_once(operation: Operation) -> None:
    images = (photographs(32, 40, 40) / 255).bfloat16()
    drawn = operation.sample(32, torch.Generator().manual_seed(0))
    ours, exact = operation.apply(images.clone(), drawn), operation.apply(images.float(), drawn)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, exact.bfloat16())
    assert not torch.equal(ours, images)


@pytest.fixture
def compiler() -> Iterator[None]:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler for a CPU")
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("compiler")
def test_compiled_views_are_the_same_and_nothing_is_compiled_again_from_step_to_step() -> None:
    views, compiled, images, ids = everything(), everything(compile=True), photographs(16, 40, 48), torch.arange(16)
    compiled(images, ids, ViewKey(0, 0, 0, 16))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(1, 4):
            key = ViewKey(0, step, 0, 16)
            for one, other in zip(compiled(images, ids, key), views(images, ids, key), strict=True):
                difference = (one - other).abs().flatten(1).amax(1)
                # an equalized image is rounded to 256 levels before: one may fall on the other side, one in a thousand
                assert float(difference.quantile(0.75)) < 2e-5
                assert float((one - other).abs().mean()) < 1e-3
    # one graph for both groups, whose operations differ in draws alone; a break in it would have been an error
    assert len(compiled._at_once._compiled) == 1


def test_what_cannot_be_compiled_is_refused_and_welcome_before_the_crop() -> None:
    foreign = PerImageTransform(torch.nn.Identity())
    with pytest.raises(UserError, match=r"views\.compile=true: Foreign .* views\.compile=false"):
        Views(24, [ViewGroup(1, [CROP, foreign])], None, None, 1.0, "bicubic", compile=True)
    Views(24, [ViewGroup(1, [foreign, CROP])], None, None, 1.0, "bicubic", compile=True)
    Views(24, [ViewGroup(1, [CROP, foreign])], None, None, 1.0, "bicubic")


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pipeline, operations, colour, resample, rand_augment):
        monkeypatch.setattr(module, "few_launches", lambda device: True)


def test_the_products_of_a_gpu_and_the_sums_of_a_cpu_give_the_same_views(monkeypatch: pytest.MonkeyPatch) -> None:
    views = Views(24, [ViewGroup(2, [CROP, *COLOURS[:4]])], None, None, 1.0, "bicubic")
    images, ids, key = photographs(16, 70, 90), torch.arange(16), ViewKey(0, 0, 0, 16)
    summed, plain = views(images, ids, key), views.evaluation_view(images)
    as_on_a_gpu(monkeypatch)
    for one, other in zip(summed, views(images, ids, key), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)
    torch.testing.assert_close(plain, views.evaluation_view(images), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", members("views"))
def test_all_views_at_once_as_on_a_gpu_are_those_of_a_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Largest difference measured 4e-6 of normalised values; rows 4 to 12 of a batch of 16, then some views alone."""
    config = composed(f"views={name}")
    config.views.update({key: None for key in missing_keys(config.views)})
    shrink(config.views, 32)
    views, images, ids = instantiate(config.views), photographs(8, 50, 60), torch.arange(8)
    key = ViewKey(3, 5, 4, 16)
    one_by_one = views(images, ids, key)
    as_on_a_gpu(monkeypatch)
    at_once = views(images, ids, key)
    assert len(at_once) == len(one_by_one)
    rounds = any(isinstance(step, Equalize) for group in views.groups for step in group.operations)  # to 256 levels
    for one, other in zip(one_by_one, at_once, strict=True):
        assert float(((one - other).abs() > 2e-5).float().mean()) <= (0.02 if rounds else 0)
        assert other.is_contiguous(memory_format=torch.channels_last)
    first = views(images, ids, key, first=1)
    torch.testing.assert_close(first[0], at_once[0], rtol=0, atol=1e-6)


def test_views_at_once_are_the_same_for_any_number_of_processes_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_gpu(monkeypatch)
    views, images, ids = everything(), photographs(12, 40, 48), torch.arange(12)
    whole = views(images, ids, ViewKey(0, 5, 0, 12))
    parts = [views(images[i : i + 4], ids[i : i + 4], ViewKey(0, 5, i, 12)) for i in range(0, 12, 4)]
    views.block = 5
    blocks = views(images, ids, ViewKey(0, 5, 0, 12))
    for number, view in enumerate(whole):
        torch.testing.assert_close(torch.cat([part[number] for part in parts]), view, rtol=0, atol=1e-6)
        torch.testing.assert_close(blocks[number], view, rtol=0, atol=1e-6)


def test_views_at_once_of_images_on_canvases_are_those_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    views, images, ids, key = everything(), photographs(8, 40, 48), torch.arange(8), ViewKey(0, 5, 0, 8)
    sizes = torch.tensor([[40, 48], [30, 48], [40, 20], [25, 26]] * 2)
    one_by_one = views(images, ids, key, sizes=sizes)
    as_on_a_gpu(monkeypatch)
    for one, other in zip(one_by_one, views(images, ids, key, sizes=sizes), strict=True):
        assert float((one - other).abs().flatten(1).amax(1).quantile(0.7)) < 2e-5  # equalize rounds to 256 levels
        assert float((one - other).abs().mean()) < 1e-3


def same(one: Draws, other: Draws) -> bool:
    """Compares values; bytes between them are not written."""
    pairs = zip(
        *(torch.utils._pytree.tree_leaves(each.parameters(torch.device("cpu"))) for each in (one, other)), strict=True
    )
    return all(torch.equal(a, b) for a, b in pairs)


def test_draws_in_a_thread_ahead_of_their_step_are_those_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    views = everything()
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *given, pin_memory=False, **named: empty(*given, **named))
    groups, ahead, begun = views._numbered(None), DrawAhead(), list[int]()
    thread = draw_ahead._begin

    def noted(groups: Any, key: ViewKey, images: int) -> Any:
        begun.append(key.step)
        return thread(groups, key, images)

    monkeypatch.setattr(draw_ahead, "_begin", noted)
    for step in (3, 4, 5, 9, 10, 2):
        for total in (12, 16):  # two kinds of draws, as of a batch and of its labelled images
            key = ViewKey(7, step, 4, total)
            taken, wanted = ahead.take(groups, key, 8), draw(groups, key, 8, False)
            assert same(taken, wanted)
    assert begun == [step + 1 for step in (3, 4, 5, 9, 10, 2) for _ in range(2)]
    assert copy.deepcopy(ahead)._next == {}


def test_packed_draws_are_bit_for_bit_those_that_each_operation_makes() -> None:
    views, key = everything(), ViewKey(7, 3, 4, 16)
    groups = views._numbered(None)
    packed = draw(groups, key, 8, False).parameters(torch.device("cpu"))
    for group, drawn in zip(groups, packed, strict=True):
        for view, number in enumerate(group.views):
            generator = key.generator(number)
            for operation, found in zip(group.operations, drawn, strict=True):
                for name, value in operation.sample(16, generator).items():
                    assert torch.equal(found[name][view :: len(group.views)], value[4:12])


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the bytes of the largest tensor that any operation within makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else [made]:
            if isinstance(each, Tensor):
                self.bytes = max(self.bytes, each.untyped_storage().nbytes())
        return made


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize(("count", "pixels", "size", "views"), [(16, 400, 224, 2), (16, 420, 112, 1), (64, 32, 32, 2)])
def test_no_temporary_is_larger_than_four_times_the_views_of_the_batch(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, count: int, pixels: int, size: int, views: int
) -> None:
    if gpu:
        as_on_a_gpu(monkeypatch)
    one = RandomResizedCrop(size, (0.08, 1.0), (0.75, 4 / 3), "bicubic", 0.5)
    made = Views(size, [ViewGroup(views, [one, *COLOURS[:5]])], [0.5] * 3, [0.2] * 3, 1.0, "bicubic")
    images = photographs(count, pixels, pixels)
    with Largest() as largest:
        result = made(images, torch.arange(count), ViewKey(0, 0, 0, count))
    assert largest.bytes <= 4 * sum(view.nbytes for view in result)
    assert largest.bytes >= result[0].nbytes

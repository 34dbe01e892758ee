"""BYOL's official checkpoint: a pickle of Haiku's arrays, read as data; features equal Haiku's forward, written out."""

import pickle
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.backbones.resnet import ResNet
from unlabeled.errors import UserError
from unlabeled.weights import load_backbone, read_checkpoint
from unlabeled.weights.haiku.arrays import read_arrays

Modules = dict[str, dict[str, Any]]  # arrays
BLOCKS = (3, 4, 6, 3)  # ResNet-50
WIDTH = 4  # channels of the stem: a sixteenth


class FlatMapping(Mapping[str, Any]):
    """As haiku/_src/data_structures.py pickles itself."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.content)

    def __len__(self) -> int:
        return len(self.content)

    def __reduce__(self) -> tuple[Any, ...]:
        return FlatMapping, (self.content,)


class _ByolExperimentState(NamedTuple):
    """byol/byol_experiment.py."""

    online_params: Any
    target_params: Any
    online_state: Any
    target_state: Any
    opt_state: Any


class ScaleByLarsState(NamedTuple):
    """byol/utils/optimizers.py."""

    mu: Any


class EmptyState(NamedTuple):
    """Of optax.scale."""


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes under the names that the official file has for them."""
    places: dict[str, list[type]] = {
        "haiku._src.data_structures": [FlatMapping],
        "byol.byol_experiment": [_ByolExperimentState],
    }
    places |= {"byol.utils.optimizers": [ScaleByLarsState], "optax._src.base": [EmptyState]}
    for place, classes in places.items():
        words = place.split(".")
        for number in range(1, len(words) + 1):
            if (above := ".".join(words[:number])) not in sys.modules:
                monkeypatch.setitem(sys.modules, above, types.ModuleType(above))
        module = sys.modules[place]
        for each in classes:
            monkeypatch.setattr(each, "__module__", place)
            setattr(module, each.__name__, each)


def conv(seed: np.random.Generator, size: int, inputs: int, outputs: int) -> dict[str, np.ndarray]:
    return {"w": seed.normal(size=(size, size, inputs, outputs), scale=0.2).astype(np.float32)}


def norm(seed: np.random.Generator, width: int, name: str, state: Modules, dims: int = 4) -> dict[str, np.ndarray]:
    shape = (1,) * (dims - 1) + (width,)
    for kind in ("mean", "var"):
        average = seed.uniform(0.5, 1.5, shape).astype(np.float32)
        moving = {"hidden": average * 0.9, "counter": np.asarray(7, np.int32), "average": average}
        state[f"{name}/~/{kind}_ema"] = moving
    return {key: seed.uniform(0.5, 1.5, shape).astype(np.float32) for key in ("scale", "offset")}


def network(number: int) -> tuple[Modules, Modules]:
    """Parameters and state with Haiku's names, of byol/utils/networks.py and haiku/_src/nets/resnet.py."""
    seed = np.random.default_rng(number)
    params: Modules = {}
    state: Modules = {}
    root = "res_net50/~"
    params[f"{root}/initial_conv"] = conv(seed, 7, 3, WIDTH)
    params[f"{root}/initial_batchnorm"] = norm(seed, WIDTH, f"{root}/initial_batchnorm", state)
    inputs = WIDTH
    for group, blocks in enumerate(BLOCKS):
        for block in range(blocks):
            name, inner = f"{root}/block_group_{group}/~/block_{block}/~", WIDTH * 2**group
            if block == 0:
                params[f"{name}/shortcut_conv"] = conv(seed, 1, inputs, 4 * inner)
                params[f"{name}/shortcut_batchnorm"] = norm(seed, 4 * inner, f"{name}/shortcut_batchnorm", state)
            for place, (size, ins, outs) in enumerate([(1, inputs, inner), (3, inner, inner), (1, inner, 4 * inner)]):
                params[f"{name}/conv_{place}"] = conv(seed, size, ins, outs)
                params[f"{name}/batchnorm_{place}"] = norm(seed, outs, f"{name}/batchnorm_{place}", state)
            inputs = 4 * inner
    for head in ("projector", "predictor"):
        params[f"{head}/linear"] = {"w": seed.normal(size=(5, 6)), "b": seed.normal(size=6)}
        params[f"{head}/batch_norm"] = norm(seed, 6, f"{head}/batch_norm", state, dims=2)
        params[f"{head}/linear_1"] = {"w": seed.normal(size=(6, 2))}
    params["classifier"] = {"w": seed.normal(size=(5, 10)), "b": seed.normal(size=10)}
    return params, state


def official(online: tuple[Modules, Modules], target: tuple[Modules, Modules]) -> dict[str, Any]:
    """byol/utils/checkpointing.py."""
    a, b, c, d = (
        FlatMapping({name: FlatMapping(leaves) for name, leaves in modules.items()})
        for modules in (online[0], target[0], online[1], target[1])
    )
    state = _ByolExperimentState(a, b, c, d, opt_state=[EmptyState(), ScaleByLarsState(b), EmptyState()])
    return {"experiment_state": state, "step": 312000, "rng": np.asarray([3, 4], np.uint32)}


def saved(content: Any, folder: Path, protocol: int = 2) -> Path:
    (folder / "pretrain_res50x1.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    return folder / "pretrain_res50x1.pkl"


def padded(images: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """TensorFlow's SAME, from its definition."""
    for axis in (2, 3):
        pixels = images.shape[axis]
        total = max((-(-pixels // stride) - 1) * stride + kernel - pixels, 0)
        before, shape = total // 2, list(images.shape)
        ends = []
        for count in (before, total - before):
            shape[axis] = count
            ends.append(torch.full(shape, value, dtype=images.dtype))
        images = torch.cat([ends[0], images, ends[1]], axis)
    return images


def windows(images: Tensor, size: int, stride: int) -> Tensor:
    """[B, C, h, w] → [B, C, h', w', size, size]."""
    found: Tensor = images.unfold(2, size, stride).unfold(3, size, stride)
    return found


def haiku_forward(params: Modules, state: Modules, images: Tensor) -> Tensor:
    """Haiku's ResNet, literally, in float64: images [B, 3, h, w] → features [B, C]."""

    def double(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(array, np.float64))

    def convolve(x: Tensor, name: str, stride: int) -> Tensor:
        w = double(params[name]["w"])  # [height, width, inputs, outputs]
        rows = padded(x, w.shape[0], stride)
        patches = windows(rows, w.shape[0], stride)
        return torch.einsum("bihwyx,yxio->bohw", patches, w)

    def normalise(x: Tensor, name: str) -> Tensor:
        mean, var = (
            double(state[f"{name}/~/{kind}_ema"]["average"]).flatten()[:, None, None] for kind in ("mean", "var")
        )
        scale, offset = (double(params[name][key]).flatten()[:, None, None] for key in ("scale", "offset"))
        return (x - mean) * scale / (var + 1e-5).sqrt() + offset

    root = "res_net50/~"
    x = F.relu(normalise(convolve(images, f"{root}/initial_conv", 2), f"{root}/initial_batchnorm"))
    x = windows(padded(x, 3, 2, -torch.inf), 3, 2).amax((4, 5))
    for group, blocks in enumerate(BLOCKS):
        for block in range(blocks):
            name, stride = f"{root}/block_group_{group}/~/block_{block}/~", 2 if group and not block else 1
            out, shortcut = x, x
            if block == 0:
                shortcut = normalise(convolve(x, f"{name}/shortcut_conv", stride), f"{name}/shortcut_batchnorm")
            for place in range(3):
                out = convolve(out, f"{name}/conv_{place}", stride if place == 1 else 1)
                out = normalise(out, f"{name}/batchnorm_{place}")
                out = F.relu(out) if place < 2 else out
            x = F.relu(out + shortcut)
    return x.mean((2, 3))


def backbone(padding: Any = "end") -> ResNet:
    return ResNet(50, WIDTH / 64, "imagenet", padding=padding).eval()


@pytest.mark.parametrize("size", [64, 50])
@torch.no_grad()
def test_features_equal_haikus_forward_and_every_array_is_accounted_for(size: int, tmp_path: Path) -> None:
    online, target = network(1), network(2)
    checkpoint = read_checkpoint(saved(official(online, target), tmp_path))
    loaded = load_backbone(checkpoint, backbone())
    images = torch.rand(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    wanted = haiku_forward(*online, images)
    assert torch.allclose(loaded.double()(images), wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))
    assert (checkpoint.layout, checkpoint.part) == ("BYOL", "online network, as in the official evaluation")
    arrays = sum(len(leaves) for modules in (*online, *target, target[0]) for leaves in modules.values()) + 1
    counters = len(loaded.state_dict()) // 6  # one of a mean and one of a variance for each BatchNorm in the file
    assert counters
    assert sum(checkpoint.left_out.values()) + len(loaded.state_dict()) == arrays
    assert checkpoint.left_out["projector"] == checkpoint.left_out["predictor"] == 8
    assert checkpoint.left_out["classifier"] == 2


def test_it_is_refused_by_a_network_that_pads_both_sides_alike(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"add their odd pixel at the end.*give backbone=resnet50 backbone.padding=end"):
        load_backbone(saved(official(network(1), network(2)), tmp_path), backbone("both"))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f2", "<f8", "<i4", "<u4", "|u1", "|b1"])
def test_arrays_of_every_kind_and_order_come_back_in_every_protocol(kind: str, protocol: int, tmp_path: Path) -> None:
    array = (np.arange(24).reshape(2, 3, 4) % 5).astype(kind)
    content = {"c": array, "f": np.asfortranarray(array), "part": array[:, 1], "none": array[:0], "one": array[0, 0, 3]}
    read = read_arrays(saved({"a": content, "b": [content["c"], (1, "x", None)]}, tmp_path, protocol))
    for name in ("c", "f", "part", "none"):
        assert np.array_equal(read["a"][name].numpy(), content[name])
    assert read["b"][1] == [1, "x", None]


class Call:
    """Unpickling it would call something."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_of_arrays_that_would_run_something_is_refused_and_does_not(protocol: int, tmp_path: Path) -> None:
    import os

    for call in ((os.mkdir, (str(tmp_path / "made"),)), (eval, (f"open({str(tmp_path / 'made')!r}, 'w')",))):
        path = saved({"w": np.ones(3), "x": Call(*call)}, tmp_path, protocol)
        with pytest.raises(UserError, match="an unsafe pickle, not read: it asks for "):
            read_checkpoint(path)
        assert not (tmp_path / "made").exists()


def test_nothing_of_a_package_that_is_named_is_called(tmp_path: Path) -> None:
    """numpy has functions that write files and load pickles; a name of numpy is held and not called."""
    path = saved({"w": np.ones(3), "x": Call(np.save, (str(tmp_path / "made.npy"), 3))}, tmp_path)
    assert torch.equal(read_checkpoint(path).tensors["w"], torch.ones(3, dtype=torch.float64))
    assert not (tmp_path / "made.npy").exists()


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read as tensors and plain values"):
        read_checkpoint(saved({"w": np.asarray([{}, 1], dtype=object)}, tmp_path))


@pytest.mark.parametrize("length", [60, 200, -10])
def test_a_file_that_was_cut_off_is_damaged(length: int, tmp_path: Path) -> None:
    path = saved({"w": np.ones(300), "v": np.ones(30)}, tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match="cannot be read as tensors and plain values"):
        read_checkpoint(path)

"""``unlabeled embed`` and ``unlabeled.embed``: the same numbers as the evaluation's, in a file and in memory."""

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import unlabeled
from tests.commands.test_unlabeled_command import printed
from tests.forked import SERVER, spawn
from tests.group import leave
from tests.small import composed
from unlabeled.backbones.resnet import ResNet
from unlabeled.commands.build.network import build_backbone
from unlabeled.data.module import DataModule
from unlabeled.data.source import CorruptImage, Splits
from unlabeled.data.sources.digits import digits
from unlabeled.evaluation.embedding.part_file import PartFile
from unlabeled.evaluation.embedding.stream import Embedder, Images
from unlabeled.evaluation.embedding.table import embed_in_memory, embed_to_file, part_path
from unlabeled.views.pipeline import Views

CHOSEN = ["data=digits", "backbone=resnet_thin", "backbone.width=0.125", "views=simclr_small", "views.size=8"]
CPU = ["accelerator=cpu", "num_workers=0"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.save(build_backbone(composed(*CHOSEN).backbone, 0).state_dict(), file)
    return file


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No classes, both splits, images of different sizes, one that is none."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 3)):
        (folder / split).mkdir()
        for number in range(count):
            shape = (20 + 3 * number, 30, 3)
            Image.fromarray(generator.integers(0, 256, shape, np.uint8)).save(folder / split / f"{number}.png")
    (folder / "train" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    return folder


def embed(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, weights: Path, *given: str
) -> tuple[int, str]:
    own = [each for each in CHOSEN if not (each.startswith("data=") and any(g.startswith("data") for g in given))]
    return printed(capfd, monkeypatch, "embed", f"checkpoint={weights}", *own, *CPU, *given)


def of_python(weights: Path, data: Any, **keys: Any) -> Any:
    own = [*CHOSEN[1:], *CPU]
    return unlabeled.embed(weights, data, overrides=own, **keys)


def test_the_table_has_a_row_for_each_image_and_the_bits_of_python_and_of_the_evaluation(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.parquet"
    code, said = embed(capfd, monkeypatch, weights, "data=digits", f"out={out}")
    assert (code, "1,797 images (1,347 train, 450 test) with 64 features each" in said) == (0, True), said
    table = pandas.read_parquet(out)
    assert list(table) == ["name", "label", "split", "features"]
    assert len(table) == 1797
    found = of_python(weights, "digits")
    assert found.x.dtype == np.float32
    assert np.array_equal(np.stack(table["features"].to_list()), found.x)
    assert (table["name"].tolist(), table["split"].tolist()) == (found.names, found.splits)
    assert np.array_equal(table["label"], found.labels)
    unlabeled.evaluate(
        weights,
        overrides=[*CHOSEN, *CPU],
        cache=tmp_path / "kept",
        report_dir=tmp_path / "report",
        **{"probe": "knn", "probe.knn.k": [20]},
    )
    kept = [load_file(file) for file in (tmp_path / "kept").iterdir()]
    kept = [each for each in kept if "x" in each]
    for split in ("train", "test"):
        x = torch.from_numpy(found.x[np.array(found.splits) == split])
        assert sum(torch.equal(x, each["x"]) for each in kept if each["x"].shape == x.shape) == 1
    record = json.loads((tmp_path / "x.parquet.json").read_text())
    assert (record["rows"], record["features"], record["settings"]["batch_size"]) == (1797, 64, 256)
    assert len(record["checkpoint"]["sha256"]) == 64
    assert sorted(path.name for path in tmp_path.glob("*x.parquet*")) == ["x.parquet", "x.parquet.json"]
    before = out.stat().st_mtime_ns
    code, said = embed(capfd, monkeypatch, weights, "data=digits", f"out={out}")
    assert (code, said) == (0, f"{out} is there already, made with the same settings\n")
    assert out.stat().st_mtime_ns == before


def test_images_without_classes_are_embedded_in_both_splits_and_a_corrupt_one_is_left_out(
    weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.csv"
    code, said = embed(capfd, monkeypatch, weights, f"data={photos}", "data.image_size=16", f"out={out}")
    assert (code, "7 images (4 train, 3 test)" in said, "; 1 corrupt image is left out" in said) == (0, True, True), (
        said
    )
    table = pandas.read_csv(out)
    names = [f"{photos}/train/{number}.png" for number in (0, 1, 2, 4)] + [f"{photos}/test/{n}.png" for n in range(3)]
    assert table["name"].tolist() == names
    assert table["label"].tolist() == [-1] * 7
    assert table["split"].tolist() == ["train"] * 4 + ["test"] * 3
    found = of_python(weights, photos, **{"data.image_size": 16})
    assert np.array_equal(table[[f"f{place}" for place in range(64)]].to_numpy().astype(np.float32), found.x)


@pytest.mark.parametrize("key", ["data=", "data.path="])
def test_one_image_gives_one_row(
    key: str, weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    cat = photos / "train" / "2.png"
    given = [f"{key}{cat}", *(["data=folder"] if key == "data.path=" else []), f"out={tmp_path / 'x.npy'}"]
    code, said = embed(capfd, monkeypatch, weights, *given)
    assert code == 0, said
    x = np.load(tmp_path / "x.npy")
    assert x.shape == (1, 64)
    assert (tmp_path / "x.rows.csv").read_text() == f"name,label,split\n{cat},-1,train\n"
    with Image.open(cat) as image:
        ours = of_python(weights, [image])
    np.testing.assert_allclose(ours.x, x, atol=1e-5)
    assert (ours.names, ours.labels.tolist(), ours.splits) == (["image 0"], [-1], ["train"])


def test_data_path_alone_names_images_where_those_of_the_run_have_no_path(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    small: dict[str, Any] = {
        "experiment": "digits",
        "max_steps": 1,
        "batch_size": 64,
        "probe": "none",
    }
    quick: dict[str, Any] = {"online_knn": None, "pictures": None, "num_workers": 0, "trainer.accelerator": "cpu"}
    run = unlabeled.train(out=tmp_path / "run", backbone={"width": 0.125}, **small, **quick)
    cat = photos / "train" / "2.png"
    given = [f"run={run.folder}", f"data.path={cat}", f"out={tmp_path / 'x.npz'}", *CPU]
    code, said = printed(capfd, monkeypatch, "embed", *given)
    assert code == 0, said
    found = np.load(tmp_path / "x.npz")
    assert (found["name"].tolist(), found["features"].shape[0]) == ([str(cat)], 1)
    assert np.array_equal(unlabeled.embed(run, cat).x, found["features"])
    assert np.array_equal(unlabeled.embed(run.folder, overrides=[f"data.path={cat}"]).x, found["features"])
    loaded = unlabeled.load(run)
    assert np.array_equal(unlabeled.embed(loaded, "digits").x, unlabeled.embed(run.folder).x)
    code, said = printed(capfd, monkeypatch, "embed", f"run={run.folder}", "data.path=/no/cat.jpg", "out=x.npy", *CPU)
    assert (code, said.count("\n"), "/no/cat.jpg does not exist" in said) == (2, 1, True), said
    code, said = printed(capfd, monkeypatch, "evaluate", f"run={run.folder}", f"data.path={photos}", *CPU)
    assert (code, said) == (2, "error: data.path: no such key; (allowed: image_size)\n")


class Own(nn.Module):
    """A network of somebody else's: the mean colour."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def transform(self, image: Image.Image) -> Tensor:
        self.seen.append((type(image).__name__, image.size))
        return torch.from_numpy(np.array(image.resize((4, 4)))).permute(2, 0, 1).float()

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


def test_any_network_with_a_transform_and_any_kind_of_image_will_do(photos: Path) -> None:
    generator = np.random.default_rng(1)
    arrays = [generator.integers(0, 256, (6 + row, 9, 3), np.uint8) for row in range(3)]
    kinds = [Image.fromarray(arrays[0]), arrays[1], torch.from_numpy(arrays[2]).permute(2, 0, 1)]
    network = Own()
    found = unlabeled.embed(network, kinds)
    assert network.seen == [("Image", (9, 6)), ("Image", (9, 7)), ("Image", (9, 8))]
    expected = [np.array(Image.fromarray(each).resize((4, 4))).astype(np.float32).mean((0, 1)) for each in arrays]
    np.testing.assert_allclose(found.x, expected, rtol=1e-6)
    assert found.names == ["image 0", "image 1", "image 2"]
    together = unlabeled.embed(network, np.stack([arrays[0]] * 2))
    assert np.array_equal(together.x, np.stack([found.x[0]] * 2))
    assert len(unlabeled.embed(network, photos)) == 7


def test_lengths_and_means_of_tokens_are_those_of_the_numbers_themselves(weights: Path) -> None:
    tokens = of_python(weights, "digits", features="tokens").x.reshape(1797, -1, 64)
    mean = of_python(weights, "digits", features="tokens", pooling="mean").x
    np.testing.assert_allclose(mean, tokens.mean(1), rtol=1e-4, atol=1e-6)
    assert np.array_equal(of_python(weights, "digits", features="tokens", pooling="max").x, tokens.max(1))
    plain, unit = (of_python(weights, "digits", normalize=normalize).x for normalize in (False, True))
    length = np.maximum(np.linalg.norm(plain, axis=1, keepdims=True), 1e-30)  # a random network has rows of zeros
    np.testing.assert_allclose(unit, plain / length, rtol=1e-5, atol=1e-7)
    wide = of_python(weights, "digits", features="last4").x
    assert wide.shape[1] > 64


class Holes:
    """Digits of which some cannot be decoded: a whole batch and more."""

    square, image_size = True, 8

    def __init__(self, count: int, holes: range) -> None:
        self._digits = digits().train
        self._holes, self.labels, self.classes = holes, self._digits.labels[:count], self._digits.classes

    def __len__(self) -> int:
        return len(self.labels)

    def decode(self, index: int) -> Tensor:
        if index in self._holes:
            raise CorruptImage(f"{index} is broken")
        return self._digits.decode(index)

    def name(self, index: int) -> str:
        return f"digit {index}"

    def files(self) -> list[str]:
        return [__file__]

    def within(self) -> str:
        return str(self._holes)


def parts(holes: range = range(0)) -> tuple[Embedder, Images]:
    torch.manual_seed(0)
    views = Views(8, [], None, None, 1.0, "bilinear")
    splits = Splits(Holes(200, holes), Holes(50, range(0)), "digits with holes")
    embedder = Embedder(ResNet(10, 0.125, "cifar"), views.evaluation_view, views.evaluation(), torch.device("cpu"))
    return embedder, Images(DataModule(splits, 16, 0, 0, 0), 16)


def quiet(line: str) -> None:
    pass


def killed_at_the_fifth_batch(out: str) -> None:
    torch.set_num_threads(1)
    append, count = PartFile.append, [0]

    def dying(self: PartFile, *arguments: Any) -> None:
        count[0] += 1
        if count[0] == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        append(self, *arguments)

    setattr(PartFile, "append", dying)  # noqa: B010, mypy takes no assignment of a method
    embed_to_file(Path(out), *parts(), {}, quiet)


def test_killed_and_called_again_it_goes_on_and_writes_the_same_bytes(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.npz", tmp_path / "x.npz"
    embed_to_file(whole, *parts(), {}, quiet)
    process = SERVER.Process(target=killed_at_the_fifth_batch, args=(str(out),))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.npz.part", "whole.npz", "whole.npz.json"]
    with part_path(out).open("ab") as file:  # as a kill in the middle of a batch, and a loss of power, leave it
        file.write(b"\1\0\0\0torn" + bytes(5000))
    lines: list[str] = []
    embedder, images = parts()
    seen: list[int] = []
    embedder.network.register_forward_hook(lambda module, given, x: seen.append(len(x)))
    embed_to_file(out, embedder, images, {}, lines.append)
    assert lines == ["goes on after 64 of 250 images"]
    assert sum(seen) == 250 - 64
    found, expected = np.load(out), np.load(whole)
    assert {key: np.array_equal(found[key], expected[key]) for key in expected} == dict.fromkeys(expected, True)
    assert not part_path(out).exists()


def test_what_was_begun_with_other_settings_or_is_being_written_is_one_line(tmp_path: Path) -> None:
    out = tmp_path / "x.npy"
    embedder, images = parts()
    settings = embedder.settings() | images.settings()
    part = PartFile(part_path(out), settings, images.batches())
    part.append(np.ones(16, bool), np.ones((16, 3), np.float32))
    with pytest.raises(
        unlabeled.UserError, match=r"\.part: another process writes it; wait for it, or give another out="
    ):
        embed_to_file(out, *parts(), {}, quiet)
    part.close()
    embedder.normalize = True
    with pytest.raises(unlabeled.UserError, match=r"\.part: was begun with another normalize; remove it to begin anew"):
        embed_to_file(out, embedder, images, {}, quiet)
    with pytest.raises(unlabeled.UserError, match=r"\.part: was begun with another data; remove it"):
        embed_to_file(out, *parts(range(3)), {}, quiet)
    part_path(out).unlink()
    out.write_text("mine")
    with pytest.raises(unlabeled.UserError, match=r"x\.npy: is there, and nothing says how it was made; remove it"):
        embed_to_file(out, *parts(), {}, quiet)
    assert out.read_text() == "mine"


@pytest.mark.parametrize("holes", [range(0, 20), range(16, 32), range(185, 200)])
def test_batches_of_corrupt_images_alone_are_passed_over(holes: range, tmp_path: Path) -> None:
    embed_to_file(tmp_path / "x.npy", *parts(holes), {}, quiet)
    in_memory = embed_in_memory(*parts(holes), quiet)
    names = [f"digit {row}" for row in range(200) if row not in holes] + [f"digit {row}" for row in range(50)]
    assert in_memory.names == names
    assert np.array_equal(np.load(tmp_path / "x.npy"), in_memory.x)
    whole = embed_in_memory(*parts(), quiet)
    kept = [row for row in range(250) if row not in holes]
    np.testing.assert_allclose(in_memory.x, whole.x[kept], atol=1e-6)


def member(number: int, processes: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=number, world_size=processes)
    for name, holes in (("whole", range(0)), ("holes", range(0, 40))):
        embed_to_file(Path(folder) / f"{name}.npy", *parts(holes), {}, quiet)
        embed_to_file(Path(folder) / f"{name}.npy", *parts(holes), {}, quiet)  # all of them know that it is there
    leave()


def test_several_processes_write_the_table_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(member, (3, port, str(tmp_path)), 3)
    for name, holes in (("whole", range(0)), ("holes", range(0, 40))):
        found = np.load(tmp_path / f"{name}.npy")
        assert np.array_equal(found, embed_in_memory(*parts(holes), quiet).x)


ENDINGS = ("parquet", "safetensors")


class Wide(nn.Module):
    """A pixel and 4,000 zeros: much to write, nothing to compute."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.pad(images[:, 0, 0, :1], (0, 4000))


def peak_while(out: str) -> None:
    """Write 200 MB of features twice, and how far memory has grown."""
    torch.set_num_threads(1)
    embedder, images = parts()
    embedder.network = Wide()
    for ending in ENDINGS:
        embed_to_file(Path(out) / f"first.{ending}", embedder, images, {}, quiet)  # what libraries take once
    images.sources = {f"{number} {name}": each for number in range(50) for name, each in images.sources.items()}
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest is from now on
    for ending in ENDINGS:
        embed_to_file(Path(out) / f"x.{ending}", embedder, images, {}, quiet)
    Path(out, "grown").write_text(str(resident("VmHWM") - before))


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) // 1024


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    process = SERVER.Process(target=peak_while, args=(str(tmp_path),))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    assert (tmp_path / "x.safetensors").stat().st_size > 195e6
    assert int((tmp_path / "grown").read_text()) < 80  # MiB


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["run=/no/run", "out=x.npy"], "error: run=/no/run: no such folder"),
        (["out=x.npy"], "error: give one of run=outputs/NAME, checkpoint=FILE and weights=…"),
        (["run=/no/run"], "error: out: has no default; give out=features.parquet, "),
        (["run=/no/run", "out=x.hdf5"], "error: out=x.hdf5: the ending says how it is written; allowed: .parquet, "),
        (["run=/no/run", "out=/proc/x.npy"], "error: out=/proc/x.npy: "),
        (["run=/no/run", "out=x.npy", "features=lust"], "error: features=lust: "),
        (["run=/no/run", "out=x.npy", "pooling=sum"], "error: pooling=sum: "),
        (["run=/no/run", "out=x.npy", "data=cifar1"], "error: data=cifar1: unknown; did you mean cifar1"),
        (["run=/no/run", "out=x.npy", "normalise=true"], "error: normalise: no such key; did you mean normalize"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    given: list[str],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = printed(capfd, monkeypatch, "embed", *given)
    assert (code, said.count("\n")) == (2, 1), said
    assert said.startswith(line)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_that_only_the_weights_and_images_show_is_one_line_too(
    weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.npy"
    (tmp_path / "text.md").write_text("no image")
    for given, line in (
        (
            ["data=digits", "features=cls"],
            "error: features=cls: ResNet has no such features; allowed: last, last4, tokens",
        ),
        (["data=digits", "pooling=mean"], "error: pooling=mean: is of features=tokens; features=last are one vector"),
        ([f"data={tmp_path}/none"], f"error: data.path={tmp_path}/none"),
        ([f"data={tmp_path}/text.md"], f"error: data.path={tmp_path}/text.md: "),
    ):
        code, said = embed(capfd, monkeypatch, weights, *given, f"out={out}")
        assert (code, said.count("\n")) == (2, 1), said
        assert said.startswith(line)
    assert [path.name for path in tmp_path.iterdir()] == ["text.md"]
    assert embed(capfd, monkeypatch, weights, f"data={photos}", f"out={out}")[0] == 0
    code, said = embed(capfd, monkeypatch, weights, f"data={photos}", f"out={out}", "normalize=true")
    assert (code, said.count("\n")) == (2, 1), said
    assert said == f"error: out={out}: is there, made with another normalize; remove it, or give another name\n"


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: unlabeled.embed("/no/run", "digits"), "run=/no/run: no such folder"),
        (
            lambda: unlabeled.embed(3, "digits"),  # type: ignore[arg-type]
            "int: give a run, a file of weights, or a network",
        ),
        (lambda: unlabeled.embed(nn.Identity(), "digits"), "Identity: has no transform; set model.transform to what"),
        (lambda: unlabeled.embed(Own()), "data: a network does not say what it was made with: give a folder"),
        (lambda: unlabeled.embed(Own(), []), "data: an empty list; give images"),
        (lambda: unlabeled.embed(Own(), ["a.jpg"]), "str: give a Pillow image, or uint8 [3, H, W], or array"),
        (lambda: unlabeled.embed(Own(), "digits", out="x.npy"), "out: what is returned has .save("),
        (lambda: unlabeled.embed(Own(), "digits", backbone="resnet18"), "backbone: a network is given already"),
        (lambda: unlabeled.embed(Own(), "digits", features="tokens"), "features=tokens: Own has no such features"),
    ],
)
def test_from_python_a_mistake_is_a_user_error_of_one_line(call: Any, line: str) -> None:
    with pytest.raises(unlabeled.UserError) as caught:
        call()
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)

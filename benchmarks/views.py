"""How fast SimCLR's views are made: this project, kornia, and torchvision on PIL images one by one.

    python benchmarks/views.py                 on one CPU core
    python benchmarks/views.py --device cuda   compiled too, and all views beside a training step of ResNet-50

All are timed in turn within one process, several times; medians go to benchmarks/results/views_DEVICE.md. The images
are cut-outs of scikit-learn's two photographs.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import kornia.augmentation as K
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision import models
from torchvision.transforms import v2

from unlabeled.core.environment import machine, versions
from unlabeled.views.key import ViewKey
from unlabeled.views.pipeline import Views

ROOT = Path(__file__).resolve().parents[1]
CASES = {"simclr_small": (32, 256), "simclr": (400, 32)}  # pixels of the images, batch size on a CPU
VIEWS = 2  # of each image
MULTI_VIEWS = ("simclr", "byol", "swav")  # beside a training step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=9, help="timings of each, in turn")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for name, (size, batch_size) in CASES.items():
        images = photographs(size, batch_size if arguments.device == "cpu" else 256).to(arguments.device)
        lines += compare(name, images, arguments.repeats)
    if arguments.device == "cuda":
        lines += ["", *beside_a_training_step(arguments.repeats)]
    page = ROOT / "benchmarks" / "results" / f"views_{arguments.device}.md"
    page.write_text("\n".join([*header(arguments), *lines, ""]))
    print(page.read_text())


def photographs(size: int, count: int) -> Tensor:
    """Random cut-outs, uint8 [count, 3, size, size]."""
    sources = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images]
    generator = torch.Generator().manual_seed(0)
    cut = []
    for number in range(count):
        source = sources[number % len(sources)]
        top, left = (int(torch.randint(side - size + 1, (), generator=generator)) for side in source.shape[1:])
        cut.append(source[:, top : top + size, left : left + size])
    return torch.stack(cut)


def views_of(name: str, compiled: bool = False) -> Views:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        views: Views = instantiate(compose("train", ["name=x", f"views={name}", f"views.compile={compiled}"]).views)
    return views


def compare(name: str, images: Tensor, repeats: int) -> list[str]:
    """A row of the table for each way of making the views."""
    views = views_of(name)
    ids = torch.arange(len(images))
    key = ViewKey(0, 0, 0, len(images))
    theirs = with_kornia(views.size, blur=name == "simclr").to(images.device)
    ways: dict[str, Callable[[], object]] = {
        "this project": lambda: views(images, ids, key),
        "kornia": lambda: [theirs(images.float() / 255) for _ in range(VIEWS)],
    }
    if images.device.type == "cuda":
        compiled = views_of(name, compiled=True)
        ways["this project, compiled"] = lambda: compiled(images, ids, key)
    if images.device.type == "cpu":
        pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        one_by_one = with_pil(views.size, blur=name == "simclr")
        ways["torchvision on PIL"] = lambda: [[one_by_one(picture) for picture in pictures] for _ in range(VIEWS)]
    milliseconds = timed(ways, repeats, images.device)
    ours = milliseconds["this project"]
    start = f"| {name}, {images.shape[-1]} → {views.size} px, batch {len(images)}"
    made = VIEWS * len(images)
    return [
        f"{start} | {way} | {spent:.1f} | {1000 * made / spent:,.0f} | {spent / ours:.2f} |"
        for way, spent in milliseconds.items()
    ]


def with_kornia(size: int, blur: bool) -> torch.nn.Module:
    """SimCLR's view as kornia has it: bicubic, without antialias."""
    strength = 1.0 if blur else 0.5
    taps = size // 10 // 2 * 2 + 1
    view: torch.nn.Module = K.AugmentationSequential(
        K.RandomResizedCrop((size, size), scale=(0.08, 1.0), resample="bicubic"),
        K.RandomHorizontalFlip(p=0.5),
        K.ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength, p=0.8),
        K.RandomGrayscale(p=0.2),
        *([K.RandomGaussianBlur((taps, taps), (0.1, 2.0), p=0.5)] if blur else []),
        data_keys=["input"],
    )
    return view


def with_pil(size: int, blur: bool) -> v2.Compose:
    """SimCLR's view as torchvision makes it of one PIL image."""
    strength = 1.0 if blur else 0.5
    jitter = v2.ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    taps = size // 10 // 2 * 2 + 1
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.08, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([jitter], p=0.8),
            v2.RandomGrayscale(p=0.2),
            *([v2.RandomApply([v2.GaussianBlur(taps, (0.1, 2.0))], p=0.5)] if blur else []),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )


def timed(ways: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds of each, all in turn, after one call that is not counted."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            with torch.no_grad():
                way()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                spent[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(times) for name, times in spent.items()}


def beside_a_training_step(repeats: int) -> list[str]:
    """What all views of 256 images cost, in per cent of a step of ResNet-50 on the same views in bf16."""
    table = ["| pipeline, 400 px, batch 256 | views, ms | compiled, ms | training step, ms | share | compiled |"]
    table += ["|---|---:|---:|---:|---:|---:|"]
    for name in MULTI_VIEWS:
        images, ids, key = photographs(400, 256).cuda(), torch.arange(256), ViewKey(0, 0, 0, 256)
        views = views_of(name)
        ways: dict[str, Callable[[], object]] = {
            "eager": partial(views, images, ids, key),
            "compiled": partial(views_of(name, compiled=True), images, ids, key),
            "step": training_step(views(images, ids, key)),
        }
        spent = timed(ways, repeats, images.device)
        shares = [100 * spent[way] / spent["step"] for way in ("eager", "compiled")]
        numbers = [f"{spent[way]:.1f}" for way in ("eager", "compiled", "step")] + [
            f"{share:.1f} %" for share in shares
        ]
        table.append(f"| {name} | {' | '.join(numbers)} |")
    return table


def training_step(views: tuple[Tensor, ...]) -> Callable[[], None]:
    """Forward and backward of ResNet-50 on all views in bf16, one pass for each size, and an SGD step."""
    network = models.resnet50().to(views[0].device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    sizes = sorted({view.shape[-1] for view in views})
    batches = [torch.cat([view for view in views if view.shape[-1] == size]) for size in sizes]
    batches = [batch.to(memory_format=torch.channels_last) for batch in batches]

    def step() -> None:
        with torch.enable_grad(), torch.autocast(views[0].device.type, torch.bfloat16):
            torch.cat([network(batch).float().mean()[None] for batch in batches]).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def header(arguments: argparse.Namespace) -> list[str]:
    where = machine()
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{where['cpu']}, one thread"
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    return [
        f"# Speed of SimCLR's two views: {device}",
        "",
        f"Medians of {arguments.repeats} timings, in turn in one process, by `python benchmarks/views.py`.",
        f"Versions: {packages}.",
        "",
        "| pipeline | made by | ms | views per second | time, ours = 1 |",
        "|---|---|---:|---:|---:|",
    ]


if __name__ == "__main__":
    main()

"""The same work in lightly, solo-learn and stable-pretraining, in turn with this project.

    taskset -c 0,1 env OMP_NUM_THREADS=2 python benchmarks/peers.py DATA --environments FOLDER

DATA holds CIFAR-10 as train.parquet and test.parquet. Each library gets its own virtual environment in FOLDER, made by
``uv`` (``pip install uv``) where it is missing. What is measured is appended to FOLDER/records_DEVICE.jsonl, so that
``--parts`` and ``--rounds`` can be done one after another, and removing lines removes measurements; the page is
benchmarks/results/peers_DEVICE.md. Each library has one small driver in benchmarks/peer_drivers/.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the drivers are modules of benchmarks

from benchmarks.peer_drivers.harness import PREFIX, Job  # noqa: E402
from benchmarks.peer_pages import OURS, QUERIES, Record, best_setting, page, rounds  # noqa: E402
from unlabeled.core.environment import git_state, machine, versions  # noqa: E402

PARTS = ("thin", "resnet18", "first_step", "knn", "linear")
STEPS = {  # not timed, timed; the first are at least what workers have prepared, or take long enough for it
    "cpu": {"thin": (8, 24), "resnet18": (2, 4), "first_step": (0, 0)},
    "cuda": {"thin": (20, 100), "resnet18": (20, 100), "first_step": (0, 0)},
}
CLASSES = {"knn": (10, 1000)}  # of the labels; else 10
FOLDER_IMAGES = 2048  # of the first step: 8 batches
LIMIT = 600  # seconds that a driver may take


@dataclass(frozen=True)
class Library:
    """How a library is installed, and which settings of it are tried."""

    name: str
    driver: str
    packages: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()  # installed without what they ask for
    views: tuple[str, ...] = ("torchvision",)
    parts: tuple[str, ...] = PARTS

    def settings(self, part: str, device: str) -> list[tuple[int, str]]:
        """Workers of the loader and views; of this project and of probes there is one setting."""
        if part not in STEPS[device]:
            return [(0, "")]
        if self.name == OURS:
            return [(2, "batched")]  # the default: they decode the images once
        cores = len(os.sched_getaffinity(0))
        return list(product((0, 2) if device == "cpu" else (cores // 2, cores), self.views))


LIBRARIES = (
    Library(OURS, "unlabeled_simclr"),
    Library("lightly", "lightly_simclr", ("lightly==1.6.0", "pytorch-lightning=={lightning}")),
    Library(
        "solo-learn",
        "solo_learn_simclr",
        ("pytorch-lightning=={lightning}", "torchmetrics", "einops", "tqdm", "scipy", "timm"),
        alone=("solo-learn==1.0.2",),  # it asks for torch 1.9.1 and Lightning 1.4.7, which no Python from 3.10 on has
    ),
    Library(
        "stable-pretraining",
        "stable_pretraining_simclr",
        ("stable-pretraining==0.1.8", "lightning=={lightning}"),
        views=("torchvision", "kornia"),
        parts=("thin", "resnet18", "first_step", "linear"),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of CIFAR-10's train.parquet and test.parquet")
    parser.add_argument("--environments", type=Path, required=True, help="folder for environments, data and records")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all; those of training on a GPU")
    parser.add_argument("--rounds", type=int, default=3, help="of each part, with those that are recorded")
    parser.add_argument("--libraries", nargs="+", choices=[each.name for each in LIBRARIES], help="default: all")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--page", action="store_true", help="only write the page of what is recorded")
    arguments = parser.parse_args()
    folder, device = arguments.environments.resolve(), arguments.device
    session = Session(folder, device)
    parts = arguments.parts or (PARTS if device == "cpu" else tuple(STEPS[device]))
    if not set(parts) <= set(STEPS[device]) and device == "cuda":
        parser.error("--parts: probes are compared on a CPU")
    if not arguments.page:
        prepare(arguments.data.resolve(), folder / "data")
        for part in parts:
            chosen = [each for each in LIBRARIES if each.name in (arguments.libraries or [each.name])]
            session.measure(part, [each for each in chosen if part in each.parts], arguments.rounds)
    target = ROOT / "benchmarks" / "results" / f"peers_{device}.md"
    installed = {each.name: versions_of(each, folder) for each in LIBRARIES}
    target.write_text(page(session.records(), installed, computer(device), device))
    print(target.read_text())


@dataclass
class Session:
    """Environments, data and records of a folder."""

    folder: Path
    device: str
    pythons: dict[str, str] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.folder / f"records_{self.device}.jsonl"

    def records(self) -> list[Record]:
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        return [Record(**json.loads(line)) for line in lines]

    def measure(self, part: str, libraries: Sequence[Library], wanted: int) -> None:
        """All in turn until there are so many rounds, each at the setting that was fastest when all were tried."""
        for library in libraries:
            self.pythons[library.name] = environment(library, self.folder)
            self.try_settings(library, part)
        while len(self.whole_rounds(part, libraries)) < wanted:
            number = self.next_round(part)
            for library in libraries:
                self.one(library, part, self.best(library, part), number)

    def try_settings(self, library: Library, part: str) -> None:
        known = [each for each in self.records() if (each.library, each.part) == (library.name, part)]
        settings = library.settings(part, self.device)
        for setting in settings if len(settings) > 1 else ():
            if setting not in {(each.workers, each.views) for each in known}:
                self.one(library, part, setting, "choice")

    def best(self, library: Library, part: str) -> tuple[int, str]:
        settings = library.settings(part, self.device)
        return best_setting(self.records(), library.name, part) if len(settings) > 1 else settings[0]

    def whole_rounds(self, part: str, libraries: Sequence[Library]) -> set[str]:
        """Numbers of those that each library has finished; one that was broken off is not gone on with."""
        last = CLASSES.get(part, (10,))[-1]
        found = rounds(self.records(), part, last)
        return set.intersection(*(set(found.get(library.name, {})) for library in libraries))

    def next_round(self, part: str) -> str:
        known = [int(each.round) for each in self.records() if each.part == part and each.round != "choice"]
        return str(1 + max(known, default=0))

    def one(self, library: Library, part: str, setting: tuple[int, str], number: str) -> None:
        """Run a driver, for k-NN with few classes and with many, and append what it found."""
        data = self.folder / "data"
        warm_up, steps = STEPS[self.device].get(part, (0, 0))
        for classes in CLASSES.get(part, (10,)):
            with tempfile.TemporaryDirectory() as scratch:
                out = data / f"knn_{classes}_{library.name}.pt" if part == "knn" else Path(scratch) / "run"
                job = Job(part, str(data), *setting, warm_up, steps, classes, self.device, out=str(out))
                found = driven(self.pythons[library.name], library.driver, job, scratch)
            if part == "knn":
                found |= compared(found, out, data / f"knn_{classes}_{OURS}.pt")
            record = Record(library.name, part, number, *setting, classes, found)
            with self.file.open("a") as file:
                file.write(json.dumps(asdict(record)) + "\n")
            print(record, flush=True)


def driven(python: str, driver: str, job: Job, folder: str) -> dict[str, Any]:
    """What a driver answers. Raises RuntimeError with the end of its output where it does not."""
    settings = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'ssl'}", "WANDB_MODE": "disabled"}
    settings.pop("PYTHONDONTWRITEBYTECODE", None)  # or each start would compile what is imported
    job.started = time.time()
    command = [python, "-m", f"benchmarks.peer_drivers.{driver}", json.dumps(asdict(job))]
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, timeout=LIMIT)
    answers = [line for line in done.stdout.splitlines() if line.startswith(PREFIX)]
    if done.returncode or not answers:
        raise RuntimeError(f"{driver} on {job} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(answers[-1].removeprefix(PREFIX))
    return found


def compared(found: dict[str, Any], predictions: Path, ours: Path) -> dict[str, int]:
    """How many predictions are not this project's; nothing where that is unknown."""
    if "same" in found:
        return {"differ": QUERIES - round(found["same"])}
    if not predictions.exists() or not ours.exists():
        return {}
    one, other = (torch.load(path, weights_only=True) for path in (predictions, ours))
    return {"differ": int((one != other).sum())}


def environment(library: Library, folder: Path) -> str:
    """The Python of a library's environment, made on first use with the torch of this process."""
    if library.name == OURS:
        return sys.executable
    place = folder / f"env_{library.name}"
    python = str(place / "bin" / "python")
    if (place / "ready").exists():
        return python
    if shutil.which("uv") is None:
        raise SystemExit("uv is not installed: pip install uv")
    packages = [f"{name}=={metadata.version(name)}" for name in ("torch", "torchvision")]
    packages += [each.format(lightning=metadata.version("pytorch-lightning")) for each in library.packages]
    subprocess.run(["uv", "venv", "--quiet", "--clear", "--python", sys.executable, str(place)], check=True)
    install = ["uv", "pip", "install", "--quiet", "--compile-bytecode", "--python", python]  # as pip does
    subprocess.run([*install, *packages], check=True)
    if library.alone:
        subprocess.run([*install, "--no-deps", *library.alone], check=True)
    (place / "ready").touch()
    return python


def prepare(source: Path, folder: Path) -> None:
    """What all read: CIFAR-10 as arrays, as parquet, and 2,048 of its images in class folders; made-up features."""
    if (folder / "ready").exists():
        return
    import numpy as np

    from benchmarks.probes import made_up
    from unlabeled.data.memory import decode_all
    from unlabeled.data.sources.parquet import parquet

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train.parquet", "test.parquet"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(source / name)
    train = decode_all(parquet(str(source), "train.parquet", None, 32, True, "image", "label", None).train, 2)
    assert isinstance(train.images, torch.Tensor)
    images, labels = train.images.permute(0, 2, 3, 1).contiguous().numpy(), train.labels.numpy()
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    write_folder(images[:FOLDER_IMAGES], labels[:FOLDER_IMAGES], folder / "folder")
    for classes in (10, 1000):
        bank, queries = made_up(classes)
        both = torch.cat([bank.x, queries.x]), torch.cat([bank.labels, queries.labels])
        torch.save(both, folder / f"features_{classes}.pt")
    (folder / "ready").touch()


def write_folder(images: Any, labels: Any, folder: Path) -> None:
    from PIL import Image

    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / str(label) / f"{number:05d}.png")


def versions_of(library: Library, folder: Path) -> str:
    """What its environment holds of the packages that it was made of."""
    if library.name == OURS:
        packages = ", ".join(f"{name} {found}" for name, found in versions().items())
        return f"commit {str(git_state(ROOT / 'ssl')['commit'])[:7]}, {packages}"
    python = folder / f"env_{library.name}" / "bin" / "python"
    if not python.exists():
        return "not installed here"
    names = ["torch", "torchvision", *(each.partition("==")[0] for each in library.packages + library.alone)]
    ask = (
        "import sys; from importlib.metadata import version as v; print(', '.join(f'{n} {v(n)}' for n in sys.argv[1:]))"
    )
    return subprocess.run([str(python), "-c", ask, *names], check=True, capture_output=True, text=True).stdout.strip()


def computer(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{machine()['cpu']}, {len(os.sched_getaffinity(0))} cores of {os.cpu_count()}"


if __name__ == "__main__":
    main()

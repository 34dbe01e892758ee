"""``unlabeled COMMAND key=value …``: a sentence for each. What a command needs is imported when it is called."""

import contextlib
import difflib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import NoReturn

from unlabeled import __version__

Main = Callable[[list[str]], None]  # gets what was typed behind the name of the command
HELP = {"--help", "-h"}


@dataclass(frozen=True)
class Command:
    """One of the words behind ``unlabeled``."""

    sentence: str
    home: str  # module:function; the function gets the arguments, or what run_module gives it
    primary: str | None = None  # the yaml in conf/ by which run_module composes its configuration
    folder: str | None = None  # the key of what is typed without one: unlabeled evaluate outputs/digits
    called: str = ""  # how its help calls it, where that is for the checkout's script too


COMMANDS = {
    "train": Command(
        "Pretrains a backbone on images without labels, then evaluates it.",
        "unlabeled.commands.train.train:main",
        called="python train.py",
    ),
    "evaluate": Command(
        "Evaluates a frozen backbone by k-NN and linear probes beside a random one, raw pixels and chance.",
        "unlabeled.commands.evaluate.evaluate:main",
        folder="run",
        called="python eval_linear.py",
    ),
    "embed": Command(
        "Writes the features of images as a table: parquet, CSV, npy, npz or safetensors.",
        "unlabeled.commands.evaluate.embed:embed",
        "embed",
        "run",
    ),
    "predict": Command(
        "Says the class of each image with its probability, by a classifier that evaluate or finetune has kept.",
        "unlabeled.commands.classify.predict:predict",
        "predict",
        "run",
    ),
    "explore": Command(
        "Makes a page of images without labels: a map, clusters, neighbours, outliers, duplicates, what to label.",
        "unlabeled.commands.features.explore:explore",
        "explore",
        "run",
    ),
    "cluster": Command(
        "Clusters the images of a pretrained run without labels: SCAN, then self-labelling, beside k-means.",
        "unlabeled.commands.cluster.cluster:main",
        folder="run",
    ),
    "finetune": Command(
        "Trains the whole network on your labels and keeps it with its classifier.",
        "unlabeled.commands.classify.finetune:finetune",
        "finetune",
        "run",
    ),
    "export": Command(
        "Writes a backbone or a classifier for timm, torchvision, Hugging Face, ONNX or torch.export; checks it there.",
        "unlabeled.commands.export:export",
        "export",
        "run",
    ),
    "label": Command(
        "Lists the images of a pool to label next: typical, covering, or those a classifier is least sure of.",
        "unlabeled.commands.labelling.label:label",
        "label",
        "run",
    ),
    "active": Command(
        "Runs active learning on a labelled set and says how many labels a strategy saves against random.",
        "unlabeled.commands.labelling.active:active",
        "active",
        "run",
    ),
    "transfer": Command(
        "Judges frozen features on many data sets, beside other networks: linear probes, k-NN, few images of a class.",
        "unlabeled.commands.evaluate.own_data_keys:transfer",
        folder="run",
    ),
    "segment": Command(
        "Judges dense features by semantic segmentation: a linear head on the frozen network, k-NN of patches.",
        "unlabeled.commands.evaluate.own_data_keys:segment",
        folder="run",
    ),
    "detect": Command(
        "Trains a detector of boxes and masks from the weights, beside one from random ones: COCO's average precision.",
        "unlabeled.commands.evaluate.own_data_keys:detect",
        folder="run",
    ),
    "inspect": Command(
        "Tells what is in a data set: sizes, classes, corrupt files, duplicates, speed of decoding.",
        "unlabeled.commands.inspect:inspect_data",
        "inspect",
    ),
    "pack": Command(
        "Writes a data set once as tar shards of resized images, which train faster than photographs.",
        "unlabeled.commands.setup.pack:pack_data",
        "pack",
    ),
    "saliency": Command(
        "Makes foreground masks without labels, for the views of ReLICv2.",
        "unlabeled.commands.saliency:make_masks",
        "saliency",
    ),
    "plan": Command(
        "Shows what a training would do, its rates, time and memory, and what looks wrong; trains nothing.",
        "unlabeled.commands.train.train:plan",
        called="python train.py",
    ),
    "preview": Command(
        "Shows the views that a training would draw; trains nothing.",
        "unlabeled.commands.train.train:preview",
        called="python train.py",
    ),
    "tune": Command(
        "Searches for the values of a training's keys that give the best features.",
        "unlabeled.commands.tune.tune:main",
    ),
    "health": Command(
        "Says whether a run learns or has collapsed.",
        "unlabeled.commands.health:health_command",
        "health",
        "run",
    ),
    "watch": Command("Serves a page of all runs, while they train.", "unlabeled.commands.watch:main"),
    "represent": Command(
        "Measures features without labels: rank, spectrum, invariances, attention.",
        "unlabeled.commands.represent:represent",
        "representation",
        "run",
    ),
    "compare": Command(
        "Compares two evaluated runs image by image, or by first=… second=… the layers of two networks.",
        "unlabeled.commands.evaluate.compare:main",
        folder="compare",
    ),
    "table": Command(
        "Puts many evaluated runs into one table.",
        "unlabeled.commands.table:table_command",
        "table",
        "runs",
    ),
    "new": Command(
        "Writes a working skeleton of an objective, view, source or probe, with its test.",
        "unlabeled.commands.setup.new:main",
    ),
    "doctor": Command(
        "Prints versions, devices, precision, speed and what is missing for which feature.",
        "unlabeled.commands.setup.doctor:main",
    ),
}
LISTS = ("compare", "runs")  # keys that take several folders


def main() -> None:
    """The console command."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in (*HELP, "help"):
        print(overview())
    elif name == "--version":
        print(__version__)
    elif name not in COMMANDS:
        _refuse(name)
    else:
        with _one_line_for_ctrl_c(name):
            run(name, arguments)


@contextlib.contextmanager
def _one_line_for_ctrl_c(name: str) -> Iterator[None]:
    """A command that has nothing of its own to say when it is stopped."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"stopped by Ctrl-C: the same command does the rest of unlabeled {name}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


def overview() -> str:
    """What ``unlabeled --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.sentence}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "Self-supervised pretraining of image backbones, evaluated beside baselines, with intervals.",
            "",
            *lines,
            "",
            "  unlabeled train experiment=digits     a first run, minutes on two cores",
            "  unlabeled train data=PATH             your own images: what suits them is picked, and said",
            "  unlabeled COMMAND --help              keys, choices and examples of a command",
        ]
    )


def run(name: str, arguments: Sequence[str]) -> None:
    """Do a command."""
    command = COMMANDS[name]
    given = list(arguments) if command.folder is None else folders_as(command.folder, arguments)
    shown = command.called and any(argument in HELP for argument in given)
    if not shown:
        _start(command, given)
        return
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            _start(command, given)  # Hydra ends Python when it has printed its help
    finally:
        print(printed.getvalue().replace(command.called, f"unlabeled {name}"), end="")


def _start(command: Command, arguments: list[str]) -> None:
    if command.primary is None:
        module, function = command.home.split(":")
        getattr(import_module(module), function)(arguments)
        return
    from unlabeled.commands.arguments.data_path import with_data_source
    from unlabeled.commands.config import run_module

    run_module(command.primary, command.home, with_data_source(arguments))


def folders_as(key: str, arguments: Sequence[str]) -> list[str]:
    """The arguments with a key before each folder or file that was typed without one: Hydra takes nothing else.

    What exists is a folder, whatever is in its name; so is what is neither ``key=value`` nor belongs to an option.
    """
    folders: list[str] = []
    others: list[str] = []
    for before, argument in pairwise(["", *arguments]):
        is_option = argument.startswith("-") or before in ("--config-dir", "-cd", "--cfg", "-c", "--info", "-i")
        (others if is_option or ("=" in argument and not os.path.exists(argument)) else folders).append(argument)
    if not folders:
        return others
    if any(other.startswith(f"{key}=") for other in others):
        _stop(f"{key}=… and {folders[0]} without a key: give one of the two")
    if key not in LISTS and len(folders) > 1:
        _stop(f"{' '.join(folders)}: this command takes one of them; {key}={folders[0]}, or several runs of it")
    names = [quoted(each) for each in folders]
    return [*others, f"{key}=[{','.join(names)}]" if key in LISTS else f"{key}={names[0]}"]


def quoted(name: str) -> str:
    """The name of a file as a value for Hydra, whatever letters it has."""
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${") + '"'


def _refuse(name: str) -> NoReturn:
    if "=" in name:
        _stop(f"{name}: give a command first: unlabeled train {name}")
    close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"(allowed: {', '.join(COMMANDS)})"
    _stop(f"{name}: no such command; {hint}")


def _stop(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)

"""``unlabeled train data=PATH`` and nothing else: what suits these images is picked, and said with its reason.

A key that is given is never picked. What is picked depends on the files and on whether there is a GPU, and on nothing
else, so that the same command goes on with its run.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from omegaconf import OmegaConf

from unlabeled.commands.arguments.compose import composed
from unlabeled.commands.arguments.data_path import data_path, with_data_source
from unlabeled.commands.command_line import Reader, settled
from unlabeled.commands.config import check_command, conf_folder, own_folders, user_errors, with_joined_options
from unlabeled.commands.importing import heavy_imports
from unlabeled.errors import UserError

LOOKED_AT = 200  # images whose headers are read, evenly spaced
SMALL = (32, 64, 96)  # pixels of views below ImageNet's 224
LARGE = 224
# Images that a thin ResNet sees in a quarter of an hour on two cores at 32 pixels, as experiment=cifar10_cpu goes.
CPU_IMAGES, MINUTES = 1_200_000, 15
GPU_IMAGES = 20_000_000  # 400 epochs of CIFAR-10, a sixth of SimCLR's 100 epochs of ImageNet
TRIED = ("simclr", "moco_v2")  # methods whose picks were tried on several sizes; others start from their CPU recipe
PICKED = {  # group → choices of which one may be picked; "": that of conf/train.yaml
    "backbone": ("resnet_thin", "resnet18", "resnet50"),
    "views": ("simclr_small", "simclr", "moco_small", "moco_v2"),
    "optimizer": ("sgd", ""),
}
LEAST = 16  # images; fewer are no data set


@dataclass(frozen=True)
class Look:
    """What was seen of the images."""

    path: str
    images: int
    side: int  # median of the shorter sides, pixels
    classes: int
    labelled: int
    tested: int  # images of the test split
    gpu: bool
    fewest: int = 0  # labelled images of the rarest class

    def __str__(self) -> str:
        classes = f"{self.classes} classes" if self.classes else "no labels"
        none = "no test split (data.holdout=0.2 tests on a fifth)" if self.classes else "no test split"
        tested = f"{self.tested:,} test images" if self.tested else none
        return f"{self.path}: {self.images:,} images, shorter side {self.side} pixels (median), {classes}, {tested}"


@dataclass(frozen=True)
class Pick:
    """Keys that were picked together, and why."""

    values: dict[str, Any]
    why: str


def completed(arguments: Sequence[str], log: Callable[[str], None] = print) -> list[str]:
    """The arguments of a training, with the source of ``data=PATH`` and what suits its images where that is left open.

    Raises:
        UserError: there are no images, or too few.
    """
    arguments = with_joined_options(arguments)
    path = data_path(arguments)
    named = with_data_source(arguments)
    asked = {argument.lstrip("+").split("=")[0] for argument in arguments}
    if path is None or asked & {"experiment", "replay", "--help", "-h", "--cfg", "-c"}:
        return named
    check_typed(named)
    objective = next((each.partition("=")[2] for each in named if each.startswith("objective=")), "simclr")
    seen = look(path, [each for each in named if each.startswith(("data", "--config-dir"))])
    given = dict(each.split("=", 1) for each in named if "=" in each)
    picks = [_open(pick, asked) for pick in pick_for(seen, given, recipe_of(objective), own_of(objective))]
    picks = [pick for pick in picks if pick.values]
    log(str(seen))
    lines = [" ".join(f"{key}={value}" for key, value in pick.values.items()) for pick in picks]
    width = min(60, max(map(len, lines), default=0))
    for line, pick in zip(lines, picks, strict=True):
        log(f"  {line:<{width}}  {pick.why}")
    return named + [f"{key}={value}" for pick in picks for key, value in pick.values.items()]


def check_typed(named: Sequence[str]) -> None:
    """Raise UserError for a mistake that what was typed has whatever is picked, before an image is looked at.

    A key may belong to a part that only some images get, such as ``backbone.stem``: any of these parts is enough.
    """
    with user_errors(conf_folder(), "train", list(named)):
        Reader(conf_folder(), "train", list(named)).arguments()
    asked = {each.lstrip("+").split("=")[0] for each in named}
    given = [*settled(named), *(f"--config-dir={folder}" for folder in own_folders(named))]
    left = {group: list(choices) for group, choices in PICKED.items() if group not in asked}
    first: UserError | None = None
    while True:
        parts = [f"{group}={choices[0]}" for group, choices in left.items() if choices[0]]
        try:
            return check_command(composed("train", [*given, *parts]), conf_folder() / "train.yaml")
        except UserError as mistake:
            first = first or mistake
            group = str(mistake).partition(".")[0]
            if len(left.get(group, ())) < 2:
                raise first from None
            left[group].pop(0)


def _open(pick: Pick, asked: set[str]) -> Pick:
    """Without what was given, and without keys below a group that was: they may not be in the other choice."""
    groups = asked & {"views", "optimizer", "backbone"}
    return Pick({k: v for k, v in pick.values.items() if k not in asked and k.split(".")[0] not in groups}, pick.why)


def look(path: str, overrides: Sequence[str]) -> Look:
    """Lists the files and reads some headers; decodes nothing where there are any.

    Args:
        path: as it was given.
        overrides: of ``data``.
    """
    with heavy_imports():
        import torch

        from unlabeled.commands.build.run import build_splits
        from unlabeled.data.decode import read_header
        from unlabeled.data.source import HasEncodedImages

    with user_errors(conf_folder(), "inspect", overrides):
        splits = build_splits(composed("inspect", overrides))
    train, sides = splits.train, list[int]()
    counts = torch.bincount(train.labels[train.labels >= 0])
    for position in range(0, len(train), max(1, len(train) // LOOKED_AT)):
        try:
            if isinstance(train, HasEncodedImages):
                header = read_header(train.encoded(position))
                sides.append(min(header.height, header.width))
            else:
                sides.append(min(train.decode(position).shape[1:]))
        except Exception:  # damaged: the run counts and names them
            continue
    if len(train) < LEAST or not sides:
        raise UserError(f"data={path}: {len(train)} images, {len(sides)} that can be read: give {LEAST} at least")
    return Look(
        path,
        len(train),
        int(median(sides)),
        len(train.classes),
        int((train.labels >= 0).sum()),
        len(splits.test) if splits.test is not None else 0,
        torch.cuda.is_available(),
        int(counts[counts > 0].min()) if len(counts) else 0,
    )


def recipe_of(objective: str) -> dict[str, Any]:
    """Parts, probes and widths of a method's recipe for a CPU; nothing for those that were tried."""
    path = conf_folder() / "experiment" / f"{objective}_cifar10_cpu.yaml"
    if objective in TRIED or not path.is_file():
        return {}
    content: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    chosen = {key.removeprefix("override /"): value for each in content["defaults"] for key, value in each.items()}
    groups = {group: chosen[group] for group in ("views", "backbone", "optimizer", "probe") if group in chosen}
    parts = {key: value for key, value in content.items() if key in (*groups, "objective")}
    return groups | {
        f"{part}.{key}": value
        for part, values in parts.items()
        for key, value in values.items()
        if not isinstance(value, dict)
    }


def own_of(objective: str) -> dict[str, Any]:
    """The keys of a method; of the labelled images of a step there are as many as in its recipe for a CPU."""
    path = conf_folder() / "objective" / f"{objective}.yaml"
    recipe = conf_folder() / "experiment" / f"{objective}_cifar10_cpu.yaml"
    own: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False) if path.is_file() else {}
    if "support" in own and recipe.is_file():
        of_recipe: Any = OmegaConf.select(OmegaConf.load(recipe), "objective.support") or {}
        own["support"] |= {key: of_recipe[key] for key in ("classes_per_batch", "images_per_class") if key in of_recipe}
    return dict(own)


def _by_classes(seen: Look, given: dict[str, str], own: dict[str, Any]) -> Pick:
    """What depends on the classes: outputs of a classifier, clusters, and the labelled images of a step."""
    values = {f"objective.{key}": seen.classes for key in ("classes", "clusters") if key in own}
    if support := own.get("support"):
        values["objective.support.classes_per_batch"] = min(support["classes_per_batch"], seen.classes)
        if not support["repeats"]:
            images = min(support["images_per_class"], _labelled(seen, given, support["fraction"]))
            values["objective.support.images_per_class"] = images
    return Pick(values if seen.classes else {}, f"{seen.classes} classes")


def _labelled(seen: Look, given: dict[str, str], fraction: float) -> int:
    """Labelled images of the rarest class, of those that the method may use."""
    if "objective.support.per_class" in given:
        return int(_number(given["objective.support.per_class"], 1))
    share = _number(given.get("objective.support.fraction"), fraction)
    return max(1, round(share * seen.fewest))


def _of_recipe(recipe: dict[str, Any], objective: str, epochs: float) -> Pick:
    shown = recipe | {"optimizer.warmup_epochs": _warmup(epochs)}
    lists = {key: f"[{','.join(map(str, value))}]" for key, value in shown.items() if isinstance(value, list)}
    return Pick(shown | lists, f"as experiment={objective}_cifar10_cpu: small images, small networks")


def _warmup(epochs: float) -> float:
    return epochs // 20 or round(epochs / 20, 2)


def pick_for(
    seen: Look, given: dict[str, str], recipe: dict[str, Any] | None = None, own: dict[str, Any] | None = None
) -> list[Pick]:
    """What suits images like these.

    Args:
        seen: of them.
        given: keys and values of the command, which the others must go with.
        recipe: of :func:`recipe_of`; where it has any, it decides views, backbone, optimizer and probes.
        own: of :func:`own_of`.
    """
    gpu = seen.gpu and given.get("trainer.accelerator") != "cpu"
    fitting = (recipe or {}).get("views.size", SMALL[0]) if recipe else view_size(seen.side, gpu)
    size = int(_number(given.get("views.size"), fitting))
    batch = int(_number(given.get("batch_size"), batch_size(seen.images)))
    epochs = int(_number(given.get("max_epochs"), epochs_for(seen.images, size, gpu)))
    objective, run_epochs = given.get("objective", "simclr"), _run_epochs(epochs, given, batch, seen.images)
    picks = [
        Pick({"name": _name(seen.path)}, "the folder's name; the same command goes on with the same run"),
        *([] if recipe else [Pick(*_views(objective, size, seen.side, gpu))]),
        Pick(_decoded(_kept(size, seen.side), given), "pixels of the shorter side that are kept for crops"),
        *([] if recipe else [Pick(*_backbone(size, seen.images, gpu))]),
        Pick({"batch_size": batch}, "many negatives" if batch >= 256 else "at least four steps in an epoch"),
        Pick({"max_epochs": epochs}, _how_long(round(seen.images * run_epochs), size, gpu or bool(recipe))),
        _of_recipe(recipe, objective, run_epochs) if recipe else Pick(*_optimizer(objective, run_epochs)),
    ]
    if objective == "simclr":
        picks.append(Pick({"objective.temperature": 0.2}, "between ImageNet's 0.1 and CIFAR-10's 0.5: a short run"))
    if objective == "moco_v2":
        queue = max(batch, min(65536, seen.images // 2) // batch * batch)
        picks.append(Pick({"objective.queue_size": queue}, "half of the images: a key must not meet itself"))
    picks.append(_by_classes(seen, given, own or {}))
    if seen.tested and seen.labelled < 200 and given.get("probe") in (None, "quick", "knn"):
        neighbours = max(1, min(20, seen.labelled // 2))
        picks.append(Pick({"probe.knn.k": f"[{neighbours}]"}, f"{seen.labelled} labelled training images"))
    return picks


def _decoded(side: int, given: dict[str, str]) -> dict[str, Any]:
    """How images are decoded; ``data=parquet`` would cut CIFAR's squares out of photographs, other sources do not."""
    whole = {"data.square": False} if given.get("data") == "parquet" and side > SMALL[0] else {}
    return {"data.image_size": side, **whole}


def _run_epochs(epochs: int, given: dict[str, str], batch: int, images: int) -> float:
    """Returns the length of the run, which ``max_steps`` may end before its epochs."""
    steps = _number(given.get("max_steps"), math.inf)
    return min(epochs, steps * batch * _number(given.get("accumulate"), 1) / images)


def view_size(side: int, gpu: bool) -> int:
    """Pixels: what the images have, in steps; a CPU takes a twelfth of the time at 64 instead of 224."""
    sizes = (*SMALL, LARGE) if gpu else SMALL[:2]
    return next((size for size in sizes if side <= size * 1.25), sizes[-1])


def batch_size(images: int) -> int:
    """256, or the power of two that leaves at least four steps in an epoch."""
    return min(256, max(8, 1 << (images // 4).bit_length() - 1))


def epochs_for(images: int, size: int, gpu: bool) -> int:
    """So that a run is long enough for few images and ends for many."""
    seen = GPU_IMAGES if gpu else CPU_IMAGES * 32**2 / size**2
    return round(min(800 if gpu else 200, max(100 if gpu else 10, seen / images)))


def _how_long(seen: int, size: int, unknown: bool) -> str:
    minutes = max(1, round(MINUTES * seen / (CPU_IMAGES * 32**2 / size**2)))
    time = f", about {minutes} {'minute' if minutes == 1 else 'minutes'} on two cores"
    return f"{seen:,} images seen{'' if unknown else time}"


def _views(objective: str, size: int, side: int, gpu: bool) -> tuple[dict[str, Any], str]:
    known = {"simclr": ("simclr", "simclr_small"), "moco_v2": ("moco_v2", "moco_small")}
    why = f"images of {side} pixels" if gpu or side <= 80 else f"images of {side} pixels, and no GPU"
    if objective not in known:
        return {}, why
    return {"views": known[objective][size != LARGE], "views.size": size}, why


def _kept(size: int, side: int) -> int:
    """256 for 224, as the papers; twice the view's size where the images have it, so that small crops stay sharp."""
    return 256 if size == LARGE else max(size, min(side, 2 * size))


def _backbone(size: int, images: int, gpu: bool) -> tuple[dict[str, Any], str]:
    if not gpu:
        return {"backbone": "resnet_thin"}, "no GPU: 0.3 million parameters"
    if size <= 64:
        return {"backbone": "resnet18", "backbone.stem": "cifar"}, "small images keep their resolution (SimCLR, B.9)"
    name = "resnet50" if images >= 100_000 else "resnet18"
    return {"backbone": name}, f"{images:,} images"


def _optimizer(objective: str, epochs: float) -> tuple[dict[str, Any], str]:
    lr = {"simclr": 0.12, "moco_v2": 0.06}.get(objective)
    if lr is None:
        return {}, ""
    values: dict[str, Any] = {"optimizer": "sgd", "optimizer.lr": lr, "optimizer.weight_decay": 5e-4}
    values["optimizer.warmup_epochs"] = _warmup(epochs)
    return values, "batches of 256 or fewer need no LARS"


def _name(path: str) -> str:
    """Of the run: the folder's, in letters that a folder can have anywhere."""
    return re.sub(r"[^\w.-]+", "-", Path(path).expanduser().resolve().name).strip("-.") or "run"


def _number(text: str | None, otherwise: float) -> float:
    try:
        return otherwise if text is None else float(text)
    except ValueError:  # Hydra says what is wrong with it
        return otherwise

"""Whether what a command names is there and what it writes can be written: answered before torch is imported."""

import glob
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unlabeled.commands.checks.classifiers import check_heads, check_members, check_risk
from unlabeled.core.places import (
    NEWEST,
    check_one_named,
    checkpoint_path,
    folder_of,
    run_folder,
    similar_runs,
    why_not_evaluated,
)
from unlabeled.core.writing import check_file, check_folder
from unlabeled.data.sources.published_sets import known_set
from unlabeled.errors import UserError
from unlabeled.training.run_folder import check_run_folder

Keys = Mapping[str, Any]
SOURCES = "unlabeled.data.sources."
FOLDERS = ("folder.folder", "huggingface.huggingface")  # sources whose data.path is there itself
ASK_A_CLASSIFIER = ("entropy", "margin", "mutual_information")  # strategies
TABLES = (".parquet", ".npy", ".npz", ".csv", ".safetensors")  # endings of what embed writes


def check_places(command: str, keys: Keys) -> None:
    """Raise UserError for an output that cannot be written, or a run, file or folder that is not there.

    Args:
        command: name of its primary yaml.
        keys: of the whole command, each in its own range.
    """
    CHECKS.get(command, _nothing)(keys)


def _nothing(keys: Keys) -> None:
    """For commands that name no place."""


def _train(keys: Keys) -> None:
    if keys["replay"] is not None:
        if not os.path.isfile(keys["replay"]):
            raise UserError(f"replay={keys['replay']}: no such file; a run writes them to its folder faults/")
        return
    if keys["run_dir"].strip():
        check_run_folder(Path(keys["run_dir"]))
    if not any((Path(keys["run_dir"]) / "checkpoints").glob("*.ckpt")):  # a run that goes on reads them no more
        _check_weights(keys["weights"])
        _check_weights((keys.get("objective") or {}).get("teacher"), "objective.teacher")
    _check_data(keys.get("data"))


def _evaluate(keys: Keys) -> None:
    if keys["report_dir"]:
        check_folder("report_dir", Path(keys["report_dir"]))
    sides = [*(keys["compare"] or []), *(keys["ensemble"] or [])]
    for run in [each for side in sides for each in ([side] if isinstance(side, str) else side)]:
        if (problem := why_not_evaluated(Path(run))) is not None:
            raise UserError(f"{'compare' if keys['compare'] else 'ensemble'}: {run}: {problem}")
    if not sides and not keys["self_test"]:
        _network(keys)


def _network(keys: Keys) -> None:
    checkpoint_path(keys["run"], keys["checkpoint"])
    _check_data(keys.get("data"))


def _embed(keys: Keys) -> None:
    if keys["out"] is None:
        raise UserError("out: has no default; give out=features.parquet, .npy, .npz, .csv or .safetensors")
    out = Path(keys["out"]).expanduser()
    check_file("out", out)
    if out.suffix not in TABLES:
        raise UserError(f"out={out}: the ending says how it is written; allowed: {', '.join(TABLES)}")
    check_one_named(keys["run"], keys["checkpoint"], keys["weights"])
    if keys["weights"] is None:
        checkpoint_path(keys["run"], keys["checkpoint"])
    _check_weights(keys["weights"])
    _check_data(keys.get("data"))


def _predict(keys: Keys) -> None:
    if keys["out"] is None:
        raise UserError("out: has no default; give out=predictions.csv")
    if Path(keys["out"]).suffix != ".csv":
        raise UserError(f"out={keys['out']}: give the name of a table like predictions.csv")
    check_file("out", Path(keys["out"]).expanduser())
    check_risk(keys)
    check_heads(keys)
    check_members(keys["run"], keys["checkpoint"], keys["members"])
    _check_data(keys.get("data"))


def _finetune(keys: Keys) -> None:
    if keys["labels"] not in (None, "all") and not os.path.isfile(Path(keys["labels"]).expanduser()):
        raise UserError(f"labels={keys['labels']}: no such file; give all, or a text file with an image on each line")
    check_one_named(keys["run"], keys["checkpoint"], keys["weights"])
    _check_weights(keys["weights"])
    path = None if keys["weights"] else checkpoint_path(keys["run"], keys["checkpoint"])
    if path is None and not keys["out"]:
        raise UserError("out: has no default beside weights=…; give the name of a new folder")
    out = Path(keys["out"]).expanduser() if path is None or keys["out"] else folder_of(path) / "finetuned"
    check_folder("out", out)
    if os.path.exists(out / NEWEST):
        raise UserError(f"out={out}: holds a network already; give another folder, or delete it")
    _check_data(keys.get("data"))


def _label(keys: Keys) -> None:
    check_strategy(keys)
    if keys["out"] is None:
        raise UserError("out: has no default; give out=next.csv, or .txt")
    check_list_out(keys["out"])
    check_one_named(keys["run"], keys["checkpoint"], keys["weights"])
    if keys["weights"] is None:
        checkpoint_path(keys["run"], keys["checkpoint"])
    _check_weights(keys["weights"])
    _check_data(keys.get("data"))


def _explore(keys: Keys) -> None:
    if keys["out"] is not None:
        check_page_out(keys["out"])
    named = [keys[key] for key in ("run", "checkpoint", "weights", "embeddings")]
    if sum(each is not None for each in named) != 1:
        raise UserError("give one of run=outputs/NAME, checkpoint=FILE, weights=… and embeddings=FILE")
    if keys["embeddings"] is not None:
        _check_table(keys["embeddings"], keys.get("data"))
    elif keys["weights"] is None:
        checkpoint_path(keys["run"], keys["checkpoint"])
    _check_weights(keys["weights"])
    _check_data(keys.get("data"))


def check_page_out(given: str) -> None:
    """Raise UserError for a page that cannot be written there, or that is none by its ending."""
    out = Path(given).expanduser()
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"out={out}: give the name of a page like explore.html")
    check_file("out", out)


def _cluster(keys: Keys) -> None:
    if keys["out"]:
        check_folder("out", Path(keys["out"]).expanduser())
    if (keys["clusters"] or 0) < 2:
        raise UserError(f"clusters={keys['clusters']}: must be at least 2")
    checkpoint_path(keys["run"], None)


def _check_table(given: str, data: Any) -> None:
    path = Path(given).expanduser()
    if not path.is_file():
        raise UserError(f"embeddings={given}: no such file; unlabeled embed writes one")
    if path.suffix not in TABLES:
        raise UserError(f"embeddings={given}: the ending says what it is; allowed: {', '.join(TABLES)}")
    if not data:
        raise UserError("data: a table of features holds no image: give data=… that it was made of")


def check_strategy(keys: Keys) -> None:
    """Raise UserError for several strategies, one that lacks labels, or labels that are not there."""
    strategy = keys["strategy"]
    if not isinstance(strategy, str):
        raise UserError(f"strategy={strategy}: a list is made by one; give one of them")
    if strategy in ASK_A_CLASSIFIER and keys["labels"] is None:
        raise UserError(
            f"strategy={strategy}: asks a classifier, which needs labels; give labels=FILE of what is labelled so far, "
            "or strategy=typical or k_center, which need none"
        )
    if keys["labels"] is not None:
        check_list(keys["labels"])


def check_list_out(given: str) -> None:
    """Raise UserError for a list that cannot be written there, or whose ending says another form."""
    out = Path(given).expanduser()
    check_file("out", out)
    if out.suffix not in (".csv", ".txt"):
        raise UserError(f"out={out}: the ending says how it is written; allowed: .csv, .txt")


def check_list(labels: str) -> None:
    """Raise UserError for a list of labels that is not there, or that is none by its ending."""
    path = Path(labels).expanduser()
    if not os.path.isfile(path):
        raise UserError(f"labels={labels}: no such file; give a .csv with columns path and label, or a .txt of names")
    if path.suffix.lower() not in (".csv", ".tsv", ".parquet", ".txt"):
        raise UserError(f"labels={labels}: the ending says how it is read; allowed: .csv, .tsv, .parquet, .txt")


def _active(keys: Keys) -> None:
    given = keys["strategy"]
    if "random" in ([given] if isinstance(given, str) else given):
        raise UserError(f"strategy={given}: random stands beside each strategy anyway; give another")
    _in_a_folder(keys)


def _in_a_folder(keys: Keys) -> None:
    """Of export, represent and active."""
    if keys["out"]:
        check_folder("out", Path(keys["out"]).expanduser())
    checkpoint_path(keys["run"], keys["checkpoint"])
    _check_data(keys.get("data"))


def _transfer(keys: Keys) -> None:
    _one_network(keys)
    for weights in keys["against"]:
        _check_weights(weights)
    if not keys["sets"]:
        raise UserError("data: has no default; give data=[NAME,PATH,…] of labelled data sets")


def _segment(keys: Keys) -> None:
    _one_network(keys)
    if keys["folder"] is None:
        raise UserError("data: has no default; give data=FOLDER of images and label maps")
    _check_images_folder(keys["folder"])


def _detect(keys: Keys) -> None:
    _one_network(keys)
    if keys["precision"] == "16-mixed":  # Lightning would clip gradients that are still scaled up
        raise UserError("precision=16-mixed: a detector is trained in 32-true or bf16-mixed; give one of them, or auto")
    for weights in keys["against"]:
        _check_weights(weights)
    if keys["folder"] is None:
        raise UserError("data: has no default; give data=FOLDER of images and boxes, in COCO's form or Pascal VOC's")
    _check_images_folder(keys["folder"])


def _check_images_folder(given: str) -> None:
    """Of segment and detect: both splits and their descriptions are below one folder."""
    folder = Path(given).expanduser()
    if folder.is_file():
        raise UserError(f"data={given}: is a file; give the folder that holds it and the images")
    if not folder.is_dir():
        raise UserError(f"data={given}: no such folder")


def _one_network(keys: Keys) -> None:
    """Of transfer, segment and detect, whose page goes to the folder of the run."""
    check_one_named(keys["run"], keys["checkpoint"], keys["weights"])
    if keys["weights"] is None:
        checkpoint_path(keys["run"], keys["checkpoint"])
    elif keys["out"] is None:
        raise UserError(f"weights={keys['weights']}: there is no run whose folder the page goes to; give out=FOLDER")
    _check_weights(keys["weights"])
    if keys["out"]:
        check_folder("out", Path(keys["out"]).expanduser())


def _inspect(keys: Keys) -> None:
    if not keys["out"]:
        raise UserError(f"out={keys['out']}: give the name of a folder, which may be new")
    check_folder("out", Path(keys["out"]).expanduser(), ["inspect.json", "inspect.md", "near_duplicates.png"])
    _check_data(keys["data"])


def _pack(keys: Keys) -> None:
    if keys["out"] is None:
        raise UserError("out: has no default; give out=FOLDER, which may be new")
    out = Path(keys["out"]).expanduser()
    if keys["check"]:
        if not out.is_dir():
            raise UserError(f"out={keys['out']}: no such folder; give one that unlabeled pack has written")
        return
    if not keys.get("data"):
        raise UserError("data: has no default; give data=PATH, or a choice such as data=cifar10")
    check_folder("out", out, ["pack.json", "SHA256SUMS", "train-000000.tar"])
    _check_data(keys["data"])


def _saliency(keys: Keys) -> None:
    out = keys["out"] or ""
    if not out or out.endswith(".png"):
        raise UserError(f"out={keys['out']}: give the name of a file like masks.pt; its picture is masks.png")
    for path in (Path(out).expanduser(), Path(out).expanduser().with_suffix(".png")):
        check_file("out", path)
    _check_data(keys["data"])


def _health(keys: Keys) -> None:
    if keys["run"] is None:
        raise UserError("run=null: give the folder of a run: unlabeled health run=outputs/digits")
    if not os.path.isfile(run_folder("run", keys["run"]) / "metrics.jsonl"):
        raise UserError(f"run={keys['run']}: there is no metrics.jsonl in it; give the folder of a run")


def _compare_networks(keys: Keys) -> None:
    out = Path(keys["out"] or "").expanduser()
    if out.suffix != ".png":
        raise UserError(f"out={keys['out']}: give the name of a picture like cka.png; its numbers are cka.json")
    for path in (out, out.with_suffix(".json")):
        check_file("out", path)
    if keys["batch_size"] < 4:
        raise UserError(f"batch_size={keys['batch_size']}: must be at least 4")
    for which in ("first", "second"):
        _check_side(which, keys[which])
    _check_data(keys.get("data"))


def _check_side(which: str, given: Any) -> None:
    if isinstance(given, str):
        path = Path(given).expanduser()
        if not os.path.exists(path):
            raise UserError(f"{which}={given}: no such folder of a run and no such file{similar_runs(path)}")
        if os.path.isdir(path) and not os.path.exists(path / NEWEST):
            raise UserError(f"{which}={given}: there is no {NEWEST} in it; give the folder of a run that has a state")
    elif given.get("run") is not None or given.get("checkpoint") is not None:
        checkpoint_path(given.get("run"), given.get("checkpoint"))


def _table(keys: Keys) -> None:
    if keys["out"] != "-":
        check_file("out", Path(keys["out"] or "").expanduser())
    if not keys["runs"]:
        raise UserError("runs=[]: give folders of runs: unlabeled table outputs/*")
    for given in keys["runs"]:
        path = Path(given).expanduser()
        if not os.path.exists(path):
            raise UserError(f"runs: {given}: no such folder{similar_runs(path)}")


CHECKS: dict[str, Callable[[Keys], None]] = {
    "train": _train,
    "eval_linear": _evaluate,
    "embed": _embed,
    "predict": _predict,
    "label": _label,
    "active": _active,
    "transfer": _transfer,
    "segment": _segment,
    "detect": _detect,
    "explore": _explore,
    "cluster": _cluster,
    "finetune": _finetune,
    "export": _in_a_folder,
    "representation": _in_a_folder,
    "inspect": _inspect,
    "pack": _pack,
    "saliency": _saliency,
    "health": _health,
    "representation_compare": _compare_networks,
    "table": _table,
}


def _check_weights(origin: str | None, key: str = "weights") -> None:
    """What another library has is looked for later: that takes its import."""
    if origin is None or names_library(origin):
        return
    path = Path(origin).expanduser()
    if os.path.isdir(path) and not os.path.exists(path / NEWEST):
        raise UserError(f"{key}={origin}: no run: it has no {NEWEST}; {LIBRARIES}")
    if not os.path.exists(path):
        raise UserError(f"{key}={origin}: no such file or folder of a run{similar_runs(path)}; {LIBRARIES}")


LIBRARIES = "timm:NAME, torchvision:NAME and hf:ORG/NAME are known too"


def names_library(weights: str) -> bool:
    """Whether ``weights=`` names what another library has, and no file."""
    return weights.partition(":")[0] in ("timm", "torchvision", "hf") and ":" in weights


def _check_data(data: Mapping[str, Any] | None) -> None:
    """Of our own sources; what a source of the user's takes for a path only that source knows."""
    target = str((data or {}).get("_target_", SOURCES))
    if data is None or not target.startswith(SOURCES):
        return
    given = data.get("path")
    for path in [given] if isinstance(given, str) else given or []:
        _check_images(path, target.removeprefix(SOURCES))
    if target == SOURCES + "vision_sets.torchvision_set":  # before its folder: a wrong name is in none
        known_set(str(data.get("name")), "data.name")
    root = data.get("root")
    if root is not None and not data.get("download") and not os.path.isdir(os.path.expanduser(root)):
        where = f"data.root={root} ({Path(root).expanduser().absolute()})"
        raise UserError(f"{where}: no such folder; set data.root=… to the data set's folder, or data.download=true")


def _check_images(path: str, source: str) -> None:
    """Data that are not there. A beginning of several paths is enough for a source of shards or of parquet files."""
    place = os.path.expanduser(path)
    if "://" in path or os.path.lexists(place) or (source not in FOLDERS and glob.glob(glob.escape(place) + "*")):
        return
    what = "a folder of images" if source in ("", FOLDERS[0]) else "the folder of the data set"
    raise UserError(f"data.path={path}: {os.path.abspath(place)} does not exist; give {what}")

"""Extracts features of whole splits in one pass, by all processes together, or takes them from the cache."""

import hashlib
import json
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unlabeled.core.environment import versions
from unlabeled.data.fingerprint import fingerprint
from unlabeled.data.module import DataModule
from unlabeled.data.source import Source
from unlabeled.distributed import gather_rows, rank, world_size
from unlabeled.errors import UserError
from unlabeled.evaluation.cache import Key, TensorCache, code_hash
from unlabeled.evaluation.features import (
    Features,
    PixelNetwork,
    concatenate,
    extract_each,
    require_finite_images,
    state_hash,
)
from unlabeled.objective import Batch
from unlabeled.views.pipeline import Views

PLAIN = (bool, int, float, str, tuple, type(None))


@dataclass
class Extractor:
    """Extracts features of the labelled images of a split with a network, or of all images where ``unlabelled``.

    Features are in dataset order, on the CPU, for any number of processes W: each process computes every W-th batch.
    Corrupt images are left out.
    """

    data: DataModule
    views: Views
    device: torch.device
    precision: str  # of the networks; raw pixels are always float32
    batch_size: int
    cache: TensorCache | None = None
    passes: list[dict[str, Any]] = field(default_factory=list)  # passes over images, for the report
    unlabelled: bool = False
    _prints: dict[str, str | None] = field(default_factory=dict)

    def __call__(self, network: nn.Module, split: str, kinds: Sequence[str] = ("last",)) -> Features:
        """Returns features of ``train`` or ``test``; ``last`` is always among the kinds."""
        kinds = list(dict.fromkeys(["last", *kinds]))
        keys = self._keys(network, split, kinds)
        if keys is None or self.cache is None:
            return self._extract(network, split, kinds)
        found = {kind: self._kept(keys[kind]) for kind in kinds}
        missing = _by_any_process([kind for kind in kinds if found[kind] is None])
        if missing:
            made = self._extract(network, split, missing)
            if rank() == 0:
                self._keep(made, {kind: keys[kind] for kind in missing}, self.cache)
            found |= {kind: _only(made, kind) for kind in missing}
        return _join_kinds({kind: features for kind, features in found.items() if features is not None})

    def with_test(self, test: Source) -> "Extractor":
        """Returns an extractor for another test split; features of train are shared."""
        prints = {split: found for split, found in self._prints.items() if split == "train"}
        return replace(self, data=self.data.with_test(test), passes=[], _prints=prints)

    def fingerprint(self, split: str) -> str | None:
        """Returns the fingerprint of ``train`` or ``test``, computed once: it asks for the stamps of every file."""
        if split not in self._prints:
            source = self.data.splits.train if split == "train" else self.data.splits.test
            assert source is not None
            self._prints[split] = fingerprint(source)
        return self._prints[split]

    def _extract(self, network: nn.Module, split: str, kinds: Sequence[str]) -> Features:
        started, precision = time.perf_counter(), "32-true" if isinstance(network, PixelNetwork) else self.precision
        batches, positions = self._batches(split)
        rows: list[Features] = []
        if positions:
            extract_each(network, batches, self.views.evaluation_view, self.device, precision, kinds, rows.append)
        parts = [require_finite_images(concatenate(rows), precision)] if rows else []
        rows.clear()  # they may be most of the memory
        if world_size() > 1:
            self._list_corrupt_of_all()
            parts = self._gathered(parts)
        if not parts:
            raise UserError(f"data: no image of {split} that is wanted can be decoded: mend the files that are listed")
        features = concatenate(parts)
        order = features.ids.argsort(stable=True)
        seconds = round(time.perf_counter() - started, 3)
        self.passes.append({"split": split, "images": len(order), "kinds": list(kinds), "seconds": seconds})
        return features if bool((order == torch.arange(len(order))).all()) else features.rows(order)

    def _batches(self, split: str) -> tuple[Iterable[Batch], list[int]]:
        """Returns this process's share: alone, from memory if the images fit; else decoded once over all processes."""
        if world_size() == 1:
            present = self.data.train if split == "train" else self.data.test
            loader = self.data.batches(present, self._wanted(present.labels), self.batch_size)
            return loader, list(range(len(loader)))
        source = self.data.splits.train if split == "train" else self.data.splits.test
        assert source is not None
        chunks = torch.split(self._wanted(source.labels), self.batch_size)[rank() :: world_size()]
        mine = torch.cat([torch.zeros(0, dtype=torch.long), *chunks])
        return self.data.batches(source, mine, self.batch_size), mine.tolist()

    def _wanted(self, labels: Tensor) -> Tensor:
        """Returns the positions of the images that get features."""
        return torch.arange(len(labels)) if self.unlabelled else (labels >= 0).nonzero().flatten()

    def _list_corrupt_of_all(self) -> None:
        """Lists the damaged images of all processes on each, in one order: the first writes the report."""
        every: list[Any] = [None] * world_size()
        torch.distributed.all_gather_object(every, self.data.corrupt)
        self.data.corrupt[:] = dict.fromkeys(name for each in every for name in each)

    def _gathered(self, parts: list[Features]) -> list[Features]:
        """Gathers the rows of all processes; a process without rows does not know the others' width."""
        shapes: list[Any] = [None] * world_size()
        own = None if not parts else {k: tuple(v.shape[1:]) for k, v in _columns(parts[0]).items()}
        torch.distributed.all_gather_object(shapes, own)
        wide = next((shape for shape in shapes if shape is not None), None)
        if wide is None:
            return []
        mine = _columns(parts[0]) if parts else {name: _empty_column(name, shape) for name, shape in wide.items()}
        every = {name: gather_rows(mine[name].to(self._exchange_device())).cpu() for name in sorted(wide)}
        return [_of_columns(every)]

    def _exchange_device(self) -> torch.device:
        """Returns the device on which processes exchange tensors: NCCL supports only GPUs."""
        return self.device if torch.distributed.get_backend() == "nccl" else torch.device("cpu")

    def _keys(self, network: nn.Module, split: str, kinds: Sequence[str]) -> dict[str, Key] | None:
        """Returns cache keys of everything that decides the numbers; None where that is not known."""
        if self.cache is None or (data := self.fingerprint(split)) is None:
            return None
        precision = "32-true" if isinstance(network, PixelNetwork) else self.precision
        shared = network_key(network, self.views.evaluation(), precision, self.device) | {"data": data}
        source = self.data.splits.train if split == "train" else self.data.splits.test
        if self.unlabelled and source is not None and bool((source.labels < 0).any()):
            shared["images"] = "all"  # where all have a label, these are the features that every evaluation has
        return {kind: shared | {"kind": kind} for kind in kinds}

    def _kept(self, key: Key) -> Features | None:
        assert self.cache is not None
        found = self.cache.get(key)
        if found is None:
            return None
        tensors, notes = found
        self.data.corrupt += [name for name in json.loads(notes["corrupt"]) if name not in self.data.corrupt]
        return Features(tensors["x"], tensors["labels"], tensors["ids"])

    def _keep(self, features: Features, keys: dict[str, Key], cache: TensorCache) -> None:
        notes = {"corrupt": json.dumps(self.data.corrupt)}
        for kind, key in keys.items():
            x = features.x if kind == "last" else features.others[kind]
            cache.put(key, {"x": x, "labels": features.labels, "ids": features.ids}, notes)


def network_key(network: nn.Module, views: Any, precision: str, device: torch.device) -> Key:
    """Returns everything that decides the features a network gives for images, as plain values."""
    return {
        "network": hashlib.sha256("\n".join(_geometry(network)).encode()).hexdigest(),
        "weights": state_hash(network),
        "views": views,
        "precision": precision,
        "device": _device_name(device),
        "versions": versions(),
        "code": code_hash(),
        "other code": _other_code(network),
    }


def _other_code(network: nn.Module) -> dict[str, str]:
    """Returns the versions of other libraries whose modules a network has, and the hash of each file of the user's."""
    found = {}
    for module in sorted({type(each).__module__ for each in network.modules()}):
        package = module.partition(".")[0]
        if package in ("unlabeled", "torch", "torchvision"):  # in code and versions
            continue
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            file = getattr(sys.modules.get(module), "__file__", None)
            found[module] = hashlib.sha256(Path(file).read_bytes() if file else b"").hexdigest()
    return found


def _by_any_process(missing: list[str]) -> list[str]:
    """Lists what any process misses: all must run the images together, and caches may lie on several machines."""
    if world_size() == 1:
        return missing
    every: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(every, missing)
    return list(dict.fromkeys(kind for each in every for kind in each))


def _geometry(network: nn.Module) -> Iterator[str]:
    """Yields settings that weights do not show: types of all parts, strides, paddings, attention heads, pooling, …"""
    for name, module in network.named_modules():
        plain = {key: value for key, value in vars(module).items() if isinstance(value, PLAIN) and key != "training"}
        yield f"{name} {type(module).__qualname__} {sorted(plain.items())} {module.extra_repr()}"


def _only(features: Features, kind: str) -> Features:
    return Features(features.x if kind == "last" else features.others[kind], features.labels, features.ids)


def _join_kinds(found: dict[str, Features]) -> Features:
    last = found["last"]
    return Features(last.x, last.labels, last.ids, {kind: each.x for kind, each in found.items() if kind != "last"})


def _columns(features: Features) -> dict[str, Tensor]:
    others = {f"other {kind}": x for kind, x in features.others.items()}
    return {"x": features.x, "labels": features.labels, "ids": features.ids, **others}


def _of_columns(columns: dict[str, Tensor]) -> Features:
    others = {name.removeprefix("other "): x for name, x in columns.items() if name.startswith("other ")}
    return Features(columns["x"], columns["labels"], columns["ids"], others)


def _empty_column(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(0, *shape, dtype=torch.long if name in ("labels", "ids") else torch.float32)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()}"

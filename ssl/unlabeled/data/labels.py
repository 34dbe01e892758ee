"""Selects the labelled images that a method may use, from a list or by a random draw, and records the selection."""

import hashlib
import os
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from unlabeled.core.escaping import escaped
from unlabeled.core.reading import read_text
from unlabeled.core.seeding import derive_seed
from unlabeled.data.source import Source, common_folder
from unlabeled.errors import UserError

_SHOWN = 5  # names listed in an error


@dataclass(frozen=True)
class LabelList:
    """A list of n labelled images of one source."""

    ids: Tensor  # int64 [n], positions in the source, ascending
    labels: Tensor  # int64 [n]
    names: list[str]  # [n]; paths are relative to the common folder of the source

    @cached_property
    def text(self) -> str:
        """Returns one name a line: a file that ``labels_file`` accepts, on any machine."""
        return "".join(f"{name}\n" for name in self.names)

    @cached_property
    def sha256(self) -> str:
        """Returns the SHA-256 of :attr:`text`, so ``sha256sum labels.txt`` gives the same."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def per_class(self) -> Tensor:
        """Returns the number of images of each class that has any, int64 [classes with an image]."""
        counts = self.labels.bincount()
        return counts[counts > 0]

    def summary(self) -> dict[str, int | str]:
        """Returns size and fingerprint, for reports."""
        return {"images": len(self.ids), "classes": len(self.per_class()), "sha256": self.sha256}

    def __str__(self) -> str:
        counts = self.per_class()
        low, high = int(counts.min()), int(counts.max())
        many = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        return f"{len(self.ids):,} labelled images, {many} in each of {len(counts):,} classes, sha256 {self.sha256}"


@dataclass(frozen=True)
class LabelSelection:
    """Rule that selects labelled images; exactly one of the first three arguments is set, the others are None.

    Args:
        labels_file: text file with one image a line: its name, the end of its path, or its number in the source.
        fraction: share of the labelled images of each class, above 0 and at most 1; at least one image a class.
        per_class: images of each class.
        seed: of the random draw; a smaller draw with the same seed is part of a larger one. Not used with a file.
        key: of the configuration, for errors.
    """

    labels_file: str | None
    fraction: float | None
    per_class: int | None
    seed: int
    key: str

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("labels_file", "fraction", "per_class")}
        named = [f"{name}={value}" for name, value in given.items() if value is not None]
        if len(named) != 1:
            others = " ".join(f"{self.key}.{each.partition('=')[0]}=null" for each in named[:-1])
            rest = " and ".join(named) + f": add {others} for {named[-1]} alone" if named else "none"
            raise UserError(f"{self.key}: give one of labels_file, fraction and per_class, not {rest}")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise UserError(f"{self.key}.fraction={self.fraction}: must be above 0 and at most 1")
        if self.per_class is not None and self.per_class < 1:
            raise UserError(f"{self.key}.per_class={self.per_class}: must be at least 1")

    def of(self, source: Source) -> LabelList:
        """Returns the list for one source; reads labels and names, no image.

        Raises:
            UserError: the source has no labels, too few of a class, or the file does not fit it.
        """
        if not bool((source.labels >= 0).any()):
            raise UserError(f"{self.key}: the training images have no labels; give data=… that has some")
        ids = self._drawn(source) if self.labels_file is None else self._read(Path(self.labels_file), source)
        root = common_folder(source)
        return LabelList(ids, source.labels[ids], [source.name(id).removeprefix(root) for id in ids.tolist()])

    def _drawn(self, source: Source) -> Tensor:
        kept = []
        for label in sorted(set(source.labels[source.labels >= 0].tolist())):  # a class may be of other splits alone
            members = (source.labels == label).nonzero().flatten()
            generator = torch.Generator().manual_seed(derive_seed(self.seed, label))
            kept.append(
                members[torch.randperm(len(members), generator=generator)[: self._count(members, label, source)]]
            )
        return torch.cat(kept).sort().values

    def _count(self, members: Tensor, label: int, source: Source) -> int:
        if self.fraction is not None:
            return min(len(members), max(1, round(self.fraction * len(members))))
        assert self.per_class is not None
        if len(members) < self.per_class:
            name = source.classes[label]
            raise UserError(
                f"{self.key}.per_class={self.per_class}: class {name} has {len(members)} labelled images; give no more"
                " than that"
            )
        return self.per_class

    def _read(self, path: Path, source: Source) -> Tensor:
        text = read_text(path, f"{self.key}.labels_file={path}")
        lines = [escaped(line.strip()) for line in text.splitlines() if line.strip()]
        if not lines:
            raise UserError(f"{self.key}.labels_file={path}: names no image")
        found = matches(lines, source)
        self._refuse("unknown", [line for line, ids in zip(lines, found, strict=True) if not ids], lines)
        self._refuse("ambiguous", [line for line, ids in zip(lines, found, strict=True) if len(ids) > 1], lines)
        ids = torch.tensor([only for (only,) in found])
        order = ids.sort(stable=True)
        again = (order.values.diff() == 0).nonzero().flatten() + 1
        self._refuse("named twice", [lines[place] for place in order.indices[again].tolist()], lines)
        unlabelled = (source.labels[ids] < 0).nonzero().flatten().tolist()
        self._refuse("without a label", [lines[place] for place in unlabelled], lines)
        return order.values

    def _refuse(self, problem: str, lines: list[str], of: list[str]) -> None:
        if lines:
            some = ", ".join(lines[:_SHOWN]) + (", …" if len(lines) > _SHOWN else "")
            raise UserError(
                f"{self.key}.labels_file={self.labels_file}: {len(lines)} of {len(of)} images {problem} in the training"
                f" split: {some}"
            )


def shuffled_by_class(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Returns rows int64 [N] of ``labels`` int64 [N], class after class, shuffled within each, and their ranks there.

    The rank is 0 for the first row of a class, 1 for the second, and so on.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(labels.device)
    counts = labels.bincount()
    rank = torch.arange(len(labels), device=labels.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return shuffled[labels[shuffled].argsort(stable=True)], rank


def shared_names(labels: LabelList, train: Source, test: Source) -> list[str]:
    """Returns the names of listed images that are in the evaluation split too; both sources give the names."""
    held_out = {test.name(id) for id in range(len(test))}
    return [name for id in labels.ids.tolist() if (name := train.name(id)) in held_out]


def matches(lines: list[str], source: Source) -> list[list[int]]:
    """Returns the images of a source that each line can name: by the name, else the end of the path, else the number.

    A name may be relative to the folder of all images. A source that is a part of another has ``ids``, the numbers of
    its images there, which the numbers of lines are.
    """
    root, ids = common_folder(source), getattr(source, "ids", None)
    places = range(len(source)) if ids is None else {id: place for place, id in enumerate(ids.tolist())}
    ending: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for id in range(len(source)):
        name = source.name(id)
        ending[os.path.basename(name)].append((name, id))
    return [_match(line, ending.get(os.path.basename(line), []), root, places) for line in lines]


def _match(line: str, candidates: list[tuple[str, int]], root: str, places: range | dict[int, int]) -> list[int]:
    whole = [id for name, id in candidates if line in (name, name.removeprefix(root), os.path.abspath(name))]
    ends = [id for name, id in candidates if name.endswith(f"/{line}")]
    number = [places[int(line)]] if line.isdecimal() and int(line) in places else []
    return whole or ends or number

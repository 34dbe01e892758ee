"""Fits any classifier of frozen features on few labelled images: k of each class, 1 % or 10 %, or a published list."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from unlabeled.core.ranges import Between, Count, FilePath, Seed
from unlabeled.core.reading import read_bytes
from unlabeled.data.labels import LabelSelection
from unlabeled.data.source import Source
from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.probe import Probe, Score, add_metrics, kinds_of

KEY = "probe.few_labels"


@dataclass(frozen=True)
class LabelDraw:
    """One list of labelled train images."""

    ids: Tensor  # int64 [n]
    smallest_class: int  # number of images of the smallest class
    summary: dict[str, Any]  # images, classes, sha256 of their names, share of train, and the seed or the file


class FewLabels:
    """A classifier fitted on a part of the labels, once for each draw; each setting is scored by the mean.

    All of ``train`` but the listed images is hidden from the classifier, so it chooses its own hyper-parameters on a
    split of them. Every list is recorded by size and SHA-256, and a list of all labels is refused.

    Args:
        classifier: a feature probe.
        classifier_of_singles: another, for lists in which a class has one image, so that nothing can be set aside to
            choose a hyper-parameter on; None for the same one.
        per_class: settings with so many images of each class.
        fractions: settings with this share of each class, at least one image.
        labels_files: settings with the images of a list, see :class:`unlabeled.data.labels.LabelSelection`; not drawn.
        draws: lists per setting that is drawn, with seeds ``seed``, ``seed`` + 1, …
        seed: of the first draw; smaller settings are parts of larger ones of the same seed.
    """

    def __init__(
        self,
        classifier: Probe,
        classifier_of_singles: Probe | None,
        per_class: list[Count],
        fractions: list[Between],
        labels_files: list[FilePath],
        draws: Count,
        seed: Seed,
    ) -> None:
        if draws < 1:
            raise UserError(f"{KEY}.draws={draws}: must be at least 1")
        self._classifier, self._of_singles = classifier, classifier_of_singles or classifier
        settings = list(_settings(per_class, fractions, labels_files, range(seed, seed + draws)))
        self._choices = dict(settings)
        if len(self._choices) < len(settings):
            raise UserError(f"{KEY}.labels_files={labels_files}: two have the same name, which tells rows apart")
        if not self._choices:
            raise UserError(f"{KEY}: give one or more of per_class, fractions and labels_files")
        self._lists: dict[str, list[LabelDraw]] = {}
        self._notes: dict[str, list[str]] = {}
        self.needs = 1

    @property
    def kinds(self) -> tuple[str, ...]:
        """Returns the kinds of features that the classifiers use."""
        return tuple(dict.fromkeys([*kinds_of(self._classifier), *kinds_of(self._of_singles)]))

    def prepare(self, source: Source) -> None:
        """Draws or reads every list from the training split, before features are extracted.

        Drawn settings for which the source has too few images are left out, and settings that draw the same lists as an
        earlier one are merged with it; notes say so.

        Raises:
            UserError: no setting is left, or a list of a file or a fraction of 1 holds all labels; or such a list does
                not fit the source.
        """
        self._lists, refused = {}, []
        for name, choices in self._choices.items():
            try:
                drawn = [_drawn(each, source) for each in choices]
            except UserError as error:
                if choices[0].labels_file is not None or choices[0].fraction == 1:
                    raise
                refused.append((name, error))
                continue
            drawn_before = [name for name in self._lists if self._choices[name][0].labels_file is None]
            same = next((other for other in drawn_before if _same(self._lists[other], drawn)), None)
            if same is None:
                self._lists[name], self._notes[name] = drawn, []
            else:
                self._notes[same].append(f"{name} of the labels is the same lists here: one column.")
        if not self._lists:
            raise refused[0][1]
        self._notes[next(iter(self._lists))] += [f"{name} was left out: {error}." for name, error in refused]

    def fit_predict(self, train: Features, test: Features, num_classes: int) -> list[Score]:
        """Returns one Score for each setting and each score of the classifier, in the order of the settings."""
        assert self._lists
        return [
            summary
            for name, lists in self._lists.items()
            for summary in self._setting(name, lists, train, test, num_classes)
        ]

    def _setting(
        self, name: str, lists: list[LabelDraw], train: Features, test: Features, num_classes: int
    ) -> Iterator[Score]:
        found, missing, used = [], 0, 0
        for drawn in lists:
            listed = train.rows(torch.isin(train.ids, drawn.ids.to(train.ids.device)))
            if not len(listed.labels):
                raise UserError(f"{KEY}: none of the images listed for {name} is in the training split")
            missing += len(drawn.ids) - len(listed.labels)
            used = used or len(listed.labels)
            classifier = self._of_singles if drawn.smallest_class == 1 else self._classifier
            found.append(classifier.fit_predict(listed, test, num_classes))
            for score in found[-1]:
                add_metrics(score, test.labels)
        gone = list(self._notes[name])
        gone += [f"{missing} of the listed images could not be decoded and were left out."] if missing else []
        suffix = f"{name}/{len(lists)} draws" if len(lists) > 1 else name
        for scores in zip(*found, strict=True):
            yield _summary(suffix, scores, [drawn.summary for drawn in lists], gone, used)


def _settings(
    per_class: Sequence[int], fractions: Sequence[float], files: Sequence[str], seeds: Sequence[int]
) -> Iterator[tuple[str, list[LabelSelection]]]:
    for count in sorted(set(per_class)):
        yield f"{count} per class", [LabelSelection(None, None, count, seed, KEY) for seed in seeds]
    for share in sorted(set(fractions)):
        yield f"{100 * share:g}%", [LabelSelection(None, share, None, seed, KEY) for seed in seeds]
    for file in files:
        yield Path(file).name, [LabelSelection(file, None, None, 0, KEY)]


def _drawn(choice: LabelSelection, source: Source) -> LabelDraw:
    labels = choice.of(source)
    of = int((source.labels >= 0).sum())
    if len(labels.ids) == of:
        given = choice.labels_file or f"per_class={choice.per_class}, fraction={choice.fraction}"
        raise UserError(f"{KEY}: {given} is all {of:,} labelled train images, not few of them: take probe=linear")
    file = choice.labels_file
    origin = {"seed": choice.seed} if file is None else {"file": file, "file_sha256": _sha256(Path(file))}
    summary = {**labels.summary(), "percent_of_train": round(100 * len(labels.ids) / of, 3), **origin}
    return LabelDraw(labels.ids, int(labels.per_class().min()), summary)


def _same(some: list[LabelDraw], others: list[LabelDraw]) -> bool:
    return len(some) == len(others) and all(torch.equal(a.ids, b.ids) for a, b in zip(some, others, strict=True))


def _summary(name: str, scores: Sequence[Score], lists: list[dict[str, Any]], notes: list[str], used: int) -> Score:
    """Averages several draws; predictions, and the number of images ``used``, are those of the first."""
    first, top1 = scores[0], [score.top1 for score in scores]
    size = lists[0]["images"]
    protocol = f"{first.protocol}/{name}" + (f"={size} labels" if "file" in lists[0] else "")
    metrics = {key: mean(score.metrics[key] for score in scores) for key in _shared_keys(scores)}
    if len(scores) > 1:
        metrics["deviation"] = stdev(top1)
    chosen = {"labels": lists, "of_each_draw": [score.chosen for score in scores]}
    every = list(dict.fromkeys([*notes, *(note for score in scores for note in score.notes)]))
    return Score(
        protocol,
        mean(top1),
        chosen,
        every,
        first.predictions,
        first.log_probabilities,
        metrics,
        draws=top1 if len(scores) > 1 else [],
        n_train=used,
    )


def _shared_keys(scores: Sequence[Score]) -> list[str]:
    return [key for key in scores[0].metrics if all(key in score.metrics for score in scores)]


def _sha256(path: Path) -> str:
    return hashlib.sha256(read_bytes(path)).hexdigest()

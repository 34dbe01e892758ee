"""Reads one run's folder for the page. Reports missing, incomplete or damaged files without failing."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlabeled.core.parsing import parse_yaml
from unlabeled.health.dashboard.curves import Curve, CurveSummary, RunCurves, read_some
from unlabeled.health.dashboard.documents import Document, compared_settings, finite_or_none, flatten, is_outside
from unlabeled.health.dashboard.growing import BLOCK, GrowingFile
from unlabeled.health.dashboard.meanings import describe
from unlabeled.health.dashboard.notes import FILE as NOTES
from unlabeled.health.dashboard.notes import kept_notes
from unlabeled.health.dashboard.run_files import files_below, pictures_by_kind
from unlabeled.health.dashboard.scores import read_results
from unlabeled.health.dashboard.verdict import Verdict, classify_run, classify_run_without_state

MARKS = (
    "config.yaml",
    "metrics.jsonl",
    "state.json",
    "plan.json",
    "checkpoints",
)  # a folder with one of these files is a run
SMALL, LARGE = 120, 600  # points of a curve in the list, and on the run's page
AT_ONCE = 1 << 18  # bytes of metrics that the list reads while a browser waits; more are read by and by
DETAIL = 8 << 20  # the same for the run's page
ALIVE = ("running", "silent", "starting")
GOING = ("running", "starting", "planned")
SEVERITIES = ("alarm", "warning", "note")
SHOWN = 12  # findings of a run, the worst first


class DashboardRun:
    """A run whose folder is read again and again.

    Args:
        folder: of the run.
        root: resolved folder; links out of it are not followed.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root
        self.config = Document(folder / "config.yaml", root, parse_yaml)
        names = ("state", "plan", "health", "training")
        self.state, self.plan, self.health, self.training = (Document(folder / f"{n}.json", root) for n in names)
        self.notes = Document(folder / NOTES, root)
        self.tuned = Document(folder / "finetune.json", root)  # what unlabeled finetune ends with
        self.results = Document(folder / "report" / "results.json", root, read_results)
        self.summary = CurveSummary(folder / "metrics.jsonl")
        self.series: tuple[RunCurves, RunCurves] | None = None  # of metrics.jsonl and system.jsonl; None: not opened
        self._shown: tuple[int, dict[str, Any]] = (-1, {})  # version of the summary, with its curves for the list

    def overview(self, now: float) -> dict[str, Any]:
        """Returns what the list of runs shows, as plain values without NaN."""
        for document in (*self._documents, self.results):
            document.update()
        written, trouble = self._read_on(self.summary, AT_ONCE)
        place = self._place()
        verdict = self._verdict(place, written, now)
        problems = self._problems(trouble, verdict)
        if verdict.state in ("starting", "unknown") and problems:
            verdict = Verdict("damaged")
        return {
            "state": verdict.state,
            "sentence": verdict.sentence,
            "problems": problems,
            "reading": self.summary.behind,
            **_parts_of(self.config.content or {}),
            "scores": (self.results.content or {}).get("scores", []),
            **kept_notes(self.notes.content),
            **place,
            **self._curves(),
            **self._times(place, verdict, written),
            "findings": health_findings(self.health.content),
            "doubts": failed_plan_checks(self.plan.content),
            "report": (self.folder / "report" / "report.html").is_file(),
        }

    def detail(self) -> dict[str, Any]:
        """Returns what the run's own page adds: every curve, the configuration, facts, and files to view."""
        self.series = self.series or (
            RunCurves(self.folder / "metrics.jsonl"),
            RunCurves(self.folder / "system.jsonl", "system/", cut=True),
        )
        for growing in self.series:
            self._read_on(growing, DETAIL)
        curves = {name: curve for growing in self.series for name, curve in sorted(growing.curves.items())}
        seconds = curves.pop("system/seconds", None)
        facts = (self.health.content or {}).get("facts")
        facts = facts if isinstance(facts, dict) else {}
        collapsed = [finite_or_none(known.get("collapsed_at")) for known in (facts, self.training.content or {})]
        return {
            "curves": {name: curve.downsample(LARGE) for name, curve in curves.items()},
            "ends": {name: [curve.first, curve.last] for name, curve in curves.items()},
            "meanings": describe(curves, facts),
            "seconds": self._seconds(seconds),
            "unfinished": any(growing.behind for growing in self.series),
            "config": flatten(self.config.content) if self.config.content else {},
            "settings": compared_settings(self.config.content or {}),
            "collapsed_at": next((value for value in collapsed if value is not None), None),
            "command": self._command(),
            "pages": files_below(self.folder, "*.html"),
            "pictures": pictures_by_kind(self.folder),
        }

    def read_on(self) -> None:
        """Reads a block more of metrics that are long; never raises."""
        try:
            self.summary.update(BLOCK)
        except OSError:
            self.summary.behind = False  # the next overview tells why

    @property
    def _documents(self) -> tuple[Document, ...]:
        return self.config, self.state, self.plan, self.health, self.training, self.notes, self.tuned

    def _seconds(self, curve: Curve | None) -> list[tuple[float, float | None]]:
        """Returns steps with the seconds of training up to them; of a run that wrote none by its mean speed."""
        if curve is not None:
            return [(0, 0.0), *curve.downsample(LARGE)]
        state = self.state.content or {}
        step, started, updated = (finite_or_none(state.get(name)) for name in ("step", "started", "updated"))
        if state.get("sessions") != 1 or not step or started is None or updated is None or updated <= started:
            return []
        return [(0, 0.0), (step, updated - started)]

    def _command(self) -> str:
        """Returns the command that started the run; of an earlier version the one in its report, if it has one."""
        said = [self.state.content or {}, self.results.content or {}]
        return next((each["command"][:4000] for each in said if isinstance(each.get("command"), str)), "")

    def _read_on(self, growing: GrowingFile, most: int) -> tuple[float | None, str | None]:
        """Returns when the file was last written, and an error if it cannot be read."""
        name = growing.path.name
        try:
            found = os.lstat(growing.path)
            if stat.S_ISLNK(found.st_mode):
                if is_outside(growing.path, self.root):
                    return None, f"{name} is a link that leads out of the folder, and is not followed"
                found = growing.path.stat()
            if not stat.S_ISREG(found.st_mode):
                return None, f"{name} is no file"
            read_some(growing, most) if isinstance(growing, CurveSummary) else growing.update(most)
            return found.st_mtime, None
        except FileNotFoundError:
            growing.update()
            return None, None
        except OSError as error:
            return None, f"{name} cannot be read: {error.strerror}"

    def _place(self) -> dict[str, Any]:
        state, config, plan = (each.content or {} for each in (self.state, self.config, self.plan))
        step = finite_or_none(state.get("step"))
        per_epoch = finite_or_none(state.get("steps_per_epoch")) or self.summary.shown.steps_per_epoch
        limits = [finite_or_none(state.get("total_steps")) or finite_or_none(plan.get("steps"))]
        if limits == [None]:
            epochs = finite_or_none(config.get("max_epochs"))
            limits = [
                finite_or_none(config.get("max_steps")),
                finite_or_none(epochs * per_epoch) if epochs and per_epoch else None,
            ]
        total = min((limit for limit in limits if limit), default=None)
        return {"step": self.summary.shown.step if step is None else step, "total": total, "steps_per_epoch": per_epoch}

    def _verdict(self, place: Mapping[str, Any], written: float | None, now: float) -> Verdict:
        if self.state.content is not None:
            return classify_run(self.state.content, now)
        whole = self.training.content is not None or self.tuned.content is not None
        ended = whole or (place["total"] is not None and place["step"] >= place["total"])
        if self.state.problem and not ended:
            return Verdict("damaged")
        if self.plan.content is not None and written is None:
            return Verdict("planned")
        return classify_run_without_state(ended, self.config.changed, written, now)

    @property
    def _should_name_objective(self) -> bool:
        return self.config.content is not None and self.tuned.content is None

    def _problems(self, trouble: str | None, verdict: Verdict) -> list[str]:
        found = [trouble, *(document.problem for document in self._documents)]
        if self.config.content is None and self.config.problem is None:
            found.append("config.yaml is missing")
        elif self._should_name_objective and not isinstance((self.config.content or {}).get("objective"), dict):
            found.append("config.yaml names no objective: it is half-written, or not of a run")
        if self.summary.damaged:
            lines = f"{self.summary.damaged:,} line{'s' if self.summary.damaged > 1 else ''}"
            found.append(f"metrics.jsonl has {lines} that cannot be read")
        if self.summary.half and verdict.state not in ALIVE:
            found.append("metrics.jsonl ends within a line")
        return [problem for problem in found if problem]

    def _curves(self) -> dict[str, Any]:
        version = self.summary.version
        if self._shown[0] != version:
            shown = self.summary.shown
            probes = [{"name": name, **_small(curve)} for name, curve in sorted(shown.probes.items())]
            self._shown = (version, {"loss": _small(shown.loss), "probes": probes})
        return self._shown[1]

    def _times(self, place: Mapping[str, Any], verdict: Verdict, written: float | None) -> dict[str, Any]:
        state, plan, training = (each.content or {} for each in (self.state, self.plan, self.training))
        left, planned = finite_or_none(state.get("seconds_left")), finite_or_none(plan.get("seconds_left"))
        speed = finite_or_none(state.get("images_per_second"))
        return {
            "seconds_left": (planned if left is None else left) if verdict.state in GOING else None,
            "images_per_second": finite_or_none(training.get("images_per_second")) if speed is None else speed,
            "started": finite_or_none(state.get("started")),
            "updated": finite_or_none(state.get("updated")) or written,
            "sessions": finite_or_none(state.get("sessions")),
            "host": str(state.get("host") or "")[:80],
        }


def health_findings(health: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Returns the monitor's findings, the worst first; malformed entries are left out."""
    given = (health or {}).get("findings")
    known = [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []
    told = [
        {
            "severity": each.get("severity") if each.get("severity") in SEVERITIES else "note",
            "sentence": str(each["sentence"])[:2000],
            "since": finite_or_none(each.get("since")),
            "last": finite_or_none(each.get("last")),
            "past": each.get("holds") is False,
        }
        for each in known
        if each.get("sentence")
    ]
    return sorted(told, key=lambda each: (each["past"], SEVERITIES.index(each["severity"])))[:SHOWN]


def failed_plan_checks(plan: Mapping[str, Any] | None) -> list[str]:
    """Returns the failed checks of the plan with their remedies."""
    given = (plan or {}).get("checks")
    failed = [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []
    return [f"{each.get('found')}: {each.get('remedy')}"[:1000] for each in failed if each.get("passed") is False][
        :SHOWN
    ]


def _small(curve: Curve) -> dict[str, Any]:
    known = {"first": curve.first, "last": curve.last, "any": len(curve.values) > 0}
    return {"points": curve.downsample(SMALL), **known}


def _parts_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Names objective, backbone and data, as far as the configuration gives them."""
    found = {}
    for key, group in (("method", "objective"), ("backbone", "backbone"), ("data", "data")):
        part = config.get(group)
        target = (part.get("model") or part.get("_target_")) if isinstance(part, dict) else None
        found[key] = str(target or "").rpartition(".")[2][:60]
    data = config.get("data")
    path = (data.get("path") or data.get("root")) if isinstance(data, dict) else None
    if isinstance(path, str):
        found["data"] = Path(path).name[:60] or found["data"]
    return found | {"about": " · ".join(name for name in found.values() if name)}

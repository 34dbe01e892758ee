"""Reads one run's folder for the page. Reports missing, incomplete or damaged files without failing."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlabeled.core.parsing import parse_yaml
from unlabeled.health.dashboard.curves import Curve, CurveSummary, GrowingFile, RunCurves
from unlabeled.health.dashboard.documents import Document, finite_or_none, flatten, is_outside
from unlabeled.health.dashboard.verdict import Verdict, classify_run, classify_run_without_state

MARKS = (
    "config.yaml",
    "metrics.jsonl",
    "state.json",
    "plan.json",
    "checkpoints",
)  # a folder with one of these files is a run
SMALL, LARGE = 200, 1_000  # points of a curve in the list, and on the run's page
ALIVE = ("running", "silent", "starting")
GOING = ("running", "starting", "planned")
SEVERITIES = ("alarm", "warning", "note")
SHOWN = 12  # findings of a run, the worst first
PICTURES = 12  # how many are shown, the newest


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
        self.summary, self.series = CurveSummary(folder / "metrics.jsonl"), RunCurves(folder / "metrics.jsonl")
        self._shown: tuple[int, dict[str, Any]] = (-1, {})  # version of the summary, with its curves for the list

    def overview(self, now: float) -> dict[str, Any]:
        """Returns what the list of runs shows, as plain values without NaN."""
        for document in (self.config, self.state, self.plan, self.health, self.training):
            document.update()
        written, trouble = self._read_on(self.summary)
        place = self._place()
        verdict = self._verdict(place, written, now)
        problems = self._problems(trouble, verdict)
        if verdict.state in ("starting", "unknown") and problems:
            verdict = Verdict("damaged")
        return {
            "state": verdict.state,
            "sentence": verdict.sentence,
            "problems": problems,
            "about": _summary_of(self.config.content or {}),
            **place,
            **self._curves(),
            **self._times(place, verdict, written),
            "findings": health_findings(self.health.content),
            "doubts": failed_plan_checks(self.plan.content),
            "report": (self.folder / "report" / "report.html").is_file(),
        }

    def detail(self) -> dict[str, Any]:
        """Returns what the run's own page adds: every curve, the configuration, facts, and files to view."""
        self._read_on(self.series)
        curves = {name: curve.downsample(LARGE) for name, curve in sorted(self.series.curves.items())}
        facts = (self.health.content or {}).get("facts")
        facts = facts if isinstance(facts, dict) else {}
        collapsed = [finite_or_none(known.get("collapsed_at")) for known in (facts, self.training.content or {})]
        return {
            "curves": curves,
            "config": flatten(self.config.content) if self.config.content else {},
            "facts": flatten(facts) if facts else {},
            "collapsed_at": next((value for value in collapsed if value is not None), None),
            "pages": self._below("*.html"),
            "pictures": self._below("*.png")[-PICTURES:],
        }

    def _read_on(self, growing: GrowingFile) -> tuple[float | None, str | None]:
        """Returns when ``metrics.jsonl`` was last written, and an error if it cannot be read."""
        try:
            if growing.path.is_symlink() and is_outside(growing.path, self.root):
                return None, "metrics.jsonl is a link that leads out of the folder, and is not followed"
            if growing.path.exists() and not growing.path.is_file():
                return None, "metrics.jsonl is no file"
            growing.update()
            return growing.path.stat().st_mtime, None
        except FileNotFoundError:
            return None, None
        except OSError as error:
            return None, f"metrics.jsonl cannot be read: {error.strerror}"

    def _place(self) -> dict[str, Any]:
        state, config, plan = (each.content or {} for each in (self.state, self.config, self.plan))
        step = finite_or_none(state.get("step"))
        per_epoch = finite_or_none(state.get("steps_per_epoch")) or self.summary.steps_per_epoch
        limits = [finite_or_none(state.get("total_steps")) or finite_or_none(plan.get("steps"))]
        if limits == [None]:
            epochs = finite_or_none(config.get("max_epochs"))
            limits = [finite_or_none(config.get("max_steps")), epochs * per_epoch if epochs and per_epoch else None]
        total = min((limit for limit in limits if limit), default=None)
        return {"step": self.summary.step if step is None else step, "total": total, "steps_per_epoch": per_epoch}

    def _verdict(self, place: Mapping[str, Any], written: float | None, now: float) -> Verdict:
        if self.state.content is not None:
            return classify_run(self.state.content, now)
        ended = self.training.content is not None or (place["total"] is not None and place["step"] >= place["total"])
        if self.state.problem and not ended:
            return Verdict("damaged")
        if self.plan.content is not None and written is None:
            return Verdict("planned")
        return classify_run_without_state(ended, self.config.changed, written, now)

    def _problems(self, trouble: str | None, verdict: Verdict) -> list[str]:
        documents = (self.config, self.state, self.plan, self.health, self.training)
        found = [trouble, *(document.problem for document in documents)]
        if self.config.content is None and self.config.problem is None:
            found.append("config.yaml is missing")
        elif self.config.content is not None and not isinstance(self.config.content.get("objective"), dict):
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
            probes = [{"name": name, **_small(curve)} for name, curve in sorted(self.summary.probes.items())]
            self._shown = (version, {"loss": _small(self.summary.loss), "probes": probes})
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

    def _below(self, pattern: str) -> list[str]:
        """Returns files one folder deeper, the newest last; no links, and no pictures that the report contains."""
        folders = [Path(entry) for entry in os.scandir(self.folder) if entry.is_dir(follow_symlinks=False)]
        files = [path for folder in folders for path in folder.glob(pattern) if not path.is_symlink()]
        if pattern == "*.png":
            files = [path for path in files if path.parent.name != "report" or path.name.startswith("representation")]
        return [path.relative_to(self.folder).as_posix() for path in sorted(files, key=os.path.getmtime)]


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
    return {"points": curve.downsample(SMALL), "last": curve.last, "any": len(curve.values) > 0}


def _summary_of(config: Mapping[str, Any]) -> str:
    """Names objective, backbone and data, as far as the configuration gives them."""
    parts = [config.get(group) for group in ("objective", "backbone", "data")]
    targets = [part.get("model") or part.get("_target_") for part in parts if isinstance(part, dict)]
    return " · ".join(str(target).rpartition(".")[2][:60] for target in targets if target)

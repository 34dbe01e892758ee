"""The page of runs in a real browser: it moves while a run trains, compares, obeys nothing, and can be read."""

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from tests.browser import Browser, browser, contrast, luminance
from tests.small import small_run
from unlabeled.commands.build.run import build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.health import heartbeat
from unlabeled.health.dashboard.listing import RunListing
from unlabeled.health.dashboard.server import Server

CONFIG = """name: {name}
seed: {seed}
max_epochs: 20
objective:
  _target_: unlabeled.objectives.swav.SwAV
  temperature: {temperature}
backbone:
  _target_: unlabeled.backbones.resnet.ResNet
"""
SCRIPT = "<img src=x onerror=document.title=1><script>document.title=2<"
SENTENCE = "The loss has been 4.605 since step 240 <b>= ln 100</b>: try a lower optimizer.lr."


def metrics(lines: int, seed: int = 0) -> str:
    found = []
    for step in range(10, 10 * lines + 1, 10):
        loss = 3 + 2 * math.exp(-step / 400) + 0.1 * math.sin(step * (seed + 1))
        values = {"train/loss": loss, "train/learning_rate": 0.1 / step, "health/rankme": 40.0 + seed}
        found.append({"step": step, "epoch": step / 100, **values})
        if step % 100 == 0:
            found.append({"step": step, "epoch": step / 100, "probe/knn_top1": 60 - 4000 / (step + 100)})
    return "".join(json.dumps(each) + "\n" for each in found)


def make_run(folder: Path, state: str = "finished", seed: int = 0, **files: str) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(name="x", seed=seed, temperature=0.1 * (seed + 1)))
    (folder / "metrics.jsonl").write_text(metrics(60, seed))
    said = {"state": state, "error": SCRIPT, "step": 600, "total_steps": 2000, "steps_per_epoch": 100}
    said |= {"images_per_second": 1064.5, "pid": 4_194_311, "host": os.uname().nodename, "updated": 1.7e9}
    (folder / "state.json").write_text(json.dumps(said))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content)


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs in every state; one is damaged, one of a name that is HTML."""
    root = tmp_path_factory.mktemp("outputs")
    told = [{"name": "loss", "severity": "alarm", "since": 240, "last": 600, "sentence": SENTENCE}]
    make_run(root / "good", health=json.dumps({"findings": [], "facts": {"collapsed_at": 4.605}}))
    make_run(root / "sweep" / "bad", "failed", 1, health=json.dumps({"findings": told}))
    make_run(root / "killed_of_a_long_name_" / ("and_no_space" * 8), "running", 2)
    make_run(root / SCRIPT, "interrupted", 3, plan="[")
    (root / "good" / "report").mkdir()
    (root / "good" / "report" / "report.html").write_text(
        "<p>the report</p><script>document.body.append('ran')</script>"
    )
    return root


@pytest.fixture
def url(outputs: Path) -> Iterator[str]:
    with serving(outputs) as address:
        yield address


class serving:
    """A server in a thread; gives its address."""

    def __init__(self, folder: Path) -> None:
        self.server = Server(RunListing(folder), 0)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self.server.url

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def drawn(window: Browser, address: str, runs: int, width: int = 1280, dark: bool = False) -> None:
    window.open(address, width, dark)
    window.wait(f"return document.querySelectorAll('.runs tbody .spark path').length >= {runs}", seconds=120)


class Looking(pl.Callback):
    """Looks at the page between steps. When a step ends, its line of metrics is there, and the state before it."""

    def __init__(self, window: Browser, url: str, metrics: Path) -> None:
        self.window, self.url, self.metrics = window, url, metrics

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            self.window.open(self.url)
            self.window.run("window.same = true")
            self.wait("running", "0 of 6", step=2)
        if trainer.global_step == 4:
            self.wait("running", "3 of 6", step=4)

    def wait(self, state: str, steps: str, step: int) -> None:
        """Until the page shows all this, and the loss of a step."""
        lines = [json.loads(line) for line in self.metrics.read_text().splitlines()]
        loss = next(line["train/loss"] for line in lines if line["step"] == step and "train/loss" in line)
        said = "const said = part => document.querySelector(part)?.textContent;"
        shown = f"said('.badge') === '{state}' && said('.steps') === '{steps}'"
        self.window.wait(f"{said} return {shown} && Math.abs(said('.loss .last') - {loss}) < 0.01")


def test_the_page_shows_a_run_move_while_it_trains_without_a_reload(
    window: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "EVERY", 0.0)
    config = small_run(
        "simclr", tmp_path / "run", "backbone.width=0.25", "max_epochs=null", "max_steps=6", "num_workers=0"
    )
    resolved = open_run(config)
    run = build_run(config, resolved)
    with serving(tmp_path) as url:
        looking = Looking(window, url, tmp_path / "run" / "metrics.jsonl")
        run.trainer.callbacks.insert(0, looking)  # type: ignore[attr-defined]
        run.fit(resolved)
        window.run("document.dispatchEvent(new Event('visibilitychange'))")  # asks at once
        looking.wait("finished", "6 of 6", step=6)
    assert window.run("return [window.same, document.querySelector('.bar .done').style.width]") == [True, "100%"]
    assert window.complaints() == []


def test_two_hundred_runs_are_drawn_within_two_seconds_of_a_cold_start(window: Browser, tmp_path: Path) -> None:
    make_run(tmp_path / "first")
    (tmp_path / "first" / "metrics.jsonl").write_text(metrics(18_182))  # 20,000 lines with those of the probe
    config = "".join((Path(__file__).parents[3] / "conf" / "experiment" / "digits.yaml").read_text())
    (tmp_path / "first" / "config.yaml").write_text(config + "backbone: {_target_: a.B}\n")
    for number in range(199):
        (tmp_path / f"sweep{number % 7}" / f"run{number}").mkdir(parents=True)
        for name in ("config.yaml", "metrics.jsonl", "state.json"):
            os.link(tmp_path / "first" / name, tmp_path / f"sweep{number % 7}" / f"run{number}" / name)
    # Less than the clock's where other programs have the cores: the work of the server, and of the page's thread
    window.driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    with (held := serving(tmp_path)) as url:
        begun, worked = time.monotonic(), time.process_time()
        drawn(window, url, runs=400)
        waited, worked = time.monotonic() - begun, time.process_time() - worked
        assert len(window.run("return document.querySelector('.runs').innerText")) > 200 * 40
        listing = held.server.listing
        token = listing.changes("")["token"]
        listing.annotate("first", {"note": "changed", "tags": []})
        begun = time.thread_time()
        assert listing.changes(token)["runs"]["first"]["note"] == "changed"
        assert time.thread_time() - begun < 0.1  # of an update
    metrics_of_page = window.driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    page = next(each["value"] for each in metrics_of_page if each["name"] == "TaskDuration")
    assert min(waited, worked + page) < 2.0, (waited, worked, page)


def test_chosen_runs_lie_upon_each_other_and_their_keys_that_differ_are_listed(window: Browser, url: str) -> None:
    drawn(window, url, runs=4)
    for name in ("good", "sweep/bad"):
        window.run(f"document.querySelector('input[aria-label=\"choose {name}\"]').click()")
    assert window.run("return document.querySelector('.picked .button').textContent") == "Compare 2 runs"
    window.run("document.querySelector('.picked .button').click()")
    window.wait("return document.querySelectorAll('.chart').length === 3 && document.querySelector('table.keys')")
    titles = window.run("return [...document.querySelectorAll('.chart h3')].map(e => e.textContent)")
    assert titles == ["train/loss", "train/learning_rate", "probe/knn_top1"]
    assert window.run("return document.querySelector('.constants:not(:empty)').textContent") == (
        "Constant, or measured once: health/rankme 40 / 41"
    )
    window.wait(
        "return [...document.querySelectorAll('.chart > svg')].every(c => c.querySelectorAll('.curve').length === 2)"
    )
    rows = window.run("return [...document.querySelectorAll('.keys tbody tr')].map(r => r.innerText.split('\\t'))")
    assert rows == [["objective.temperature", "0.1", "0.2"], ["seed", "0", "1"]]
    window.run("document.querySelector('.controls input[type=checkbox]').click()")  # logarithmic
    window.run("document.querySelector('.controls input[type=search]').value = 'loss'")
    window.run("document.querySelector('.controls input[type=search]').dispatchEvent(new Event('input'))")
    assert window.run("return document.querySelectorAll('.chart').length") == 1
    assert window.complaints() == []


def scored(folder: Path, method: str, seed: int, top1: float | None, **more: str) -> None:
    make_run(folder, seed=seed)
    config = (folder / "config.yaml").read_text().replace("swav.SwAV", f"x.{method}")
    (folder / "config.yaml").write_text(config + "data:\n  _target_: a.folder\n  path: /d/photos\n")
    if top1 is not None:
        (folder / "report").mkdir()
        rows = [{"features": "pretrained", "protocol": "linear/cached-lbfgs-v1", "top1": top1}]
        (folder / "report" / "results.json").write_text(json.dumps({"rows": rows}))
    (folder / "pictures").mkdir()
    for step in (0, 300, 600):
        (folder / "pictures" / f"feature_map-step-{step:08d}.png").write_bytes(b"no picture")


NAMES = "return [...document.querySelectorAll('tbody.run .name a:first-child')].map(e => e.textContent)"


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scores")
    scored(root / "a", "SwAV", 0, 71.25)
    scored(root / "b", "SimCLR", 1, 80.5)
    scored(root / "c", "SwAV", 2, None)
    scored(root / "d", "SimCLR", 3, 60.0)
    system = [{"step": step, "seconds": step / 2, "cpu": 0.5 + step / 10_000} for step in range(100, 700, 100)]
    for name in "ab":
        (root / name / "system.jsonl").write_text("".join(json.dumps(each) + "\n" for each in system))
    return root


def test_final_scores_are_columns_to_sort_by_and_a_loss_is_compared_within_its_method_alone(
    window: Browser, scores: Path
) -> None:
    with serving(scores) as url:
        drawn(window, url, runs=4)
        head = "[...document.querySelectorAll('thead button')].find(e => e.textContent === '{}')"
        window.run(head.format("linear") + ".click()")
        assert window.run(NAMES) == ["b", "a", "d", "c"]
        assert window.run("return document.querySelector('th.score').ariaSort") == "descending"
        cells = window.run("return [...document.querySelectorAll('td.score')].map(e => [e.textContent, e.className])")
        assert [text for text, _ in cells] == ["80.5", "71.3", "60.0", "–"]
        assert ["best" in kind for _, kind in cells] == [True, False, False, False]
        window.run(head.format("loss") + ".click()")
        last = {name: json.loads(metrics(60, seed).splitlines()[-2])["train/loss"] for seed, name in enumerate("abcd")}
        assert window.run(NAMES) == sorted("bd", key=lambda name: last[name]) + sorted(
            "ac", key=lambda name: last[name]
        )
        heads = window.run(
            "return [...document.querySelectorAll('tbody.method')].map(e => e.innerText.split('\\n')[0])"
        )
        assert [each.split("\t")[0][:6] for each in heads] == ["SimCLR", "SwAVa "]
        assert window.complaints() == []


def test_losses_of_two_methods_have_charts_of_their_own_and_curves_can_be_drawn_by_time(
    window: Browser, scores: Path
) -> None:
    with serving(scores) as url:
        drawn(window, f"{url}#runs=a,b,c", runs=3)
        window.wait("return document.querySelectorAll('.chart > svg .curve').length >= 10")
        title = "e => [e.querySelector('h3').textContent, e.querySelectorAll(':scope > svg .curve').length]"
        charts = dict(window.run(f"return [...document.querySelectorAll('.chart')].map({title})"))
        assert (charts["train/loss, SimCLR"], charts["train/loss, SwAV"], charts["system/cpu"]) == (1, 2, 2)
        assert "train/loss" not in charts
        choose = "const s = document.querySelector('select[aria-label=by]'); s.value = 'time';"
        window.run(choose + " s.dispatchEvent(new Event('change'))")
        cpu = "[...document.querySelectorAll('.chart')].find(e => e.querySelector('h3').textContent === 'system/cpu')"
        ticks = window.run(f"return [...{cpu}.querySelectorAll('text')].map(e => e.textContent)")
        assert "min" in ticks  # the unit, below the axis
        assert "4" in ticks  # of 5: the last step was taken after 300 seconds
        assert "600" not in ticks
        assert window.complaints() == []


def test_a_note_is_written_on_the_page_and_pictures_of_a_kind_have_a_slider(window: Browser, scores: Path) -> None:
    with serving(scores) as url:
        drawn(window, f"{url}#runs=c", runs=1)
        window.wait("return document.querySelector('.own') && document.querySelector('.pictures input')")
        image = "document.querySelector('.pictures img')"
        assert window.run(f"return {image}.alt") == "feature_map, step 600"
        slide = "const s = document.querySelector('.pictures input'); s.value = 1; s.dispatchEvent(new Event('input'));"
        assert window.run(f"{slide} return {image}.getAttribute('src')").endswith("feature_map-step-00000300.png")
        assert window.run("return document.querySelector('.pictures figcaption').textContent").endswith("(2 of 3)")
        window.run("document.querySelector('#note').value = '<b>first</b>'")
        window.run("document.querySelector('#tags').value = 'one, two'")
        window.run("document.querySelector('.own button').click()")
        window.wait("return document.querySelector('.own [role=status]').textContent.startsWith('kept')")
        assert json.loads((scores / "c" / "notes.json").read_text()) == {"note": "<b>first</b>", "tags": ["one", "two"]}
        window.run("document.dispatchEvent(new Event('visibilitychange'))")  # asks at once
        window.wait("return document.querySelectorAll('.tag').length === 2")
        assert window.run("return document.querySelector('.note-line').textContent") == "<b>first</b>"
        assert window.run("return document.querySelector('#note').value") == "<b>first</b>"


def test_on_a_phone_the_charts_are_an_accordion_whose_lines_have_the_ends_of_each_curve(
    window: Browser, scores: Path
) -> None:
    with serving(scores) as url:
        drawn(window, f"{url}#runs=a", 1, width=360)
        window.wait("return document.querySelectorAll('.chart').length === 4")
        title = "e => e.querySelector('h3').textContent"
        opened = window.run(f"return [...document.querySelectorAll('.chart[open]')].map({title})")
        assert opened == ["train/loss", "probe/knn_top1"]
        rate = "document.querySelectorAll('.chart')[1]"
        assert window.run(f"return {rate}.querySelector('.brief').textContent") == "0.01 → 1.67e−4"
        assert window.run(f"return {rate}.querySelectorAll(':scope > svg .curve').length") == 0
        window.run(f"{rate}.open = true")
        window.wait(f"return {rate}.querySelectorAll(':scope > svg .curve').length === 1")


def test_the_pointer_reads_the_values_of_a_step(window: Browser, url: str) -> None:
    drawn(window, f"{url}#runs=good", runs=1)
    window.wait("return document.querySelector('.chart > svg .curve')")
    box = window.run(
        "const r = document.querySelector('.chart > svg').getBoundingClientRect(); return [r.left, r.width, r.top]"
    )
    middle = 50 + (box[1] - 60) / 2  # between the margins: step 300 of 600
    window.run(
        "document.querySelector('.chart > svg').dispatchEvent(new PointerEvent('pointermove', "
        f"{{clientX: {box[0] + middle}, clientY: {box[2] + 50}, bubbles: true}}))"
    )
    loss = next(json.loads(line)["train/loss"] for line in metrics(60).splitlines() if '"step": 300' in line)
    assert window.run("return document.querySelector('.reading').textContent") == f"step 300{loss:.3f}"
    assert window.run("return document.querySelector('.level-name').textContent") == "collapsed"
    last = json.loads(metrics(60).splitlines()[-2])["train/loss"]
    window.run("document.querySelector('.chart > svg').dispatchEvent(new PointerEvent('pointerleave'))")
    assert window.run("return document.querySelector('.reading').textContent") == f"last{last:.3f}"


def test_what_runs_wrote_is_shown_and_not_obeyed(window: Browser, url: str) -> None:
    drawn(window, url, runs=4)
    text = window.run("return document.querySelector('main').textContent")
    for part in (SCRIPT, SENTENCE, "plan.json cannot be read", "Stopped without a word after step 600"):
        assert part in text
    assert window.run("return document.querySelectorAll('main img, main script, .said b b, li b + b').length") == 0
    address = window.run(
        "return [...document.querySelectorAll('.name a')].find(a => a.textContent.includes('img')).hash"
    )
    drawn(window, url + address, runs=1)
    window.wait("return document.querySelectorAll('.chart > svg .curve').length === 3")
    assert window.run("return document.querySelector('h1').textContent") == SCRIPT
    assert window.complaints() == []


def test_a_report_is_shown_without_its_scripts(window: Browser, url: str) -> None:
    drawn(window, f"{url}#runs=good", runs=1)
    window.wait("return document.querySelector('.pages a')")
    window.open(window.run("return document.querySelector('.pages a').href"))
    assert window.run("return document.body.innerText") == "the report"
    assert window.run("return origin") == "null"


@pytest.mark.parametrize("view", ["", "#runs=good", "#runs=good,sweep/bad"])
def test_the_page_never_scrolls_sideways_asks_only_its_server_and_can_be_read(
    window: Browser, url: str, view: str
) -> None:
    for width, dark in ((320, True), (768, False), (1280, False)):
        drawn(window, url + view, 1, width, dark)
        if view:
            window.wait(
                "const drawn = document.querySelector('.chart > svg .curve'); "
                "return drawn && document.querySelector('.facts').children.length"
            )
        assert window.run("const e = document.documentElement; return [e.scrollWidth, e.clientWidth]") == [width, width]
        outside = "r => r.getBoundingClientRect().right > innerWidth + 0.5 && !r.closest('.scroll')"
        assert window.run(f"return [...document.querySelectorAll('main *')].filter({outside}).length") == 0
        pairs = window.run(
            "const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;"
            "  if (c !== 'rgba(0, 0, 0, 0)') return c; } };"
            "return [...document.querySelectorAll('body, main *')].filter(e => !e.closest('svg'))"
            ".filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))"
            ".map(e => [getComputedStyle(e).color, behind(e)])"
        )
        assert min(contrast(*pair) for pair in {tuple(pair) for pair in pairs}) >= 4.5
        assert (luminance(window.run("return getComputedStyle(document.body).backgroundColor")) < 0.05) == dark
        assert {request.split("/")[2] for request in window.requests()} == {url.split("/")[2]}
        assert window.complaints() == []
        assert window.violations() == []


def test_a_server_that_is_gone_is_said_and_what_was_shown_stays(window: Browser, outputs: Path) -> None:
    command = [sys.executable, "-m", "unlabeled.commands.watch", str(outputs), "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3] / "ssl")}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        drawn(window, process.stdout.readline().split()[4], runs=4)
        process.kill()
    window.run("document.dispatchEvent(new Event('visibilitychange'))")  # asks at once
    window.wait("return !document.querySelector('.trouble').hidden")
    assert "No answer from the server" in window.run("return document.querySelector('.trouble').textContent")
    assert window.run("return document.querySelectorAll('.run').length") == 4

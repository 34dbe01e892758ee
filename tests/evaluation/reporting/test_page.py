"""The page of a report in a real browser: it opens without a complaint, asks for nothing, and can be read."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.browser import Browser, browser, contrast, luminance
from unlabeled.evaluation.evaluate_probes import Row, chance_rows
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.reporting.report import write_report
from unlabeled.evaluation.reporting.report_sections import ReportImages

CLASSES = ["aeroplane", "a very long name of a class, as ImageNet has them", "<b>bold</b>", "$x^2$", "鳥"]
PROTOCOLS = ["knn/cosine-exp/k=20/T=0.1", "knn/cosine-exp/k=200/T=0.1", "linear/cached-lbfgs-v1"]
PROTOCOLS += [
    "linear/few-label/1 %/random of 5 draws",
    "kmeans/hungarian/k=5",
    "attentive/efficient-probing/queries=32",
]
REFERENCE = {
    "name": "MAE",
    "protocol": "linear/mae-bn-lars",
    "published": 67.8,
    "ours": 40.2,
    "ours_protocol": "linear/cached-lbfgs-v1",
    "difference": -27.6,
    "differs": ["100 instead of 1600 epochs"],
    "source": "arXiv:2111.06377, table 1c",
}


def features(n: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % len(CLASSES)
    x = torch.randn(n, 16, generator=generator) + 2 * torch.eye(16)[labels]
    return Features(x, labels, torch.arange(n) + 1000)


def image(split: str, ids: Any) -> Tensor:
    size = 24
    colours = torch.tensor([[i % 7 / 7, i % 5 / 5, i % 3 / 3] for i in ids])
    return colours[:, :, None, None].expand(-1, -1, size, size).clone()


def small(ids: Any) -> Tensor:
    """Red says which image it is."""
    return torch.tensor([[i - 1000, 0, 0] for i in ids], dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 32, 32)


def rows(test: Features) -> list[Row]:
    log_probabilities = (test.x[:, : len(CLASSES)] * 1.5).log_softmax(1)
    ours = log_probabilities.argmax(1)
    worse = ours.where(torch.arange(len(ours)) % 4 > 0, (test.labels + 1) % len(CLASSES))
    found = []
    for name, predictions in (("pretrained", ours), ("random init", worse), ("raw pixels", test.labels)):
        top1 = 100 * float((predictions == test.labels).float().mean())
        for protocol in PROTOCOLS:
            row = Row(name, protocol, top1, {"chosen_on": "train", "holdout": 0.1}, [], 500, len(test.x))
            row.interval, row.metrics = (row.top1 - 2, row.top1 + 2), {"ece": 0.1234, "nll": 1.5, "aurc_entropy": 0.05}
            row.predictions, row.log_probabilities = predictions, log_probabilities
            found.append(row)
    found[3].draws = [found[3].top1 + difference for difference in (-1, 0, 1)]
    found[3].chosen = {"labels": [{"sha256": "<i>" * 9, "seed": seed} for seed in range(3)], "seed": 0}
    found[2].notes.append("The best C, 1, is at an edge of 0.001 to 1: widen its c.")
    return found + chance_rows(test.labels, len(CLASSES))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    metrics = folder / "metrics.jsonl"
    lines = [{"step": s, "epoch": s / 10, "train/loss": 5 - s / 20, "probe/knn_top1": 10.0 + s} for s in range(50)]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    train, test = features(300, 0), features(200, 1)
    some = image("test", range(6))
    attention, pictures = {"image": some, "attention": some}, {"seen": some, "reconstructed": some, "original": some}
    seen = {"image": some[:4], "view 1, 24 pixels": some[:4]}
    report_images = ReportImages(CLASSES, train, test, image, attention, pictures, "{} {}.png".format, small, seen)
    provenance = {
        "command": "python eval_linear.py run=outputs/" + "a_very_long_name_" * 12,
        "checkpoint": {"path": "/scratch/" + "folder/" * 20 + "last.ckpt", "sha256": "ab" * 32},
        "config": {
            "objective": {"_target_": "unlabeled.objectives.mae.MAE"},
            "note": "</pre><script>alert(1)</script>",
        },
        "run_config": {
            "objective": {"_target_": "unlabeled.objectives.mae.MAE"},
            "backbone": {"_target_": "unlabeled.backbones.vit.ViT"},
            "optimizer": {"lr": 0.1, "optimizer": {"_target_": "torch.optim.AdamW"}, "weight_decay": 0.05},
            "batch_size": 4096,
        },
        "training": {
            "seconds_of_last_session": 11105.0,
            "steps_of_last_session": 400,
            "images_per_second": 142.3,
            "machine": {"gpus": ["NVIDIA H200"], "cpu": "AMD EPYC"},
        },
        "plan": {
            "data": ["train: 9 images"],
            "checks": [
                {"name": "a warm-up", "passed": True},
                {"name": "crops that show something", "passed": False, "found": "scale 0.01", "remedy": "give 0.2"},
            ],
        },
        "findings": ["The loss grows. <b>"],
        "git": {"commit": "c" * 40, "dirty": True},
    }
    return write_report(folder, rows(test), provenance, metrics, 4.5, report_images, [REFERENCE])


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_opens_without_a_complaint_and_asks_for_nothing(
    window: Browser, report: Path, width: int, dark: bool
) -> None:
    window.open(report, width, dark)
    assert window.requests() == [report.as_uri()]
    assert window.complaints() == []
    assert window.run("return document.querySelectorAll('script[src], link, iframe, object').length") == 0
    assert window.violations() == []


def test_every_picture_is_there(window: Browser, report: Path) -> None:
    window.open(report)
    widths = window.run("return [...document.images].filter(i => !i.hidden).map(i => i.complete && i.naturalWidth)")
    # 6 queries with 8 neighbours, 8 each of three kinds, 6 of attention twice, 6 reconstructions thrice, 4 with a view
    pairs = window.run("return document.querySelectorAll('#hardest-pairs-of-classes img').length")
    assert 0 < pairs <= 5 * 6
    assert len(widths) == 6 * 9 + 3 * 8 + 6 * 2 + 6 * 3 + 4 * 2 + pairs
    assert set(widths) == {24}
    plots = window.run(
        "return [...document.querySelectorAll('svg.plot')].map(p => [p.getAttribute('aria-label'), "
        "p.getBoundingClientRect().width, p.getBoundingClientRect().height, p.querySelectorAll('path').length])"
    )
    names = [name for name, *_ in plots]
    assert names == [
        "Loss and online k-NN while training",
        "Confusion matrix",
        "Similarities within and between classes",
        "Rank and spectrum",
        "Reliability and risk",
    ]
    assert all(width > 300 and height > 150 and paths > 5 for _, width, height, paths in plots)
    titles = window.run("return [...document.querySelectorAll('h2')].map(h => h.textContent)")
    assert titles[:4] == ["Results", "Warnings", "Loss and online k-NN while training", "Map of the test features"]
    assert titles[-5:] == [
        "How it was pretrained",
        "Published numbers",
        "Further metrics",
        "Chosen hyper-parameters",
        "Provenance",
    ]
    links = window.run("return [...document.querySelectorAll('nav a')].map(a => !!document.querySelector(a.hash))")
    assert links == [True] * len(titles)


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_the_page_never_scrolls_sideways_and_wide_tables_do(window: Browser, report: Path, width: int) -> None:
    window.open(report, width)
    assert window.run("const e = document.documentElement; return [e.scrollWidth, e.clientWidth]") == [width, width]
    inside = window.run(
        "return [...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, pre, svg'))"
        ".filter(e => e.getBoundingClientRect().right > innerWidth + 0.5).length"
    )
    assert inside == 0
    told = window.run(
        "return [...document.querySelectorAll('.scroll')].filter(e => e.clientWidth)"
        ".map(e => [e.scrollWidth > e.clientWidth + 1, !e.previousElementSibling.hidden])"
    )
    assert all(scrolls == said for scrolls, said in told)
    assert any(scrolls for scrolls, _ in told) or width > 400


def test_nothing_lies_upon_anything_else(window: Browser, report: Path) -> None:
    for width in (390, 1280):
        window.open(report, width)
        overlaps = window.run(
            "const boxes = [...document.querySelectorAll('main > *, .tile, .query > *')];"
            "const found = [];"
            "for (const a of boxes) for (const b of boxes) {"
            "  if (a === b || a.contains(b) || b.contains(a)) continue;"
            "  const r = a.getBoundingClientRect(), s = b.getBoundingClientRect();"
            "  if (Math.min(r.right, s.right) - Math.max(r.left, s.left) > 1 &&"
            "      Math.min(r.bottom, s.bottom) - Math.max(r.top, s.top) > 1) found.push(a.textContent);"
            "} return found"
        )
        assert overlaps == []


def test_texts_of_plots_lie_within_them(window: Browser, report: Path) -> None:
    window.open(report)
    outside = window.run(
        "return [...document.querySelectorAll('svg.plot')].flatMap(p => [...p.querySelectorAll('text')].filter(t => {"
        "  const r = t.getBoundingClientRect(), s = p.getBoundingClientRect();"
        "  return r.left < s.left - 2 || r.right > s.right + 2 || r.top < s.top - 2 || r.bottom > s.bottom + 2;"
        "}).map(t => t.textContent))"
    )
    assert outside == []


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_can_be_read_by_day_and_in_the_dark(window: Browser, report: Path, dark: bool) -> None:
    """WCAG 2.1, success criterion 1.4.3: a contrast of at least 4.5 with what lies behind."""
    window.open(report, dark=dark)
    pairs = window.run(
        "const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;"
        "  if (c !== 'rgba(0, 0, 0, 0)') return c; } return 'none'; };"
        "return [...document.querySelectorAll('body, main *')].filter(e => !e.closest('svg'))"
        ".filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))"
        ".map(e => [getComputedStyle(e).color, behind(e)])"
    )
    assert len(pairs) > 200
    assert min(contrast(*pair) for pair in {tuple(pair) for pair in pairs}) >= 4.5
    ground = luminance(window.run("return getComputedStyle(document.body).backgroundColor"))
    assert (ground < 0.05) == dark
    ink = "return [...document.querySelectorAll('svg.plot text')].map(e => getComputedStyle(e).fill)"
    body = window.run("return getComputedStyle(document.body).backgroundColor")
    assert min(contrast(fill, body) for fill in set(window.run(ink))) >= 4.5


def test_what_users_write_is_shown_and_not_obeyed(window: Browser, report: Path) -> None:
    window.open(report)
    text = window.run("return document.body.textContent")
    assert "</pre><script>alert(1)</script>" in text
    assert "<b>bold</b>" in text
    assert window.run("return document.querySelectorAll('figcaption b, li b, pre script, td > b').length") == 0


def test_the_numbers_on_the_page_are_those_of_results_json(window: Browser, report: Path) -> None:
    window.open(report)
    shown = window.run("return [...document.querySelectorAll('.results')][0].innerText.split('\\n').map(s => s.trim())")
    saved = json.loads((report.parent / "results.json").read_text())
    for row in saved["rows"]:
        assert any(f"{row['top1']:.2f}" in line for line in shown), row["protocol"]
    first = saved["rows"][0]
    assert f"[{first['interval'][0]:.2f}, {first['interval'][1]:.2f}]" in " ".join(shown)
    assert saved["references"] == [REFERENCE]


def test_no_two_elements_have_the_same_id(window: Browser, report: Path) -> None:
    window.open(report)
    ids = window.run("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids)) > 10


def test_the_page_is_small_and_one_file(report: Path) -> None:
    text = report.read_text()
    assert len(text) < 3_000_000
    for attribute in ("src=", "href=", "url("):
        targets = [part.lstrip("\"'")[:5] for part in text.split(attribute)[1:]]
        assert all(target.startswith(("data:", "#")) for target in targets), attribute
    for name in ("loss_curve", "feature_map", "confusion", "calibration", "neighbours", "certain", "attention"):
        assert f"]({name}.png)" in (report.parent / "report.md").read_text()
        assert (report.parent / f"{name}.png").stat().st_size > 500


def test_the_map_shows_name_class_and_thumbnail_of_the_dot_at_the_pointer_and_by_the_arrow_keys(
    window: Browser, report: Path
) -> None:
    window.open(report)
    window.wait("return document.querySelector('.sheet').complete")
    read = (
        "const tip = document.querySelector('.tip'), [a, b] = tip.querySelectorAll('span');"
        "const red = tip.querySelector('canvas').getContext('2d').getImageData(48, 48, 1, 1).data[0];"
        "return [tip.hidden, a.textContent, b.textContent, red]"
    )
    names = window.run("return JSON.parse(document.getElementById('points').textContent)")
    assert len(names["names"]) == 200
    window.run(
        "const dot = document.querySelectorAll('.dots circle')[7], r = dot.getBoundingClientRect();"
        "window.dot = dot; dot.parentNode.append(dot);"
        "const event = {clientX: r.left + r.width / 2, clientY: r.top + r.height / 2, bubbles: true};"
        "dot.dispatchEvent(new PointerEvent('pointermove', event))"
    )
    hidden, said, name, red = window.run(read)
    number = names["names"].index(name)
    label, predicted = names["labels"][number], names["predicted"][number]
    verdict = f"✓ {CLASSES[label]}" if label == predicted else f"✗ {CLASSES[label]}, taken for {CLASSES[predicted]}"
    assert (hidden, said) == (False, verdict)
    image_id = int(name.split()[1].removesuffix(".png")) - 1000
    assert abs(red - image_id) <= 6  # of a JPEG
    window.run("document.querySelector('.dots').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))")
    assert window.run(read)[2] == names["names"][(number + 1) % 200]
    window.run("document.querySelector('.dots').dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
    assert window.run("return document.querySelector('.tip').hidden")


def test_a_class_of_the_legend_is_picked_out_and_put_back(window: Browser, report: Path) -> None:
    window.open(report)
    faint = "return [...document.querySelectorAll('.dots .faint')].map(e => e.dataset.class)"
    assert window.run("return [...document.querySelectorAll('.legend button')].map(e => e.textContent)") == CLASSES
    window.run("document.querySelectorAll('.legend button')[2].click()")
    assert set(window.run(faint)) == {"0", "1", "3", "4"}
    window.run("document.querySelectorAll('.legend button')[2].click()")
    assert window.run(faint) == []


def test_the_page_says_how_the_network_was_pretrained(window: Browser, report: Path) -> None:
    window.open(report)
    told = window.run("return document.getElementById('how-it-was-pretrained').innerText")
    for fact in ("MAE", "4,096 images", "AdamW, learning rate 0.1, weight decay 0.05", "3 h 5 min", "NVIDIA H200"):
        assert fact in told
    assert "1 of 2 checks passed" in told
    assert "Not crops that show something: scale 0.01; give 0.2." in told
    assert "The loss grows. <b>" in told


def test_gains_and_losses_differ_in_colour_and_sign_and_have_a_p(window: Browser, report: Path) -> None:
    window.open(report)
    cell = "return [...document.querySelectorAll('.results td.{}')].map(e => [e.innerText, getComputedStyle(e).color])"
    gains, losses = (window.run(cell.format(kind)) for kind in ("gain", "loss"))
    assert len(gains) == len(losses) == len(PROTOCOLS)
    assert all(text.startswith("+") for text, _ in gains)
    assert all(text.startswith("−") for text, _ in losses)
    assert "p < 0.001" in gains[0][0]
    assert {colour for _, colour in gains} & {colour for _, colour in losses} == set()
    head = window.run("return [...document.querySelectorAll('.results')][0].tHead.innerText")
    for name in ("k-NN 20", "linear", "1 % of labels", "k-means"):
        assert name in head
    assert PROTOCOLS[0] in window.run("return document.querySelector('.notes').innerText")

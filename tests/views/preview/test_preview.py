"""The preview shows the very pictures that training sees, and measures the very draws that it makes."""

import base64
import io
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Generator, Tensor

from tests.conftest import ROOT, Script
from unlabeled.commands.build.run import build_preview, build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.core.run_config import write_config
from unlabeled.data.sources.digits import digits
from unlabeled.errors import UserError
from unlabeled.views.key import ViewKey
from unlabeled.views.operations import (
    ColorJitter,
    Equalize,
    GaussianBlur,
    Grayscale,
    Operation,
    Parameters,
    RandomResizedCrop,
    Solarize,
)
from unlabeled.views.pipeline import ViewGroup, Views
from unlabeled.views.preview.draws import (
    DRAWS,
    GroupDraws,
    MeasuredRate,
    Quantity,
    draw_parameters,
    measure,
    resolve_boxes,
)
from unlabeled.views.preview.preview import Preview, first_images, trace_views
from unlabeled.views.preview.tables import bin_edges, expected_shares

CONF = ROOT / "conf"
YAMLS = sorted(file.stem for file in (CONF / "views").glob("*.yaml"))


class Shift:
    """What a user might write: parameters of any shape, under names of their own."""

    def __init__(self, probability: float, really: float) -> None:
        self.probability, self.really = probability, really

    def sample(self, count: int, generator: Generator) -> Parameters:
        return {
            "offset": torch.rand(count, 3, generator=generator),
            "noise": torch.rand(count, 3, 16, 16, generator=generator),
            "twice": torch.rand(count, generator=generator) < 0.5,
            "applied": torch.rand(count, generator=generator) < self.really,
        }

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        moved = (images + parameters["offset"][:, :, None, None] * parameters["noise"]).clamp(0, 1)
        return torch.where(parameters["applied"][:, None, None, None], moved, images)


def every_operation() -> list[Operation]:
    return [
        RandomResizedCrop(16, (0.3, 1.0), (0.75, 4 / 3), "bicubic", 0.5),
        ColorJitter(0.4, 0.4, 0.2, 0.1, 0.8),
        Grayscale(0.2),
        GaussianBlur((0.1, 2.0), 0.3, 0.5),
        Solarize((0.0, 1.0), 0.2),
        Equalize(0.2),
    ]


def pipeline(*more: Operation) -> Views:
    small = RandomResizedCrop(8, (0.05, 0.3), (0.75, 4 / 3), "bilinear", 0.5)
    groups = [ViewGroup(2, [*every_operation(), *more]), ViewGroup(1, [small, Solarize(0.5, 0.2)])]
    return Views(16, groups, [0.5, 0.4, 0.3], [0.2, 0.25, 0.3], 1.0, "bicubic")


def coloured(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 24, 20), generator=generator, dtype=torch.uint8)


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=["name=x", *overrides])
    config.views.update({key: None for key in config.views if OmegaConf.is_missing(config.views, key)})
    return config


class Page(HTMLParser):
    """Tags that are open, and what the page shows; asserts that every tag is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[Tensor]] = []
        self.addresses: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if given.get("class") == "image":
            self.rows.append([])
        if tag == "img":
            kind, _, data = str(given["src"]).partition(",")
            assert kind == "data:image/png;base64"
            self.rows[-1].append(
                torch.tensor(np.array(Image.open(io.BytesIO(base64.b64decode(data))))).permute(2, 0, 1)
            )
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass  # of SVG

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_traced_views_are_those_of_the_pipeline_bit_for_bit_and_leave_it_as_it_was() -> None:
    views, images, ids, key = pipeline(), coloured(8), torch.arange(8), ViewKey(3, 0, 0, 64)
    before = views(images, ids, key)
    shown = trace_views(views, images, ids, key)
    assert [len(view.steps) for view in shown] == [6, 6, 2]
    for made, view in zip(before, shown, strict=True):
        assert torch.equal(view.pixels, views.to_pixels(made))
    assert all(isinstance(each, Equalize | Solarize) for each in (group.operations[-1] for group in views.groups))
    assert all(torch.equal(a, b) for a, b in zip(before, views(images, ids, key), strict=True))


def test_the_noted_parameters_give_the_shown_pixels_again() -> None:
    images = coloured(8)
    for view in trace_views(pipeline(), images, torch.arange(8), ViewKey(3, 0, 0, 64)):
        made = images.float() / 255
        for step in view.steps:
            assert step.sizes.tolist() == [list(made.shape[2:])] * 8
            made = step.operation.apply(made, step.drawn)
        torch.testing.assert_close(view.pixels, made.clamp(0, 1), rtol=0, atol=1e-6)  # mean and std there and back


def test_the_measured_draws_begin_with_those_that_are_shown() -> None:
    shown = trace_views(pipeline(), coloured(8), torch.arange(8), ViewKey(3, 0, 0, 64))
    first, second = (draw_parameters(view.steps, [number], 3, 64) for number, view in enumerate(shown[:2]))
    both = draw_parameters(shown[0].steps, range(2), 3, 64)
    for view, measured in zip(shown[:2], (first, second), strict=True):
        for step, drawn in zip(view.steps, measured, strict=True):
            assert {name: len(values) for name, values in drawn.items()} == dict.fromkeys(drawn, DRAWS)
            assert all(torch.equal(drawn[name][:8], step.drawn[name]) for name in drawn)
    for one, other, joined in zip(first, second, both, strict=True):  # steps in turn, in each step the views in turn
        assert all(torch.equal(joined[name][:64], one[name][:64]) for name in joined)
        assert all(torch.equal(joined[name][64:128], other[name][:64]) for name in joined)


@pytest.mark.parametrize("memory", ["8", "0"])
def test_the_shown_images_and_views_are_what_training_sees_at_step_zero(tmp_path: Path, memory: str) -> None:
    config = composed("experiment=digits", f"run_dir={tmp_path}", f"memory_gib={memory}", "num_workers=0", "seed=5")
    run = build_run(config, {})
    run.data.trainer = run.trainer
    batch = next(iter(run.data.train_dataloader()))
    batch = batch._replace(views=run.module.views_of(batch, run.module.view_key(batch)))
    config.preview = 8
    preview = build_preview(config)
    first = first_images(preview.splits.train, 8, config.batch_size, config.seed)
    assert torch.equal(first.ids, batch.ids[:8])
    assert torch.equal(first.images, batch.images[:8])
    assert torch.equal(first.labels, batch.labels[:8])
    shown = trace_views(preview.views, first.images, first.ids, ViewKey(5, 0, 0, config.batch_size))
    assert len(shown) == len(batch.views) == 2
    for seen, view in zip(batch.views, shown, strict=True):
        # bit-identical here; a product of matrices may add in another order when a batch has another size
        torch.testing.assert_close(view.pixels, preview.views.to_pixels(seen[:8]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", YAMLS)
def test_each_yaml_of_views_gives_a_page_whose_pictures_are_its_views_and_whose_rates_are_as_configured(
    name: str, tmp_path: Path
) -> None:
    preview = build_preview(composed(f"views={name}", "preview=8", "data.image_size=24"))
    paths = preview.write(tmp_path / name / "preview")
    assert [path.relative_to(tmp_path) for path in paths] == [
        Path(name, "preview", "index.html"),
        Path(name, "preview", "views.png"),
    ]
    text = paths[0].read_text()
    page = Page(text)
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not any(word in text for word in ("http", "url(", "<script", "@import"))
    batch = first_images(preview.splits.train, 8, 256, 0)
    views = preview.views(batch.images, batch.ids, ViewKey(0, 0, 0, 256))
    assert len(page.rows) == 8
    for row, (image, *others) in enumerate(page.rows):
        assert torch.equal(image, batch.images[row])
        for seen, view in zip(others, views, strict=True):
            assert torch.equal(seen, (preview.views.to_pixels(view)[row] * 255).round().byte())
    side = max(24, *(view.shape[-1] for view in views))
    tile = side * max(1, -(-128 // side)) + 4
    assert Image.open(paths[1]).size == ((1 + len(views)) * tile, 16 + 8 * tile)
    assert "rates lie within 4 standard errors" in text
    shown = trace_views(preview.views, batch.images, batch.ids, ViewKey(0, 0, 0, 256))
    assert_as_configured(preview.measured(shown))


def assert_as_configured(groups: list[GroupDraws]) -> None:
    for each in (each for group in groups for each in group.measured):
        if each.configured is None:
            assert each.name == "background: grey"
        elif isinstance(each, MeasuredRate):
            assert len(each.drawn) == DRAWS
            assert abs(each.measured - each.configured) <= 0.045, each.name  # 4 · sqrt(0.25 / 2000)
        elif not each.name.startswith("crop"):
            low, high = each.configured
            assert low - 1e-6 <= float(each.values.min()) <= float(each.values.max()) <= high + 1e-6, each.name
            error = (high - low) / (12 * len(each.values)) ** 0.5  # of the mean of uniform numbers
            assert abs(float(each.values.double().mean()) - (low + high) / 2) <= 4 * error + 1e-6, each.name


def test_crops_are_measured_as_shares_of_the_frame_and_as_width_by_height() -> None:
    crop = RandomResizedCrop(8, (0.2, 0.4), (0.5, 2.0), "bilinear", 0.5)
    sizes = torch.tensor([[300, 400]]).expand(DRAWS, 2)
    drawn = resolve_boxes(crop, crop.sample(DRAWS, torch.Generator().manual_seed(0)), sizes)
    area, ratio, flip = measure(crop, drawn, sizes)
    assert isinstance(area, Quantity)
    assert isinstance(ratio, Quantity)
    assert (area.name, area.configured, ratio.name, ratio.configured) == (
        "crop: area",
        (0.2, 0.4),
        "crop: width / height",
        (0.5, 2.0),
    )
    assert float(area.values.mean()) == pytest.approx(0.3, abs=4 * 0.2 / (12 * DRAWS) ** 0.5)
    assert float(ratio.values.log().mean()) == pytest.approx(0.0, abs=4 * float(np.log(4)) / (12 * DRAWS) ** 0.5)
    assert (flip.name, flip.configured) == ("crop: flip", 0.5)


def test_factors_are_measured_where_they_were_applied() -> None:
    jitter = ColorJitter(0.4, 0.3, 0.2, 0.1, 0.25)
    drawn = jitter.sample(DRAWS, torch.Generator().manual_seed(0))
    rate, *factors = measure(jitter, drawn, torch.tensor([[8, 8]]))
    assert isinstance(rate, MeasuredRate)
    assert rate.name == "jitter"
    for column, factor in enumerate(factors):
        assert isinstance(factor, Quantity)
        assert torch.equal(factor.values, drawn["factors"][drawn["applied"], column])
    ranges = [factor.configured for factor in factors]
    assert ranges == [(0.6, 1.4), (0.7, 1.3), (0.8, 1.2), (-0.1, 0.1)]


@pytest.mark.parametrize(("count", "flagged"), [(1000, False), (1089, False), (1090, True), (910, True), (911, False)])
def test_a_rate_is_flagged_from_four_standard_errors_on(count: int, flagged: bool) -> None:
    rate = MeasuredRate("x", torch.arange(DRAWS) < count, 0.5)
    assert rate.errors == pytest.approx(abs(count - 1000) / (DRAWS * 0.25) ** 0.5)
    assert rate.flagged == flagged


def test_where_chance_leaves_no_room_a_single_draw_is_flagged_and_without_a_configured_rate_none_is() -> None:
    seldom = torch.arange(DRAWS) < 1
    assert MeasuredRate("x", seldom, 0.0).flagged
    assert MeasuredRate("x", ~seldom, 1.0).flagged
    assert not MeasuredRate("x", torch.ones(DRAWS, dtype=torch.bool), 1.0).flagged
    assert not MeasuredRate("x", seldom, None).flagged


@pytest.mark.parametrize(("really", "off"), [(0.5, False), (0.4, True)])
def test_an_operation_of_a_users_own_is_shown_by_its_names_and_found_out_if_it_applies_too_seldom(
    tmp_path: Path, really: float, off: bool
) -> None:
    preview = Preview(pipeline(Shift(0.5, really)), digits(24), 0, 256, 8)
    text = preview.write(tmp_path)[0].read_text()
    assert len(Page(text).rows) == 8
    measured = {each.name: each for each in preview.measured(traced(preview))[0].measured}
    ours = {name for name in measured if name.startswith("Shift")}
    assert ours == {"Shift", "Shift: offset 0", "Shift: offset 1", "Shift: offset 2", "Shift: twice"}
    assert all(f"<td>{name}</td>" in text for name in ours)
    rate = measured["Shift"]
    assert isinstance(rate, MeasuredRate)
    assert rate.measured == pytest.approx(really, abs=4 * (0.25 / DRAWS) ** 0.5)
    assert ("1 of 9 rates lie more than 4 standard errors from what is configured: Shift" in text) == off


def traced(preview: Preview) -> Any:
    batch = first_images(preview.splits.train, preview.images, preview.batch_size, preview.seed)
    return trace_views(preview.views, batch.images, batch.ids, ViewKey(preview.seed, 0, 0, preview.batch_size))


def test_below_a_view_stand_its_parameters_in_the_order_in_which_they_were_used(tmp_path: Path) -> None:
    preview = Preview(pipeline(), digits(24), 0, 256, 8)
    text = preview.write(tmp_path)[0].read_text().replace("\N{NO-BREAK SPACE}", " ")
    steps = traced(preview)[0].steps
    for row in range(8):
        top, left, height, width = steps[0].drawn["box"][row].tolist()
        flipped = ", flipped" if steps[0].drawn["flip"][row] else ""
        assert f"<div>crop {width} × {height} at {left}, {top}: area {height * width / 576:.0%}{flipped}</div>" in text
        place = f'<rect x="{left}" y="{top}" width="{width}" height="{height}"'
        assert f'{place} fill="none" style="stroke: var(--colour-0)"' in text
        if steps[1].drawn["applied"][row]:
            factors, names = steps[1].drawn["factors"][row], ("brightness", "contrast", "saturation", "hue")
            words = [f"{name} {factor:.2f}" for name, factor in zip(names[:3], factors.tolist()[:3], strict=True)]
            words.append(f"hue {factors[3]:+.3f}".replace("-", "−"))
            assert "jitter: " + " → ".join(words[which] for which in steps[1].drawn["order"][row]) in text
        if steps[3].drawn["applied"][row]:
            assert f"blur: sigma {steps[3].drawn['sigma'][row]:.2f}" in text


def test_an_operation_that_leaves_an_image_as_it_was_says_so(tmp_path: Path) -> None:
    pointless = Views(24, [ViewGroup(1, [GaussianBlur((0.1, 2.0), 0.05, 1.0)])], None, None, 1.0, "bicubic")
    text = Preview(pointless, digits(24), 0, 256, 8).write(tmp_path)[0].read_text()
    assert text.count("(changes nothing)") == 8  # a twentieth of 24 pixels is a kernel of one tap
    useful = Views(24, [ViewGroup(1, [GaussianBlur((1.0, 2.0), 0.5, 1.0)])], None, None, 1.0, "bicubic")
    assert "(changes nothing)" not in Preview(useful, digits(24), 0, 256, 8).write(tmp_path)[0].read_text()


@pytest.mark.parametrize("logarithmic", [False, True])
def test_the_line_over_a_histogram_is_the_configured_distribution(logarithmic: bool) -> None:
    low, high = 0.5, 2.0
    uniform = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = low * (high / low) ** uniform if logarithmic else low + (high - low) * uniform
    quantity = Quantity("x", values, (low, high), logarithmic)
    edges = bin_edges(quantity)
    shares = expected_shares(quantity, edges)
    assert float(shares.sum()) == pytest.approx(1, abs=1e-9)
    assert float(shares[edges[:-1] < 1 - 1e-9].sum()) == pytest.approx(0.5 if logarithmic else 1 / 3, abs=1e-9)
    measured = torch.histogram(values, edges).hist / len(values)
    torch.testing.assert_close(measured, shares, rtol=0, atol=4 * (0.08 / 200_000) ** 0.5)


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.7], [-3.0, 9.0], [0.4, 0.4], [0.0, 0.0]])
@pytest.mark.parametrize("configured", [None, (0.4, 0.4), (0.4, 0.8), (0.4, 0.4001)])
def test_the_bins_hold_every_value_and_the_configured_range(
    values: list[float], configured: tuple[float, float] | None
) -> None:
    quantity = Quantity("x", torch.tensor(values, dtype=torch.float64), configured)
    edges = bin_edges(quantity)
    inside = [*values, *(configured or ())]
    assert float(edges[0]) < min(inside) <= max(inside) < float(edges[-1])
    assert len(edges) <= 61
    assert bool((edges.diff() > 0).all())
    assert float(torch.histogram(quantity.values, edges).hist.sum()) == len(values)


def test_names_are_escaped(tmp_path: Path) -> None:
    splits = replace(digits(8), description="<script>alert(1)</script> & more")
    text = Preview(pipeline(), splits, 0, 256, 2).write(tmp_path)[0].read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in text
    assert "<script" not in text


def test_the_command_writes_the_page_trains_nothing_and_leaves_what_lies_in_the_folder(
    script: Script, tmp_path: Path
) -> None:
    run = tmp_path / "outputs" / "digits"
    (run / "checkpoints").mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    (run / "checkpoints" / "last.ckpt").write_bytes(b"not touched, not read")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.rglob("*") if path.is_file()}
    finished = script("train.py", "experiment=digits", "preview=8")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("\n") == 1
    assert "outputs/digits/preview/index.html and outputs/digits/preview/views.png" in finished.stdout
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    new = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and path not in before}
    assert new == {"preview/index.html", "preview/views.png"}


def test_a_run_may_be_looked_at_and_gone_on_with_but_its_folder_takes_no_other_views(tmp_path: Path) -> None:
    config = composed(f"run_dir={tmp_path}")
    write_config(open_run(config), tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert open_run(composed(f"run_dir={tmp_path}", "preview=8"))["preview"] == 8
    assert open_run(config)["preview"] is None
    with pytest.raises(UserError, match="another views"):
        open_run(composed(f"run_dir={tmp_path}", "preview=8", "views=swav_small"))

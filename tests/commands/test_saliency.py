"""Saliency maps equal literal readings of their papers and find a disc; masks come back bit for bit."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped]
from torch import Tensor

from unlabeled.data.sources.folder import folder
from unlabeled.errors import UserError
from unlabeled.views.masks import Masks, open_masks, pack, samples_hash, unpack
from unlabeled.views.saliency.fusion import fill_holes, fuse, otsu, stretch_at_otsu
from unlabeled.views.saliency.maps import MAPS
from unlabeled.views.saliency.network import train_network

MB_PLUS = ("boundary_distance", "minimum_barrier")
Command = Callable[..., str]


def discs(count: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A disc of one colour on a textured ground of another: float [count, 3, size, size], bool [count, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    line = torch.arange(size) + 0.5
    centre = size * (0.4 + 0.2 * torch.rand((count, 2, 1), generator=generator))
    radius = size * (0.2 + 0.1 * torch.rand((count, 1, 1), generator=generator))
    disc = (line - centre[:, 0]).square()[:, :, None] + (line - centre[:, 1]).square()[:, None] < radius**2
    colour = torch.rand((count, 3, 1, 1), generator=generator)
    other = (colour + 0.5) % 1  # half a unit away in each channel
    texture = 0.15 * (torch.rand((count, 3, size, size), generator=generator) - 0.5)
    return (torch.where(disc[:, None], colour, other) + texture).clamp(0, 1), disc


def overlap(masks: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of each mask."""
    return (masks & truth).sum((1, 2)) / (masks | truth).sum((1, 2))


def noise(count: int, size: int) -> Tensor:
    return torch.rand((count, 3, size, size), generator=torch.Generator().manual_seed(1))


def literal_lab(image: Tensor) -> np.ndarray:
    """[3, H, W] in sRGB → [H, W, 3] in CIE Lab under D65, float64."""
    rgb = image.double().permute(1, 2, 0).numpy()
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
    xyz = linear @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def literal_unit(values: np.ndarray) -> np.ndarray:
    return np.asarray((values - values.min()) / (values.max() - values.min()))


def literal_frequency_tuned(image: Tensor) -> np.ndarray:
    lab = literal_lab(image)
    height, width, _ = lab.shape
    taps = [1, 4, 6, 4, 1]
    distance = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            smooth = np.zeros(3)
            for i in range(5):
                for j in range(5):
                    row, column = min(max(y + i - 2, 0), height - 1), min(max(x + j - 2, 0), width - 1)
                    smooth += taps[i] * taps[j] / 256 * lab[row, column]
            distance[y, x] = np.linalg.norm(lab.mean((0, 1)) - smooth)
    return literal_unit(distance)


def literal_boundary_distance(image: Tensor) -> np.ndarray:
    lab = literal_lab(image)
    band = max(1, round(0.1 * lab.shape[1]))
    total, largest = np.zeros(lab.shape[:2]), np.zeros(lab.shape[:2])
    for side in (lab[:band], lab[-band:], lab[:, :band], lab[:, -band:]):
        colours = side.reshape(-1, 3)
        inverse = np.linalg.inv(np.cov(colours.T, bias=True) + 4 * np.eye(3))
        difference = lab - colours.mean(0)
        distance = np.sqrt(np.einsum("yxi,ij,yxj->yx", difference, inverse, difference))
        distance /= distance.max()
        total, largest = total + distance, np.maximum(largest, distance)
    return literal_unit(total - largest)


def literal_global_contrast(image: Tensor) -> np.ndarray:
    centres = (torch.floor(image * 12).clamp(max=11) + 0.5) / 12
    colours = literal_lab(centres).reshape(-1, 3)
    contrast = [np.linalg.norm(colour - colours, axis=1).mean() for colour in colours]
    return literal_unit(np.array(contrast).reshape(image.shape[1:]))


def literal_spectral_residual(image: Tensor) -> np.ndarray:
    spectrum = np.fft.fft2(image.double().mean(0).numpy())
    log_amplitude = np.log(np.abs(spectrum) + 1e-6)
    residual = log_amplitude - ndimage.uniform_filter(log_amplitude, 3, mode="wrap")
    energy = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    sigma = image.shape[-1] / 25
    return literal_unit(ndimage.gaussian_filter(energy, sigma, mode="mirror", radius=round(3 * sigma)))


@pytest.mark.parametrize(
    ("name", "literal"),
    [
        ("frequency_tuned", literal_frequency_tuned),
        ("boundary_distance", literal_boundary_distance),
        ("global_contrast", literal_global_contrast),
        ("spectral_residual", literal_spectral_residual),
    ],
)
def test_a_map_equals_a_literal_float64_reading_of_its_paper(
    name: str, literal: Callable[[Tensor], np.ndarray]
) -> None:
    images = torch.cat([discs(2, 32)[0], noise(1, 32)])
    for image, found in zip(images, MAPS[name](images), strict=True):
        np.testing.assert_allclose(found.numpy(), literal(image), rtol=0, atol=2e-3)


def nested(*levels: float) -> Tensor:
    """Squares of grey, one in another, two pixels wide each: [1, 3, S, S]."""
    size = 4 * len(levels)
    image = torch.zeros(1, 3, size, size)
    for depth, level in enumerate(levels):
        image[..., 2 * depth : size - 2 * depth, 2 * depth : size - 2 * depth] = level
    return image


def test_the_barrier_of_a_stepped_pyramid_is_its_height_over_the_border() -> None:
    image = nested(0.1, 0.3, 0.5, 0.9)
    lightness = literal_lab(image[0])[..., 0]
    np.testing.assert_allclose(MAPS["minimum_barrier"](image)[0].numpy(), literal_unit(lightness), rtol=0, atol=1e-3)


def test_ground_behind_a_closed_ring_is_as_salient_as_the_ring_but_not_behind_an_open_one() -> None:
    image = nested(0.2, 0.2, 0.8, 0.2)
    closed = MAPS["minimum_barrier"](image)[0]
    assert closed[8, 8] == closed[4, 4] == 1
    assert closed[2, 2] == 0
    image[..., 4:6, 8] = 0.2  # a gate
    opened = MAPS["minimum_barrier"](image)[0]
    assert opened[8, 8] == 0
    assert opened[4, 4] == 1


@pytest.mark.parametrize("name", sorted(MAPS))
def test_a_map_lies_in_zero_and_one_is_zero_for_one_colour_and_does_not_depend_on_the_other_images(name: str) -> None:
    flat = torch.full((1, 3, 32, 32), 0.3)
    images = torch.cat([discs(3, 32)[0], flat, noise(2, 32)])
    maps = MAPS[name](images)
    assert maps.shape == (6, 32, 32)
    assert float(maps[3].abs().max()) == 0
    others = maps[[0, 1, 2, 4, 5]].flatten(1)
    assert others.amin(1).tolist() == [0] * 5
    torch.testing.assert_close(others.amax(1), torch.ones(5))
    for image, alone in zip(images, maps, strict=True):
        torch.testing.assert_close(MAPS[name](image[None])[0], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", sorted(set(MAPS) - {"spectral_residual"}))
def test_each_colour_map_alone_finds_the_disc(name: str) -> None:
    images, truth = discs(16, 32)
    found = fuse(images, [name], None) >= 0.5
    assert float(overlap(found, truth).mean()) > 0.75


def test_the_fused_map_finds_the_disc_at_both_working_sizes_and_its_prior_lowers_corners() -> None:
    for size in (32, 64):
        images, truth = discs(16, size)
        assert float(overlap(fuse(images, MB_PLUS, 0.5) >= 0.5, truth).min()) > 0.75
    images = noise(4, 32)
    with_prior, without = fuse(images, MB_PLUS, 0.2), fuse(images, MB_PLUS, None)
    corners = (slice(None), slice(0, 6), slice(0, 6))
    assert float(with_prior[corners].mean()) < 0.5 * float(without[corners].mean())


def test_a_more_generous_share_of_otsus_threshold_keeps_more_of_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(4, 32)
    usual = (fuse(images, MB_PLUS, 0.5) >= 0.5).sum((1, 2))
    monkeypatch.setattr("unlabeled.views.saliency.fusion.GENEROSITY", 0.5)
    assert bool(((fuse(images, MB_PLUS, 0.5) >= 0.5).sum((1, 2)) > usual + 30).all())


def test_holes_are_filled_to_the_lowest_way_out_and_open_bays_are_not() -> None:
    ring = nested(0.1, 0.7, 0.2)[:, 0]
    ring[0, 2, 5] = 0.6  # the lowest of the outer wall, but the inner one is 0.7
    filled = fill_holes(ring)
    assert filled[0, 5, 5] == pytest.approx(0.7)
    torch.testing.assert_close(filled[0, :4], ring[0, :4])
    ring[0, 2:4, 5] = 0.3
    for turns in range(4):
        assert fill_holes(ring.rot90(turns, (1, 2)))[0, 5, 5] == pytest.approx(0.3)


def test_otsu_finds_the_threshold_of_a_literal_search_and_balance_puts_its_share_at_one_half() -> None:
    maps = torch.cat([noise(2, 16)[:, 0] ** 3, discs(2, 16)[0][:, 0]])
    for values, found in zip(maps.flatten(1), otsu(maps), strict=True):
        bins = (values.double() * 64).floor().clamp(max=63)

        def within(t: int, bins: Tensor = bins) -> float:
            parts = [part for part in (bins[bins < t], bins[bins >= t]) if len(part)]
            return sum(float((part - part.mean()).square().sum()) for part in parts)

        best = min(within(t) for t in range(1, 64))
        assert within(round(float(found) * 64)) == pytest.approx(best, rel=1e-4)
    stretched = stretch_at_otsu(maps)
    assert torch.equal(stretched >= 0.5, maps >= 0.8 * otsu(maps)[:, None, None])
    order = maps.flatten(1).argsort(1)
    assert bool((stretched.flatten(1).gather(1, order).diff() >= 0).all())


def test_a_network_trained_on_maps_that_err_at_random_overlaps_far_better_than_they_do() -> None:
    images, _ = discs(400, 16, seed=1)
    unseen, truth = discs(64, 16, seed=2)
    generator = torch.Generator().manual_seed(0)

    def erring(some: Tensor) -> Tensor:
        maps = fuse(some, MB_PLUS, 0.5)
        return torch.where(torch.rand(maps.shape, generator=generator) < 0.3, 1 - maps, maps)

    refined = train_network(images, erring, epochs=12, seed=3).maps(unseen)
    assert refined.shape == (64, 16, 16)
    assert float(overlap(erring(unseen) >= 0.5, truth).mean()) < 0.4
    assert float(overlap(refined >= 0.5, truth).mean()) > 0.65


def test_a_network_follows_its_seed_and_neither_reads_nor_moves_the_global_random_state() -> None:
    images, _ = discs(60, 16)

    def trained(seed: int) -> Tensor:
        return train_network(images, lambda some: fuse(some, MB_PLUS, 0.5), epochs=2, seed=seed).maps(images[:4])

    before = torch.get_rng_state()
    first = trained(3)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert torch.equal(trained(3), first)
    assert float((trained(4) - first).abs().max()) > 1e-3


@pytest.mark.parametrize("size", [1, 5, 8, 31])
def test_packed_masks_come_back_bit_for_bit_and_are_numpys_little_endian_bits(size: int) -> None:
    masks = torch.rand((7, size, size), generator=torch.Generator().manual_seed(0)) < 0.4
    packed = pack(masks)
    assert packed.shape == (7, -(-size * size // 8))
    np.testing.assert_array_equal(packed.numpy(), np.packbits(masks.flatten(1).numpy(), axis=1, bitorder="little"))
    assert torch.equal(unpack(packed, size), masks)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs ``unlabeled saliency`` in an empty folder, in this process; returns what it printed.

    Refused commands must have exit code 2 and one line.
    """

    def run(*overrides: str, refused: bool = False) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["saliency", *overrides])
        monkeypatch.delitem(sys.modules, "unlabeled.commands.saliency", raising=False)
        if not refused:
            runpy.run_module("unlabeled.commands.saliency", run_name="__main__")
            return capfd.readouterr().out
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module("unlabeled.commands.saliency", run_name="__main__")
        assert stopped.value.code == 2
        line = capfd.readouterr().err.strip()
        assert "\n" not in line
        return line

    return run


def test_the_command_masks_every_training_image_and_writes_the_same_bytes_again(
    command: Command, tmp_path: Path
) -> None:
    printed = command("data=digits", "out=one.pt", "num_workers=0", "device=cpu", "seed=3")
    assert "1,347 masks of 8 × 8 pixels in one.pt" in printed
    content = torch.load(tmp_path / "one.pt", weights_only=True, mmap=True)
    assert content["packed"].shape == (1347, 8)
    assert content["size"] == 8
    assert content["settings"]["seed"] == 3
    assert "scikit-learn digits" in content["data"]
    shares = unpack(content["packed"], 8).float().mean((1, 2))
    assert torch.equal(shares, content["coverage"])
    assert 0.2 < float(shares.mean()) < 0.7
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.size == (9 * (128 + 4), 16 + 8 * (128 + 4))
    command("data=digits", "out=two.pt", "num_workers=0", "device=cpu", "seed=3", "batch_size=256")
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "one.pt", "two.png", "two.pt"]


def test_the_refined_command_is_deterministic_too_and_the_threshold_and_the_size_of_masks_are_obeyed(
    command: Command, tmp_path: Path
) -> None:
    quick = ("data=digits", "num_workers=0", "device=cpu", "refine=true", "refine_images=100", "refine_epochs=2")
    command(*quick, "out=one.pt")
    command(*quick, "out=two.pt")
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes()
    command("data=digits", "num_workers=0", "device=cpu", "mask_size=12", "out=low.pt", "threshold=0.3")
    command("data=digits", "num_workers=0", "device=cpu", "mask_size=12", "out=high.pt", "threshold=0.7")
    low, high = (open_masks(str(tmp_path / name)) for name in ("low.pt", "high.pt"))
    assert low.packed.shape == (1347, 18)
    ids = torch.arange(1347)
    few, many = high.rows(ids, torch.device("cpu")), low.rows(ids, torch.device("cpu"))
    assert bool((few <= many).all())
    assert float(low.coverage.mean()) > float(high.coverage.mean()) + 0.1


def write_photos(where: Path, count: int = 5, corrupt: int | None = None) -> None:
    where.mkdir()
    images, _ = discs(count, 24)
    for number, image in enumerate(images):
        Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(where / f"{number}.png")
    if corrupt is not None:
        (where / f"{corrupt}.png").write_bytes(b"no image")


@pytest.mark.parametrize("memory_gib", [8, 0])
def test_a_corrupt_image_keeps_its_place_with_a_mask_of_ones_in_memory_and_from_workers(
    command: Command, tmp_path: Path, memory_gib: int
) -> None:
    write_photos(tmp_path / "photos", corrupt=2)
    common = ("data=folder", "data.path=photos", "data.image_size=24", "num_workers=0", "device=cpu")
    command(*common, "out=masks.pt", "batch_size=2", f"memory_gib={memory_gib}")
    masks = open_masks(str(tmp_path / "masks.pt"))
    found = masks.rows(torch.arange(5), torch.device("cpu"))
    assert bool(found[2].all())
    assert float(masks.coverage[2]) == 1
    _, truth = discs(5, 24)
    others = [0, 1, 3, 4]
    assert float(overlap(found[others], truth[others]).min()) > 0.7


def write_stretched_photos(where: Path) -> Tensor:
    """Discs in photographs of several shapes; where the discs lie in frames that are brought to 24 × 24 pixels."""
    where.mkdir()
    images, truth = discs(6, 96)
    for number, (image, shape) in enumerate(zip(images, [(96, 60), (40, 96), (60, 60)] * 2, strict=True)):
        photo = Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).resize(shape)
        photo.save(where / f"{number}.png")
    return truth[:, 2::4, 2::4]


@pytest.mark.parametrize("memory_gib", [8, 0])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_masks_of_whole_images_span_each_from_corner_to_corner_whatever_images_share_its_batch(
    command: Command, tmp_path: Path, memory_gib: int, batch_size: int
) -> None:
    truth = write_stretched_photos(tmp_path / "photos")
    common = ("data=folder", "data.path=photos", "data.image_size=24", "num_workers=0", "device=cpu")
    assert "6 masks of 24 × 24 pixels" in command(*common, "out=all.pt", "batch_size=6")
    command(*common, "out=some.pt", f"batch_size={batch_size}", f"memory_gib={memory_gib}")
    together, apart = (open_masks(str(tmp_path / name)) for name in ("all.pt", "some.pt"))
    assert together.settings["square"] is False
    found, others = (masks.rows(torch.arange(6), torch.device("cpu")) for masks in (together, apart))
    assert float(overlap(found, truth).min()) > 0.85
    assert int((found != others).sum()) <= 6  # a batch of images of one size comes without a canvas
    with Image.open(tmp_path / "all.png") as picture:
        assert picture.size == (9 * (6 * 24 + 4), 16 + 6 * (6 * 24 + 4))


def test_whole_images_may_train_the_network_too(command: Command, tmp_path: Path) -> None:
    write_stretched_photos(tmp_path / "photos")
    common = ("data=folder", "data.path=photos", "num_workers=0", "device=cpu", "work_size=16", "mask_size=8")
    command(*common, "refine=true", "refine_epochs=1", "out=masks.pt", "batch_size=1")
    assert open_masks(str(tmp_path / "masks.pt")).packed.shape == (6, 8)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "give out=…"),
        (["out="], "out=: must be a path"),
        (["out=x.png"], "out=x.png"),
        (["out=x.pt", "maps=[magic]"], "spectral_residual"),
        (["out=x.pt", "tresh=1"], "tresh"),
        (["out=x.pt", "threshold=high"], "a number"),
        (["out=x.pt", "threshold=1"], "threshold=1"),
        (["out=x.pt", "device=tpu"], "auto or cpu or cuda"),
        (["out=x.pt", "data=digit"], "did you mean digits?"),
        (["out=x.pt", "refine_images=0"], "refine_images=0"),
    ],
)
def test_a_mistake_in_the_command_costs_one_line(command: Command, overrides: list[str], words: str) -> None:
    assert words in command(*overrides, refused=True)


def made_for(path: Path, image_size: int = 24) -> Masks:
    source = folder(str(path), image_size=image_size, square=True).train
    ones = pack(torch.ones(len(source), 4, 4, dtype=torch.bool))
    return Masks(ones, torch.ones(len(source)), 4, samples_hash(source), source.classes, "photos", {})


def test_masks_fit_data_that_was_moved_and_no_other(tmp_path: Path) -> None:
    for name, count in (("photos", 5), ("moved", 5), ("fewer", 4)):
        write_photos(tmp_path / name, count)
    masks = made_for(tmp_path / "photos")
    masks.require(folder(str(tmp_path / "moved"), image_size=8, square=True).train, "m.pt")
    (tmp_path / "moved" / "0.png").rename(tmp_path / "moved" / "7.png")
    for other in ("moved", "fewer"):
        with pytest.raises(
            UserError, match=r"views\.masks=m\.pt was made for other data \(photos\).*unlabeled.*saliency"
        ):
            masks.require(folder(str(tmp_path / other)).train, "m.pt")
    named = folder(str(tmp_path / "photos"), square=True).train
    named.classes = ["cat"]
    masks.require(named, "m.pt")  # masks that know no classes
    masks.classes = ["dog"]
    with pytest.raises(UserError, match="other data"):
        masks.require(named, "m.pt")


def test_masks_of_square_images_do_not_fit_whole_ones_nor_the_reverse(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    masks = made_for(tmp_path / "photos")
    square, whole = (folder(str(tmp_path / "photos"), square=each).train for each in (True, False))
    for settings, fits, other, given, wanted in (
        ({}, square, whole, "true", "false"),  # an old file
        ({"square": True}, square, whole, "true", "false"),
        ({"square": False}, whole, square, "false", "true"),
    ):
        masks.settings = settings
        masks.require(fits, "m.pt")
        with pytest.raises(UserError) as caught:
            masks.require(other, "m.pt")
        assert str(caught.value) == (
            f"views.masks=m.pt was made with data.square={given}, this run has data.square={wanted} and so other"
            f" frames; give data.square={given}, or make new masks: unlabeled saliency data=…"
            f" data.square={wanted} out=…"
        )


def test_a_file_that_is_missing_or_cut_short_or_something_else_costs_one_line(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    path = tmp_path / "masks.pt"
    with pytest.raises(UserError, match=r"no such file; make it: unlabeled saliency"):
        open_masks(str(path))
    made_for(tmp_path / "photos").save(path)
    assert open_masks(str(path)).coverage.tolist() == [1.0] * 5
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="not a file of masks"):
        open_masks(str(path))
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="not a file of masks"):
        open_masks(str(path))
    path.write_text("masks")
    with pytest.raises(UserError, match="not a file of masks"):
        open_masks(str(path))

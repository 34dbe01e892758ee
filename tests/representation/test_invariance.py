import math

import pytest
import torch
from torch import Tensor

from unlabeled.representation.invariance import STRENGTHS, augment_each, invariance
from unlabeled.views.kernels.colour import luminance
from unlabeled.views.key import ViewKey
from unlabeled.views.pipeline import Views

VIEWS = Views(12, [], [0.4, 0.5, 0.6], [0.2, 0.3, 0.25], 1.0, "bilinear")
KEY = ViewKey(seed=3, step=0, first=0, total=40)


def gaussian(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(count: int = 40) -> Tensor:
    pixels = torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    return VIEWS.to_views(pixels)


def changed(name: str) -> Tensor:
    return VIEWS.to_pixels(dict(augment_each(VIEWS, images(), KEY))[name])


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def test_invariance_equals_a_loop_over_all_pairs() -> None:
    x, y = gaussian(15, 4) + 1, gaussian(15, 4) + 0.5 * gaussian(15, 4, 1) + 1
    rows, others = x.tolist(), y.tolist()
    same = sum(cosine(a, b) for a, b in zip(rows, others, strict=True)) / 15
    different = sum(cosine(rows[i], others[j]) for i in range(15) for j in range(15) if i != j) / (15 * 14)
    assert invariance(x, y) == pytest.approx((same - different) / (1 - different), rel=1e-12)


def test_equal_features_are_invariant_and_those_of_other_images_are_not_whatever_their_mean() -> None:
    for mean in (0, 10):
        x = gaussian(2000, 16) + mean
        assert invariance(x, 3 * x) == pytest.approx(1, abs=1e-9)
        assert invariance(x, x.roll(1, 0)) == pytest.approx(0, abs=0.02)
    assert math.isnan(invariance(torch.ones(5, 3), torch.ones(5, 3)))


def test_each_augmentation_does_to_every_image_what_it_says() -> None:
    pixels = VIEWS.to_pixels(images())
    torch.testing.assert_close(changed("flip"), pixels.flip(3), atol=1e-5, rtol=0)
    grey = luminance(pixels).expand(-1, 3, -1, -1)
    torch.testing.assert_close(changed("grayscale"), grey, atol=1e-5, rtol=0)
    turned = torch.where(pixels >= 128 / 255, 1 - pixels, pixels)
    torch.testing.assert_close(changed("solarize"), turned, atol=1e-5, rtol=0)
    for name in ("crop", "colour jitter"):
        difference = (changed(name) - pixels).abs().mean((1, 2, 3))
        assert float(difference.min()) > 0.01, name
    assert list(dict(augment_each(VIEWS, images(), KEY))) == list(STRENGTHS)


def test_draws_are_a_function_of_the_key_and_of_the_place_of_an_image_which_stays_as_it_is() -> None:
    given = images()
    before = given.clone()
    whole, other = (dict(augment_each(VIEWS, given, KEY._replace(seed=seed))) for seed in (3, 4))
    part = dict(augment_each(VIEWS, given[25:], KEY._replace(first=25)))
    assert torch.equal(given, before)
    for name in whole:
        torch.testing.assert_close(part[name], whole[name][25:], atol=1e-5, rtol=0)
    assert not torch.equal(whole["crop"], other["crop"])


def test_a_network_that_sees_luminance_alone_is_invariant_to_grayscale_and_not_to_flips() -> None:
    features = {name: luminance(VIEWS.to_pixels(x)).flatten(1) for name, x in augment_each(VIEWS, images(), KEY)}
    plain = luminance(VIEWS.to_pixels(images())).flatten(1)
    assert invariance(plain, features["grayscale"]) == pytest.approx(1, abs=1e-5)
    assert invariance(plain, features["flip"]) == pytest.approx(0, abs=0.05)

"""The digits are the real scans, split by position in the file."""

import pytest
import torch
from sklearn.datasets import load_digits

from unlabeled.data.sources.digits import digits
from unlabeled.errors import UserError


def test_the_digits_are_1347_train_and_450_test_scans_in_file_order() -> None:
    splits = digits()
    assert splits.test is not None
    assert (len(splits.train), len(splits.test), splits.train.image_size) == (1347, 450, 8)
    target = torch.from_numpy(load_digits().target)
    assert torch.equal(torch.cat([splits.train.labels, splits.test.labels]), target)
    assert splits.train.labels.dtype == torch.int64
    assert splits.train.classes == [str(digit) for digit in range(10)]


def test_the_digits_have_the_known_label_counts() -> None:
    splits = digits()
    assert splits.test is not None
    labels = torch.cat([splits.train.labels, splits.test.labels])
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert splits.test.labels.bincount(minlength=10).min() >= 40


def test_the_pixels_are_the_scans_scaled_from_16_to_255_in_three_equal_channels() -> None:
    train = digits().train
    first = train.decode(0)
    assert first.dtype == torch.uint8
    assert first.shape == (3, 8, 8)
    for row, values in enumerate(load_digits().images[0]):
        for column, value in enumerate(values):
            assert first[:, row, column].tolist() == [int(value * 255 / 16 + 0.5)] * 3
    images = torch.stack([train.decode(index) for index in range(len(train))])
    assert (int(images.min()), int(images.max())) == (0, 255)
    assert len(set(images.flatten().tolist())) == 17


def test_larger_digits_keep_their_brightness() -> None:
    small, large = digits().train, digits(image_size=32).train
    assert large.decode(5).shape == (3, 32, 32)
    assert abs(float(small.decode(5).float().mean() - large.decode(5).float().mean())) < 4


def test_an_image_size_below_one_is_refused() -> None:
    with pytest.raises(UserError, match=r"^data\.image_size=0 "):
        digits(image_size=0)

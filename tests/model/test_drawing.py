"""What scanners burn in: the same on the speckled image and on its reference, and of every kind."""

import numpy as np
import pytest

from model import data
from model.simulation import drawing

SHAPE = (96, 128)


def test_ink_covers_between_nothing_and_all_of_a_pixel():
    for seed in range(200):
        ink = drawing.ink(np.random.default_rng(seed), SHAPE)
        assert ink.shape == SHAPE
        assert ink.dtype == np.float32
        assert 0 <= ink.min() <= ink.max() <= 1
        assert ink.mean() < 0.5


@pytest.mark.parametrize("width", [0.7, 1.0, 2.0, 3.5])
def test_a_line_is_as_wide_as_it_says(width):
    covered = np.zeros((64, 64), dtype=np.float32)
    drawing._add_line(covered, np.array([31.3, -20.0]), np.array([31.3, 90.0]), width)
    assert covered.sum(axis=0) == pytest.approx(width, abs=0.15)


def test_full_ink_is_the_same_on_the_image_and_on_its_reference():
    noisy = np.random.default_rng(0).integers(40, 90, (128, 128)).astype(np.uint8)
    target = np.full((128, 128), 65, dtype=np.float32)
    drawn = 0
    for seed in range(20):
        image, reference = data._overlay(np.random.default_rng(seed), noisy, target)
        full = reference > 105
        drawn += int(full.sum())
        assert np.abs(image[full] - reference[full]).max(initial=0) < 30
        clear = reference == 65
        assert (image[clear] == noisy[clear]).all()
    assert drawn > 1000

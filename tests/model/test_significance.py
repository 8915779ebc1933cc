"""What stands out of the speckle goes back; what does not stays out."""

import numpy as np
from scipy import ndimage

from model.significance import put_back


def a_removed_lesion(contrast):
    """Grey speckle with a disc of 24 px, and an output that has lost it."""
    rng = np.random.default_rng(4)
    noise = ndimage.gaussian_filter(rng.standard_normal((160, 160)), 1.2)
    noise *= 20 / noise.std()
    rows, columns = np.mgrid[:160, :160]
    disc = np.hypot(rows - 80, columns - 60) <= 12
    flat = np.full((160, 160), 110, np.float32)
    return (flat + noise + contrast * disc).astype(np.float32), flat, disc


def test_a_lesion_that_stands_out_goes_back():
    noisy, flat, disc = a_removed_lesion(20)
    returned = put_back(noisy, flat) - flat
    assert returned[disc].mean() > 14
    assert np.abs(returned[~ndimage.binary_dilation(disc, iterations=14)]).mean() < 1.5


def test_speckle_that_does_not_stand_out_stays_out():
    noisy, flat, _ = a_removed_lesion(0)
    returned = put_back(noisy, flat) - flat
    assert np.abs(returned).mean() < 0.35 * np.abs(ndimage.gaussian_filter(noisy - flat, 5)).mean()


def test_nothing_removed_is_nothing_put_back():
    noisy, _, _ = a_removed_lesion(20)
    assert np.array_equal(put_back(noisy, noisy), noisy)

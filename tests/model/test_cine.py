"""Speckle over time: it stays with its scatterers, moves with the tissue, or is renewed."""

from dataclasses import replace

import numpy as np
import pytest

from model.simulation import phantoms
from model.simulation.array import Imaging
from model.simulation.cine import cine
from model.simulation.phantoms import Phantom

SETTING = Imaging(noise_db=-70.0, dynamic_range_db=70.0, tissue_level=0.6)


def tissue(side=96):
    return phantoms.graded_lesions(np.random.default_rng(0), (side, side), (-12.0,), (14.0,))


def correlation(a, b):
    return np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1]


def speckle_of(scene):
    return scene.noisy - scene.target


def test_still_tissue_under_fresh_speckle_keeps_its_target_and_nothing_else():
    first, second = cine(tissue(), SETTING, np.random.default_rng(1), 2)
    np.testing.assert_array_equal(first.target, second.target)
    assert abs(correlation(speckle_of(first), speckle_of(second))) < 0.1


@pytest.mark.parametrize("kept", [0.7, 1.0])
def test_speckle_stays_as_far_as_its_scatterers_do(kept):
    first, second = cine(tissue(), SETTING, np.random.default_rng(1), 2, correlation=kept)
    found = correlation(10.0 ** (first.noisy / 73), 10.0 ** (second.noisy / 73))
    assert found == pytest.approx(kept**2, abs=0.12)


@pytest.mark.parametrize(("native_scale", "least"), [((1.0, 1.0), 0.93), ((1.1, 0.8), 0.7)])
def test_speckle_and_target_move_with_the_tissue(native_scale, least):
    setting = replace(SETTING, native_scale=native_scale)
    scenes = cine(
        tissue(), setting, np.random.default_rng(2), 3, velocity_px=(2.5, -1.5), correlation=1.0
    )
    last_here = np.s_[20:85, 12:70]
    first_there = np.s_[15:80, 15:73]
    assert correlation(scenes[2].noisy[last_here], scenes[0].noisy[first_there]) > least
    assert correlation(scenes[2].noisy[last_here], scenes[0].noisy[last_here]) < 0.5
    error = scenes[2].target[last_here] - scenes[0].target[first_there]
    assert np.abs(error).mean() < 1.0


def test_mean_over_a_still_cine_converges_to_its_target():
    even = Phantom(np.zeros((64, 64), np.float32), np.zeros((64, 64), np.float32))
    scenes = cine(even, SETTING, np.random.default_rng(3), 40)
    mean = np.mean([scene.noisy for scene in scenes], axis=0)
    assert mean.mean() == pytest.approx(scenes[0].target.mean(), abs=0.6)

"""The array simulation against the theory of arrays and of speckle."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import special

from model.simulation import phantoms
from model.simulation.array import (
    POINTS_A_SAMPLE,
    Beams,
    Imaging,
    Probe,
    Tissue,
    array_scenes,
    effective_looks,
    point_response,
)
from model.simulation.phantoms import Phantom

PROBE = Probe(
    elements=128,
    focus_mm=30.0,
    transmit_f_number=2.0,
    receive_f_number=2.0,
    apodisation="rect",
)
PLAIN = Imaging(PROBE, noise_db=-90.0, dynamic_range_db=160.0, tissue_level=0.75)
"""Wide range: nothing clips."""
FINE_MM = np.arange(-3.0, 3.001, 0.03, dtype=np.float32)
COARSE_MM = np.arange(-0.4, 0.401, 0.04, dtype=np.float32)


def even_tissue(side=128):
    return Phantom(np.zeros((side, side), np.float32), np.zeros((side, side), np.float32))


def lateral_width(depth_mm, angle=0.0):
    profile = np.abs(point_response(PROBE, depth_mm, angle, COARSE_MM, FINE_MM)).max(0)
    return np.ptp(FINE_MM[profile >= profile.max() / 2])


def realisations(tissue, count, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([tissue.image(tissue.scatterers(rng), rng) for _ in range(count)])


def test_lateral_resolution_at_the_focus_is_wavelength_times_f_number():
    assert lateral_width(30.0) == pytest.approx(PROBE.wavelength_mm * 2.0, rel=0.25)


@pytest.mark.parametrize("depth_mm", [12.0, 70.0])
def test_resolution_is_worse_away_from_the_focus(depth_mm):
    array_mm = PROBE.elements * PROBE.pitch_mm
    f_number = max(2.0, depth_mm / array_mm)
    relative = lateral_width(depth_mm) / (PROBE.wavelength_mm * f_number)
    assert relative > 1.15 * lateral_width(30.0) / (PROBE.wavelength_mm * 2.0)


def test_pulse_is_as_long_as_its_bandwidth_makes_it():
    z = np.arange(-1.0, 1.001, 0.01, dtype=np.float32)
    pulse = np.abs(point_response(PROBE, 30.0, 0.0, z, np.zeros(1, np.float32)))[:, 0]
    assert z[pulse.argmax()] == pytest.approx(0, abs=0.02)
    assert np.ptp(z[pulse >= pulse.max() / 2]) == pytest.approx(PROBE.pulse_mm, rel=0.1)


def test_steered_pulse_still_arrives_at_its_pixel():
    response = np.abs(point_response(PROBE, 30.0, 0.25, COARSE_MM, FINE_MM))
    z, x = np.unravel_index(response.argmax(), response.shape)
    assert abs(COARSE_MM[z]) <= 0.04
    assert abs(FINE_MM[x]) <= 0.06


def test_even_tissue_has_the_statistics_of_a_rayleigh_envelope():
    images = realisations(Tissue.of(even_tissue(), PLAIN), 6)
    level_db = (images / 255 - PLAIN.tissue_level) * PLAIN.dynamic_range_db
    envelope = 10 ** (level_db / 20)
    assert envelope.mean() / envelope.std() == pytest.approx(1.91, abs=0.05)
    assert level_db.std() == pytest.approx(5.58, abs=0.15)
    assert level_db.mean() == pytest.approx(-2.51, abs=0.15)


def test_compounded_looks_are_correlated_but_not_the_same():
    setting = replace(PLAIN, steering=(-0.08, 0.0, 0.08))
    spread = realisations(Tissue.of(even_tissue(), setting), 4).std() * 160 / 255
    assert 5.58 / np.sqrt(3) + 0.1 < spread < 5.58 - 0.5


@pytest.mark.parametrize("looks", [1, 2, 3, 5])
@pytest.mark.parametrize("sector_angle", [0.0, 1.1])
def test_mean_of_many_realisations_converges_to_the_target(looks, sector_angle):
    rng = np.random.default_rng((7, looks))
    setting = replace(
        Imaging.draw(rng, 96),
        steering=tuple(np.linspace(-0.15, 0.15, looks)) if looks > 1 else (0.0,),
        sector_angle=sector_angle,
    )
    tissue = Tissue.of(phantoms.draw(rng, (96, 96)), setting)
    inside, count = tissue.display.inside, 64
    stack = realisations(tissue, count)[:, inside].astype(float)
    error = stack.mean(0) - tissue.target()[inside]
    expected = np.sqrt((stack.var(0) / count).mean())
    assert abs(error.mean()) < 0.5
    assert error.std() < 1.25 * expected + 0.3


@pytest.mark.parametrize("looks", [1, 3, 5])
def test_reference_of_even_tissue_is_neither_too_dark_nor_too_bright(looks):
    rng = np.random.default_rng((1, looks))
    setting = replace(
        Imaging.draw(rng, 160),
        steering=tuple(np.linspace(-0.15, 0.15, looks)) if looks > 1 else (0.0,),
        sector_angle=0.0,
        dynamic_range_db=60.0,
        tissue_level=0.5,
    )
    tissue = Tissue.of(even_tissue(160), setting)
    assert abs((realisations(tissue, 24) - tissue.target()).mean()) < 0.3


@pytest.mark.parametrize("powers", [[1.0, 0.0, 0.0], [5.0, 3.0, 1.0], [1.0, 0.6, 0.3, 0.1, 0.02]])
def test_effective_looks_have_the_mean_in_decibels_of_a_sum_of_exponentials(powers):
    drawn = np.random.default_rng(3).exponential(size=(200_000, len(powers))) @ powers
    count = effective_looks(np.array(powers))
    of_gamma = special.digamma(count) - np.log(count)
    assert np.log(drawn / sum(powers)).mean() == pytest.approx(of_gamma, abs=0.01)


def test_first_scenes_are_the_same_whatever_the_count():
    few, more = array_scenes(1, 900_777, side=96), array_scenes(3, 900_777, side=96)
    np.testing.assert_array_equal(few[0].noisy, more[0].noisy)
    np.testing.assert_array_equal(few[0].target, more[0].target)
    assert not np.array_equal(more[0].noisy, array_scenes(1, 900_778, side=96)[0].noisy)


def test_anatomy_and_graded_lesions_take_turns():
    anatomy, lesions = array_scenes(2, 900_777, side=128)
    assert anatomy.noisy.dtype == np.uint8
    assert anatomy.target.shape == anatomy.labels["inside"].shape == (128, 128)
    assert not anatomy.lesions
    assert lesions.lesions
    assert lesions.labels["background"].any()
    assert lesions.labels["inside"].all()


def test_expected_contrast_of_a_large_lesion_is_that_of_the_tissue():
    for seed in range(900_780, 900_786):
        setting = Imaging.draw(np.random.default_rng((seed, 1)), 160)
        scene = array_scenes(2, seed, side=160)[1]
        grey_per_db = 255 / setting.dynamic_range_db
        for lesion in scene.lesions:
            found = scene.target[lesion.mask].mean() - scene.target[lesion.ring].mean()
            if lesion.diameter_px >= 40 and abs(lesion.contrast_db) <= 3:
                assert found / grey_per_db == pytest.approx(lesion.contrast_db, abs=0.4)


def test_speckle_spans_pixels_as_on_scanners():
    for seed in range(24):
        setting = Imaging.draw(np.random.default_rng(seed), 256)
        kernel = Beams(setting, (256, 256)).kernels[0, 2]
        correlation = np.abs(np.fft.ifft2(np.abs(np.fft.fft2(kernel, (128, 128))) ** 2)) ** 2
        for axis, (least, most) in enumerate(((1, 4.5), (1.5, 9.5))):
            lags = correlation[:64, 0] if axis == 0 else correlation[0, :64]
            width = 2 * np.interp(-0.5, -lags / lags[0], np.arange(64))
            assert least <= width / setting.native_scale[axis] <= most


def test_drawn_scanners_hold_ten_scatterers_a_cell():
    for seed in range(24):
        setting = Imaging.draw(np.random.default_rng(seed), 256)
        axial, lateral = setting.spacing_mm
        cell = setting.probe.pulse_mm / axial * setting.probe.beam_mm(setting.start_mm) / lateral
        assert POINTS_A_SAMPLE * cell >= 10

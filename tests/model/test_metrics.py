"""Each figure against a closed form or an implementation by others."""

import numpy as np
import pytest
import torch
from scipy import ndimage, special, stats

from model import metrics
from model.metrics.contrast import rise_distance
from model.simulation.phantoms import Lesion

torch.set_num_threads(1)


def wave(rows=192, columns=192):
    """A picture with smooth, sharp and oriented parts, the same on every machine."""
    y, x = np.mgrid[:rows, :columns].astype(float)
    picture = 110 + 50 * np.sin(x / 9) * np.cos(y / 23)
    picture[np.hypot(y - 70, x - 90) < 30] += 60
    picture[150:153] = 240
    return np.clip(picture, 0, 255)


def ripple(picture):
    """The same picture with fine detail added, without a random generator."""
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    return np.clip(picture + 25 * np.sin(1.7 * x + 0.6 * y) * np.cos(2.1 * y), 0, 255)


def disc(rows, columns, centre, radius):
    y, x = np.mgrid[:rows, :columns]
    return np.hypot(y - centre[0], x - centre[1]) <= radius


def speckle(rng, shape, looks=1, grey_per_db=255 / 60, level=120.0):
    intensity = rng.gamma(looks, 1 / looks, shape)
    return level + grey_per_db * 10 * np.log10(intensity)


# --- with a reference -------------------------------------------------------------------------


def test_psnr_of_a_constant_error_is_its_closed_form():
    reference = wave()
    expected = 20 * np.log10(255 / 5)
    assert metrics.psnr(reference + 5, reference, data_range=255) == pytest.approx(expected)


def test_psnr_follows_the_data_range():
    reference = wave()
    eight_bit = metrics.psnr(ripple(reference), reference, data_range=255)
    unit = metrics.psnr(ripple(reference) / 255, reference / 255, data_range=1)
    assert eight_bit == pytest.approx(unit)


@pytest.mark.parametrize("metric", ["psnr", "ssim", "ms_ssim", "gmsd", "fsim"])
def test_equal_images_reach_the_best_value(metric):
    best = {"psnr": np.inf, "ssim": 1, "ms_ssim": 1, "gmsd": 0, "fsim": 1}[metric]
    value = getattr(metrics, metric)(wave(), wave(), data_range=255)
    assert value == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize(
    ("metric", "reference_values", "tolerance"),
    [
        # piq 0.8.0 in float64, on the same two pictures.
        ("ssim", (0.41715, 0.96625), 2e-3),
        ("ms_ssim", (0.93460, 0.99173), 2e-3),
        ("gmsd", (0.00202, 0.05183), 1e-4),
        ("fsim", (0.68085, 0.97989), 1e-4),
    ],
)
def test_metric_agrees_with_an_independent_implementation(metric, reference_values, tolerance):
    function = getattr(metrics, metric)
    blurred = ndimage.gaussian_filter(wave(), 1.5)
    found = (
        function(ripple(wave()), wave(), data_range=255),
        function(blurred, wave(), data_range=255),
    )
    assert found == pytest.approx(reference_values, abs=tolerance)


def test_metrics_of_the_unit_range_equal_those_of_eight_bit():
    for name in ("ssim", "ms_ssim", "gmsd", "fsim"):
        function = getattr(metrics, name)
        assert function(ripple(wave()) / 255, wave() / 255, data_range=1) == pytest.approx(
            function(ripple(wave()), wave(), data_range=255), rel=1e-5
        )


def test_ms_ssim_refuses_an_image_too_small_for_five_scales():
    with pytest.raises(ValueError, match="176"):
        metrics.ms_ssim(wave(175, 200), wave(175, 200), data_range=255)
    assert metrics.ms_ssim(wave(176, 200), wave(176, 200), data_range=255) == pytest.approx(1)


def test_mean_squared_error_and_psnr_agree():
    rng = np.random.default_rng(3)
    image, reference = rng.uniform(0, 255, (2, 40, 50))
    expected = 10 * np.log10(255**2 / metrics.mse(image, reference))
    assert metrics.psnr(image, reference, data_range=255) == pytest.approx(expected)
    assert metrics.mse(reference + 4, reference) == pytest.approx(16)


def test_images_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="one size"):
        metrics.psnr(wave(20, 20), wave(20, 21), data_range=255)


def test_edge_strength_of_a_blurred_step_is_the_ratio_of_the_slopes():
    step = np.zeros((64, 64))
    step[:, 32:] = 100
    blurred = ndimage.gaussian_filter(step, 2.0, mode="nearest")
    # A Gaussian derivative of a Gaussian-blurred step is a Gaussian of variance s1^2 + s2^2; the
    # two columns at the step lie half a pixel from its peak.
    expected = np.exp(-0.125 / 5) / np.sqrt(5) / np.exp(-0.125)
    assert metrics.edge_strength(blurred, step, share=2 / 64) == pytest.approx(expected, rel=0.03)
    assert metrics.edge_strength(step, step) == pytest.approx(1)


def test_speckle_does_not_count_as_edge():
    step = np.zeros((128, 128)) + 100
    step[:, 64:] = 180
    rng = np.random.default_rng(1)
    noise_only = 100 + rng.normal(0, 20, step.shape)
    assert metrics.edge_strength(noise_only, step) == pytest.approx(0, abs=0.12)


def test_edge_preservation_is_one_up_to_gain_and_offset():
    assert metrics.edge_preservation_index(0.5 * wave() + 30, wave()) == pytest.approx(1)
    blurred = ndimage.gaussian_filter(wave(), 2)
    assert metrics.edge_preservation_index(blurred, wave()) < 0.7


# --- regions ----------------------------------------------------------------------------------


def test_gcnr_of_two_gaussians_is_its_closed_form():
    rng = np.random.default_rng(2)
    image = rng.normal(100, 10, (400, 400))
    inside = np.zeros(image.shape, bool)
    inside[:, :200] = True
    image[inside] += 15
    expected = 1 - 2 * stats.norm.cdf(-15 / 10 / 2)
    assert metrics.gcnr(image, inside, ~inside) == pytest.approx(expected, abs=0.02)


def test_gcnr_does_not_change_with_a_grey_map_while_cnr_does():
    rng = np.random.default_rng(3)
    image = speckle(rng, (300, 300))
    inside = disc(300, 300, (150, 150), 80)
    image[inside] += 30
    mapped = 255 * (np.clip(image, 1, 255) / 255) ** 0.4
    image = np.clip(image, 1, 255)
    assert metrics.gcnr(mapped, inside, ~inside) == pytest.approx(
        metrics.gcnr(image, inside, ~inside), abs=0.03
    )
    assert metrics.cnr(mapped, inside, ~inside) != pytest.approx(
        metrics.cnr(image, inside, ~inside), rel=0.03
    )


def test_gcnr_spans_from_no_difference_to_full_separation():
    inside = disc(50, 50, (25, 25), 10)
    assert metrics.gcnr(np.full((50, 50), 7.0), inside, ~inside) == 0
    assert metrics.gcnr(inside * 100.0, inside, ~inside) == 1


def test_contrast_error_is_given_in_decibels_where_the_display_is_known():
    inside = disc(60, 60, (30, 30), 10)
    reference, image = inside * 40.0, inside * 31.5
    assert metrics.contrast_error(image, reference, inside, ~inside) == pytest.approx(8.5)
    in_db = metrics.contrast_error(image, reference, inside, ~inside, grey_per_db=255 / 60)
    assert in_db == pytest.approx(2)


def test_an_empty_region_is_refused():
    inside = np.zeros((10, 10), bool)
    with pytest.raises(ValueError, match="without pixels"):
        metrics.gcnr(np.zeros((10, 10)), inside, ~inside)


def test_lesion_survives_with_half_its_contrast_and_not_with_less_or_reversed():
    inside = disc(60, 60, (30, 30), 8)
    lesion = Lesion(
        mask=inside, ring=disc(60, 60, (30, 30), 14) & ~inside, contrast_db=-3, diameter_px=16
    )
    reference = 100 - inside * 20.0
    for kept, survives in ((1.0, True), (0.55, True), (0.4, False), (-1.0, False)):
        assert metrics.lesion_survives(100 - kept * inside * 20.0, reference, lesion) is survives
    assert metrics.lesion_survival(100 - 0.4 * inside * 20.0, reference, [lesion]) == 0
    assert np.isnan(metrics.lesion_survival(reference, reference, []))


def test_false_structures_are_found_where_they_are_and_only_there():
    flat = np.full((120, 120), 100.0)
    everywhere = np.ones(flat.shape, bool)
    assert metrics.false_structures(flat, flat, everywhere, threshold=4) == 0
    planted = flat + 12 * disc(120, 120, (60, 60), 5)
    found = metrics.structure_departures(planted, flat, everywhere, diameter_px=10)
    assert found.max() == pytest.approx(12, rel=0.05)
    assert metrics.false_structures(planted, flat, everywhere, threshold=4) > 0
    assert metrics.false_structures(planted, planted, everywhere, threshold=4) == 0


def test_departure_is_of_a_disc_against_the_ring_from_its_rim_to_twice_its_diameter():
    flat, room = np.zeros((41, 41)), np.zeros((41, 41), bool)
    room[10:31, 10:31] = True  # for one place alone

    def departure(*radii):
        planted = sum((disc(41, 41, (20, 20), radius) for radius in radii), flat)
        (found,) = metrics.structure_departures(planted, flat, room, diameter_px=10)
        return found

    assert departure(5) == pytest.approx(1)
    assert departure(10) == pytest.approx(0, abs=1e-9)
    assert departure(5, 10) == pytest.approx(1)
    assert departure(40) == pytest.approx(0, abs=1e-9)


def test_false_structures_of_white_noise_follow_its_standard_error():
    rng = np.random.default_rng(4)
    flat = np.full((400, 400), 100.0)
    noisy = flat + rng.normal(0, 10, flat.shape)
    found = metrics.structure_departures(noisy, flat, np.ones(flat.shape, bool), diameter_px=10)
    disc_pixels, ring_pixels = np.pi * 25, np.pi * 75
    assert found.std() == pytest.approx(10 * np.sqrt(1 / disc_pixels + 1 / ring_pixels), rel=0.08)


@pytest.mark.parametrize("sigma", [1.0, 1.5, 2.0])
def test_edge_width_of_a_blurred_disc_is_that_of_the_error_function(sigma):
    mask = disc(160, 160, (80, 80), 50)
    blurred = ndimage.gaussian_filter(np.where(mask, 180.0, 80.0), sigma)
    expected = 2 * stats.norm.ppf(0.9) * np.hypot(sigma, 0.55)  # the shells' own thickness
    assert metrics.edge_width(blurred, mask) == pytest.approx(expected, rel=0.12)


def test_edge_width_of_a_flat_image_is_undefined():
    assert np.isnan(metrics.edge_width(np.full((60, 60), 9.0), disc(60, 60, (30, 30), 15)))


def test_rise_distance_of_a_ramp_is_eight_tenths_of_it():
    positions = np.arange(0, 41, 0.5)
    ramp = np.clip((positions - 15) / 10, 0, 1) * 100
    assert rise_distance(positions, ramp) == pytest.approx(8, abs=0.01)


def test_line_width_of_a_gaussian_line_is_its_full_width_at_half_maximum():
    x = np.arange(81) - 40.0
    profile = 30 + 150 * np.exp(-0.5 * (x / 4) ** 2)
    expected = 2 * np.sqrt(2 * np.log(2)) * 4
    assert metrics.line_width(profile) == pytest.approx(expected, rel=0.01)
    assert metrics.line_width(profile, spacing_px=0.5) == pytest.approx(expected / 2, rel=0.01)
    assert np.isnan(metrics.line_width(np.full(40, 50.0)))


def test_width_of_thin_structures_is_that_of_their_mean_profile():
    sigma, expected = 2.0, 2 * np.sqrt(2 * np.log(2)) * 2.0
    points = np.zeros((120, 120), bool)
    points[::30, ::30][1:, 1:] = True
    lines = np.zeros((120, 120), bool)
    lines[:, 60] = True
    rng = np.random.default_rng(0)
    for mask, peak in ((points, 120 * 2 * np.pi * sigma**2), (lines, 120 * np.sqrt(2 * np.pi) * 2)):
        image = 40 + peak * ndimage.gaussian_filter(mask.astype(float), sigma)
        noise = ndimage.gaussian_filter(rng.normal(size=image.shape), 0.7)
        assert metrics.thin_width(image, mask) == pytest.approx(expected, rel=0.06)
        assert metrics.thin_width(image + 10 * noise, mask) == pytest.approx(expected, rel=0.15)
    assert np.isnan(metrics.thin_width(image, np.zeros_like(mask)))
    assert np.isnan(metrics.thin_width(np.full((120, 120), 50.0), lines))


# --- without a reference ----------------------------------------------------------------------


@pytest.mark.parametrize("looks", [1, 2, 4, 16])
def test_looks_are_recovered_from_log_compressed_speckle(looks):
    rng = np.random.default_rng(5)
    image = speckle(rng, (500, 500), looks)
    everywhere = np.ones(image.shape, bool)
    assert metrics.looks(image, everywhere, grey_per_db=255 / 60) == pytest.approx(looks, rel=0.03)


def test_looks_do_not_change_with_brightness_while_displayed_enl_does():
    rng = np.random.default_rng(6)
    image = speckle(rng, (300, 300))
    everywhere = np.ones(image.shape, bool)
    brighter = image + 40
    assert metrics.looks(brighter, everywhere, grey_per_db=4.25) == pytest.approx(
        metrics.looks(image, everywhere, grey_per_db=4.25)
    )
    assert metrics.enl(brighter, everywhere) > 1.5 * metrics.enl(image, everywhere)


def test_one_look_spreads_by_the_root_of_trigamma_one():
    spread_db = 10 / np.log(10) * np.sqrt(float(special.polygamma(1, 1)))
    assert spread_db == pytest.approx(5.57, abs=0.01)


def test_speckle_indices_of_a_halved_spread():
    rng = np.random.default_rng(7)
    noisy = rng.normal(100, 20, (200, 200))
    everywhere = np.ones(noisy.shape, bool)
    halved = noisy.mean() + (noisy - noisy.mean()) / 2
    assert metrics.ssi(noisy, halved, everywhere) == pytest.approx(0.5)
    assert metrics.smpi(noisy, halved, everywhere) == pytest.approx(0.5)
    assert metrics.smpi(noisy, halved + 1, everywhere) == pytest.approx(1.0)
    assert metrics.mean_shift(noisy, halved + 1) == pytest.approx(1.0)


def test_residual_of_the_identity_holds_nothing_and_of_a_blur_holds_edges():
    image = wave()
    assert metrics.residual_structure(image, image) == pytest.approx(0)
    assert metrics.residual_structure(image, ndimage.gaussian_filter(image, 4)) > 0.3
    assert metrics.gradient_kept(image, image) == pytest.approx(1)
    assert metrics.gradient_kept(image, ndimage.gaussian_filter(image, 4)) < 0.8


def test_residual_correlation_sees_contrast_that_was_taken_away():
    image = wave()
    flattened = image.mean() + 0.8 * (image - image.mean())
    assert metrics.residual_correlation(image, flattened) == pytest.approx(1)
    rng = np.random.default_rng(8)
    noisy = image + rng.normal(0, 15, image.shape)
    assert metrics.residual_correlation(noisy, image) == pytest.approx(0, abs=0.02)


def test_flicker_is_the_temporal_standard_deviation():
    rng = np.random.default_rng(9)
    frames = [rng.normal(100, 8, (80, 80)) for _ in range(40)]
    assert metrics.flicker(frames) == pytest.approx(8, rel=0.02)
    assert metrics.flicker([frames[0], frames[0]]) == 0
    with pytest.raises(ValueError, match="two frames"):
        metrics.flicker(frames[:1])


def test_grid_energy_is_zero_for_a_filter_that_moves_with_the_image():
    image = np.clip(ripple(wave(140, 140)), 0, 255).astype(np.uint8)

    def smooth(grey):
        return ndimage.uniform_filter(grey.astype(float), 5)

    assert metrics.grid_energy(smooth, image) == pytest.approx(0, abs=1e-6)


def test_grid_energy_measures_a_grid_that_stays_with_the_raster():
    image = np.full((140, 140), 100, np.uint8)

    def gridded(grey):
        out = grey.astype(float)
        out[::4, ::4] += 16
        return out

    # One pixel in sixteen carries 16 grey levels: variance 16 (1 - 1/16).
    assert metrics.grid_energy(gridded, image) == pytest.approx(np.sqrt(15), rel=1e-6)


def test_homogeneous_patches_are_taken_from_even_tissue():
    rng = np.random.default_rng(10)
    image = np.clip(rng.normal(120, 10, (192, 192)), 0, 255)
    image[:, 96:] += 80 * (np.mgrid[:192, :96][1] // 16 % 2)
    image[160:] = 0
    image[:32, :32] = 111
    image[2:32:4, 2:32:4] = 255  # even as none, but clipped
    patches = metrics.homogeneous_patches(image, count=6)
    assert len(patches) == 6
    for patch in patches:
        assert patch.sum() == 32 * 32
        assert not patch[160:].any()
        assert not patch[:, 96:].any()
        assert not patch[:32, :32].any()


def test_every_exported_metric_exists_and_every_column_can_be_printed():
    for name in metrics.__all__:
        assert hasattr(metrics, name)
    for column in metrics.COLUMNS.values():
        assert column.label
        assert column.note
        assert column.better in ("higher", "lower", "zero", "one", "none")

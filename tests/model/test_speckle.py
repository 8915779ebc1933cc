"""The simulator against the theory of speckle (Wagner et al. 1983)."""

from dataclasses import fields, replace

import numpy as np
import pytest
from scipy import ndimage

from model import data, speckle
from model.simulation import phantoms
from model.simulation.acquisition import Acquisition
from model.simulation.beam import point_spread
from model.simulation.phantoms import Clusters, Phantom


def tissue(side=256, level=0.0):
    return Phantom(np.full((side, side), level, np.float32), np.zeros((side, side), np.float32))


PLAIN = Acquisition(dynamic_range_db=200.0, tissue_level=0.75, noise_floor_db=-90.0)
"""Wide range: one grey level is 200/255 dB and nothing clips."""


def levels_db(formed, setting):
    return (formed.noisy / 255.0 - setting.tissue_level) * setting.dynamic_range_db


def test_fully_developed_speckle_has_the_log_statistics_of_a_rayleigh_envelope():
    rng = np.random.default_rng(1)
    level = np.concatenate(
        [levels_db(f, PLAIN).ravel() for f in speckle.form(tissue(), PLAIN, rng, 4)]
    )
    assert level.std() == pytest.approx(5.57, abs=0.15)
    assert level.mean() == pytest.approx(-2.51, abs=0.2)
    envelope = 10 ** (level / 20)
    assert envelope.mean() / envelope.std() == pytest.approx(1.91, abs=0.06)


@pytest.mark.parametrize("looks", [2, 4])
def test_compounding_looks_lowers_the_speckle(looks):
    rng = np.random.default_rng(2)
    setting = replace(PLAIN, looks=looks, look_mode="log")
    level = levels_db(speckle.form(tissue(), setting, rng)[0], setting)
    assert level.std() == pytest.approx(5.57 / np.sqrt(looks), rel=0.06)


@pytest.mark.parametrize("aperture_sine", [0.0, 0.35], ids=["Gaussian", "aperture"])
def test_autocorrelation_is_that_of_the_point_spread_function(aperture_sine):
    setting = replace(
        PLAIN,
        axial_sigma=1.5,
        lateral_sigma=(3.0, 3.0),
        aperture_sine=aperture_sine,
        transmit_share=0.6,
    )
    formed = speckle.form(tissue(), setting, np.random.default_rng(3), 8)
    power = np.mean([_autocorrelation(10 ** (levels_db(f, setting) / 10)) for f in formed], axis=0)
    # The intensity of circular Gaussian speckle correlates as |autocorrelation of the PSF|^2.
    psf = np.zeros((256, 256), complex)
    kernel = point_spread(setting, 3.0).numpy()
    psf[: kernel.shape[0], : kernel.shape[1]] = kernel
    amplitude = np.fft.ifft2(np.abs(np.fft.fft2(psf)) ** 2)
    expected = np.abs(amplitude / amplitude[0, 0]) ** 2
    for lag in [(1, 0), (2, 0), (0, 1), (0, 2), (0, 4), (2, 2)]:
        assert power[lag] == pytest.approx(expected[lag], abs=0.06)


@pytest.mark.parametrize("aperture_sine", [0.0, 0.1, 0.4])
def test_lateral_sigma_means_the_same_for_both_beams(aperture_sine):
    setting = Acquisition(aperture_sine=aperture_sine)
    power = point_spread(setting, 3.0).abs().numpy() ** 2
    across = np.arange(power.shape[1]) - power.shape[1] // 2
    spread = np.sqrt((power.sum(axis=0) * across**2).sum() / power.sum())
    assert spread * np.sqrt(2) == pytest.approx(3.0, rel=0.15)


def test_defocus_widens_the_beam_of_an_aperture():
    setting = Acquisition(aperture_sine=0.3)
    sharp, blurred = (
        point_spread(setting, 3.0, phase).abs().numpy().sum(axis=0) for phase in (0.0, 2.0)
    )
    assert sharp.max() / sharp.sum() > 1.15 * blurred.max() / blurred.sum()


def _autocorrelation(image):
    centred = image - image.mean()
    spectrum = np.abs(np.fft.fft2(centred)) ** 2
    correlation = np.fft.ifft2(spectrum).real
    return correlation / correlation[0, 0]


@pytest.mark.parametrize("seed", range(4))
def test_mean_of_many_realisations_converges_to_the_target(seed):
    rng = np.random.default_rng((7, seed))
    phantom = phantoms.draw(rng, (112, 112))
    setting = replace(Acquisition.draw(rng), jpeg_quality=0, resize=1.0)
    _assert_convergence(phantom, setting, rng)


@pytest.mark.parametrize(
    "special",
    [
        {"aperture_sine": 0.4, "defocus": (1.0, -0.5)},
        {"looks": 3, "look_correlation": 0.7, "look_mode": "amplitude"},
        {"persistence": 0.4},
        {"grey_bend": 3.5, "tissue_level": 0.7},
        {"sector_angle": 1.2, "smooth_sigma": 0.8, "sharpen": 0.6},
    ],
    ids=lambda special: next(iter(special)),
)
def test_mean_converges_for_every_kind_of_scanner(special):
    rng = np.random.default_rng(11)
    phantom = phantoms.draw(rng, (112, 112))
    _assert_convergence(phantom, replace(Acquisition(), **special), rng)


@pytest.mark.parametrize("clusters", [Clusters(4.0, 1.0), Clusters(3.0, 3.0), Clusters(2.0, 6.0)])
def test_mean_converges_where_scatterers_gather_in_clusters(clusters):
    rng = np.random.default_rng(12)
    phantom = replace(phantoms.draw(rng, (112, 112)), clusters=clusters)
    _assert_convergence(phantom, Acquisition(), rng)


def test_clusters_make_even_tissue_uneven_beyond_the_grain():
    rng = np.random.default_rng(4)
    plain = tissue(192)
    lumpy = replace(plain, clusters=Clusters(3.0, 5.0))
    coarse = [
        ndimage.gaussian_filter(speckle.form(each, PLAIN, rng)[0].noisy.astype(float), 8.0).std()
        for each in (plain, lumpy)
    ]
    assert coarse[1] > 1.5 * coarse[0]
    target = speckle.form(lumpy, PLAIN, rng)[0].target
    assert target[32:-32, 32:-32].std() < 0.2


@pytest.mark.parametrize(("bend", "least", "most"), [(0.0, -0.3, 0.3), (3.5, 0.6, 1.0)])
def test_grains_grow_with_brightness_where_the_display_is_bent(bend, least, most):
    setting = replace(PLAIN, grey_bend=bend, tissue_level=0.6)
    spreads, means = [], []
    for level_db in (-6.0, 6.0):
        formed = speckle.form(tissue(128, level_db), setting, np.random.default_rng(3))[0]
        image = formed.noisy[32:-32, 32:-32]
        spreads.append(image.std())
        means.append(image.mean())
    growth = np.log(spreads[1] / spreads[0]) / np.log(means[1] / means[0])
    assert least < growth < most


def test_a_widened_scanner_differs_in_beam_and_display_alone():
    drawn = Acquisition.draw(np.random.default_rng(5))
    widened = drawn.widened(np.random.default_rng(6))
    assert widened.grey_bend > 0.4
    changed = {name for name, value in vars(widened).items() if value != vars(drawn)[name]}
    assert changed == {"axial_sigma", "lateral_sigma", "grey_bend", "tissue_level"}


def test_widened_scenes_are_the_same_tissue_under_other_scanners():
    plain, widened = (data.validation_set(2, side=96, widened=each) for each in (False, True))
    for one, other in zip(plain, widened, strict=True):
        assert [lesion.contrast_db for lesion in one.lesions] == [
            lesion.contrast_db for lesion in other.lesions
        ]
        assert np.abs(one.target - other.target).mean() > 1.0


def _assert_convergence(phantom, setting, rng):
    count = 64
    images = speckle.form(phantom, setting, rng, count)
    stack = np.stack([f.noisy.astype(np.float64) for f in images])[:, images[0].inside]
    error = stack.mean(axis=0) - images[0].target[images[0].inside]
    expected = np.sqrt((stack.var(axis=0) / count).mean())
    assert abs(error.mean()) < 0.5
    assert error.std() < 1.25 * expected + 0.3


def test_the_seed_decides_the_image():
    setting = Acquisition()
    one, same, other = (
        speckle.form(tissue(96), setting, np.random.default_rng(seed))[0].noisy
        for seed in (5, 5, 6)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_sector_is_black_outside():
    setting = replace(Acquisition(), sector_angle=1.2, sector_depth=0.3)
    formed = speckle.form(tissue(128), setting, np.random.default_rng(0))[0]
    assert 0.3 < formed.inside.mean() < 0.95
    assert (formed.target[~formed.inside] < 255 * 0.5).all()
    assert formed.target[0, 0] == 0


@pytest.mark.parametrize("resize", [1.0, 0.8, 1.3])
@pytest.mark.parametrize("smooth", [0.0, 0.8])
def test_a_target_does_not_glow_beyond_the_rim_where_edges_are_enhanced(resize, smooth):
    setting = replace(
        Acquisition(), sector_angle=1.2, sharpen=0.6, smooth_sigma=smooth, resize=resize
    )
    formed = speckle.form(tissue(112), setting, np.random.default_rng(5), 16)
    images = np.stack([each.noisy for each in formed]).astype(float)[:, ~formed[0].inside]
    target = formed[0].target[~formed[0].inside]
    assert abs((target - images.mean(axis=0)).mean()) < 0.05
    assert target[images.max(axis=0) == 0].mean() < 0.01


def test_point_spread_function_wider_than_the_image_is_cut():
    setting = replace(Acquisition(), lateral_sigma=(9.0, 9.0), side_lobes=0.05)
    assert speckle.form(tissue(48), setting, np.random.default_rng(0))[0].noisy.shape == (48, 48)


def test_faint_phantoms_hold_faint_lesions_of_both_signs():
    levels = []
    for seed in range(6):
        phantom = phantoms.faint(np.random.default_rng(seed), (160, 160))
        assert phantom.diffuse_db.dtype == np.float32
        levels.append(phantom.diffuse_db - np.median(phantom.diffuse_db))
    found = np.concatenate([level.ravel() for level in levels])
    assert 0.02 < (found > 1.8).mean() < 0.4
    assert 0.02 < (found < -1.8).mean() < 0.4
    assert np.abs(found).max() < 17


def test_detailed_phantoms_hold_small_bright_points_and_thin_dark_clefts():
    bright, dark, coherent = [], [], []
    for seed in range(8):
        added, specular = phantoms.details(np.random.default_rng(seed), (160, 160))
        assert added.dtype == specular.dtype == np.float32
        assert (added == 0).mean() > 0.5, "the tissue between them stays"
        bright.append(added > 6)
        dark.append(added < -6)
        coherent.append(specular > 0)
    for found in (bright, dark, coherent):
        share = np.mean(found)
        assert 0.001 < share < 0.2
    widest = max(ndimage.distance_transform_edt(one).max() for one in dark)
    assert 1 < widest < 14, "clefts that cross, but no lakes"
    points = [ndimage.label(one)[1] for one in bright]
    assert np.mean(points) > 5


@pytest.mark.parametrize("seed", range(2))
def test_mean_converges_where_there_are_details(seed):
    rng = np.random.default_rng((17, seed))
    _assert_convergence(phantoms.detailed(rng, (112, 112)), Acquisition(), rng)


def test_scanners_are_drawn_over_all_that_the_simulator_knows():
    drawn = [Acquisition.draw(np.random.default_rng((7, index))) for index in range(1000)]
    assert {one.looks for one in drawn} == {1, 2, 3, 4}
    assert {one.look_mode for one in drawn} == {"amplitude", "power", "log"}
    dynamic_ranges = [one.dynamic_range_db for one in drawn]
    assert min(dynamic_ranges) < 41
    assert max(dynamic_ranges) > 79
    assert all(one.carrier < 0.5 for one in drawn)  # cycles a sample
    assert min(one.resize for one in drawn) < 0.7
    assert max(one.resize for one in drawn) > 2
    for name in (
        "sector_angle",
        "defocus",
        "side_lobes",
        "aperture_sine",
        "look_correlation",
        "attenuation_db",
        "tgc_ripple_db",
        "shadows",
        "persistence",
        "grey_s_curve",
        "smooth_sigma",
        "sharpen",
        "jpeg_quality",
    ):
        without = np.mean([not np.any(getattr(one, name)) for one in drawn])
        assert 0.1 < without < 0.95, name


def test_a_widened_scanner_differs_by_beam_and_display_alone():
    rng = np.random.default_rng(3)
    before = Acquisition.draw(rng)
    after = before.widened(rng)
    changed = {
        field.name
        for field in fields(after)
        if getattr(before, field.name) != getattr(after, field.name)
    }
    assert changed == {"axial_sigma", "lateral_sigma", "grey_bend", "tissue_level"}
    assert after.grey_bend > 0

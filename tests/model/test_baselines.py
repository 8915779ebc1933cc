"""Each classical method on cases whose outcome is known."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import ndimage

from model import baselines
from model.baselines import BASELINES, Baseline, for_strong_noise, tune
from model.metrics.fidelity import psnr

BY_NAME = {baseline.name: baseline for baseline in BASELINES}
PARAMETERS = {
    "median": {"size_px": 5},
    "Lee": {"size_px": 7, "noise_std": 15.0},
    "Frost": {"size_px": 7, "damping": 2.0},
    "SRAD": {"iterations": 60, "step": 0.2, "decay": 0.05},
    "TV": {"weight": 0.15},
    "wavelet": {"noise_std": 20.0, "levels": 3},
    "NLM": {"strength": 14.0, "patch_px": 5, "reach_px": 7},
    "OBNLM": {"strength": 1.0, "patch_px": 5, "reach_px": 5},
    "BM3D": {"noise_std": 15.0, "correlation_px": 0.0},
}
every_baseline = pytest.mark.parametrize("name", sorted(PARAMETERS))


@dataclass(frozen=True)
class TunedOn:
    noisy: np.ndarray
    target: np.ndarray


def method(name, **changed):
    baseline = BY_NAME[name]
    if not baseline.available():
        pytest.skip(f"{baseline.needs} is not installed")
    return baseline.method({**PARAMETERS[name], **changed})


def step(rows=72, columns=88):
    image = np.full((rows, columns), 80, np.uint8)
    image[:, columns // 2 :] = 180
    return image


def noisy_step(seed=0, std=15.0):
    rng = np.random.default_rng(seed)
    clean = step().astype(float)
    return np.clip(clean + rng.normal(0, std, clean.shape), 0, 255).round().astype(np.uint8)


def test_every_baseline_is_tested_and_has_a_source():
    assert set(BY_NAME) == set(PARAMETERS)
    for baseline in BASELINES:
        assert baseline.source
        assert next(baseline.settings())


@every_baseline
def test_constant_image_stays(name):
    flat = np.full((48, 56), 120, np.uint8)
    np.testing.assert_allclose(method(name)(flat), 120, atol=0.6)


@every_baseline
@pytest.mark.parametrize("shape", [(40, 57), (33, 33)])
def test_output_is_float32_of_the_same_shape_within_the_display(name, shape):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, shape, dtype=np.uint8)
    result = method(name)(image)
    assert result.dtype == np.float32
    assert result.shape == shape
    assert result.min() >= 0
    assert result.max() <= 255


@every_baseline
def test_noise_falls_while_the_edge_stays(name):
    image = noisy_step()
    result = method(name)(image)
    left, right = result[8:-8, 8:32], result[8:-8, 56:80]
    assert left.std() < 0.6 * image[8:-8, 8:32].std()
    assert left.mean() == pytest.approx(80, abs=2)
    assert right.mean() == pytest.approx(180, abs=2)
    jump = result[8:-8, 46].mean() - result[8:-8, 41].mean()
    assert jump > 60
    assert psnr(result, step(), data_range=255) > psnr(image, step(), data_range=255) + 3


@every_baseline
def test_result_does_not_depend_on_an_earlier_call(name):
    one = method(name)
    first = one(noisy_step(1))
    one(noisy_step(2))
    np.testing.assert_allclose(one(noisy_step(1)), first, atol=0.5)  # BM3D sums in threads


def test_lee_is_the_local_mean_where_the_variance_is_noise_alone():
    image = noisy_step().astype(float)
    mean = ndimage.uniform_filter(image, 7, mode="reflect")
    np.testing.assert_allclose(baselines.lee(image, size_px=7, noise_std=1e3), mean)


def test_lee_leaves_an_image_alone_where_there_is_no_noise():
    image = noisy_step().astype(float)
    np.testing.assert_allclose(baselines.lee(image, size_px=7, noise_std=0.0), image)


def test_frost_without_damping_is_the_local_mean():
    image = noisy_step().astype(float)
    mean = ndimage.uniform_filter(image, 7, mode="reflect")
    np.testing.assert_allclose(baselines.frost(image, size_px=7, damping=0.0), mean)


def test_obnlm_agrees_with_a_plain_loop_over_pixels_and_blocks():
    image = noisy_step()[:16, 36:52].astype(float)
    found = baselines.obnlm(image, strength=0.7, patch_px=3, reach_px=2)
    np.testing.assert_allclose(found[6:10, 6:10], slow_obnlm(image, 0.7, 3, 2)[6:10, 6:10])


def slow_obnlm(image, strength, patch_px, reach_px):
    """Written from the paper's equations, pixel by pixel."""
    grey, half = image + 1.0, patch_px // 2
    rows, columns = grey.shape
    estimates = [[[] for _ in range(columns)] for _ in range(rows)]

    def block(row, column):
        return grey[row - half : row + half + 1, column - half : column + half + 1]

    margin = half + reach_px
    for row in range(margin, rows - margin):
        for column in range(margin, columns - margin):
            total, weights = np.zeros((patch_px, patch_px)), 0.0
            for i in range(-reach_px, reach_px + 1):
                for j in range(-reach_px, reach_px + 1):
                    other = block(row + i, column + j)
                    pearson = ((block(row, column) - other) ** 2 / other).mean()
                    weight = np.exp(-pearson / (2 * strength**2))
                    total += weight * other
                    weights += weight
            for i in range(patch_px):
                for j in range(patch_px):
                    estimates[row - half + i][column - half + j].append(total[i, j] / weights)
    return np.array([[np.mean(e) if e else np.nan for e in line] for line in estimates]) - 1.0


def test_srad_smooths_within_and_not_across_an_edge():
    image = noisy_step(std=8.0)
    result = method("SRAD", iterations=150)(image)
    blurred = ndimage.gaussian_filter(image.astype(float), 3)
    steepest = np.abs(np.diff(result[10:-10], axis=1)).max(axis=1).mean()
    assert steepest > 3 * np.abs(np.diff(blurred[10:-10], axis=1)).max(axis=1).mean()


def test_bm3d_told_of_the_correlation_removes_correlated_noise_better():
    rng = np.random.default_rng(3)
    grain = ndimage.gaussian_filter(rng.normal(size=(96, 96)), 1.5)
    grain *= 18 / grain.std()
    image = np.clip(120 + grain, 0, 255).round().astype(np.uint8)
    target = np.full(image.shape, 120.0)
    white = method("BM3D", noise_std=18.0)(image)
    told = method("BM3D", noise_std=18.0, correlation_px=1.5)(image)
    assert psnr(told, target, data_range=255) > psnr(white, target, data_range=255) + 3


def test_power_density_holds_the_variance_that_it_was_given():
    for shape in ((32, 48), (45, 33)):
        density = baselines._power_density(shape, 0.1, 1.5)
        # Parseval: the mean of |FFT|^2 of a noise field of variance v is v times its pixels.
        assert density.mean() == pytest.approx(0.1**2 * shape[0] * shape[1])


def test_amplitude_domain_is_left_as_it_was_entered():
    grey = np.linspace(0, 255, 50).reshape(5, 10)
    back = baselines._closed(baselines._opened(grey, "amplitude"), "amplitude")
    np.testing.assert_allclose(back, grey, atol=1e-9)


def test_tuning_finds_the_parameters_with_the_highest_psnr():
    scenes = [TunedOn(noisy_step(seed), step().astype(np.float32)) for seed in (4, 5)]
    grid = {"size_px": (3, 7), "noise_std": (1.0, 15.0, 60.0)}
    tried = []
    chosen = tune(Baseline("Lee", "", baselines.lee, grid), scenes, tried=lambda: tried.append(1))
    assert 3 <= len(tried) <= 6
    lee = Baseline("Lee", "", baselines.lee, grid)

    def reached(parameters):
        return np.mean(
            [psnr(lee.method(parameters)(s.noisy), s.target, data_range=255) for s in scenes]
        )

    assert reached(chosen) == max(reached(parameters) for parameters in lee.settings())


def test_a_quick_method_is_tuned_over_all_combinations():
    grid = {"size_px": (3, 7), "noise_std": (1.0, 15.0, 60.0)}
    tried = []
    scenes = [TunedOn(noisy_step(4), step().astype(np.float32))]
    tune(
        Baseline("Lee", "", baselines.lee, grid, quick=True), scenes, tried=lambda: tried.append(1)
    )
    assert len(tried) == 6


def test_strong_noise_is_tuned_for_beyond_the_grids_of_speckle():
    rng = np.random.default_rng(3)
    target = np.full((64, 64), 128, np.float32)
    noisy = np.clip(target * (1 + 0.75**0.5 * rng.standard_normal(target.shape)), 0, 255)
    scene = TunedOn(noisy.astype(np.uint8), target)
    lee = BY_NAME["Lee"]
    narrow, wide = (tune(each, [scene])["noise_std"] for each in (lee, for_strong_noise(lee)))
    assert narrow == max(lee.grid["noise_std"]) < wide
    assert for_strong_noise(BY_NAME["SRAD"]) == BY_NAME["SRAD"]


def test_tuning_without_scenes_is_refused():
    with pytest.raises(ValueError, match="at least one scene"):
        tune(BY_NAME["median"], [])


def test_srad_despeckles_tissue_beside_a_black_surround():
    """The black outside of a sector is even too, but its spread is not that of speckle."""
    rng = np.random.default_rng(6)
    image = np.zeros((96, 160), np.uint8)
    image[:, 64:] = np.clip(120 + rng.normal(0, 12, (96, 96)), 0, 255).round()
    result = method("SRAD")(image)
    assert result[10:-10, 80:-10].std() < 0.6 * image[10:-10, 80:-10].std()


def test_no_baseline_is_tuned_at_a_single_point():
    for baseline in BASELINES:
        assert len(list(baseline.settings())) >= 6

"""The classical despeckling methods that the student is measured against, each tuned first.

All take and give log-compressed display grey levels, where speckle is additive. The methods that
were written for intensities (Frost, SRAD) may also work on decompressed amplitudes: `tune` tries
both and keeps what serves them best. Libraries are used where they exist (scikit-image, SciPy,
bm3d); the rest follows its paper.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle, denoise_wavelet

from model.metrics.fidelity import psnr

Array = NDArray[np.float64]
Grey = NDArray[np.float32]
Method = Callable[[NDArray[np.uint8]], Grey]
"""uint8 (rows, columns) to float32 grey levels 0 to 255 of the same shape."""

Parameters = Mapping[str, Any]
GREY_LEVELS = 255.0
DISPLAY, AMPLITUDE = "display", "amplitude"


class TuningScene(Protocol):
    """A speckled image with its expectation."""

    @property
    def noisy(self) -> NDArray[np.uint8]:
        """Speckled, uint8 (rows, columns)."""
        ...

    @property
    def target(self) -> Grey:
        """Expected, float32 (rows, columns)."""
        ...


@dataclass(frozen=True)
class Baseline:
    """A classical method with the grid its parameters are chosen from.

    Parameters
    ----------
    name : str
        Short name for tables and the command line.
    source : str
        Paper and implementation.
    function : callable
        ``function(grey, **parameters)``, float64 (rows, columns) in and out.
    grid : mapping
        Parameter name to the values that `tune` tries.
    needs : str
        A module that has to be importable, or "".
    quick : bool
        Whether `tune` tries every combination.
    """

    name: str
    source: str
    function: Callable[..., Array]
    grid: Mapping[str, Sequence[Any]]
    needs: str = ""
    quick: bool = False

    def available(self) -> bool:
        """Whether the library that it needs is installed."""
        return not self.needs or importlib.util.find_spec(self.needs) is not None

    def settings(self) -> Iterator[dict[str, Any]]:
        """Every combination of the grid."""
        for values in itertools.product(*self.grid.values()):
            yield dict(zip(self.grid, values, strict=True))

    def method(self, parameters: Parameters) -> Method:
        """The baseline at fixed parameters."""
        return partial(_apply, self.function, dict(parameters))


def tune(
    baseline: Baseline,
    scenes: Sequence[TuningScene],
    *,
    tried: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Parameters with the highest mean PSNR over scenes that are not used for judging.

    All combinations of a quick one. Of others, from the middle of the grid, one parameter after the
    other takes its best value, until none moves any more.

    Parameters
    ----------
    baseline : Baseline
        What to tune.
    scenes : sequence of TuningScene
        At least one, from a seed of their own.
    tried : callable
        Called after each combination that was run, for a progress bar.

    Returns
    -------
    dict
        One value for each parameter of the grid.
    """
    if not scenes:
        raise ValueError("tuning needs at least one scene")
    scores: dict[tuple[Any, ...], float] = {}

    def score(parameters: Parameters) -> float:
        key = tuple(parameters.values())
        if key not in scores:
            method = baseline.method(parameters)
            reached = [psnr(method(s.noisy), s.target, data_range=GREY_LEVELS) for s in scenes]
            scores[key] = float(np.mean(reached))
            tried()
        return scores[key]

    if baseline.quick:
        return max(baseline.settings(), key=score)
    best = {name: values[len(values) // 2] for name, values in baseline.grid.items()}
    moved = True
    while moved:
        before = dict(best)
        for name, values in baseline.grid.items():
            candidates = [{**best, name: value} for value in values]
            best = max(candidates, key=score)
        moved = best != before
    return best


def median(grey: Array, *, size_px: int) -> Array:
    """Median of a square window."""
    return np.asarray(ndimage.median_filter(grey, size=size_px, mode="reflect"))


def lee(grey: Array, *, size_px: int, noise_std: float) -> Array:
    """Lee's local linear minimum mean square error filter, additive form.

    References
    ----------
    Lee, IEEE Trans. Pattern Anal. Mach. Intell. 2(2), 1980.
    """
    mean, variance = _local_moments(grey, size_px)
    signal = np.maximum(variance - noise_std**2, 0.0)
    gain = signal / np.maximum(variance, 1e-12)
    return np.asarray(mean + gain * (grey - mean))


def frost(grey: Array, *, size_px: int, damping: float, domain: str = DISPLAY) -> Array:
    """Frost's filter: weights fall with distance, the faster the more a neighbourhood varies.

    References
    ----------
    Frost, Stiles, Shanmugan, Holtzman, IEEE Trans. Pattern Anal. Mach. Intell. 4(2), 1982.
    """
    image = _opened(grey, domain)
    mean, variance = _local_moments(image, size_px)
    decay = damping * variance / np.maximum(mean**2, 1e-12)
    total, weights = np.zeros_like(image), np.zeros_like(image)
    for row, column, shifted in _neighbours(image, size_px // 2):
        weight = np.exp(-decay * np.hypot(row, column))
        total += weight * shifted
        weights += weight
    return _closed(total / weights, domain)


def srad(
    grey: Array, *, iterations: int, step: float, decay: float, domain: str = DISPLAY
) -> Array:
    """Speckle reducing anisotropic diffusion.

    The instantaneous coefficient of variation steers the diffusion; its threshold ``q0`` starts
    at the coefficient of variation of the most even patch and falls exponentially.

    References
    ----------
    Yu and Acton, IEEE Trans. Image Process. 11(11), 2002, eqs. 33 to 37 and 58 to 61.
    """
    image = _opened(grey, domain) + 1.0
    start = _speckle_scale(image)
    for iteration in range(iterations):
        q0_squared = (start * np.exp(-decay * step * iteration)) ** 2
        image = _srad_step(image, q0_squared, step)
    return _closed(image - 1.0, domain)


def _srad_step(image: Array, q0_squared: float, step: float) -> Array:
    padded = np.pad(image, 1, mode="edge")
    north, south = padded[:-2, 1:-1] - image, padded[2:, 1:-1] - image
    west, east = padded[1:-1, :-2] - image, padded[1:-1, 2:] - image
    gradient = (north**2 + south**2 + west**2 + east**2) / image**2
    laplacian = (north + south + west + east) / image
    q_squared = (0.5 * gradient - laplacian**2 / 16) / (1 + laplacian / 4) ** 2
    excess = (q_squared - q0_squared) / (q0_squared * (1 + q0_squared))
    coefficient = np.clip(1.0 / np.maximum(1 + excess, 1e-6), 0.0, 1.0)
    ahead = np.pad(coefficient, 1, mode="edge")
    divergence = (
        ahead[2:, 1:-1] * south + coefficient * north + ahead[1:-1, 2:] * east + coefficient * west
    )
    return np.asarray(np.maximum(image + step / 4 * divergence, 1e-6))


def non_local_means(grey: Array, *, strength: float, patch_px: int, reach_px: int) -> Array:
    """Non-local means, scikit-image.

    References
    ----------
    Buades, Coll, Morel, CVPR 2005; Darbon et al., ISBI 2008 (the fast mode).
    """
    result = denoise_nl_means(
        grey / GREY_LEVELS,
        patch_size=patch_px,
        patch_distance=reach_px,
        h=strength / GREY_LEVELS,
        fast_mode=True,
        preserve_range=True,
    )
    return np.asarray(result) * GREY_LEVELS


def obnlm(
    grey: Array, *, strength: float, patch_px: int, reach_px: int, gamma: float = 0.5
) -> Array:
    """Optimised Bayesian non-local means: Pearson distance between patches, blockwise estimate.

    Every pixel belongs to ``patch_px ** 2`` blocks; their estimates are averaged.

    References
    ----------
    Coupé, Hellier, Kervrann, Barillot, IEEE Trans. Image Process. 18(10), 2009.
    """
    image = grey + 1.0
    model_noise = image ** (2 * gamma)
    scale = 2.0 * strength**2

    def weights() -> Iterator[tuple[Array, Array]]:
        for _, _, (shifted, noise) in _shifted_pairs(image, model_noise, reach_px):
            distance = ndimage.uniform_filter((image - shifted) ** 2 / noise, patch_px)
            yield np.exp(-distance / scale), shifted

    normaliser = sum((weight for weight, _ in weights()), np.zeros_like(image))
    total, share = np.zeros_like(image), np.zeros_like(image)
    for weight, shifted in weights():
        blockwise = ndimage.uniform_filter(weight / normaliser, patch_px)
        total += blockwise * shifted
        share += blockwise
    return np.asarray(total / share - 1.0)


def bm3d_log(grey: Array, *, noise_std: float, correlation_px: float) -> Array:
    """BM3D on log-compressed grey levels, told how far the speckle is correlated.

    Parameters
    ----------
    grey : ndarray, (rows, columns)
        Grey levels.
    noise_std : float
        Standard deviation of the speckle in grey levels.
    correlation_px : float
        Standard deviation of the Gaussian whose white-noise response has the speckle's
        correlation; 0 for white noise.

    References
    ----------
    Dabov, Foi, Katkovnik, Egiazarian, IEEE Trans. Image Process. 16(8), 2007; Mäkinen, Azzari,
    Foi, IEEE Trans. Image Process. 29, 2020 (correlated noise, the `bm3d` package).
    """
    from bm3d import bm3d  # noqa: PLC0415 not for commercial use, hence never required

    density: Any = noise_std / GREY_LEVELS
    if correlation_px > 0:
        density = _power_density(grey.shape, noise_std / GREY_LEVELS, correlation_px)
    # bm4d 4.2.5, beneath bm3d, calls numpy.trapz, which NumPy 2.4 has dropped for trapezoid.
    with mock.patch.object(np, "trapz", np.trapezoid, create=True):
        return np.asarray(bm3d(grey / GREY_LEVELS, density)) * GREY_LEVELS


def _power_density(shape: tuple[int, ...], noise_std: float, correlation_px: float) -> Array:
    impulse = np.zeros(shape)
    impulse[0, 0] = 1.0
    kernel = ndimage.gaussian_filter(impulse, correlation_px, mode="wrap")
    kernel *= noise_std / np.sqrt((kernel**2).sum())
    return np.asarray(np.abs(np.fft.fft2(kernel)) ** 2 * kernel.size)


def total_variation(grey: Array, *, weight: float) -> Array:
    """Total variation, scikit-image.

    References
    ----------
    Rudin, Osher, Fatemi, Physica D 60, 1992; Chambolle, J. Math. Imaging Vision 20, 2004.
    """
    return np.asarray(denoise_tv_chambolle(grey / GREY_LEVELS, weight=weight)) * GREY_LEVELS


def wavelet(grey: Array, *, noise_std: float, levels: int, wavelet_name: str = "db4") -> Array:
    """Soft wavelet thresholding of the log image (BayesShrink), scikit-image.

    References
    ----------
    Chang, Yu, Vetterli, IEEE Trans. Image Process. 9(9), 2000.
    """
    import pywt  # noqa: PLC0415 an optional part of scikit-image

    deepest = pywt.dwt_max_level(min(grey.shape), pywt.Wavelet(wavelet_name).dec_len)
    result = denoise_wavelet(
        grey / GREY_LEVELS,
        sigma=noise_std / GREY_LEVELS,
        wavelet=wavelet_name,
        mode="soft",
        wavelet_levels=max(1, min(levels, deepest)),
        method="BayesShrink",
        rescale_sigma=False,
    )
    return np.asarray(result) * GREY_LEVELS


BASELINES: tuple[Baseline, ...] = (
    Baseline("median", "SciPy", median, {"size_px": (3, 5, 7, 9, 13, 17, 23, 31)}),
    Baseline(
        "Lee",
        "Lee 1980",
        lee,
        {
            "size_px": (3, 5, 7, 9, 13, 17, 23, 31),
            "noise_std": (12.0, 17.0, 24.0, 34.0, 48.0, 68.0),
        },
        quick=True,
    ),
    Baseline(
        "Frost",
        "Frost et al. 1982",
        frost,
        {
            "size_px": (5, 7, 11, 15, 21, 29, 41),
            "damping": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
            "domain": (DISPLAY, AMPLITUDE),
        },
    ),
    Baseline(
        "SRAD",
        "Yu and Acton 2002",
        srad,
        {
            "iterations": (15, 30, 50, 100, 200, 400, 800),
            "step": (0.2, 0.5),
            "decay": (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.1, 0.2),
            "domain": (DISPLAY, AMPLITUDE),
        },
    ),
    Baseline(
        "TV",
        "Chambolle 2004, scikit-image",
        total_variation,
        {"weight": (0.15, 0.2, 0.27, 0.36, 0.48, 0.65, 0.9)},
    ),
    Baseline(
        "wavelet",
        "BayesShrink, scikit-image",
        wavelet,
        {
            "noise_std": (20.0, 30.0, 45.0, 70.0, 100.0, 140.0),
            "levels": (3, 4, 5, 6),
            "wavelet_name": ("db4", "sym8", "coif3"),
        },
        needs="pywt",
        quick=True,
    ),
    Baseline(
        "NLM",
        "Buades et al. 2005, scikit-image",
        non_local_means,
        {
            "strength": (10.0, 14.0, 18.0, 23.0, 30.0, 38.0, 50.0),
            "patch_px": (3, 5, 7, 9, 13),
            "reach_px": (5, 7, 11, 15, 19),
        },
    ),
    Baseline(
        "OBNLM",
        "Coupé et al. 2009",
        obnlm,
        {
            "strength": (0.5, 0.8, 1.2, 1.8, 2.6, 3.6),
            "patch_px": (3, 5, 7, 9, 13),
            "reach_px": (6, 9, 13),
        },
    ),
    Baseline(
        "BM3D",
        "Dabov et al. 2007, Mäkinen et al. 2020, bm3d package",
        bm3d_log,
        {
            "noise_std": (14.0, 20.0, 28.0, 40.0, 56.0, 80.0),
            "correlation_px": (0.0, 0.7, 1.0, 1.4, 2.0),
        },
        needs="bm3d",
    ),
)


def _apply(function: Callable[..., Array], parameters: dict[str, Any], image: NDArray[Any]) -> Grey:
    result = function(image.astype(np.float64), **parameters)
    return np.clip(result, 0.0, GREY_LEVELS).astype(np.float32)


def _local_moments(image: Array, size_px: int) -> tuple[Array, Array]:
    mean = np.asarray(ndimage.uniform_filter(image, size_px, mode="reflect"))
    square = np.asarray(ndimage.uniform_filter(image**2, size_px, mode="reflect"))
    return mean, np.maximum(square - mean**2, 0.0)


def _neighbours(image: Array, reach_px: int) -> Iterator[tuple[int, int, Array]]:
    padded = np.pad(image, reach_px, mode="symmetric")
    rows, columns = image.shape
    for row in range(2 * reach_px + 1):
        for column in range(2 * reach_px + 1):
            shifted = padded[row : row + rows, column : column + columns]
            yield row - reach_px, column - reach_px, shifted


def _shifted_pairs(
    a: Array, b: Array, reach_px: int
) -> Iterator[tuple[int, int, tuple[Array, Array]]]:
    for (row, column, first), (_, _, second) in zip(
        _neighbours(a, reach_px), _neighbours(b, reach_px), strict=True
    ):
        yield row, column, (first, second)


def _speckle_scale(image: Array, size_px: int = 15) -> float:
    """Coefficient of variation of the most even patches that are lit and not flat."""
    mean, variance = _local_moments(image, min(size_px, *image.shape))
    lit = (mean > 0.1 * mean.max()) & (variance > 1e-6 * mean**2)
    if not lit.any():
        return 1e-3
    return float(np.quantile(np.sqrt(variance[lit]) / mean[lit], 0.25))


_NEPERS_PER_GREY = 60.0 / GREY_LEVELS * np.log(10.0) / 20.0


def _opened(grey: Array, domain: str) -> Array:
    """Display grey levels as they are, or as amplitudes of a display of 60 dB."""
    return grey if domain == DISPLAY else np.asarray(np.exp(grey * _NEPERS_PER_GREY))


def _closed(image: Array, domain: str) -> Array:
    if domain == DISPLAY:
        return image
    return np.asarray(np.log(np.maximum(image, 1e-12)) / _NEPERS_PER_GREY)


STRONGER: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "Lee": {"noise_std": (96.0, 136.0, 190.0)},
    "wavelet": {"levels": (1, 2)},
    "NLM": {"strength": (65.0, 85.0, 110.0, 140.0)},
    "OBNLM": {"strength": (5.0, 7.0, 10.0, 14.0, 20.0)},
    "BM3D": {"noise_std": (112.0,)},
}
"""What independent noise of up to 0.75 of the brightness asks for beyond the grids of speckle."""


def for_strong_noise(baseline: Baseline) -> Baseline:
    """The same with the values of `STRONGER` in its grid."""
    wider = {
        name: tuple(sorted({*baseline.grid[name], *values}))
        for name, values in STRONGER.get(baseline.name, {}).items()
    }
    return replace(baseline, grid={**baseline.grid, **wider})

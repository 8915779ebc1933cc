"""Feature similarity (FSIM): phase congruency and gradient, where features are; never optimised.

Follows Zhang, Zhang, Mou, Zhang, IEEE Trans. Image Process. 20(8), 2011, with the phase congruency
of Kovesi, Videre 1(3), 1999, at the constants that the paper gives.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float64]

SCALES, ORIENTATIONS = 4, 4
SHORTEST_WAVELENGTH_PX, SCALE_STEP, BANDWIDTH = 6.0, 2.0, 0.55
ANGULAR_RATIO = 1.2
NOISE_DEVIATIONS = 2.0
TINY = 1e-4
PHASE_STABILITY, GRADIENT_STABILITY = 0.85, 160.0


def fsim(image: NDArray[Any], reference: NDArray[Any], *, data_range: float) -> float:
    """Feature similarity index of two grey images.

    Parameters
    ----------
    image, reference : ndarray, (rows, columns)
        Grey levels.
    data_range : float
        Span of possible values; the paper's constants hold for 255.

    Returns
    -------
    float
        1 where the two are equal.
    """
    if image.shape != reference.shape or image.ndim != 2:  # noqa: PLR2004 rows and columns
        raise ValueError(f"two images of one size are needed, not {image.shape}, {reference.shape}")
    factor = max(1, round(min(image.shape) / 256))
    a, b = (
        _downsampled(array.astype(np.float64) * (255.0 / data_range), factor)
        for array in (image, reference)
    )
    phase_a, phase_b = phase_congruency(a), phase_congruency(b)
    gradient_a, gradient_b = _scharr_magnitude(a), _scharr_magnitude(b)
    similarity = _similarity(phase_a, phase_b, PHASE_STABILITY) * _similarity(
        gradient_a, gradient_b, GRADIENT_STABILITY
    )
    weight = np.maximum(phase_a, phase_b)
    total = float(weight.sum())
    return float((similarity * weight).sum() / total) if total > 0 else 1.0


def phase_congruency(image: Array) -> Array:
    """Phase congruency, 0 to 1, of a (rows, columns) image, summed over four orientations."""
    spectrum = np.fft.fft2(image)
    radius, angle = _frequency_grid(image.shape[0], image.shape[1])
    radial = _log_gabors(radius)
    energy_total, amplitude_total = np.zeros(image.shape), np.zeros(image.shape)
    for orientation in range(ORIENTATIONS):
        energy, amplitude = _oriented_energy(spectrum, radial, _spread(angle, orientation))
        energy_total += energy
        amplitude_total += amplitude
    return np.asarray(energy_total / np.maximum(amplitude_total, TINY))


def _oriented_energy(
    spectrum: NDArray[np.complex128], radial: list[Array], spread: Array
) -> tuple[Array, Array]:
    filters = [gabor * spread for gabor in radial]
    responses = [np.fft.ifft2(spectrum * band) for band in filters]
    even = np.sum([response.real for response in responses], axis=0)
    odd = np.sum([response.imag for response in responses], axis=0)
    length = np.sqrt(even**2 + odd**2) + TINY
    mean_even, mean_odd = even / length, odd / length
    energy = np.zeros(spread.shape)
    for response in responses:
        energy += response.real * mean_even + response.imag * mean_odd
        energy -= np.abs(response.real * mean_odd - response.imag * mean_even)
    threshold = _noise_threshold(np.abs(responses[0]) ** 2, filters)
    amplitude = np.sum([np.abs(response) for response in responses], axis=0)
    return np.maximum(energy - threshold, 0.0), amplitude


def _noise_threshold(finest_power: Array, filters: list[Array]) -> float:
    mean_power = -float(np.median(finest_power)) / np.log(0.5)
    noise_power = mean_power / float((filters[0] ** 2).sum())
    kernels = [np.fft.ifft2(band).real * np.sqrt(band.size) for band in filters]
    own = float(sum((kernel**2).sum() for kernel in kernels))
    crossed = float(
        sum(
            (kernels[i] * kernels[j]).sum() for i in range(SCALES - 1) for j in range(i + 1, SCALES)
        )
    )
    energy_squared = 2 * noise_power * own + 4 * noise_power * crossed
    tau = np.sqrt(energy_squared / 2)
    mean, deviation = tau * np.sqrt(np.pi / 2), np.sqrt((2 - np.pi / 2) * tau**2)
    return float((mean + NOISE_DEVIATIONS * deviation) / 1.7)  # Kovesi's empirical rescaling


def _frequency_grid(rows: int, columns: int) -> tuple[Array, Array]:
    vertical, horizontal = (_centred_frequencies(count) for count in (rows, columns))
    y, x = np.meshgrid(vertical, horizontal, indexing="ij")
    radius = np.fft.ifftshift(np.hypot(x, y))
    angle = np.fft.ifftshift(np.arctan2(-y, x))
    radius[0, 0] = 1.0
    return radius, angle


def _centred_frequencies(count: int) -> Array:
    if count % 2:
        return np.arange(-(count - 1) / 2, (count - 1) / 2 + 1) / (count - 1)
    return np.arange(-count / 2, count / 2) / count


def _log_gabors(radius: Array) -> list[Array]:
    low_pass = 1.0 / (1.0 + (radius / 0.45) ** 30)
    low_pass[0, 0] = 1.0
    bands = []
    for scale in range(SCALES):
        centre = 1.0 / (SHORTEST_WAVELENGTH_PX * SCALE_STEP**scale)
        band = np.exp(-(np.log(radius / centre) ** 2) / (2 * np.log(BANDWIDTH) ** 2)) * low_pass
        band[0, 0] = 0.0
        bands.append(band)
    return bands


def _spread(angle: Array, orientation: int) -> Array:
    direction = orientation * np.pi / ORIENTATIONS
    sine = np.sin(angle) * np.cos(direction) - np.cos(angle) * np.sin(direction)
    cosine = np.cos(angle) * np.cos(direction) + np.sin(angle) * np.sin(direction)
    distance = np.abs(np.arctan2(sine, cosine))
    width = np.pi / ORIENTATIONS / ANGULAR_RATIO
    return np.asarray(np.exp(-(distance**2) / (2 * width**2)))


def _downsampled(image: Array, factor: int) -> Array:
    if factor == 1:
        return image
    averaged = ndimage.uniform_filter(image, size=factor, mode="reflect")
    return np.asarray(averaged[::factor, ::factor])


def _scharr_magnitude(image: Array) -> Array:
    kernel = np.array([[3.0, 0.0, -3.0], [10.0, 0.0, -10.0], [3.0, 0.0, -3.0]]) / 16.0
    horizontal = ndimage.convolve(image, kernel, mode="constant")
    vertical = ndimage.convolve(image, kernel.T, mode="constant")
    return np.asarray(np.hypot(horizontal, vertical))


def _similarity(a: Array, b: Array, stability: float) -> Array:
    return np.asarray((2 * a * b + stability) / (a**2 + b**2 + stability))

"""How close a despeckled image comes to a known speckle-free reference.

Every function takes the image first, the reference second and an explicit `data_range`, works in
float64 and returns one number. Nothing here is for images without a reference: see
:mod:`model.metrics.reference_free`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

Image = NDArray[Any]
"""(rows, columns) grey levels on the log-compressed display scale, any real dtype."""

MS_SSIM_MINIMUM_PX = 176
"""The smallest side on which five scales with an 11 x 11 window are defined."""


def psnr(image: Image, reference: Image, *, data_range: float) -> float:
    """Peak signal-to-noise ratio.

    Parameters
    ----------
    image, reference : ndarray, (rows, columns)
        Grey levels.
    data_range : float
        Span of possible values, 255 for 8-bit display.

    Returns
    -------
    float
        dB; infinite where the two are equal.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    a, b = _pair(image, reference)
    if np.array_equal(a, b):
        return float("inf")
    return float(peak_signal_noise_ratio(b, a, data_range=data_range))


def mse(image: Image, reference: Image) -> float:
    """Mean squared error, in grey levels squared.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    a, b = _pair(image, reference)
    return float(np.mean((a - b) ** 2))


def ssim(image: Image, reference: Image, *, data_range: float) -> float:
    """Structural similarity with the Gaussian window of the paper.

    Returns
    -------
    float
        1 where the two are equal.

    References
    ----------
    Wang, Bovik, Sheikh, Simoncelli, IEEE Trans. Image Process. 13(4), 2004.
    """
    a, b = _pair(image, reference)
    return float(
        structural_similarity(
            b,
            a,
            data_range=data_range,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def ms_ssim(image: Image, reference: Image, *, data_range: float) -> float:
    """Multi-scale structural similarity, five scales.

    Raises
    ------
    ValueError
        If a side is shorter than `MS_SSIM_MINIMUM_PX`.

    References
    ----------
    Wang, Simoncelli, Bovik, Asilomar Conf. Signals Systems Computers, 2003.
    """
    a, b = _pair(image, reference)
    if min(a.shape) < MS_SSIM_MINIMUM_PX:
        raise ValueError(f"MS-SSIM needs at least {MS_SSIM_MINIMUM_PX} px a side, not {a.shape}")
    value = multiscale_structural_similarity_index_measure(
        torch.from_numpy(a)[None, None],
        torch.from_numpy(b)[None, None],
        data_range=float(data_range),
    )
    return float(value)


def gmsd(image: Image, reference: Image, *, data_range: float) -> float:
    """Gradient magnitude similarity deviation; never optimised in training.

    Returns
    -------
    float
        0 where the two are equal; larger is worse.

    References
    ----------
    Xue, Zhang, Mou, Bovik, IEEE Trans. Image Process. 23(2), 2014.
    """
    a, b = (_halved(array) for array in _pair(image, reference))
    stability = 170.0 * (data_range / 255.0) ** 2
    gradient_a, gradient_b = (_prewitt_magnitude(array) for array in (a, b))
    similarity = (2 * gradient_a * gradient_b + stability) / (
        gradient_a**2 + gradient_b**2 + stability
    )
    return float(similarity.std())


def edge_strength(
    image: Image, reference: Image, *, share: float = 0.05, sigma_px: float = 1.0
) -> float:
    """Steepness of the reference's strongest edges that is left in the image.

    The image's gradient is projected on the direction of the reference's gradient at the
    `share` of pixels where that is steepest, so that speckle, which points anywhere, neither
    counts as an edge nor hides one.

    Parameters
    ----------
    image, reference : ndarray, (rows, columns)
        Grey levels.
    share : float
        Part of the pixels that are taken as edges, steepest first.
    sigma_px : float
        Scale of the Gaussian derivative in pixels.

    Returns
    -------
    float
        1 where edges are as steep as in the reference, 0 where they are gone, above 1 where
        they are overdrawn. `nan` where the reference is flat.
    """
    a, b = _pair(image, reference)
    rows_b, columns_b = _gaussian_gradient(b, sigma_px)
    magnitude = np.hypot(rows_b, columns_b)
    edges = magnitude >= max(float(np.quantile(magnitude, 1.0 - share)), 1e-9)
    if not edges.any():
        return float("nan")
    rows_a, columns_a = _gaussian_gradient(a, sigma_px)
    projected = (rows_a * rows_b + columns_a * columns_b)[edges] / magnitude[edges]
    return float(projected.mean() / magnitude[edges].mean())


def edge_preservation_index(image: Image, reference: Image) -> float:
    """Correlation of the Laplacian-filtered image with the Laplacian-filtered reference.

    Returns
    -------
    float
        1 where all fine detail agrees, near 0 where none does. `nan` where one of the two holds
        no detail at all.

    References
    ----------
    Sattar, Floreby, Salomonsson, Lövström, IEEE Trans. Image Process. 6(6), 1997.
    """
    details = []
    for array in _pair(image, reference):
        detail = ndimage.laplace(array, mode="reflect")
        details.append(detail - detail.mean())
    a, b = details
    energy = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / energy) if energy > 0 else float("nan")


def _pair(image: Image, reference: Image) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if image.shape != reference.shape or image.ndim != 2:  # noqa: PLR2004 rows and columns
        raise ValueError(f"two images of one size are needed, not {image.shape}, {reference.shape}")
    return image.astype(np.float64), reference.astype(np.float64)


def _halved(array: NDArray[np.float64]) -> NDArray[np.float64]:
    averaged = ndimage.uniform_filter(array, size=2, mode="reflect", origin=-1)
    return np.asarray(averaged[::2, ::2])


def _prewitt_magnitude(array: NDArray[np.float64]) -> NDArray[np.float64]:
    # Beyond the border is black, as in the authors' own code.
    rows = ndimage.prewitt(array, axis=0, mode="constant") / 3.0
    columns = ndimage.prewitt(array, axis=1, mode="constant") / 3.0
    return np.asarray(np.hypot(rows, columns))


def _gaussian_gradient(
    array: NDArray[np.float64], sigma_px: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows = ndimage.gaussian_filter(array, sigma_px, order=(1, 0), mode="reflect")
    columns = ndimage.gaussian_filter(array, sigma_px, order=(0, 1), mode="reflect")
    return rows, columns

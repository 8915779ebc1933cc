"""The display of a simulated scanner: levels to grey, and the grey that speckle has in the mean."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

from model.simulation.acquisition import Acquisition

_RICE_DB = (-40.0, -6.0, 0.0, 6.0, 12.0, 20.0)
"""Grid of coherent over diffuse power, dB."""
_QUANTILES, _PER_QUANTILE = 384, 160
_OVERSHOOT_SHARE = 0.35
"""See `mean_after_clipping`."""


def grey_map(level_db: Tensor, setting: Acquisition) -> Tensor:
    """Log level to display grey, 0..255, clipped; 0 dB is ordinary tissue."""
    u = (level_db / setting.dynamic_range_db + setting.tissue_level).clamp(0, 1)
    if setting.grey_bend:
        u = torch.expm1(setting.grey_bend * u) / float(np.expm1(setting.grey_bend))
    u = u**setting.grey_gamma
    if setting.grey_s_curve:
        u = u + setting.grey_s_curve * u * (1 - u) * (2 * u - 1)
    return 255 * u


def expected_grey(power_db: Tensor, rice_db: Tensor, setting: Acquisition) -> Tensor:
    """Mean of `grey_map` over the speckle, from mean power and coherent over diffuse power, dB.

    Exact up to its table: quadrature over the quantiles of the level, interpolated linearly.
    """
    fluctuation = _fluctuation_db(setting.looks, setting.look_mode, setting.look_correlation)
    low, high = -setting.dynamic_range_db - 25.0, setting.dynamic_range_db + 25.0
    levels = torch.linspace(low, high, 160)
    table = grey_map(levels[:, None, None] + fluctuation[None], setting).mean(-1)
    axis = torch.tensor(_RICE_DB)
    rice = rice_db.clamp(_RICE_DB[0], _RICE_DB[-1])
    upper = torch.bucketize(rice, axis).clamp(1, len(_RICE_DB) - 1)
    v = (rice - axis[upper - 1]) / (axis[upper] - axis[upper - 1])
    u = (power_db.clamp(low, high) - low) / (high - low) * (len(levels) - 1)
    i = u.floor().long().clamp(0, len(levels) - 2)
    t = u - i
    near = table[i, upper - 1] * (1 - t) + table[i + 1, upper - 1] * t
    far = table[i, upper] * (1 - t) + table[i + 1, upper] * t
    return near * (1 - v) + far * v


@lru_cache(maxsize=64)
def _fluctuation_db(looks: int, mode: str, correlation: float) -> Tensor:
    """Quantiles of the level around its mean power, dB, (Rice grid, quantiles)."""
    shared = correlation if looks > 1 else 0.0
    rows = []
    for rice_db, (own, common) in zip(_RICE_DB, _scatter(looks), strict=True):
        rice = 10 ** (rice_db / 10)
        diffuse = np.sqrt(1 - shared**2) * own
        diffuse += shared * common
        diffuse *= np.sqrt(0.5 / (1 + rice))
        field = diffuse[..., 0] + 1j * diffuse[..., 1] + np.sqrt(rice / (1 + rice))
        level = combine(torch.from_numpy(np.abs(field) ** 2), mode).numpy()
        rows.append(np.sort(level).reshape(_QUANTILES, -1).mean(axis=1))
    return torch.from_numpy(np.stack(rows)).float()


@lru_cache(maxsize=3)
def _scatter(looks: int) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Normal variables of each look and of all, (looks or 1, samples, 2), by Rice factor."""
    rng = np.random.default_rng(20_251)
    count = _QUANTILES * _PER_QUANTILE
    return [
        (rng.standard_normal((looks, count, 2)), rng.standard_normal((1, count, 2)))
        for _ in _RICE_DB
    ]


def combine(power: Tensor, mode: str) -> Tensor:
    """Average the looks, axis 0, and return the level in dB."""
    power = power.clamp_min(1e-12)
    if mode == "amplitude":
        return 20 * torch.log10(power.sqrt().mean(0))
    if mode == "power":
        return 10 * torch.log10(power.mean(0))
    return (10 * torch.log10(power)).mean(0)


def finish(image: Tensor, setting: Acquisition) -> Tensor:
    """Vendor-like smoothing, edge enhancement and resize, (rows, columns) float, not clipped."""
    if setting.smooth_sigma:
        image = _blur(image, setting.smooth_sigma)
    if setting.sharpen:
        image = image + setting.sharpen * (image - _blur(image, setting.sharpen_sigma))
    return resize(image, setting)


def mean_after_clipping(mean: Tensor, shown: Tensor) -> Tensor:
    """Mean of the display once the overshoots of edge enhancement are clipped to 0..255.

    A share of what a rectified normal variable would gain, its spread taken from one realisation
    nearby. The share is empirical: it leaves the mean within 0.3 grey levels over scanners. Beyond
    the rim of a sector nothing has a spread, and this is no mean.
    """
    spread = _blur((shown - mean) ** 2, 9.0).clamp_min(1e-4).sqrt()

    def rectified(value: Tensor) -> Tensor:
        u = value / spread
        density = torch.exp(-0.5 * u**2) / float(np.sqrt(2 * np.pi))
        return 0.5 * value * (1 + torch.erf(u / float(np.sqrt(2)))) + spread * density

    normal = rectified(mean) - rectified(mean - 255)
    return mean + _OVERSHOOT_SHARE * (normal - mean)


def resize(image: Tensor, setting: Acquisition) -> Tensor:
    """To the size that the setting asks for, bicubic, (rows, columns) float."""
    if setting.resize == 1.0:
        return image
    size = [max(16, round(side * setting.resize)) for side in image.shape]
    return F.interpolate(
        image[None, None], size, mode="bicubic", antialias=True, align_corners=False
    )[0, 0]


def jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """One generation of JPEG baseline."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def _blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian, replicated borders."""
    half = max(1, int(np.ceil(3 * sigma)))
    kernel = torch.exp(-0.5 * (torch.arange(-half, half + 1) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    out = F.pad(image[None, None], (half, half, half, half), mode="replicate")
    return F.conv2d(F.conv2d(out, kernel[None, None, :, None]), kernel[None, None, None, :])[0, 0]

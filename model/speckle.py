"""Physics of speckle: an echogenicity map becomes a B-mode image and its expectation.

Scatterers of random phase are summed by a complex, depth-varying point-spread function; the
envelope of the sum is compressed, mapped to grey, scan-converted, post-processed and quantised.
The target is not the map but the **expected display**: the mean of infinitely many images of the
same tissue with fresh scatterers. It keeps the resolution and the mean grey level of the system,
and loses only what is random.

Where scatterers gather in clusters (K-like statistics) the target is the mean over these too.

Sources: Wagner et al. 1983 (statistics of speckle), Goodman 2007 (Rician field of a reflector in
speckle), Loupas et al. 1989 (log compression), Jakeman and Pusey 1976 (clusters).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.simulation import display
from model.simulation.acquisition import Acquisition
from model.simulation.beam import Beam
from model.simulation.geometry import Geometry
from model.simulation.phantoms import Clusters, Phantom, smooth_field

_PERSISTENT = 0.6
"""Correlation of the scatterers of the frame before with those of this one."""
_CLUSTER_FIELDS = 4
"""Drawn to measure what a beam leaves of clusters."""
_GAUSS_HERMITE = ((-float(np.sqrt(3)), 1 / 6), (0.0, 2 / 3), (float(np.sqrt(3)), 1 / 6))
"""Standard deviations and weights of the rule of three points."""


@dataclass(frozen=True)
class Formed:
    """An image and its expectation.

    Attributes
    ----------
    noisy : ndarray, (rows, columns), uint8
        As a scanner would show it.
    target : ndarray, (rows, columns), float32, 0..255
        Expected display.
    inside : ndarray, (rows, columns), bool
        Insonated; the rest is black.
    """

    noisy: NDArray[np.uint8]
    target: NDArray[np.float32]
    inside: NDArray[np.bool_]


def form(
    phantom: Phantom, setting: Acquisition, rng: np.random.Generator, realisations: int = 1
) -> list[Formed]:
    """Image a phantom.

    Parameters
    ----------
    realisations : int
        Images of the same tissue and scanner with independent scatterers; they share the target.

    Returns
    -------
    list of Formed, one a realisation
    """
    generator = torch.Generator().manual_seed(int(rng.integers(2**63 - 1)))
    geometry = Geometry((phantom.diffuse_db.shape[0], phantom.diffuse_db.shape[1]), setting)
    power = 10 ** (geometry.sample_native(torch.from_numpy(phantom.diffuse_db)) / 10)
    reflector = geometry.sample_native(torch.from_numpy(phantom.specular))
    beam = Beam(setting, (power.shape[0], power.shape[1]))
    echo = beam.reflected(reflector) * _interface_phase(power.shape[1], generator)
    loss_db, gain_db = _gain(setting, rng, (power.shape[0], power.shape[1]))
    loss = 10 ** (loss_db / 20)
    floor = 10 ** (setting.noise_floor_db / 20)

    scattered = beam.mean_power(power)
    coherent = (echo.abs() * loss) ** 2
    expected = torch.zeros_like(power)
    for weight, factor in _cluster_levels(phantom.clusters, beam, rng):
        diffuse = factor * scattered * loss**2 + floor**2
        level_db = 10 * torch.log10(diffuse + coherent) + gain_db
        rice_db = 10 * torch.log10(coherent / diffuse + 1e-9)
        expected += weight * display.expected_grey(level_db, rice_db, setting)
    mean = display.finish(geometry.convert(expected), setting)
    insonated = display.resize(geometry.inside.float(), setting)
    inside = (insonated > 0.999).numpy()
    target: NDArray[np.float32] | None = None

    formed = []
    for _ in range(realisations):
        drawn = power * _gathered(phantom.clusters, power, rng) if phantom.clusters else power
        tissue = _Tissue(drawn.sqrt(), echo, loss, floor, gain_db)
        shown = _shown(tissue, beam, geometry, setting, generator)
        if target is None:
            displayed = mean
            if setting.sharpen:
                clipped = display.mean_after_clipping(mean, shown)
                displayed = torch.where(insonated > 0.5, clipped, mean)
            target = displayed.clamp(0, 255).numpy()
        noisy = shown.round().clamp(0, 255).to(torch.uint8).numpy()
        if setting.jpeg_quality:
            noisy = display.jpeg(noisy, setting.jpeg_quality)
        formed.append(Formed(noisy, target, inside))
    return formed


def _gathered(clusters: Clusters, like: Tensor, rng: np.random.Generator) -> Tensor:
    """Local power of scatterers in clusters, log-normal with a mean of 1, (rows, columns)."""
    field = torch.from_numpy(smooth_field(rng, (like.shape[0], like.shape[1]), clusters.length_px))
    power = 10 ** (clusters.spread_db / 10 * field)
    return power / power.mean()


def _cluster_levels(
    clusters: Clusters | None, beam: Beam, rng: np.random.Generator
) -> list[tuple[float, float]]:
    """Weights, and factors of the power in a beam, which averages over the clusters within it.

    What is left of their spread is taken from a few fields, and integrated over with three points.
    """
    if clusters is None:
        return [(1.0, 1.0)]
    even = torch.ones(beam.shape)
    fields = [_gathered(clusters, even, rng) for _ in range(_CLUSTER_FIELDS)]
    seen = torch.stack([beam.mean_power(field) for field in fields]) / beam.mean_power(even)
    level_db = 10 * torch.log10(seen)
    mean_db, spread_db = float(level_db.mean()), float(level_db.std())
    return [
        (weight, 10 ** ((mean_db + deviations * spread_db) / 10))
        for deviations, weight in _GAUSS_HERMITE
    ]


@dataclass(frozen=True)
class _Tissue:
    """What is insonated and how its echoes are received; all on the native grid."""

    amplitude: Tensor
    """Of the diffuse scatterers."""
    echo: Tensor
    """Complex echo of the reflectors."""
    loss: Tensor
    """Amplitude before the electronic noise is added."""
    floor: float
    """Amplitude of the electronic noise."""
    gain_db: Tensor
    """After it."""


def _shown(
    tissue: _Tissue,
    beam: Beam,
    geometry: Geometry,
    setting: Acquisition,
    generator: torch.Generator,
) -> Tensor:
    """One image with scatterers of its own, (rows, columns) float, not clipped."""
    frames = []
    first = _looks(tissue, setting, generator)
    for number in range(2 if setting.persistence else 1):
        scatterers = first
        if number:
            again = _looks(tissue, setting, generator)
            scatterers = [
                _PERSISTENT * a + float(np.sqrt(1 - _PERSISTENT**2)) * b
                for a, b in zip(first, again, strict=True)
            ]
        looks = []
        for field in scatterers:
            electronic = beam.received(_complex_normal(field.shape, generator))
            received = (beam.image(field) + tissue.echo) * tissue.loss
            looks.append(received + tissue.floor * electronic)
        level = display.combine(torch.stack(looks).abs() ** 2, setting.look_mode) + tissue.gain_db
        frames.append(display.grey_map(level, setting))
    kept = setting.persistence
    shown = frames[0] if len(frames) == 1 else (1 - kept) * frames[0] + kept * frames[1]
    return display.finish(geometry.convert(shown), setting)


def _looks(tissue: _Tissue, setting: Acquisition, generator: torch.Generator) -> list[Tensor]:
    """Scatterers that each look sees: in part the same, where looks are steered."""
    shape = tissue.amplitude.shape
    shared = setting.look_correlation if setting.looks > 1 else 0.0
    common = _complex_normal(shape, generator) if shared else 0.0
    own = float(np.sqrt(1 - shared**2))
    return [
        (shared * common + own * _complex_normal(shape, generator)) * tissue.amplitude
        for _ in range(setting.looks)
    ]


def _interface_phase(columns: int, generator: torch.Generator) -> Tensor:
    """Unit phasor that drifts slowly from column to column, (1, columns)."""
    drift = torch.cumsum(torch.randn(columns, generator=generator) * 0.05, 0)
    return torch.exp(1j * drift)[None, :]


def _complex_normal(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Circular complex normal field of unit mean power."""
    return torch.randn(shape, dtype=torch.complex64, generator=generator)


def _gain(
    setting: Acquisition, rng: np.random.Generator, shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Loss before the electronic noise and gain after it, dB, (rows, columns) each."""
    rows, columns = shape
    depth = torch.linspace(0, 1, rows)[:, None].expand(rows, columns)
    loss = -setting.attenuation_db * depth
    x = torch.linspace(0, 1, columns)[None, :]
    for _ in range(setting.shadows):
        centre, width = rng.uniform(0, 1), rng.uniform(0.01, 0.15)
        start, strength = rng.uniform(0, 0.8), rng.uniform(3, 25)
        across = torch.exp(-(((x - centre) / width) ** 4))
        loss = loss - strength * across * torch.sigmoid((depth - start) * 60)
    waves, shift = rng.uniform(1, 4), rng.uniform(0, 2 * np.pi)
    ripple = setting.tgc_ripple_db * torch.sin(2 * np.pi * waves * depth + shift)
    return loss, ripple

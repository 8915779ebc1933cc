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

import io
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

from model.phantoms import Clusters, Phantom, smooth_field

_RICE_DB = (-40.0, -6.0, 0.0, 6.0, 12.0, 20.0)
"""Grid of coherent over diffuse power, dB."""
_QUANTILES, _PER_QUANTILE = 384, 160
_PERSISTENT = 0.6
"""Correlation of the scatterers of the frame before with those of this one."""
_OVERSHOOT_SHARE = 0.35
"""See `_mean_after_clipping`."""
_CLUSTER_FIELDS = 4
"""Drawn to measure what a beam leaves of clusters."""
_GAUSS_HERMITE = ((-float(np.sqrt(3)), 1 / 6), (0.0, 2 / 3), (float(np.sqrt(3)), 1 / 6))
"""Standard deviations and weights of the rule of three points."""


@dataclass(frozen=True)
class Acquisition:
    """One scanner setting; everything about the image that is not tissue.

    Lengths are in samples of the native grid, angles in radians, levels in dB.
    """

    sector_angle: float = 0.0
    """Opening angle; 0 is a linear probe."""
    sector_depth: float = 0.3
    """Radius of the probe face over the depth of the image (sector only)."""
    native_scale: tuple[float, float] = (1.0, 1.0)
    """Native samples a display pixel: axial, lateral."""
    axial_sigma: float = 1.0
    lateral_sigma: tuple[float, float] = (2.0, 3.0)
    """Near and far, standard deviation of the amplitude profile."""
    carrier: float = 0.25
    """Cycles a sample."""
    defocus: tuple[float, float] = (0.0, 0.0)
    """Near and far: quadratic phase, at one lateral sigma or at the edge of the aperture."""
    side_lobes: float = 0.0
    """Amplitude of a wide lateral pedestal (Gaussian beam only)."""
    aperture_sine: float = 0.0
    """Sine of the half-angle that the aperture subtends; 0 is a Gaussian beam."""
    transmit_share: float = 1.0
    """Transmit aperture over receive aperture (aperture beam only)."""
    looks: int = 1
    look_mode: str = "amplitude"
    """How compounded looks are averaged: amplitude, power or log."""
    look_correlation: float = 0.0
    """Amplitude that the scatterers of every look share, as steered looks of one tissue do."""
    attenuation_db: float = 0.0
    """Not compensated, over the whole depth."""
    tgc_ripple_db: float = 0.0
    shadows: int = 0
    noise_floor_db: float = -60.0
    dynamic_range_db: float = 60.0
    tissue_level: float = 0.45
    """Where ordinary tissue falls in the display range, 0 to 1."""
    persistence: float = 0.0
    """Weight of the frame before, whose speckle has moved on in part."""
    grey_bend: float = 0.0
    """Natural logarithm of how much steeper the display is at white than at black: 0 is linear in
    dB, and as many nepers as the dynamic range has is linear in amplitude."""
    grey_gamma: float = 1.0
    grey_s_curve: float = 0.0
    smooth_sigma: float = 0.0
    sharpen: float = 0.0
    sharpen_sigma: float = 1.2
    jpeg_quality: int = 0
    """0 is none."""
    resize: float = 1.0

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Acquisition:
        """Draw a scanner at random, wide enough to cover what is in hospitals."""
        near = float(np.exp(rng.uniform(np.log(0.8), np.log(3.0))))
        return cls(
            sector_angle=float(rng.uniform(0.6, 1.7)) if rng.random() < 0.4 else 0.0,
            sector_depth=float(rng.uniform(0.05, 0.8)),
            native_scale=(float(rng.uniform(0.7, 1.25)), float(rng.uniform(0.45, 1.1))),
            axial_sigma=float(np.exp(rng.uniform(np.log(0.55), np.log(2.2)))),
            lateral_sigma=(near, near * float(rng.uniform(0.6, 1.9))),
            carrier=float(rng.uniform(0.05, 0.4)),
            defocus=(
                float(rng.choice([0.0, rng.normal(0, 0.6)])),
                float(rng.choice([0.0, rng.normal(0, 0.6)])),
            ),
            side_lobes=float(rng.choice([0.0, rng.uniform(0, 0.06)])),
            aperture_sine=float(rng.choice([0.0, rng.uniform(0.1, 0.5)])),
            transmit_share=float(rng.uniform(0.3, 1.0)),
            looks=int(rng.choice([1, 1, 1, 1, 2, 2, 3, 4])),
            look_mode=str(rng.choice(["amplitude", "power", "log"])),
            look_correlation=float(rng.choice([0.0, 0.3, 0.5, 0.7])),
            attenuation_db=float(rng.choice([0.0, rng.uniform(-6, 18)])),
            tgc_ripple_db=float(rng.choice([0.0, rng.uniform(0, 4)])),
            shadows=int(rng.choice([0, 0, 0, 1, 2, 4])),
            noise_floor_db=float(rng.uniform(-70, -18)),
            dynamic_range_db=float(rng.uniform(38, 82)),
            tissue_level=float(rng.uniform(0.2, 0.7)),
            persistence=float(rng.choice([0.0, 0.0, 0.0, 0.0, rng.uniform(0.2, 0.5)])),
            grey_gamma=float(np.exp(rng.normal(0, 0.2))),
            grey_s_curve=float(rng.choice([0.0, rng.uniform(-0.4, 0.6)])),
            smooth_sigma=float(rng.choice([0.0, 0.0, rng.uniform(0.3, 1.1)])),
            sharpen=float(rng.choice([0.0, 0.0, rng.uniform(0.2, 0.9)])),
            sharpen_sigma=float(rng.uniform(0.8, 2.0)),
            jpeg_quality=int(rng.choice([0, 0, 0, int(rng.integers(55, 97))])),
            resize=float(rng.choice([1.0, 1.0, rng.uniform(0.6, 1.0), rng.uniform(1.0, 2.2)])),
        )

    def widened(self, rng: np.random.Generator) -> Acquisition:
        """The same scanner with beam and display drawn from what real images show.

        There grains grow with brightness, as on displays between decibels and amplitude, are longer
        across the beam, and their histogram leans to the bright side (`benchmarks/real_grain.py`).
        """
        near = float(np.exp(rng.uniform(np.log(1.2), np.log(4.5))))
        return replace(
            self,
            axial_sigma=float(np.exp(rng.uniform(np.log(0.7), np.log(2.6)))),
            lateral_sigma=(near, near * float(rng.uniform(0.6, 1.9))),
            grey_bend=float(rng.uniform(0.5, 4.5)),
            tissue_level=float(rng.uniform(0.35, 0.8)),
        )


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


def point_spread(
    setting: Acquisition, lateral_sigma: float, defocus: float | None = None
) -> Tensor:
    """Complex point-spread function, (rows, columns), unit energy, odd size.

    Parameters
    ----------
    setting : Acquisition
        Pulse and beam.
    lateral_sigma : float
        Standard deviation of the amplitude profile; that of the Gaussian with as wide a spectrum
        where the beam comes from an aperture.
    defocus : float, optional
        Quadratic phase; the near one of the setting where none is given.
    """
    phase = setting.defocus[0] if defocus is None else defocus
    beam = _aperture_beam if setting.aperture_sine else _gaussian_beam
    psf = beam(setting, lateral_sigma, phase)
    return psf / psf.abs().pow(2).sum().sqrt()


def _gaussian_beam(setting: Acquisition, lateral_sigma: float, defocus: float) -> Tensor:
    """Gaussian pulse times Gaussian beam, with a pedestal of side lobes."""
    half_z = max(3, int(np.ceil(3.2 * setting.axial_sigma)))
    half_x = max(4, int(np.ceil(3.2 * lateral_sigma * (2.0 if setting.side_lobes else 1.0))))
    z = torch.arange(-half_z, half_z + 1, dtype=torch.float32)[:, None]
    x = torch.arange(-half_x, half_x + 1, dtype=torch.float32)[None, :]
    lateral = torch.exp(-0.5 * (x / lateral_sigma) ** 2)
    if setting.side_lobes:
        lobe = torch.cos(np.pi * x / (1.5 * lateral_sigma))
        lateral = lateral + setting.side_lobes * lobe * torch.exp(
            -0.5 * (x / (2.4 * lateral_sigma)) ** 2
        )
    phase = 2 * np.pi * setting.carrier * z + defocus * (x / lateral_sigma) ** 2
    return torch.exp(-0.5 * (z / setting.axial_sigma) ** 2) * lateral * torch.exp(1j * phase)


def _aperture_beam(setting: Acquisition, lateral_sigma: float, defocus: float) -> Tensor:
    """Beam of an unapodised array, from its support in spatial frequency (Walker and Trahey 1998).

    The pulse fixes the radius, the two-way aperture (transmit convolved with receive) the angle.
    Side lobes, the curved wavefront and, with a defocus, the X of an array come with it.
    """
    half_z = max(6, int(np.ceil(5 * setting.axial_sigma)))
    half_x = max(8, int(np.ceil(6 * lateral_sigma)))
    fz = torch.fft.fftfreq(4 * half_z + 1)[:, None] + setting.carrier
    fx = torch.fft.fftfreq(4 * half_x + 1)[None, :]
    edge = np.sqrt(6.0) / (2 * np.pi * lateral_sigma)  # of a triangle as wide as the Gaussian
    stretched = fx * setting.aperture_sine * setting.carrier / edge
    radius = torch.sqrt(fz**2 + stretched**2)
    sine = stretched / radius.clamp_min(1e-6) / setting.aperture_sine
    receive, transmit = (
        2 / (1 + setting.transmit_share),
        2 * setting.transmit_share / (1 + setting.transmit_share),
    )
    overlap = torch.minimum(
        torch.full_like(sine, min(receive, transmit)), (receive + transmit) / 2 - sine.abs()
    )
    aperture = overlap.clamp_min(0) * (fz > 0)
    pulse = torch.exp(-0.5 * (2 * np.pi * setting.axial_sigma * (radius - setting.carrier)) ** 2)
    spectrum = aperture * pulse * torch.exp(1j * 3.0 * defocus * sine**2)
    psf = torch.fft.fftshift(torch.fft.ifft2(spectrum))
    z = torch.arange(-2 * half_z, 2 * half_z + 1)[:, None]
    modulated: Tensor = psf * torch.exp(2j * np.pi * setting.carrier * z)
    return modulated[half_z : 3 * half_z + 1, half_x : 3 * half_x + 1]


def _transfer(kernel: Tensor, shape: tuple[int, int]) -> Tensor:
    """Transfer function of a complex or real kernel of odd size, for fields of (rows, columns)."""
    over_z, over_x = (max(0, k - n + 1) // 2 for k, n in zip(kernel.shape, shape, strict=True))
    kernel = kernel[over_z : kernel.shape[0] - over_z, over_x : kernel.shape[1] - over_x]
    kz, kx = kernel.shape
    padded = torch.zeros(shape, dtype=kernel.dtype)
    padded[:kz, :kx] = kernel
    padded = torch.roll(padded, (-(kz // 2), -(kx // 2)), (0, 1))
    transfer: Tensor = torch.fft.fft2(padded)
    return transfer


def _convolved(field: Tensor, *transfers: Tensor) -> list[Tensor]:
    """Circular convolutions of one field, (rows, columns) complex each."""
    spectrum = torch.fft.fft2(field)
    return [torch.fft.ifft2(spectrum * transfer) for transfer in transfers]


@lru_cache(maxsize=3)
def _scatter(looks: int) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Normal variables of each look and of all, (looks or 1, samples, 2), by Rice factor."""
    rng = np.random.default_rng(20_251)
    count = _QUANTILES * _PER_QUANTILE
    return [
        (rng.standard_normal((looks, count, 2)), rng.standard_normal((1, count, 2)))
        for _ in _RICE_DB
    ]


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
        level = _combine(torch.from_numpy(np.abs(field) ** 2), mode).numpy()
        rows.append(np.sort(level).reshape(_QUANTILES, -1).mean(axis=1))
    return torch.from_numpy(np.stack(rows)).float()


def _combine(power: Tensor, mode: str) -> Tensor:
    """Average the looks, axis 0, and return the level in dB."""
    power = power.clamp_min(1e-12)
    if mode == "amplitude":
        return 20 * torch.log10(power.sqrt().mean(0))
    if mode == "power":
        return 10 * torch.log10(power.mean(0))
    return (10 * torch.log10(power)).mean(0)


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


class Scanner:
    """Geometry of one image: display pixels to native samples and back."""

    def __init__(self, shape: tuple[int, int], setting: Acquisition) -> None:
        rows, columns = shape
        scale_z, scale_x = setting.native_scale
        self.native = (round(rows * scale_z), round(columns * scale_x))
        z = torch.linspace(-1, 1, rows)[:, None].expand(rows, columns)
        x = torch.linspace(-1, 1, columns)[None, :].expand(rows, columns)
        native_z = torch.linspace(-1, 1, self.native[0])[:, None].expand(*self.native)
        native_x = torch.linspace(-1, 1, self.native[1])[None, :].expand(*self.native)
        if setting.sector_angle:
            half = setting.sector_angle / 2
            face = setting.sector_depth
            aspect = columns / rows
            depth = face * np.cos(half) + (z + 1) / 2 * (1 + face * (1 - np.cos(half)))
            across = x / 2 * aspect
            radius, angle = torch.hypot(depth, across), torch.atan2(across, depth)
            self.to_display = torch.stack(((angle / half), (radius - face) * 2 - 1), -1)
            r = face + (native_z + 1) / 2
            back_z = (r * torch.cos(native_x * half) - face * np.cos(half)) / (
                1 + face * (1 - np.cos(half))
            ) * 2 - 1
            back_x = r * torch.sin(native_x * half) * 2 / aspect
            self.to_native = torch.stack((back_x, back_z), -1)
        else:
            self.to_display = torch.stack((x, z), -1)
            self.to_native = torch.stack((native_x, native_z), -1)
        self.inside = (self.to_display.abs() <= 1).all(-1)

    def sample_native(self, image: Tensor) -> Tensor:
        """Display grid to native grid, bilinear, (rows, columns) float."""
        return _sample(image, self.to_native)

    def convert(self, image: Tensor) -> Tensor:
        """Native grid to display grid, bilinear; 0 outside the insonated area."""
        return _sample(image, self.to_display) * self.inside


def _sample(image: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(
        image[None, None], grid[None], mode="bilinear", padding_mode="border", align_corners=True
    )[0, 0]


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
    scanner = Scanner((phantom.diffuse_db.shape[0], phantom.diffuse_db.shape[1]), setting)
    power = 10 ** (scanner.sample_native(torch.from_numpy(phantom.diffuse_db)) / 10)
    reflector = scanner.sample_native(torch.from_numpy(phantom.specular))
    beam = _Beam(setting, (power.shape[0], power.shape[1]))
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
        expected += weight * expected_grey(level_db, rice_db, setting)
    mean = _finish(scanner.convert(expected), setting)
    inside = (_resize(scanner.inside.float(), setting) > 0.999).numpy()
    target: NDArray[np.float32] | None = None

    formed = []
    for _ in range(realisations):
        drawn = power * _gathered(phantom.clusters, power, rng) if phantom.clusters else power
        tissue = _Tissue(drawn.sqrt(), echo, loss, floor, gain_db)
        shown = _display(tissue, beam, scanner, setting, generator)
        if target is None:
            target = (_mean_after_clipping(mean, shown) if setting.sharpen else mean).numpy()
            target = np.clip(target, 0, 255)
        noisy = shown.round().clamp(0, 255).to(torch.uint8).numpy()
        if setting.jpeg_quality:
            noisy = _jpeg(noisy, setting.jpeg_quality)
        formed.append(Formed(noisy, target, inside))
    return formed


def _gathered(clusters: Clusters, like: Tensor, rng: np.random.Generator) -> Tensor:
    """Local power of scatterers in clusters, log-normal with a mean of 1, (rows, columns)."""
    field = torch.from_numpy(smooth_field(rng, (like.shape[0], like.shape[1]), clusters.length_px))
    power = 10 ** (clusters.spread_db / 10 * field)
    return power / power.mean()


def _cluster_levels(
    clusters: Clusters | None, beam: _Beam, rng: np.random.Generator
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


def _display(
    tissue: _Tissue,
    beam: _Beam,
    scanner: Scanner,
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
        level = _combine(torch.stack(looks).abs() ** 2, setting.look_mode) + tissue.gain_db
        frames.append(grey_map(level, setting))
    kept = setting.persistence
    shown = frames[0] if len(frames) == 1 else (1 - kept) * frames[0] + kept * frames[1]
    return _finish(scanner.convert(shown), setting)


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


class _Beam:
    """The point-spread function, blended from near to far with depth."""

    def __init__(self, setting: Acquisition, shape: tuple[int, int]) -> None:
        near, far = (
            point_spread(setting, sigma, phase)
            for sigma, phase in zip(setting.lateral_sigma, setting.defocus, strict=True)
        )
        wide = max(near.shape[1], far.shape[1])
        self.shape = shape
        self.near, self.far = (F.pad(p, ((wide - p.shape[1]) // 2,) * 2) for p in (near, far))
        depth = torch.linspace(0, 1, shape[0])[:, None]
        overlap = float((self.near * self.far.conj()).real.sum())
        norm = ((1 - depth) ** 2 + depth**2 + 2 * overlap * depth * (1 - depth)).sqrt()
        self.weight_near, self.weight_far = (1 - depth) / norm, depth / norm
        pulse = near[:, near.shape[1] // 2, None]
        self._band = _transfer(pulse / pulse.abs().pow(2).sum().sqrt(), shape)
        self._near, self._far = _transfer(self.near, shape), _transfer(self.far, shape)

    def received(self, noise: Tensor) -> Tensor:
        """White electronic noise in the band of the receiver, (rows, columns)."""
        return _convolved(noise, self._band)[0]

    def image(self, scatterers: Tensor) -> Tensor:
        """Complex echo of complex scatterers, (rows, columns)."""
        near, far = _convolved(scatterers, self._near, self._far)
        return self.weight_near * near + self.weight_far * far

    def mean_power(self, power: Tensor) -> Tensor:
        """Mean of ``|image|^2`` over scatterers of this power: exact, the blend included."""
        kernels = self.near.abs() ** 2, self.far.abs() ** 2, (self.near * self.far.conj()).real
        parts = _convolved(power, *(_transfer(kernel, self.shape) for kernel in kernels))
        near, far, both = (part.real for part in parts)
        blend = self.weight_near**2 * near + self.weight_far**2 * far
        return (blend + 2 * self.weight_near * self.weight_far * both).clamp_min(1e-12)

    def reflected(self, reflector: Tensor) -> Tensor:
        """Amplitude of coherent reflectors, (rows, columns).

        An interface follows the wavefront, so that its echoes add in phase along it.
        """
        kernels = (self.near.abs() / self.near.abs().sum(), self.far.abs() / self.far.abs().sum())
        parts = _convolved(reflector, *(_transfer(kernel, self.shape) for kernel in kernels))
        near, far = (part.real for part in parts)
        return 3.0 * (self.weight_near * near + self.weight_far * far).clamp_min(0)


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


def _finish(image: Tensor, setting: Acquisition) -> Tensor:
    """Vendor-like smoothing, edge enhancement and resize, (rows, columns) float, not clipped."""
    if setting.smooth_sigma:
        image = _blur(image, setting.smooth_sigma)
    if setting.sharpen:
        image = image + setting.sharpen * (image - _blur(image, setting.sharpen_sigma))
    return _resize(image, setting)


def _mean_after_clipping(mean: Tensor, shown: Tensor) -> Tensor:
    """Mean of the display once the overshoots of edge enhancement are clipped to 0..255.

    A share of what a rectified normal variable would gain, its spread taken from one realisation
    nearby. The share is empirical: it leaves the mean within 0.3 grey levels over scanners.
    """
    spread = _blur((shown - mean) ** 2, 9.0).clamp_min(1e-4).sqrt()

    def rectified(value: Tensor) -> Tensor:
        u = value / spread
        density = torch.exp(-0.5 * u**2) / float(np.sqrt(2 * np.pi))
        return 0.5 * value * (1 + torch.erf(u / float(np.sqrt(2)))) + spread * density

    normal = rectified(mean) - rectified(mean - 255)
    return mean + _OVERSHOOT_SHARE * (normal - mean)


def _resize(image: Tensor, setting: Acquisition) -> Tensor:
    if setting.resize == 1.0:
        return image
    size = [max(16, round(side * setting.resize)) for side in image.shape]
    return F.interpolate(
        image[None, None], size, mode="bicubic", antialias=True, align_corners=False
    )[0, 0]


def _blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian, replicated borders."""
    half = max(1, int(np.ceil(3 * sigma)))
    kernel = torch.exp(-0.5 * (torch.arange(-half, half + 1) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    out = F.pad(image[None, None], (half, half, half, half), mode="replicate")
    return F.conv2d(F.conv2d(out, kernel[None, None, :, None]), kernel[None, None, None, :])[0, 0]


def _jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """One generation of JPEG baseline."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))

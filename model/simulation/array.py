"""An independent test of what was learnt: images of a linear array, from its delays up.

Nothing here is ever trained on, and nothing of `model.speckle` is used: its point-spread
functions are drawn, these are *computed*, element by element, from the exact travel times between
element and scatterer. What both share is the tissue (`model.simulation.phantoms`) and the aim, the
expected display.

The image is linear in the scatterers: between zones of depth the point-spread function is
blended, so that the mean intensity of the echo is known exactly, and with it, through the law of
the intensity (exponential for one look, a sum of such for compounded ones), the mean of the
display.

Sources: Szabo, *Diagnostic Ultrasound Imaging*, 2nd ed. 2014, ch. 6, 7 and 10 (arrays, focusing,
beamforming); Selfridge, Kino, Khuri-Yakub, Appl. Phys. Lett. 37, 1980 (element directivity);
Goodman, *Speckle Phenomena in Optics*, 2007, ch. 3 (sums of correlated speckle intensities).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, special, stats

from model.simulation import phantoms
from model.simulation.phantoms import Phantom
from model.simulation.scene import Scene

Real = NDArray[np.float32]
Complex = NDArray[np.complex64]

FREQUENCIES = 25
"""Samples of the pulse's spectrum; their spacing puts its next replica outside the window."""
PULSE_REACH, BEAM_REACH = 2.6, 4.0
"""Half the window of a point-spread function: pulse lengths, and wavelengths times F-number."""
POINTS_A_SAMPLE = 8
"""Point scatterers in each native sample: well above ten in any resolution cell."""
LARGEST_CELL = 5.0
"""Widest resolution cell at full depth, native samples."""
_ABOVE_NOISE_DB = np.arange(-60.0, 61.0, 4.0)
"""Levels of the mean power above the electronic noise, for which effective looks are tabulated."""
LESION_CONTRASTS_DB = (-12.0, -6.0, -3.0, 3.0, 6.0, 12.0)
LESION_RADII_PX = (20.0, 14.0, 10.0, 7.0, 5.0, 4.0, 3.0, 2.0)


@dataclass(frozen=True)
class Probe:
    """A linear array and how it is driven."""

    elements: int = 128
    """Of the whole array: the widest aperture there is."""
    pitch_mm: float = 0.3
    centre_mhz: float = 5.0
    bandwidth: float = 0.6
    """Of the two-way pulse, -6 dB, as a share of the centre frequency."""
    focus_mm: float = 30.0
    """Depth of the fixed transmit focus."""
    transmit_f_number: float = 2.5
    receive_f_number: float = 1.5
    """Kept over depth, as far as the array is wide enough."""
    apodisation: Literal["rect", "hann"] = "hann"
    """Of the receive aperture; transmission is not apodised."""
    sound_mm_us: float = 1.54

    @property
    def wavelength_mm(self) -> float:
        """At the centre frequency."""
        return self.sound_mm_us / self.centre_mhz

    @property
    def pulse_mm(self) -> float:
        """Full width at half maximum of the two-way pulse's envelope, in depth."""
        return float(2 * np.log(2) / np.pi * self.sound_mm_us / (self.bandwidth * self.centre_mhz))

    def beam_mm(self, depth_mm: float) -> float:
        """Lateral resolution of the receive aperture at a depth: wavelength times F-number."""
        width = self.elements * self.pitch_mm
        return self.wavelength_mm * max(self.receive_f_number, depth_mm / width)


@dataclass(frozen=True)
class Imaging:
    """A probe and everything between its echoes and the display."""

    probe: Probe = field(default_factory=Probe)
    start_mm: float = 10.0
    """Depth of the first row."""
    spacing_mm: tuple[float, float] = (0.12, 0.2)
    """Native samples: axial and lateral."""
    native_scale: tuple[float, float] = (1.0, 1.0)
    """Native samples a display pixel: axial, lateral."""
    steering: tuple[float, ...] = (0.0,)
    """Angle of each compounded look from the axis, radians."""
    sector_angle: float = 0.0
    """Opening angle, radians; 0 shows the rectangle of a linear scan."""
    sector_face: float = 0.3
    """Radius of the sector's face over the depth of the image."""
    zones: int = 5
    """Depths at which the point-spread function is computed."""
    noise_db: float = -50.0
    """Electronic noise, dB of the echo of ordinary tissue."""
    dynamic_range_db: float = 60.0
    tissue_level: float = 0.45
    """Where the mean power of ordinary tissue falls in the display's range, 0 to 1."""

    @classmethod
    def draw(cls, rng: np.random.Generator, side: int) -> Imaging:
        """Draw a scanner whose resolution cell spans pixels as on real ones."""
        centre = float(np.exp(rng.uniform(np.log(3.0), np.log(12.0))))
        probe = Probe(
            elements=int(rng.integers(64, 193)),
            pitch_mm=1.54 / centre * float(rng.uniform(0.5, 1.1)),
            centre_mhz=centre,
            bandwidth=float(rng.uniform(0.35, 0.8)),
            transmit_f_number=float(rng.uniform(1.8, 5.0)),
            receive_f_number=float(rng.uniform(1.0, 2.5)),
            apodisation="hann" if rng.random() < 0.6 else "rect",
        )
        axial = probe.pulse_mm / float(rng.uniform(1.2, 3.5))
        depth = side * axial
        start = depth * float(rng.uniform(0.08, 0.4))
        lateral = probe.beam_mm(start + depth / 2) / float(rng.uniform(2.2, 4.2))
        lateral = max(lateral, probe.beam_mm(start + depth) / LARGEST_CELL)
        looks = int(rng.choice([1, 1, 1, 2, 3, 5]))
        spread = float(rng.uniform(0.1, 0.3))
        return cls(
            replace(probe, focus_mm=start + depth * float(rng.uniform(0.2, 0.8))),
            start,
            (axial, lateral),
            native_scale=(float(rng.uniform(0.8, 1.2)), float(rng.uniform(0.7, 1.1))),
            steering=tuple(np.linspace(-spread, spread, looks)) if looks > 1 else (0.0,),
            sector_angle=float(rng.uniform(0.7, 1.5)) if rng.random() < 0.3 else 0.0,
            sector_face=float(rng.uniform(0.1, 0.7)),
            noise_db=float(rng.uniform(-60, -25)),
            dynamic_range_db=float(rng.uniform(45, 75)),
            tissue_level=float(rng.uniform(0.3, 0.65)),
        )


def point_response(
    probe: Probe, depth_mm: float, angle: float, z_mm: Real, x_mm: Real
) -> NDArray[np.complex128]:
    """Echo that one pixel receives of a scatterer displaced from it.

    Parameters
    ----------
    probe : Probe
    depth_mm : float
        Of the pixel. Reception is focused on it, transmission at the probe's focus.
    angle : float
        Of the line on which sound goes to the pixel and back, radians from the axis.
    z_mm : ndarray, (rows,)
        Depth of the scatterer below the pixel.
    x_mm : ndarray, (columns,)
        Lateral place of the scatterer beside the pixel.

    Returns
    -------
    ndarray, (rows, columns), complex
        Analytic signal at the pixel's travel time.
    """
    offset = (np.arange(probe.elements) - (probe.elements - 1) / 2) * probe.pitch_mm
    element = offset - depth_mm * np.tan(angle)
    across = x_mm[None, :, None] - element
    distance = np.hypot(across, (depth_mm + z_mm)[:, None, None])
    sine = across / distance
    directivity = (
        np.sinc(probe.pitch_mm / probe.wavelength_mm * sine) * np.sqrt(1 - sine**2)
    ).reshape(-1, probe.elements)

    focus_x = (probe.focus_mm - depth_mm) * np.tan(angle)
    sent_early = np.hypot(focus_x - element, probe.focus_mm) - probe.focus_mm / np.cos(angle)
    heard_late = np.hypot(element, depth_mm)
    travel = depth_mm / np.cos(angle)
    weights = (
        _aperture(offset, probe.focus_mm / probe.transmit_f_number, "rect"),
        _aperture(offset, depth_mm / probe.receive_f_number, probe.apodisation),
    )

    half = probe.bandwidth * probe.centre_mhz
    spectrum = probe.centre_mhz + half * np.linspace(-1.25, 1.25, FREQUENCIES)
    wave_numbers = 2 * np.pi * spectrum / probe.sound_mm_us
    pulse = np.exp(-np.log(2) * (2 * (spectrum - probe.centre_mhz) / half) ** 2)
    path = distance.reshape(-1, probe.elements)
    phasor = directivity * np.exp(-1j * wave_numbers[0] * path)
    step = np.exp(-1j * (wave_numbers[1] - wave_numbers[0]) * path)
    echo = np.zeros(len(path), dtype=np.complex128)
    for strength, k in zip(pulse, wave_numbers, strict=True):
        delays = np.stack(
            (
                weights[0] * np.exp(1j * k * (sent_early + travel)),
                weights[1] * np.exp(1j * k * heard_late),
            ),
            axis=1,
        )
        sent, heard = (phasor @ delays).T
        echo += strength * sent * heard
        phasor *= step
    return echo.reshape(len(z_mm), len(x_mm))


def _aperture(
    offset: NDArray[np.floating[Any]], width_mm: float, shape: str
) -> NDArray[np.floating[Any]]:
    place = offset / width_mm
    window = 0.5 + 0.5 * np.cos(2 * np.pi * place) if shape == "hann" else np.ones_like(place)
    return np.where(np.abs(place) <= 0.5, window, 0.0)


class Beams:
    """Every point-spread function of one image, on its native grid.

    Parameters
    ----------
    setting : Imaging
    shape : (rows, columns)
        Native samples.

    Attributes
    ----------
    padded : (rows, columns)
        Native samples with the tissue beside the image that is heard in it.
    kernels : ndarray, (looks, zones, rows, columns), complex64
        Point-spread functions, each of unit energy.
    gain : ndarray, (rows, 1), float32
        Time-gain compensation: even tissue is equally bright at, and between, the zones.
    """

    def __init__(self, setting: Imaging, shape: tuple[int, int]) -> None:
        probe, (axial, lateral) = setting.probe, setting.spacing_mm
        rows, columns = shape
        deepest = setting.start_mm + rows * axial
        half_z = int(np.ceil(PULSE_REACH * probe.pulse_mm / axial))
        half_x = int(np.ceil(BEAM_REACH * probe.beam_mm(deepest) / lateral))
        z = np.arange(-half_z, half_z + 1, dtype=np.float32) * np.float32(axial)
        x = np.arange(-half_x, half_x + 1, dtype=np.float32) * np.float32(lateral)
        centres = np.linspace(0, rows - 1, setting.zones)
        kernels = np.stack(
            [
                [
                    # A scatterer before the pixel is a pixel behind the scatterer.
                    point_response(probe, setting.start_mm + c * axial, angle, z, x)[::-1, ::-1]
                    for c in centres
                ]
                for angle in setting.steering
            ]
        )
        kernels /= np.sqrt((np.abs(kernels) ** 2).sum((2, 3), keepdims=True))
        self.kernels: Complex = kernels.astype(np.complex64)
        self.shape, self.margin = shape, (half_z, half_x)
        self.padded = (
            fft.next_fast_len(rows + 2 * half_z, real=True),
            fft.next_fast_len(columns + 2 * half_x, real=True),
        )
        row = np.arange(self.padded[0]) - half_z
        self.weights: Real = np.stack(
            [np.interp(row, centres, share) for share in np.eye(setting.zones)]
        ).astype(np.float32)
        self.gain: Real = np.ones((rows, 1), dtype=np.float32)
        even = np.einsum("raa->r", self.covariance()).real / len(setting.steering)
        self.gain = (1 / np.sqrt(even)).astype(np.float32)[:, None]

    def echo(self, scatterers: Complex) -> Complex:
        """Complex echo of each look.

        Parameters
        ----------
        scatterers : ndarray, `padded`, complex64

        Returns
        -------
        ndarray, (looks, rows, columns), complex64
        """
        zones = [fft.fft2(weight[:, None] * scatterers) for weight in self.weights]
        looks = [
            self._cut(
                fft.ifft2(
                    sum(
                        zone * fft.fft2(self._centred(kernel))
                        for zone, kernel in zip(zones, kernels, strict=True)
                    )
                )
            )
            for kernels in self.kernels
        ]
        return np.asarray(self.gain * np.stack(looks), dtype=np.complex64)

    def mean_power(self, power: Real) -> Real:
        """Expectation of ``|echo|^2`` over scatterers of this power, averaged over the looks.

        Parameters
        ----------
        power : ndarray, `padded`, float32

        Returns
        -------
        ndarray, (rows, columns), float32
        """
        total = 0.0
        for first in range(len(self.weights)):
            for second in (first, first + 1):
                if second == len(self.weights):
                    continue
                product = self.kernels[:, first] * self.kernels[:, second].conj()
                kernel = product.real.mean(0) * (1 if first == second else 2)
                both = (self.weights[first] * self.weights[second])[:, None] * power
                total = total + fft.rfft2(both) * fft.rfft2(self._centred(kernel))
        heard = self._cut(fft.irfft2(total, self.padded))
        return np.asarray(self.gain**2 * np.maximum(heard, 0), dtype=np.float32)

    def covariance(self) -> NDArray[np.complex128]:
        """Of the looks over even tissue of unit power, (rows, looks, looks)."""
        looks, zones = self.kernels.shape[:2]
        flat = self.kernels.reshape(looks, zones, -1).astype(np.complex128)
        overlap = np.einsum("adk,bek->dabe", flat, flat.conj())
        weights = self.weights[:, self.margin[0] : self.margin[0] + self.shape[0]]
        weights = weights * self.gain[:, 0]
        return np.asarray(np.einsum("dr,er,dabe->rab", weights, weights, overlap))

    def pad(self, image: Real) -> Real:
        """Continue an image of native samples beyond its borders, to `padded`."""
        before = self.margin
        after = (
            self.padded[0] - self.shape[0] - before[0],
            self.padded[1] - self.shape[1] - before[1],
        )
        return np.pad(image, ((before[0], after[0]), (before[1], after[1])), mode="symmetric")

    def _centred(self, kernel: NDArray[Any]) -> NDArray[Any]:
        whole = np.zeros(self.padded, dtype=kernel.dtype)
        whole[: kernel.shape[0], : kernel.shape[1]] = kernel
        return np.roll(whole, (-self.margin[0], -self.margin[1]), (0, 1))

    def _cut(self, image: NDArray[Any]) -> NDArray[Any]:
        (top, left), (rows, columns) = self.margin, self.shape
        return image[top : top + rows, left : left + columns]


class Display:
    """Where native samples are shown.

    Attributes
    ----------
    native : (rows, columns)
        Native samples.
    inside : ndarray, (rows, columns), bool
        Insonated pixels.
    """

    def __init__(self, setting: Imaging, shape: tuple[int, int]) -> None:
        rows, columns = shape
        self.native = (
            round(rows * setting.native_scale[0]),
            round(columns * setting.native_scale[1]),
        )
        z, x = np.mgrid[0 : 1 : rows * 1j, -0.5 : 0.5 : columns * 1j]
        depth, across = np.mgrid[0 : 1 : self.native[0] * 1j, -0.5 : 0.5 : self.native[1] * 1j]
        if setting.sector_angle:
            opening, face = setting.sector_angle, setting.sector_face
            top = face * np.cos(opening / 2)
            height = 1 + face - top
            down, beside = top + z * height, x * height * columns / rows
            z, x = np.hypot(down, beside) - face, np.arctan2(beside, down) / opening
            radius, turn = depth + face, across * opening
            depth = (radius * np.cos(turn) - top) / height
            across = radius * np.sin(turn) / height * rows / columns
        self.inside = (z >= 0) & (z <= 1) & (np.abs(x) <= 0.5)
        self._shown_at = (z * (self.native[0] - 1), (x + 0.5) * (self.native[1] - 1))
        self._lies_at = (depth * (rows - 1), (across + 0.5) * (columns - 1))

    def to_native(self, image: Real) -> Real:
        """Tissue at every native sample, linear interpolation."""
        return np.asarray(ndimage.map_coordinates(image, self._lies_at, order=1, mode="nearest"))

    def show(self, image: Real) -> Real:
        """Native samples at every pixel, linear interpolation; black outside."""
        shown = ndimage.map_coordinates(image, self._shown_at, order=1, mode="nearest")
        return np.asarray(np.where(self.inside, shown, 0), dtype=np.float32)


@dataclass(frozen=True)
class Tissue:
    """What of a phantom a scanner sees, prepared once for many frames.

    Attributes
    ----------
    power : ndarray, `Beams.padded`, float32
        Mean power of the scatterers.
    """

    setting: Imaging
    display: Display
    beams: Beams
    power: Real

    @classmethod
    def of(cls, phantom: Phantom, setting: Imaging) -> Tissue:
        """Take a phantom; its reflectors are rough here, they add to the scatterers' power."""
        rows, columns = phantom.diffuse_db.shape
        display = Display(setting, (rows, columns))
        beams = Beams(setting, display.native)
        power: Real = np.asarray(10 ** (phantom.diffuse_db / 10) + phantom.specular**2, np.float32)
        return cls(setting, display, beams, beams.pad(display.to_native(power)))

    def target(self) -> Real:
        """Expected display, (rows, columns), 0..255."""
        mean = self.beams.mean_power(self.power)
        noise = 10 ** (self.setting.noise_db / 10)
        above_db = 10 * np.log10(np.maximum(mean / noise, 10 ** (_ABOVE_NOISE_DB[0] / 10)))
        # Independent parts of the looks at every depth, once their own electronic noise is added.
        parts = np.linalg.eigvalsh(self.beams.covariance())[:, None]
        by_level = effective_looks(10 ** (_ABOVE_NOISE_DB[:, None] / 10) * parts + 1)
        step_db = _ABOVE_NOISE_DB[1] - _ABOVE_NOISE_DB[0]
        depth = np.broadcast_to(np.arange(len(mean))[:, None], mean.shape)
        place = (depth, (above_db - _ABOVE_NOISE_DB[0]) / step_db)
        looks = ndimage.map_coordinates(by_level, place, order=1, mode="nearest")
        level_db = 10 * np.log10(mean + noise)
        return self.display.show(expected_grey(level_db, looks, self.setting))

    def scatterers(self, rng: np.random.Generator) -> Complex:
        """Point scatterers of unit power, each somewhere in its sample, `Beams.padded`."""
        place = rng.random((POINTS_A_SAMPLE, *self.beams.padded), dtype=np.float32)
        phase = np.exp(np.complex64(2j * np.pi) * place)
        return np.asarray(phase.sum(0) / np.sqrt(POINTS_A_SAMPLE), dtype=np.complex64)

    def image(self, scatterers: Complex, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Show scatterers of unit power under fresh electronic noise, (rows, columns), uint8."""
        echo = self.beams.echo(np.sqrt(self.power) * scatterers)
        parts = rng.standard_normal((2, *echo.shape), dtype=np.float32)
        pulse = self.beams.kernels[0, 0][:, self.beams.margin[1]]
        noise = ndimage.convolve1d(parts[0] + 1j * parts[1], pulse, axis=1, mode="wrap")
        noise /= np.sqrt(2 * (np.abs(pulse) ** 2).sum())
        heard = echo + 10 ** (self.setting.noise_db / 20) * noise
        level_db = 10 * np.log10((np.abs(heard) ** 2).mean(0) + np.float32(1e-12))
        shown = self.display.show(grey_map(level_db, self.setting))
        return shown.round().astype(np.uint8)


def grey_map(level_db: Real, setting: Imaging) -> Real:
    """Level in dB to grey, linear and clipped to 0..255; 0 dB is ordinary tissue's mean power."""
    share = level_db / setting.dynamic_range_db + setting.tissue_level
    return np.asarray(255 * np.clip(share, 0, 1), dtype=np.float32)


def expected_grey(level_db: Real, looks: NDArray[np.floating[Any]], setting: Imaging) -> Real:
    """Mean of `grey_map` over speckle of this mean power and effective number of looks.

    Quadrature over the quantiles of the gamma law, which is that of uncorrelated looks of equal
    power.

    Parameters
    ----------
    level_db : ndarray, (rows, columns)
        Mean power, dB.
    looks : ndarray, (rows, columns)
        1 or more; see `effective_looks`.
    """
    counts = np.geomspace(1.0, max(float(looks.max()), 1.01), 12)
    quantiles = (np.arange(512) + 0.5) / 512
    levels = np.linspace(-setting.dynamic_range_db - 30, setting.dynamic_range_db + 20, 240)
    table = np.stack(
        [
            grey_map(
                levels[:, None] + 10 * np.log10(stats.gamma.ppf(quantiles, n) / n), setting
            ).mean(1)
            for n in counts
        ]
    )
    row = np.log(np.maximum(looks, 1)) / np.log(counts[-1]) * (len(counts) - 1)
    column = (level_db - levels[0]) / (levels[1] - levels[0])
    found = ndimage.map_coordinates(table, (row, column), order=1, mode="nearest")
    return np.asarray(found, dtype=np.float32)


def effective_looks(powers: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """How many looks of equal power would have the mean in decibels of these.

    The intensity of correlated looks is a sum of independent exponentials, with the eigenvalues of
    their covariance for means (Goodman 2007, 3.3). The mean of its logarithm is an integral over
    its Laplace transform, that of a gamma law digamma(n) - ln(n).

    Parameters
    ----------
    powers : ndarray, (..., looks)
        Eigenvalues of the covariance, of any scale.

    Returns
    -------
    ndarray, (...), float64
        From 1, where one has all the power, to their number.
    """
    shares = np.maximum(powers, 0) / powers.sum(-1, keepdims=True)
    log_t = np.arange(-20, 30, 0.1)
    t = np.exp(log_t)
    transform = np.ones((*shares.shape[:-1], len(t)))
    for look in range(shares.shape[-1]):
        transform /= 1 + shares[..., look, None] * t
    mean_log = 0.1 * (np.exp(-t) - transform).sum(-1)
    count = np.geomspace(1, max(shares.shape[-1], 1.01), 500)
    found = np.interp(mean_log, special.digamma(count) - np.log(count), count)
    return np.asarray(found, dtype=np.float64)


def array_scenes(count: int, seed: int, side: int = 256) -> list[Scene]:
    """Scenes of the array: procedural anatomy and graded lesions in turn.

    Parameters
    ----------
    count : int
        Number of scenes; the first are the same whatever the count.
    seed : int
        At least `model.data.VALIDATION_SEED`, by convention; no training draws from here.
    side : int
        Rows and columns, pixels.

    Returns
    -------
    list of Scene
        Labelled ``inside`` and, with lesions, ``background``.
    """
    scenes = []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        setting = Imaging.draw(rng, side)
        if index % 2:
            kind = "lesions"
            setting = replace(setting, sector_angle=0.0, noise_db=min(setting.noise_db, -40.0))
            phantom = phantoms.graded_lesions(
                rng, (side, side), LESION_CONTRASTS_DB, LESION_RADII_PX
            )
        else:
            kind = "procedural"
            phantom = phantoms.draw(rng, (side, side))
        tissue = Tissue.of(phantom, setting)
        noisy = tissue.image(tissue.scatterers(rng), rng)
        labels = {"inside": tissue.display.inside, **phantom.labels}
        name = f"array-{kind}-{index:03d}"
        scenes.append(Scene(noisy, tissue.target(), name, labels, phantom.lesions))
    return scenes

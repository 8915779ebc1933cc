"""The setting of a simulated scanner: everything about an image that is not tissue."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


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

"""Cines of one tissue, with a reference a frame: still or moving, under the same or fresh speckle.

Speckle is no noise over time: as long as the scatterers are the same, it stays, and it moves with
the tissue. It renews itself only as far as scatterers leave the slice that is imaged.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from model.simulation.array import Complex, Imaging, Tissue
from model.simulation.phantoms import Phantom
from model.simulation.scene import Scene


def cine(
    phantom: Phantom,
    setting: Imaging,
    rng: np.random.Generator,
    frames: int,
    *,
    velocity_px: tuple[float, float] = (0.0, 0.0),
    correlation: float = 0.0,
) -> list[Scene]:
    """Image a tissue again and again.

    Parameters
    ----------
    phantom : Phantom
        As it lies in the first frame. Lesions and labels are not moved, so they are left out.
    frames : int
        How many.
    velocity_px : (float, float)
        Motion of the tissue from frame to frame, down and to the right, pixels; in a sector,
        along and across its lines by as many native samples as a linear scan would take.
    correlation : float, 0..1
        Of the scatterers with those of the frame before, on top of the motion: 0 is fresh speckle
        in each frame, 1 keeps every scatterer.

    Returns
    -------
    list of Scene, one a frame
        Labelled ``inside``. The electronic noise is fresh in each.
    """
    start = Tissue.of(phantom, setting)
    scatterers = start.scatterers(rng)
    native, shown = np.subtract(start.display.native, 1), np.subtract(phantom.diffuse_db.shape, 1)
    step = np.asarray(velocity_px) * native / shown
    scenes = []
    for index in range(frames):
        if index:
            fresh = np.sqrt(1 - correlation**2) * start.scatterers(rng)
            scatterers = np.complex64(correlation) * _moved(scatterers, step) + fresh
        power = ndimage.shift(start.power, index * step, order=1, mode="nearest")
        tissue = replace(start, power=power)
        noisy = tissue.image(scatterers.astype(np.complex64), rng)
        labels = {"inside": start.display.inside}
        scenes.append(Scene(noisy, tissue.target(), f"frame-{index:03d}", labels))
    return scenes


def _moved(scatterers: Complex, step: NDArray[np.float64]) -> Complex:
    """Move white scatterers by fractions of a sample, round the borders, without any loss."""
    spectrum = ndimage.fourier_shift(fft.fft2(scatterers).astype(np.complex128), step)
    return np.asarray(fft.ifft2(spectrum), dtype=np.complex64)

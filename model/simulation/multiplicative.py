"""Multiplicative noise on a clean image, as most despeckling papers add it.

``y = clip(x (1 + sqrt(v) n), 0, 1)`` with ``n ~ N(0, 1)`` independent in every pixel and ``v`` the
level. MATLAB's ``imnoise(x, "speckle", v)`` differs in drawing ``n`` uniformly. It is no physical
speckle: that is correlated, Rayleigh before compression and close to additive after it, see
:mod:`model.speckle`. It is here so that results can be set beside published ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEVELS = (0.1, 0.25, 0.5, 0.75)
"""Variances ``v`` that results are reported at."""


def add(image: NDArray[np.uint8], level: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Multiply every pixel by an independent factor of mean 1 and variance `level`.

    Parameters
    ----------
    image : ndarray, (rows, columns), uint8
        Taken as clean.
    level : float
        Variance of the factor, 0 or more; 0 returns the image as it is.
    rng : numpy.random.Generator
        Source of the noise; the same state gives the same image.

    Returns
    -------
    ndarray, (rows, columns), uint8
        Rounded to grey levels. Black stays black.

    Raises
    ------
    ValueError
        The level is negative or not finite.
    """
    if not 0 <= level < float("inf"):
        raise ValueError(f"noise level {level} is no variance: it must be 0 or more")
    factor = 1 + np.sqrt(level) * rng.standard_normal(image.shape)
    return np.asarray(np.clip(image * factor, 0, 255).round().astype(np.uint8))

"""What a despeckler removed although it stands out: put back into what a student learns from.

A network that seeks the mean flattens a faint lesion that is less likely than a whim of the
speckle. Here the removed part is looked at in bands of the size of lesions; where a band exceeds
what it does nearby by a multiple of its own spread, it goes back. That is the hard threshold of
wavelet denoising (Donoho and Johnstone 1994), applied to the residual. It keeps some whims of the
speckle as well: `docs/decisions.md` has the figures of the trade.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

BANDS = ((8.0, 1.4), (5.0, 2.0))
"""Standard deviation of the blur, pixels, and the threshold in spreads; coarse to fine."""
_NEARBY_PX, _SOFTNESS, _LEAST_SPREAD = 32.0, 0.15, 0.1
_GRID_PX = 4
_MEAN_TO_SPREAD = float(np.sqrt(np.pi / 2))
"""Of a normal variable: standard deviation over mean modulus."""


def put_back(noisy: NDArray[Any], despeckled: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return to an image what was removed of it significantly.

    Parameters
    ----------
    noisy : ndarray, (rows, columns)
        Grey levels of the speckled image; sides are multiples of 4 pixels.
    despeckled : ndarray, (rows, columns), float32
        Grey levels.

    Returns
    -------
    ndarray, (rows, columns), float32
    """
    removed = _averaged(noisy.astype(np.float32) - despeckled)
    returned = np.zeros_like(removed)
    for sigma, threshold in BANDS:
        band = _blurred(removed - returned, sigma)
        spread = _MEAN_TO_SPREAD * _blurred(np.abs(band), _NEARBY_PX) + _LEAST_SPREAD
        excess = (np.abs(band) / spread - threshold) / _SOFTNESS
        returned += band / (1 + np.exp(-np.clip(excess, -30, 30)))
    fine = ndimage.zoom(returned, _GRID_PX, order=1, mode="nearest", grid_mode=True)
    return np.asarray(despeckled + fine, dtype=np.float32)


def _averaged(image: NDArray[np.float32]) -> NDArray[np.float32]:
    rows, columns = (side // _GRID_PX for side in image.shape)
    blocks = image[: rows * _GRID_PX, : columns * _GRID_PX]
    return np.asarray(blocks.reshape(rows, _GRID_PX, columns, _GRID_PX).mean((1, 3)))


def _blurred(image: NDArray[np.float32], sigma_px: float) -> NDArray[np.float32]:
    return np.asarray(ndimage.gaussian_filter(image, sigma_px / _GRID_PX, mode="reflect"))

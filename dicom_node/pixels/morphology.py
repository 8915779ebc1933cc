"""Binary morphology on images: windows, dilation, components, hulls.

Square structuring elements (Serra, 1982) by box sums and shifted copies: at the radii of `regions`
they take a tenth of the time of SciPy's filters, and some are asked for in every frame.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
"""(rows, columns), bool."""


def box_sum(values: NDArray[np.generic], radius: int) -> NDArray[np.int32]:
    """Sum over the (2 radius + 1) square window around each pixel, zero outside the image."""
    rows, columns = values.shape
    padded = np.zeros((rows + 2 * radius + 1, columns + 2 * radius + 1), np.int32)
    padded[radius + 1 : radius + 1 + rows, radius + 1 : radius + 1 + columns] = values
    total = padded.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)
    width = 2 * radius + 1
    return np.asarray(
        total[width:, width:]
        - total[:-width, width:]
        - total[width:, :-width]
        + total[:-width, :-width]
    )


def dilate(mask: Mask, radius: int) -> Mask:
    """Every pixel within `radius` rows and columns of a set one."""
    if radius > 2:  # noqa: PLR2004 - from here on box sums are faster
        return np.asarray(box_sum(mask, radius) > 0)
    for _ in range(radius):
        grown = mask.copy()
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        mask = grown.copy()
        mask[:, 1:] |= grown[:, :-1]
        mask[:, :-1] |= grown[:, 1:]
    return mask


def erode(mask: Mask, radius: int) -> Mask:
    """Every pixel whose window is set as far as it lies inside the image."""
    return ~dilate(~mask, radius)


def opened(mask: Mask, radius: int) -> Mask:
    """What a (2 radius + 1) square can cover; removes everything thinner."""
    return dilate(erode(mask, radius), radius) & mask


def window_extremes(
    image: NDArray[np.uint8], radius: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Smallest and largest value in the window around each pixel, edge values repeated."""
    low = high = np.pad(image, radius, mode="edge")
    for axis in (0, 1):
        size = image.shape[axis]
        windows = [
            (slice(shift, shift + size), slice(None))[:: 1 - 2 * axis]
            for shift in range(2 * radius + 1)
        ]
        low = np.minimum.reduce([low[window] for window in windows])
        high = np.maximum.reduce([high[window] for window in windows])
    return low, high


def components(mask: Mask) -> list[Mask]:
    """The 4-connected components of a small mask, the largest first."""
    labels, count = ndimage.label(mask)
    found = [labels == label for label in range(1, count + 1)]
    return sorted(found, key=lambda component: -int(component.sum()))


def flood(seed: Mask, within: Mask, steps: int) -> Mask:
    """What `steps` steps to the four neighbours can reach from `seed` inside `within`."""
    return np.asarray(ndimage.binary_dilation(seed & within, iterations=steps, mask=within))


def filled(mask: Mask) -> Mask:
    """Pixels that have set ones on both sides in their row, and in their column.

    A sector keeps its arcs: what lies above the upper or below the lower one has no set
    pixel beyond it.
    """
    return _spans(mask) & _spans(mask.T).T


def _spans(mask: Mask) -> Mask:
    left = np.logical_or.accumulate(mask, axis=1)
    right = np.logical_or.accumulate(mask[:, ::-1], axis=1)[:, ::-1]
    return np.asarray(left & right)

"""What can be said of a despeckled image without knowing what it should look like.

Smoothing everything away makes most of these figures perfect. They are read together with those
that suffer from it (gradients kept, structure in what was removed), and never instead of a
reference. Grey levels are on the log-compressed display scale throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize, special

Image = NDArray[Any]
Mask = NDArray[np.bool_]
DB_PER_NEPER = 10.0 / np.log(10.0)
"""Decibels of an intensity ratio e."""


def enl(image: Image, mask: Mask) -> float:
    """Equivalent number of looks ``(mean / std)^2`` of a homogeneous patch, as displayed.

    On a log-compressed image this is not the number of looks: it depends on where the display
    puts black. It compares methods on one image, and no more. Where the display's decibels are
    known, :func:`looks` gives the real figure.

    Returns
    -------
    float
        Infinite for a flat patch.
    """
    values = image[mask].astype(np.float64)
    variance = float(values.var())
    return float(values.mean() ** 2 / variance) if variance > 0 else float("inf")


def looks(image: Image, mask: Mask, *, grey_per_db: float) -> float:
    """Number of looks of fully developed speckle with the log-domain spread of a patch.

    The logarithm of an L-look intensity has the variance trigamma(L), whatever its mean; one
    look gives 5.57 dB.

    Parameters
    ----------
    image : ndarray, (rows, columns)
        Grey levels, linear in dB.
    mask : ndarray of bool, (rows, columns)
        Homogeneous tissue.
    grey_per_db : float
        Grey levels a decibel: 255 / 60 for a map of 60 dB.

    Returns
    -------
    float
        Infinite for a flat patch.

    References
    ----------
    Goodman, *Speckle Phenomena in Optics*, 2007; Xie, Pierce, Ulaby, IEEE TGRS 40(3), 2002.
    """
    values = image[mask].astype(np.float64)
    variance = float((values / grey_per_db / DB_PER_NEPER).var())
    if variance <= 0:
        return float("inf")

    def excess(logarithm: float) -> float:
        return float(special.polygamma(1, np.exp(logarithm))) - variance

    return float(np.exp(optimize.brentq(excess, np.log(1e-3), np.log(1e9))))


def ssi(noisy: Image, image: Image, mask: Mask) -> float:
    """Speckle suppression index: coefficient of variation left, relative to the input's.

    Returns
    -------
    float
        Below 1 where speckle has fallen. `nan` where the input is flat or black.

    References
    ----------
    Sheng and Xia, IGARSS 1996.
    """
    before, after = noisy[mask].astype(np.float64), image[mask].astype(np.float64)
    if before.std() == 0 or before.mean() == 0 or after.mean() == 0:
        return float("nan")
    return float((after.std() / after.mean()) * (before.mean() / before.std()))


def smpi(noisy: Image, image: Image, mask: Mask) -> float:
    """Speckle suppression and mean preservation index ``(1 + |shift|) std_out / std_in``.

    Returns
    -------
    float
        Small where speckle has fallen and the mean has not moved; a mean that moved by one grey
        level doubles it.

    References
    ----------
    Shamsoddini and Trinder, ISPRS Arch. XXXVIII-7B, 2010.
    """
    before, after = noisy[mask].astype(np.float64), image[mask].astype(np.float64)
    if before.std() == 0:
        return float("nan")
    return float((1 + abs(after.mean() - before.mean())) * after.std() / before.std())


def mean_shift(before: Image, after: Image, mask: Mask | None = None) -> float:
    """Mean of `after` minus mean of `before` in grey levels, signed."""
    where = np.ones(before.shape, dtype=bool) if mask is None else mask
    return float(after[where].astype(np.float64).mean() - before[where].astype(np.float64).mean())


def gradient_kept(noisy: Image, image: Image, *, scale_px: float = 2.0) -> float:
    """Steepness of an image's large edges that is left after despeckling.

    Edges are the steepest twentieth of the input at a scale at which speckle has mostly averaged
    out. The output's gradient at the same scale is projected on them.

    Returns
    -------
    float
        Near 1 where large edges stay; `nan` for a flat input.
    """
    before = _gradient(noisy, scale_px)
    after = _gradient(image, scale_px)
    magnitude = np.hypot(*before)
    edges = magnitude >= max(float(np.quantile(magnitude, 0.95)), 1e-9)
    if not edges.any():
        return float("nan")
    projected = (before[0] * after[0] + before[1] * after[1])[edges] / magnitude[edges]
    return float(projected.mean() / magnitude[edges].mean())


def residual_correlation(noisy: Image, image: Image) -> float:
    """Pearson correlation of what was removed with what was kept.

    Additive log-domain speckle is independent of brightness, so the ideal is 0; contrast that
    was taken from the image shows as a positive figure.

    References
    ----------
    After the method noise of Buades, Coll, Morel, Multiscale Model. Simul. 4(2), 2005.
    """
    return _pearson(
        noisy.astype(np.float64) - image.astype(np.float64),
        image.astype(np.float64),
    )


def residual_structure(noisy: Image, image: Image, *, scale_px: float = 2.0) -> float:
    """How much of the output's large edges is found in what was removed.

    The gradient of the removed part, at a scale above the speckle's, projected on the gradient of
    the kept part where that is steepest, as a share of it. An edge that is gone altogether is not
    among them: `gradient_kept` looks at the input's.

    Returns
    -------
    float
        0 where no kept edge was touched, positive where edges were flattened, negative where they
        were overdrawn; `nan` for a flat output.
    """
    kept = _gradient(image, scale_px)
    removed = _gradient(noisy.astype(np.float64) - image.astype(np.float64), scale_px)
    magnitude = np.hypot(*kept)
    edges = magnitude >= max(float(np.quantile(magnitude, 0.95)), 1e-9)
    if not edges.any():
        return float("nan")
    projected = (kept[0] * removed[0] + kept[1] * removed[1])[edges] / magnitude[edges]
    return float(projected.mean() / magnitude[edges].mean())


def flicker(frames: Sequence[Image], mask: Mask | None = None) -> float:
    """Temporal standard deviation over frames of one still scene, averaged over pixels.

    Parameters
    ----------
    frames : sequence of ndarray, each (rows, columns)
        At least two, each with fresh speckle.
    mask : ndarray of bool, (rows, columns), optional
        Where to look.

    Returns
    -------
    float
        Grey levels.
    """
    if len(frames) < 2:  # noqa: PLR2004
        raise ValueError("flicker needs at least two frames")
    deviation = np.stack([frame.astype(np.float64) for frame in frames]).std(axis=0, ddof=1)
    return float(deviation[mask].mean() if mask is not None else deviation.mean())


def grid_energy(
    method: Callable[[NDArray[np.uint8]], Image],
    image: NDArray[np.uint8],
    *,
    period_px: int = 4,
    margin_px: int = 32,
) -> float:
    """How much the output depends on where the image lies on the network's own grid.

    The image is cut from each of the ``period_px ** 2`` offsets in turn; the outputs, laid over
    one another, should be one picture. A network that works on unshuffled pixels may not be
    equivariant to shifts by less than its period, and then draws a grid.

    Parameters
    ----------
    method : callable
        uint8 (rows, columns) to grey levels of the same shape.
    image : ndarray, (rows, columns), uint8
        Wider than twice the margin and the period.
    period_px : int
        The grid's period.
    margin_px : int
        Border left out, where the cut itself changes the output.

    Returns
    -------
    float
        Root mean square, in grey levels, of the outputs' spread at each pixel.
    """
    rows, columns = (side - period_px for side in image.shape)
    if min(rows, columns) <= 2 * (margin_px + period_px):
        raise ValueError(f"an image of {image.shape} leaves nothing within {margin_px} px margins")
    outputs = []
    for row in range(period_px):
        for column in range(period_px):
            cut = np.ascontiguousarray(image[row : row + rows, column : column + columns])
            top, left = margin_px + period_px - row, margin_px + period_px - column
            height, width = (
                rows - 2 * (margin_px + period_px),
                columns - 2 * (margin_px + period_px),
            )
            outputs.append(method(cut)[top : top + height, left : left + width])
    spread = np.stack([output.astype(np.float64) for output in outputs]).var(axis=0)
    return float(np.sqrt(spread.mean()))


def homogeneous_patches(
    image: Image, *, size_px: int = 32, count: int = 8, lowest: float = 20.0, highest: float = 200.0
) -> list[Mask]:
    """Patches of the *input* that look most like one tissue, for figures without a reference.

    Chosen before any method has run, so that no method chooses its own ground: non-overlapping
    patches with a mean between `lowest` and `highest` and almost no clipped pixel, those first
    whose large-scale gradient is least.

    Returns
    -------
    list of ndarray of bool, (rows, columns)
        At most `count`, fewer where an image has fewer.
    """
    pixels = image.astype(np.float64)
    slope = np.hypot(*_gradient(pixels, size_px / 6))
    found: list[tuple[float, int, int]] = []
    for row in range(0, pixels.shape[0] - size_px + 1, size_px):
        for column in range(0, pixels.shape[1] - size_px + 1, size_px):
            patch = pixels[row : row + size_px, column : column + size_px]
            clipped = float(((patch <= 1) | (patch >= 254)).mean())  # noqa: PLR2004
            if lowest <= patch.mean() <= highest and clipped < 0.02 and patch.std() > 0:  # noqa: PLR2004
                steepness = slope[row : row + size_px, column : column + size_px].mean()
                found.append((float(steepness), row, column))
    masks: list[Mask] = []
    for _, row, column in sorted(found)[:count]:
        mask = np.zeros(pixels.shape, dtype=bool)
        mask[row : row + size_px, column : column + size_px] = True
        masks.append(mask)
    return masks


def _gradient(array: Image, scale_px: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    pixels = array.astype(np.float64)
    rows = ndimage.gaussian_filter(pixels, scale_px, order=(1, 0), mode="reflect")
    columns = ndimage.gaussian_filter(pixels, scale_px, order=(0, 1), mode="reflect")
    return rows, columns


def _pearson(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])

"""Whether a reader still tells two tissues apart: contrast, detectability, lesions, edges.

Regions come as boolean masks. All grey levels are on the log-compressed display scale, where a
difference of means is a contrast in decibels times the display's grey levels per decibel.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Image = NDArray[Any]
Mask = NDArray[np.bool_]

SHELL_PX = 0.75
"""Half the thickness of the shells over which an edge's profile is averaged."""


class LesionRegions(Protocol):
    """What a lesion's measurement needs to know of it."""

    @property
    def mask(self) -> Mask:
        """Boolean (rows, columns): the inside."""
        ...

    @property
    def ring(self) -> Mask:
        """Boolean (rows, columns): tissue around it, at the same depth."""
        ...


def gcnr(image: Image, inside: Mask, outside: Mask, *, bins: int = 100) -> float:
    """Generalised contrast-to-noise ratio: one minus the overlap of two regions' histograms.

    Parameters
    ----------
    image : ndarray, (rows, columns)
        Grey levels. Any monotone grey map gives the same figure, but for the binning.
    inside, outside : ndarray of bool, (rows, columns)
        The two regions; neither may be empty.
    bins : int
        Equal bins over the joint range of the two regions.

    Returns
    -------
    float
        0 for two tissues that look the same, 1 where one threshold tells them apart without
        error. Small regions are told apart by chance, too, the more so the fewer independent grains
        lie in them and the finer their levels are: how much differs from method to method.

    References
    ----------
    Rodriguez-Molares et al., IEEE Trans. Ultrason. Ferroelectr. Freq. Control 67(4), 2020.
    """
    a, b = _regions(image, inside, outside)
    lowest, highest = min(a.min(), b.min()), max(a.max(), b.max())
    if highest <= lowest:
        return 0.0
    counts_a, _ = np.histogram(a, bins=bins, range=(lowest, highest))
    counts_b, _ = np.histogram(b, bins=bins, range=(lowest, highest))
    overlap = np.minimum(counts_a / a.size, counts_b / b.size).sum()
    return float(1.0 - overlap)


def cnr(image: Image, inside: Mask, outside: Mask) -> float:
    """Contrast-to-noise ratio ``|m_i - m_o| / sqrt(v_i + v_o)``.

    Returns
    -------
    float
        Infinite where both regions are flat and differ.

    References
    ----------
    Patterson and Foster, Ultrason. Imaging 5(3), 1983.
    """
    a, b = _regions(image, inside, outside)
    difference, spread = abs(a.mean() - b.mean()), float(np.sqrt(a.var() + b.var()))
    if spread == 0:
        return float("inf") if difference > 0 else 0.0
    return float(difference / spread)


def contrast(image: Image, inside: Mask, outside: Mask) -> float:
    """Mean grey level inside minus mean grey level outside; signed, in grey levels."""
    a, b = _regions(image, inside, outside)
    return float(a.mean() - b.mean())


def contrast_error(
    image: Image,
    reference: Image,
    inside: Mask,
    outside: Mask,
    *,
    grey_per_db: float | None = None,
) -> float:
    """Absolute error of a region's contrast against the reference's contrast.

    Parameters
    ----------
    image, reference : ndarray, (rows, columns)
        Grey levels.
    inside, outside : ndarray of bool, (rows, columns)
        The two regions.
    grey_per_db : float, optional
        Grey levels a decibel on this display: 255 / 60 for a linear map of 60 dB. With it the
        result is in dB, without it in grey levels.
    """
    error = abs(contrast(image, inside, outside) - contrast(reference, inside, outside))
    return error / grey_per_db if grey_per_db else error


def lesion_survives(
    image: Image, reference: Image, lesion: LesionRegions, *, share: float = 0.5
) -> bool:
    """Whether a lesion keeps its sign and at least `share` of its contrast in the reference.

    A lesion without contrast in the reference cannot be lost, and survives.
    """
    expected = contrast(reference, lesion.mask, lesion.ring)
    if expected == 0:
        return True
    return contrast(image, lesion.mask, lesion.ring) / expected >= share


def lesion_survival(
    image: Image, reference: Image, lesions: Iterable[LesionRegions], *, share: float = 0.5
) -> float:
    """Part of the lesions that survive, 0 to 1; `nan` where there are none."""
    outcomes = [lesion_survives(image, reference, lesion, share=share) for lesion in lesions]
    return float(np.mean(outcomes)) if outcomes else float("nan")


def false_structures(
    image: Image,
    reference: Image,
    homogeneous: Mask,
    *,
    diameter_px: float = 10.0,
    threshold: float,
) -> float:
    """Part of homogeneous tissue in which something stands out that is not there.

    At every pixel a disc is compared with the ring around it (to twice its diameter), as a
    reader would compare a lesion with its surroundings; the reference's own contrast at that
    place is taken off first.

    Parameters
    ----------
    image, reference : ndarray, (rows, columns)
        Grey levels.
    homogeneous : ndarray of bool, (rows, columns)
        Tissue of one kind. Only places whose disc and ring lie wholly inside it are judged.
    diameter_px : float
        Size of the structure that is looked for.
    threshold : float
        Contrast in grey levels from which a structure counts.

    Returns
    -------
    float
        0 to 1; `nan` where the region has no room for one disc with its ring.
    """
    departures = structure_departures(image, reference, homogeneous, diameter_px=diameter_px)
    return float((np.abs(departures) > threshold).mean()) if departures.size else float("nan")


def structure_departures(
    image: Image, reference: Image, homogeneous: Mask, *, diameter_px: float = 10.0
) -> NDArray[np.float64]:
    """Contrasts, in grey levels, that :func:`false_structures` holds against its threshold."""
    disc, ring = disc_and_ring(diameter_px)
    room = ndimage.binary_erosion(homogeneous, structure=(disc + ring) > 0, border_value=0)
    error = image.astype(np.float64) - reference.astype(np.float64)
    found = ndimage.correlate(error, disc - ring, mode="reflect")
    return np.asarray(found[room])


def disc_and_ring(diameter_px: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Averaging kernels of a disc and of the ring from its rim to twice its diameter."""
    reach = int(np.ceil(diameter_px))
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    distance = np.hypot(rows, columns)
    disc = (distance <= diameter_px / 2).astype(np.float64)
    ring = ((distance > diameter_px / 2) & (distance <= diameter_px)).astype(np.float64)
    return disc / disc.sum(), ring / ring.sum()


def edge_width(image: Image, mask: Mask, *, reach_px: float = 8.0) -> float:
    """Distance over which the edge of a region rises from 10 to 90 %.

    The mean grey level is taken as a function of the signed distance to the region's boundary,
    which averages the speckle along the boundary but not the blur across it.

    Parameters
    ----------
    image : ndarray, (rows, columns)
        Grey levels.
    mask : ndarray of bool, (rows, columns)
        A region with a sharp boundary.
    reach_px : float
        How far from the boundary the plateaus lie, on both sides.

    Returns
    -------
    float
        Pixels; `nan` where the region has no interior of 2 px, or no contrast.
    """
    signed = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    signed = np.where(mask, signed - 0.5, signed + 0.5)
    depth = min(reach_px, float(signed.max()))
    if depth < 2:  # noqa: PLR2004 px
        return float("nan")
    positions = np.arange(-reach_px, depth + 0.25, 0.5)
    pixels = image.astype(np.float64)
    shells = (np.abs(signed - position) <= SHELL_PX for position in positions)
    profile = np.array([pixels[shell].mean() for shell in shells])
    return rise_distance(positions, profile)


def rise_distance(positions: NDArray[np.float64], profile: NDArray[np.float64]) -> float:
    """10 to 90 % distance of a step profile, between the means of its outer fifths."""
    plateau = max(1, len(profile) // 5)
    low, high = profile[:plateau].mean(), profile[-plateau:].mean()
    if abs(high - low) < 1.0:  # less than a grey level is no edge
        return float("nan")
    scaled = (profile - low) / (high - low)
    above = np.flatnonzero(scaled >= 0.9)  # noqa: PLR2004
    end = int(above[0]) if above.size else len(scaled) - 1
    below = np.flatnonzero(scaled[: end + 1] <= 0.1)  # noqa: PLR2004
    start = int(below[-1]) if below.size else 0
    ten = _crossing(positions, scaled, start, 0.1)
    ninety = _crossing(positions, scaled, max(end - 1, 0), 0.9)
    return float(ninety - ten)


def line_width(profile: NDArray[Any], *, spacing_px: float = 1.0) -> float:
    """Full width at half maximum of a thin bright line across its profile.

    Parameters
    ----------
    profile : ndarray, (samples,)
        Grey levels across the line, with background at both ends.
    spacing_px : float
        Distance of two samples.

    Returns
    -------
    float
        Pixels; `nan` where nothing rises above the background by a grey level, or where the line
        runs out of the profile.
    """
    values = np.asarray(profile, dtype=np.float64)
    background = float(np.median(np.r_[values[: len(values) // 4], values[-(len(values) // 4) :]]))
    peak = int(values.argmax())
    half = (values[peak] - background) / 2 + background
    if values[peak] - background < 1.0:
        return float("nan")
    left = np.flatnonzero(values[:peak] < half)
    right = np.flatnonzero(values[peak:] < half)
    if not (left.size and right.size):
        return float("nan")
    positions = np.arange(len(values), dtype=np.float64)
    start = _crossing(positions, values, int(left[-1]), half)
    end = _crossing(positions, values, peak + int(right[0]) - 1, half)
    return float((end - start) * spacing_px)


def thin_width(image: Image, mask: Mask, *, reach_px: float = 10.0) -> float:
    """Width at half height of bright lines or points, averaged over all of them.

    The mean grey level is taken as a function of the distance to their centres, which averages
    the speckle along a line but not the blur across it.

    Parameters
    ----------
    image : ndarray, (rows, columns)
        Grey levels.
    mask : ndarray of bool, (rows, columns)
        Centres: lines one pixel wide, points of one pixel.
    reach_px : float
        Distance by which the background is reached.

    Returns
    -------
    float
        Pixels; `nan` where the mask is empty or nothing stands out of the background.
    """
    if not mask.any():
        return float("nan")
    distance = ndimage.distance_transform_edt(~mask)
    pixels = image.astype(np.float64)
    shells = (np.abs(distance - d) <= SHELL_PX for d in np.arange(0, reach_px, 0.5))
    half = np.array([pixels[shell].mean() for shell in shells if shell.any()])
    return line_width(np.r_[half[:0:-1], half], spacing_px=0.5)


def _crossing(
    positions: NDArray[np.float64], values: NDArray[np.float64], index: int, level: float
) -> float:
    following = min(index + 1, len(values) - 1)
    rise = values[following] - values[index]
    part = 0.0 if rise == 0 else float(np.clip((level - values[index]) / rise, 0.0, 1.0))
    return float(positions[index] + part * (positions[following] - positions[index]))


def _regions(
    image: Image, inside: Mask, outside: Mask
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = image[inside].astype(np.float64), image[outside].astype(np.float64)
    if not (a.size and b.size):
        raise ValueError("a region without pixels has no contrast")
    return a, b

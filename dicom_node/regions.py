"""Which pixels may change, and which never may.

PS3.3 C.8.5.5 (US Region Calibration): grey tissue pixels inside 2-D B-mode regions may change;
regions of any other kind, colour, text and background never. Nothing here looks at more than
one object, and everything is static over its frames except colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import cached_property
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from dicom_node.attributes.transcribe import MALFORMED
from dicom_node.config import RegionsSection
from dicom_node.decode import Geometry
from dicom_node.errors import Permanent
from dicom_node.pixels import insonation, tint
from dicom_node.pixels.colour import Frame, luminance
from dicom_node.pixels.morphology import Mask, dilate

RegionSource = Literal["ultrasound-regions", "estimated", "none"]

PIXEL_POLICY: Final = "regions-4"
"""Part of the derived identity: a new name wherever other pixels would be allowed to change."""
_STRONG: Final = 3
"""A pixel this many times past the grey tolerance is colour drawn on purpose, with soft edges."""
_MODES: Final = 3
"""Index of the value of (0008,0008) *Image Type* that tells what modes an image shows."""
_COMPARABLE: Final = 0.2
"""Where an area is estimated, views down to this share of the largest one are tissue like it."""
_WRAPPED: Final = 1 << 32
"""A coordinate in its upper half is a negative one that was stored in an unsigned attribute."""


_KINDS: Final = ("RegionSpatialFormat", "RegionDataType")
_BOUNDS: Final = (
    "RegionLocationMinX0",
    "RegionLocationMinY0",
    "RegionLocationMaxX1",
    "RegionLocationMaxY1",
)


class SpatialFormat(IntEnum):
    """(0018,6012) *Region Spatial Format*, PS3.3 C.8.5.5.1.1."""

    NONE = 0
    TWO_D = 1
    M_MODE = 2
    SPECTRAL = 3
    WAVEFORM = 4
    GRAPHICS = 5


_SWEEPS: Final = (SpatialFormat.M_MODE, SpatialFormat.SPECTRAL)


class Mode(IntFlag):
    """What value 4 of (0008,0008) adds up, PS3.3 C.8.5.6.1.1, without 2-D tissue and its colour."""

    M_MODE = 1 << 1
    CW_DOPPLER = 1 << 2
    PW_DOPPLER = 1 << 3
    COLOUR_M_MODE = 1 << 5
    RENDERING = 1 << 6
    TISSUE_CHARACTERISATION = 1 << 9


class DataType(IntEnum):
    """(0018,6014) *Region Data Type*, PS3.3 C.8.5.5.1.2, as far as the node tells them apart."""

    NONE = 0
    TISSUE = 1


@dataclass(frozen=True)
class Region:
    """One item of (0018,6011), clipped to the image; bounds are half open."""

    spatial_format: int
    data_type: int
    rows: slice
    columns: slice

    @property
    def is_tissue(self) -> bool:
        """Whether it is a 2-D B-mode region."""
        return self.spatial_format == SpatialFormat.TWO_D and self.data_type == DataType.TISSUE

    @property
    def is_none(self) -> bool:
        """Whether it says nothing of what it holds."""
        return self.spatial_format == SpatialFormat.NONE and self.data_type == DataType.NONE


@dataclass(frozen=True)
class TissueMap:
    """The pixels of an object that may change, static over its frames."""

    allowed: Mask
    """(rows, columns), bool."""
    source: RegionSource
    """How the area was found."""
    tint: NDArray[np.int16]
    """(256, 3): what the scanner's grey map adds to each channel, by luminance."""

    @cached_property
    def box(self) -> tuple[slice, slice]:
        """The rows and columns that hold all of the area, and a pixel about it."""
        bounds = []
        for axis in (1, 0):
            lines = np.flatnonzero(self.allowed.any(axis=axis))
            first, last = (int(lines[0]), int(lines[-1])) if len(lines) else (0, 0)
            bounds.append(slice(max(first - 1, 0), last + 2))
        return bounds[0], bounds[1]

    @property
    def share(self) -> float:
        """Share of all pixels that may change, 0 to 1."""
        return float(self.allowed.mean())


def read_regions(dataset: Dataset, rows: int, columns: int) -> list[Region]:
    """(0018,6011) *Sequence of Ultrasound Regions*, clipped; items without an area are left out.

    Bounds in the data set are inclusive, from zero; a region may begin above or to the left of the
    image. Items whose bounds are incomplete, inverted or wholly outside it hold no pixel and are
    dropped. An item that does not say what it holds is of no kind (0): its pixels are not known to
    be tissue.
    """
    regions = []
    for item in _items(dataset):
        bounds = [value for key in _BOUNDS if (value := _number(item, key)) is not None]
        if len(bounds) < len(_BOUNDS):
            continue
        left, top, right, bottom = bounds
        left, right = _clipped(left, right, columns)
        top, bottom = _clipped(top, bottom, rows)
        if left < right and top < bottom:
            spatial, kind = (_number(item, key) or 0 for key in _KINDS)
            regions.append(Region(spatial, kind, slice(top, bottom + 1), slice(left, right + 1)))
    return regions


def _items(dataset: Dataset) -> list[Dataset]:
    """The items of (0018,6011); none where they are malformed."""
    try:
        return list(dataset.get("SequenceOfUltrasoundRegions") or ())
    except MALFORMED:
        return []


def _clipped(least: int, most: int, size: int) -> tuple[int, int]:
    """Bounds along one axis of the image, inverted where nothing lies between them."""
    if least >= _WRAPPED // 2:
        least -= _WRAPPED
        most -= _WRAPPED if most >= _WRAPPED // 2 else 0
    return max(least, 0), min(most, size - 1)


def _number(item: Dataset, keyword: str) -> int | None:
    """An integer of an item; None where there is none, or something else."""
    try:
        value = item.get(keyword)
    except MALFORMED:
        return None
    return value if isinstance(value, int) else None


def tissue_map(
    dataset: Dataset,
    geometry: Geometry,
    sample_frames: Sequence[Frame],
    policy: RegionsSection,
) -> TissueMap:
    """Find the pixels that may change.

    Parameters
    ----------
    sample_frames : sequence of ndarray
        Some of the object's frames, at least one; more tell furniture from tissue better.

    Returns
    -------
    TissueMap
        With nothing allowed where the object shows no tissue, or the policy is to skip.
    """
    regions = read_regions(dataset, geometry.rows, geometry.columns)
    stated = [region for region in regions if not region.is_none]
    source: RegionSource = "ultrasound-regions"
    if not stated:
        source = "none" if policy.without_regions == "skip" else "estimated"
    shape = (geometry.rows, geometry.columns)
    area = np.full(shape, source == "estimated" and not _shows_other_modes(dataset))
    for region in stated:
        if region.is_tissue:
            area[region.rows, region.columns] = True
    for region in stated:
        if not region.is_tissue:
            area[region.rows, region.columns] = False
    neutral = np.zeros((256, 3), np.int16)
    if not area.any():
        return TissueMap(area, source, neutral)
    sample_frames = _plainest_first(sample_frames)
    lossy = dataset.get("LossyImageCompression") == "01"
    curve = tint.estimate(sample_frames, area) if geometry.colour else neutral
    luminances = [_positive(luminance(frame), geometry) for frame in sample_frames]
    coloured = np.zeros(shape, bool)
    for frame in sample_frames:
        coloured |= ~grey_pixels(frame, curve, policy.grey_tolerance)
    tolerance = insonation.noise_floor(_positive(sample_frames[0], geometry), lossy=lossy)
    background = insonation.flat(luminances, tolerance)
    level = insonation.background_level(luminances[0], background)
    background |= insonation.bars(luminances[0], tolerance)
    drawn_on = np.logical_and.reduce(
        [np.abs(image.astype(np.int16) - level) <= tolerance for image in luminances]
    )
    drawings = insonation.lettering(luminances[0]) | insonation.ruled(luminances[0])
    textured = area & ~background & ~coloured & ~drawn_on & ~drawings
    found = insonation.views(textured)
    if source == "estimated":
        found = _unambiguous(found)
    if not found:
        return TissueMap(np.zeros(shape, bool), source, curve)
    views = np.logical_or.reduce(found) & area
    allowed = views & ~background & ~drawings & ~insonation.furniture(luminances)
    outside = ~dilate(views, 2)
    levels = insonation.overlay_levels(luminances[0], outside & ~coloured)
    allowed &= ~insonation.strokes(luminances, levels, lossy=lossy)
    allowed &= ~insonation.marks(luminances[0], lossy=lossy)
    return TissueMap(allowed, source, curve)


def _plainest_first(frames: Sequence[Frame]) -> Sequence[Frame]:
    """The frames, in front of all the first that shows as much as others do.

    What the display looks like is read from it: a cine may begin with a blank frame.
    """
    spreads = [float(frame.std()) for frame in frames]
    first = next(i for i, spread in enumerate(spreads) if spread >= max(spreads) / 2)
    return [frames[first], *frames[:first], *frames[first + 1 :]]


def grey_pixels(frame: Frame, curve: NDArray[np.int16], tolerance: int) -> Mask:
    """Pixels without colour of their own, a margin about strong colour left out.

    Parameters
    ----------
    curve : ndarray, (256, 3), int16
        The tint of the grey map; see `TissueMap.tint`.
    tolerance : int
        Largest spread between the channels of a grey pixel, in grey levels.
    """
    if frame.ndim == 2:  # noqa: PLR2004
        return np.ones(frame.shape, bool)
    spread = tint.spread(frame, curve)
    strong = spread > _STRONG * max(tolerance, 1)
    grey = spread <= tolerance
    return grey & ~dilate(strong, 1) if strong.any() else np.asarray(grey)


def tissue_pixels(frame: Frame, tissue: TissueMap, policy: RegionsSection) -> Mask:
    """The pixels of one frame that may change: allowed, and grey in this frame.

    Returns
    -------
    ndarray, (rows, columns), bool
    """
    mask = np.zeros(tissue.allowed.shape, bool)
    box = tissue.box
    mask[box] = tissue.allowed[box] & grey_pixels(frame[box], tissue.tint, policy.grey_tolerance)
    return mask


def recombine(
    frame: Frame,
    luminance_before: NDArray[np.uint8],
    luminance_after: NDArray[np.uint8],
    mask: Mask,
    curve: NDArray[np.int16] | None = None,
) -> Frame:
    """Put a new luminance under the mask; keep the tint there and everything else.

    Parameters
    ----------
    frame : ndarray, (rows, columns) or (rows, columns, 3), uint8
    luminance_before, luminance_after : ndarray, (rows, columns), uint8
        In the frame's own polarity.
    mask : ndarray, (rows, columns), bool
    curve : ndarray, (256, 3), int16, optional
        `TissueMap.tint`.

    Returns
    -------
    ndarray
        A new frame; where the luminance is the same before and after, so is the pixel.
    """
    if frame.ndim == 2:  # noqa: PLR2004
        return np.where(mask, luminance_after, frame)
    changed = mask & (luminance_before != luminance_after)
    shift = luminance_after.astype(np.int16) - luminance_before
    derived = frame.copy()
    for channel in range(3):
        values = frame[..., channel] + shift
        if curve is not None and curve.any():
            values += np.take(curve[:, channel], luminance_after)
            values -= np.take(curve[:, channel], luminance_before)
        np.clip(values, 0, 255, out=values)
        np.copyto(derived[..., channel], values.astype(np.uint8), where=changed)
    return derived


def prove_untouched(before: Frame, after: Frame, mask: Mask) -> Mask:
    """Check that no pixel outside the mask differs; return those that do inside.

    Returns
    -------
    ndarray, (rows, columns), bool

    Raises
    ------
    Permanent
        ``pixels-touched``: a fault of this program; nothing may be sent.
    """
    differs = before != after
    if differs.ndim == 3:  # noqa: PLR2004
        differs = differs[..., 0] | differs[..., 1] | differs[..., 2]
    if (differs & ~mask).any():
        raise Permanent(
            "pixels-touched",
            "pixels that may not change differ in the derived frame; report it to the maintainers",
        )
    return np.asarray(differs)


def _positive(image: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    return ~image if geometry.inverted else image


def _shows_other_modes(dataset: Dataset) -> bool:
    """Whether the object says that it shows a sweep, a rendering or a map, but not where.

    Such areas have texture, too: without stated regions nothing tells them from tissue. It may say
    so by a region without usable bounds.
    """
    if any(_number(item, "RegionSpatialFormat") in _SWEEPS for item in _items(dataset)):
        return True
    try:
        values = dataset.get("ImageType")
        modes = values[_MODES] if isinstance(values, MultiValue) else "0"
        return any(int(modes, 16) & mode for mode in Mode)
    except MALFORMED:
        return False


def _unambiguous(found: list[Mask]) -> list[Mask]:
    """The largest view and comparable ones beside it; none where one lies above or below it.

    A smaller one counts there where the largest may be the sweep that it steers: a rectangle.
    """
    if not found:
        return []
    largest = found[0]
    alike = [view for view in found if view.sum() >= _COMPARABLE * largest.sum()]
    doubtful = found if insonation.rectangular(largest) else alike
    if any(insonation.stacked(largest, other) for other in doubtful[1:]):
        return []
    return alike

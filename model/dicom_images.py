"""Grey B-mode frames of DICOM objects, for training: PS3.3 C.7.6.3, C.8.5.5 and PS3.5 section 8.

Not the decoder of a node, which must keep every pixel: this one takes what a network can learn
from and passes over the rest. No message holds a value from a data set.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array

from model import lossless_jpeg

Grey = NDArray[np.uint8]

DICOM_SUFFIXES = frozenset({"", ".dcm", ".dicom", ".ima"})
MODALITIES = frozenset({"US", "IVUS", ""})
STRONGEST_TINT = 32
"""Spread of red, green and blue that still counts as grey: many scanners tint their grey map."""
MOST_COLOURED = 0.05
"""Share of coloured pixels above which a frame is no B-mode image."""
SPATIAL_FORMAT_2D, DATA_TYPE_TISSUE = 1, 1
"""(0018,6012) *Region Spatial Format* and (0018,6014) *Region Data Type*, PS3.3 C.8.5.5.1."""
DECODERS = {
    uid.JPEGBaseline8Bit: "pillow",
    uid.JPEGExtended12Bit: "pillow",
    uid.JPEGLossless: lossless_jpeg.PLUGIN,
    uid.JPEGLosslessSV1: lossless_jpeg.PLUGIN,
}
"""Of 8 bits, by transfer syntax: pydicom would take GDCM, which ends the process at some damaged
streams. What has more bits no other here decodes."""
_PREAMBLE = 128
_SAMPLES_RGB = 3


class UnusableImageError(Exception):
    """A file cannot be used; the message names it and the remedy, and no patient."""


def is_dicom(path: Path) -> bool:
    """Whether a file is named like a DICOM object and has the magic of PS3.10 section 7.1.

    Named like one are ``*.dcm``, ``*.dicom``, ``*.ima``, names without a suffix, and UIDs.
    """
    suffix = path.suffix.lower()
    if path.name == "DICOMDIR" or not (suffix in DICOM_SUFFIXES or suffix[1:].isdigit()):
        return False
    try:
        with path.open("rb") as file:
            return file.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"
    except OSError:
        return False


def read_frames(path: Path, most: int) -> Iterator[Grey]:
    """Frames of the largest 2-D B-mode region, or of the whole image without (0018,6011).

    Parameters
    ----------
    path : Path
        Any transfer syntax that pydicom has a decoder for.
    most : int
        Frames at most, evenly spread; coloured ones among them are passed over.

    Yields
    ------
    ndarray, (rows, columns), uint8

    Raises
    ------
    UnusableImageError
    """
    with quiet():
        try:
            dataset = pydicom.dcmread(path, stop_before_pixels=True)
            area = _area(dataset)
            decoder = _decoder(dataset)
            indices = spread(int(dataset.get("NumberOfFrames") or 1), most)
        except UnusableImageError as error:
            raise UnusableImageError(f"{path}: {error}") from error
        except Exception as error:
            raise UnusableImageError(
                f"{path}: its header cannot be read; export it anew or remove it"
            ) from error
    for index in indices:
        with quiet():
            try:
                pixels = pixel_array(path, index=index, decoding_plugin=decoder)
                frame = _displayed(dataset, pixels)[area]
            except Exception as error:  # decoders raise what they like
                raise UnusableImageError(
                    f"{path}: frame {index + 1} cannot be decoded ({type(error).__name__}); "
                    "export it uncompressed or remove it"
                ) from error
        if frame.ndim == 2:  # noqa: PLR2004
            yield np.ascontiguousarray(frame)
        elif coloured_share(frame) <= MOST_COLOURED:
            yield luminance(frame)


def spread(count: int, most: int) -> list[int]:
    """At most `most` of ``0..count - 1``, evenly spread."""
    taken = min(count, most)
    return [int((place + 0.5) / taken * count) for place in range(taken)]


def coloured_share(colours: Grey) -> float:
    """Share of the pixels of (rows, columns, 3) that are no grey."""
    return float((np.ptp(colours.astype(np.int16), axis=-1) > STRONGEST_TINT).mean())


def luminance(colours: Grey) -> Grey:
    """ITU-R BT.601 luma of (rows, columns, 3), exact for equal components."""
    weighted = colours.astype(np.int32) @ np.array([299, 587, 114], np.int32)
    return ((weighted + 500) // 1000).astype(np.uint8)


def _decoder(dataset: Dataset) -> str:
    """As pydicom calls it; empty where it may choose."""
    if int(dataset.BitsAllocated) > 8:  # noqa: PLR2004
        return ""
    return DECODERS.get(dataset.file_meta.TransferSyntaxUID, "")


def _area(dataset: Dataset) -> tuple[slice, slice]:
    """Rows and columns of the largest 2-D B-mode region, clipped to the image."""
    if str(dataset.get("Modality", "")) not in MODALITIES:
        raise UnusableImageError("no ultrasound; remove it")
    if "Rows" not in dataset or "Columns" not in dataset:
        raise UnusableImageError("holds no image; remove it")
    whole = (slice(0, int(dataset.Rows)), slice(0, int(dataset.Columns)))
    regions = dataset.get("SequenceOfUltrasoundRegions") or ()
    if not regions:
        return whole
    areas = [
        (
            slice(max(int(item.RegionLocationMinY0), 0), int(item.RegionLocationMaxY1) + 1),
            slice(max(int(item.RegionLocationMinX0), 0), int(item.RegionLocationMaxX1) + 1),
        )
        for item in regions
        if item.get("RegionSpatialFormat") == SPATIAL_FORMAT_2D
        and item.get("RegionDataType") == DATA_TYPE_TISSUE
    ]
    largest = max(areas, key=lambda area: _size(area, whole), default=None)
    if largest is None or not _size(largest, whole):
        raise UnusableImageError("holds no 2-D B-mode region; remove it")
    return largest


def _size(area: tuple[slice, slice], whole: tuple[slice, slice]) -> int:
    """Pixels of an area inside the image."""
    rows, columns = (
        max(0, min(a.stop, w.stop) - a.start) for a, w in zip(area, whole, strict=True)
    )
    return int(rows * columns)


def _displayed(dataset: Dataset, pixels: NDArray[Any]) -> Grey:
    """Stored values of one frame as a viewer shows them: (rows, columns) or (rows, columns, 3)."""
    photometric = str(dataset.PhotometricInterpretation)
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(np.asarray(pixels), dataset)
        return (pixels >> 8 if pixels.dtype.itemsize > 1 else pixels).astype(np.uint8)
    bits = int(dataset.BitsStored)
    if pixels.ndim == _SAMPLES_RGB or bits == 8:  # noqa: PLR2004
        grey = np.asarray(pixels).astype(np.uint8, casting="same_kind")
    else:
        lowest = -(1 << bits - 1) if dataset.get("PixelRepresentation") else 0
        wide = np.clip(np.asarray(pixels).astype(np.int64) - lowest, 0, (1 << bits) - 1)
        grey = (wide * 255 // ((1 << bits) - 1)).astype(np.uint8)
    return 255 - grey if photometric == "MONOCHROME1" else grey


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom from showing offending values, which may be a patient's name."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

"""Real ultrasound images of any kind as grey 8-bit frames, for training and for judging.

PNG, JPEG, BMP, TIFF and, by `model.dicom_images`, DICOM. A file that cannot be used is left out
and counted; it does not end a training.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from scipy import ndimage

from model import depth, dicom_images
from model.apply import STILL_FORMATS_WITH_FRAMES, SUFFIXES
from model.dicom_images import (
    MOST_COLOURED,
    Grey,
    UnusableImageError,
    coloured_share,
    is_dicom,
    luminance,
    spread,
)

__all__ = [
    "UnusableImageError",
    "crop_to_tissue",
    "image_files",
    "is_dicom",
    "read_all",
    "read_frames",
    "read_grey",
]

MOST_FRAMES = 8
"""Frames that are taken of one cine by default: its neighbours show nearly the same."""
_ANNOTATION = re.compile(r"_(mask(_\d+)?|annotation|gt|seg)$", re.IGNORECASE)
"""Ends the names of drawings that lie beside the images, as in BUSI, HC18 and CAMUS."""

_NAMED_DICOM = dicom_images.DICOM_SUFFIXES - {""}
"""Files named so are looked for, and reported where they are something else."""

_BACKGROUND_REACH = 6
"""Grey levels about the background's that still count as background: JPEG, dithering."""
_BLOCKS_ACROSS = 72
_DENSE = 0.5
"""Share of a block that must be lit; text covers less of the area that it is set in."""
_COMPARABLE = 0.05
"""Views down to this share of the largest one's area belong to the tissue."""
_SMALLEST = 0.02
"""Share of the image below which nothing counts as tissue."""

_log = logging.getLogger(__name__)


def image_files(folder: Path) -> list[Path]:
    """Images and DICOM objects below a folder, sorted.

    Hidden files and folders, (0004,1220) directories and annotations (``*_mask``,
    ``*_Annotation``, ``*_gt``, ``*_seg``) are left out.
    """
    return sorted(
        path
        for path in folder.rglob("*")
        if _is_wanted(path)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and _is_file(path)
        and (path.suffix.lower() in SUFFIXES | _NAMED_DICOM or is_dicom(path))
    )


def _is_file(path: Path) -> bool:
    """What may not be looked at counts as one: the reader reports it."""
    try:
        return path.is_file()
    except PermissionError:
        return True


def _is_wanted(path: Path) -> bool:
    """Whether a name is neither hidden nor that of an annotation."""
    return not path.name.startswith(".") and not _ANNOTATION.search(path.stem)


def read_frames(path: Path, most: int = MOST_FRAMES) -> Iterator[Grey]:
    """Grey frames of a file, evenly spread over it.

    Frames of which more than 5 % are coloured (colour Doppler, charts) are passed over, so that
    there may be none.

    Parameters
    ----------
    path : Path
        An image or a DICOM object, of which only the largest 2-D B-mode region is read.
    most : int
        Frames at most.

    Yields
    ------
    ndarray, (rows, columns), uint8
        0 is black. More than 8 bits are scaled by the bit depth, never stretched; that of a
        16-bit picture file is the least that the grey levels of its folder need.

    Raises
    ------
    UnusableImageError
        The file cannot be read, or holds nothing to train on.
    """
    if is_dicom(path):
        yield from dicom_images.read_frames(path, most)
        return
    for colours in _pictures(path, most):
        if colours.ndim == 2:  # noqa: PLR2004
            yield colours
        elif coloured_share(colours) <= MOST_COLOURED:
            yield luminance(colours)


def read_grey(path: Path) -> Grey:
    """The middle frame of a file, colours as their luminance; see `read_frames`.

    Raises
    ------
    UnusableImageError
    """
    if is_dicom(path):
        for frame in dicom_images.read_frames(path, 1):
            return frame
        raise UnusableImageError(f"{path}: is coloured; choose a grey one")
    picture = next(_pictures(path, 1))
    return picture if picture.ndim == 2 else luminance(picture)  # noqa: PLR2004


def read_all(
    files: Sequence[Path], most: int = MOST_FRAMES, *, crop: bool = True
) -> Iterator[tuple[Path, Grey]]:
    """Frames of all files, each with its file; unusable and coloured files are counted in warnings.

    Parameters
    ----------
    files : sequence of Path
    most : int
        Frames of one file at most.
    crop : bool
        Leave out what lies about the tissue; see `crop_to_tissue`.

    Yields
    ------
    file, frame
        Frame as in `read_frames`.
    """
    unusable: list[str] = []
    coloured: list[Path] = []
    for path in files:
        some = False
        try:
            for frame in read_frames(path, most):
                some = True
                yield path, crop_to_tissue(frame) if crop else frame
            if not some:
                coloured.append(path)
        except UnusableImageError as error:
            unusable.append(str(error))
    if coloured:
        _log.warning(
            "%d of %d files are coloured and were passed over; the first: %s. Make images grey "
            "that are B-mode under a tint",
            len(coloured),
            len(files),
            coloured[0],
        )
    if unusable:
        _log.warning(
            "%d of %d files were left out; the first: %s", len(unusable), len(files), unusable[0]
        )


def crop_to_tissue(image: Grey) -> Grey:
    """The part of a screen that shows tissue: the bounding box of what is densely lit.

    Text, scales and bars about it are too sparse or too small to count. An image without screen
    furniture stays whole.

    Parameters
    ----------
    image : ndarray, (rows, columns), uint8

    Returns
    -------
    ndarray, (rows, columns), uint8
        A view of `image`; all of it where no tissue is found.
    """
    level = int(np.bincount(image.ravel(), minlength=256).argmax())
    lit = np.abs(image.astype(np.int16) - level) > _BACKGROUND_REACH
    side = max(4, min(image.shape) // _BLOCKS_ACROSS)
    blocks = ndimage.binary_opening(_block_share(lit, side) >= _DENSE, np.ones((3, 3)))
    labels, count = ndimage.label(blocks)
    if not count:
        return image
    areas = ndimage.sum_labels(blocks, labels, np.arange(1, count + 1))
    if areas.max() < _SMALLEST * blocks.size:
        return image
    views = np.isin(labels, 1 + np.flatnonzero(areas >= _COMPARABLE * areas.max()))
    near = ndimage.binary_dilation(views, np.ones((3, 3)))
    pixels = np.repeat(np.repeat(near, side, 0), side, 1)[: image.shape[0], : image.shape[1]] & lit
    rows, columns = (np.flatnonzero(pixels.any(axis=axis)) for axis in (1, 0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _block_share(mask: NDArray[np.bool_], side: int) -> NDArray[np.float32]:
    """Share of each block of ``side`` pixels that is set; the last ones may be cut."""
    high, wide = (-(-length // side) for length in mask.shape)
    padded = np.zeros((high * side, wide * side), np.float32)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    shares: NDArray[np.float32] = padded.reshape(high, side, wide, side).mean(axis=(1, 3))
    return shares


def _pictures(path: Path, most: int) -> Iterator[Grey]:
    """(rows, columns) where the file is grey, (rows, columns, 3) where it is not."""
    try:
        with Image.open(path) as image:
            several = image.format not in STILL_FORMATS_WITH_FRAMES
            count = int(getattr(image, "n_frames", 1)) if several else 1
            for index in spread(count, most):
                image.seek(index)
                yield _pixels(image, path.parent)
    except UnidentifiedImageError as error:
        raise UnusableImageError(f"{path}: no image that can be read; remove it") from error
    except Image.DecompressionBombError as error:
        raise UnusableImageError(f"{path}: too many pixels; cut it into parts") from error
    except PermissionError as error:
        raise UnusableImageError(
            f"{path}: may not be read; allow it, or remove the file"
        ) from error
    except depth.UNREADABLE as error:
        raise UnusableImageError(f"{path}: is damaged; export it anew or remove it") from error


def _pixels(image: Image.Image, folder: Path) -> Grey:
    if depth.is_inverted(image):
        raise ValueError("16-bit grey whose white is 0")
    if depth.is_deep(image):
        wide = np.asarray(image)
        return depth.eight_bits(wide, max(_bits_in(folder), depth.needed(wide)))
    if image.mode == "F":
        raise ValueError("floating-point pixels")
    grey = image.mode in {"1", "L", "LA", "La"}
    return np.asarray(image.convert("L" if grey else "RGB"))


@lru_cache
def _bits_in(folder: Path) -> int:
    """Depth of the 16-bit pictures of a folder."""
    return depth.shared(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and _is_wanted(path)
    )

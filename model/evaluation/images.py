"""Real images to judge on: of subjects that nothing was trained on, cut to a size."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.images import UnusableImageError, image_files, read_grey
from model.split import Split, split

SMALLEST_SIDE_PX = 16
"""Of the lit part; SSIM and patches need as much."""
LIT_GREY, LIT_SHARE = 8, 0.1
"""A row or column belongs to the picture where this share of it is brighter than this."""

_log = logging.getLogger(__name__)


def parted(root: Path) -> Split:
    """Images below a folder by their use; nothing where there is no such folder."""
    return split(image_files(root), root) if root.is_dir() else Split((), (), ())


def choose(files: Iterable[Path], root: Path, each: int) -> list[Path]:
    """Evenly spaced images from every source, in place of one that cannot be used the next.

    Parameters
    ----------
    files : iterable of Path
        Below `root`, whose first-level subfolders are sources; images directly in it are one more.
    root : Path
        Folder that was searched.
    each : int
        Images from each source, at most.
    """
    sources: dict[str, list[Path]] = {}
    for path in files:
        sources.setdefault(source_of(path, root), []).append(path)
    chosen: list[Path] = []
    for found in sources.values():
        count = min(each, len(found))
        places = (np.arange(count) + 0.5) / count * len(found)
        taken: dict[Path, None] = {}
        for place in map(int, places):
            following = (p for p in found[place:] + found[:place] if p not in taken)
            taken |= dict.fromkeys(islice(filter(_is_usable, following), 1))
        chosen += taken
    return chosen


def _is_usable(path: Path) -> bool:
    """Whether an image can be read and shows something; what cannot be used is told."""
    try:
        image = lit(read_grey(path))
    except UnusableImageError as error:
        _log.warning("left out: %s", error)
        return False
    if min(image.shape) < SMALLEST_SIDE_PX or not np.ptp(image):
        _log.warning("left out: %s: shows nothing of %d pixels a side", path, SMALLEST_SIDE_PX)
        return False
    return True


def source_of(path: Path, root: Path) -> str:
    """First folder on the way from `root` to the image, or the root's own name."""
    parts = path.relative_to(root).parts
    return parts[0] if len(parts) > 1 else root.name


def middle(image: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    """The middle of an image, at most `side_px` on each side."""
    window = []
    for length in image.shape:
        start = max(0, (length - side_px) // 2)
        window.append(slice(start, start + min(side_px, length)))
    return np.ascontiguousarray(image[tuple(window)])


def lit(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image without the dark rows and columns around it; whole where nothing is lit."""
    bright = image > LIT_GREY
    rows = np.flatnonzero(bright.mean(axis=1) >= LIT_SHARE)
    columns = np.flatnonzero(bright.mean(axis=0) >= LIT_SHARE)
    if not (rows.size and columns.size):
        return image
    return np.ascontiguousarray(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])

"""Tissue is continued beyond the rim of a sector, as in a mirror, before the network looks.

A sector ends at black. A network that averages what lies about a pixel would have to know, pixel by
pixel, which of its surroundings are no tissue; the student does not, and leaves a rim of speckle
two or three pixels wide. With its mirror image beyond the rim the tissue has no end there. Only
what is black is replaced, only for the network to see: those pixels themselves never change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

Grey = NDArray[np.uint8]
Mask = NDArray[np.bool_]

BLACK = 4
"""Largest grey level that still counts as nothing shown."""
NOTCH_PX = 10
"""Reach of the closing: dark speckle at the rim, or a gap of twice this, belongs to the tissue."""
SHARP = 0.85
"""Least mean level of the outermost pixels, as a share of that of the third to fifth. A vessel, a
shadow, or a display that was resampled, darkens before it ends, and is left as it is."""
DIMMEST = 15.0
"""Mean level of tissue below which nothing can be said of its rim."""
VIEW_SHARE = 0.02
"""Smaller lit areas, as a share of the image, are text and scales."""
BEYOND_SHARE = 0.015
"""Smaller black areas, as a share of the image, are tissue without echo, such as a cyst."""
LIT_AGAIN = 0.02
"""Share of the replaced pixels that must have been lit since for the rim to be another one."""
_BLOCK_PX, _BLOCKS_ABOUT = 8, 9


@dataclass(frozen=True)
class Rim:
    """Which black pixels beyond the rim are replaced by which of the tissue.

    Attributes
    ----------
    outside, source : Tensor, (pixels,), int64
        Indices into the flattened image.
    black : Tensor, (more pixels,), int64
        All that stays as it is: those outside, and as many again, where the mirror image ends.
    """

    outside: Tensor
    source: Tensor
    black: Tensor

    def continued(self, x: Tensor) -> Tensor:
        """Images, (..., rows, columns), with tissue beyond the rim."""
        if not len(self.outside):
            return x
        flat = x.flatten(-2).clone()
        flat[..., self.outside] = flat[..., self.source]
        return flat.view(x.shape)

    def without(self, removed: Tensor) -> Tensor:
        """What is removed, (..., rows, columns), but nothing where there is no tissue."""
        if not len(self.outside):
            return removed
        flat = removed.flatten(-2).clone()
        flat[..., self.black] = 0
        return flat.view(removed.shape)

    def to(self, device: torch.device) -> Rim:
        """On a device."""
        return Rim(self.outside.to(device), self.source.to(device), self.black.to(device))

    def is_lit(self, grey: Tensor) -> bool:
        """Whether one of later frames, (..., rows, columns), uint8, shows tissue beyond the rim."""
        if not len(self.outside):
            return False
        lit = grey.flatten(-2)[..., self.outside] > BLACK
        return bool((lit.double().mean(-1) > LIT_AGAIN).any())


def no_rim() -> Rim:
    """Replaces nothing."""
    return Rim(*torch.empty((3, 0), dtype=torch.int64))


@torch.inference_mode()
def brightest(x: Tensor) -> Grey:
    """Of images, (batch, 1, rows, columns), 0..1: the most that each pixel shows, grey levels."""
    levels = (255 * x[:, 0].float().amax(0)).round().clamp(0, 255)
    return np.asarray(levels.to(torch.uint8).cpu().numpy())


def find(image: Grey, reach_px: int) -> Rim:
    """The rim of the tissue in an image, or in the brightest of some frames.

    Parameters
    ----------
    image : ndarray, (rows, columns), uint8
    reach_px : int
        How far the tissue is continued; 0 looks for nothing.

    Returns
    -------
    Rim
        One that replaces nothing where the tissue fills the image, or ends nowhere sharply.
    """
    lit = image > BLACK
    if reach_px == 0 or not 0 < lit.mean() <= 1 - BEYOND_SHARE:
        return no_rim()
    inside = _tissue(lit)
    if inside.all() or not inside.any():
        return no_rim()
    sharp = _ends_sharply(image, inside)
    distance, (row, column) = ndimage.distance_transform_cdt(
        ~inside, "taxicab", return_indices=True
    )
    black = np.flatnonzero((distance > 0) & (distance <= 2 * reach_px))
    row, column = row.ravel()[black], column.ravel()[black]
    ended = sharp[row // _BLOCK_PX, column // _BLOCK_PX]
    black, row, column = black[ended], row[ended], column[ended]
    near = distance.ravel()[black] <= reach_px
    outside = black[near]
    source = _mirrored(outside, row[near], column[near], inside)
    return Rim(torch.from_numpy(outside), torch.from_numpy(source), torch.from_numpy(black))


def _tissue(lit: Mask) -> Mask:
    """Lit areas without their dark notches and holes, and without text."""
    margin = NOTCH_PX + 1
    beside = ndimage.distance_transform_cdt(~np.pad(lit, margin), "taxicab") <= NOTCH_PX
    closed = ndimage.distance_transform_cdt(beside, "taxicab") > NOTCH_PX
    closed = closed[margin:-margin, margin:-margin] | lit
    tissue = _large(closed, VIEW_SHARE)
    beyond, _ = ndimage.label(_large(~tissue, BEYOND_SHARE))
    ends = np.concatenate((beyond[0], beyond[-1], beyond[:, 0], beyond[:, -1]))
    return np.asarray(~np.isin(beyond, np.unique(ends[ends > 0])))


def _large(mask: Mask, share: float) -> Mask:
    """Connected areas of at least this share of the image."""
    areas, _ = ndimage.label(mask)
    large = np.bincount(areas.ravel()) >= share * mask.size
    large[0] = False
    return np.asarray(large[areas])


def _ends_sharply(image: Grey, inside: Mask) -> Mask:
    """By blocks of pixels: whether the rim thereabouts is as bright as the tissue behind it."""
    depth = ndimage.distance_transform_cdt(inside, "chessboard")
    outermost = _local_mean(image, depth == 1)
    behind = _local_mean(image, (depth >= 3) & (depth <= 5))  # noqa: PLR2004 see `SHARP`
    return np.asarray((behind > DIMMEST) & (outermost > SHARP * behind))


def _local_mean(image: Grey, where: Mask) -> NDArray[np.float32]:
    """Mean over the pixels of a mask within 9x9 blocks, for each block; 0 where there are none."""
    rows, columns = image.shape
    fill = ((0, -rows % _BLOCK_PX), (0, -columns % _BLOCK_PX))
    level, count = (
        np.pad(values, fill)
        .reshape((rows + fill[0][1]) // _BLOCK_PX, _BLOCK_PX, -1, _BLOCK_PX)
        .sum((1, 3), dtype=np.float32)
        for values in (np.where(where, image, 0), where)
    )
    total = ndimage.uniform_filter(level, _BLOCKS_ABOUT, mode="constant")
    pixels = ndimage.uniform_filter(count, _BLOCKS_ABOUT, mode="constant")
    return np.asarray(total / np.maximum(pixels, 1e-6), dtype=np.float32)


def _mirrored(
    near: NDArray[np.int64], row: NDArray[np.int32], column: NDArray[np.int32], inside: Mask
) -> NDArray[np.int64]:
    """Where pixels beyond the rim find their mirror image, else the rim's own pixel.

    Parameters
    ----------
    near : ndarray, (pixels,)
        Pixels, flat.
    row, column : ndarray, (pixels,)
        Of the tissue that is next to each.
    """
    rows, columns = inside.shape
    own_row, own_column = np.divmod(near, columns)
    # The first pixel outside mirrors the rim's own.
    there_row = 2 * row - own_row - np.sign(row - own_row)
    there_column = 2 * column - own_column - np.sign(column - own_column)
    there_row = np.where((there_row >= 0) & (there_row < rows), there_row, row)
    there_column = np.where((there_column >= 0) & (there_column < columns), there_column, column)
    found = inside[there_row, there_column]
    return np.asarray(
        np.where(found, there_row * columns + there_column, row * columns + column), np.int64
    )

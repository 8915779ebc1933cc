"""Tissue is continued beyond the rim of a sector, as in a mirror, before the network looks.

A sector ends at black. A network that averages what lies about a pixel would have to know, pixel by
pixel, which of its surroundings are no tissue; the student does not, and leaves a rim of speckle
two or three pixels wide. With its mirror image beyond the rim the tissue has no end there. Only
what is black is replaced, only for the network to see: those pixels themselves never change. Nor do
those of other areas that are evenly black, such as the box that an anonymiser lays over a name: a
network draws tissue into them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

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
SIGN_PIXELS, SIGN_LEVEL, SIGN_FULL = 600, 100, 0.5
"""A lit spot by itself is a letter or a tick where it has fewer pixels, is as bright somewhere, and
where a share of its pixels, or more, has most of its brightest level: tissue fades."""
_MOST = 0.6
BEYOND_SHARE = 0.015
"""Smaller black areas, as a share of the image, are tissue without echo, such as a cyst."""
LIT_AGAIN = 0.02
"""Share of the replaced, or of all black pixels that must be lit for the rim to be another one."""
DEAD_PX = 16
"""Side of the smallest square that counts as evenly black: grains of speckle are smaller."""
_DOUBLING = (1, 2, 4, 8)
"""Steps that make one pixel `DEAD_PX` of them."""
_BLOCK_PX, _BLOCKS_ABOUT = 8, 9


@dataclass(frozen=True)
class Rim:
    """Which black pixels beyond the rim are replaced by which of the tissue.

    Attributes
    ----------
    outside, source : Tensor, (pixels,), int64
        Indices into the flattened image.
    beyond : Tensor, (rows, columns), bool
        Those outside, and as many again, where the mirror image ends: they stay as they are.
    black : Tensor, (rows, columns), bool
        The same and what is evenly black, which stays as it is for as long as it is black. No
        pixels at all where there is no such place.
    """

    outside: Tensor
    source: Tensor
    beyond: Tensor
    black: Tensor

    def continued(self, x: Tensor) -> Tensor:
        """Images, (..., rows, columns), with tissue beyond the rim."""
        if not len(self.outside):
            return x
        flat = x.flatten(-2).clone()
        flat[..., self.outside] = flat[..., self.source]
        return flat.view(x.shape)

    def without(self, removed: Tensor, grey: Tensor | None = None) -> Tensor:
        """What is removed, (..., rows, columns), but nothing where there is no tissue.

        Later frames, `grey`, of the same shape, uint8, may show tissue in what was evenly black.
        """
        if not self.black.numel():
            return removed
        if grey is None:
            return removed.masked_fill(self.black, 0)
        return removed.masked_fill(self.beyond | (self.black & squares(grey <= BLACK)), 0)

    def to(self, device: torch.device) -> Rim:
        """On a device."""
        parts = (self.outside, self.source, self.beyond, self.black)
        return Rim(*(part.to(device) for part in parts))

    def is_lit(self, grey: Tensor) -> bool:
        """Whether one of later frames, (..., rows, columns), uint8, shows tissue in the black."""
        if not self.black.numel():
            return False
        lit = grey > BLACK
        beyond = lit.flatten(-2)[..., self.outside].double().mean(-1) > LIT_AGAIN
        count = (lit & self.black).count_nonzero((-2, -1))  # of so many pixels, faster than a mean
        return bool((beyond | (count > LIT_AGAIN * self.black.count_nonzero())).any())


def no_rim() -> Rim:
    """Replaces nothing."""
    none = torch.empty(0, dtype=torch.int64)
    nowhere = torch.empty(0, dtype=torch.bool)
    return Rim(none, none, nowhere, nowhere)


def squares(mask: Tensor) -> Tensor:
    """What squares of `DEAD_PX` that lie in a mask, (..., rows, columns), bool, cover of it.

    On whatever device, in steps of 1, 2, 4 and 8 pixels.
    """
    if min(mask.shape[-2:]) < DEAD_PX:
        return torch.zeros_like(mask)
    for axis in (-2, -1):
        for reach in _DOUBLING:
            length = mask.shape[axis] - reach
            mask = mask.narrow(axis, 0, length) & mask.narrow(axis, reach, length)
    for axis in (-2, -1):
        for reach in _DOUBLING:
            mask = _padded(mask, axis, 0, reach) | _padded(mask, axis, reach, 0)
    return mask


def _padded(mask: Tensor, axis: int, before: int, after: int) -> Tensor:
    sides = (before, after) if axis == -1 else (0, 0, before, after)
    return F.pad(mask, sides)


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
    if reach_px == 0:
        return no_rim()
    lit = image > BLACK
    dead = _evenly_black(image)
    if 0 < lit.mean() <= 1 - BEYOND_SHARE:
        inside = _tissue(lit & ~_signs(image, lit))
        if inside.any() and not inside.all():
            return _beyond(image, inside, dead, reach_px)
    if not dead.any():
        return no_rim()
    black = torch.from_numpy(dead)
    return replace(no_rim(), beyond=torch.zeros_like(black), black=black)


def _beyond(image: Grey, inside: Mask, dead: Mask, reach_px: int) -> Rim:
    """The rim of known tissue."""
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
    beyond = np.zeros_like(dead)
    beyond.ravel()[black] = True
    return Rim(*map(torch.from_numpy, (outside, source, beyond, beyond | dead)))


def _evenly_black(image: Grey) -> Mask:
    """Black areas, a compression's ripple included, that are nowhere narrower than `DEAD_PX`."""
    return np.asarray(squares(torch.from_numpy(image <= BLACK)).numpy())


def _signs(image: Grey, lit: Mask) -> Mask:
    """Letters, ticks and arrows that stand by themselves, however close to the tissue."""
    spots, _ = ndimage.label(lit, np.ones((3, 3)))
    pixels = np.bincount(spots.ravel())
    small = pixels < SIGN_PIXELS
    small[0] = False
    places = np.flatnonzero(small[spots])
    spot, level = spots.ravel()[places], image.ravel()[places]
    brightest_level = np.zeros(len(pixels), np.uint8)
    np.maximum.at(brightest_level, spot, level)
    bright = np.bincount(spot[level >= _MOST * brightest_level[spot]], minlength=len(pixels))
    signs = (brightest_level >= SIGN_LEVEL) & (bright >= SIGN_FULL * pixels)
    found = np.zeros_like(lit)
    found.ravel()[places] = signs[spot]
    return found


def _tissue(lit: Mask) -> Mask:
    """Lit areas without their dark notches and holes, and without other text."""
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

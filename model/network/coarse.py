"""The part of what a network removes that is as large as a lesion."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

from model.network.folding import unfolded

CELL_PX = 4
"""A gate says for cells of this side what stays."""


def halved(folded: Tensor) -> Tensor:
    """Means over 2x2 pixels, straight from the channels.

    Parameters
    ----------
    folded : Tensor, (batch, unshuffle ** 2, rows, columns)
        An even `unshuffle`.

    Returns
    -------
    Tensor, (batch, rows * unshuffle / 2, columns * unshuffle / 2), float32
    """
    batch, channels, rows, columns = folded.shape
    side = math.isqrt(channels) // 2
    cells = folded.reshape(batch, side, 2, side, 2, rows, columns)
    means = cells.mean((2, 4), dtype=torch.float32)
    return unfolded(means.flatten(1, 2), side)[:, 0]


def coarse_part(halves: Tensor, share: Tensor | float = 1.0, wide_share: float = 0.0) -> Tensor:
    """Shares of what is removed at the size of lesions: of 8 pixels and more, of 16 and more.

    A network that seeks the mean flattens a faint lesion that might as well be a whim of the
    speckle. A share of this part is therefore left in: the same everywhere, chosen at the export
    from the measured trade between lesions kept and decibels, or what the network says. Means over
    wider surroundings hold less speckle, so that more of them may stay.

    Parameters
    ----------
    halves : Tensor, (batch, rows / 2, columns / 2), float32
        What is removed, means over 2x2 pixels. Three axes and float32 because one channel that lies
        channels-last, or bfloat16, is slow to pool. Sides are even.
    share : float or Tensor, (batch, 1, rows / 4, columns / 4)
        Of structures of about 8 pixels and more, 0..1.
    wide_share : float
        Of structures of about 16 pixels and more, 0..1 of what `share` leaves of them.

    Returns
    -------
    Tensor, (batch, 1, rows, columns), float32
    """
    overlapping = F.avg_pool2d(halves, CELL_PX, CELL_PX // 2, 1, False, False)
    kept = (share[:, 0] if isinstance(share, Tensor) else share) * overlapping
    if wide_share:
        kept = kept + wide_share * _widened(overlapping - kept)
    scale = float(CELL_PX)
    part = F.interpolate(kept[None], scale_factor=scale, mode="bilinear", align_corners=False)
    return part[0][:, None]


def wide_part(removed: Tensor, share: float) -> Tensor:
    """A share of what is removed over surroundings of about 16 pixels and more.

    Parameters
    ----------
    removed : Tensor, (batch, 1, rows, columns), float32
        Sides of any length.
    share : float, 0..1
    """
    rows, columns = removed.shape[-2:]
    cell = 2 * CELL_PX
    whole = F.pad(removed[:, 0], (0, -columns % cell, 0, -rows % cell), mode="replicate")
    part = coarse_part(F.avg_pool2d(whole, 2), 0.0, share)
    return part[..., :rows, :columns]


def _widened(cells: Tensor) -> Tensor:
    """Means over 5x5 cells, tapering as 1, 2, 3, 2, 1; the border cells go on outside."""
    h = F.pad(cells, (2, 2, 2, 2), mode="replicate")
    for _ in range(2):
        h = h[:, :-2] + h[:, 1:-1] + h[:, 2:]
        h = h[..., :-2] + h[..., 1:-1] + h[..., 2:]
    return h / 81

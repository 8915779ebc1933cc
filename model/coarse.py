"""The part of what a network removes that is as large as a lesion."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

from model.folding import unfolded

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


def coarse_part(halves: Tensor, share: Tensor | float = 1.0) -> Tensor:
    """A share of what is removed at the size of lesions: structures of about 8 pixels and more.

    A network that seeks the mean flattens a faint lesion that might as well be a whim of the
    speckle. A share of this part is therefore left in: the same everywhere, chosen at the export
    from the measured trade between lesions kept and decibels, or what the network says.

    Parameters
    ----------
    halves : Tensor, (batch, rows / 2, columns / 2), float32
        What is removed, means over 2x2 pixels. Three axes and float32 because one channel that lies
        channels-last, or bfloat16, is slow to pool. Sides are even.
    share : float or Tensor, (batch, 1, rows / 4, columns / 4)
        0..1.

    Returns
    -------
    Tensor, (batch, 1, rows, columns), float32
    """
    overlapping = F.avg_pool2d(halves, CELL_PX, CELL_PX // 2, 1, False, False)
    kept = (share[:, 0] if isinstance(share, Tensor) else share) * overlapping
    scale = float(CELL_PX)
    part = F.interpolate(kept[None], scale_factor=scale, mode="bilinear", align_corners=False)
    return part[0][:, None]

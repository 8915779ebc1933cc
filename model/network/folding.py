"""Pixels to channels and back, several times as fast as ``F.pixel_unshuffle`` and its inverse.

Where channels lie last, two neighbours in a row stay neighbours in memory. Two of bfloat16 or
float32 are then moved at once, as one integer.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

_PAIR = 2
_INTEGERS = {2: torch.int32, 4: torch.int64}
"""Integer as large as two numbers of so many bytes."""


def folded(pixels: Tensor, side: int) -> Tensor:
    """Blocks of pixels to channels.

    Parameters
    ----------
    pixels : Tensor, (batch, 1, rows, columns)
        Sides are multiples of `side`.
    side : int
        Of a block.

    Returns
    -------
    Tensor, (batch, side ** 2, rows / side, columns / side)
    """
    if not _in_pairs(pixels, side):
        return F.pixel_unshuffle(pixels, side)
    batch, _, rows, columns = pixels.shape
    lines = pixels.reshape(batch, rows // 2, 2, columns).contiguous()
    blocks = lines.view(_INTEGERS[pixels.element_size()]).transpose(2, 3).contiguous()
    return blocks.view(pixels.dtype).reshape(batch, rows // 2, columns // 2, 4).permute(0, 3, 1, 2)


def unfolded(channels: Tensor, side: int) -> Tensor:
    """Channels to blocks of pixels, the inverse of `folded`."""
    batch, _, rows, columns = channels.shape
    blocks = channels.permute(0, 2, 3, 1).reshape(batch, rows, columns, side, side)
    if _in_pairs(channels, side):
        pairs = blocks.contiguous().view(_INTEGERS[channels.element_size()])
        lines = pairs.transpose(2, 3).contiguous().view(channels.dtype)
    else:
        lines = blocks.transpose(2, 3)
    return lines.reshape(batch, 1, rows * side, columns * side)


def _in_pairs(numbers: Tensor, side: int) -> bool:
    """Whether two neighbours can be moved as an integer, which has no gradient."""
    return side == _PAIR and not torch.is_grad_enabled() and numbers.element_size() in _INTEGERS

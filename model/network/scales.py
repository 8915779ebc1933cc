"""Coarse speckle is taken out at half the size first: how coarse it is, and how it is done.

A network knows speckle of the sizes that it was trained on. Many scanners store images enlarged
beyond what their beams resolve, with grains of ten pixels and more; to a network these look like
small structures, and it keeps them as strokes and blotches. At half the size they are grains again.
What is removed there is enlarged and taken away before the network looks at the whole size. There
it removes what is fine alone: what is wide and left by half the size, such as a faint lesion, it
would take for the last of the speckle.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

from model.network.coarse import wide_part

Residual = Callable[[Tensor], Tensor]
"""(batch, 1, rows, columns), 0..1, to what is to be removed, same shape."""

FINE_PX, COARSE_PX = 4.5, 6.0
"""Widths of speckle where nothing, and where all, of what half the size shows is taken away first.
Between them in proportion. At half the size a lesion is half as wide and soon lost: what the
network can take out at the whole size it had better take out there."""
LEAST_PIXELS = 4000
"""Fewer lit pixels say nothing of the size of speckle."""
_WIDEST_PX = 40
_LIT = 15 / 255
_OUTLIER = 3.0


@torch.inference_mode()
def speckle_px(x: Tensor, removed: Tensor, tissue: Tensor | None = None) -> float:
    """Width of the speckle: where the autocorrelation of what is removed has fallen to half.

    Parameters
    ----------
    x, removed : Tensor, (batch, 1, rows, columns), 0..1
        Images and what a network removes of them; dark places do not count, and values beyond
        three standard deviations, such as text, count as three.
    tissue : Tensor, (rows, columns), bool, optional
        The pixels that count; all of them where none is given.

    Returns
    -------
    float
        Geometric mean of both directions' full widths, pixels; `nan` where too little is lit.
    """
    grain, grey = removed[:, 0].float(), x[:, 0].float()
    lit = (grey > 0) & (grey - grain > _LIT)
    if tissue is not None:
        lit &= tissue
    if int(lit.sum()) < LEAST_PIXELS:
        return math.nan
    limit = _OUTLIER * 1.4826 * float(grain[lit].abs().median())
    grain = grain.clamp(-limit, limit) * lit
    power = float((grain**2).sum() / lit.sum())
    if power == 0:
        return math.nan
    widths = [_half_width(grain, lit, axis, power) for axis in (1, 2)]
    return 2 * math.sqrt(widths[0] * widths[1])


def coarse_share(width_px: float) -> float:
    """How much of what half the size shows is taken away first, 0..1; none for `nan`."""
    if math.isnan(width_px):
        return 0.0
    return min(1.0, max(0.0, (width_px - FINE_PX) / (COARSE_PX - FINE_PX)))


def residual_measured(residual: Residual, x: Tensor, removed: Tensor, halvings: int) -> Tensor:
    """What is removed over as many scales as the speckle of the images themselves asks for.

    Parameters
    ----------
    residual : callable
        The network at one scale.
    x : Tensor, (batch, 1, rows, columns), 0..1
        One width is taken of them all.
    removed : Tensor
        What the network removes of them at one scale; it is the answer where speckle is fine.
    halvings : int
        Times the images may be halved.
    """
    if halvings == 0:
        return removed
    width_px = speckle_px(x, removed)
    if coarse_share(width_px) == 0:
        return removed
    return residual_over_scales(residual, x, width_px, halvings)


def residual_over_scales(residual: Residual, x: Tensor, width_px: float, halvings: int) -> Tensor:
    """What is removed, at half the size first where speckle is coarse, and so on down.

    Parameters
    ----------
    residual : callable
        The network at one scale.
    x : Tensor, (batch, 1, rows, columns), 0..1
    width_px : float
        From `speckle_px`; one for a whole cine, or its frames would not match.
    halvings : int
        Times the image may be halved.

    Returns
    -------
    Tensor
        Shape of `x`; float32 where the image was halved.
    """
    share = coarse_share(width_px)
    if share == 0 or halvings == 0:
        return residual(x)
    small = residual_over_scales(residual, _halved(x), width_px / 2, halvings - 1)
    coarse = share * _doubled(small, x.shape[-2:])
    fine = residual((x.float() - coarse).to(x.dtype)).float()
    return coarse + fine - wide_part(fine, share)


def _half_width(grain: Tensor, lit: Tensor, axis: int, power: float) -> float:
    """Lag, pixels, at which the autocorrelation along one axis is half of the power."""
    before, length = 1.0, grain.shape[axis]
    for lag in range(1, min(_WIDEST_PX, length - 1) + 1):
        here, there = (0, length - lag), (lag, length - lag)
        both = lit.narrow(axis, *here) & lit.narrow(axis, *there)
        product = grain.narrow(axis, *here) * grain.narrow(axis, *there)
        after = float(product.sum() / both.sum().clamp_min(1)) / power
        if after < 0.5:  # noqa: PLR2004 half the power
            return lag - 1 + (before - 0.5) / (before - after)
        before = after
    return float(_WIDEST_PX)


def _halved(x: Tensor) -> Tensor:
    """Means over 2x2 pixels, borders repeated; same kind of numbers."""
    rows, columns = x.shape[-2:]
    even = F.pad(x[:, 0].float(), (0, columns % 2, 0, rows % 2), mode="replicate")
    return F.avg_pool2d(even, 2)[:, None].to(x.dtype)


def _doubled(small: Tensor, shape: torch.Size) -> Tensor:
    """Enlarged to `shape`, float32."""
    large = F.interpolate(small.float(), scale_factor=2.0, mode="bilinear", align_corners=False)
    return large[..., : shape[0], : shape[1]]

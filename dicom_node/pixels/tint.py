"""The tint of a scanner's grey map (sepia, cold blue): a colour for each luminance.

A tinted B-mode image is still grey in the sense of PS3.3 C.8.5.5: all its tissue lies on one
curve through RGB, which colour Doppler, text and graphics leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dicom_node.pixels.colour import Frame, luminance
from dicom_node.pixels.morphology import Mask

_BIN: Final = 8
_FEWEST: Final = 64
"""Pixels that a bin needs before its median counts."""
_NEUTRAL: Final = 6
"""A curve that spreads less than this is no tint."""
_STRONGEST: Final = 90
"""A curve that spreads more than this is colour, not a grey map."""
_STEEPEST: Final = 24
"""Change from one bin to the next that no grey map makes."""
_CONFORMING: Final = 0.8
"""Share of the area that has to lie on the curve."""


def estimate(frames: Sequence[Frame], area: Mask) -> NDArray[np.int16]:
    """The tint of the pixels in an area.

    Parameters
    ----------
    frames : sequence of ndarray, (rows, columns, 3), uint8
    area : ndarray, (rows, columns), bool

    Returns
    -------
    ndarray, (256, 3), int16
        What to add to a luminance to get the colour; zeros where the area is not tinted.
    """
    neutral = np.zeros((256, 3), np.int16)
    pixels = np.concatenate([frame[area][::3] for frame in frames])
    levels = luminance(pixels[None])[0]
    offsets = pixels.astype(np.int16) - levels[:, None]
    centres: list[float] = []
    medians: list[NDArray[np.float64]] = []
    for low in range(0, 256, _BIN):
        members = offsets[(levels >= low) & (levels < low + _BIN)]
        if len(members) < _FEWEST:
            continue
        quarter, median, three = np.percentile(members, [25, 50, 75], axis=0)
        step = np.abs(median - medians[-1]).max() if medians else 0
        # Graphics of one colour can fill a bin of bright luminances: pass over it.
        if max(step, (three - quarter).max()) <= _STEEPEST:
            centres.append(low + (_BIN - 1) / 2)
            medians.append(median)
    if not centres:
        return neutral
    table = np.asarray(medians)
    if not _NEUTRAL <= np.ptp(table, axis=1).max() <= _STRONGEST:
        return neutral
    channels = [np.interp(np.arange(256), centres, table[:, channel]) for channel in range(3)]
    curve = np.rint(np.stack(channels, axis=1)).astype(np.int16)
    conforming = np.ptp(offsets - curve[levels], axis=1) <= 2 * _NEUTRAL
    return curve if conforming.mean() >= _CONFORMING else neutral


def spread(frame: Frame, curve: NDArray[np.int16]) -> NDArray[np.int16]:
    """How far each pixel's channels lie apart once the tint is taken away.

    Returns
    -------
    ndarray, (rows, columns), int16, grey levels
    """
    if not curve.any():
        red, green, blue = frame[..., 0], frame[..., 1], frame[..., 2]
        top = np.maximum(np.maximum(red, green), blue)
        bottom = np.minimum(np.minimum(red, green), blue)
        return (top - bottom).astype(np.int16)
    shade = luminance(frame)
    channels = [frame[..., i] - np.take(curve[:, i], shade) for i in range(3)]
    top = np.maximum(np.maximum(channels[0], channels[1]), channels[2])
    return np.asarray(top - np.minimum(np.minimum(channels[0], channels[1]), channels[2]))

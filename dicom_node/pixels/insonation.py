"""Where a display shows speckle: found from the pixels alone, for want of better.

Not segmentation of anatomy. Serves two ends: inside stated regions it leaves out what the
scanner drew there (scales, bars, text, background); without stated regions it stands in for
them. Errs towards leaving pixels alone. No clause of the standard; DESIGN.md, decision 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dicom_node.pixels.morphology import (
    Mask,
    box_sum,
    components,
    dilate,
    filled,
    flood,
    opened,
    window_extremes,
)

Luminance = NDArray[np.uint8]

_FLAT_RADIUS: Final = 2
_WIDE_RADIUS: Final = 6
_BLOCKS_ACROSS: Final = 72
_DENSE: Final = 0.5
"""Share of a block that must carry texture; text covers less of the area it is set in."""
_COMPARABLE: Final = 0.04
"""Components down to this share of the largest one's area are views of their own: walls beyond a
dark chamber, say, or a sector above the sweep that it steers."""
_FILLS: Final = 0.8
_COARSEST: Final = 16
_BAR_WIDTH, _BAR_LENGTH, _BAR_CHANGE = 5, 16, 8
_HARD: Final = 60
"""Grey levels by which an overlay stands out from what lies under it."""
_LINE_LENGTH, _LINE_REACH, _LINE_LEVEL, _LINE_STEP = 24, 3, 90, 40
_LINE_CHANGE, _LINE_SPREAD = 10, 40
_MARK_LEVEL: Final = 150
_STROKE, _DIGITS = 6, 12
"""Pixels of ink in a window of 7 x 7: a thin line has seven, a letter more; of the reflectors of
two real palette cines that had the level of text all had fewer than twelve."""
_MOST_DIGITS: Final = 0.02
"""Share of the image above which what is dense is no digits, but tissue that is saturated."""
_LETTER_EDGE, _LETTER_GROUND, _LETTER_INK = 110, 30, 150
_SMALLEST: Final = 0.01
"""Share of the image below which nothing counts as a view."""


def flat(luminances: Sequence[Luminance], tolerance: int) -> Mask:
    """Pixels in a window that is uniform in every frame: background, not speckle.

    Parameters
    ----------
    luminances : sequence of ndarray, (rows, columns), uint8
    tolerance : int
        Of `noise_floor`.
    """
    even = np.ones(luminances[0].shape, bool)
    for image in luminances:
        low, high = window_extremes(image, _FLAT_RADIUS)
        even &= high - low <= tolerance
    uniform = dilate(even, _FLAT_RADIUS)
    # Small uniform spots occur in smooth speckle; background is wide somewhere near.
    return uniform & dilate(opened(uniform, _WIDE_RADIUS), _WIDE_RADIUS)


def noise_floor(frame: NDArray[np.uint8], *, lossy: bool) -> int:
    """Grey levels by which a uniform area may vary: compression, or coarse quantisation.

    Parameters
    ----------
    frame : ndarray, (rows, columns) or (rows, columns, 3), uint8
    lossy : bool
        The pixels went through lossy compression.
    """
    quantum = int(np.gcd.reduce(np.unique(frame)))
    coarse = quantum if 1 < quantum <= _COARSEST else 0
    return max(3 if lossy else 0, coarse)


def background_level(luminance: Luminance, uniform: Mask) -> int:
    """The luminance that most uniform pixels have; -1 where hardly any are uniform."""
    if uniform.mean() < 0.01:  # noqa: PLR2004
        return -1
    return int(np.bincount(luminance[uniform], minlength=256).argmax())


def views(textured: Mask) -> list[Mask]:
    """The areas densely covered with texture, the largest first, as masks of the image.

    Works on blocks of pixels: text, scales and bars are too sparse or too small there. Each
    view is filled, so that dark chambers belong to it; at its rim only those pixels do that
    hang together with it.

    Parameters
    ----------
    textured : ndarray, (rows, columns), bool
        Grey pixels that are not flat.
    """
    rows, columns = textured.shape
    side = max(4, min(rows, columns) // _BLOCKS_ACROSS)
    high, wide = -(-rows // side), -(-columns // side)
    padded = np.zeros((high * side, wide * side), np.float32)
    padded[:rows, :columns] = textured
    share = padded.reshape(high, side, wide, side).mean(axis=(1, 3))
    dense = share >= _DENSE
    core = dense & (box_sum(dense, 1) >= 6)  # noqa: PLR2004 - of nine; drops single rows
    found = components(core)
    if not found:
        return []
    smallest = max(_COMPARABLE * found[0].sum(), _SMALLEST * core.size)

    def pixels(blocks: Mask) -> Mask:
        return np.repeat(np.repeat(blocks, side, 0), side, 1)[:rows, :columns]

    result = []
    for component in found:
        if component.sum() < smallest:
            break
        body = filled(component)
        rim = pixels(dilate(component, 3) & (share > 0)) & textured
        joined = flood(pixels(component), rim | pixels(component), steps=3 * side)
        result.append(filled(joined | pixels(body)))
    return result


def stacked(first: Mask, second: Mask) -> bool:
    """Whether one view lies above the other, as a sector does above its sweep.

    M-mode and spectral sweeps are textured too; without stated regions nothing tells them
    from tissue.
    """
    rows = first.any(axis=1) & second.any(axis=1)
    columns = first.any(axis=0) & second.any(axis=0)
    return bool(columns.sum() > rows.sum())


def rectangular(view: Mask) -> bool:
    """Whether a view fills its rectangle, as sweeps and linear probes do, and sectors do not."""
    rows, columns = view.any(axis=1).sum(), view.any(axis=0).sum()
    return bool(view.sum() >= _FILLS * rows * columns)


def overlay_levels(luminance: Luminance, outside: Mask) -> list[int]:
    """Luminances that text outside the tissue is drawn in.

    Parameters
    ----------
    outside : ndarray, (rows, columns), bool
        Where no tissue is.
    """
    ink = outside & (luminance >= 100)  # noqa: PLR2004
    thin = ink & ~opened(ink, 3)
    counts = np.bincount(luminance[thin], minlength=256)
    enough = max(60, counts.sum() // 10)
    return [int(level) for level in np.flatnonzero(counts >= enough)]


def lettering(luminance: Luminance) -> Mask:
    """Where text is set, however smoothed its strokes: hard edges against black, densely.

    Letters swing from near black to bright all over, and have little between; speckle is limited
    to the bandwidth of the scanner, and most of it lies between.
    """
    low, high = window_extremes(luminance, 1)
    ground = luminance <= _LETTER_GROUND
    hard = (high.astype(np.int16) - low >= _LETTER_EDGE) & (low <= _LETTER_GROUND)
    window = 7 * 7
    dense = (
        (box_sum(hard, 3) >= 0.45 * window)
        & (box_sum(ground, 3) >= 0.3 * window)
        & (box_sum(luminance >= _LETTER_INK, 3) >= 0.12 * window)
    )
    return dilate(dense, 4) if dense.any() else dense


def strokes(luminances: Sequence[Luminance], levels: Sequence[int], *, lossy: bool) -> Mask:
    """Text, callipers and lines drawn over tissue, as far as that is certain, with a margin.

    A stroke is thin, has exactly the luminance of text elsewhere in the display (nearly, where
    compression was lossy), stands out hard, is more than a few pixels long, and stands still. A
    clock or a heart rate does not stand still: digits are told by being dense, where their level
    is exact, and few.
    """
    if not levels:
        return np.zeros(luminances[0].shape, bool)
    inks = (_ink(image, levels, lossy=lossy) for image in luminances)
    first = next(inks)
    if len(luminances) == 1:
        return _gathered(first, _STROKE)
    found = _gathered(first & _still(luminances), _STROKE)
    if not lossy:
        digits = np.logical_or.reduce([_gathered(ink, _DIGITS) for ink in (first, *inks)])
        if (digits & ~found).mean() <= _MOST_DIGITS:
            found |= digits
    return found


def _ink(luminance: Luminance, levels: Sequence[int], *, lossy: bool) -> Mask:
    """What is thin, of one of the levels, and stands out hard."""
    image = luminance.astype(np.int16)
    found = np.zeros(image.shape, bool)
    tolerance = 8 if lossy else 0
    for level in levels:
        close = np.abs(image - level) <= tolerance
        found |= close & ~opened(close, 3)
    low, _ = window_extremes(luminance, 2)
    return np.asarray(found & (image - low >= _HARD))


def _gathered(ink: Mask, fewest: int) -> Mask:
    """The ink that lies with so much of it in a window of 7 x 7 pixels, with a margin."""
    gathered = ink & (box_sum(ink, 3) >= fewest)
    return dilate(gathered, 2) if gathered.any() else gathered


def marks(luminance: Luminance, *, lossy: bool) -> Mask:
    """Dots and crosses of exactly one level that stand out hard all around, with a margin.

    Depth marks on the rim of a sector, say, in whatever level. Speckle is interpolated and has no
    such plateaus; where compression was lossy neither have marks.
    """
    solid = (luminance >= _MARK_LEVEL)[:-1, :-1]
    for other in (luminance[1:, :-1], luminance[:-1, 1:], luminance[1:, 1:]):
        solid = solid & (luminance[:-1, :-1] == other)
    if lossy or not solid.any():
        return np.zeros(luminance.shape, bool)
    level = np.zeros_like(luminance)
    level[:-1, :-1] = np.where(solid, luminance[:-1, :-1], 0)
    _, nearby = window_extremes(level, 2)
    members = (nearby > 0) & (luminance == nearby)
    _, around = window_extremes(np.where(members, 0, luminance), 2)
    standing_out = members & (luminance.astype(np.int16) - around >= _HARD)
    return dilate(standing_out, 1)


def bars(luminance: Luminance, tolerance: int) -> Mask:
    """Grey scales: strips that run evenly from dark to bright and are uniform across.

    At least five pixels wide and sixteen long, upright or lying.
    """
    tolerance = min(tolerance, 2)
    return _upright_bars(luminance, tolerance) | _upright_bars(luminance.T, tolerance).T


def _upright_bars(image: Luminance, tolerance: int) -> Mask:
    rows, columns = image.shape
    length = max(_BAR_LENGTH, min(rows, columns) // 20)
    strip = np.zeros(image.shape, bool)
    if rows <= length or columns < _BAR_WIDTH:
        return strip
    values = image.astype(np.int16)
    across = np.stack([values[:, i : columns - _BAR_WIDTH + 1 + i] for i in range(_BAR_WIDTH)])
    uniform = np.ptp(across, axis=0) <= tolerance
    middle = across[_BAR_WIDTH // 2]
    step = np.diff(middle, axis=0)
    change = np.abs(middle[length:] - middle[:-length]) >= _BAR_CHANGE
    even = np.zeros(change.shape, bool)
    for monotone in (step >= -tolerance, step <= tolerance):
        even |= _runs(monotone & uniform[1:] & uniform[:-1], length)
    starts = even & change
    if starts.any():
        half = _BAR_WIDTH // 2
        for shift in range(length + 1):
            strip[shift : shift + len(starts), half : half + starts.shape[1]] |= starts
        strip = dilate(strip, half + 1)
    return strip


def ruled(luminance: Luminance) -> Mask:
    """Thin, straight lines along rows or columns, as boxes and scales are drawn, with a margin.

    Even in brightness over a tenth of the display and darker on both sides; no interface in tissue
    keeps to one column or row, and to one brightness, for so long.
    """
    return _upright_lines(luminance) | _upright_lines(luminance.T).T


def _upright_lines(image: Luminance) -> Mask:
    rows, columns = image.shape
    length = max(_LINE_LENGTH, min(rows, columns) // 10)
    found = np.zeros(image.shape, bool)
    if rows <= length or columns <= 2 * _LINE_REACH:
        return found
    values = image.astype(np.int16)
    middle = values[:, _LINE_REACH:-_LINE_REACH]
    beside = np.maximum(values[:, : -2 * _LINE_REACH], values[:, 2 * _LINE_REACH :])
    drawn = (middle >= _LINE_LEVEL) & (middle - beside >= _LINE_STEP)
    even = np.abs(np.diff(middle, axis=0)) <= _LINE_CHANGE
    starts = _runs(drawn[1:] & drawn[:-1] & even, length)
    if starts.any():
        along = np.lib.stride_tricks.sliding_window_view(middle, length + 1, axis=0)
        starts[starts] = np.ptp(along[starts], axis=1) <= _LINE_SPREAD
    if starts.any():
        inner = found[:, _LINE_REACH:-_LINE_REACH]
        for shift in range(length + 1):
            inner[shift : shift + len(starts)] |= starts
        found = dilate(found, 1)
    return found


def _runs(mask: Mask, length: int) -> Mask:
    """Where a run of `length` set rows begins."""
    total = np.zeros((mask.shape[0] + 1, mask.shape[1]), np.int32)
    np.cumsum(mask, axis=0, out=total[1:])
    return np.asarray(total[length:] - total[:-length] == length)


def furniture(luminances: Sequence[Luminance]) -> Mask:
    """What stands still and bright while the tissue about it moves, with a margin.

    Needs at least five frames; else nothing is certain and the mask is empty.
    """
    shape = luminances[0].shape
    if len(luminances) < 5:  # noqa: PLR2004
        return np.zeros(shape, bool)
    moving = _spread(luminances) > 16  # noqa: PLR2004
    low, high = window_extremes(luminances[0], 2)
    hard = high - low >= _HARD
    still = _still(luminances) & (luminances[0] >= 48)  # noqa: PLR2004
    about = box_sum(moving, 7)
    drawn = still & ((about > 0.4 * 15 * 15) | (hard & (about > 0.1 * 15 * 15)))
    return dilate(drawn & (box_sum(drawn, 2) >= 4), 2)  # noqa: PLR2004


def _spread(luminances: Sequence[Luminance]) -> Luminance:
    low = np.minimum.reduce(luminances)
    return np.asarray(np.maximum.reduce(luminances) - low)


def _still(luminances: Sequence[Luminance]) -> Mask:
    return np.asarray(_spread(luminances) <= 4)  # noqa: PLR2004

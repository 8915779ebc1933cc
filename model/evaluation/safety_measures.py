"""What was lost and what appeared, of one method on one part of the grounds.

Pure functions from outputs and scenes to figures under the heading of their column.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, signal

from model import metrics
from model.baselines import Grey, Method
from model.evaluation.contenders import Contender
from model.evaluation.safety_grounds import (
    BRIGHTNESS_DB,
    GREY_PER_DB,
    LINE_WIDTHS_PX,
    Drawn,
    Grey8,
    Line,
)
from model.evaluation.tables import mean
from model.simulation.scene import Scene

DISCS_PX = (6, 10, 16, 24)
"""Structures looked for in even speckle."""
STANDS_OUT_DB = 1.0
RARELY = "99.9 % dB"
"""What one place in a thousand stands out by."""
STROKE_LENGTH_PX = 19
"""Strokes looked for in even speckle: as long, and three pixels wide."""
LESIONS_TOLD, NOTHING_TOLD, TOLD_OVER_CHANCE = "lesions", "nothing", "over chance"
TOLD_FROM_PX = 10
"""Least diameter of a lesion whose gCNR is taken."""
KEPT_SHARE = 0.5
"""Of its contrast, that a lesion needs to survive."""
TEXT_CHANGE_GREY = 3.0
"""A pixel of text that moved by more is changed."""
FLICKER = "flicker, times lower"
PERIODS_PX = (2, 4, 8, 16)
"""Of the grids that networks may draw."""
SHIFT_MARGIN_PX = 28
"""Border in which a crop may change the output of a method."""
_DIRECTIONS = 12
_BESIDE_PX = (4, 8)
"""From and to where, on either side of a stroke's middle, its surroundings lie."""
_PHASES_PX, _LARGEST_SHIFT_PX = 4, PERIODS_PX[-1] // 2
_PROFILE_PX, _PROFILE_STEP_PX, _ALONG_PX = 9.0, 0.25, 14.0

Figures = dict[str, float]
Shift = tuple[int, int]


def lesions_kept(
    outputs: Sequence[Grey], scenes: Sequence[Scene], diameter_px: float
) -> tuple[float, float]:
    """What is left of the lesions of one size.

    Returns
    -------
    survival : float
        Share that keeps its sign and half of its contrast in the reference; `nan` for none.
    contrast : float
        Sum of their contrasts in the output, with the reference's sign, over that in the
        reference.
    """
    shown, expected = [], []
    for image, scene in zip(outputs, scenes, strict=True):
        for lesion in scene.lesions:
            if lesion.diameter_px == diameter_px:
                reference = metrics.contrast(scene.target, lesion.mask, lesion.ring)
                found = metrics.contrast(image, lesion.mask, lesion.ring)
                shown.append(math.copysign(1, reference) * found)
                expected.append(abs(reference))
    if not sum(expected):
        return math.nan, math.nan
    pairs = zip(shown, expected, strict=True)
    return mean(float(s >= KEPT_SHARE * e) for s, e in pairs), sum(shown) / sum(expected)


def told_apart(
    outputs: Sequence[Grey], scenes: Sequence[Scene], even_outputs: Sequence[Grey]
) -> Figures:
    """How well lesions are told from tissue (gCNR), the same places without, and the difference.

    Of whole grey levels. Where nothing is, gCNR is not 0: in the few independent grains of a small
    area two histograms differ by chance, and how many are independent is the method's doing.

    Parameters
    ----------
    outputs : sequence of ndarray, (rows, columns)
        Of the scenes.
    scenes : sequence of Scene
        With lesions.
    even_outputs : sequence of ndarray, (rows, columns)
        Of even tissue, of the same size; taken in turn.
    """
    there, nowhere = [], []
    for index, (image, scene) in enumerate(zip(outputs, scenes, strict=True)):
        even = even_outputs[index % len(even_outputs)]
        for lesion in scene.lesions:
            if lesion.diameter_px >= TOLD_FROM_PX:
                there.append(metrics.gcnr(np.rint(image), lesion.mask, lesion.ring))
                nowhere.append(metrics.gcnr(np.rint(even), lesion.mask, lesion.ring))
    found = {LESIONS_TOLD: mean(there), NOTHING_TOLD: mean(nowhere)}
    return found | {TOLD_OVER_CHANCE: found[LESIONS_TOLD] - found[NOTHING_TOLD]}


def appeared(outputs: Sequence[Grey], scenes: Sequence[Scene]) -> Figures:
    """How far discs and strokes stand out of even speckle.

    The 95th percentile in dB, the share above 1 dB in %, and the 99.9th percentile in dB: what a
    method that decides invents is rare and plain.
    """
    found: Figures = {}
    for diameter in DISCS_PX:
        departures = np.concatenate(
            [
                metrics.structure_departures(
                    image, scene.target, np.ones(image.shape, bool), diameter_px=diameter
                )
                for image, scene in zip(outputs, scenes, strict=True)
            ]
        )
        found |= _standing_out(f"{diameter} px", departures)
    strokes = [_strokes(image - scene.target) for image, scene in zip(outputs, scenes, strict=True)]
    return found | _standing_out("stroke", np.concatenate(strokes))


def _standing_out(label: str, departures: NDArray[np.floating]) -> Figures:
    """Percentiles in dB, and share above the limit in %, of departures in grey levels."""
    level = np.abs(departures) / GREY_PER_DB
    if not level.size:
        return {f"{label}, {figure}": math.nan for figure in ("dB", "%", RARELY)}
    often, rarely = np.percentile(level, (95, 99.9))
    return {
        f"{label}, dB": float(often),
        f"{label}, %": 100 * float((level > STANDS_OUT_DB).mean()),
        f"{label}, {RARELY}": float(rarely),
    }


def _strokes(error: Grey) -> NDArray[np.floating]:
    """How far the most conspicuous stroke at every place stands out, grey levels."""
    kernels = _stroke_kernels()
    found = [np.abs(signal.fftconvolve(error, kernel, mode="valid")) for kernel in kernels]
    strongest: NDArray[np.floating] = np.max(found, axis=0)
    return strongest.ravel()


@cache
def _stroke_kernels() -> tuple[NDArray[np.float64], ...]:
    """Mean along a stroke minus mean beside it, for each direction."""
    return tuple(_stroke_kernel(angle) for angle in np.arange(_DIRECTIONS) * np.pi / _DIRECTIONS)


def _stroke_kernel(angle: float) -> NDArray[np.float64]:
    reach = math.ceil(math.hypot(STROKE_LENGTH_PX / 2, _BESIDE_PX[1]))
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    along = np.abs(columns * np.cos(angle) + rows * np.sin(angle)) <= STROKE_LENGTH_PX / 2
    across = np.abs(rows * np.cos(angle) - columns * np.sin(angle))
    stroke = along & (across <= 1.5)  # noqa: PLR2004 px, half of its width
    beside = along & (across >= _BESIDE_PX[0]) & (across <= _BESIDE_PX[1])
    kernel: NDArray[np.float64] = stroke / stroke.sum() - beside / beside.sum()
    return kernel


def brightness_shifts(outputs: Sequence[Grey], scenes: Sequence[Scene]) -> Figures:
    """Mean shift of even tissue by class of brightness against the input, grey levels."""
    found: Figures = {}
    for level in BRIGHTNESS_DB:
        label = f"{level:g}"
        found[f"{label} dB"] = mean(
            metrics.mean_shift(scene.noisy, image, scene.labels[label])
            for image, scene in zip(outputs, scenes, strict=True)
        )
    found["largest"] = max(found.values(), key=abs)
    return found


def flicker_reductions(
    outputs: Sequence[Sequence[Grey]], cines: Sequence[Sequence[Scene]]
) -> Figures:
    """Temporal spread of the inputs over that of the outputs; infinite for still outputs.

    Parameters
    ----------
    outputs : sequence of sequence of ndarray
        A cine each, of as many frames as its scenes.
    cines : sequence of sequence of Scene
        Of a still tissue each.

    Returns
    -------
    dict of str to float
        Mean over the tissues, and the least of them; tissues differ more than methods do.
    """
    found = []
    for frames, scenes in zip(outputs, cines, strict=True):
        after = metrics.flicker(frames)
        before = metrics.flicker([scene.noisy for scene in scenes])
        found.append(before / after if after else math.inf)
    average = sum(found) / len(found) if found else math.nan
    return {FLICKER: average, f"{FLICKER}, least": min(found, default=math.nan)}


def shift_differences(method: Method, image: Grey8) -> Figures:
    """How the output changes when the image is shifted by whole pixels, grey levels.

    Shifts of 0 to 3 pixels on each axis give the root mean square and the largest difference, and
    the spread over a grid of period 2 or 4 (see `model.metrics.grid_energy`). For longer periods
    shifts by half of it are enough: they show what it adds to the shorter ones.
    """
    outputs = dict(_shifted_outputs(method, image))
    phases = [shift for shift in outputs if max(shift) < _PHASES_PX]
    differences = np.stack([outputs[shift] - outputs[0, 0] for shift in phases[1:]])
    found = {
        "shift, RMS": float(np.sqrt((differences**2).mean())),
        "shift, largest": float(np.abs(differences).max()),
    }
    for period in PERIODS_PX:
        offsets = _offsets(period)
        found[f"grid {period}"] = _spread([outputs[z, x] for z in offsets for x in offsets])
    return found


def _offsets(period: int) -> Sequence[int]:
    return range(period) if period <= _PHASES_PX else (0, period // 2)


def _shifted_outputs(method: Method, image: Grey8) -> Iterator[tuple[Shift, NDArray[np.float64]]]:
    """Outputs of shifted crops where all of them overlap, laid over one another."""
    reach = _LARGEST_SHIFT_PX
    rows, columns = (side - reach for side in image.shape)
    height, width = (side - 2 * SHIFT_MARGIN_PX - reach for side in (rows, columns))
    if min(height, width) < 1:
        raise ValueError(f"an image of {image.shape} leaves nothing within the margins")
    shifts = {(z, x): None for p in PERIODS_PX for z in _offsets(p) for x in _offsets(p)}
    for row, column in shifts:
        cut = np.ascontiguousarray(image[row : row + rows, column : column + columns])
        top, left = SHIFT_MARGIN_PX + reach - row, SHIFT_MARGIN_PX + reach - column
        output = method(cut)[top : top + height, left : left + width]
        yield (row, column), output.astype(np.float64)


def _spread(outputs: Sequence[NDArray[np.float64]]) -> float:
    return float(np.sqrt(np.stack(outputs).var(axis=0).mean()))


def drawing_changes(image: Grey, drawn: Drawn) -> Figures:
    """What became of text and lines: pixels changed, width gained and peak kept."""
    moved = np.abs(image[drawn.text] - drawn.image[drawn.text].astype(np.float64))
    found: Figures = {
        "text changed, %": 100 * float((moved > TEXT_CHANGE_GREY).mean()),
        "text moved, grey": float(moved.mean()),
    }
    for width in LINE_WIDTHS_PX:
        pairs = [
            (line_profile(drawn.image, line), line_profile(image, line))
            for line in drawn.lines
            if line.width_px == width
        ]
        found[f"{width:g} px line, wider px"] = mean(
            _width(after) - _width(before) for before, after in pairs
        )
        found[f"{width:g} px line, peak kept"] = mean(
            _rise(after) / _rise(before) for before, after in pairs
        )
    return found


def line_profile(image: Grey | Grey8, line: Line) -> NDArray[np.float64]:
    """Mean grey across a line, every quarter of a pixel, over the middle of its length."""
    across = np.arange(-_PROFILE_PX, _PROFILE_PX + _PROFILE_STEP_PX, _PROFILE_STEP_PX)
    along = np.arange(-_ALONG_PX, _ALONG_PX + 1)[:, None]
    z = line.centre[0] - along * np.sin(line.angle) + across * np.cos(line.angle)
    x = line.centre[1] + along * np.cos(line.angle) + across * np.sin(line.angle)
    found = ndimage.map_coordinates(image.astype(np.float64), (z, x), order=1, mode="nearest")
    return np.asarray(found.mean(axis=0))


def _width(profile: NDArray[np.float64]) -> float:
    return metrics.line_width(profile, spacing_px=_PROFILE_STEP_PX)


def _rise(profile: NDArray[np.float64]) -> float:
    quarter = len(profile) // 4
    return float(profile.max() - np.median(np.r_[profile[:quarter], profile[-quarter:]]))


def identity_at_zero(contender: Contender) -> float:
    """1 where a network at strength 0 returns its input bit for bit, 0 where not; else `nan`."""
    if contender.network is None:
        return math.nan
    grey = torch.linspace(0, 1, 64 * 64).reshape(1, 1, 64, 64)
    with torch.inference_mode():
        return float(torch.equal(contender.network(grey, 0.0), grey))

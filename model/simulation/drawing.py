"""What scanners burn into an image: text, callipers, lines, frames; drawn, never speckled."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

Ink = NDArray[np.float32]
Shape = tuple[int, int]

_CHARACTERS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-+:/% ")
_FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif")


def ink(rng: np.random.Generator, shape: Shape) -> Ink:
    """One element somewhere in the image.

    Returns
    -------
    ndarray, (rows, columns), float32
        Share of each pixel that is covered, 0 to 1.
    """
    kind = rng.random()
    if kind < 0.35:
        return _text(rng, shape)
    if kind < 0.75:
        return _lines(rng, shape)
    if kind < 0.9:
        return _callipers(rng, shape)
    return _dots(rng, shape)


def _text(rng: np.random.Generator, shape: Shape) -> Ink:
    """A few rows of letters, in one face and size; now and then interpolated, as by a scaler."""
    sheet = Image.new("L", (shape[1], shape[0]), 0)
    pen = ImageDraw.Draw(sheet)
    size = int(rng.integers(7, 22))
    font = None if rng.random() < 0.3 else _font(str(rng.choice(_FACES)), size)
    x, y = (int(rng.integers(-10, side - 10)) for side in (shape[1], shape[0]))
    for row in range(int(rng.integers(1, 5))):
        words = "".join(rng.choice(_CHARACTERS, int(rng.integers(1, 24))))
        place = (x, y + int(1.3 * size) * row)
        if font is None:
            pen.text(place, words, fill=255)
        else:
            pen.text(place, words, fill=255, font=font)
    covered = np.asarray(sheet, dtype=np.float32) / 255
    if rng.random() < 0.2:
        covered = np.clip(ndimage.gaussian_filter(covered, 0.6) * 1.4, 0, 1)
    return np.asarray(covered, dtype=np.float32)


@cache
def _font(face: str, size: int) -> ImageFont.FreeTypeFont:
    """One of the faces that come with Matplotlib."""
    folder = Path(font_manager.__file__).parent / "mpl-data/fonts/ttf"
    return ImageFont.truetype(str(folder / f"{face}.ttf"), size)


def _lines(rng: np.random.Generator, shape: Shape) -> Ink:
    """Straight lines of any width and direction, alone, crossing, or as a frame."""
    covered = np.zeros(shape, dtype=np.float32)
    width = float(rng.uniform(0.7, 4.0))
    if rng.random() < 0.2:
        top, left = rng.uniform(-5, 0.8 * shape[0]), rng.uniform(-5, 0.8 * shape[1])
        bottom, right = top + rng.uniform(12, 120), left + rng.uniform(12, 120)
        corners = [(top, left), (top, right), (bottom, right), (bottom, left), (top, left)]
        for start, end in pairwise(corners):
            _add_line(covered, start, end, width)
        return covered
    for _ in range(int(rng.integers(1, 9))):
        centre = np.array([rng.uniform(0, side) for side in shape])
        angle = rng.uniform(0, np.pi) if rng.random() < 0.7 else rng.choice([0, np.pi / 2])
        half = np.exp(rng.uniform(np.log(4), np.log(120))) * np.array(
            [np.sin(angle), np.cos(angle)]
        )
        _add_line(covered, centre - half, centre + half, width)
    return covered


def _add_line(
    covered: Ink,
    start: tuple[float, float] | NDArray[np.float64],
    end: tuple[float, float] | NDArray[np.float64],
    width: float,
) -> None:
    """Cover, with soft rims of one pixel, what lies within half the width of a segment."""
    first, last = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
    reach = width / 2 + 2
    low = np.maximum(np.floor(np.minimum(first, last) - reach), 0).astype(int)
    high = np.minimum(np.ceil(np.maximum(first, last) + reach), covered.shape).astype(int)
    if (high <= low).any():
        return
    part = covered[low[0] : high[0], low[1] : high[1]]
    z = np.arange(low[0], high[0], dtype=np.float32)[:, None] - first[0]
    x = np.arange(low[1], high[1], dtype=np.float32)[None, :] - first[1]
    length = max(float(np.hypot(*(last - first))), 1e-6)
    down, right = (last - first) / length
    along = z * down + x * right
    across = np.abs(x * down - z * right)
    beyond = np.abs(along - length / 2) - length / 2
    share = np.clip(width / 2 + 0.5 - across, 0, min(1.0, width)) * np.clip(0.5 - beyond, 0, 1)
    np.maximum(part, share, out=part)


def _callipers(rng: np.random.Generator, shape: Shape) -> Ink:
    """Crosses, upright or slanted, some of them joined by dots."""
    covered = np.zeros(shape, dtype=np.float32)
    places = [np.array([rng.uniform(0, side) for side in shape]).round() for _ in range(2)]
    size, width = float(rng.integers(2, 9)), float(rng.uniform(0.8, 2.0))
    arms = [(0, 1), (1, 0)] if rng.random() < 0.6 else [(0.7, 0.7), (0.7, -0.7)]
    for place in places:
        for arm in arms:
            _add_line(covered, place - size * np.array(arm), place + size * np.array(arm), width)
    if rng.random() < 0.5:
        steps = max(2, int(np.hypot(*(places[1] - places[0])) / rng.uniform(3, 9)))
        for place in np.linspace(places[0], places[1], steps):
            _add_line(covered, place, place, width)
    return covered


def _dots(rng: np.random.Generator, shape: Shape) -> Ink:
    """A scale: single pixels or ticks at equal steps along a row or a column."""
    covered = np.zeros(shape, dtype=np.float32)
    step, tick = int(rng.integers(3, 24)), int(rng.integers(1, 7))
    upright = rng.random() < 0.5
    along = covered if upright else covered.T
    side = int(rng.integers(0, along.shape[1] - tick))
    along[int(rng.integers(0, step)) :: step, side : side + tick] = 1
    return covered

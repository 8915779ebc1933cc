"""Write before, after and removed speckle side by side, for people to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Frame = NDArray[np.uint8]
_GAP: Final = 8
_CAPTION: Final = 20
_GAIN: Final = 4
"""The removed speckle is shown this many times as strong, about a middle grey."""
_MIDDLE: Final = 128


def removed(before: Frame, after: Frame) -> Frame:
    """The difference about middle grey, amplified; grey, (rows, columns), uint8."""
    difference = _grey(before).astype(np.float32) - _grey(after)
    shown = np.clip(_MIDDLE + _GAIN * difference, 0, 255)
    return np.asarray(shown, dtype=np.uint8)


def write_panel(before: Frame, after: Frame, path: Path) -> None:
    """Write one picture with three panels.

    Parameters
    ----------
    before, after : ndarray, (rows, columns) or (rows, columns, 3), uint8
        The same frame of the source and of the derived object.
    path : Path
        Of the PNG to write.
    """
    panels = {
        "before": before,
        "after": after,
        f"removed speckle (x{_GAIN})": removed(before, after),
    }
    rows, columns = before.shape[:2]
    size = (3 * columns + 2 * _GAP, rows + _CAPTION)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for index, (caption, frame) in enumerate(panels.items()):
        left = index * (columns + _GAP)
        draw.text((left + 4, 4), caption, fill="black")
        canvas.paste(Image.fromarray(frame).convert("RGB"), (left, _CAPTION))
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)


def _grey(frame: Frame) -> NDArray[np.float32]:
    return frame.astype(np.float32) if frame.ndim == 2 else frame.mean(axis=2, dtype=np.float32)  # noqa: PLR2004

"""How many bits a 16-bit picture file really holds: nothing in it says so, its grey levels tell."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

CONTAINER_BITS = (8, 10, 12, 14, 16)
"""Depths that a 16-bit file may really hold."""
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow raises at files that are damaged or too large."""


def is_deep(image: Image.Image) -> bool:
    """Whether a picture has grey levels of more than 8 bits."""
    return image.mode.startswith("I")


def is_inverted(image: Image.Image) -> bool:
    """Whether a TIFF says that 0 is white; of 16 bits Pillow gives it as it is stored.

    TIFF 6.0, *PhotometricInterpretation* 0.
    """
    tags = getattr(image, "tag_v2", {})
    return bool(tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0 and is_deep(image))


def needed(pixels: NDArray[np.integer[Any]]) -> int:
    """Least depth that grey levels need, bits.

    Raises
    ------
    ValueError
        Some are below 0, or need more than 16.
    """
    bits = next((bits for bits in CONTAINER_BITS if pixels.max() < 1 << bits), 0)
    if not bits or pixels.min() < 0:
        raise ValueError("has grey levels outside 0 to 65535; store it with 8 or 16 bits")
    return bits


def shared(files: Iterable[Path]) -> int:
    """Least depth that the 16-bit files among some need, bits; 8 where there is none.

    Frames of one cine are files of one folder, or pages of one file, and comparable at one depth
    alone. What cannot be read or taken counts for none.
    """
    most = 8
    for path in files:
        try:
            with Image.open(path) as image:
                for page in range(int(getattr(image, "n_frames", 1))):
                    image.seek(page)
                    if is_deep(image):
                        most = max(most, needed(np.asarray(image)))
        except UNREADABLE:
            continue  # said by whoever reads the file itself
    return most


def eight_bits(pixels: NDArray[np.integer[Any]], bits: int) -> NDArray[np.uint8]:
    """Grey levels of a depth as such of 8 bits, rounded; white stays white."""
    white = (1 << bits) - 1
    return ((pixels.astype(np.int64) * 255 + white // 2) // white).astype(np.uint8)

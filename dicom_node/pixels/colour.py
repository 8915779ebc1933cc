"""Colour models of the Image Pixel module to and from grey and RGB, 8 bits a sample.

PS3.3 C.7.6.3.1.2 (photometric interpretation), C.7.6.3.1.5 and C.7.9 (palettes). Not a
colour-managed conversion: values go to the viewer as the scanner's own display showed them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.errors import Permanent

Frame = NDArray[np.uint8]
"""(rows, columns) grey or (rows, columns, 3) RGB, uint8."""

_SHIFT: Final = 16
_HALF: Final = 1 << (_SHIFT - 1)
_CHROMA: Final = np.arange(256, dtype=np.int32) - 128


def _fixed(factor: float) -> int:
    return int(factor * (1 << _SHIFT) + 0.5)


# libjpeg's own tables (jdcolor.c), so that JPEG and native YBR_FULL come out alike.
_RED_OF_CR: Final = ((_fixed(1.402) * _CHROMA + _HALF) >> _SHIFT).astype(np.int16)
_BLUE_OF_CB: Final = ((_fixed(1.772) * _CHROMA + _HALF) >> _SHIFT).astype(np.int16)
_GREEN_OF_CR: Final = -_fixed(0.71414) * _CHROMA
_GREEN_OF_CB: Final = -_fixed(0.34414) * _CHROMA + _HALF

_LUMA_RED, _LUMA_GREEN, _LUMA_BLUE = np.uint16(77), np.uint16(150), np.uint16(29)
"""Rec. 601 weights in 256ths; their sum is 256, so that a grey pixel keeps its value."""


def ybr_to_rgb(ybr: Frame) -> Frame:
    """YBR_FULL to RGB, PS3.3 C.7.6.3.1.2.

    Parameters
    ----------
    ybr : ndarray, (rows, columns, 3), uint8

    Returns
    -------
    ndarray, (rows, columns, 3), uint8
        Bit-identical to what libjpeg makes of the same samples.
    """
    luma = ybr[..., 0].astype(np.int16)
    blue, red = ybr[..., 1], ybr[..., 2]
    green = ((_GREEN_OF_CB[blue] + _GREEN_OF_CR[red]) >> _SHIFT).astype(np.int16)
    rgb = np.empty(ybr.shape, np.uint8)
    rgb[..., 0] = np.clip(luma + _RED_OF_CR[red], 0, 255)
    rgb[..., 1] = np.clip(luma + green, 0, 255)
    rgb[..., 2] = np.clip(luma + _BLUE_OF_CB[blue], 0, 255)
    return rgb


def expand_422(stored: NDArray[np.uint8], rows: int, columns: int) -> Frame:
    """Uncompressed YBR_FULL_422 (Y1 Y2 Cb Cr ...) to YBR_FULL, each chroma sample used twice.

    Parameters
    ----------
    stored : ndarray, (rows * columns * 2,), uint8
    """
    quads = stored.reshape(-1, 4)
    out = np.empty((quads.shape[0], 2, 3), np.uint8)
    out[:, :, 0] = quads[:, :2]
    out[:, :, 1] = quads[:, 2, None]
    out[:, :, 2] = quads[:, 3, None]
    return out.reshape(rows, columns, 3)


def luminance(frame: Frame) -> NDArray[np.uint8]:
    """Rec. 601 luma of a frame; a grey pixel's luminance is its value.

    Parameters
    ----------
    frame : ndarray, (rows, columns) or (rows, columns, 3), uint8

    Returns
    -------
    ndarray, (rows, columns), uint8
    """
    if frame.ndim == 2:  # noqa: PLR2004
        return frame
    total = frame[..., 0] * _LUMA_RED
    total += frame[..., 1] * _LUMA_GREEN
    total += frame[..., 2] * _LUMA_BLUE
    total += np.uint16(128)
    total >>= np.uint16(8)
    return total.astype(np.uint8)


@dataclass(frozen=True)
class Palette:
    """A PALETTE COLOR look-up table, ready to index with stored pixel values.

    Attributes
    ----------
    colours : ndarray, (2 ** bits allocated, 3), uint8
        The colour of every value that a pixel can have.
    """

    colours: NDArray[np.uint8]

    @property
    def coloured(self) -> NDArray[np.bool_]:
        """(2 ** bits allocated,) bool: which stored values display as other than grey."""
        return np.asarray(self.colours.min(axis=1) != self.colours.max(axis=1))


def read_palette(dataset: Dataset, bits_allocated: int, *, little_endian: bool) -> Palette:
    """Expand the palette of a dataset, plain or segmented, whatever its byte order.

    Entries of 16 bits keep their high byte, unless none exceeds 255: then they hold 8-bit
    values. A LUT of 8-bit entries may come packed or, as before 1996, one to a 16-bit word.

    Raises
    ------
    Permanent
        ``palette-unusable``, naming (0028,1101)-(0028,1103) or (0028,1201)-(0028,1223).
    """
    channels = [
        _channel(dataset, colour, little_endian=little_endian)
        for colour in ("Red", "Green", "Blue")
    ]
    table = np.stack(channels, axis=1)
    if table.max() > 255:  # noqa: PLR2004 - 16-bit entries
        table >>= 8
    descriptor = _descriptor(dataset, "Red")
    indices = np.arange(1 << bits_allocated) - descriptor[1]
    return Palette(table.astype(np.uint8)[np.clip(indices, 0, len(table) - 1)])


def _unusable(what: str) -> Permanent:
    return Permanent(
        "palette-unusable", f"{what}; send the object with a complete palette or as RGB"
    )


def _descriptor(dataset: Dataset, colour: str) -> tuple[int, int, int]:
    value = dataset.get(f"{colour}PaletteColorLookupTableDescriptor")
    if not isinstance(value, Sequence) or len(value) != 3:  # noqa: PLR2004
        raise _unusable(
            f"the {colour} palette descriptor, (0028,1101)-(0028,1103), is absent or short"
        )
    entries, first, bits = (int(item) for item in value)
    return (entries & 0xFFFF) or 1 << 16, first, bits


def _channel(dataset: Dataset, colour: str, *, little_endian: bool) -> NDArray[np.uint16]:
    """All entries of one channel as 16-bit numbers."""
    entries, _, bits = _descriptor(dataset, colour)
    plain = dataset.get(f"{colour}PaletteColorLookupTableData")
    if plain is not None:
        words = _words(plain, little_endian=little_endian)
        if bits == 8 and len(words) < entries:  # noqa: PLR2004 - two entries a word
            table = words.astype("<u2").view(np.uint8).astype(np.uint16)
        else:
            table = words
    else:
        segmented = dataset.get(f"Segmented{colour}PaletteColorLookupTableData")
        if segmented is None:
            raise _unusable(f"no {colour} palette data, (0028,1201)-(0028,1223)")
        words = _words(segmented, little_endian=little_endian)
        wide = bits > 8  # noqa: PLR2004
        numbers = words.tolist() if wide else words.astype("<u2").view(np.uint8).tolist()
        try:
            table = np.asarray(list(_segments(numbers, wide=wide)), np.uint16)
        except (IndexError, RecursionError) as error:
            raise _unusable(
                f"segmented {colour} palette is broken, (0028,1221)-(0028,1223)"
            ) from error
    if len(table) < entries:
        raise _unusable(
            f"the {colour} palette, (0028,1201)-(0028,1223), has {len(table)} of {entries} entries"
        )
    return table[:entries]


def _words(value: Any, *, little_endian: bool) -> NDArray[np.uint16]:
    """LUT data, OW bytes in the file's byte order or US numbers, as 16-bit numbers."""
    if isinstance(value, bytes):
        even = value + b"\0" * (len(value) % 2)
        return np.frombuffer(even, "<u2" if little_endian else ">u2").astype(np.uint16)
    numbers = [value] if isinstance(value, int) else [int(item) for item in value]
    return np.asarray(numbers, np.int64).astype(np.uint16)


def _segments(
    data: list[int], *, wide: bool, start: int = 0, count: int | None = None, last: int = 0
) -> Iterator[int]:
    """Entries of a segmented table, PS3.3 C.7.9.2: discrete, linear and indirect segments."""
    position = start
    while position + 1 < len(data) and count != 0:
        opcode, length = data[position], data[position + 1]
        position += 2
        if opcode == 0:
            entries = data[position : position + length]
            position += length
        elif opcode == 1:
            target = data[position]
            entries = [last + round((target - last) * (i + 1) / length) for i in range(length)]
            position += 1
        elif opcode == 2 and count is None:  # noqa: PLR2004 - an indirect one may not nest
            if wide:
                offset = (data[position + 1] << 16 | data[position]) // 2
                position += 2
            else:
                offset = struct.unpack("<I", bytes(data[position : position + 4]))[0]
                position += 4
            entries = list(_segments(data, wide=wide, start=offset, count=length, last=last))
        else:
            raise IndexError(opcode)
        yield from entries
        last = entries[-1] if entries else last
        count = None if count is None else count - 1

"""RLE Lossless encoding of a frame, PS3.5 annex G; whole planes at a time.

Why not a library: pydicom's encoder goes byte by byte, GDCM's aborts the process where rows or
columns are odd (seen with python-gdcm 3.2.6).
"""

from __future__ import annotations

import struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_LONGEST: Final = 128
_WORTHWHILE: Final = 3
"""Shorter runs cost no less than as part of a literal one."""
_HEADER_BYTES: Final = 64


def encode_rle(frame: NDArray[np.uint8]) -> bytes:
    """One frame as RLE segments, a segment a sample, with their header.

    Parameters
    ----------
    frame : ndarray, (rows, columns) or (rows, columns, samples), uint8
    """
    planes = [frame] if frame.ndim == 2 else list(np.moveaxis(frame, -1, 0))  # noqa: PLR2004
    segments = [_segment(np.ascontiguousarray(plane)) for plane in planes]
    offsets, position = [], _HEADER_BYTES
    for segment in segments:
        offsets.append(position)
        position += len(segment)
    header = struct.pack(f"<{len(offsets) + 1}I", len(segments), *offsets)
    return header.ljust(_HEADER_BYTES, b"\0") + b"".join(segments)


def _segment(plane: NDArray[np.uint8]) -> bytes:
    """PackBits of one plane; no run crosses the end of a row, G.3.1."""
    columns = plane.shape[1]
    values = plane.ravel()
    index = np.arange(len(values))
    row_start = index % columns == 0
    differs = np.append(True, values[1:] != values[:-1]) | row_start
    runs = np.flatnonzero(differs)
    lengths = np.diff(np.append(runs, len(values)))
    repeats: NDArray[np.bool_] = np.repeat(lengths >= _WORTHWHILE, lengths)
    after_repeat = np.append(True, repeats[:-1])
    group_start = np.where(repeats, differs, row_start | after_repeat)
    in_group = index - _latest(index, group_start)
    token_start = in_group % _LONGEST == 0
    starts = np.flatnonzero(token_start)
    counts = np.diff(np.append(starts, len(values)))
    replicate = repeats[starts] & (counts > 1)
    sizes = np.where(replicate, 2, counts + 1)
    ends = np.cumsum(sizes)
    offsets = ends - sizes
    coded = np.zeros(int(ends[-1]) + int(ends[-1]) % 2, np.uint8)
    coded[offsets] = np.where(replicate, 257 - counts, counts - 1)
    coded[offsets[replicate] + 1] = values[starts[replicate]]
    token = np.cumsum(token_start) - 1
    literal = ~replicate[token]
    target = offsets[token] + 1 + index - starts[token]
    coded[target[literal]] = values[literal]
    return coded.tobytes()


def _latest(index: NDArray[Any], marked: NDArray[np.bool_]) -> NDArray[Any]:
    """For each position the last marked one up to it."""
    return np.asarray(np.maximum.accumulate(np.where(marked, index, 0)))

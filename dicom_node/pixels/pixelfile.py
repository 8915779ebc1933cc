"""Where the frames of an object lie in its file: found without reading any of them.

PS3.5 7.1 (element headers), 8.1 and A.4 (native and encapsulated Pixel Data), PS3.3
C.7.6.3.1.8 (Extended Offset Table). Reads item headers only, so memory does not grow with
the object.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from typing import BinaryIO, Final

from dicom_node.errors import Permanent

Extent = tuple[int, int]
"""Offset in the file and length, both in bytes."""

PIXEL_DATA: Final = (0x7FE0, 0x0010)
_UNDEFINED: Final = 0xFFFFFFFF
_LONG_VRS: Final = frozenset({b"OB", b"OW", b"UN", b"OD", b"OF", b"OL", b"OV"})
_ITEM: Final = (0xFFFE, 0xE000)
_SEQUENCE_DELIMITER: Final = (0xFFFE, 0xE0DD)
_STARTS: Final = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP")
"""JPEG and JPEG-LS SOI, JPEG 2000 SOC and JP2 signature box."""


@dataclass(frozen=True, slots=True)
class PixelElement:
    """The header of (7FE0,0010) *Pixel Data*."""

    vr: str
    offset: int
    """Of the first byte of the value."""
    length: int | None
    """None where undefined, that is, encapsulated."""
    available: int
    """Bytes that the file really holds from `offset` on."""


def read_header(file: BinaryIO, *, implicit: bool, little_endian: bool) -> PixelElement:
    """Read the element header at the file's position.

    Raises
    ------
    Permanent
        ``pixel-data-missing`` where there is no (7FE0,0010) there.
    """
    order = "<" if little_endian else ">"
    start = file.read(8)
    if len(start) < 8 or struct.unpack(f"{order}HH", start[:4]) != PIXEL_DATA:  # noqa: PLR2004
        raise Permanent(
            "pixel-data-missing", "(7FE0,0010) Pixel Data is absent; send the object whole"
        )
    vr = b"OW"
    length: int
    if implicit:
        (length,) = struct.unpack(f"{order}I", start[4:])
    elif (vr := start[4:6]) in _LONG_VRS:
        tail = file.read(4)
        if len(tail) < 4:  # noqa: PLR2004
            raise truncated(0, None)
        (length,) = struct.unpack(f"{order}I", tail)
    else:
        (length,) = struct.unpack(f"{order}H", start[6:])
    offset = file.tell()
    available = file.seek(0, 2) - offset
    return PixelElement(
        vr.decode("ascii", "replace"), offset, None if length == _UNDEFINED else length, available
    )


def truncated(available: int, expected: int | None) -> Permanent:
    """The error for Pixel Data that ends too early; sizes in bytes."""
    wanted = "" if expected is None else f" of {expected}"
    return Permanent(
        "pixel-data-truncated",
        f"(7FE0,0010) Pixel Data ends after {available}{wanted} bytes; send the object again",
    )


def too_long(length: int, expected: int) -> Permanent:
    """The error for Pixel Data with a rest that is no frame; sizes in bytes."""
    return Permanent(
        "pixel-data-too-long",
        f"(7FE0,0010) Pixel Data has {length} bytes, more than the {expected} of whole frames by "
        "(0028,0010) Rows and (0028,0011) Columns; correct the one or send the object again",
    )


def frame_count_differs(stated: int, found: str) -> Permanent:
    """The error for a frame count that the data contradict."""
    return Permanent(
        "frame-count-differs",
        f"(0028,0008) Number of Frames is {stated}, but (7FE0,0010) Pixel Data holds {found}; "
        "correct the one or send the object again",
    )


def read_fragments(file: BinaryIO, element: PixelElement) -> tuple[list[int], list[Extent]]:
    """The Basic Offset Table and the extents of all fragments.

    Raises
    ------
    Permanent
        ``pixel-data-truncated`` or ``pixel-data-broken``.
    """
    end = element.offset + element.available
    fragments: list[Extent] = []
    position = element.offset
    while position < end:
        file.seek(position)
        header = file.read(8)
        if len(header) < 8:  # noqa: PLR2004
            break
        group, number, length = struct.unpack("<HHI", header)
        if (group, number) == _SEQUENCE_DELIMITER:
            break
        if (group, number) != _ITEM:
            raise Permanent(
                "pixel-data-broken",
                "(7FE0,0010) Pixel Data holds something other than items; send the object again",
            )
        position += 8
        if position + length > end:
            raise truncated(element.available, None)
        fragments.append((position, length))
        position += length
    if not fragments:
        raise truncated(element.available, None)
    table_offset, table_length = fragments[0]
    file.seek(table_offset)
    words = table_length // 4
    table = list(struct.unpack(f"<{words}I", file.read(words * 4)))
    return table, fragments[1:]


def group_fragments(
    file: BinaryIO,
    table: list[int],
    extended: list[int],
    fragments: list[Extent],
    frames: int | None,
) -> list[list[Extent]]:
    """The fragments of each frame, by what is certain.

    In this order: an offset table that fits frames and fragments, one fragment a frame,
    fragments that start a code stream, one frame in all. A stale table is ignored.

    Parameters
    ----------
    frames : int or None
        (0028,0008) *Number of Frames*; None where absent, and the data decide.

    Raises
    ------
    Permanent
        ``frame-count-differs``.
    """
    if not fragments:
        raise frame_count_differs(1 if frames is None else frames, "none")
    base = fragments[0][0] - 8
    starts = {offset - 8 - base: index for index, (offset, _) in enumerate(fragments)}
    for offsets in (extended, table):
        cuts = [starts[offset] for offset in offsets if offset in starts]
        fits = len(cuts) == len(offsets) and cuts[:1] == [0] and cuts == sorted(set(cuts))
        if fits and frames in (None, len(cuts)):
            return _cut(fragments, cuts)
    if frames == len(fragments):
        return [[fragment] for fragment in fragments]
    cuts = _stream_starts(file, fragments)
    if not cuts and frames is None:
        return [[fragment] for fragment in fragments]  # RLE: a fragment is a frame, PS3.5 A.4.2
    if len(cuts) <= 1 and frames in (None, 1):
        return [fragments]
    if not cuts or cuts[0] != 0 or frames not in (None, len(cuts)):
        found = f"{len(cuts)} frames" if cuts else f"{len(fragments)} fragments"
        raise frame_count_differs(frames or 0, found)
    return _cut(fragments, cuts)


def _stream_starts(file: BinaryIO, fragments: list[Extent]) -> list[int]:
    """Indices of the fragments that begin a JPEG family code stream."""
    found = []
    for index, (offset, _) in enumerate(fragments):
        file.seek(offset)
        if file.read(6).startswith(_STARTS):
            found.append(index)
    return found


def _cut(fragments: list[Extent], cuts: list[int]) -> list[list[Extent]]:
    bounds = [*cuts, len(fragments)]
    return [fragments[a:b] for a, b in itertools.pairwise(bounds)]

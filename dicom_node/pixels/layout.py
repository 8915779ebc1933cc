"""How the samples of an object are stored: size, bits, colour model and frames, checked.

PS3.3 C.7.6.3 (Image Pixel), PS3.5 8. What a data set says is believed as far as it agrees with
itself and with the length of its pixels.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO, Final

from pydicom import FileDataset

from dicom_node.errors import Permanent, Refused
from dicom_node.pixels import codecs, pixelfile

_MAX_PIXELS: Final = 64_000_000
_GREY: Final = frozenset({"MONOCHROME1", "MONOCHROME2"})
COLOUR: Final = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})
_UNSUPPORTED: Final = frozenset(
    {"HSV", "ARGB", "CMYK", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "XYB"}
)
"""The other defined terms of PS3.3 C.7.6.3.1.2, retired ones too."""


@dataclass(frozen=True)
class Layout:
    """How the samples are stored."""

    photometric: str
    samples: int
    bits_allocated: int
    bits_stored: int
    planar: int
    frame_bytes: int
    swap_pairs: bool
    little_endian: bool


def bits_unsupported(what: str) -> Refused:
    """The error for samples that are not the 8 bits of ultrasound; what is, and where."""
    return Refused(
        "bits-unsupported",
        f"{what}; send B-mode as PS3.3 C.8.5.6 has it: 8 bits allocated, 8 stored, high bit 7",
    )


def _number(dataset: FileDataset, keyword: str) -> int | None:
    """An integer attribute; None where absent, empty or no number."""
    try:
        value = dataset.get(keyword)
        return None if value is None or value == "" else int(value)
    except (TypeError, ValueError):
        return None


def frame_size(dataset: FileDataset) -> tuple[int, int]:
    """(0028,0010) *Rows* and (0028,0011) *Columns*.

    Raises
    ------
    Permanent
        ``frame-size-impossible``.
    """
    rows, columns = _number(dataset, "Rows") or 0, _number(dataset, "Columns") or 0
    if rows < 1 or columns < 1 or rows * columns > _MAX_PIXELS:
        raise Permanent(
            "frame-size-impossible",
            f"(0028,0010) Rows and (0028,0011) Columns are {rows} x {columns}; "
            f"frames need 1 to {_MAX_PIXELS} pixels, correct them at the source",
        )
    return rows, columns


def _stated_frames(dataset: FileDataset) -> int | None:
    """(0028,0008) Number of Frames, None where absent."""
    frames = _number(dataset, "NumberOfFrames")
    if frames is not None and frames < 1:
        raise Refused("no-frames", f"(0028,0008) Number of Frames is {frames}: there is no image")
    return frames


def _bits_allocated(dataset: FileDataset, photometric: str) -> int:
    """(0028,0100) *Bits Allocated*, where it fits Bits Stored, High Bit and the colour model."""
    allocated = _number(dataset, "BitsAllocated") or 8
    stored = _number(dataset, "BitsStored") or allocated
    high = _number(dataset, "HighBit")
    eight = stored == 8 and high in (None, 7)  # noqa: PLR2004
    palette16 = photometric == "PALETTE COLOR" and allocated == 16  # noqa: PLR2004
    eight_in_sixteen = eight and allocated == 16 and photometric not in COLOUR  # noqa: PLR2004
    if palette16 or eight_in_sixteen or (eight and allocated == 8):  # noqa: PLR2004
        return allocated
    if stored != 8:  # noqa: PLR2004
        raise bits_unsupported(f"(0028,0101) Bits Stored is {stored}")
    if not eight:
        raise bits_unsupported(f"(0028,0102) High Bit is {high}")
    raise bits_unsupported(f"(0028,0100) Bits Allocated is {allocated}")


def read_layout(dataset: FileDataset, element: pixelfile.PixelElement, pixels: int) -> Layout:
    """How the samples are stored, as the data set says, checked against itself.

    Raises
    ------
    Refused
        ``photometric-unsupported``, ``bits-unsupported``, ``signed-pixels`` or
        ``supplemental-palette``.
    Permanent
        ``photometric-contradicted`` or ``pixel-data-truncated``.
    """
    photometric = str(dataset.get("PhotometricInterpretation") or "").strip().upper()
    if photometric not in _GREY | COLOUR | {"PALETTE COLOR"}:
        # A damaged length may have drawn the patient's name into the value: only a term is told.
        named = photometric if photometric in _UNSUPPORTED else "unknown"
        raise Refused(
            "photometric-unsupported",
            f"(0028,0004) Photometric Interpretation is {named if photometric else 'absent'}; send "
            "MONOCHROME1, MONOCHROME2, PALETTE COLOR, RGB, YBR_FULL, YBR_FULL_422, _ICT or _RCT",
        )
    syntax = dataset.file_meta.TransferSyntaxUID
    coloured = photometric in COLOUR
    samples = _number(dataset, "SamplesPerPixel") or (3 if coloured else 1)
    if samples != (3 if coloured else 1) and not codecs.has_headers(syntax):
        raise Permanent(
            "photometric-contradicted",
            f"(0028,0002) Samples per Pixel is {samples}, which {photometric} in (0028,0004) "
            "cannot have; correct it at the source",
        )
    allocated = _bits_allocated(dataset, photometric)
    if _number(dataset, "PixelRepresentation") == 1:
        raise Refused(
            "signed-pixels", "(0028,0103) Pixel Representation is 1; send unsigned samples"
        )
    if dataset.get("PixelPresentation") in ("COLOR", "MIXED") and not coloured:
        raise Refused(
            "supplemental-palette",
            "(0008,9205) Pixel Presentation: a supplemental palette hides colour in grey values; "
            "send the object as RGB",
        )
    native = element.length is not None
    subsampled = native and photometric == "YBR_FULL_422"
    frame_bytes = pixels * 2 if subsampled else pixels * samples * (allocated // 8)
    if subsampled and element.length is not None:
        whole = pixels * 3 * (_stated_frames(dataset) or 1)
        if whole <= element.length <= whole + 1:  # not subsampled, whatever the label says
            photometric, frame_bytes = "YBR_FULL", pixels * 3
        elif pixels % 2:
            raise pixelfile.truncated(element.available, None)
    big_words = not syntax.is_little_endian and element.vr == "OW" and allocated == 8  # noqa: PLR2004
    return Layout(
        photometric=photometric,
        samples=samples,
        bits_allocated=allocated,
        bits_stored=_number(dataset, "BitsStored") or allocated,
        planar=_number(dataset, "PlanarConfiguration") or 0,
        frame_bytes=frame_bytes,
        swap_pairs=native and big_words,
        little_endian=syntax.is_little_endian,
    )


def native_extents(
    dataset: FileDataset, element: pixelfile.PixelElement, layout: Layout
) -> list[list[pixelfile.Extent]]:
    """The extent of each frame of uncompressed data."""
    if str(dataset.file_meta.TransferSyntaxUID) in codecs.ENCAPSULATED:
        raise Permanent(
            "pixel-data-not-encapsulated",
            "(0002,0010) Transfer Syntax UID promises compressed frames, (7FE0,0010) Pixel Data "
            "holds none; correct the one or the other",
        )
    length = element.length or 0
    if element.available < length:
        raise pixelfile.truncated(element.available, length)
    whole, rest = divmod(length, layout.frame_bytes)
    frames = _stated_frames(dataset)
    if frames is None:
        if whole < 1:
            raise pixelfile.truncated(length, layout.frame_bytes)
        if rest > 1:
            raise pixelfile.too_long(length, whole * layout.frame_bytes)
        frames = whole
    if whole < frames:
        raise pixelfile.truncated(length, frames * layout.frame_bytes)
    if whole > frames:
        raise pixelfile.frame_count_differs(frames, f"{whole} frames")
    size = layout.frame_bytes
    return [[(element.offset + index * size, size)] for index in range(frames)]


def coded_extents(
    file: BinaryIO, dataset: FileDataset, element: pixelfile.PixelElement
) -> list[list[pixelfile.Extent]]:
    """The extents of each frame of compressed data."""
    if str(dataset.file_meta.TransferSyntaxUID) in codecs.NATIVE:
        raise Permanent(
            "pixel-data-encapsulated",
            "(0002,0010) Transfer Syntax UID promises uncompressed frames, (7FE0,0010) Pixel Data "
            "holds compressed ones; correct the one or the other",
        )
    stated = _stated_frames(dataset)
    table, fragments = pixelfile.read_fragments(file, element)
    raw = dataset.get("ExtendedOffsetTable") or b""
    extended = list(struct.unpack(f"<{len(raw) // 8}Q", raw[: len(raw) // 8 * 8]))
    return pixelfile.group_fragments(file, table, extended, fragments, stated)

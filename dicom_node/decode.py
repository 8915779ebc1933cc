"""File -> frames, one at a time, in bounded memory, as a viewer would show them.

PS3.3 C.7.6.3 (Image Pixel), PS3.5 8 and A. Photometric interpretations, transfer syntaxes
and frame counts are repaired where the data leave no doubt, and refused with a reason else.
"""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset, dcmread, uid
from pydicom.errors import InvalidDicomError
from pydicom.tag import Tag

import dicom_node.quiet  # noqa: F401 - before any file is read
from dicom_node import codecs, pixelfile
from dicom_node.colour import Frame, Palette, expand_422, read_palette, ybr_to_rgb
from dicom_node.errors import Permanent, Refused
from dicom_node.identity import is_own_output, is_valid_uid
from dicom_node.transcribe import MALFORMED

US_IMAGE: Final = uid.UltrasoundImageStorage
US_MULTI_FRAME: Final = uid.UltrasoundMultiFrameImageStorage
CURRENT_CLASS: Final[dict[str, uid.UID]] = {
    US_IMAGE: US_IMAGE,
    US_MULTI_FRAME: US_MULTI_FRAME,
    "1.2.840.10008.5.1.4.1.1.6": US_IMAGE,
    "1.2.840.10008.5.1.4.1.1.3": US_MULTI_FRAME,
}
"""The SOP classes that the node processes, and the current class of each retired one."""

_CONTRIBUTING_EQUIPMENT: Final = Tag(0x0018, 0xA001)
_MAX_PIXELS: Final = 64_000_000
_MAX_DEFLATED: Final = 1 << 32
_DEFER: Final = 1 << 20
_CHUNK: Final = 1 << 20
_GREY: Final = frozenset({"MONOCHROME1", "MONOCHROME2"})
_YBR: Final = frozenset({"YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})
_COLOUR: Final = _YBR | {"RGB"}


@dataclass(frozen=True)
class Geometry:
    """Shape and colour of the frames that a `Decoder` yields."""

    frames: int
    rows: int
    columns: int
    colour: bool
    """Frames are (rows, columns, 3) RGB; else (rows, columns) grey. Always uint8."""
    inverted: bool = False
    """MONOCHROME1: grey frames whose largest value is black."""


@dataclass(frozen=True)
class _Layout:
    """How the samples are stored."""

    photometric: str
    samples: int
    bits_allocated: int
    planar: int
    frame_bytes: int
    swap_pairs: bool
    little_endian: bool


class Decoder:
    """An opened object. Yields its frames in order, as often as asked.

    Attributes
    ----------
    dataset : pydicom.FileDataset
        Everything before (7FE0,0010) *Pixel Data*, as read, `file_meta` included.
    geometry : Geometry
    codec : str
        The library that decodes the pixels.
    """

    def __init__(
        self,
        path: Path,
        dataset: FileDataset,
        unpacked: BinaryIO | None,
        element: pixelfile.PixelElement,
    ) -> None:
        self.dataset = dataset
        self.transfer_syntax = str(dataset.file_meta.TransferSyntaxUID)
        self.codec = codecs.codec_name(self.transfer_syntax)
        self._path = path
        self._unpacked = unpacked
        self._element = element
        rows, columns = _size(dataset)
        self._layout = _layout(dataset, element, rows * columns)
        with self._opened() as file:
            if element.length is None:
                self._extents = _encapsulated(file, dataset, element)
            else:
                self._extents = _native(dataset, element, self._layout)
            stream = codecs.read_stream(self.transfer_syntax, self._stored(file, 0))
        self._repair(stream, rows, columns)
        self._record_lossy()
        photometric = self._layout.photometric
        self.geometry = Geometry(
            frames=len(self._extents),
            rows=rows,
            columns=columns,
            colour=photometric in _COLOUR,
            inverted=photometric == "MONOCHROME1",
        )
        self._palette: Palette | None = None
        if photometric == "PALETTE COLOR":
            self._palette = read_palette(
                dataset, self._layout.bits_allocated, little_endian=self._layout.little_endian
            )
            colour = self._shows_colour(self._palette)
            self.geometry = Geometry(len(self._extents), rows, columns, colour=colour)

    def frames(self) -> Iterator[Frame]:
        """All frames in order, decoded one at a time.

        Yields
        ------
        ndarray, (rows, columns) or (rows, columns, 3), uint8
            Never shared with the decoder: the caller may write to it.

        Raises
        ------
        Permanent
            ``frame-undecodable`` or ``bits-unsupported``.
        """
        with self._opened() as file:
            for index in range(self.geometry.frames):
                yield self._displayed(self._samples(file, index))

    def frame(self, index: int) -> Frame:
        """One frame; see `frames`."""
        with self._opened() as file:
            return self._displayed(self._samples(file, index))

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        if self._unpacked is not None:
            yield self._unpacked
        else:
            with self._path.open("rb") as file:
                yield file

    def _repair(self, stream: codecs.Stream | None, rows: int, columns: int) -> None:
        """Let a JPEG stream correct what the data set says of colours and samples."""
        if stream is None:
            return
        if (stream.rows, stream.columns) != (rows, columns):
            raise Permanent(
                "frame-size-differs",
                f"(0028,0010) Rows and (0028,0011) Columns are {rows} x {columns}, the JPEG stream "
                f"is {stream.rows} x {stream.columns}; correct the one or send the object again",
            )
        if stream.precision > 8 and self._layout.photometric != "PALETTE COLOR":  # noqa: PLR2004
            raise bits_unsupported(stream.precision)
        layout = self._layout
        self._layout = _Layout(
            stream.colour_model(layout.photometric),
            len(stream.components),
            layout.bits_allocated,
            layout.planar,
            layout.frame_bytes,
            layout.swap_pairs,
            layout.little_endian,
        )

    def _record_lossy(self) -> None:
        """Supply the lossy history where a lossy transfer syntax proves it, PS3.3 C.7.6.1.1.5."""
        method = codecs.LOSSY_METHOD.get(self.transfer_syntax)
        if method is None or self.dataset.get("LossyImageCompression") == "01":
            return
        geometry_bytes = self._layout.samples * self._layout.bits_allocated // 8
        rows, columns = _size(self.dataset)
        compressed = sum(length for frame in self._extents for _, length in frame)
        ratio = rows * columns * geometry_bytes * len(self._extents) / max(compressed, 1)
        self.dataset.LossyImageCompression = "01"
        self.dataset.LossyImageCompressionRatio = f"{ratio:.2f}"
        self.dataset.LossyImageCompressionMethod = method

    def _stored(self, file: BinaryIO, index: int) -> bytes:
        """The bytes of one frame as stored."""
        parts = []
        for offset, length in self._extents[index]:
            lead = (offset - self._element.offset) % 2 if self._layout.swap_pairs else 0
            file.seek(offset - lead)
            data = file.read(length + lead)
            if self._layout.swap_pairs:
                data += file.read(len(data) % 2) or b"\0" * (len(data) % 2)
                data = np.frombuffer(data, np.uint16).byteswap().tobytes()[lead : lead + length]
            if len(data) < length:
                raise pixelfile.truncated(self._element.available, None)
            parts.append(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _samples(self, file: BinaryIO, index: int) -> NDArray[Any]:
        """One frame in the colour model of the layout, DCT JPEG in RGB already."""
        layout, geometry = self._layout, self.geometry
        stored = self._stored(file, index)
        rows, columns = geometry.rows, geometry.columns
        if codecs.uses_libjpeg(self.transfer_syntax):
            return codecs.decode_jpeg(stored, rows, columns, layout.photometric)
        if self.transfer_syntax in codecs.ENCAPSULATED:
            samples = codecs.decode_frame(
                self.transfer_syntax,
                stored,
                (rows, columns),
                samples=layout.samples,
                bits=layout.bits_allocated,
            )
            return ybr_to_rgb(samples) if layout.photometric.startswith("YBR_FULL") else samples
        if layout.bits_allocated == 16:  # noqa: PLR2004
            kind = "<u2" if layout.little_endian else ">u2"
            return np.frombuffer(stored, kind).astype(np.uint16).reshape(rows, columns)
        flat = np.frombuffer(stored, np.uint8)
        if layout.photometric == "YBR_FULL_422":
            return ybr_to_rgb(expand_422(flat, rows, columns))
        if layout.samples == 1:
            return flat.reshape(rows, columns)
        if layout.planar == 1:
            pixels = np.moveaxis(flat.reshape(3, rows, columns), 0, -1)
        else:
            pixels = flat.reshape(rows, columns, 3)
        return ybr_to_rgb(pixels) if layout.photometric == "YBR_FULL" else pixels

    def _displayed(self, samples: NDArray[Any]) -> Frame:
        """Stored values to grey or RGB."""
        if self._palette is not None:
            colours = self._palette.colours
            frame: Frame = colours[samples] if self.geometry.colour else colours[samples, 0]
            return frame
        if samples.dtype != np.uint8:
            if samples.max(initial=0) > 255:  # noqa: PLR2004
                raise bits_unsupported(16)
            return samples.astype(np.uint8)
        return samples.copy(order="C")

    def _shows_colour(self, palette: Palette) -> bool:
        """Whether any pixel of any frame uses a coloured palette entry."""
        coloured: NDArray[np.bool_] = palette.coloured
        if not coloured.any():
            return False
        with self._opened() as file:
            return any(
                bool(coloured[self._samples(file, index)].any())
                for index in range(self.geometry.frames)
            )


def open_instance(path: Path) -> Decoder:
    """Open an ultrasound object and check everything that can be checked before decoding.

    Raises
    ------
    Refused
        Not DICOM, not an ultrasound image, the node's own output, no frames, an
        unsupported transfer syntax, photometric interpretation or bit depth.
    Permanent
        Missing UIDs, truncated, contradictory or undecodable pixel data.
    """
    with path.open("rb") as file, readable():
        unpacked: BinaryIO | None = None
        source: BinaryIO = file
        dataset = _read(source)
        if dataset.file_meta.TransferSyntaxUID == uid.DeflatedExplicitVRLittleEndian:
            unpacked = _inflate(path)
            source = unpacked
            dataset = _read(source)
        position = source.tell()
        _check_kind(dataset)
        source.seek(position)  # deferred elements may have moved it
        syntax = dataset.file_meta.TransferSyntaxUID
        element = pixelfile.read_header(
            source, implicit=syntax.is_implicit_VR, little_endian=syntax.is_little_endian
        )
        return Decoder(path, dataset, unpacked, element)


@contextmanager
def readable() -> Iterator[None]:
    """Turn what pydicom raises on malformed data sets into the node's error.

    Raises
    ------
    Permanent
        ``dataset-unreadable``.
    """
    try:
        yield
    except MALFORMED as error:
        raise _unreadable(error) from error
    except OSError as error:
        if error.errno is None:  # pydicom's own, for items that end early; not the disk's
            raise _unreadable(error) from error
        raise


def bits_unsupported(bits: int) -> Refused:
    """The error for samples that do not fit 8 bits."""
    return Refused(
        "bits-unsupported",
        f"(0028,0100) Bits Allocated / (0028,0101) Bits Stored: {bits}-bit samples are not "
        "ultrasound B-mode as PS3.3 C.8.5.6 has it; send 8-bit samples",
    )


def _read(file: BinaryIO) -> FileDataset:
    """Everything before the pixels; the file is left at the pixel element."""
    try:
        dataset = dcmread(file, stop_before_pixels=True, defer_size=_DEFER)
    except InvalidDicomError as error:
        raise Refused("not-dicom", "the file has no DICOM header (PS3.10 7.1)") from error
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if not is_valid_uid(syntax):
        raise Permanent(
            "transfer-syntax-missing",
            "(0002,0010) Transfer Syntax UID is absent; send the object with its file meta group",
        )
    if syntax != uid.DeflatedExplicitVRLittleEndian:
        codecs.require_supported(str(syntax))
    return dataset


def _unreadable(error: Exception) -> Permanent:
    return Permanent(
        "dataset-unreadable",
        f"the data set is malformed ({type(error).__name__}); send the object again",
    )


def _inflate(path: Path) -> BinaryIO:
    """A deflated file as an explicit one, in an unnamed temporary file, PS3.5 A.5."""
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as its decoder
    with path.open("rb") as file:
        header = file.read(144)
        # (0002,0000) is the first element of a conforming file meta group, PS3.10 7.1.
        if len(header) < 144 or header[132:140] != b"\x02\0\0\0UL\x04\0":  # noqa: PLR2004
            raise _unreadable(ValueError())
        (group_length,) = struct.unpack("<I", header[140:144])
        meta = file.read(group_length)
        old, new = uid.DeflatedExplicitVRLittleEndian, uid.ExplicitVRLittleEndian
        same_length = str(new).encode().ljust(len(old) + len(old) % 2, b"\0")
        unpacked.write(
            header + meta.replace(old.encode().ljust(len(same_length), b"\0"), same_length)
        )
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            while data := file.read(_CHUNK):
                while data and not inflater.eof:
                    unpacked.write(inflater.decompress(data, _CHUNK))
                    data = inflater.unconsumed_tail
                    if unpacked.tell() > _MAX_DEFLATED:
                        raise _unreadable(OverflowError())
        except zlib.error as error:
            raise _unreadable(error) from error
    unpacked.seek(0)
    return unpacked


def _check_kind(dataset: FileDataset) -> None:
    """Refuse what is not an ultrasound image of somebody else's.

    SOP class and instance that the data set lacks are taken from the file meta group, which
    repeats them by definition (PS3.10 7.1).
    """
    for keyword, meta in (
        ("SOPClassUID", "MediaStorageSOPClassUID"),
        ("SOPInstanceUID", "MediaStorageSOPInstanceUID"),
    ):
        if not dataset.get(keyword) and meta in dataset.file_meta:
            setattr(dataset, keyword, dataset.file_meta[meta].value)
    sop_class = str(dataset.get("SOPClassUID", ""))
    if sop_class not in CURRENT_CLASS:
        raise Refused(
            "not-ultrasound",
            f"(0008,0016) SOP Class UID {sop_class or 'absent'} is not US Image or US Multi-frame "
            "Image; route only these here",
        )
    if is_own_output(_equipment(dataset)):
        raise Refused(
            "own-output",
            "(0018,A001) Contributing Equipment Sequence says that this node made the object; "
            "exclude derived series from the routing rule",
        )
    for keyword, tag in (
        ("SOPInstanceUID", "(0008,0018) SOP Instance UID"),
        ("SeriesInstanceUID", "(0020,000E) Series Instance UID"),
        ("StudyInstanceUID", "(0020,000D) Study Instance UID"),
    ):
        if not is_valid_uid(dataset.get(keyword)):
            raise Permanent(
                "uid-invalid", f"{tag} is absent or no UID; the sender has to give it one"
            )


def _equipment(dataset: FileDataset) -> Dataset:
    """A data set of (0018,A001) alone, so that looking into it decodes no text of the other."""
    only = Dataset()
    element = dataset.get_item(_CONTRIBUTING_EQUIPMENT)
    if element is not None:
        only[_CONTRIBUTING_EQUIPMENT] = deepcopy(element)
    return only


def _number(dataset: FileDataset, keyword: str) -> int | None:
    """An integer attribute; None where absent, empty or no number."""
    try:
        value = dataset.get(keyword)
        return None if value is None or value == "" else int(value)
    except (TypeError, ValueError):
        return None


def _size(dataset: FileDataset) -> tuple[int, int]:
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


def _layout(dataset: FileDataset, element: pixelfile.PixelElement, pixels: int) -> _Layout:
    """How the samples are stored, as the data set says, checked against itself."""
    photometric = str(dataset.get("PhotometricInterpretation") or "").strip().upper()
    if photometric not in _GREY | _COLOUR | {"PALETTE COLOR"}:
        raise Refused(
            "photometric-unsupported",
            f"(0028,0004) Photometric Interpretation is {photometric[:16] or 'absent'}; send "
            "MONOCHROME1, MONOCHROME2, PALETTE COLOR, RGB, YBR_FULL, YBR_FULL_422, _ICT or _RCT",
        )
    syntax = dataset.file_meta.TransferSyntaxUID
    coloured = photometric in _COLOUR
    samples = _number(dataset, "SamplesPerPixel") or (3 if coloured else 1)
    if samples != (3 if coloured else 1) and not codecs.has_headers(syntax):
        raise Permanent(
            "photometric-contradicted",
            f"(0028,0002) Samples per Pixel is {samples}, which {photometric} in (0028,0004) "
            "cannot have; correct it at the source",
        )
    allocated = _number(dataset, "BitsAllocated") or 8
    stored = _number(dataset, "BitsStored") or allocated
    high = _number(dataset, "HighBit")
    eight_in_sixteen = allocated == 16 and stored == 8 and high in (None, 7)  # noqa: PLR2004
    palette16 = photometric == "PALETTE COLOR" and allocated == 16  # noqa: PLR2004
    plain8 = allocated == 8 and stored == 8 and high in (None, 7)  # noqa: PLR2004
    if not plain8 and not palette16 and not (eight_in_sixteen and not coloured):
        raise bits_unsupported(stored)
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
    return _Layout(
        photometric=photometric,
        samples=samples,
        bits_allocated=allocated,
        planar=_number(dataset, "PlanarConfiguration") or 0,
        frame_bytes=frame_bytes,
        swap_pairs=native and big_words,
        little_endian=syntax.is_little_endian,
    )


def _native(
    dataset: FileDataset, element: pixelfile.PixelElement, layout: _Layout
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
        if whole < 1 or rest > 1:
            raise pixelfile.truncated(length, layout.frame_bytes)
        frames = whole
    if whole < frames:
        raise pixelfile.truncated(length, frames * layout.frame_bytes)
    if whole > frames:
        raise pixelfile.frame_count_differs(frames, f"{whole} frames")
    size = layout.frame_bytes
    return [[(element.offset + index * size, size)] for index in range(frames)]


def _encapsulated(
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

"""One pinned decoder a transfer syntax, and what a JPEG stream says of its own colours.

JPEG decoders differ in the last bit and in what they make of unmarked colour, so each transfer
syntax has exactly one here and there is no falling back. PS3.5 8.2 and A.4.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder

from dicom_node.errors import Permanent, Refused
from dicom_node.pixels.colour import Frame

NATIVE: Final = frozenset(
    {uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian}
)
_PLUGINS: Final[dict[str, str]] = {
    uid.JPEGBaseline8Bit: "pillow",
    uid.JPEGExtended12Bit: "pillow",
    uid.JPEGLossless: "pillow",
    uid.JPEGLosslessSV1: "pillow",
    uid.JPEGLSLossless: "pyjpegls",
    uid.JPEGLSNearLossless: "pyjpegls",
    uid.JPEG2000Lossless: "pylibjpeg",
    uid.JPEG2000: "pylibjpeg",
    uid.HTJ2KLossless: "pylibjpeg",
    uid.HTJ2KLosslessRPCL: "pylibjpeg",
    uid.HTJ2K: "pylibjpeg",
    uid.RLELossless: "pydicom",
}
ENCAPSULATED: Final = frozenset(_PLUGINS)
_LOSSY_METHOD: Final[dict[str, str]] = {
    uid.JPEGBaseline8Bit: "ISO_10918_1",
    uid.JPEGExtended12Bit: "ISO_10918_1",
    uid.JPEGLSNearLossless: "ISO_14495_1",
}
"""(0028,2114) *Lossy Image Compression Method* of syntaxes that cannot be lossless."""
_IRREVERSIBLE_METHOD: Final[dict[str, str]] = {
    uid.JPEG2000Lossless: "ISO_15444_1",
    uid.JPEG2000: "ISO_15444_1",
    uid.HTJ2KLossless: "ISO_15444_15",
    uid.HTJ2KLosslessRPCL: "ISO_15444_15",
    uid.HTJ2K: "ISO_15444_15",
}
"""The same of syntaxes that may be either, where the stream's wavelet is the irreversible one."""
_LOSSLESS_JPEG: Final = frozenset({uid.JPEGLossless, uid.JPEGLosslessSV1})
_BY_LIBJPEG: Final = _LOSSLESS_JPEG | {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit}
_WITH_SOF: Final = _BY_LIBJPEG | {uid.JPEGLSLossless, uid.JPEGLSNearLossless}
_KNOWS_LOSSLESS: Final = int((features.version("libjpeg_turbo") or "0").split(".")[0]) >= 3  # noqa: PLR2004
"""Whether Pillow's libjpeg decodes lossless JPEG, as that of its wheels does."""
_FRAME_HEADERS: Final = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
_PREFIX, _APP0, _APP14, _START_OF_SCAN, _ADOBE_LENGTH = 0xFF, 0xE0, 0xEE, 0xDA, 12
_IMAGE_SIZE: Final = b"\xff\x4f\xff\x51"
"""Start of a JPEG 2000 code stream and of its image size marker, ISO/IEC 15444-1 A.5.1."""
_CODING_STYLE, _COMPONENTS_MIXED, _TRANSFORMATION, _IRREVERSIBLE = b"\xff\x52", 8, 13, b"\0"
_STAND_ALONE: Final = frozenset({0x01, *range(0xD0, 0xD9)})


def _plugin(transfer_syntax: str, precision: int = 8) -> str:
    """The codec of a transfer syntax and of samples of so many bits, as pydicom calls it.

    GDCM ends the process at some damaged streams: it has what no other here decodes, lossless JPEG
    of more than 8 bits.
    """
    if transfer_syntax in _LOSSLESS_JPEG and (precision > 8 or not _KNOWS_LOSSLESS):  # noqa: PLR2004
        return "gdcm"
    return _PLUGINS[transfer_syntax]


def lossy_method(transfer_syntax: str, stream: bytes) -> str | None:
    """(0028,2114) of a frame that has been through lossy compression for certain, or None.

    A JPEG 2000 stream says so by its transformation, ISO/IEC 15444-1 A.6.1; one with the reversible
    wavelet may have been truncated all the same.
    """
    method = _IRREVERSIBLE_METHOD.get(transfer_syntax)
    if method is None:
        return _LOSSY_METHOD.get(transfer_syntax)
    return method if _coding_style(stream, _TRANSFORMATION) == _IRREVERSIBLE else None


def comes_out_as_rgb(transfer_syntax: str, stream: bytes) -> bool:
    """Whether a JPEG 2000 stream has mixed its components itself: its decoder gives RGB.

    ISO/IEC 15444-1 A.6.1, whatever (0028,0004) says: archives that recompress JPEG leave its
    YBR_FULL_422 behind.
    """
    return (
        transfer_syntax in _IRREVERSIBLE_METHOD
        and _coding_style(stream, _COMPONENTS_MIXED) == b"\1"
    )


def _coding_style(stream: bytes, place: int) -> bytes:
    """One byte of the coding style default marker of a JPEG 2000 stream; none where it has none."""
    style = stream.find(_CODING_STYLE, 2)
    return stream[style + place : style + place + 1] if style > 0 else b""


def require_supported(transfer_syntax: str) -> None:
    """Check that there is a decoder.

    Raises
    ------
    Refused
        ``transfer-syntax-unsupported``, naming (0002,0010) and what to send instead.
    """
    if transfer_syntax in NATIVE or transfer_syntax in ENCAPSULATED:
        return
    name = uid.UID(transfer_syntax).name
    raise Refused(
        "transfer-syntax-unsupported",
        f"(0002,0010) Transfer Syntax UID {name} cannot be decoded; "
        "have the sender use an uncompressed, JPEG, JPEG-LS, JPEG 2000 or RLE one",
    )


@dataclass(frozen=True, slots=True)
class Stream:
    """What the headers of a JPEG or JPEG-LS code stream state."""

    rows: int
    columns: int
    precision: int
    components: tuple[int, ...]
    """Component identifiers, ISO/IEC 10918-1 B.2.2."""
    subsampled: bool
    """The second and third component are stored coarser than the first."""
    jfif: bool
    adobe_transform: int | None

    def colour_model(self, stated: str) -> str:
        """The photometric interpretation of the decoded samples, by what is certain.

        An Adobe marker, a JFIF marker (ISO/IEC 10918-5: always YCbCr), identifiers R, G, B
        and subsampled chroma decide, in this order; else the data set is believed.
        """
        if len(self.components) != 3:  # noqa: PLR2004
            return stated if "MONOCHROME" in stated or "PALETTE" in stated else "MONOCHROME2"
        if self.adobe_transform is not None:
            return "YBR_FULL" if self.adobe_transform == 1 else "RGB"
        if self.jfif:
            return "YBR_FULL"
        if bytes(self.components) in (b"RGB", b"rgb"):
            return "RGB"
        if self.subsampled:
            return "YBR_FULL"
        return "RGB" if stated == "RGB" else "YBR_FULL"


def read_stream(transfer_syntax: str, data: bytes) -> Stream | None:
    """Parse the headers of a code stream; None where the transfer syntax has no such headers.

    Raises
    ------
    Permanent
        ``frame-undecodable``.
    """
    if transfer_syntax not in _WITH_SOF:
        return None
    jfif, adobe = False, None
    for marker, body in _segments(data):
        if marker == _APP0:
            jfif = jfif or body.startswith(b"JFIF\0")
        elif marker == _APP14 and body.startswith(b"Adobe") and len(body) >= _ADOBE_LENGTH:
            adobe = body[_ADOBE_LENGTH - 1]
        elif marker in _FRAME_HEADERS:
            try:
                precision, rows, columns, count = struct.unpack_from(">BHHB", body)
                parts = [struct.unpack_from("BB", body, 6 + 3 * i) for i in range(count)]
            except struct.error as error:
                raise _undecodable("headers end early") from error
            identifiers = tuple(identifier for identifier, _ in parts)
            subsampled = len({sampling for _, sampling in parts}) > 1
            return Stream(rows, columns, precision, identifiers, subsampled, jfif, adobe)
    raise _undecodable("headers end early")


def stated_size(transfer_syntax: str, data: bytes) -> tuple[int, int] | None:
    """Rows and columns that a code stream states; None where it does not.

    A decoder believes them, and asks for as much memory.

    Raises
    ------
    Permanent
        ``frame-undecodable``.
    """
    if stream := read_stream(transfer_syntax, data):
        return stream.rows, stream.columns
    start = data.find(_IMAGE_SIZE) if transfer_syntax in _IRREVERSIBLE_METHOD else -1
    if start < 0:
        return None
    try:
        right, bottom, left, top = struct.unpack_from(">IIII", data, start + 8)
    except struct.error as error:
        raise _undecodable("headers end early") from error
    return bottom - top, right - left


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Markers and their parameters, ISO/IEC 10918-1 B.1.1, up to the first scan."""
    position = data.find(b"\xff\xd8") + 2
    if position < 2:  # noqa: PLR2004
        raise _undecodable("no start of image")
    while position + 4 <= len(data):
        prefix, marker, length = struct.unpack_from(">BBH", data, position)
        if prefix != _PREFIX:
            raise _undecodable("broken markers")
        if marker == _PREFIX:  # fill byte
            position += 1
        elif marker in _STAND_ALONE:
            position += 2
        elif marker == _START_OF_SCAN:
            return
        else:
            yield marker, data[position + 4 : position + 2 + length]
            position += 2 + length


def decode_frame(
    transfer_syntax: str,
    data: bytes,
    size: tuple[int, int],
    *,
    samples: int,
    bits: int,
    precision: int = 8,
) -> NDArray[Any]:
    """Decode one frame with the pinned codec, where that is not libjpeg.

    Parameters
    ----------
    size : tuple of int
        Rows and columns.
    precision : int
        Bits a sample of the stream.

    Returns
    -------
    ndarray, (rows, columns) or (rows, columns, 3), uint8 or uint16
        Samples in the colour model of the code stream, except that JPEG 2000's own
        component transformation is undone.

    Raises
    ------
    Permanent
        ``frame-undecodable``.
    """
    rows, columns = size
    options: dict[str, Any] = {
        "rows": rows,
        "columns": columns,
        "samples_per_pixel": samples,
        "number_of_frames": 1,
        "bits_allocated": bits,
        "bits_stored": bits,
        "pixel_representation": 0,
        "photometric_interpretation": "RGB" if samples > 1 else "MONOCHROME2",
        "planar_configuration": 0,
        "pixel_keyword": "PixelData",
    }
    try:
        array, _ = get_decoder(uid.UID(transfer_syntax)).as_array(
            encapsulate([data], has_bot=False),
            raw=True,
            index=0,
            decoding_plugin=_plugin(transfer_syntax, precision),
            **options,
        )
    except (RuntimeError, ValueError, IndexError, struct.error) as error:
        raise _undecodable("the stream is damaged") from error
    return array


def decode_jpeg(transfer_syntax: str, data: bytes, rows: int, columns: int, model: str) -> Frame:
    """Decode one 8-bit JPEG frame by libjpeg, telling it the colour model.

    Parameters
    ----------
    model : str
        Of `Stream.colour_model`.

    Returns
    -------
    ndarray, (rows, columns) or (rows, columns, 3), uint8
        Grey or RGB; of a lossless stream the samples as they are, in its own colour model.

    Raises
    ------
    Permanent
        ``frame-undecodable``.
    """
    converted = model == "YBR_FULL" and transfer_syntax not in _LOSSLESS_JPEG
    try:
        with Image.open(BytesIO(data), formats=("JPEG",)) as image:
            if image.size != (columns, rows):
                raise _undecodable("the stream has another frame size")
            if image.mode == "RGB":
                space = "YCbCr" if converted else "RGB"
                image.tile = [tile._replace(args=("RGB", space)) for tile in image.tile]
            elif image.mode != "L":
                raise _undecodable(f"colour mode {image.mode}")
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise _undecodable("the stream is damaged") from error


def has_headers(transfer_syntax: str) -> bool:
    """Whether `read_stream` finds size and components in the code streams."""
    return transfer_syntax in _WITH_SOF


def uses_libjpeg(transfer_syntax: str, precision: int) -> bool:
    """Whether `decode_jpeg` is the pinned codec."""
    return _plugin(transfer_syntax, precision) == "pillow"


def comes_out_as_stored(transfer_syntax: str) -> bool:
    """Whether `decode_jpeg` leaves the samples in the colour model of the stream."""
    return transfer_syntax in _LOSSLESS_JPEG


def _undecodable(what: str) -> Permanent:
    return Permanent(
        "frame-undecodable",
        f"a frame of (7FE0,0010) Pixel Data cannot be decoded: {what}; send the object again",
    )

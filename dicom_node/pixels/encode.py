"""Derived data set and frames -> the bytes of a DICOM file, streamed.

PS3.10 7 (file format), PS3.5 8, A.2 (explicit little endian) and A.4 (encapsulation): always
lossless. One frame is in memory at a time; compressed frames wait in a temporary file, since the
Basic Offset Table comes before them.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterable, Iterator
from copy import copy
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.pixels.encoders.base import get_encoder

import dicom_node.attributes.quiet  # noqa: F401 - before anything is written
from dicom_node.attributes.identity import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.attributes.transcribe import serialise
from dicom_node.errors import Permanent
from dicom_node.pixels.colour import Frame
from dicom_node.pixels.rle import encode_rle

_LONGEST: Final = 0xFFFFFFFE
_CHUNK: Final = 1 << 20
_ITEM: Final = b"\xfe\xff\x00\xe0"
_SEQUENCE_DELIMITER: Final = b"\xfe\xff\xdd\xe0\0\0\0\0"


class _Codec(NamedTuple):
    syntax: uid.UID
    plugin: str
    photometric: str
    planar: int


CODECS: Final[dict[str, _Codec | None]] = {
    "explicit-le": None,
    "rle": _Codec(uid.RLELossless, "", "RGB", 1),
    "jpeg-ls": _Codec(uid.JPEGLSLossless, "pyjpegls", "RGB", 0),
    "jpeg-2000": _Codec(uid.JPEG2000Lossless, "pylibjpeg", "YBR_RCT", 0),
}
"""`derive.transfer_syntax` -> pinned encoder, colour model and planes of colour frames."""


def encode(
    dataset: Dataset,
    frames: Iterable[Frame],
    transfer_syntax: str,
    work_directory: Path | None = None,
) -> Iterator[bytes]:
    """Encode a derived object.

    Parameters
    ----------
    dataset : pydicom.Dataset
        Of `derive.derive_dataset`; not changed.
    frames : iterable of ndarray, (rows, columns) or (rows, columns, 3), uint8
        As many as the data set says.
    transfer_syntax : str
        A key of `CODECS`.
    work_directory : Path, optional
        Where compressed frames wait.

    Yields
    ------
    bytes
        The file, in pieces of a frame at most.

    Raises
    ------
    Permanent
        ``object-too-large`` for more than 4 GiB of uncompressed pixels, ``frame-unencodable``
        where the codec refuses, ``frame-lost`` where frames and data set disagree.
    """
    codec = CODECS[transfer_syntax]
    if codec is None:
        yield from _native(dataset, frames)
    else:
        yield from _encapsulated(dataset, frames, codec, work_directory)


def require_encodable(length: int, transfer_syntax: str) -> None:
    """Check that pixels of `length` bytes, uncompressed, fit the encoding; see `encode`.

    Raises
    ------
    Permanent
        ``object-too-large``.
    """
    if CODECS[transfer_syntax] is None and length + length % 2 > _LONGEST:
        raise Permanent(
            "object-too-large",
            f"(7FE0,0010) Pixel Data would have {length} bytes, more than 4 GiB; set "
            'derive.transfer_syntax to "jpeg-ls", "jpeg-2000" or "rle" and retry',
        )


def _native(dataset: Dataset, frames: Iterable[Frame]) -> Iterator[bytes]:
    size = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel
    length = size * _frame_count(dataset)
    require_encodable(length, "explicit-le")
    padded = length + length % 2
    yield _head(dataset, uid.ExplicitVRLittleEndian)
    yield b"\xe0\x7f\x10\x00OB\0\0" + struct.pack("<I", padded)
    for frame in _counted(dataset, frames):
        yield frame.tobytes()
    if padded != length:
        yield b"\0"


def _encapsulated(
    dataset: Dataset, frames: Iterable[Frame], codec: _Codec, work_directory: Path | None
) -> Iterator[bytes]:
    dataset = copy(dataset)
    if dataset.SamplesPerPixel > 1:
        dataset.PhotometricInterpretation = codec.photometric
        dataset.PlanarConfiguration = codec.planar
    with tempfile.TemporaryFile(dir=work_directory) as waiting:
        offsets = []
        for frame in _counted(dataset, frames):
            offsets.append(waiting.tell())
            data = _compressed(frame, codec)
            waiting.write(_ITEM + struct.pack("<I", len(data) + len(data) % 2) + data)
            waiting.write(b"\0" * (len(data) % 2))
        # Offsets that do not fit 32 bits leave the table empty, PS3.5 A.4.
        table = b"".join(struct.pack("<I", o) for o in offsets) if offsets[-1] <= _LONGEST else b""
        yield _head(dataset, codec.syntax)
        yield b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff"
        yield _ITEM + struct.pack("<I", len(table)) + table
        waiting.seek(0)
        while chunk := waiting.read(_CHUNK):
            yield chunk
        yield _SEQUENCE_DELIMITER


def _compressed(frame: Frame, codec: _Codec) -> bytes:
    """One frame in the codec's own colour model."""
    if codec.syntax == uid.RLELossless:
        return encode_rle(frame)
    samples = 1 if frame.ndim == 2 else 3  # noqa: PLR2004
    options: dict[str, Any] = {
        "rows": frame.shape[0],
        "columns": frame.shape[1],
        "samples_per_pixel": samples,
        "number_of_frames": 1,
        "bits_allocated": 8,
        "bits_stored": 8,
        "pixel_representation": 0,
        "photometric_interpretation": codec.photometric if samples > 1 else "MONOCHROME2",
    }
    if samples > 1:
        options["planar_configuration"] = 0
    encoder = get_encoder(codec.syntax)
    data = np.ascontiguousarray(frame).tobytes()
    try:
        return bytes(encoder.encode(data, encoding_plugin=codec.plugin, **options))
    except RuntimeError as error:
        raise Permanent(
            "frame-unencodable",
            f"{codec.plugin} cannot encode frames of {frame.shape[0]} x {frame.shape[1]}; set "
            'derive.transfer_syntax to "explicit-le" or "rle"',
        ) from error


def _frame_count(dataset: Dataset) -> int:
    return int(dataset.get("NumberOfFrames") or 1)


def _counted(dataset: Dataset, frames: Iterable[Frame]) -> Iterator[Frame]:
    """The frames, if they are as many and as large as the data set says."""
    expected = _frame_count(dataset)
    shape = (dataset.Rows, dataset.Columns) + ((3,) if dataset.SamplesPerPixel > 1 else ())
    number = 0
    for frame in frames:
        number += 1
        if number > expected or frame.shape != shape or frame.dtype != np.uint8:
            break
        yield frame
    else:
        if number == expected:
            return
    raise Permanent(
        "frame-lost",
        f"frame {number} of {expected} is missing or of another size; report it to the maintainers",
    )


def _head(dataset: Dataset, syntax: uid.UID) -> bytes:
    """Preamble, group 2 and everything before the pixels."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    buffer = DicomBytesIO()
    write_file_meta_info(buffer, meta, enforce_standard=True)
    return b"\0" * 128 + b"DICM" + buffer.getvalue() + serialise(dataset)

"""The identifying attributes of a received file, read without its pixels. Pure.

What the receiver must know before it answers (PS3.4 B.2.3); everything else is `decode`'s.
"""

from __future__ import annotations

import os
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Final

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

import dicom_node.attributes.quiet  # noqa: F401 - pydicom would warn with the values of other people's files
from dicom_node.attributes.identity import is_valid_uid
from dicom_node.errors import Refused, Transient
from dicom_node.records import Identity

_UIDS: Final = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_TAGS: Final = (*_UIDS, "ContributingEquipmentSequence")
_PIXEL_DATA: Final = Tag("PixelData")
_FILE_META_START: Final = 128 + 4 + 12
"""Preamble, prefix and (0002,0000) *File Meta Information Group Length*, PS3.10 7.1."""
_LONGEST_INFLATED: Final = 16 << 20
"""Bytes of a deflated data set that are looked at; its pixels come last."""
_PARSE_ERRORS: Final = (
    InvalidDicomError,
    BytesLengthException,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    NotImplementedError,
    RecursionError,
    OverflowError,
    struct.error,
    zlib.error,
)
"""What pydicom raises, by experiment, on bytes that are no data set."""


def read_header(path: Path, transfer_syntax_uid: str) -> Dataset:
    """Read what identifies an object, and nothing of its pixels.

    Raises
    ------
    Refused
        The bytes are no data set in the transfer syntax that was negotiated.
    Transient
        The file cannot be read back.
    """
    try:
        if transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
            header = _read_deflated(path)
        else:
            header = dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
        for element in header:  # decodes what is lazy
            del element
    except _PARSE_ERRORS as error:
        raise _no_data_set() from error
    except OSError as error:
        if error.errno is None:  # pydicom's own, for items that end early; not the disk's
            raise _no_data_set() from error
        raise Transient(
            "spool-unusable",
            f"the spool cannot be read ({os.strerror(error.errno)}); check the disk",
        ) from error
    return header


def _no_data_set() -> Refused:
    return Refused("not-a-data-set", "the data set cannot be parsed in its transfer syntax")


def _read_deflated(path: Path) -> Dataset:
    """Inflate the start of a deflated data set (PS3.5 A.5), within bounded memory."""
    with path.open("rb") as file:
        start = file.read(_FILE_META_START)
        (meta_length,) = struct.unpack_from("<L", start, _FILE_META_START - 4)
        file.seek(_FILE_META_START + meta_length)
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(
            file.read(_LONGEST_INFLATED), _LONGEST_INFLATED
        )
    return read_dataset(
        BytesIO(inflated),
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, _vr, _length: tag >= _PIXEL_DATA,
        specific_tags=[Tag(keyword) for keyword in _TAGS],
    )


def identity_of(header: Dataset, transfer_syntax_uid: str) -> Identity:
    """The UIDs of a received object.

    Raises
    ------
    Refused
        A UID is missing or invalid; the message names its tag, not its value.
    """
    uids = {}
    for keyword in _UIDS:
        value = header.get(keyword)
        uid = str(value).strip() if isinstance(value, str) else ""
        if not is_valid_uid(uid):
            raise Refused("uid-invalid", f"{keyword} {Tag(keyword)} is missing or no UID")
        uids[keyword] = uid
    return Identity(
        sop_class_uid=uids["SOPClassUID"],
        sop_instance_uid=uids["SOPInstanceUID"],
        series_instance_uid=uids["SeriesInstanceUID"],
        study_instance_uid=uids["StudyInstanceUID"],
        transfer_syntax_uid=transfer_syntax_uid,
    )

"""Opening a file: which objects the node processes, and everything before their pixels.

PS3.10 7 (file format), PS3.5 A.5 (deflated), PS3.3 A.6 and A.7 (ultrasound IODs). Long values
stay in the file until they are asked for.
"""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import BinaryIO, Final

from pydicom import Dataset, FileDataset, dcmread, uid
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.errors import InvalidDicomError
from pydicom.tag import Tag

import dicom_node.attributes.quiet  # noqa: F401 - before any file is read
from dicom_node.attributes.identity import is_own_output, is_valid_uid
from dicom_node.attributes.transcribe import KNOWN, MALFORMED
from dicom_node.errors import Permanent, Refused

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
_MAX_DEFLATED: Final = 1 << 32
_DEFER: Final = 1 << 20
_CHUNK: Final = 1 << 20


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


def read_header(file: BinaryIO) -> FileDataset:
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
    _mend(dataset)
    return dataset


def _mend(dataset: FileDataset) -> None:
    """Give elements whose value representation is none (PS3.5 6.2) the one they ought to have."""
    for element in list(dataset.values()):
        if isinstance(element, RawDataElement) and element.VR not in {*KNOWN, "SQ", None}:
            right = dictionary_VR(element.tag) if dictionary_has_tag(element.tag) else "UN"
            dataset[element.tag] = element._replace(VR=right)


def _unreadable(error: Exception) -> Permanent:
    return Permanent(
        "dataset-unreadable",
        f"the data set is malformed ({type(error).__name__}); send the object again",
    )


def inflate(path: Path, work_directory: Path | None = None) -> BinaryIO:
    """A deflated file as an explicit one, in an unnamed temporary file, PS3.5 A.5."""
    unpacked = tempfile.TemporaryFile(dir=work_directory)  # noqa: SIM115 - lives as long as its decoder
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


def check_kind(dataset: FileDataset) -> None:
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
        # A damaged length may have drawn the patient's name into the value: only a UID is told.
        named = sop_class if is_valid_uid(sop_class) else "damaged" if sop_class else "absent"
        raise Refused(
            "not-ultrasound",
            f"(0008,0016) SOP Class UID {named} is not US Image or US Multi-frame Image; route "
            "only these here",
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

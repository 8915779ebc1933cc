"""A data set into Explicit VR Little Endian, value for value, without reading what it says.

PS3.5 7.1 and annex A. Text is never decoded: values in a character set that is unknown, wrong
or mixed come out byte for byte. Group lengths, pixels and what is true only of the pixels, the
bytes or the whereabouts of the source are left behind.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable
from copy import deepcopy
from typing import Final, cast

import numpy as np
from pydicom.datadict import dictionary_VR, private_dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import correct_ambiguous_vr_element, write_data_element
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

import dicom_node.attributes.quiet  # noqa: F401 - before any value is parsed
from dicom_node.errors import Permanent

TEXT: Final = frozenset(
    "AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UR UT".split()  # noqa: SIM905
)
KNOWN: Final = TEXT | frozenset(
    "AT FL FD OB OD OF OL OV OW SL SQ SS SV UL UN US UV".split()  # noqa: SIM905
)
_VERBATIM: Final = TEXT | {"OB", "UN"}
_WORD_BYTES: Final = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}
MALFORMED: Final = (
    AttributeError,
    BytesLengthException,
    EOFError,
    IndexError,
    KeyError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)
"""What pydicom raises on malformed values."""
_UNDEFINED: Final = 0xFFFFFFFF
_ITEM: Final = b"\xfe\xff\x00\xe0"
"""(FFFE,E000) *Item*, little endian."""
_STRAY_GROUPS: Final = frozenset({0x0000, 0x0002, 0x7FE0, 0xFFFE})
"""Command set, file meta, pixels, and item delimiters that a broken writer left over."""
_LEFT_BEHIND: Final = frozenset(
    {
        0x00080001,  # Length to End (retired)
        0x00280106,  # Smallest Image Pixel Value
        0x00280107,  # Largest Image Pixel Value
        0x00280108,  # Smallest Pixel Value in Series
        0x00280109,  # Largest Pixel Value in Series
        0x00280110,  # Smallest Image Pixel Value in Plane (retired)
        0x00280111,  # Largest Image Pixel Value in Plane (retired)
        0x00287FE0,  # Pixel Data Provider URL
        0x00880200,  # Icon Image Sequence
        0x4FFE0001,  # MAC Parameters Sequence
        0xFFFAFFFA,  # Digital Signatures Sequence
        0xFFFCFFFC,  # Data Set Trailing Padding
    }
)
_OF_THE_OBJECT: Final = frozenset(
    {
        0x00080054,  # Retrieve AE Title
        0x00080056,  # Instance Availability
        0x01000410,  # SOP Instance Status
        0x01000420,  # SOP Authorization DateTime
        0x01000424,  # SOP Authorization Comment
        0x01000426,  # Authorization Equipment Certification Number
    }
)
"""Left behind, but in sequences, where they are those of another object."""


def transcribe(source: Dataset, keep_private: Collection[str] = ()) -> Dataset:
    """Copy a data set for Explicit VR Little Endian.

    Parameters
    ----------
    source : pydicom.Dataset
        As read from a file of any transfer syntax; not changed.
    keep_private : collection of str
        Private creators whose elements are copied too, at any depth.

    Returns
    -------
    pydicom.Dataset
        Without group lengths, pixels, icon, signatures and other private elements, but with those
        that (0028,0009) points to, and their creators.
    """
    return _copy(source, frozenset(keep_private), [])


def _copy(source: Dataset, creators: frozenset[str], ancestors: list[Dataset]) -> Dataset:
    copy = Dataset()
    pointed_to = _pointed_to(source)
    for tag in sorted(source.keys()):
        if tag not in pointed_to and _stays_behind(source, tag, creators):
            continue
        if int(tag) in _OF_THE_OBJECT and not ancestors:
            continue
        element = _told(source, tag, item_of(source, tag))
        vr = _vr(source, tag, element)
        little_endian = True
        if isinstance(element, RawDataElement):
            little_endian = element.is_little_endian
            if (vr in _VERBATIM or vr in _WORD_BYTES) and element.length != _UNDEFINED:
                value = element.value or b""
                swap = vr in _WORD_BYTES and not little_endian
                copy[tag] = raw(tag, vr, _swapped(value, _WORD_BYTES[vr]) if swap else value)
                continue
        try:
            copy.add(_parsed(source, tag, creators, ancestors, little_endian=little_endian))
        except MALFORMED:
            # No number in there: as it came, or not at all where the bytes would need swapping.
            stored = getattr(element, "value", None)
            if isinstance(stored, bytes) and little_endian and len(vr) == 2:  # noqa: PLR2004
                copy[tag] = raw(tag, vr, stored)
    return copy


def _parsed(
    source: Dataset,
    tag: BaseTag,
    creators: frozenset[str],
    ancestors: list[Dataset],
    *,
    little_endian: bool,
) -> DataElement:
    """A copy of an element that has to be understood: a sequence, or numbers."""
    element: DataElement = source[tag]
    if element.VR == "SQ":
        items = [_copy(item, creators, [source, *ancestors]) for item in element.value]
        return DataElement(tag, "SQ", Sequence(items))
    copy = deepcopy(element)
    if " or " in copy.VR:
        corrected = correct_ambiguous_vr_element(copy, source, little_endian, ancestors)
        return cast("DataElement", corrected)
    return copy


def item_of(dataset: Dataset, tag: BaseTag) -> DataElement | RawDataElement:
    """An element as it stands in the data set, parsed or not; pydicom's types say parsed.

    Raises
    ------
    Permanent
        ``dataset-unreadable``: a long value, left in the file till now, is not there.
    """
    try:
        return cast("DataElement | RawDataElement", dataset.get_item(tag))
    except MALFORMED as error:
        raise Permanent(
            "dataset-unreadable", f"{tag} has no readable value; send the object again"
        ) from error


def raw(tag: BaseTag, vr: str, value: bytes) -> RawDataElement:
    """An element whose value is written as it is, padded as PS3.5 6.2 has it."""
    if vr in TEXT and vr != "UI" and value.endswith(b"\0"):
        value = value.rstrip(b"\0")
    if len(value) % 2:
        value += b"\0" if vr in {"UI", "OB", "UN"} else b" "
    return RawDataElement(tag, vr, len(value), value, 0, False, True)


def raw_value(dataset: Dataset, tag: BaseTag) -> bytes:
    """The bytes of a text element of a transcribed data set, without padding; empty if absent."""
    element = dataset.get_item(tag) if tag in dataset else None
    value = element.value if element is not None else None
    if isinstance(value, bytes):
        return value.rstrip(b" \0")
    parts = value if isinstance(value, MultiValue) else [] if value is None else [value]
    return "\\".join(str(part) for part in parts).encode("ascii", "replace")


def serialise(dataset: Dataset, character_sets: str | list[str] | None = None) -> bytes:
    """A transcribed data set in Explicit VR Little Endian, without any pixels.

    Parameters
    ----------
    character_sets : str or list of str, optional
        (0008,0005) *Specific Character Set* that holds where the data set has none.
    """
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    character_sets = dataset.get("SpecificCharacterSet") or character_sets
    for tag in sorted(dataset.keys()):
        element = item_of(dataset, tag)
        if isinstance(element, DataElement) and element.VR == "SQ":
            bodies = [serialise(item, character_sets) for item in element.value]
            content = b"".join(_ITEM + len(body).to_bytes(4, "little") + body for body in bodies)
            element = raw(tag, "SQ", content)
        write_data_element(buffer, element, character_sets)
    return buffer.getvalue()


def _stays_behind(source: Dataset, tag: BaseTag, creators: frozenset[str]) -> bool:
    if tag.element == 0 or tag.group in _STRAY_GROUPS or int(tag) in _LEFT_BEHIND:
        return True
    if not tag.is_private:
        return False
    if tag.is_private_creator:
        creator = source.get(tag)
    else:
        creator = source.get(BaseTag((tag.group << 16) | (tag.element >> 8)))
    return str(getattr(creator, "value", "")).strip() not in creators


def _pointed_to(source: Dataset) -> frozenset[int]:
    """Private elements that time the frames, PS3.3 C.7.6.6.1.1, and their creator elements.

    (0028,0009) *Frame Increment Pointer* may be neither absent nor point to nothing.
    """
    try:
        value = source.get("FrameIncrementPointer") or ()
        tags = [BaseTag(each) for each in (value if isinstance(value, Iterable) else [value])]
    except MALFORMED:
        return frozenset()
    private = [tag for tag in tags if tag.is_private and tag.element > 0xFF]  # noqa: PLR2004
    return frozenset(
        {*private, *(BaseTag((tag.group << 16) | (tag.element >> 8)) for tag in private)}
    )


def _vr(source: Dataset, tag: BaseTag, element: DataElement | RawDataElement) -> str:
    """The value representation, looked up where the file says none or nonsense, PS3.5 6.2.2."""
    if element.VR is not None and (element.VR in KNOWN or not isinstance(element, RawDataElement)):
        return str(element.VR)
    try:
        if not tag.is_private:
            return dictionary_VR(tag)
        if tag.is_private_creator:
            return "LO"
        creator = source.get(BaseTag((tag.group << 16) | (tag.element >> 8)))
        return private_dictionary_VR(tag, str(getattr(creator, "value", "")))
    except KeyError:
        pass
    return "UN"


def _told(
    source: Dataset, tag: BaseTag, element: DataElement | RawDataElement
) -> DataElement | RawDataElement:
    """A public sequence that was written as UN, as what it is; any other element as it came.

    PS3.5 6.2.2: little endian, whatever the transfer syntax. Its items ought to have implicit VR;
    pydicom looks whether they do.
    """
    if not isinstance(element, RawDataElement) or element.VR != "UN" or tag.is_private:
        return element
    if element.value and not element.value.startswith(_ITEM):
        return element
    try:
        if dictionary_VR(tag) != "SQ":
            return element
    except KeyError:  # of a later edition; with items in it, it is a sequence
        if not element.value:
            return element
    source[tag] = element._replace(VR="SQ", is_little_endian=True)
    try:
        return source[tag]
    except (*MALFORMED, OSError):
        source[tag] = element
        return element


def _swapped(value: bytes, size: int) -> bytes:
    whole = len(value) // size * size
    return np.frombuffer(value[:whole], f"u{size}").byteswap().tobytes() + value[whole:]

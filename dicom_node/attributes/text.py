"""Adding ASCII text to values in any character set, within the length of their VR.

PS3.5 6.1.2 and 6.2: lengths count characters, values return to the initial character set at
their end, and ASCII is part of every character set that DICOM allows.
"""

from __future__ import annotations

from pydicom.charset import convert_encodings, decode_bytes, encode_string
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from dicom_node.attributes.transcribe import raw_value

_DELIMITERS = {0x0D, 0x0A, 0x09, 0x0C}


def appended(dataset: Dataset, tag: BaseTag, addition: str, limit: int, *, separator: str) -> bytes:
    """The value of a text element with an addition; the old text gives way where both are too long.

    Parameters
    ----------
    dataset : pydicom.Dataset
        Transcribed; not changed.
    addition : str
        ASCII, kept whole up to `limit`.
    limit : int
        Largest number of characters of the VR.

    Returns
    -------
    bytes
        In the data set's character set, unpadded.
    """
    value = raw_value(dataset, tag)
    extra = addition.encode("ascii", "replace")[:limit]
    if not value:
        return extra
    room = limit - len(extra) - len(separator)
    shortened = _shortened(value, room, dataset.get("SpecificCharacterSet"))
    return shortened + separator.encode("ascii") + extra if shortened else extra


def _shortened(value: bytes, room: int, character_set: str | list[str] | None) -> bytes:
    """At most `room` characters of a value; bytes count as characters where none can be told."""
    if room <= 0:
        return b""
    if len(value) <= room:
        return value
    encodings = convert_encodings(character_set)
    try:
        text = decode_bytes(value, encodings, _DELIMITERS)
        if len(text) <= room:
            return value
        if encode_string(text, encodings) == value:
            return encode_string(text[:room], encodings).rstrip()
    except (UnicodeError, LookupError, ValueError):
        pass
    return value[:room].rstrip()

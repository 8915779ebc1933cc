from __future__ import annotations

import pytest
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from dicom_node.attributes.text import appended
from dicom_node.attributes.transcribe import raw

TAG = Tag("SeriesDescription")


def described(value: bytes, character_set: str | list[str] | None = None) -> Dataset:
    ds = Dataset()
    if character_set:
        ds.SpecificCharacterSet = character_set
    ds[TAG] = raw(TAG, "LO", value)
    return ds


def test_addition_follows_the_old_text() -> None:
    assert appended(described(b"Liver "), TAG, "AI", 64, separator=" ") == b"Liver AI"


def test_addition_stands_alone_where_there_was_none() -> None:
    assert appended(Dataset(), TAG, "AI", 64, separator=" ") == b"AI"


def test_old_text_gives_way() -> None:
    value = appended(described(b"x" * 64), TAG, "AI despeckled", 64, separator=" ")
    assert len(value) == 64
    assert value.endswith(b"x AI despeckled")


def test_characters_count_not_bytes() -> None:
    value = appended(described("ü".encode() * 40, "ISO_IR 192"), TAG, "AI", 64, separator=" ")
    assert value.decode() == "ü" * 40 + " AI"


def test_multibyte_text_is_never_cut_inside_a_character() -> None:
    value = appended(described("ü".encode() * 64, "ISO_IR 192"), TAG, "AI", 64, separator=" ")
    assert value.decode() == "ü" * 61 + " AI"


@pytest.mark.parametrize("character_set", [None, "ISO_IR 192", "ISO_IR", ["", "ISO 2022 IR 87"]])
def test_undecodable_bytes_are_kept_as_they_are(character_set: str | list[str] | None) -> None:
    value = appended(described(b"\xff\xfe\x80L", character_set), TAG, "AI", 64, separator=" ")
    assert value == b"\xff\xfe\x80L AI"


def test_undecodable_long_text_is_cut_by_bytes() -> None:
    value = appended(described(b"\xff" * 64, "ISO_IR 192"), TAG, "AI", 64, separator=" ")
    assert value == b"\xff" * 61 + b" AI"


def test_japanese_text_is_cut_with_its_escapes_closed() -> None:
    text = "超音波" * 20
    stored = text.encode("iso2022_jp")
    ds = described(stored, ["", "ISO 2022 IR 87"])
    value = appended(ds, TAG, "AI", 64, separator=" ")
    assert value.decode("iso2022_jp") == text + " AI"
    assert appended(ds, TAG, "AI", 30, separator=" ").decode("iso2022_jp") == text[:27] + " AI"

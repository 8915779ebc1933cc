from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from dicom_node.attributes.transcribe import serialise, transcribe
from dicom_node.decode import open_instance
from tests.builders import make_us_instance, save


def through(path: Path, keep: tuple[str, ...] = ()) -> Dataset:
    """The data set of a file, transcribed, written and read again."""
    written = serialise(transcribe(open_instance(path).dataset, keep))
    return read_dataset(BytesIO(written), is_implicit_VR=False, is_little_endian=True)


SYNTAXES = [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_every_value_comes_through(tmp_path: Path, syntax: str) -> None:
    ds = make_us_instance(transfer_syntax=syntax, frames=2)
    copy = through(save(ds, tmp_path / "x.dcm"))
    kept = [element for element in ds if element.keyword != "PixelData"]
    assert len(kept) > 40
    for element in kept:
        assert copy[element.tag].value == element.value, element.keyword


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_overlays_come_through_bit_for_bit(tmp_path: Path, syntax: str) -> None:
    plane = np.random.default_rng(0).integers(0, 256, 48 * 8, np.uint8)
    ds = make_us_instance(transfer_syntax=syntax)
    ds.add_new(0x60000010, "US", 48)
    ds.add_new(0x60000011, "US", 64)
    ds.add_new(0x60000040, "CS", "G")
    ds.add_new(0x60000050, "SS", [1, 1])
    ds.add_new(0x60000100, "US", 1)
    ds.add_new(0x60000102, "US", 0)
    stored = plane if syntax != uid.ExplicitVRBigEndian else plane.reshape(-1, 2)[:, ::-1]
    ds.add_new(0x60003000, "OW", stored.tobytes())
    assert through(save(ds, tmp_path / "x.dcm"))[0x60003000].value == plane.tobytes()


def test_undecodable_names_come_through_byte_for_byte(tmp_path: Path) -> None:
    name = b"M\xfcller^J\xf6r\xff"  # not UTF-8, which the character set claims
    ds = make_us_instance()
    path = save(ds, tmp_path / "x.dcm")
    whole = path.read_bytes()
    assert b"Tester^Terry" in whole
    path.write_bytes(whole.replace(b"Tester^Terry", name + b" "))
    written = serialise(transcribe(open_instance(path).dataset))
    assert name in written


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_private_elements_go_unless_allowed(tmp_path: Path, syntax: str) -> None:
    ds = make_us_instance(transfer_syntax=syntax)
    for creator in ("KEEP ME", "RAW LINES"):
        block = ds.private_block(0x0019, creator, create=True)
        block.add_new(0x01, "LO", f"of {creator}")
        nested = ds.SequenceOfUltrasoundRegions[0].private_block(0x0019, creator, create=True)
        nested.add_new(0x01, "LO", f"nested of {creator}")
    path = save(ds, tmp_path / "x.dcm")
    assert not any(element.tag.is_private for element in through(path).iterall())
    kept = [e for e in through(path, ("KEEP ME",)).iterall() if e.tag.is_private]
    assert len(kept) == 4
    assert not any(b"RAW" in str(e.value).encode() for e in kept)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("pointer", [0x00191001, [0x00181063, 0x00191001]])
def test_what_the_frame_increment_pointer_names_stays_with_its_creator(
    tmp_path: Path, syntax: str, pointer: int | list[int]
) -> None:
    ds = make_us_instance(transfer_syntax=syntax, frames=2)
    for creator in ("TIMES", "OTHER"):
        block = ds.private_block(0x0019, creator, create=True)
        block.add_new(0x01, "DS", "33.5")
        block.add_new(0x02, "LO", f"of {creator}")
    ds.FrameIncrementPointer = pointer
    copy = through(save(ds, tmp_path / "x.dcm"))
    assert copy.FrameIncrementPointer == pointer
    assert {int(e.tag) for e in copy.iterall() if e.tag.is_private} == {0x00190010, 0x00191001}
    assert copy[0x00190010].value == "TIMES"
    assert b"33.5" in serialise(copy)


def test_where_to_retrieve_what_is_referred_to_stays(tmp_path: Path) -> None:
    series = Dataset()
    series.SeriesInstanceUID, series.RetrieveAETitle = "1.2", "ARCHIVE"
    ds = make_us_instance(ReferencedSeriesSequence=[series])
    copy = through(save(ds, tmp_path / "x.dcm"))
    assert copy.ReferencedSeriesSequence[0].RetrieveAETitle == "ARCHIVE"


def test_what_belongs_to_the_source_bytes_goes(tmp_path: Path) -> None:
    icon, signature = Dataset(), Dataset()
    icon.Rows = 1
    signature.MACIDNumber = 1
    ds = make_us_instance(
        IconImageSequence=[icon],
        DigitalSignaturesSequence=[signature],
        MACParametersSequence=[signature],
        SmallestImagePixelValue=0,
        LargestImagePixelValue=255,
        ExtendedOffsetTable=b"\0" * 8,
        ExtendedOffsetTableLengths=b"\0" * 8,
        DataSetTrailingPadding=b"\0" * 8,
        SOPInstanceStatus="AO",
        SOPAuthorizationDateTime="20240102",
        SOPAuthorizationComment="as acquired",
        AuthorizationEquipmentCertificationNumber="1",
        RetrieveAETitle="ARCHIVE",
        InstanceAvailability="ONLINE",
    )
    copy = through(save(ds, tmp_path / "x.dcm"))
    for gone in (
        "IconImageSequence",
        "DigitalSignaturesSequence",
        "MACParametersSequence",
        "SmallestImagePixelValue",
        "LargestImagePixelValue",
        "ExtendedOffsetTable",
        "ExtendedOffsetTableLengths",
        "DataSetTrailingPadding",
        "SOPInstanceStatus",
        "SOPAuthorizationDateTime",
        "SOPAuthorizationComment",
        "AuthorizationEquipmentCertificationNumber",
        "RetrieveAETitle",
        "InstanceAvailability",
        "PixelData",
    ):
        assert gone not in copy
    assert all(element.tag.element != 0 for element in copy)


def _as_unknown(tag: bytes, content: bytes, *, undefined: bool = False) -> bytes:
    """An explicit element of VR UN."""
    length = b"\xff\xff\xff\xff" if undefined else len(content).to_bytes(4, "little")
    end = b"\xfe\xff\xdd\xe0\0\0\0\0" if undefined else b""
    return tag + b"UN\0\0" + length + content + end


def _implicit(*items: Dataset) -> bytes:
    """Items in Implicit VR Little Endian, PS3.5 6.2.2."""
    content = b""
    for item in items:
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, True
        write_dataset(buffer, item)
        body = buffer.getvalue()
        content += b"\xfe\xff\x00\xe0" + len(body).to_bytes(4, "little") + body
    return content


def _series(uid_: str) -> Dataset:
    """An item of (0008,1115) with a private element, and in it an item with another."""
    series, instance = Dataset(), Dataset()
    for item in (series, instance):
        item.private_block(0x0019, "RAW LINES", create=True).add_new(0x01, "LO", "secret")
    instance.ReferencedSOPInstanceUID = f"{uid_}.1"
    series.SeriesInstanceUID = uid_
    series.ReferencedInstanceSequence = [instance]
    return series


def _between(path: Path, before: bytes, element: bytes) -> Path:
    """The file with an element put in before another."""
    whole = path.read_bytes()
    assert whole.count(before) == 1
    path.write_bytes(whole.replace(before, element + before))
    return path


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_sequence_of_unknown_representation_is_one(
    tmp_path: Path, undefined: bool, count: int
) -> None:
    items = [_series(f"1.2.{number}") for number in range(count)]
    path = save(make_us_instance(), tmp_path / "x.dcm")
    sequence = _as_unknown(b"\x08\x00\x15\x11", _implicit(*items), undefined=undefined)
    copy = through(_between(path, b"\x10\x00\x10\x00PN", sequence))
    assert copy["ReferencedSeriesSequence"].VR == "SQ"
    found = copy.ReferencedSeriesSequence
    assert [str(item.SeriesInstanceUID) for item in found] == [f"1.2.{n}" for n in range(count)]
    assert all(len(item.ReferencedInstanceSequence) == 1 for item in found)
    assert not any(element.tag.is_private for element in copy.iterall())


def test_sequence_of_unknown_representation_within_another_is_one(tmp_path: Path) -> None:
    inner = _as_unknown(b"\x08\x00\x4a\x11", _implicit(_series("1.2.3")))
    item = b"\xfe\xff\x00\xe0" + len(inner).to_bytes(4, "little") + inner
    outer = b"\x08\x00\x15\x11SQ\0\0" + len(item).to_bytes(4, "little") + item
    path = save(make_us_instance(), tmp_path / "x.dcm")
    copy = through(_between(path, b"\x10\x00\x10\x00PN", outer))
    (found,) = copy.ReferencedSeriesSequence
    assert found["ReferencedInstanceSequence"].VR == "SQ"
    assert not any(element.tag.is_private for element in copy.iterall())


@pytest.mark.parametrize("syntax", SYNTAXES[1:])
def test_items_of_a_later_edition_lose_their_private_elements(tmp_path: Path, syntax: str) -> None:
    ds = make_us_instance(transfer_syntax=syntax)
    ds.add_new(0x0008FFF1, "UN", _implicit(_series("1.2.3")))
    copy = through(save(ds, tmp_path / "x.dcm"))
    assert copy[0x0008FFF1].VR == "SQ"
    assert not any(element.tag.is_private for element in copy.iterall())


@pytest.mark.parametrize("content", [b"no items", b"\xfe\xff\x00\xe0\xff", b"\0\0"])
def test_unknown_representation_that_holds_no_items_comes_through_as_it_is(
    tmp_path: Path, content: bytes
) -> None:
    path = save(make_us_instance(), tmp_path / "x.dcm")
    content += b"\0" * (len(content) % 2)
    _between(path, b"\x10\x00\x10\x00PN", _as_unknown(b"\x08\x00\x15\x11", content))
    assert _as_unknown(b"\x08\x00\x15\x11", content) in serialise(
        transcribe(open_instance(path).dataset)
    )


def test_unreadable_number_comes_through_as_it_is(tmp_path: Path) -> None:
    path = save(make_us_instance(), tmp_path / "x.dcm")
    whole = path.read_bytes()
    # (0028,0104), a number of three bytes
    odd = b"\x28\x00\x04\x01US\x03\x00abc"
    after = b"\x28\x00\x03\x01US\x02\x00\x00\x00"
    assert after in whole
    path.write_bytes(whole.replace(after, after + odd))
    assert b"abc" in serialise(transcribe(open_instance(path).dataset))


def test_null_padding_of_text_becomes_spaces(tmp_path: Path) -> None:
    path = save(make_us_instance(StationName="AB"), tmp_path / "x.dcm")
    whole = path.read_bytes()
    assert b"SH\x02\x00AB" in whole
    path.write_bytes(whole.replace(b"SH\x02\x00AB", b"SH\x02\x00A\x00"))
    assert b"SH\x02\x00A " in serialise(transcribe(open_instance(path).dataset))


def test_source_is_not_changed(tmp_path: Path) -> None:
    path = save(make_us_instance(), tmp_path / "x.dcm")
    source = open_instance(path).dataset
    transcribe(source).PatientID = "other"
    assert source.PatientID == "P1"
    assert source.SequenceOfUltrasoundRegions[0].RegionDataType == 1

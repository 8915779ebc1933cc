from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

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
        "PixelData",
    ):
        assert gone not in copy
    assert all(element.tag.element != 0 for element in copy)


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

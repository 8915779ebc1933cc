from __future__ import annotations

import struct
import zlib
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicom_node.attributes.header import identity_of, read_header
from dicom_node.attributes.identity import MODEL_NAME, is_own_output
from dicom_node.errors import Refused, Transient
from tests.receiving import small_object, write_object

MARK = "Marked^Patient"


every_encoding = pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    ],
)


def stored(tmp_path, syntax=ExplicitVRLittleEndian, **changes):
    dataset = small_object(**changes)
    dataset.file_meta.TransferSyntaxUID = syntax
    return write_object(tmp_path / "object.dcm", dataset), dataset


@every_encoding
def test_identity_is_read_in_every_encoding(tmp_path, syntax):
    path, dataset = stored(tmp_path, syntax)
    identity = identity_of(read_header(path, syntax), syntax)
    assert identity.sop_instance_uid == dataset.SOPInstanceUID
    assert identity.sop_class_uid == dataset.SOPClassUID
    assert identity.series_instance_uid == dataset.SeriesInstanceUID
    assert identity.study_instance_uid == dataset.StudyInstanceUID
    assert identity.transfer_syntax_uid == syntax


def test_header_holds_neither_pixels_nor_patient(tmp_path):
    path, _ = stored(tmp_path)
    header = read_header(path, ExplicitVRLittleEndian)
    assert "PixelData" not in header
    assert MARK not in str(header)


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian]
)
def test_own_output_is_recognised_from_the_header_alone(tmp_path, syntax):
    purpose, item = Dataset(), Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "109102", "DCM"
    item.ManufacturerModelName = MODEL_NAME
    item.PurposeOfReferenceCodeSequence = Sequence([purpose])
    path, _ = stored(tmp_path, syntax, ContributingEquipmentSequence=Sequence([item]))
    assert is_own_output(read_header(path, syntax))


@pytest.mark.parametrize(
    "keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]
)
@pytest.mark.parametrize("value", [None, "", "1.2/3", "../../x", "1" * 70, ["1.2", "1.3"], MARK])
def test_missing_or_invalid_uid_is_refused_by_its_tag_not_its_value(keyword, value):
    dataset = small_object(**{keyword: value})
    with pytest.raises(Refused) as caught:
        identity_of(dataset, ExplicitVRLittleEndian)
    assert keyword in caught.value.message
    assert MARK not in str(caught.value)
    assert len(caught.value.message) <= 64


@every_encoding
@pytest.mark.parametrize("undefined_length", [False, True])
def test_data_set_that_ends_anywhere_is_read_or_refused(tmp_path, syntax, undefined_length):
    inner, region = Dataset(), Dataset()
    inner.CodeValue, inner.CodeMeaning = "109102", MARK
    region.PurposeOfReferenceCodeSequence = Sequence([inner])
    region["PurposeOfReferenceCodeSequence"].is_undefined_length = undefined_length
    path, dataset = stored(tmp_path, syntax)
    dataset.ContributingEquipmentSequence = Sequence([region, region])
    dataset["ContributingEquipmentSequence"].is_undefined_length = undefined_length
    write_object(path, dataset)
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with suppress(Refused):
            read_header(path, syntax)


def test_disk_that_fails_is_no_fault_of_the_data_set(tmp_path):
    with pytest.raises(Transient) as caught:
        read_header(tmp_path, ExplicitVRLittleEndian)  # a folder
    assert caught.value.code == "spool-unusable"


def test_deflated_bomb_is_inflated_within_bounds(tmp_path):
    path, _ = stored(tmp_path, DeflatedExplicitVRLittleEndian)
    whole = path.read_bytes()
    (length,) = struct.unpack_from("<L", whole, 140)
    start = 144 + length
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    inflated = zlib.decompress(whole[start:], -zlib.MAX_WBITS)
    # a private element of 64 MB of zeros before everything else
    packed = packer.compress(struct.pack("<HH2sHL", 0x0007, 0x1010, b"OB", 0, 64 << 20))
    for _ in range(64):
        packed += packer.compress(bytes(1 << 20))
    packed += packer.compress(inflated) + packer.flush()
    path.write_bytes(whole[:start] + packed)
    with pytest.raises(Refused):
        identity_of(
            read_header(path, DeflatedExplicitVRLittleEndian), DeflatedExplicitVRLittleEndian
        )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    garbage=st.binary(max_size=300),
    cut=st.integers(0, 700),
    syntax=st.sampled_from(
        [
            ImplicitVRLittleEndian,
            ExplicitVRLittleEndian,
            ExplicitVRBigEndian,
            DeflatedExplicitVRLittleEndian,
        ]
    ),
)
def test_any_bytes_give_an_identity_or_a_refusal(tmp_path, garbage, cut, syntax):
    path, _ = stored(tmp_path)
    whole = bytearray(path.read_bytes())
    whole[cut : cut + len(garbage)] = garbage
    path.write_bytes(whole)
    said = ""
    try:
        identity_of(read_header(path, syntax), syntax)
    except Refused as refusal:
        said = str(refusal)
    assert MARK not in said

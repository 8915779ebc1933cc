from __future__ import annotations

import struct
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import Tag

from dicom_node.attributes.identity import IMPLEMENTATION_CLASS_UID, MODEL_NAME, is_own_output
from dicom_node.attributes.transcribe import serialise
from dicom_node.config import Settings, parse
from dicom_node.decode import Decoder, open_instance
from dicom_node.derive import derive_dataset
from dicom_node.records import DerivedIdentity, PixelReport
from tests.builders import (
    ROOT,
    MedianDespeckler,
    add_palette,
    make_us_instance,
    save,
    write_us_instance,
)

IDENTITY = DerivedIdentity(f"{ROOT}.7.7.7", f"{ROOT}.7.7")
REPORT = PixelReport(2, 0.25, 0.5, -1.25, "ultrasound-regions")
NOW = datetime(2024, 5, 6, 22, 8, 9, 10, tzinfo=UTC)


def derived(tmp_path: Path, settings: Settings | None = None, **options: Any) -> Dataset:
    """The derived data set of a built object, after a round trip through its bytes."""
    path = save(make_us_instance(**options), tmp_path / "source.dcm")
    return derived_from(path, settings)


def derived_from(path: Path, settings: Settings | None = None) -> Dataset:
    return derived_of(open_instance(path), settings)


def derived_of(decoder: Decoder, settings: Settings | None = None) -> Dataset:
    dataset = derive_dataset(
        decoder.dataset,
        decoder.geometry,
        IDENTITY,
        bundle=MedianDespeckler.bundle,
        report=REPORT,
        settings=settings or Settings(),
        now=NOW,
    )
    written = serialise(dataset)
    return read_dataset(BytesIO(written), is_implicit_VR=False, is_little_endian=True)


def code(item: Dataset) -> tuple[str, str, str]:
    return item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning


KEPT = ["StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "StudyDescription", "AccessionNumber", "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "InstanceNumber", "SeriesDate", "SeriesTime", "ContentDate", "ContentTime", "AcquisitionDate", "AcquisitionTime", "FrameTime", "FrameIncrementPointer", "SequenceOfUltrasoundRegions", "NumberOfFrames", "Rows", "Columns", "Laterality", "PatientOrientation", "LossyImageCompression", "Manufacturer", "ManufacturerModelName", "SoftwareVersions", "DeviceSerialNumber", "StationName", "SpecificCharacterSet", "BurnedInAnnotation", "QualityControlImage", "UltrasoundColorDataPresent", "AcquisitionDateTime", "TimezoneOffsetFromUTC", "FrameOfReferenceUID", "BodyPartExamined", "HeartRate", "CineRate", "RecommendedDisplayFrameRate", "StageName", "PixelSpacing", "SyntheticData", "LossyImageCompressionRatio", "LossyImageCompressionMethod", "ReferencedPerformedProcedureStepSequence", "RequestAttributesSequence", "PixelAspectRatio", "InstitutionName", "ProtocolName", "WindowCenter", "WindowWidth"]  # fmt: skip

EXTRA: dict[str, Any] = {
    "BurnedInAnnotation": "NO",
    "QualityControlImage": "NO",
    "UltrasoundColorDataPresent": 0,
    "AcquisitionDateTime": "20240102030405.5+0100",
    "TimezoneOffsetFromUTC": "+0100",
    "FrameOfReferenceUID": f"{ROOT}.5",
    "BodyPartExamined": "LIVER",
    "HeartRate": "60",
    "CineRate": "30",
    "RecommendedDisplayFrameRate": "30",
    "StageName": "REST",
    "PixelSpacing": ["0.2", "0.2"],
    "SyntheticData": "NO",
    "LossyImageCompression": "01",
    "LossyImageCompressionRatio": ["10", "2"],
    "LossyImageCompressionMethod": ["ISO_10918_1", "ISO_15444_1"],
    "ReferencedPerformedProcedureStepSequence": [],
    "RequestAttributesSequence": [],
    "PixelAspectRatio": [1, 1],
    "InstitutionName": "Hospital",
    "ProtocolName": "P",
    "WindowCenter": "127",
    "WindowWidth": "254",
}


@pytest.mark.parametrize("keyword", KEPT)
def test_attribute_is_kept(tmp_path: Path, keyword: str) -> None:
    source = make_us_instance(frames=2, **EXTRA)
    assert keyword in source
    copy = derived_from(save(source, tmp_path / "x.dcm"))
    assert copy[keyword].value == source[keyword].value


STATEMENT = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text()
IN_OTHER_WORDS = {
    "InstanceCreationTime": "InstanceCreationDate, -Time",
    "SmallestImagePixelValue": "Smallest and Largest (Image) Pixel Value",
    "LargestImagePixelValue": "Smallest and Largest (Image) Pixel Value",
    "PhotometricInterpretation": "PALETTE COLOR without a coloured pixel",
    "SamplesPerPixel": "Image Pixel module",
    "RedPaletteColorLookupTableDescriptor": "of palette sources the LUTs",
    "GreenPaletteColorLookupTableDescriptor": "of palette sources the LUTs",
    "BluePaletteColorLookupTableDescriptor": "of palette sources the LUTs",
    "RedPaletteColorLookupTableData": "of palette sources the LUTs",
    "GreenPaletteColorLookupTableData": "of palette sources the LUTs",
    "BluePaletteColorLookupTableData": "of palette sources the LUTs",
    "PixelPaddingValue": "Pixel Padding Value",
    "WindowCenter": "VOI LUT",
    "WindowWidth": "VOI LUT",
}
"""How the conformance statement names what it does not name by its keyword."""


@pytest.mark.parametrize("equipment", ["source", "node"])
@pytest.mark.parametrize("palette", [False, True])
def test_conformance_statement_names_every_attribute_that_is_not_copied(
    tmp_path: Path, equipment: str, palette: bool
) -> None:
    own = {"SmallestImagePixelValue": 0, "LargestImagePixelValue": 9, "IconImageSequence": []}
    source = make_us_instance(
        SOPClassUID="1.2.840.10008.5.1.4.1.1.6", **EXTRA | own, DeviceUID=f"{ROOT}.8"
    )
    if palette:
        add_palette(source)
        source.PixelPaddingValue = 0
    settings = parse({"derive": {"equipment": equipment}})
    copy = derived_from(save(source, tmp_path / "x.dcm"), settings)
    table = STATEMENT.partition("## 5.")[2].partition("## 6.")[0]
    others = {tag for tag in source.keys() | copy.keys() if source.get(tag) != copy.get(tag)}
    assert len(others) > 10
    for tag in others - {Tag("PixelData")}:
        keyword = keyword_for_tag(tag)
        assert IN_OTHER_WORDS.get(keyword, keyword) in table, keyword


def test_identity_and_class(tmp_path: Path) -> None:
    ds = derived(tmp_path, frames=2)
    assert ds.SOPInstanceUID == IDENTITY.sop_instance_uid
    assert ds.SeriesInstanceUID == IDENTITY.series_instance_uid
    assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.3.1"
    assert ds.Modality == "US"


def test_retired_class_becomes_the_current_one_and_is_recorded(tmp_path: Path) -> None:
    retired = "1.2.840.10008.5.1.4.1.1.6"
    ds = derived(tmp_path, SOPClassUID=retired)
    assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.6.1"
    assert retired in ds.DerivationDescription
    assert ds.SourceImageSequence[0].ReferencedSOPClassUID == retired


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (["ORIGINAL", "PRIMARY", "ABDOMINAL", "0001"], ["DERIVED", "PRIMARY", "ABDOMINAL", "0001"]),
        (["DERIVED", "SECONDARY", "", "0011"], ["DERIVED", "PRIMARY", "", "0011"]),
        (["ORIGINAL", "PRIMARY"], ["DERIVED", "PRIMARY"]),
        (["ORIGINAL"], ["DERIVED", "PRIMARY"]),
        ("", ["DERIVED", "PRIMARY"]),
        (None, ["DERIVED", "PRIMARY"]),
    ],
)
def test_image_type(tmp_path: Path, source: Any, wanted: list[str]) -> None:
    assert list(derived(tmp_path, ImageType=source).ImageType) == wanted


def test_image_type_that_was_read_before_keeps_its_values(tmp_path: Path) -> None:
    """As it is where the tissue is estimated."""
    values = ["ORIGINAL", "PRIMARY", "SMALL PARTS", "0001"]
    decoder = open_instance(save(make_us_instance(ImageType=values), tmp_path / "x.dcm"))
    assert list(decoder.dataset.ImageType) == values
    assert list(derived_of(decoder).ImageType) == ["DERIVED", *values[1:]]


@pytest.mark.parametrize(
    ("source", "wanted"), [(3, 1003), ("", 1000), (None, 1000), (2**31 - 5, 1000), (0, 1000)]
)
def test_series_number(tmp_path: Path, source: Any, wanted: int) -> None:
    assert derived(tmp_path, SeriesNumber=source).SeriesNumber == wanted


def test_unreadable_series_number(tmp_path: Path) -> None:
    path = save(make_us_instance(SeriesNumber=12), tmp_path / "x.dcm")
    path.write_bytes(
        path.read_bytes().replace(b"IS\x02\x0012\x20\x00\x13", b"IS\x02\x00A!\x20\x00\x13")
    )
    assert derived_from(path).SeriesNumber == 1000


def test_series_description_carries_the_label(tmp_path: Path) -> None:
    assert derived(tmp_path).SeriesDescription == "Liver AI despeckled (research)"
    long = derived(tmp_path, SeriesDescription="x" * 64).SeriesDescription
    assert len(long) == 64
    assert long.endswith("xx AI despeckled (research)")
    assert derived(tmp_path, SeriesDescription=None).SeriesDescription == "AI despeckled (research)"


def test_series_attributes_are_equal_for_all_instances_of_a_series(tmp_path: Path) -> None:
    one, other = (derived(tmp_path, instance=i, frames=i, seed=i) for i in (1, 2))
    for keyword in ("SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality"):
        assert one[keyword] == other[keyword]


def test_derivation_is_told_and_appended(tmp_path: Path) -> None:
    text = derived(tmp_path, DerivationDescription="Cropped").DerivationDescription
    assert text.startswith("Cropped; Speckle reduced by despeckle-node")
    for part in ("median 1.0", "0123456789abcdef", "strength 1.00", "25.0%", "ultrasound-regions"):
        assert part in text
    long = derived(tmp_path, DerivationDescription="y" * 1024).DerivationDescription
    assert len(long) == 1024
    assert long.endswith("as in the source.")


def test_derivation_tells_the_strength_as_exactly_as_the_uid_does(tmp_path: Path) -> None:
    settings = Settings().with_strength(0.125)
    assert "strength 0.125" in derived(tmp_path, settings=settings).DerivationDescription


def test_derivation_code_is_added_to_those_there_are(tmp_path: Path) -> None:
    earlier = Dataset()
    earlier.CodeValue, earlier.CodingSchemeDesignator, earlier.CodeMeaning = "1", "99X", "Before"
    ds = derived(tmp_path, DerivationCodeSequence=[earlier])
    assert [code(item) for item in ds.DerivationCodeSequence] == [
        ("1", "99X", "Before"),
        ("113087", "DCM", "Smoothing"),
    ]


def test_source_image_and_series_are_referenced(tmp_path: Path) -> None:
    source = make_us_instance()
    ds = derived_from(save(source, tmp_path / "x.dcm"))
    (image,) = ds.SourceImageSequence
    assert image.ReferencedSOPClassUID == source.SOPClassUID
    assert image.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert image.SpatialLocationsPreserved == "YES"
    assert code(image.PurposeOfReferenceCodeSequence[0]) == (
        "121322",
        "DCM",
        "Source image for image processing operation",
    )
    (series,) = ds.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    (instance,) = series.ReferencedInstanceSequence
    assert instance.ReferencedSOPClassUID == source.SOPClassUID
    assert instance.ReferencedSOPInstanceUID == source.SOPInstanceUID


def test_referenced_series_that_is_there_already_gets_the_instance(tmp_path: Path) -> None:
    source = make_us_instance()
    series, other = Dataset(), Dataset()
    other.ReferencedSOPClassUID, other.ReferencedSOPInstanceUID = source.SOPClassUID, f"{ROOT}.8"
    series.SeriesInstanceUID = source.SeriesInstanceUID
    series.ReferencedInstanceSequence = [other]
    source.ReferencedSeriesSequence = [series]
    ds = derived_from(save(source, tmp_path / "x.dcm"))
    assert [len(s.ReferencedInstanceSequence) for s in ds.ReferencedSeriesSequence] == [2]


@pytest.mark.parametrize(
    "keyword",
    ["ContributingEquipmentSequence", "DerivationCodeSequence", "ReferencedSeriesSequence"],
)
def test_sequence_of_unknown_representation_is_added_to(tmp_path: Path, keyword: str) -> None:
    """As a converter writes it whose dictionary is older than the sequence."""
    text = b"\x08\x00\x70\x00\x06\0\0\0FIRST "  # (0008,0070), implicit
    item = b"\xfe\xff\x00\xe0" + len(text).to_bytes(4, "little") + text
    tag = Tag(keyword)
    head = struct.pack("<HH2sHI", tag.group, tag.element, b"UN", 0, len(item))
    path = save(make_us_instance(), tmp_path / "x.dcm")
    name = b"\x10\x00\x10\x00PN"
    path.write_bytes(path.read_bytes().replace(name, head + item + name))
    added = derived_from(path)[keyword].value
    assert added[0].Manufacturer == "FIRST"
    assert len(added) > 1


def test_contributing_equipment_names_scanner_and_node(tmp_path: Path) -> None:
    ds = derived(tmp_path, TimezoneOffsetFromUTC="-0330")
    scanner, node = ds.ContributingEquipmentSequence
    assert code(scanner.PurposeOfReferenceCodeSequence[0])[0] == "109101"
    assert scanner.Manufacturer == "Scanner Makers"
    assert scanner.ManufacturerModelName == "Scanner 9"
    assert scanner.DeviceSerialNumber == "SN1"
    assert code(node.PurposeOfReferenceCodeSequence[0]) == ("109102", "DCM", "Processing Equipment")
    assert node.ManufacturerModelName == MODEL_NAME
    assert node.Manufacturer
    assert [v.split(" ")[0] for v in node.SoftwareVersions] == [MODEL_NAME, "median", "numpy"]
    assert node.DeviceUID == MedianDespeckler.bundle.device_uid
    assert node.StationName == "DESPECKLE"
    assert node.ContributionDateTime == "20240506220809.000010+0000"
    assert node.ContributionDescription
    assert is_own_output(ds)


def test_contributing_equipment_that_is_there_is_kept(tmp_path: Path) -> None:
    item, purpose = Dataset(), Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "109101", "DCM"
    purpose.CodeMeaning = "Acquisition Equipment"
    item.Manufacturer = "First"
    item.PurposeOfReferenceCodeSequence = [purpose]
    ds = derived(tmp_path, ContributingEquipmentSequence=[item])
    assert [i.Manufacturer for i in ds.ContributingEquipmentSequence] == [
        "First",
        "despeckle-node project",
    ]


def test_unknown_scanner_is_said_to_be_unknown(tmp_path: Path) -> None:
    ds = derived(tmp_path, Manufacturer="")
    assert ds.ContributingEquipmentSequence[0].Manufacturer == "UNKNOWN"
    assert ds.Manufacturer in ("", None)


def test_general_equipment_may_be_the_node(tmp_path: Path) -> None:
    ds = derived(tmp_path, parse({"derive": {"equipment": "node"}}), DeviceUID="1.2.3")
    assert ds.ManufacturerModelName == MODEL_NAME
    assert "DeviceSerialNumber" not in ds
    assert "DeviceUID" not in ds
    assert ds.ContributingEquipmentSequence[0].ManufacturerModelName == "Scanner 9"


@pytest.mark.parametrize("qualification", ["RESEARCH", "PRODUCT"])
def test_content_qualification(tmp_path: Path, qualification: str) -> None:
    settings = parse({"derive": {"content_qualification": qualification}})
    assert derived(tmp_path, settings).ContentQualification == qualification


def test_creation_time_is_in_the_time_zone_of_the_object(tmp_path: Path) -> None:
    ds = derived(tmp_path, TimezoneOffsetFromUTC="+0530")
    assert (ds.InstanceCreationDate, ds.InstanceCreationTime) == ("20240507", "033809.000010")
    assert ds.InstanceCreatorUID == IMPLEMENTATION_CLASS_UID


@pytest.mark.parametrize(
    "absent", ["SyntheticData", "Laterality", "AcquisitionDateTime", "TimezoneOffsetFromUTC"]
)
def test_attribute_that_the_source_lacks_is_not_invented(tmp_path: Path, absent: str) -> None:
    options = {"Laterality": None} if absent == "Laterality" else {}
    assert absent not in derived(tmp_path, **options)


def test_palette_in_small_letters_leaves_no_tags_either(tmp_path: Path) -> None:
    ds = make_us_instance(photometric="PALETTE COLOR")
    ds.PhotometricInterpretation = "Palette Color"
    out = derived_from(save(ds, tmp_path / "small.dcm"))
    assert "RedPaletteColorLookupTableDescriptor" not in out
    assert "RedPaletteColorLookupTableData" not in out


def test_palette_becomes_grey_or_rgb_without_its_tags(tmp_path: Path) -> None:
    for colour in (False, True):
        source = make_us_instance(photometric="PALETTE COLOR", ICCProfile=b"ICC!")
        source.PaletteColorLookupTableUID = f"{ROOT}.3"
        add_palette(source, coloured=int(source.PixelData[0]) if colour else None)
        ds = derived_from(save(source, tmp_path / "x.dcm"))
        assert ds.PhotometricInterpretation == ("RGB" if colour else "MONOCHROME2")
        assert not [e.keyword for e in ds if "Palette" in e.keyword]
        assert ("PlanarConfiguration" in ds) is colour
        assert ("ICCProfile" in ds) is colour


@pytest.mark.parametrize("coloured", [False, True])
def test_windows_and_padding_of_a_palettes_indices_go_with_it(
    tmp_path: Path, coloured: bool
) -> None:
    of_values = {"WindowCenter": "32", "WindowWidth": "64", "PixelPaddingValue": 0}
    source = make_us_instance(photometric="PALETTE COLOR", **of_values)
    add_palette(source, coloured=int(source.PixelData[0]) if coloured else None)
    ds = derived_from(save(source, tmp_path / "palette.dcm"))
    assert not [keyword for keyword in of_values if keyword in ds]
    ds = derived_from(write_us_instance(tmp_path / "grey.dcm", **of_values))
    assert {keyword: str(ds[keyword].value) for keyword in of_values} == {
        keyword: str(value) for keyword, value in of_values.items()
    }


@pytest.mark.parametrize(
    ("photometric", "wanted"),
    [
        ("MONOCHROME1", ("MONOCHROME1", 1, None)),
        ("MONOCHROME2", ("MONOCHROME2", 1, None)),
        ("RGB", ("RGB", 3, 0)),
        ("YBR_FULL", ("RGB", 3, 0)),
        ("YBR_FULL_422", ("RGB", 3, 0)),
    ],
)
def test_image_pixel_module(tmp_path: Path, photometric: str, wanted: tuple[Any, ...]) -> None:
    ds = derived(tmp_path, photometric=photometric, planar=1 if photometric == "RGB" else 0)
    found = (ds.PhotometricInterpretation, ds.SamplesPerPixel, ds.get("PlanarConfiguration"))
    assert found == wanted
    depth = (ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation)
    assert depth == (8, 8, 7, 0)


def test_every_keyword_written_is_a_standard_one(tmp_path: Path) -> None:
    for element in derived(tmp_path, frames=2).iterall():
        assert element.keyword, element.tag

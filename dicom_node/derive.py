"""Source data set -> derived data set, without pixels: what changes, what stays, who did it.

PS3.3 C.7.6.1 (derivation), C.12.1 (contributing equipment, common instance reference), C.8.5.6
(US Image). Pure: equal arguments give equal data sets. Attributes of the series depend on the
source's own series attributes and the settings alone, so that a late instance joins it.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Final

from highdicom import ContributingEquipment
from highdicom.sr.coding import CodedConcept
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.tag import Tag

from dicom_node import __version__
from dicom_node.attributes.identity import IMPLEMENTATION_CLASS_UID, MANUFACTURER, MODEL_NAME
from dicom_node.attributes.intake import CURRENT_CLASS, US_MULTI_FRAME
from dicom_node.attributes.text import appended
from dicom_node.attributes.transcribe import raw, raw_value, transcribe
from dicom_node.config import DeriveSection, Settings
from dicom_node.decode import Geometry
from dicom_node.records import BundleInfo, DerivedIdentity, PixelReport

_LO: Final = 64
_ST: Final = 1024
_IS_LARGEST: Final = 2**31 - 1
_SMOOTHING: Final = codes.DCM.Smoothing
_SOURCE_PURPOSE: Final = codes.DCM.SourceImageForImageProcessingOperation
_ACQUISITION: Final = codes.DCM.AcquisitionEquipment
_PROCESSING: Final = codes.DCM.ProcessingEquipment
_SCANNER: Final = (
    "Manufacturer",
    "InstitutionName",
    "StationName",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
)
"""General Equipment attributes that the contributing equipment item repeats."""
_PALETTE_TAGS: Final = (
    *range(0x00281100, 0x00281105),
    *range(0x00281110, 0x00281115),
    0x00281199,
    *range(0x00281200, 0x00281205),
    *range(0x00281211, 0x00281215),
    *range(0x00281220, 0x00281225),
)
_OF_STORED_VALUES: Final = (
    0x00280120,
    0x00280121,
    *range(0x00281050, 0x00281057),
    0x00283000,
    0x00283010,
)
"""Pixel Padding Value, Modality and VOI LUT: of a palette's indices they would window greys."""
_COLOUR_ONLY: Final = (0x00280006, 0x00282000, 0x00282002)
"""Planar Configuration, ICC Profile, Color Space."""


def derive_dataset(
    source: Dataset,
    geometry: Geometry,
    identity: DerivedIdentity,
    *,
    bundle: BundleInfo,
    report: PixelReport,
    settings: Settings,
    now: datetime,
) -> Dataset:
    """Build the derived object's data set, all but (7FE0,0010) *Pixel Data*.

    Parameters
    ----------
    source : pydicom.Dataset
        As `decode.open_instance` gives it; not changed.
    geometry : Geometry
        Of the frames that were decoded, and so of the derived ones.
    identity : DerivedIdentity
        (0008,0018) and (0020,000E) of the derived object.
    bundle : BundleInfo
        The student that changed the pixels.
    report : PixelReport
        What happened to the pixels.
    settings : Settings
        Uses the sections `node`, `despeckle` and `derive`.
    now : datetime
        Aware; the creation time.

    Returns
    -------
    pydicom.Dataset
        For `encode.encode`: Explicit VR Little Endian values.
    """
    derived = transcribe(source, settings.derive.keep_private_groups)
    _identify(derived, source, identity, settings.derive)
    _describe_pixels(derived, source, geometry)
    _describe_derivation(derived, source, bundle, report, settings)
    _refer_to_source(derived, source)
    _name_equipment(derived, bundle, settings, now)
    _date(derived, now)
    return derived


def _identify(
    derived: Dataset, source: Dataset, identity: DerivedIdentity, settings: DeriveSection
) -> None:
    """UIDs, series number and description, image type."""
    derived.SOPClassUID = CURRENT_CLASS[str(source.SOPClassUID)]
    derived.SOPInstanceUID = identity.sop_instance_uid
    derived.SeriesInstanceUID = identity.series_instance_uid
    derived.Modality = "US"
    tag = Tag("ImageType")
    derived[tag] = raw(tag, "CS", _image_type(derived))
    derived.SeriesNumber = _series_number(derived, settings.series_number_offset)
    tag = Tag("SeriesDescription")
    label = settings.series_description_label
    derived[tag] = raw(tag, "LO", appended(derived, tag, label, _LO, separator=" "))
    derived.ContentQualification = settings.content_qualification


def _image_type(derived: Dataset) -> bytes:
    """DERIVED, PRIMARY and the values 3 and on of the source's (0008,0008), byte for byte."""
    tail = raw_value(derived, Tag("ImageType")).split(b"\\")[2:]
    return b"\\".join([b"DERIVED", b"PRIMARY", *tail])


def _series_number(derived: Dataset, offset: int) -> int:
    """The source's (0020,0011) plus the offset; the offset alone where that is no number."""
    try:
        number = int(raw_value(derived, Tag("SeriesNumber")).decode("ascii")) + offset
    except ValueError:
        return offset
    return number if abs(number) <= _IS_LARGEST else offset


def _describe_pixels(derived: Dataset, source: Dataset, geometry: Geometry) -> None:
    """The Image Pixel module of 8-bit grey or RGB frames, PS3.3 C.7.6.3."""
    was_palette = "PALETTE" in str(source.get("PhotometricInterpretation")).upper()
    if was_palette:
        _remove(derived, _PALETTE_TAGS + _OF_STORED_VALUES)
    if geometry.colour:
        derived.SamplesPerPixel = 3
        derived.PhotometricInterpretation = "RGB"
        derived.PlanarConfiguration = 0
    else:
        derived.SamplesPerPixel = 1
        derived.PhotometricInterpretation = "MONOCHROME1" if geometry.inverted else "MONOCHROME2"
        _remove(derived, _COLOUR_ONLY)
    derived.Rows, derived.Columns = geometry.rows, geometry.columns
    derived.BitsAllocated = derived.BitsStored = 8
    derived.HighBit = 7
    derived.PixelRepresentation = 0
    multi = derived.SOPClassUID == US_MULTI_FRAME
    if multi or geometry.frames > 1 or "NumberOfFrames" in derived:
        derived.NumberOfFrames = geometry.frames


def _remove(derived: Dataset, tags: tuple[int, ...]) -> None:
    for tag in tags:
        if tag in derived:
            del derived[tag]


def _describe_derivation(
    derived: Dataset,
    source: Dataset,
    bundle: BundleInfo,
    report: PixelReport,
    settings: Settings,
) -> None:
    """(0008,2111) *Derivation Description* and (0008,9215) *Derivation Code Sequence*."""
    sentence = (
        f"Speckle reduced by {MODEL_NAME} {__version__}: student {bundle.name} {bundle.version}, "
        f"weights sha256 {bundle.weights_sha256[:16]}, strength {settings.despeckle.strength:.4f}. "
        f"Tissue by {report.region_source}: {report.tissue_share:.1%} of the pixels; changed "
        f"{report.changed_share:.1%}, mean shift {report.mean_shift:+.2f} grey levels. "
        "All other pixels are as in the source."
    )
    retired = str(source.SOPClassUID)
    if retired != CURRENT_CLASS[retired]:
        sentence += f" Source SOP class {retired} (retired)."
    tag = Tag("DerivationDescription")
    derived[tag] = raw(tag, "ST", appended(derived, tag, sentence, _ST, separator="; "))
    _append(derived, "DerivationCodeSequence", CodedConcept.from_code(_SMOOTHING))


def _refer_to_source(derived: Dataset, source: Dataset) -> None:
    """Source Image and Referenced Series sequences, PS3.3 C.7.6.1 and C.12.2."""
    origin = Dataset()
    origin.ReferencedSOPClassUID = source.SOPClassUID
    origin.ReferencedSOPInstanceUID = source.SOPInstanceUID
    instance = Dataset()
    instance.update(origin)
    origin.SpatialLocationsPreserved = "YES"
    origin.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(_SOURCE_PURPOSE)]
    derived.SourceImageSequence = [origin]
    for series in derived.get("ReferencedSeriesSequence") or ():
        if series.get("SeriesInstanceUID") == source.SeriesInstanceUID:
            _append(series, "ReferencedInstanceSequence", instance)
            return
    series = Dataset()
    series.SeriesInstanceUID = source.SeriesInstanceUID
    series.ReferencedInstanceSequence = [instance]
    _append(derived, "ReferencedSeriesSequence", series)


def _name_equipment(
    derived: Dataset, bundle: BundleInfo, settings: Settings, now: datetime
) -> None:
    """(0018,A001) *Contributing Equipment Sequence*, and General Equipment where so configured."""
    scanner = Dataset()
    for keyword in _SCANNER:
        tag = Tag(keyword)
        if raw_value(derived, tag):
            scanner[tag] = derived.get_item(tag)
    if "Manufacturer" not in scanner:
        scanner.Manufacturer = "UNKNOWN"
    scanner.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(_ACQUISITION)]
    if not _has_purpose(derived, _ACQUISITION):
        _append(derived, "ContributingEquipmentSequence", scanner)
    node = ContributingEquipment(
        MANUFACTURER,
        _PROCESSING,
        manufacturer_model_name=MODEL_NAME,
        software_versions=_versions(bundle),
        station_name=settings.node.station_name,
        contribution_datetime=now,
        contribution_description="AI speckle reduction of grey B-mode tissue",
    )
    node.DeviceUID = bundle.device_uid
    _append(derived, "ContributingEquipmentSequence", node)
    if settings.derive.equipment == "node":
        _remove(derived, tuple(_tag(keyword) for keyword in _SCANNER))
        _remove(derived, (_tag("DeviceUID"),))
        derived.Manufacturer = MANUFACTURER
        derived.ManufacturerModelName = MODEL_NAME
        derived.SoftwareVersions = _versions(bundle)
        derived.StationName = settings.node.station_name


def _versions(bundle: BundleInfo) -> list[str]:
    """(0018,1020) *Software Versions*: node, bundle, runtime."""
    parts = (f"{MODEL_NAME} {__version__}", f"{bundle.name} {bundle.version}", bundle.runtime)
    return [part.replace("\\", "/")[:_LO] for part in parts]


def _date(derived: Dataset, now: datetime) -> None:
    """Instance creation, in the time zone that the data set's times are in, PS3.3 C.12.1.1.8."""
    local = now.astimezone(_offset(derived))
    derived.InstanceCreationDate = local.strftime("%Y%m%d")
    derived.InstanceCreationTime = local.strftime("%H%M%S.%f")
    derived.InstanceCreatorUID = IMPLEMENTATION_CLASS_UID


def _offset(derived: Dataset) -> timezone | None:
    """(0008,0201) *Timezone Offset From UTC*; None for the machine's own."""
    try:
        minutes = int(raw_value(derived, Tag("TimezoneOffsetFromUTC")))
        sign = -1 if minutes < 0 else 1
        hours, rest = divmod(abs(minutes), 100)
        return timezone(sign * timedelta(hours=hours, minutes=rest))
    except ValueError:
        return None


def _has_purpose(derived: Dataset, code: Code) -> bool:
    return any(
        purpose.get("CodeValue") == code.value
        for item in derived.get("ContributingEquipmentSequence") or ()
        for purpose in item.get("PurposeOfReferenceCodeSequence") or ()
    )


def _append(dataset: Dataset, keyword: str, item: Dataset) -> None:
    """Add an item to a sequence that may be absent or empty."""
    setattr(dataset, keyword, [*(dataset.get(keyword) or ()), item])


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return tag

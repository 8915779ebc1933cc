"""Judge a derived object: by its source, without the code that made it; and by making it again.

The checks of `compare` are those that an auditor would make in any DICOM tool: same study and
patient, same kind of object, one to one with its source, calibration and timing unchanged,
provenance there, and no pixel changed outside the regions that the scanner declared as tissue.
`recompute` derives the object once more and compares UIDs and pixels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.utils import iter_pixels
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian

from dicom_node.attributes.identity import is_own_output
from dicom_node.attributes.transcribe import MALFORMED
from dicom_node.config import Settings
from dicom_node.decode import Geometry, open_instance
from dicom_node.errors import Permanent
from dicom_node.pipeline import Despeckler, derive_instance, identity_of
from dicom_node.service.folder import write_into

Frame = NDArray[np.uint8]
_TWO_D, _TISSUE = 1, 1
_WHITE: Final = 255
_NEGATIVE: Final = 1 << 31
"""Unsigned coordinates from here on were negative, and are too large by twice as much."""
ROUNDING_SHARE: Final = 0.001
"""Pixels that may differ by more than a grey level, as in the self-test of a bundle."""
_VIVID: Final = 112
"""Channels of a pixel that differ by more than this, in grey levels, are colour to anyone.

In the brightest tissue of a sepia grey map they differ by up to 90, and that may change.
"""
_UNCHANGED: Final = (
    "StudyInstanceUID",
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "Modality",
    "Laterality",
    "ImageLaterality",
    "InstanceNumber",
    "PatientOrientation",
    "Rows",
    "Columns",
    "SequenceOfUltrasoundRegions",
    "PixelSpacing",
    "PixelAspectRatio",
    "FrameTime",
    "FrameTimeVector",
    "FrameIncrementPointer",
    "CineRate",
    "RecommendedDisplayFrameRate",
    "HeartRate",
    "LossyImageCompression",
)


@dataclass(frozen=True)
class Comparison:
    """A source and what was derived from it."""

    problems: list[str]
    """What is wrong, each naming an attribute and no value; empty where all is right."""
    frames: int
    changed_share: float
    """Share of all pixels that changed, 0 to 1."""
    before: Frame
    """A frame from the middle of the source: (rows, columns) or (rows, columns, 3), uint8."""
    after: Frame
    """The same frame of the derived object."""


def compare(source_path: Path, derived_path: Path) -> Comparison:
    """Compare a source with its derived object.

    Raises
    ------
    Refused, Permanent
        One of the two cannot be read.
    """
    source = open_instance(source_path)
    derived = dcmread(derived_path, stop_before_pixels=True)
    problems = _attributes(source.dataset, derived)
    if str(derived.get("PhotometricInterpretation")) not in _shown_as(source.geometry):
        problems.append("PhotometricInterpretation: shows the pixels otherwise than the source")
    protected = _protected(source.dataset, source.geometry.rows, source.geometry.columns)
    middle = source.geometry.frames // 2
    kept: tuple[Frame, Frame] | None = None
    changed = total = frames = 0
    touched = vivid = False
    for index, (before, after) in enumerate(
        zip(source.frames(), _frames(derived_path), strict=False)
    ):
        before_rgb, after_rgb = _rgb(before), _rgb(after)
        if after_rgb.shape != before_rgb.shape:
            raise Permanent("frame-size-differs", "frames have another size than the source's")
        differs = (before_rgb != after_rgb).any(axis=2)
        touched = touched or bool((differs & protected).any())
        vivid = vivid or bool((differs & _is_vivid(before_rgb)).any())
        changed += int(differs.sum())
        total += differs.size
        frames += 1
        if index == middle:
            kept = before, after
    if touched:
        problems.append("pixels outside the tissue regions changed")
    if vivid:
        problems.append("coloured pixels changed")
    # What the source says may be absent; what it holds counts.
    stated = derived.get("NumberOfFrames") or 1
    if not frames == stated == source.geometry.frames:
        problems.append("NumberOfFrames: not as many frames as the source")
    if not changed:
        problems.append("no pixel changed")
    nothing = np.zeros((1, 1), np.uint8)
    before, after = kept or (nothing, nothing)
    return Comparison(problems, frames, changed / max(total, 1), before, after)


@dataclass(frozen=True)
class Recomputed:
    """A derived object against the one that bundle and settings give now."""

    same_uid: bool
    """Equal SOP Instance UIDs: the same source, bundle, strength and pixel policy."""
    differing: float
    """Share of pixels that differ by more than a grey level, 0 to 1."""
    largest: int
    """Largest difference in grey levels."""

    @property
    def agrees(self) -> bool:
        """Whether it is the same object, up to the rounding of another machine's arithmetic."""
        return self.same_uid and self.differing <= ROUNDING_SHARE


def recompute(
    source_path: Path, derived_path: Path, despeckler: Despeckler, settings: Settings
) -> Recomputed:
    """Derive the object again, at that of the strengths in use that its UID speaks of, and compare.

    Raises
    ------
    Refused, Permanent, Transient
        It cannot be derived.
    """
    derived = dcmread(derived_path, stop_before_pixels=True)
    settings = _made_with(derived, open_instance(source_path).dataset, despeckler, settings)
    with tempfile.TemporaryDirectory() as folder:
        again = derive_instance(source_path, despeckler, settings, write_into(Path(folder)))
        largest = differing = total = 0
        for one, two in zip(_frames(derived_path), _frames(again.path), strict=False):
            if one.shape != two.shape:
                return Recomputed(same_uid=False, differing=1.0, largest=_WHITE)
            difference = np.abs(one.astype(np.int16) - two)
            largest = max(largest, int(difference.max()))
            differing += int(np.count_nonzero(difference > 1))
            total += difference.size
        return Recomputed(
            same_uid=str(derived.SOPInstanceUID) == again.identity.sop_instance_uid,
            differing=differing / max(total, 1),
            largest=largest,
        )


def _frames(derived: Path) -> Iterator[Frame]:
    """The frames of a derived object, by pydicom alone, one in memory at a time.

    Raises
    ------
    Permanent
        ``derived-undecodable``.
    """
    try:
        syntax = read_file_meta_info(derived).TransferSyntaxUID
        # What is deflated has to be inflated as a whole; the node writes no such objects.
        deflated = syntax == DeflatedExplicitVRLittleEndian
        yield from iter_pixels(dcmread(derived) if deflated else derived, raw=True)
    except (*MALFORMED, RuntimeError) as error:
        raise Permanent(
            "derived-undecodable",
            f"its pixels are damaged or cut off ({type(error).__name__}); send or derive it again",
        ) from error


def _made_with(
    derived: Dataset, source: Dataset, despeckler: Despeckler, settings: Settings
) -> Settings:
    """The settings with the strength that gives a derived object its UID; as they are if none."""
    for one in settings.of_any_strength():
        if identity_of(source, despeckler, one).sop_instance_uid == str(derived.SOPInstanceUID):
            return one
    return settings


def source_of(derived: Dataset) -> str:
    """SOP Instance UID of the source, from (0008,2112) *Source Image Sequence*; "" for none."""
    items = derived.get("SourceImageSequence") or [Dataset()]
    return str(items[0].get("ReferencedSOPInstanceUID", ""))


def _attributes(source: Dataset, derived: Dataset) -> list[str]:
    """Attributes that are not as they have to be."""
    problems = [
        f"{keyword} differs from the source"
        for keyword in _UNCHANGED
        if _public(source.get(keyword)) != _public(derived.get(keyword))
    ]
    if derived.SOPInstanceUID == source.SOPInstanceUID:
        problems.append("SOPInstanceUID is the source's")
    if derived.SeriesInstanceUID == source.SeriesInstanceUID:
        problems.append("SeriesInstanceUID is the source's")
    if (derived.get("ImageType") or [""])[0] != "DERIVED":
        problems.append("ImageType does not say DERIVED")
    references = derived.get("SourceImageSequence") or []
    if source.SOPInstanceUID not in [item.get("ReferencedSOPInstanceUID") for item in references]:
        problems.append("SourceImageSequence does not name the source")
    if not derived.get("DerivationDescription"):
        problems.append("DerivationDescription is empty")
    if not is_own_output(derived):
        problems.append("ContributingEquipmentSequence does not name the node")
    return problems


def _shown_as(geometry: Geometry) -> frozenset[str]:
    """Photometric interpretations under which a viewer shows stored values as the source does.

    What is compared are stored values: inverted, or in another colour model, they are the same.
    """
    if geometry.colour:
        return frozenset({"RGB", "YBR_RCT", "YBR_ICT"})
    return frozenset({"MONOCHROME1" if geometry.inverted else "MONOCHROME2"})


def _public(value: object) -> object:
    """A value; of the items of a sequence what is neither private nor a group length."""
    if not isinstance(value, Sequence):
        return value
    return [
        {
            element.tag: _public(element.value)
            for element in item
            if not element.tag.is_private and element.tag.element
        }
        for item in value
    ]


def _protected(source: Dataset, rows: int, columns: int) -> NDArray[np.bool_]:
    """Pixels that the scanner's regions do not declare to be tissue; none where it declares none.

    Tissue is what lies in a 2-D tissue region and in no region of another kind.
    """
    tissue, other = np.zeros((2, rows, columns), bool)
    for region in source.get("SequenceOfUltrasoundRegions") or []:
        kind = (region.get("RegionSpatialFormat") or 0, region.get("RegionDataType") or 0)
        bounds = [
            region.get(f"RegionLocation{bound}") for bound in ("MinY0", "MaxY1", "MinX0", "MaxX1")
        ]
        if None in bounds or kind == (0, 0):
            continue
        top, bottom, left, right = bounds
        if top >= _NEGATIVE:
            top, bottom = 0, bottom if bottom < _NEGATIVE else -1
        if left >= _NEGATIVE:
            left, right = 0, right if right < _NEGATIVE else -1
        top, left = max(top, 0), max(left, 0)
        if min(bottom, rows - 1) <= top or min(right, columns - 1) <= left:
            continue  # bounds of zeros, say: no area
        area = tissue if kind == (_TWO_D, _TISSUE) else other
        area[top : bottom + 1, left : right + 1] = True
    declared = bool(tissue.any() or other.any())
    return ~(tissue & ~other) if declared else np.zeros((rows, columns), bool)


def _rgb(frame: Frame) -> Frame:
    return frame if frame.ndim == 3 else np.repeat(frame[..., None], 3, axis=2)  # noqa: PLR2004


def _is_vivid(rgb: Frame) -> NDArray[np.bool_]:
    spread = rgb.max(axis=2).astype(np.int16) - rgb.min(axis=2)
    return np.asarray(spread > _VIVID)

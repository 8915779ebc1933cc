"""What `compare` and `recompute` find in derived objects that are not as they have to be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from dicom_node.config import Settings
from dicom_node.errors import Permanent
from dicom_node.pipeline import derive_instance
from dicom_node.service.folder import write_into
from dicom_node.verify import compare, recompute
from tests.builders import MedianDespeckler, region, speckle, write_us_instance

FRAMES, ROWS, COLUMNS = 3, 120, 160
TISSUE = region(20, 10, 139, 99)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_us_instance(
        tmp_path / "source.dcm",
        frames=FRAMES,
        rows=ROWS,
        columns=COLUMNS,
        photometric="RGB",
        regions=[TISSUE],
    )


@pytest.fixture
def derived(source: Path, tmp_path: Path) -> Path:
    write = write_into(tmp_path / "out")
    return derive_instance(source, MedianDespeckler(), Settings(), write).path


def tampered(derived: Path, change: Callable[[Dataset], None]) -> Path:
    """The derived object, changed in place."""
    ds = dcmread(derived)
    change(ds)
    ds.save_as(derived)
    return derived


def pixel_set(ds: Dataset, frame: int, row: int, column: int, value: tuple[int, ...]) -> None:
    pixels = np.frombuffer(ds.PixelData, np.uint8).reshape(-1, ROWS, COLUMNS, 3).copy()
    pixels[frame, row, column] = value
    ds.PixelData = pixels.tobytes()


def add_a_frame(ds: Dataset) -> None:
    ds.NumberOfFrames = FRAMES + 1
    ds.PixelData += bytes(ROWS * COLUMNS * 3)


def drop_a_frame(ds: Dataset) -> None:
    ds.NumberOfFrames = FRAMES - 1
    ds.PixelData = ds.PixelData[: -ROWS * COLUMNS * 3]


def test_derived_object_has_no_problem_and_shows_its_middle_frame(source, derived):
    found = compare(source, derived)
    assert (found.problems, found.frames) == ([], FRAMES)
    pixels = [dcmread(path).pixel_array for path in (source, derived)]
    assert np.array_equal(found.before, pixels[0][1])
    assert np.array_equal(found.after, pixels[1][1])
    share = (pixels[0] != pixels[1]).any(axis=-1).mean()
    assert found.changed_share == pytest.approx(share)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda ds: setattr(ds, "PatientID", "another"), "PatientID differs"),
        (lambda ds: setattr(ds, "StudyInstanceUID", "1.2.9"), "StudyInstanceUID differs"),
        (lambda ds: setattr(ds, "FrameTime", "34"), "FrameTime differs"),
        (lambda ds: setattr(ds, "Laterality", "L"), "Laterality differs"),
        (lambda ds: setattr(ds, "PatientOrientation", ["L", "F"]), "PatientOrientation differs"),
        (lambda ds: setattr(ds, "PixelAspectRatio", [2, 1]), "PixelAspectRatio differs"),
        (lambda ds: setattr(ds, "PhotometricInterpretation", "YBR_FULL"), "Photometric"),
        (
            lambda ds: setattr(ds.SequenceOfUltrasoundRegions[0], "RegionLocationMaxX1", 140),
            "SequenceOfUltrasoundRegions differs",
        ),
        (add_a_frame, "NumberOfFrames: not as many frames"),
        (drop_a_frame, "NumberOfFrames: not as many frames"),
        (lambda ds: setattr(ds, "ImageType", ["ORIGINAL", "PRIMARY"]), "ImageType"),
        (lambda ds: delattr(ds, "SourceImageSequence"), "SourceImageSequence"),
        (lambda ds: delattr(ds, "DerivationDescription"), "DerivationDescription"),
        (lambda ds: delattr(ds, "ContributingEquipmentSequence"), "ContributingEquipment"),
        (
            lambda ds: pixel_set(ds, 2, 9, 60, (1, 1, 1)),
            "pixels outside the tissue regions changed",
        ),
        (
            lambda ds: pixel_set(ds, 0, 50, 140, (1, 1, 1)),
            "pixels outside the tissue regions changed",
        ),
    ],
)
def test_what_was_tampered_with_is_named(source, derived, change, problem):
    found = compare(source, tampered(derived, change))
    assert any(problem in each for each in found.problems), found.problems


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_grey_that_is_shown_inverted_is_a_problem(tmp_path, photometric):
    source = write_us_instance(
        tmp_path / "one.dcm", rows=ROWS, columns=COLUMNS, photometric=photometric
    )
    write = write_into(tmp_path / "out")
    derived = derive_instance(source, MedianDespeckler(), Settings(), write).path
    assert compare(source, derived).problems == []
    other = "MONOCHROME1" if photometric == "MONOCHROME2" else "MONOCHROME2"
    tampered(derived, lambda ds: setattr(ds, "PhotometricInterpretation", other))
    found = compare(source, derived).problems
    assert found == ["PhotometricInterpretation: shows the pixels otherwise than the source"]


def test_object_that_an_archive_has_deflated_is_right(source, derived):
    def deflate(ds: Dataset) -> None:
        ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    assert compare(source, tampered(derived, deflate)).problems == []


def test_frame_that_a_single_image_has_too_many_is_a_problem(tmp_path):
    source = write_us_instance(tmp_path / "one.dcm", rows=ROWS, columns=COLUMNS, photometric="RGB")
    assert "NumberOfFrames" not in dcmread(source)
    write = write_into(tmp_path / "out")
    derived = derive_instance(source, MedianDespeckler(), Settings(), write).path
    assert compare(source, derived).problems == []

    def add(ds: Dataset) -> None:
        ds.NumberOfFrames = 2
        ds.PixelData += ds.PixelData

    found = compare(source, tampered(derived, add))
    assert found.problems == ["NumberOfFrames: not as many frames as the source"]


@pytest.mark.parametrize("spatial_format", [1, 5])
def test_region_whose_bounds_are_zeros_protects_nothing(tmp_path, spatial_format):
    """Scanners fill the items that they do not use with zeros; the node estimates then."""
    nowhere = region(0, 0, 0, 0, spatial_format=spatial_format)
    source = write_us_instance(tmp_path / "one.dcm", rows=ROWS, columns=COLUMNS, regions=[nowhere])
    write = write_into(tmp_path / "out")
    derived = derive_instance(source, MedianDespeckler(), Settings(), write).path
    assert compare(source, derived).problems == []


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SeriesInstanceUID"])
def test_identity_of_the_source_is_a_problem(source, derived, keyword):
    original = dcmread(source)[keyword].value
    found = compare(source, tampered(derived, lambda ds: setattr(ds, keyword, original)))
    assert f"{keyword} is the source's" in found.problems


def test_colour_that_changed_is_a_problem(source, tmp_path):
    coloured = tampered(source, lambda ds: pixel_set(ds, 1, 50, 60, (200, 20, 10)))
    derived = derive_instance(
        coloured, MedianDespeckler(), Settings(), write_into(tmp_path / "out")
    ).path
    assert compare(coloured, derived).problems == []
    greyed = tampered(derived, lambda ds: pixel_set(ds, 1, 50, 60, (70, 70, 70)))
    assert compare(coloured, greyed).problems == ["coloured pixels changed"]


def test_bright_tissue_of_a_tinted_grey_map_may_change(tmp_path):
    grey = speckle(FRAMES, ROWS, COLUMNS)
    tint = np.stack([np.clip(grey * 1.1, 0, 255), grey * 0.95, grey * 0.75], axis=-1)
    pixels = tint.astype(np.uint8)
    assert np.ptp(pixels, axis=-1).max() > 70
    source = write_us_instance(tmp_path / "sepia.dcm", photometric="RGB", pixels=pixels)
    write = write_into(tmp_path / "out")
    derived = derive_instance(source, MedianDespeckler(), Settings(), write).path
    assert compare(source, derived).problems == []


def test_copy_of_the_source_is_a_problem(source, derived):
    pixels = dcmread(source).PixelData
    found = compare(source, tampered(derived, lambda ds: setattr(ds, "PixelData", pixels)))
    assert found.problems == ["no pixel changed"]


def test_frames_of_another_size_cannot_be_compared(source, derived):
    def crop(ds: Dataset) -> None:
        ds.Rows = ROWS - 1
        ds.PixelData = bytes(FRAMES * (ROWS - 1) * COLUMNS * 3)

    with pytest.raises(Permanent, match="another size"):
        compare(source, tampered(derived, crop))


def test_made_again_it_agrees_until_more_pixels_differ_than_rounding_explains(source, derived):
    again = recompute(source, derived, MedianDespeckler(), Settings())
    assert (again.agrees, again.differing, again.largest) == (True, 0, 0)
    pixels = np.frombuffer(dcmread(derived).PixelData, np.uint8).reshape(FRAMES, ROWS, COLUMNS, 3)
    inside = pixels.copy()
    inside[1, 20:60, 30:130] ^= 1
    assert recompute(
        source,
        tampered(derived, lambda ds: setattr(ds, "PixelData", inside.tobytes())),
        MedianDespeckler(),
        Settings(),
    ).agrees
    inside[1, 20:60, 30:130] ^= 4
    other = recompute(
        source,
        tampered(derived, lambda ds: setattr(ds, "PixelData", inside.tobytes())),
        MedianDespeckler(),
        Settings(),
    )
    assert other.same_uid
    assert not other.agrees

"""Real ultrasound: every object is derived validly, or refused with a reason."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.examples import get_path
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array

from dicom_node.config import Settings
from dicom_node.decode import open_instance
from dicom_node.errors import NodeError
from dicom_node.pipeline import Derived, derive_instance
from dicom_node.regions import tissue_map
from dicom_node.service.folder import write_into
from dicom_node.verify import compare, recompute
from tests.builders import MedianDespeckler
from tests.conftest import EXAMPLES, sample_names
from tests.peers import require_program

REFUSED = {
    "ExplVR_BigEnd.dcm": "no-tissue",  # a coloured test pattern
    "I_000038.dcm": "no-tissue",  # its colour flow region covers the whole B-mode region
    "color-pl.dcm": "no-tissue",  # too small and noisy a picture to be certain
    "no-pixel-spacing.dcm": "no-tissue",  # hardly anything but the empty sector
}
"""What no derived object is made of, and why."""

ESTIMATED = {
    "0020.DCM",
    "GH364.dcm",
    "US1_J2KI.dcm",
    "US1_J2KR.dcm",
    "US1_RLE.dcm",
    "US1_UNCR.dcm",
    "jpeg-ls-Palette.dcm",
    "rgb_color",
    "jpeg2k",
}
"""Objects that state no regions."""

NAMES = [*sample_names(), *EXAMPLES]
pytestmark = pytest.mark.samples


def source_of(name: str, request: pytest.FixtureRequest) -> Path:
    if name in EXAMPLES:
        return Path(get_path(name))
    folder: Path = request.getfixturevalue("samples")
    return folder / name


def outcome(source: Path, output: Path) -> Derived | NodeError:
    try:
        return derive_instance(source, MedianDespeckler(), Settings(), write_into(output))
    except NodeError as error:
        return error


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Derived | NodeError]:
    return {}


@pytest.fixture
def derived(
    request: pytest.FixtureRequest,
    name: str,
    tmp_path_factory: pytest.TempPathFactory,
    outcomes: dict[str, Derived | NodeError],
) -> Derived:
    """What became of the named object; skips where it is one to be refused."""
    source = source_of(name, request)
    if name not in outcomes:
        outcomes[name] = outcome(source, tmp_path_factory.mktemp("derived"))
    found = outcomes[name]
    if name in REFUSED:
        assert isinstance(found, NodeError)
        pytest.skip(f"refused: {found}")
    assert isinstance(found, Derived), found
    return found


@pytest.mark.parametrize("name", REFUSED)
def test_object_without_certain_tissue_is_refused_with_the_reason(
    name: str, samples: Path, tmp_path: Path
) -> None:
    found = outcome(samples / name, tmp_path)
    assert isinstance(found, NodeError)
    assert found.code == REFUSED[name]
    assert "(0018,6011)" in found.message


@pytest.mark.parametrize("name", NAMES)
def test_frames_are_those_that_pydicom_decodes(name: str, request: pytest.FixtureRequest) -> None:
    source = source_of(name, request)
    decoder = open_instance(source)
    theirs = pixel_array(source)
    ds = dcmread(source, stop_before_pixels=True)
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        theirs = apply_color_lut(theirs, ds)
        theirs = (theirs >> 8 if theirs.max() > 255 else theirs).astype(np.uint8)
    theirs = theirs.reshape(decoder.geometry.frames, *decoder.frame(0).shape)
    for ours, other in zip(decoder.frames(), theirs, strict=True):
        assert np.abs(ours.astype(np.int16) - other).max() <= 1


def test_big_endian_palette_looks_like_its_little_endian_twin(samples: Path) -> None:
    little = open_instance(samples / "gdcm-US-ALOKA-16.dcm")
    big = open_instance(samples / "gdcm-US-ALOKA-16_big.dcm")
    assert np.array_equal(little.frame(0), big.frame(0))


def test_lossless_encodings_of_one_image_decode_alike(samples: Path) -> None:
    frames = [
        open_instance(samples / name).frame(0)
        for name in ("US1_UNCR.dcm", "US1_RLE.dcm", "US1_J2KR.dcm")
    ]
    assert all(np.array_equal(frame, frames[0]) for frame in frames)


@pytest.mark.parametrize("name", NAMES)
def test_pixels_outside_the_tissue_are_bit_identical(
    name: str, derived: Derived, request: pytest.FixtureRequest
) -> None:
    before = open_instance(source_of(name, request))
    after = pixel_array(derived.path).reshape(before.geometry.frames, *before.frame(0).shape)
    changed = np.zeros(before.frame(0).shape[:2], bool)
    for source, result in zip(before.frames(), after, strict=True):
        difference = source != result
        changed |= difference.any(axis=2) if difference.ndim == 3 else difference
    count = min(8, before.geometry.frames)
    last = before.geometry.frames - 1
    chosen = sorted({round(i * last / max(count - 1, 1)) for i in range(count)})
    tissue = tissue_map(
        before.dataset, before.geometry, [before.frame(i) for i in chosen], Settings().regions
    )
    assert not (changed & ~tissue.allowed).any()
    assert changed.any()
    assert derived.report.region_source == (
        "estimated" if name in ESTIMATED else "ultrasound-regions"
    )


def plain(item: Dataset) -> list[tuple[str, object]]:
    """Standard elements of an item, without group lengths."""
    return [
        (element.keyword, element.value)
        for element in item
        if element.tag.element != 0 and not element.tag.is_private
    ]


@pytest.mark.parametrize("name", NAMES)
def test_an_auditor_finds_nothing_wrong(
    name: str, derived: Derived, request: pytest.FixtureRequest
) -> None:
    source = source_of(name, request)
    assert compare(source, derived.path).problems == []
    assert recompute(source, derived.path, MedianDespeckler(), Settings()).largest == 0


@pytest.mark.parametrize("name", NAMES)
def test_derived_object_keeps_calibration_timing_and_study(
    name: str, derived: Derived, request: pytest.FixtureRequest
) -> None:
    before, after = dcmread(source_of(name, request)), dcmread(derived.path)
    for keyword in (
        "PixelSpacing",
        "FrameTime",
        "FrameTimeVector",
        "FrameIncrementPointer",
        "NumberOfFrames",
        "Rows",
        "Columns",
        "StudyInstanceUID",
        "PatientID",
        "PatientName",
        "InstanceNumber",
        "AcquisitionDateTime",
        "ContentTime",
    ):
        assert before.get(keyword) == after.get(keyword), keyword
    regions = [ds.get("SequenceOfUltrasoundRegions") or [] for ds in (before, after)]
    assert [plain(item) for item in regions[0]] == [plain(item) for item in regions[1]]


def errors_of(program: str, path: Path) -> tuple[int, set[str]]:
    """Exit status and the errors, values and the reference to the source's own UID aside."""
    done = subprocess.run(
        [program, str(path)], capture_output=True, text=True, errors="replace", check=False
    )
    lines = (done.stdout + done.stderr).splitlines()
    return done.returncode, {
        re.sub(r"<[^>]*>", "<>", line)
        for line in lines
        # A malformed UID of the source is referred to as it is.
        if line.startswith("Error") and "(0x0008,0x1155)" not in line
    }


@pytest.mark.peer
@pytest.mark.parametrize("name", NAMES)
def test_dciodvfy_finds_no_error_that_the_source_lacks(
    name: str, derived: Derived, request: pytest.FixtureRequest
) -> None:
    dciodvfy = require_program("dciodvfy")
    source_status, source_errors = errors_of(dciodvfy, source_of(name, request))
    status, errors = errors_of(dciodvfy, derived.path)
    assert status in (0, 1) or status == source_status
    assert errors - source_errors == set()


@pytest.mark.peer
@pytest.mark.parametrize("name", NAMES)
def test_dcentvfy_finds_source_and_derived_consistent(
    name: str, derived: Derived, request: pytest.FixtureRequest
) -> None:
    dcentvfy = require_program("dcentvfy")
    done = subprocess.run(
        [dcentvfy, str(source_of(name, request)), str(derived.path)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert (done.stdout + done.stderr).strip() == ""


@pytest.mark.peer
@pytest.mark.parametrize("name", NAMES)
def test_dcmtk_reads_the_derived_object(name: str, derived: Derived) -> None:
    dcmdump = require_program("dcmdump")
    done = subprocess.run(
        [dcmdump, "+E", "-q", str(derived.path)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr.strip() == ""

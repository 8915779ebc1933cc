from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread, uid
from pydicom.pixels.utils import pixel_array

from dicom_node import regions
from dicom_node.config import Settings, parse
from dicom_node.errors import Permanent, Refused, Transient
from dicom_node.pipeline import derive_files, derive_instance
from dicom_node.pixels import encode
from dicom_node.service.folder import FileStatus, write_into
from dicom_node.verify import compare
from tests.builders import MedianDespeckler, make_us_instance, region, speckle, write_us_instance

NOW = datetime(2024, 5, 6, tzinfo=UTC)


def derive(tmp_path: Path, settings: Settings | None = None, **options: Any) -> Any:
    source = write_us_instance(tmp_path / "source.dcm", **{"rows": 96, "columns": 128, **options})
    return derive_instance(
        source, MedianDespeckler(), settings or Settings(), write_into(tmp_path / "out"), now=NOW
    )


def test_tissue_is_despeckled_and_the_rest_is_not_touched(tmp_path: Path) -> None:
    pixels = speckle(3, 96, 128)
    inside = np.zeros((96, 128), bool)
    inside[16:80, 24:104] = True
    result = derive(tmp_path, pixels=pixels, regions=[region(24, 16, 103, 79)])
    derived = pixel_array(result.path)
    assert np.array_equal(derived[:, ~inside], pixels[:, ~inside])
    assert derived[:, inside].std() < 0.8 * pixels[:, inside].std()
    expected = MedianDespeckler()._filtered(pixels[1], 1.0)
    assert np.array_equal(derived[1][20:70, 30:90], expected[20:70, 30:90])


def test_report_counts_what_happened(tmp_path: Path) -> None:
    pixels = speckle(2, 96, 128)
    result = derive(tmp_path, pixels=pixels, regions=[region(0, 0, 63, 95)])
    derived = pixel_array(result.path)
    report = result.report
    assert (report.frames, report.region_source) == (2, "ultrasound-regions")
    assert report.changed_share == pytest.approx((derived != pixels).mean())
    assert 0.45 < report.tissue_share <= 0.5
    shift = (derived.astype(int) - pixels).sum() / (report.tissue_share * pixels.size)
    assert report.mean_shift == pytest.approx(shift)


class _LooksAtItsFiles(MedianDespeckler):
    """Notes which files the process has open while frames come out."""

    def frames(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        for frame in super().frames(*arguments, **options):
            links = Path("/proc/self/fd").iterdir()
            self.files = [str(link.readlink()) for link in links if link.is_symlink()]
            yield frame


@pytest.mark.parametrize(
    ("syntax", "files"),
    [(uid.ExplicitVRLittleEndian, 1), (uid.DeflatedExplicitVRLittleEndian, 2)],
)
def test_frames_wait_in_the_work_directory(tmp_path: Path, syntax: str, files: int) -> None:
    """A cine's worth of pixels; the system's temporary folder may lie in memory."""
    source = write_us_instance(tmp_path / "source.dcm", frames=3, transfer_syntax=syntax)
    work = tmp_path / "work"
    work.mkdir()
    despeckler = _LooksAtItsFiles()
    write = write_into(tmp_path / "out")
    derive_instance(source, despeckler, Settings(), write, work_directory=work)
    assert sum(name.startswith(f"{work}/") for name in despeckler.files) == files
    assert list(work.iterdir()) == []


def test_monochrome1_is_shown_to_the_network_in_positive(tmp_path: Path) -> None:
    pixels = speckle(2, 96, 128)
    source = write_us_instance(tmp_path / "m1.dcm", pixels=~pixels, photometric="MONOCHROME1")
    despeckler = MedianDespeckler()
    result = derive_instance(source, despeckler, Settings(), write_into(tmp_path))
    assert np.array_equal(np.stack(despeckler.seen), pixels)
    positive = derive(tmp_path, pixels=pixels)
    assert np.array_equal(~pixel_array(result.path), pixel_array(positive.path))


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for syntax in ("explicit-le", "rle", "jpeg-ls", "jpeg-2000"):
        settings = parse({"derive": {"transfer_syntax": syntax}})
        first = derive(tmp_path, settings, frames=2).path.read_bytes()
        assert derive(tmp_path, settings, frames=2).path.read_bytes() == first


def test_derived_file_is_named_by_its_uids(tmp_path: Path) -> None:
    result = derive(tmp_path)
    ds = dcmread(result.path)
    assert result.path.relative_to(tmp_path / "out").parts == (
        ds.SeriesInstanceUID,
        f"{ds.SOPInstanceUID}.dcm",
    )
    assert result.sop_class_uid == ds.SOPClassUID
    assert result.identity.sop_instance_uid == ds.SOPInstanceUID


@pytest.mark.parametrize(
    "change",
    [
        {"despeckle": {"strength": 0.5}},
        {"regions": {"grey_tolerance": 20}},
        {"regions": {"without_regions": "skip"}},
    ],
)
def test_settings_that_change_pixels_change_the_identity(tmp_path: Path, change: Any) -> None:
    one, other = derive(tmp_path), derive(tmp_path, parse(change))
    assert one.identity.sop_instance_uid != other.identity.sop_instance_uid
    assert one.identity.series_instance_uid != other.identity.series_instance_uid


def test_settings_that_change_no_pixels_keep_the_identity(tmp_path: Path) -> None:
    settings = parse({"derive": {"transfer_syntax": "rle", "series_number_offset": 7}})
    assert derive(tmp_path).identity == derive(tmp_path, settings).identity


def test_own_output_is_refused(tmp_path: Path) -> None:
    derived = derive(tmp_path).path
    with pytest.raises(Refused, match="own-output"):
        derive_instance(derived, MedianDespeckler(), Settings(), write_into(tmp_path))


def test_object_too_large_for_its_encoding_costs_no_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "_LONGEST", 96 * 128)
    source = write_us_instance(tmp_path / "source.dcm", pixels=speckle(2, 96, 128))
    despeckler = MedianDespeckler()
    with pytest.raises(Permanent, match=r"object-too-large.*transfer_syntax"):
        derive_instance(source, despeckler, Settings(), write_into(tmp_path))
    assert not despeckler.seen
    compressed = parse({"derive": {"transfer_syntax": "rle"}})
    assert derive_instance(source, despeckler, compressed, write_into(tmp_path)).report.frames == 2


@pytest.mark.parametrize(("syntax", "times"), [("explicit-le", 2), ("rle", 1)])
def test_object_that_the_disk_cannot_hold_costs_no_work_and_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str, times: int
) -> None:
    source = write_us_instance(tmp_path / "source.dcm", pixels=speckle(2, 96, 128))
    settings = parse({"derive": {"transfer_syntax": syntax}})
    free = times * 2 * 96 * 128 - 1

    def used(_path: Path) -> Any:
        return SimpleNamespace(free=free)

    monkeypatch.setattr("shutil.disk_usage", used)
    despeckler = MedianDespeckler()
    with pytest.raises(Transient, match=r"disk-full.* free some"):
        derive_instance(source, despeckler, settings, write_into(tmp_path), work_directory=tmp_path)
    assert not despeckler.seen
    free += 1
    derive_instance(source, despeckler, settings, write_into(tmp_path), work_directory=tmp_path)


def test_object_without_tissue_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"no-tissue.*0018,6011"):
        derive(tmp_path, regions=[region(0, 0, 127, 95, spatial_format=3, data_type=3)])
    assert not (tmp_path / "out").exists()


def test_object_without_tissue_is_refused_whatever_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "_LONGEST", 0)
    with pytest.raises(Refused, match="no-tissue"):
        derive(tmp_path, regions=[region(0, 0, 127, 95, spatial_format=3, data_type=3)])


def test_touched_pixel_stops_the_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(frame: np.ndarray, *_: Any) -> np.ndarray:
        return frame ^ 1

    monkeypatch.setattr("dicom_node.pipeline.recombine", careless)
    with pytest.raises(Permanent, match="pixels-touched"):
        derive(tmp_path, regions=[region(0, 0, 63, 95)])
    assert regions.recombine is not careless


class Forgetful(MedianDespeckler):
    def frames(
        self,
        luminances: Iterable[Any],
        strength: float,
        tissue: Any = None,  # noqa: ARG002
    ) -> Iterator[Any]:
        yield from list(super().frames(luminances, strength))[:-1]


def test_frame_that_the_network_swallows_is_noticed(tmp_path: Path) -> None:
    source = write_us_instance(tmp_path / "s.dcm", frames=3)
    with pytest.raises(Permanent, match="frame-lost"):
        derive_instance(source, Forgetful(), Settings(), write_into(tmp_path))


def test_full_disk_is_transient(tmp_path: Path) -> None:
    import errno

    def full(relative: str, chunks: Iterable[bytes]) -> Path:
        raise OSError(errno.ENOSPC, "full")

    source = write_us_instance(tmp_path / "s.dcm")
    with pytest.raises(Transient, match="disk-full"):
        derive_instance(source, MedianDespeckler(), Settings(), full)


def test_stages_are_timed(tmp_path: Path) -> None:
    timings = derive(tmp_path, frames=3).timings
    assert set(timings) == {"decode", "regions", "despeckle", "recombine", "derive", "encode"}
    assert all(value >= 0 for value in timings.values())


def test_pipeline_imports_no_torch() -> None:
    code = "import dicom_node.pipeline, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Files and folders


def test_folder_is_derived_and_the_bad_ones_are_reported(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    write_us_instance(folder / "a.dcm", instance=1)
    write_us_instance(folder / "deep" / "b", instance=2)
    (folder / "notes.txt").write_text("no DICOM")
    damaged = write_us_instance(folder / "z.dcm", instance=3)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    seen: list[tuple[str, int, int]] = []
    outcomes = derive_files(
        [folder, folder / "a.dcm", tmp_path / "absent.dcm"],
        tmp_path / "out",
        MedianDespeckler(),
        Settings(),
        lambda outcome, done, total: seen.append((outcome.source.name, done, total)),
    )
    found = {outcome.source.name: outcome for outcome in outcomes}
    assert {name: outcome.status for name, outcome in found.items()} == {
        "a.dcm": FileStatus.DERIVED,
        "b": FileStatus.DERIVED,
        "notes.txt": FileStatus.SKIPPED,
        "z.dcm": FileStatus.FAILED,
        "absent.dcm": FileStatus.FAILED,
    }
    assert [done for _, done, _ in seen] == [1, 2, 3, 4, 5]
    assert {total for _, _, total in seen} == {5}
    assert found["notes.txt"].error is not None
    assert found["notes.txt"].error.code == "not-dicom"
    derived = [dcmread(path) for path in (tmp_path / "out").rglob("*.dcm")]
    assert len(derived) == 2
    assert len({ds.SeriesInstanceUID for ds in derived}) == 1
    assert {path: path.read_bytes() for path in before} == before


def test_second_file_of_an_instance_fails_and_names_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    first = write_us_instance(folder / "a.dcm", seed=1)
    write_us_instance(folder / "b.dcm", seed=2)
    outcomes = derive_files([folder], tmp_path / "out", MedianDespeckler(), Settings())
    assert [one.status for one in outcomes] == [FileStatus.DERIVED, FileStatus.FAILED]
    error = outcomes[1].error
    assert error is not None
    assert error.code == "instance-repeated"
    assert f"'{first}'" in error.message
    (derived,) = (tmp_path / "out").rglob("*.dcm")
    alone = derive_files([first], tmp_path / "alone", MedianDespeckler(), Settings())[0].path
    assert alone is not None
    assert dcmread(derived).PixelData == dcmread(alone).PixelData


class Faulty(MedianDespeckler):
    def frames(
        self,
        luminances: Iterable[Any],
        strength: float,
        tissue: Any = None,  # noqa: ARG002
    ) -> Iterator[Any]:
        if not self.seen:
            self.seen += [np.zeros(1)]
            raise ZeroDivisionError
        return super().frames(luminances, strength)


def test_fault_of_the_program_stops_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in (1, 2):
        write_us_instance(tmp_path / "in" / f"{number}.dcm", instance=number)
    outcomes = derive_files([tmp_path / "in"], tmp_path / "out", Faulty(), Settings())
    assert [one.status for one in outcomes] == [FileStatus.FAILED, FileStatus.DERIVED]
    assert outcomes[0].error is not None
    assert "ZeroDivisionError" in outcomes[0].error.message


@pytest.mark.parametrize("name", ["file", "file/deeper"])
def test_output_that_cannot_be_written_is_named_before_anything_is_read(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Permanent, match="output-unusable") as caught:
        derive_files([tmp_path], tmp_path / name, MedianDespeckler(), Settings())
    assert str(tmp_path / name) in caught.value.message
    assert "spool" not in caught.value.message


def test_file_that_is_not_there_is_named_without_a_spool(tmp_path: Path) -> None:
    absent = tmp_path / "absent.dcm"
    (outcome,) = derive_files([absent], tmp_path / "out", MedianDespeckler(), Settings())
    assert outcome.error is not None
    assert f"'{absent}'" in outcome.error.message
    assert "spool" not in outcome.error.message


def test_output_inside_the_input_is_not_read_again(tmp_path: Path) -> None:
    write_us_instance(tmp_path / "a.dcm")
    for _ in range(2):
        outcomes = derive_files([tmp_path], tmp_path / "out", MedianDespeckler(), Settings())
        assert [outcome.status for outcome in outcomes] == [FileStatus.DERIVED]


def test_no_half_written_file_remains(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise Permanent("frame-undecodable", "test")

    with pytest.raises(Permanent):
        write_into(tmp_path)("series/instance.dcm", broken())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_no_patient_data_in_errors(tmp_path: Path) -> None:
    ds = make_us_instance(patient="Secret^Name", PatientID="SECRETID")
    from tests.builders import save

    for keyword, value in (("NumberOfFrames", 9), ("Rows", 5), ("StudyInstanceUID", "Secret^Name")):
        bad = ds.copy()
        setattr(bad, keyword, value)
        path = save(bad, tmp_path / "x.dcm")
        with pytest.raises((Refused, Permanent)) as caught:
            derive_instance(path, MedianDespeckler(), Settings(), write_into(tmp_path))
        assert "Secret" not in str(caught.value)
        assert "SECRET" not in str(caught.value)


def test_nothing_is_printed_about_malformed_values(tmp_path: Path) -> None:
    source = write_us_instance(
        tmp_path / "s.dcm",
        SpecificCharacterSet="ISO_IR",
        PatientBirthDate="Secret",
        DerivationDescription="\xe4" * 1024,
    )
    code = (
        "import sys; from pathlib import Path; from dicom_node.config import Settings;"
        "from dicom_node.service.folder import write_into; from dicom_node.pipeline import derive_instance;"
        "from tests.builders import MedianDespeckler;"
        "derive_instance(Path(sys.argv[1]), MedianDespeckler(), Settings(),"
        " write_into(Path(sys.argv[2])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(source), str(tmp_path / "out")],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_auditor_sees_what_changed_in_a_region_that_begins_before_the_image(
    tmp_path: Path,
) -> None:
    whole = region(0, 0, 63, 47)
    trace = region(2**32 - 6, 30, 40, 47, spatial_format=4, data_type=10)
    plain = write_us_instance(tmp_path / "plain.dcm", regions=[whole])
    derived = derive_instance(plain, MedianDespeckler(), Settings(), write_into(tmp_path / "out"))
    stated = write_us_instance(tmp_path / "stated.dcm", regions=[whole, trace])
    assert compare(plain, derived.path).problems == []
    assert "pixels outside the tissue regions changed" in compare(stated, derived.path).problems
    trace.RegionLocationMaxX1 = 2**32 - 1
    beside = write_us_instance(tmp_path / "beside.dcm", regions=[whole, trace])
    found = compare(beside, derived.path).problems
    assert "pixels outside the tissue regions changed" not in found

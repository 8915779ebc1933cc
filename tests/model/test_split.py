"""Real images are divided by subject: no patient is trained on and judged on."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import config
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from model.images import image_files
from model.split import HELD_OUT, Split, patient_folders, split, subject_of

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "train"
ROOT = Path("images")


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("593_HC.png", "593"),
        ("593_2HC.png", "593"),
        ("S3_R20_step_175.png", "S3"),
        ("S3_L20_step_025.png", "S3"),
        ("S10_L20_step_025.png", "S10"),
        ("gastroc_jumping_048.png", "gastroc_jumping"),
        ("gastroc_range_of_motion_002.png", "gastroc_range_of_motion"),
        ("Reg_pat1Image_132943_f0196.png", "pat1"),
        ("Reg_Image_181602_trimmed_crop_f0037.png", "Image"),
        ("Cov_convex_volpecelli_sonographic_v2_f0040.png", "convex_volpecelli_sonographic"),
        ("Cov_Oliviera_2020_Fig15A.jpg", "Oliviera_2020_Fig15"),
        ("Vir_prospective_file1_f0015.png", "Vir_prospective_file1"),
        ("standard_ultrasound_standard_13.png", "standard-10-14"),
        ("sub_nonmiddle_plane_substandard_3.png", "substandard-0-4"),
        ("sub_poor_labrum_display_substandard_4.png", "substandard-0-4"),
        ("benign (12).png", "benign-10-14"),
        ("patient0001_2CH_ED.png", "patient0001"),
        ("sub-07_run-2_0003.png", "sub-07"),
        ("liver frame 12.png", "liver"),
        ("0012.png", "frames"),
        ("IMG_0012.png", "frames"),
        ("liver.png", "liver"),
        ("out0001.png", "out"),
        ("IM0001.png", "IM"),
        ("anna(3).png", "anna"),
    ],
)
def test_a_subject_is_told_from_the_file_name(name, subject):
    assert subject_of(ROOT / "source" / name) == subject


def test_a_folder_below_the_source_is_a_subject():
    assert subject_of(ROOT / "source" / "anna" / "0001.png", ROOT) == "anna"


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("smith/standard_0013.png", "smith"),
        ("smith/normal (12).png", "smith"),
        ("benign/benign (12).png", "benign-10-14"),
        ("sets/benign/benign (12).png", "benign-10-14"),
    ],
)
def test_a_patient_is_not_divided_by_the_running_numbers_in_a_folder(name, subject):
    assert subject_of(ROOT / "clinic" / name, ROOT) == subject


def sides(parts: Split, key) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for side in ("train", "validation", "test"):
        for path in getattr(parts, side):
            found[key(path)].add(side)
    return found


def cohort(subjects: int, frames: int = 3, source: str = "heart") -> list[Path]:
    return [
        ROOT / source / f"patient{s:04d}_{f}.png" for s in range(subjects) for f in range(frames)
    ]


@given(st.sets(st.integers(0, 999), min_size=1, max_size=40), st.integers(1, 4))
def test_no_subject_is_on_two_sides_and_no_file_is_lost(numbers, frames):
    files = [ROOT / "heart" / f"patient{n}_{f}.png" for n in numbers for f in range(frames)]
    parts = split(files, ROOT)
    assert sorted(parts.train + parts.validation + parts.test) == sorted(files)
    assert all(len(found) == 1 for found in sides(parts, subject_of).values())
    assert parts.train
    if len(numbers) >= 3:
        assert parts.validation
        assert parts.test


def test_shares_are_eight_one_and_one_tenth():
    parts = split(cohort(2000, 1), ROOT)
    assert len(parts.train) == pytest.approx(1600, abs=60)
    assert len(parts.validation) == pytest.approx(200, abs=45)
    assert len(parts.test) == pytest.approx(200, abs=45)


def test_later_files_leave_the_others_where_they_are():
    before = sides(split(cohort(60), ROOT), subject_of)
    after = sides(split(cohort(90, 5) + cohort(20, source="liver"), ROOT), str)
    heart = {Path(path): found for path, found in after.items() if "heart" in path}
    assert all(
        found == before[subject_of(p)] for p, found in heart.items() if subject_of(p) in before
    )


def test_order_of_the_files_does_not_matter():
    assert split(reversed(cohort(20)), ROOT) == split(cohort(20), ROOT)


def test_names_of_any_encoding_are_divided():
    stems = [bytes([0xE4 + n]) for n in range(9)]
    files = [ROOT / os.fsdecode(stem + b".png") for stem in stems]
    assert split(files, ROOT).validation


def test_a_held_out_source_is_only_tested_on():
    bone = [ROOT / "plus_bone_L14" / f"Bone_{n:02d}.png" for n in range(7)]
    assert set(split(bone + cohort(20), ROOT).test) >= set(bone)


def test_folders_of_one_subject_each_are_divided_together():
    files = [ROOT / f"volunteer-{n}" / f"{f:04d}.png" for n in range(30) for f in range(4)]
    parts = split(files, ROOT)
    assert parts.train
    assert parts.validation
    assert parts.test
    assert all(len(found) == 1 for found in sides(parts, lambda p: p.parent.name).values())


def test_a_single_cine_is_trained_on():
    files = [ROOT / f"frame_{n}.png" for n in range(40)]
    assert set(split(files, ROOT).train) == set(files)


@pytest.mark.parametrize("name", ["out{:04d}.png", "IM{:04d}.png", "cine({}).png"])
def test_a_single_cine_with_its_number_at_the_name_is_trained_on(name):
    files = [ROOT / name.format(n) for n in range(49)]
    assert set(split(files, ROOT).train) == set(files)


def patients(root: Path) -> list[Path]:
    return [
        root / name / f"{view}_{place}.png"
        for name in ("smith", "jones", "brown", "green")
        for view in ("liver", "kidney")
        for place in ("long", "left")
    ]


def test_folders_of_patients_that_count_as_sources_are_told():
    assert patient_folders(patients(ROOT), ROOT) == ["brown", "green", "jones", "smith"]
    beside = [*patients(ROOT), *cohort(40)]
    assert patient_folders(beside, ROOT)
    below = patients(ROOT / "clinic")
    assert not patient_folders(below, ROOT)
    assert all(len(found) == 1 for found in sides(split(below, ROOT), lambda p: p.parent).values())


def test_folders_of_sources_are_not_taken_for_those_of_patients():
    cines = [ROOT / f"volunteer-{n}" / f"{f:04d}.png" for n in range(30) for f in range(4)]
    clinics = [path for n in range(6) for path in cohort(10, source=f"clinic-{n}")]
    named = [ROOT / f"clinic-{n}" / f"{'abc' * (p + 1)}.png" for n in range(4) for p in range(40)]
    for files in (cines, clinics, named, [ROOT / "a.png", ROOT / "b.png"]):
        assert not patient_folders(files, ROOT)


def write_dicom(path: Path, patient: str, study: str) -> Path:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.6.1", generate_uid()
    dataset.PatientID, dataset.StudyInstanceUID = patient, study
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_a_malformed_identity_is_told_to_nobody(tmp_path, recwarn, monkeypatch):
    with monkeypatch.context() as writing:
        writing.setattr(config.settings, "reading_validation_mode", config.IGNORE)
        writing.setattr(config.settings, "writing_validation_mode", config.IGNORE)
        path = write_dicom(tmp_path / "a.dcm", "", "SESAME^Sesame")
    # The node, where another test has imported it, reads without a warning in the whole process.
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.WARN)
    recwarn.clear()
    assert subject_of(path, tmp_path).startswith("patient-")
    assert not recwarn.list


def test_a_patient_in_two_folders_is_one_subject_and_stays_unnamed(tmp_path):
    files = [
        write_dicom(tmp_path / source / f"patient{n}.dcm", f"ID{n}", generate_uid())
        for source in ("monday", "tuesday")
        for n in range(12)
    ]
    subjects = sides(split(files, tmp_path), subject_of)
    assert len(subjects) == 12
    assert all(len(found) == 1 for found in subjects.values())
    assert not any("ID" in name for name in subjects)


def test_without_a_patient_id_the_study_is_the_subject(tmp_path):
    one, same, other = (
        write_dicom(tmp_path / name, "", study)
        for name, study in (("a", "1.2.3"), ("b", "1.2.3"), ("c.dcm", "1.2.4"))
    )
    assert subject_of(one) == subject_of(same) != subject_of(other)


@pytest.mark.samples
def test_no_subject_of_the_real_images_is_on_two_sides():
    if not REAL.is_dir():
        pytest.skip("the folder ../shared/data/train with real images is absent")
    files = image_files(REAL)
    parts = split(files, REAL)
    found = sides(parts, lambda p: f"{p.parent.name}/{subject_of(p, REAL)}")
    assert all(len(each) == 1 for each in found.values())
    assert {p.parent.name for p in parts.test} >= {
        p.parent.name for p in files if p.parent.name != "timtrack_ds2_muscle_GL"
    }
    assert {p.parent.name for p in parts.train}.isdisjoint(HELD_OUT)
    assert not patient_folders(files, REAL)
    assert 0.7 < len(parts.train) / len(files) < 0.9

"""Images and DICOM objects become grey frames; what cannot be learnt from is left out, and told."""

from __future__ import annotations

import contextlib
import logging
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydicom import uid

from model.images import (
    UnusableImageError,
    crop_to_tissue,
    image_files,
    read_all,
    read_frames,
    read_grey,
)
from tests.builders import region, speckle, write_us_instance

PATIENT = "Sesame^Oscar"


def written(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def frames_of(path: Path, most: int = 8) -> list[np.ndarray]:
    return list(read_frames(path, most))


# --- which files ------------------------------------------------------------------------------


def test_hidden_folders_are_left_out_unless_they_are_given(tmp_path):
    hidden = written(
        tmp_path / "a" / ".ipynb_checkpoints" / "x-checkpoint.png", speckle(1, 8, 8)[0]
    )
    assert image_files(tmp_path) == []
    assert image_files(hidden.parent) == [hidden]


def test_images_and_dicom_objects_are_found_and_annotations_are_not(tmp_path):
    grey = speckle(1, 16, 16)[0]
    (tmp_path / "c").mkdir()
    wanted = [
        written(tmp_path / "a" / "benign (1).png", grey),
        written(tmp_path / "b.JPG", grey),
        write_us_instance(tmp_path / "c" / "IM0001"),
        write_us_instance(tmp_path / "c" / "1.2.840.5"),
        write_us_instance(tmp_path / "d.DCM"),
    ]
    written(tmp_path / "a" / "benign (1)_mask.png", grey)
    written(tmp_path / "a" / "benign (1)_mask_1.png", grey)
    written(tmp_path / "001_HC_Annotation.png", grey)
    written(tmp_path / "._b.png", grey)
    (tmp_path / "c" / "README").write_text("DICM")
    write_us_instance(tmp_path / "c" / "DICOMDIR")
    assert image_files(tmp_path) == sorted(wanted)


# --- images -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_grey_pixels_are_read_as_they_are(tmp_path, suffix):
    grey = speckle(1, 40, 50)[0]
    (frame,) = frames_of(written(tmp_path / f"image{suffix}", grey))
    assert frame.dtype == np.uint8
    np.testing.assert_array_equal(frame, grey)


def test_sixteen_bits_are_scaled_by_their_depth_not_stretched(tmp_path):
    twelve = (speckle(1, 20, 30)[0].astype(int) * 4095 // 255).astype(np.uint16)
    (frame,) = frames_of(written(tmp_path / "wide.png", twelve))
    np.testing.assert_array_equal(frame, (twelve.astype(int) * 255 + 2047) // 4095)


def test_sixteen_bits_of_one_folder_are_of_one_depth(tmp_path):
    dim = np.full((20, 30), 500, np.uint16)
    bright = np.full((20, 30), 4000, np.uint16)
    (tmp_path / "broken.png").write_bytes(b"no image")
    (frame,) = frames_of(written(tmp_path / "alone" / "dim.png", dim))
    assert frame.max() == (500 * 255 + 511) // 1023
    written(tmp_path / "bright.png", bright)
    (frame,) = frames_of(written(tmp_path / "dim.png", dim))
    assert frame.max() == (500 * 255 + 2047) // 4095


def test_annotations_and_hidden_files_say_nothing_of_the_depth(tmp_path):
    white = np.full((20, 30), 65535, np.uint16)
    for name in ("a_mask.png", ".a.png"):
        written(tmp_path / name, white)
    (frame,) = frames_of(written(tmp_path / "a.png", np.full((20, 30), 2000, np.uint16)))
    assert frame.max() == (2000 * 255 + 2047) // 4095


def test_a_tinted_image_is_grey_and_a_coloured_one_is_passed_over(tmp_path):
    grey = speckle(1, 40, 50)[0]
    tinted = np.dstack([grey, grey, np.minimum(grey.astype(int) + 20, 255)]).astype(np.uint8)
    flow = np.dstack([grey] * 3)
    flow[:10, :20] = (255, 60, 0)
    assert len(frames_of(written(tmp_path / "tinted.png", tinted))) == 1
    assert not frames_of(written(tmp_path / "flow.png", flow))
    assert read_grey(tmp_path / "flow.png").shape == (40, 50)


def test_frames_of_a_cine_are_evenly_spread(tmp_path):
    pages = [Image.fromarray(np.full((8, 8), n, np.uint8)) for n in range(20)]
    path = tmp_path / "cine.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    assert [int(frame[0, 0]) for frame in frames_of(path, 4)] == [2, 7, 12, 17]


def test_pages_of_sixteen_bits_are_of_one_depth(tmp_path):
    pages = [Image.fromarray(np.full((20, 30), level, np.uint16)) for level in (500, 900, 4000)]
    path = tmp_path / "cine.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    found = [int(frame.max()) for frame in frames_of(path)]
    assert found == [(level * 255 + 2047) // 4095 for level in (500, 900, 4000)]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_cine_that_is_cut_anywhere_is_damaged_and_no_more(tmp_path):
    whole = tmp_path / "whole.tif"
    pages = [Image.fromarray(np.full((8, 8), 3000 + n, np.uint16)) for n in range(4)]
    pages[0].save(whole, save_all=True, append_images=pages[1:])
    stored = whole.read_bytes()
    for length in range(0, len(stored), 7):
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / "cut.tif").write_bytes(stored[:length])
        with contextlib.suppress(UnusableImageError):
            frames_of(folder / "cut.tif")


# --- DICOM ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("photometric", "syntax"),
    [
        ("MONOCHROME2", uid.ExplicitVRLittleEndian),
        ("MONOCHROME2", uid.RLELossless),
        ("MONOCHROME2", uid.JPEG2000Lossless),
        ("MONOCHROME2", uid.JPEGLSLossless),
        ("RGB", uid.ExplicitVRLittleEndian),
        ("YBR_FULL", uid.RLELossless),
        ("PALETTE COLOR", uid.ExplicitVRLittleEndian),
    ],
)
def test_a_dicom_cine_of_any_encoding_shows_its_grey_levels(tmp_path, photometric, syntax):
    path = write_us_instance(
        tmp_path / "cine.dcm", frames=3, photometric=photometric, transfer_syntax=syntax
    )
    frames = frames_of(path)
    assert len(frames) == 3
    expected = speckle(3, 48, 64)
    assert np.abs(np.stack(frames).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("seed", [1, 2, 42, 183, 242, 297])  # GDCM aborts at the last four
def test_a_damaged_jpeg_stream_does_not_end_the_process(tmp_path, seed):
    path = write_us_instance(tmp_path / "a.dcm", transfer_syntax=uid.JPEGBaseline8Bit)
    stored = bytearray(path.read_bytes())
    start = stored.rindex(b"\xff\xd8\xff")
    chance = random.Random(seed)
    for _ in range(chance.choice([1, 3, 10])):
        stored[chance.randrange(start, len(stored))] = chance.randrange(256)
    path.write_bytes(stored)
    with contextlib.suppress(UnusableImageError):
        assert all(frame.shape == (48, 64) for frame in frames_of(path))


def test_monochrome1_is_turned_so_that_zero_is_black(tmp_path):
    stored = speckle(1, 48, 64)
    path = write_us_instance(tmp_path / "a.dcm", photometric="MONOCHROME1", pixels=stored)
    np.testing.assert_array_equal(frames_of(path)[0], 255 - stored[0])


def test_only_the_largest_tissue_region_is_read(tmp_path):
    path = write_us_instance(
        tmp_path / "a.dcm",
        regions=[
            region(0, 0, 63, 47, spatial_format=2),
            region(1, 2, 10, 11),
            region(8, 4, 200, 43),
        ],
    )
    np.testing.assert_array_equal(frames_of(path)[0], speckle(1, 48, 64)[0, 4:44, 8:])


def test_without_regions_the_whole_image_is_read(tmp_path):
    assert frames_of(write_us_instance(tmp_path / "a.dcm", regions=[]))[0].shape == (48, 64)


def test_coloured_frames_of_a_cine_are_passed_over(tmp_path):
    grey = speckle(4, 48, 64)
    pixels = np.stack([grey] * 3, axis=-1)
    pixels[2, 10:30, 10:40] = (255, 40, 0)
    path = write_us_instance(tmp_path / "a.dcm", photometric="RGB", pixels=pixels)
    np.testing.assert_array_equal(np.stack(frames_of(path)), grey[[0, 1, 3]])


@pytest.mark.parametrize(
    "options",
    [
        {"regions": [region(0, 0, 63, 47, spatial_format=3, data_type=3)]},
        {"Modality": "CT"},
        {"Rows": None},
        {"PixelData": None},
        {"Rows": 4000},
    ],
)
def test_an_unusable_object_is_named_with_a_remedy_and_without_the_patient(tmp_path, options):
    path = write_us_instance(tmp_path / "a.dcm", patient=PATIENT, **options)
    with pytest.raises(UnusableImageError, match=r"a\.dcm: .*remove it") as caught:
        frames_of(path)
    assert "Sesame" not in str(caught.value)


def test_unusable_files_are_counted_and_the_others_read(tmp_path, caplog):
    good = written(tmp_path / "good.png", speckle(1, 40, 50)[0])
    broken = tmp_path / "broken.png"
    broken.write_bytes(good.read_bytes()[:300])
    text = tmp_path / "text.png"
    text.write_text("no image")
    cut = write_us_instance(tmp_path / "cut.dcm", patient=PATIENT)
    cut.write_bytes(cut.read_bytes()[:400])
    with caplog.at_level(logging.WARNING):
        found = list(read_all(image_files(tmp_path)))
    assert [path for path, _ in found] == [good]
    assert "3 of 4 files were left out" in caplog.text
    assert "broken.png" in caplog.text
    assert "Sesame" not in caplog.text


def test_an_empty_object_is_counted(tmp_path, caplog):
    (tmp_path / "empty.dcm").touch()
    assert not list(read_all(image_files(tmp_path)))
    assert "1 of 1 files were left out" in caplog.text


def test_a_folder_that_may_not_be_entered_is_counted(tmp_path, caplog, monkeypatch):
    barred = written(tmp_path / "barred" / "a.png", speckle(1, 40, 50)[0])

    def refusing(call):  # root may enter any folder
        def refuse(path):
            if path == barred:
                raise PermissionError(13, "Permission denied", str(path))
            return call(path)

        return refuse

    monkeypatch.setattr(Path, "is_file", refusing(Path.is_file))
    monkeypatch.setattr(Image, "open", refusing(Image.open))
    assert not list(read_all(image_files(tmp_path)))
    assert "1 of 1 files were left out" in caplog.text
    assert "may not be read" in caplog.text


def test_coloured_files_are_counted(tmp_path, caplog):
    grey = speckle(1, 40, 50)[0]
    sepia = np.dstack([grey, grey * 0.8, grey * 0.5]).astype(np.uint8)
    for name in ("a.png", "b.png"):
        written(tmp_path / name, sepia)
    written(tmp_path / "c.png", grey)
    assert [path.name for path, _ in read_all(image_files(tmp_path))] == ["c.png"]
    assert "2 of 3 files are coloured and were passed over; the first: " in caplog.text


@pytest.mark.samples
def test_real_objects_are_read_or_passed_over_but_never_unusable(samples):
    files = image_files(samples)
    counts = [len(frames_of(path, 2)) for path in files]
    assert len(files) > 20
    assert sum(map(bool, counts)) > len(files) / 2


# --- screen furniture -------------------------------------------------------------------------


def screen(background: int = 0) -> np.ndarray:
    """A sector of speckle at rows 60..259 and columns 100..339 of a screen with text and a bar."""
    image = Image.new("L", (480, 320), background)
    pen = ImageDraw.Draw(image)
    for line in range(6):
        pen.text((4, 4 + 14 * line), "MI 1.2  13 cm", fill=220)
    pen.text((140, 295), "LIVER  RIGHT LOBE", fill=220)
    pen.rectangle((460, 60, 466, 160), fill=200)
    pixels = np.asarray(image).copy()
    pixels[60:260, 100:340] = np.maximum(speckle(1, 200, 240)[0], background + 20)
    return pixels


@pytest.mark.parametrize("background", [0, 18])
def test_text_and_scales_about_the_tissue_are_cropped_away(background):
    rows, columns = crop_to_tissue(screen(background)).shape
    assert 196 <= rows <= 210
    assert 236 <= columns <= 250


def test_an_image_that_is_all_tissue_stays_whole():
    grey = speckle(1, 120, 160)[0]
    assert crop_to_tissue(grey).shape == grey.shape


@pytest.mark.parametrize("level", [0, 90])
def test_an_even_image_stays_whole(level):
    even = np.full((50, 60), level, np.uint8)
    assert crop_to_tissue(even).shape == even.shape

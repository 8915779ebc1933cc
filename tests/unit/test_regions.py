from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter
from pydicom.dataset import Dataset

from dicom_node.config import RegionsSection
from dicom_node.decode import Geometry
from dicom_node.errors import Permanent
from dicom_node.pixels.insonation import lettering, marks, ruled, strokes
from dicom_node.regions import (
    grey_pixels,
    prove_untouched,
    read_regions,
    recombine,
    tissue_map,
    tissue_pixels,
)
from model.data import validation_set
from tests.builders import region, speckle

ROWS, COLUMNS = 240, 320
POLICY = RegionsSection()


def display(frames: int = 1) -> np.ndarray:
    """A black display with a sector-like area of speckle: rows 40-200, columns 60-260."""
    image = np.zeros((frames, ROWS, COLUMNS), np.uint8)
    image[:, 40:200, 60:260] = speckle(frames, 160, 200)
    return image


def mapped(
    frames: np.ndarray,
    regions: list[Dataset] | None = None,
    policy: RegionsSection = POLICY,
    **attributes: Any,
) -> Any:
    ds = Dataset()
    if regions is not None:
        ds.SequenceOfUltrasoundRegions = regions
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    geometry = Geometry(len(frames), ROWS, COLUMNS, colour=frames.ndim == 4)
    return tissue_map(ds, geometry, list(frames), policy)


def rgb(frames: np.ndarray) -> np.ndarray:
    return np.repeat(frames[..., None], 3, axis=-1)


WHOLE = [region(0, 0, COLUMNS - 1, ROWS - 1)]


# Reading the regions


def test_bounds_are_inclusive_and_clipped_to_the_image() -> None:
    ds = Dataset()
    ds.SequenceOfUltrasoundRegions = [region(10, 20, COLUMNS, ROWS + 50)]
    (only,) = read_regions(ds, ROWS, COLUMNS)
    assert (only.rows, only.columns) == (slice(20, ROWS), slice(10, COLUMNS))


@pytest.mark.parametrize(
    "broken",
    [
        region(50, 10, 40, 90),
        region(0, 0, 0, 0),
        region(COLUMNS + 5, 0, COLUMNS + 90, 90),
        region(-90, 0, -5, 90),
        region(2**32 - 90, 0, 2**32 - 5, 90),
        region(0, 2**32 - 90, 90, 2**32 - 5),
        Dataset(),
    ],
)
def test_broken_regions_are_dropped(broken: Dataset) -> None:
    ds = Dataset()
    ds.SequenceOfUltrasoundRegions = [broken]
    assert read_regions(ds, ROWS, COLUMNS) == []


@pytest.mark.parametrize("least", [-6, 2**32 - 6])
def test_region_that_begins_before_the_image_is_clipped_however_that_is_stored(least: int) -> None:
    trace = region(least, least, 100, 90, spatial_format=4, data_type=10)
    found = mapped(display(), [trace, *WHOLE])
    assert not found.allowed[:91, :101].any()
    assert found.allowed[100:180, 110:240].all()


# Where pixels may change


def test_only_the_region_may_change() -> None:
    found = mapped(display(), [region(100, 60, 200, 150)])
    assert found.source == "ultrasound-regions"
    assert found.allowed[70:140, 110:190].all()
    inside = np.zeros((ROWS, COLUMNS), bool)
    inside[60:151, 100:201] = True
    assert not found.allowed[~inside].any()


@pytest.mark.parametrize(
    ("spatial_format", "data_type"), [(1, 2), (2, 1), (3, 3), (4, 10), (0, 13), (5, 0)]
)
def test_regions_of_other_kinds_are_taken_out(spatial_format: int, data_type: int) -> None:
    other = region(120, 80, 180, 120, spatial_format=spatial_format, data_type=data_type)
    found = mapped(display(), [other, *WHOLE])
    assert not found.allowed[80:121, 120:181].any()
    assert found.allowed[130:190, 120:181].all()


def test_region_whose_kind_is_not_said_is_taken_out() -> None:
    other = region(120, 80, 180, 120)
    del other.RegionDataType
    found = mapped(display(), [*WHOLE, other])
    assert not found.allowed[80:121, 120:181].any()
    assert found.allowed[130:190, 120:181].all()


def test_region_that_says_nothing_is_ignored() -> None:
    nothing = region(60, 40, 259, 199, spatial_format=0, data_type=0)
    assert mapped(display(), [nothing, *WHOLE]).allowed[60:180, 80:240].all()


def test_display_of_other_kinds_only_has_no_tissue() -> None:
    found = mapped(display(), [region(60, 40, 259, 199, spatial_format=3, data_type=3)])
    assert (found.source, found.share) == ("ultrasound-regions", 0)


@pytest.mark.parametrize("regions", [WHOLE, None])
def test_cine_that_begins_with_a_blank_frame_has_the_tissue_of_the_others(regions) -> None:
    frames = display(8)
    frames[0] = 0
    found = mapped(frames, regions)
    assert found.allowed[60:180, 80:240].all()
    assert not found.allowed[:30].any()


@pytest.mark.parametrize("regions", [WHOLE, None])
def test_tissue_where_the_first_frame_shows_none_is_that_of_the_others(regions) -> None:
    frames = display(8)
    frames[:3, :, :140] = 0  # the probe has no contact there yet
    found = mapped(frames, regions)
    assert found.allowed[60:180, 80:240].mean() > 0.95
    assert not found.allowed[:30].any()


def test_without_regions_the_area_is_estimated() -> None:
    found = mapped(display())
    truth = display()[0] > 0
    assert found.source == "estimated"
    assert (found.allowed & truth).sum() > 0.95 * truth.sum()
    assert (found.allowed & ~truth).sum() < 0.01 * truth.sum()


def test_without_regions_the_policy_may_be_to_skip() -> None:
    found = mapped(display(), policy=RegionsSection(without_regions="skip"))
    assert (found.source, found.share) == ("none", 0)


def test_sweep_under_a_sector_makes_the_estimate_ambiguous() -> None:
    image = np.zeros((1, ROWS, COLUMNS), np.uint8)
    image[:, 10:100, 100:220] = speckle(1, 90, 120)
    image[:, 120:230, 10:310] = speckle(1, 110, 300, seed=5)
    assert mapped(image).share == 0


def test_small_sector_above_a_large_sweep_makes_the_estimate_ambiguous() -> None:
    image = np.zeros((1, ROWS, COLUMNS), np.uint8)
    image[:, 4:54, 120:200] = speckle(1, 50, 80)
    image[:, 70:235, 10:310] = speckle(1, 165, 300, seed=5)
    assert mapped(image).share == 0


def test_small_sweep_under_a_large_sector_leaves_the_sector_certain() -> None:
    row, column = np.mgrid[:ROWS, :COLUMNS]
    sector = (np.abs(column - 160) < 0.8 * (row - 4)) & (row < 180)
    image = np.where(sector, speckle(1, ROWS, COLUMNS), 0).astype(np.uint8)
    image[:, 205:230, 110:200] = speckle(1, 25, 90, seed=5)
    found = mapped(image)
    assert found.allowed[60:170, 130:190].all()
    assert not found.allowed[200:].any()


@pytest.mark.parametrize("modes", ["0003", "0009", "0019", "0020", "0041", "0201"])
def test_object_that_tells_of_other_modes_but_not_where_has_no_certain_tissue(modes: str) -> None:
    image_type = ["ORIGINAL", "PRIMARY", "CARDIOLOGY", modes]
    assert mapped(display(), ImageType=image_type).share == 0
    assert mapped(display(), WHOLE, ImageType=image_type).share > 0.3


@pytest.mark.parametrize(("spatial_format", "share"), [(1, 0.3), (2, 0.0), (3, 0.0), (4, 0.3)])
def test_sweep_whose_region_has_no_area_leaves_nothing_certain(
    spatial_format: int, share: float
) -> None:
    nowhere = region(0, 0, 0, 0, spatial_format=spatial_format, data_type=spatial_format)
    found = mapped(display(), [nowhere])
    assert found.source == "estimated"
    assert found.share >= share
    assert bool(found.share) is bool(share)


@pytest.mark.parametrize(
    "image_type",
    [
        ["ORIGINAL", "PRIMARY", "ABDOMINAL", "0011"],
        ["ORIGINAL", "PRIMARY", "ABDOMINAL", "0101"],
        ["ORIGINAL", "PRIMARY", "ABDOMINAL", "GENERAL"],
        ["ORIGINAL", "PRIMARY", "ABDOMINAL"],
        "ORIGINAL",
        None,
    ],
)
def test_object_that_tells_of_tissue_and_colour_or_of_nothing_is_estimated(image_type: Any) -> None:
    assert mapped(display(), ImageType=image_type).share > 0.3


def test_two_views_side_by_side_are_both_found() -> None:
    image = np.zeros((1, ROWS, COLUMNS), np.uint8)
    image[:, 40:200, 20:150] = speckle(1, 160, 130)
    image[:, 40:200, 170:300] = speckle(1, 160, 130, seed=5)
    found = mapped(image)
    assert found.allowed[60:180, 40:130].all()
    assert found.allowed[60:180, 190:280].all()


def test_uniform_background_inside_the_region_stays() -> None:
    for level in (0, 17):
        image = display()
        image[image == 0] = level
        found = mapped(image, WHOLE)
        assert not found.allowed[:38].any()
        assert not found.allowed[:, :58].any()


def text(image: np.ndarray, row: int, column: int, level: int = 255) -> np.ndarray:
    """Something like the letters HE, strokes two pixels wide; returns where they are."""
    before = image.copy()
    for left in (column, column + 8, column + 14):
        image[..., row : row + 16, left : left + 2] = level
    image[..., row + 7 : row + 9, column : column + 10] = level
    for top in (row, row + 7, row + 14):
        image[..., top : top + 2, column + 14 : column + 22] = level
    return np.asarray((image != before).any(axis=0))


def test_text_over_tissue_stays_if_text_elsewhere_has_its_level() -> None:
    image = display()
    captions(image)
    over = text(image, 100, 150)
    found = mapped(image, WHOLE)
    assert not found.allowed[over].any()
    assert found.allowed[60:90, 80:240].mean() > 0.95


def captions(image: np.ndarray, level: int = 255) -> None:
    """Text above and below the tissue."""
    for row in (4, 210):
        for column in range(10, 290, 30):
            text(image, row, column, level)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("lossy", ["00", "01"])
def test_thin_calliper_over_tissue_stays_if_text_elsewhere_has_its_level(lossy, frames) -> None:
    image = display(frames)
    image[:, 40:200, 60:260] //= 2
    captions(image, level=220)
    cross = np.zeros((ROWS, COLUMNS), bool)
    cross[100, 144:157] = cross[94:107, 150] = True
    image[:, cross] = 220
    if lossy == "01":
        image[:, cross] -= 6
    found = mapped(image, WHOLE, LossyImageCompression=lossy)
    assert not found.allowed[cross].any()
    assert found.allowed[60:90, 80:240].mean() > 0.95


def test_digits_that_change_over_tissue_stay_where_compression_was_not_lossy() -> None:
    """A clock or a heart rate beside the probe; alone in a still it stays as well."""
    frames = display(10)
    inked = np.zeros(frames.shape, bool)
    for index, ink in enumerate(inked):
        drawn = Image.new("1", (COLUMNS, ROWS))
        pen = ImageDraw.Draw(drawn)
        pen.fontmode = "1"
        pen.text((80, 60), f"{60 + 7 * index} BPM", fill=1)
        ink[:] = np.asarray(drawn)
        pen.text((5, 5), "GAIN 50 DEPTH 12 MI 1.2", fill=1)
        frames[index][np.asarray(drawn)] = 255
    assert (inked.any(axis=0) & ~inked.all(axis=0)).sum() > 50
    allowed = mapped(frames, WHOLE).allowed
    assert not allowed[inked.any(axis=0)].any()
    assert allowed[100:180, 80:240].mean() > 0.98


def test_saturated_tissue_of_a_cine_is_not_taken_for_digits() -> None:
    frames = display(8)
    frames[frames > 120] = 255
    assert strokes(list(frames), [255], lossy=False).mean() < 0.01


def test_speckle_in_the_level_of_text_is_no_text_where_it_does_not_stand_out() -> None:
    image = display()
    image[:, 40:200, 60:260] = 80 + image[:, 40:200, 60:260] // 4
    captions(image, level=100)
    found = mapped(image, WHOLE, LossyImageCompression="01")
    assert found.allowed[60:180, 80:240].mean() > 0.9


def test_smoothed_text_close_to_the_tissue_stays() -> None:
    frames = display()
    canvas = Image.new("L", (COLUMNS, ROWS))
    pen = ImageDraw.Draw(canvas)
    for line in range(3):
        pen.text((62, 4 + 11 * line), "MSCSKEL 78F78 44CG43", fill=230)
    small = canvas.filter(ImageFilter.GaussianBlur(0.45))
    text = np.asarray(small)[:38]
    frames[0, :38] = np.maximum(frames[0, :38], text)
    for regions in (None, WHOLE):
        tissue = mapped(frames, regions)
        assert not tissue.allowed[:36].any()
        assert tissue.allowed[50:190, 70:250].mean() > 0.9


def test_box_drawn_over_tissue_stays_without_text_elsewhere() -> None:
    frames = display()
    box = np.zeros((ROWS, COLUMNS), bool)
    box[80:160, 100] = box[80:160, 200] = box[80, 100:201] = box[159, 100:201] = True
    frames[0, 40:200, 60:260] //= 2
    frames[0][box] = 215
    assert not mapped(frames, WHOLE).allowed[box].any()


@pytest.mark.parametrize("lossy", ["00", "01"])
def test_depth_mark_of_whatever_level_over_the_tissue_stays_where_its_level_is_exact(lossy) -> None:
    frames = display()
    frames[0, 40:200, 60:260] //= 2
    mark = np.zeros((ROWS, COLUMNS), bool)
    mark[100, 121:123] = mark[102, 121:123] = mark[101, 120:124] = True
    frames[0][mark] = 224
    found = mapped(frames, WHOLE, LossyImageCompression=lossy)
    assert found.allowed[mark].any() == (lossy == "01")
    assert found.allowed[110:190, 80:240].all()


def test_interface_that_keeps_to_a_row_is_no_ruled_line_where_its_brightness_varies() -> None:
    image = np.full((ROWS, COLUMNS), 30, np.uint8)
    image[120, 100:160] = 150 + 40 * np.sin(np.arange(60) / 5)  # 8 levels a pixel at most
    assert not ruled(image).any()
    image[120, 100:160] = 190
    assert ruled(image)[120, 100:160].all()


def test_speckle_of_the_simulator_is_taken_neither_for_text_nor_for_lines_nor_for_marks() -> None:
    for scene in validation_set(8):
        assert lettering(scene.noisy).mean() < 0.02
        assert ruled(scene.noisy).mean() < 0.005
        assert not marks(scene.noisy, lossy=False).any()


def test_what_stands_still_in_a_moving_cine_stays() -> None:
    frames = display(8)
    mark = text(frames, 100, 150, level=180)
    found = mapped(frames, WHOLE)
    assert not found.allowed[mark].any()
    assert found.allowed[130:190, 80:240].mean() > 0.95


def test_grey_scale_bar_beside_the_tissue_stays() -> None:
    image = display()
    image[0, 60:188, 262:272] = np.arange(254, -2, -2, dtype=np.int16).astype(np.uint8)[:, None]
    found = mapped(image, WHOLE)
    assert not found.allowed[60:188, 262:272].any()


@pytest.mark.parametrize("step", [1, 8])
def test_monochrome1_is_mapped_like_its_inverse(step: int) -> None:
    """Coarse grey levels, too, over a background that varies by one of them."""
    image = display() // step * step
    if step > 1:
        image[image == 0] = np.arange(np.count_nonzero(image == 0)) % 3 // 2 * step
    ds = Dataset()
    plain = tissue_map(ds, Geometry(1, ROWS, COLUMNS, colour=False), list(image), POLICY)
    inverse = tissue_map(
        ds, Geometry(1, ROWS, COLUMNS, colour=False, inverted=True), list(~image), POLICY
    )
    assert np.array_equal(plain.allowed, inverse.allowed)


# Colour


def test_coloured_pixels_and_their_soft_edge_stay() -> None:
    frames = rgb(display())
    frames[0, 100:120, 150:170] = (200, 20, 10)
    found = mapped(frames, WHOLE)
    mask = tissue_pixels(frames[0], found, POLICY)
    assert not mask[99:121, 149:171].any()
    assert mask[60:95, 80:240].mean() > 0.95


def test_grey_is_what_differs_between_the_channels_by_no_more_than_the_tolerance() -> None:
    neutral = np.zeros((256, 3), np.int16)
    frame = np.full((3, 30, 3), 100, np.uint8)
    for column, spread in ((4, 6), (12, 7), (20, 18), (26, 19)):
        frame[1, column, 0] += spread
    grey = grey_pixels(frame, neutral, tolerance=6)
    assert grey[:, :12].all()
    assert not grey[1, [12, 20, 26]].any()
    assert grey[1, [11, 13, 19, 21]].all()
    assert not grey[:, 25:28].any(), "a margin about what is colour on purpose"


def test_colour_is_judged_frame_by_frame() -> None:
    frames = rgb(display(2))
    found = mapped(frames, WHOLE)
    later = frames[1].copy()
    later[100:120, 150:170] = (0, 0, 220)
    assert tissue_pixels(frames[1], found, POLICY)[100:120, 150:170].all()
    assert not tissue_pixels(later, found, POLICY)[100:120, 150:170].any()


def tinted(grey: np.ndarray) -> np.ndarray:
    colours = grey[..., None].astype(int) + np.array([-3, -2, 22]) * (grey[..., None] > 40)
    return np.clip(colours, 0, 255).astype(np.uint8)


def test_tinted_grey_map_is_tissue_and_doppler_in_it_is_not() -> None:
    frames = tinted(display())
    frames[0, 100:120, 150:170] = (200, 20, 10)
    found = mapped(frames, WHOLE)
    assert found.tint.any()
    mask = tissue_pixels(frames[0], found, POLICY)
    assert mask[60:95, 80:240].mean() > 0.95
    assert not mask[100:120, 150:170].any()


def test_neutral_image_has_no_tint() -> None:
    assert not mapped(rgb(display()), WHOLE).tint.any()


# Putting the luminance back


def test_recombine_changes_only_the_mask() -> None:
    frame = rgb(display())[0]
    before = frame[..., 0]
    after = np.full_like(before, 99)
    mask = np.zeros(before.shape, bool)
    mask[50:60, 70:80] = True
    derived = recombine(frame, before, after, mask)
    assert (derived[mask] == 99).all()
    assert np.array_equal(derived[~mask], frame[~mask])
    assert np.array_equal(prove_untouched(frame, derived, mask), mask & (before != 99))


def test_recombine_keeps_the_tint_of_the_new_luminance() -> None:
    frames = tinted(display())
    found = mapped(frames, WHOLE)
    from dicom_node.pixels.colour import luminance

    before = luminance(frames[0])
    mask = found.allowed & (before > 60)
    derived = recombine(frames[0], before, np.full_like(before, 120), mask, found.tint)
    blueness = derived[mask][:, 2].astype(int) - derived[mask][:, 0]
    assert np.abs(blueness - 25).max() <= 4


def test_recombine_stops_at_black_and_white() -> None:
    frame = np.array([[[250, 200, 200], [9, 0, 0]]], np.uint8)
    before = np.array([[210, 4]], np.uint8)
    after = np.array([[240, 0]], np.uint8)
    derived = recombine(frame, before, after, np.ones((1, 2), bool))
    assert derived.tolist() == [[[255, 230, 230], [5, 0, 0]]]


def test_touched_pixel_is_found() -> None:
    frame = rgb(display())[0]
    derived = frame.copy()
    derived[3, 4, 2] ^= 1
    with pytest.raises(Permanent, match="pixels-touched"):
        prove_untouched(frame, derived, np.zeros(frame.shape[:2], bool))

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels.processing import convert_color_space

from dicom_node.errors import Permanent
from dicom_node.pixels.colour import expand_422, luminance, read_palette, ybr_to_rgb


def every_colour(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (256, 256, 3), np.uint8)


def test_ybr_full_comes_out_as_pydicom_has_it_within_a_grey_level() -> None:
    ybr = every_colour()
    theirs = convert_color_space(ybr.copy(), "YBR_FULL", "RGB")
    assert np.abs(ybr_to_rgb(ybr).astype(int) - theirs).max() <= 1


def test_ybr_full_comes_out_exactly_as_libjpeg_has_it() -> None:
    buffer = BytesIO()
    Image.fromarray(every_colour()).save(buffer, "JPEG", subsampling=0)
    rgb = np.asarray(Image.open(BytesIO(buffer.getvalue())))
    raw = Image.open(BytesIO(buffer.getvalue()))
    raw.draft("YCbCr", raw.size)
    assert np.array_equal(ybr_to_rgb(np.asarray(raw)), rgb)


def test_grey_ybr_is_exactly_its_luma() -> None:
    luma = np.arange(256, dtype=np.uint8).reshape(16, 16)
    ybr = np.stack([luma, np.full_like(luma, 128), np.full_like(luma, 128)], axis=-1)
    assert np.array_equal(ybr_to_rgb(ybr), np.repeat(luma[..., None], 3, -1))


def test_luminance_of_a_grey_pixel_is_its_value() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(luminance(np.repeat(grey[..., None], 3, -1)), grey)
    assert luminance(grey) is grey


def test_luminance_is_rec_601_within_a_grey_level() -> None:
    rgb = every_colour()
    exact = rgb.astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(luminance(rgb) - exact).max() < 1.5


def test_422_uses_each_chroma_sample_for_two_pixels() -> None:
    stored = np.array([10, 20, 1, 2, 30, 40, 3, 4], np.uint8)
    assert expand_422(stored, 1, 4).tolist() == [[[10, 1, 2], [20, 1, 2], [30, 3, 4], [40, 3, 4]]]


def palette(
    entries: int, bits: int, data: bytes, first: int = 0, segmented: bool = False
) -> Dataset:
    ds = Dataset()
    for colour in ("Red", "Green", "Blue"):
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [entries % 65536, first, bits])
        prefix = "Segmented" if segmented else ""
        setattr(ds, f"{prefix}{colour}PaletteColorLookupTableData", data)
    return ds


RAMP = np.arange(256, dtype=np.uint16)


@pytest.mark.parametrize(
    ("bits", "data", "little"),
    [
        pytest.param(16, (RAMP * 257).astype("<u2").tobytes(), True, id="16-bit"),
        pytest.param(16, (RAMP * 256).astype("<u2").tobytes(), True, id="high byte only"),
        pytest.param(16, RAMP.astype("<u2").tobytes(), True, id="8-bit values in 16-bit entries"),
        pytest.param(16, (RAMP * 257).astype(">u2").tobytes(), False, id="big-endian words"),
        pytest.param(8, RAMP.astype(np.uint8).tobytes(), True, id="8-bit packed"),
        pytest.param(8, RAMP.astype("<u2").tobytes(), True, id="8-bit, one a word"),
        pytest.param(
            8, RAMP.astype(np.uint8).view("<u2").byteswap().tobytes(), False, id="packed, swapped"
        ),
    ],
)
def test_palette_encodings_all_give_the_same_ramp(bits: int, data: bytes, little: bool) -> None:
    colours = read_palette(palette(256, bits, data), 8, little_endian=little).colours
    assert np.array_equal(colours, np.repeat(RAMP.astype(np.uint8)[:, None], 3, 1))


def test_values_outside_the_palette_take_its_ends() -> None:
    data = np.array([0x1111, 0x2222], "<u2").tobytes()
    colours = read_palette(palette(2, 16, data, first=10), 8, little_endian=True).colours
    assert (colours[:11] == 0x11).all()
    assert (colours[11:] == 0x22).all()


def test_segmented_palette_with_discrete_linear_and_indirect_segments() -> None:
    words = [0, 1, 0, 1, 3, 0x0300, 2, 1, 6, 0]  # one value, a line to 0x0300, that line again
    data = np.array(words, "<u2").tobytes()
    table = read_palette(palette(7, 16, data, segmented=True), 8, little_endian=True)
    assert table.colours[:7, 0].tolist() == [0, 1, 2, 3, 3, 3, 3]


@pytest.mark.parametrize(
    "broken",
    [
        Dataset(),
        palette(256, 16, b"\0\1"),
        palette(9, 16, np.array([7, 7, 7], "<u2").tobytes(), segmented=True),
        palette(9, 16, np.array([1, 4], "<u2").tobytes(), segmented=True),
    ],
)
def test_broken_palette_is_named(broken: Dataset) -> None:
    with pytest.raises(Permanent, match=r"palette-unusable.*0028,1[12]"):
        read_palette(broken, 8, little_endian=True)

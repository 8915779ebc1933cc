"""Every pixel format in, the right pixels and a valid object out; damage never surprises."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydicom import dcmread, uid
from pydicom.pixels.utils import pixel_array

from dicom_node.config import Settings, parse
from dicom_node.decode import open_instance
from dicom_node.errors import NodeError, Transient
from dicom_node.pipeline import derive_instance
from dicom_node.pixels.colour import ybr_to_rgb
from dicom_node.service.folder import write_into
from tests.builders import MedianDespeckler, as_bytes, make_us_instance, region, save, speckle

NATIVE = [
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
]
CODED = [uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless]
RELAXED = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def formats(draw: st.DrawFn) -> dict[str, object]:
    """Options of `make_us_instance` with random stored values, all lossless."""
    syntax = draw(st.sampled_from(NATIVE + CODED))
    photometrics = ["MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "PALETTE COLOR"]
    if syntax in NATIVE:
        photometrics.append("YBR_FULL_422")
    photometric = draw(st.sampled_from(photometrics))
    rows = draw(st.integers(32, 50))
    columns = draw(st.integers(16, 25)) * 2 + (photometric != "YBR_FULL_422")
    shape: tuple[int, ...] = (draw(st.integers(1, 4)), rows, columns)
    if photometric.startswith(("RGB", "YBR")):
        shape = (*shape, 3)
    pixels = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, shape, np.uint8)
    if photometric == "YBR_FULL_422":
        pixels[:, :, 1::2, 1:] = pixels[:, :, 0::2, 1:]
    planar = draw(st.sampled_from([0, 1])) if photometric == "RGB" and syntax in NATIVE else 0
    return {
        "transfer_syntax": syntax,
        "photometric": photometric,
        "pixels": pixels,
        "planar": planar,
    }


@given(formats())
@RELAXED
def test_every_format_decodes_to_what_was_stored(options: dict[str, object]) -> None:
    pixels = options["pixels"]
    assert isinstance(pixels, np.ndarray)
    ybr = str(options["photometric"]).startswith("YBR")
    with tempfile.TemporaryDirectory() as folder:
        decoder = open_instance(save(make_us_instance(**options), Path(folder) / "x.dcm"))
        frames = np.stack(list(decoder.frames()))
    assert np.array_equal(frames, ybr_to_rgb(pixels) if ybr else pixels)
    assert (decoder.geometry.rows, decoder.geometry.columns) == pixels.shape[1:3]
    assert decoder.geometry.frames == len(pixels)


@given(
    frames=st.integers(1, 3),
    photometric=st.sampled_from(["MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL_422", "PALETTE COLOR"]),
    output=st.sampled_from(["explicit-le", "rle", "jpeg-ls", "jpeg-2000"]),
    box=st.tuples(st.integers(0, 40), st.integers(0, 30), st.integers(60, 95), st.integers(50, 71)),
)  # fmt: skip
@RELAXED
def test_only_pixels_inside_the_region_ever_change(
    frames: int, photometric: str, output: str, box: tuple[int, int, int, int]
) -> None:
    grey = speckle(frames, 72, 96)
    left, top, right, bottom = box
    inside = np.zeros((72, 96), bool)
    inside[top : bottom + 1, left : right + 1] = True
    ds = make_us_instance(
        photometric=photometric, rows=72, columns=96, frames=frames, regions=[region(*box)]
    )
    with tempfile.TemporaryDirectory() as folder:
        source = save(ds, Path(folder) / "x.dcm")
        settings = parse({"derive": {"transfer_syntax": output}})
        result = derive_instance(source, MedianDespeckler(), settings, write_into(Path(folder)))
        derived = pixel_array(result.path)
        header = dcmread(result.path, stop_before_pixels=True)
    if photometric == "MONOCHROME1":
        derived = ~derived
    if derived.shape[-1] == 3:
        assert (derived[..., 0] == derived[..., 1]).all()
        derived = derived[..., 0]
    derived = derived.reshape(grey.shape)
    assert np.array_equal(derived[:, ~inside], grey[:, ~inside])
    assert (derived != grey).any()
    assert int(header.get("NumberOfFrames") or 1) == frames


WHOLE = as_bytes(make_us_instance(frames=2, rows=32, columns=32))
CODED_WHOLE = as_bytes(
    make_us_instance(frames=2, rows=32, columns=32, transfer_syntax=uid.RLELossless)
)


@given(
    whole=st.sampled_from([WHOLE, CODED_WHOLE]),
    edits=st.lists(st.tuples(st.integers(132, 2200), st.integers(0, 255)), min_size=1, max_size=6),
    length=st.one_of(st.none(), st.integers(0, len(WHOLE))),
)
@example(whole=WHOLE, edits=[(384, 0)], length=None)  # draws the name into the SOP Class UID
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_damaged_file_is_processed_or_reported_and_never_surprises(
    whole: bytes, edits: list[tuple[int, int]], length: int | None
) -> None:
    damaged = bytearray(whole)
    for position, value in edits:
        damaged[position % len(damaged)] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.dcm"
        path.write_bytes(bytes(damaged[:length]))
        problem: NodeError | None = None
        try:
            derive_instance(path, MedianDespeckler(), Settings(), write_into(Path(folder) / "out"))
        except NodeError as error:
            problem = error
    if problem is not None:
        assert not isinstance(problem, Transient), "damage does not pass"
        assert "Tester" not in str(problem)

"""RLE Lossless, PS3.5 annex G: what is encoded decodes to itself, in pydicom's decoder."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder

from dicom_node.pixels.rle import encode_rle

few_values = st.sampled_from([0, 0, 0, 7, 255])
shapes = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 300)),
    st.tuples(st.integers(1, 5), st.integers(1, 140), st.just(3)),
)
frames = shapes.flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.one_of(few_values, st.integers(0, 255)))
)


@given(frames)
def test_encoded_frame_decodes_to_itself(frame: np.ndarray) -> None:
    data = encode_rle(frame)
    assert len(data) % 2 == 0
    decoded, _ = get_decoder(uid.RLELossless).as_array(
        encapsulate([data], has_bot=False),
        raw=True,
        index=0,
        decoding_plugin="pydicom",
        rows=frame.shape[0],
        columns=frame.shape[1],
        samples_per_pixel=1 if frame.ndim == 2 else 3,
        number_of_frames=1,
        bits_allocated=8,
        bits_stored=8,
        pixel_representation=0,
        photometric_interpretation="RGB" if frame.ndim == 3 else "MONOCHROME2",
        planar_configuration=1,
        pixel_keyword="PixelData",
    )
    assert np.array_equal(decoded, frame)


@given(st.integers(3, 600))
def test_uniform_row_takes_two_bytes_for_each_128_pixels(columns: int) -> None:
    data = encode_rle(np.zeros((1, columns), np.uint8))
    assert len(data) == 64 + 2 * -(-columns // 128)

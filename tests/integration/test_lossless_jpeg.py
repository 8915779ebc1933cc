"""Lossless JPEG: decoded by libjpeg as by GDCM, but no damaged stream ends the process."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread, uid
from pydicom.encaps import generate_frames
from pydicom.pixels.utils import pixel_array

from dicom_node.decode import open_instance
from dicom_node.errors import NodeError, Permanent
from dicom_node.pixels import codecs
from model.dicom_images import UnusableImageError, read_frames
from tests.builders import write_us_instance
from tests.peers import require_program

COLOUR, GREY = "JPEGLosslessP14SV1_3s_2f_u_08_08.dcm", "JPGLosslessP14SV1_1s_1f_8b.dcm"


def streams(path: Path) -> list[bytes]:
    ds = dcmread(path)
    return list(generate_frames(ds.PixelData, number_of_frames=int(ds.get("NumberOfFrames", 1))))


@pytest.mark.peer
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1", "RGB", "PALETTE COLOR"])
@pytest.mark.parametrize("coding", ["+e1", *(f"+el +sv {value}" for value in range(1, 8))])
def test_all_predictors_of_dcmtk_are_decoded(tmp_path: Path, photometric: str, coding: str) -> None:
    source = write_us_instance(tmp_path / "source.dcm", photometric=photometric, frames=2)
    coded = tmp_path / "coded.dcm"
    subprocess.run([require_program("dcmcjpeg"), *coding.split(), source, coded], check=True)
    assert "JPEG Lossless" in dcmread(coded).file_meta.TransferSyntaxUID.name
    for before, after in zip(
        open_instance(source).frames(), open_instance(coded).frames(), strict=True
    ):
        np.testing.assert_array_equal(after, before)
    if photometric != "PALETTE COLOR":  # coloured: no B-mode to learn from
        for learned, before in zip(read_frames(coded, 2), read_frames(source, 2), strict=True):
            np.testing.assert_array_equal(learned, before)


@pytest.mark.samples
@pytest.mark.parametrize("name", [COLOUR, GREY])
def test_every_sample_is_what_gdcm_decodes(samples: Path, name: str) -> None:
    ds = dcmread(samples / name)
    for index, stream in enumerate(streams(samples / name)):
        expected = pixel_array(samples / name, index=index, raw=True, decoding_plugin="gdcm")
        decoded = codecs.decode_jpeg(
            ds.file_meta.TransferSyntaxUID, stream, ds.Rows, ds.Columns, "YBR_FULL"
        )
        np.testing.assert_array_equal(decoded, expected)


@pytest.mark.samples
@pytest.mark.parametrize(
    ("name", "seed"), [(COLOUR, 8), (GREY, 1), (GREY, 32), (GREY, 33), (GREY, 90), (GREY, 94)]
)
def test_a_damaged_stream_does_not_end_the_process(
    tmp_path: Path, samples: Path, name: str, seed: int
) -> None:
    """GDCM 3.2.6 aborts, or writes where it must not, at all but the second."""
    stored = bytearray((samples / name).read_bytes())
    stream = streams(samples / name)[0]
    start, chance = stored.index(stream), random.Random(seed)
    reach = chance.choice([200, len(stream)])
    for _ in range(chance.choice([1, 3, 10])):
        stored[start + chance.randrange(reach)] = chance.randrange(256)
    damaged = tmp_path / name
    damaged.write_bytes(stored)
    with pytest.raises(NodeError):
        list(open_instance(damaged).frames())
    with pytest.raises(UnusableImageError):
        list(read_frames(damaged, 2))


@pytest.mark.samples
def test_a_truncated_stream_is_refused(samples: Path) -> None:
    ds = dcmread(samples / GREY)
    stream = streams(samples / GREY)[0]
    with pytest.raises(Permanent, match="damaged"):
        codecs.decode_jpeg(
            uid.JPEGLosslessSV1, stream[: len(stream) // 2], ds.Rows, ds.Columns, "MONOCHROME2"
        )


def test_more_than_eight_bits_are_left_to_the_codec_that_has_them() -> None:
    assert codecs.uses_libjpeg(uid.JPEGLosslessSV1, 8)
    assert not codecs.uses_libjpeg(uid.JPEGLosslessSV1, 16)
    assert codecs.uses_libjpeg(uid.JPEGBaseline8Bit, 8)

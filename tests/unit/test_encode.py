from __future__ import annotations

import struct
from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread, uid
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array

from dicom_node.attributes.identity import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.errors import Permanent
from dicom_node.pixels.encode import CODECS, encode
from tests.builders import ROOT, speckle


def header(frames: np.ndarray) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID = uid.UltrasoundMultiFrameImageStorage
    ds.SOPInstanceUID = f"{ROOT}.4"
    colour = frames.ndim == 4
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        ds.PlanarConfiguration = 0
    ds.NumberOfFrames, ds.Rows, ds.Columns = frames.shape[:3]
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    return ds


def encoded(frames: np.ndarray, syntax: str) -> bytes:
    return b"".join(encode(header(frames), iter(frames), syntax))


GREY = speckle(3, 33, 35)
COLOUR = np.random.default_rng(0).integers(0, 256, (3, 33, 35, 3), np.uint8)


@pytest.mark.parametrize("syntax", CODECS)
@pytest.mark.parametrize(
    "frames", [GREY, COLOUR, GREY[:1], COLOUR[:1]], ids=["g3", "c3", "g1", "c1"]
)
def test_pixels_come_back_exactly(frames: np.ndarray, syntax: str) -> None:
    found = pixel_array(BytesIO(encoded(frames, syntax)))
    assert np.array_equal(found.reshape(frames.shape), frames)


@pytest.mark.parametrize("syntax", CODECS)
def test_file_meta_group_is_complete(syntax: str) -> None:
    data = encoded(COLOUR, syntax)
    ds = dcmread(BytesIO(data))
    meta = ds.file_meta
    assert data[:132] == b"\0" * 128 + b"DICM"
    assert meta.MediaStorageSOPClassUID == ds.SOPClassUID
    assert meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
    assert meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert meta.ImplementationVersionName == IMPLEMENTATION_VERSION_NAME
    assert meta.FileMetaInformationVersion == b"\0\1"
    group_length = struct.unpack("<I", data[140:144])[0]
    assert data[144 + group_length : 148 + group_length] == b"\x08\x00\x16\x00"


def test_native_pixels_are_padded_to_even_length_once() -> None:
    data = encoded(GREY, "explicit-le")
    header_at = data.index(b"\xe0\x7f\x10\x00OB\0\0")
    (length,) = struct.unpack("<I", data[header_at + 8 : header_at + 12])
    assert length == 3 * 33 * 35 + 1
    assert len(data) == header_at + 12 + length


@pytest.mark.parametrize("syntax", ["rle", "jpeg-ls", "jpeg-2000"])
def test_offset_table_points_at_one_fragment_a_frame(syntax: str) -> None:
    value = dcmread(BytesIO(encoded(COLOUR, syntax))).PixelData
    (table_length,) = struct.unpack("<I", value[4:8])
    offsets = struct.unpack(f"<{table_length // 4}I", value[8 : 8 + table_length])
    assert len(offsets) == 3
    position = first = 8 + table_length
    for offset in offsets:
        assert position == first + offset
        assert value[position : position + 4] == b"\xfe\xff\x00\xe0"
        (length,) = struct.unpack("<I", value[position + 4 : position + 8])
        assert length % 2 == 0
        position += 8 + length
    assert value[position:] in (b"", b"\xfe\xff\xdd\xe0\0\0\0\0")


def test_more_than_four_gigabytes_are_refused_with_the_remedy() -> None:
    ds = header(GREY)
    ds.Rows = ds.Columns = 4096
    ds.NumberOfFrames = 256
    with pytest.raises(Permanent, match=r"object-too-large.*transfer_syntax"):
        next(iter(encode(ds, iter(()), "explicit-le")))


@pytest.mark.parametrize("frames", [GREY[:2], np.concatenate([GREY, GREY]), GREY[:, :3], COLOUR])
@pytest.mark.parametrize("syntax", ["explicit-le", "rle"])
def test_frames_that_do_not_fit_the_header_are_an_error(frames: np.ndarray, syntax: str) -> None:
    with pytest.raises(Permanent, match="frame-lost"):
        list(encode(header(GREY), iter(frames), syntax))


def test_frame_that_the_codec_refuses_is_named_with_the_remedy() -> None:
    tiny = GREY[:, :8, :8]
    with pytest.raises(Permanent, match=r"frame-unencodable.*transfer_syntax"):
        encoded(tiny, "jpeg-2000")

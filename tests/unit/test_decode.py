from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

from dicom_node.attributes.identity import MODEL_NAME
from dicom_node.decode import open_instance
from dicom_node.errors import NodeError, Permanent, Refused
from dicom_node.pixels.colour import ybr_to_rgb
from tests.builders import (
    as_bytes,
    encode_frame,
    jpeg,
    make_us_instance,
    save,
    speckle,
    write_us_instance,
)

RGB_PIXELS = np.random.default_rng(3).integers(0, 256, (1, 32, 40, 3), np.uint8)


def written(tmp_path: Path, **options: Any) -> Path:
    return write_us_instance(tmp_path / "object.dcm", **options)


def failure(path: Path) -> NodeError:
    with pytest.raises(NodeError) as caught:
        list(open_instance(path).frames())
    assert ";" in str(caught.value) or caught.value.code in {"not-dicom", "no-frames"}
    return caught.value


# What comes out


def test_frames_come_out_in_order_and_writable(tmp_path: Path) -> None:
    pixels = speckle(4, 30, 42)
    decoder = open_instance(written(tmp_path, pixels=pixels))
    frames = list(decoder.frames())
    assert np.array_equal(np.stack(frames), pixels)
    assert np.array_equal(decoder.frame(2), pixels[2])
    frames[0][:] = 0
    assert np.array_equal(decoder.frame(0), pixels[0])


def test_monochrome1_keeps_its_values_and_says_that_it_is_inverted(tmp_path: Path) -> None:
    pixels = speckle(1, 20, 20)
    decoder = open_instance(written(tmp_path, pixels=pixels, photometric="MONOCHROME1"))
    assert decoder.geometry.inverted
    assert np.array_equal(decoder.frame(0), pixels[0])


@pytest.mark.parametrize("planar", [0, 1])
def test_rgb_in_either_planar_configuration(tmp_path: Path, planar: int) -> None:
    decoder = open_instance(written(tmp_path, pixels=RGB_PIXELS, photometric="RGB", planar=planar))
    assert decoder.geometry.colour
    assert np.array_equal(decoder.frame(0), RGB_PIXELS[0])


def test_big_endian_words_of_bytes_are_swapped_back(tmp_path: Path) -> None:
    pixels = speckle(3, 5, 7)  # frames of odd length straddle the words
    ds = make_us_instance(pixels=pixels, transfer_syntax=uid.ExplicitVRBigEndian)
    ds.PixelData = np.frombuffer(ds.PixelData, "<u2").byteswap().tobytes()
    ds["PixelData"].VR = "OW"
    decoder = open_instance(save(ds, tmp_path / "be.dcm"))
    assert np.array_equal(np.stack(list(decoder.frames())), pixels)


def test_deflated_object_is_inflated(tmp_path: Path) -> None:
    pixels = speckle(2, 30, 30)
    path = written(tmp_path, pixels=pixels, transfer_syntax=uid.DeflatedExplicitVRLittleEndian)
    decoder = open_instance(path)
    assert np.array_equal(np.stack(list(decoder.frames())), pixels)
    assert decoder.dataset.PatientID == "P1"


def test_grey_palette_becomes_grey_and_coloured_one_rgb_only_if_used(tmp_path: Path) -> None:
    from tests.builders import add_palette

    for used, colour in ((True, True), (False, False)):
        ds = make_us_instance(photometric="PALETTE COLOR", pixels=speckle(2, 16, 16))
        add_palette(ds, coloured=254)
        if used:
            data = bytearray(ds.PixelData)
            data[-1] = 254  # in the last frame
            ds.PixelData = bytes(data)
        decoder = open_instance(save(ds, tmp_path / "p.dcm"))
        assert decoder.geometry.colour is colour
        if colour:
            assert decoder.frame(1)[-1, -1].tolist() == [255, 0, 0]


def test_eight_bits_in_sixteen_are_accepted(tmp_path: Path) -> None:
    pixels = speckle(1, 10, 10)
    ds = make_us_instance(pixels=pixels)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 8, 7
    ds.PixelData = pixels.astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"
    assert np.array_equal(open_instance(save(ds, tmp_path / "x.dcm")).frame(0), pixels[0])


# JPEG and its colours


def jpeg_object(tmp_path: Path, data: bytes, photometric: str) -> Path:
    ds = make_us_instance(pixels=RGB_PIXELS, photometric=photometric)
    ds.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    ds.PixelData = encapsulate([data])
    ds["PixelData"].VR = "OB"
    return save(ds, tmp_path / "j.dcm")


def smooth() -> np.ndarray:
    frame = np.zeros((32, 40, 3), np.uint8)
    frame[..., 0], frame[..., 1], frame[..., 2] = 200, np.arange(40) * 5, 30
    return frame


def without_jfif(data: bytes) -> bytes:
    assert data[2:4] == b"\xff\xe0"
    (length,) = struct.unpack(">H", data[4:6])
    return data[:2] + data[4 + length :]


@pytest.mark.parametrize("label", ["RGB", "YBR_FULL", "YBR_FULL_422"])
def test_jfif_marker_proves_ybr_whatever_the_label(tmp_path: Path, label: str) -> None:
    frame = open_instance(jpeg_object(tmp_path, jpeg(smooth()), label)).frame(0)
    assert np.abs(frame.astype(int) - smooth()).max() < 12


@pytest.mark.parametrize("label", ["RGB", "YBR_FULL_422"])
def test_adobe_marker_proves_rgb_whatever_the_label(tmp_path: Path, label: str) -> None:
    data = jpeg(smooth(), "raw")
    assert b"Adobe" in data
    frame = open_instance(jpeg_object(tmp_path, data, label)).frame(0)
    assert np.abs(frame.astype(int) - smooth()).max() < 12


def test_subsampled_chroma_proves_ybr(tmp_path: Path) -> None:
    data = without_jfif(jpeg(smooth(), subsampling=2))
    frame = open_instance(jpeg_object(tmp_path, data, "RGB")).frame(0)
    assert np.abs(frame[4:-4, 4:-4].astype(int) - smooth()[4:-4, 4:-4]).max() < 16


def test_unmarked_jpeg_is_what_its_label_says(tmp_path: Path) -> None:
    coded = without_jfif(jpeg(smooth()))
    as_ybr = open_instance(jpeg_object(tmp_path, coded, "YBR_FULL")).frame(0)
    as_rgb = open_instance(jpeg_object(tmp_path, coded, "RGB")).frame(0)
    assert np.abs(as_ybr.astype(int) - smooth()).max() < 12
    assert np.abs(as_rgb.astype(int) - smooth()).max() > 60


def test_grey_jpeg_labelled_colour_is_grey(tmp_path: Path) -> None:
    decoder = open_instance(jpeg_object(tmp_path, jpeg(smooth()[..., 1]), "YBR_FULL_422"))
    assert not decoder.geometry.colour


def test_lossy_history_is_supplied_where_the_transfer_syntax_proves_it(tmp_path: Path) -> None:
    data = jpeg(smooth())
    ds = open_instance(jpeg_object(tmp_path, data, "YBR_FULL_422")).dataset
    assert ds.LossyImageCompression == "01"
    assert ds.LossyImageCompressionMethod == "ISO_10918_1"
    assert float(ds.LossyImageCompressionRatio) == pytest.approx(32 * 40 * 3 / len(data), rel=0.05)


@pytest.mark.parametrize(
    ("irreversible", "stated", "wanted"),
    [
        (True, None, ("01", "ISO_15444_1")),
        (True, "00", ("01", "ISO_15444_1")),
        (False, "00", ("00", None)),
    ],
)
def test_jpeg_2000_says_by_its_wavelet_whether_it_is_lossy(
    tmp_path: Path, irreversible: bool, stated: str | None, wanted: tuple[str | None, str | None]
) -> None:
    encoded = BytesIO()
    Image.fromarray(smooth()[..., 1]).save(
        encoded, "JPEG2000", irreversible=irreversible, no_jp2=True, quality_layers=[8]
    )
    ds = make_us_instance(rows=32, columns=40, transfer_syntax=uid.JPEG2000Lossless)
    ds.file_meta.TransferSyntaxUID = uid.JPEG2000
    ds.PixelData = encapsulate([encoded.getvalue()])
    ds.LossyImageCompression = stated
    found = open_instance(save(ds, tmp_path / "x.dcm")).dataset
    assert found.get("LossyImageCompression") == wanted[0]
    assert found.get("LossyImageCompressionMethod") == wanted[1]


@pytest.mark.parametrize("label", ["YBR_FULL", "YBR_FULL_422", "YBR_RCT", "RGB"])
@pytest.mark.parametrize("mixed", [True, False])
def test_jpeg_2000_that_mixed_its_components_is_rgb_whatever_the_label(
    tmp_path: Path, label: str, mixed: bool
) -> None:
    encoded = BytesIO()
    Image.fromarray(RGB_PIXELS[0]).save(
        encoded, "JPEG2000", irreversible=False, no_jp2=True, mct=int(mixed)
    )
    ds = make_us_instance(pixels=RGB_PIXELS, photometric="RGB")
    ds.file_meta.TransferSyntaxUID = uid.JPEG2000Lossless
    ds.PixelData = encapsulate([encoded.getvalue()])
    ds.PhotometricInterpretation = label
    frame = open_instance(save(ds, tmp_path / "x.dcm")).frame(0)
    is_ybr = label.startswith("YBR_FULL") and not mixed
    assert np.array_equal(frame, ybr_to_rgb(RGB_PIXELS[0]) if is_ybr else RGB_PIXELS[0])


# Frames and fragments


def fragmented(
    tmp_path: Path, fragments: list[bytes], table: list[int], frames: int | None
) -> Path:
    ds = make_us_instance(frames=3, rows=32, columns=40)
    ds.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    if frames is None:
        del ds.NumberOfFrames
    else:
        ds.NumberOfFrames = frames
    item = b"\xfe\xff\x00\xe0"
    data = item + struct.pack("<I", 4 * len(table)) + struct.pack(f"<{len(table)}I", *table)
    for fragment in fragments:
        padded = fragment + b"\0" * (len(fragment) % 2)
        data += item + struct.pack("<I", len(padded)) + padded
    ds.PixelData = data
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return save(ds, tmp_path / f"{len(fragments)}-{len(table)}.dcm")


def three_jpegs() -> list[bytes]:
    return [jpeg(frame) + b"\0" * (len(jpeg(frame)) % 2) for frame in speckle(3, 32, 40)]


def split(frames: list[bytes]) -> list[bytes]:
    return [part for frame in frames for part in (frame[:200], frame[200:400], frame[400:])]


@pytest.mark.parametrize("frames", [3, None])
def test_fragments_without_a_table_are_joined_at_code_stream_starts(
    tmp_path: Path, frames: int | None
) -> None:
    coded = three_jpegs()
    decoder = open_instance(fragmented(tmp_path, split(coded), [], frames))
    expected = open_instance(fragmented(tmp_path, coded, [], 3))
    assert decoder.geometry.frames == 3
    assert all(map(np.array_equal, decoder.frames(), expected.frames()))


def test_stale_offset_table_is_ignored(tmp_path: Path) -> None:
    path = fragmented(tmp_path, three_jpegs(), [0, 11, 12], 3)
    assert len(list(open_instance(path).frames())) == 3


def test_offset_table_is_followed(tmp_path: Path) -> None:
    coded = three_jpegs()
    offsets = [0]
    for frame in coded[:2]:
        offsets.append(offsets[-1] + len(frame) + 3 * 8)
    decoder = open_instance(fragmented(tmp_path, split(coded), offsets, 3))
    assert len(list(decoder.frames())) == 3


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_contradicted_frame_count_is_permanent(tmp_path: Path, frames: int) -> None:
    error = failure(fragmented(tmp_path, three_jpegs(), [], frames))
    assert (type(error), error.code) == (Permanent, "frame-count-differs")
    assert "(0028,0008)" in error.message


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless])
def test_missing_number_of_frames_is_taken_from_the_data(tmp_path: Path, syntax: str) -> None:
    path = written(tmp_path, frames=3, transfer_syntax=syntax, NumberOfFrames=None)
    assert open_instance(path).geometry.frames == 3


def test_422_label_on_full_chroma_is_seen_through(tmp_path: Path) -> None:
    grey = speckle(1, 16, 16)
    ds = make_us_instance(
        pixels=np.stack([grey, grey * 0 + 128, grey * 0 + 128], -1), photometric="YBR_FULL"
    )
    ds.PhotometricInterpretation = "YBR_FULL_422"
    frame = open_instance(save(ds, tmp_path / "x.dcm")).frame(0)
    assert np.array_equal(frame[..., 0], grey[0])


# What is refused, and why


@pytest.mark.parametrize(
    ("change", "kind", "code", "tag"),
    [
        ({"SOPClassUID": uid.EnhancedSRStorage}, Refused, "not-ultrasound", "(0008,0016)"),
        ({"NumberOfFrames": 0}, Refused, "no-frames", "(0028,0008)"),
        ({"StudyInstanceUID": None}, Permanent, "uid-invalid", "(0020,000D)"),
        ({"SeriesInstanceUID": "../etc"}, Permanent, "uid-invalid", "(0020,000E)"),
        ({"PhotometricInterpretation": "HSV"}, Refused, "photometric-unsupported", "(0028,0004)"),
        ({"PhotometricInterpretation": "RGB"}, Permanent, "photometric-contradicted", "(0028,0002)"),
        ({"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11}, Refused, "bits-unsupported", "(0028,0101)"),
        ({"BitsStored": 7, "HighBit": 6}, Refused, "bits-unsupported", "(0028,0101)"),
        ({"BitsAllocated": 16, "HighBit": 15}, Refused, "bits-unsupported", "(0028,0102) High Bit is 15"),
        ({"BitsAllocated": 32}, Refused, "bits-unsupported", "(0028,0100) Bits Allocated is 32"),
        ({"PixelRepresentation": 1}, Refused, "signed-pixels", "(0028,0103)"),
        ({"PixelPresentation": "COLOR"}, Refused, "supplemental-palette", "(0008,9205)"),
        ({"Rows": 0}, Permanent, "frame-size-impossible", "(0028,0010)"),
        ({"Rows": 60000, "Columns": 60000}, Permanent, "frame-size-impossible", "(0028,0011)"),
        ({"Rows": 480}, Permanent, "pixel-data-truncated", "(7FE0,0010)"),
        ({"NumberOfFrames": 2}, Permanent, "pixel-data-truncated", "(7FE0,0010)"),
        ({"Rows": 24}, Permanent, "frame-count-differs", "(0028,0008)"),
        ({"Rows": 36}, Permanent, "pixel-data-too-long", "3072 bytes, more than the 2304 of"),
        ({"PixelData": None}, Permanent, "pixel-data-missing", "(7FE0,0010)"),
    ],
)  # fmt: skip
def test_unusable_object_is_refused_naming_the_tag(
    tmp_path: Path, change: dict[str, Any], kind: type[NodeError], code: str, tag: str
) -> None:
    if "Rows" in change and change["Rows"] == 24:
        change = {**change, "NumberOfFrames": 1}
    error = failure(written(tmp_path, **change))
    assert (type(error), error.code) == (kind, code)
    assert tag in error.message


def test_colour_samples_in_sixteen_bits_are_refused_by_what_is_wrong(tmp_path: Path) -> None:
    path = written(tmp_path, photometric="RGB", BitsAllocated=16)
    assert "(0028,0100) Bits Allocated is 16" in failure(path).message


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "PALETTE COLOR"])
def test_overlay_in_unused_bits_is_said_to_be_one(tmp_path: Path, photometric: str) -> None:
    """Of a palette they would make every value beside its last one."""
    ds = make_us_instance(photometric=photometric)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 8, 7
    ds.PixelData = np.full((48, 64), 0x0180, "<u2").tobytes()
    ds["PixelData"].VR = "OW"
    message = failure(save(ds, tmp_path / "x.dcm")).message
    assert "overlays in unused bits" in message
    assert "16-bit" not in message


def test_photometric_interpretation_is_told_only_where_it_is_a_defined_term(tmp_path: Path) -> None:
    assert "is CMYK; " in failure(written(tmp_path, PhotometricInterpretation="CMYK")).message
    message = failure(written(tmp_path, PhotometricInterpretation="SECRET^NAME")).message
    assert "is unknown; " in message
    assert "SECRET" not in message


def test_missing_instance_uid_is_taken_from_the_file_meta(tmp_path: Path) -> None:
    ds = make_us_instance()
    path = save(ds, tmp_path / "x.dcm")
    wanted = str(ds.SOPInstanceUID)
    del ds.SOPInstanceUID
    ds.save_as(path, enforce_file_format=True)
    assert open_instance(path).dataset.SOPInstanceUID == wanted


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.103", "1.2.840.10008.1.2.4.110"])
def test_video_and_unknown_transfer_syntaxes_are_refused_with_the_remedy(
    tmp_path: Path, syntax: str
) -> None:
    ds = make_us_instance(transfer_syntax=uid.RLELossless)
    ds.file_meta.TransferSyntaxUID = uid.MPEG4HP41BD
    path = tmp_path / "x.dcm"
    path.write_bytes(as_bytes(ds).replace(uid.MPEG4HP41BD.encode(), syntax.encode()))
    error = failure(path)
    assert (type(error), error.code) == (Refused, "transfer-syntax-unsupported")
    assert "(0002,0010)" in error.message


@pytest.mark.parametrize("content", [b"", b"not DICOM at all" * 40, b"\0" * 128 + b"DICM"])
def test_file_that_is_not_dicom_is_a_node_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(NodeError):
        open_instance(path)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless])
def test_truncated_file_is_permanent(tmp_path: Path, syntax: str) -> None:
    whole = as_bytes(make_us_instance(frames=2, transfer_syntax=syntax))
    path = tmp_path / "x.dcm"
    path.write_bytes(whole[: len(whole) - 700])
    error = failure(path)
    assert (type(error), error.code) == (Permanent, "pixel-data-truncated")


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEGLSLossless, uid.JPEG2000Lossless])
def test_damaged_code_stream_is_permanent(tmp_path: Path, syntax: str) -> None:
    ds = make_us_instance()
    coded = encode_frame(speckle(1, 48, 64)[0], syntax)
    ds.file_meta.TransferSyntaxUID = uid.UID(syntax)
    ds.PixelData = encapsulate([coded[: len(coded) // 3]])
    ds["PixelData"].VR = "OB"
    error = failure(save(ds, tmp_path / "x.dcm"))
    assert (type(error), error.code) == (Permanent, "frame-undecodable")


def test_native_pixels_under_a_compressed_label_are_permanent(tmp_path: Path) -> None:
    whole = as_bytes(make_us_instance())
    path = tmp_path / "x.dcm"
    explicit, rle = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"
    assert explicit in whole
    path.write_bytes(whole.replace(explicit, rle))
    assert failure(path).code == "pixel-data-not-encapsulated"


def test_own_output_is_refused(tmp_path: Path) -> None:
    from pydicom.dataset import Dataset

    item, purpose = Dataset(), Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "109102", "DCM"
    item.ManufacturerModelName = MODEL_NAME
    item.PurposeOfReferenceCodeSequence = Sequence([purpose])
    error = failure(written(tmp_path, ContributingEquipmentSequence=Sequence([item])))
    assert (type(error), error.code) == (Refused, "own-output")


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEGLSLossless, uid.JPEG2000Lossless])
@pytest.mark.parametrize("rows", [(32, 48), (48, 32)])
def test_stream_of_another_size_is_permanent(
    tmp_path: Path, syntax: uid.UID, rows: tuple[int, int]
) -> None:
    """Whichever frame it is; a decoder would ask for the memory that the stream states."""
    ds = make_us_instance(frames=2, rows=48, columns=64, transfer_syntax=syntax)
    ds.PixelData = encapsulate([encode_frame(speckle(1, side, 64)[0], syntax) for side in rows])
    with pytest.raises(Permanent, match=r"48 x 64, the JPEG stream is 32 x 64") as caught:
        list(open_instance(save(ds, tmp_path / "x.dcm")).frames())
    assert caught.value.code == "frame-size-differs"


@pytest.mark.parametrize("order", [("MONOCHROME2", 1, 3), ("YBR_FULL_422", 3, 1)])
def test_grey_and_coloured_streams_in_one_cine_are_permanent(
    tmp_path: Path, order: tuple[str, int, int]
) -> None:
    """Frames of another size would be written one into the other."""
    photometric, *samples = order
    grey = speckle(1, 48, 64)[0]
    streams = [
        jpeg(grey if count == 1 else np.repeat(grey[..., None], 3, axis=2), mode="raw")
        for count in samples
    ]
    ds = make_us_instance(frames=2, photometric=photometric)
    ds.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    ds.PixelData = encapsulate(streams)
    ds["PixelData"].VR = "OB"
    error = failure(save(ds, tmp_path / "x.dcm"))
    assert (type(error), error.code) == (Permanent, "frame-samples-differ")


def test_stream_of_twelve_bits_is_skipped_whatever_the_header_says(tmp_path: Path) -> None:
    ds = make_us_instance(transfer_syntax=uid.JPEGExtended12Bit)
    frame_header = b"\xff\xc0\x00\x0b"
    assert ds.PixelData.count(frame_header) == 1
    ds.PixelData = ds.PixelData.replace(frame_header + b"\x08", b"\xff\xc1\x00\x0b\x0c")
    error = failure(save(ds, tmp_path / "x.dcm"))
    assert (type(error), error.code) == (Refused, "bits-unsupported")


def test_nonsense_value_representation_is_mended(tmp_path: Path) -> None:
    path = written(tmp_path, LossyImageCompression="00")
    whole = path.read_bytes()
    assert b"\x28\x00\x10\x21CS" in whole
    path.write_bytes(whole.replace(b"\x28\x00\x10\x21CS", b"\x28\x00\x10\x21C\xff"))
    assert open_instance(path).dataset.LossyImageCompression == "00"

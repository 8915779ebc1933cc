"""Builders of test objects: ultrasound data sets with speckle in them, in any encoding.

`make_us_instance` builds a data set, `write_us_instance` a file. Both are deterministic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread, dcmwrite, uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import get_encoder

from dicom_node.records import BundleInfo

US_IMAGE = uid.UltrasoundImageStorage
US_MULTI_FRAME = uid.UltrasoundMultiFrameImageStorage
ROOT = "1.2.826.0.1.3680043.10.1000"
"""Root of the UIDs in tests."""
Pixels = NDArray[np.uint8]


def speckle(frames: int, rows: int, columns: int, seed: int = 0) -> Pixels:
    """B-mode like frames: Rayleigh speckle over a slow echogenicity, changing from frame to frame.

    Returns
    -------
    ndarray, (frames, rows, columns), uint8
    """
    random = np.random.default_rng(seed)
    slow = 70 + 40 * np.sin(np.linspace(0, 6, columns))[None, :] * np.ones((rows, 1))
    envelope = random.rayleigh(0.8, (frames, rows, columns))
    return np.clip(slow * envelope, 1, 230).astype(np.uint8)


def region(
    left: int, top: int, right: int, bottom: int, *, spatial_format: int = 1, data_type: int = 1
) -> Dataset:
    """An item of (0018,6011) *Sequence of Ultrasound Regions*; bounds are inclusive."""
    item = Dataset()
    item.RegionSpatialFormat = spatial_format
    item.RegionDataType = data_type
    item.RegionFlags = 2
    item.RegionLocationMinX0, item.RegionLocationMinY0 = left, top
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = right, bottom
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
    item.PhysicalDeltaX = item.PhysicalDeltaY = 0.02
    return item


def make_us_instance(
    *,
    frames: int = 1,
    rows: int = 48,
    columns: int = 64,
    photometric: str = "MONOCHROME2",
    transfer_syntax: str = uid.ExplicitVRLittleEndian,
    multi_frame: bool | None = None,
    planar: int = 0,
    regions: Sequence[Dataset] | None = None,
    pixels: Pixels | None = None,
    patient: str = "Tester^Terry",
    study: int = 1,
    series: int = 1,
    instance: int = 1,
    seed: int = 0,
    **attributes: Any,
) -> FileDataset:
    """A US Image or US Multi-frame Image data set that dciodvfy has nothing against.

    Parameters
    ----------
    photometric : str
        MONOCHROME1, MONOCHROME2, RGB, YBR_FULL, YBR_FULL_422 or PALETTE COLOR.
    transfer_syntax : str
        Any that `dicom_node.pixels.codecs` decodes.
    multi_frame : bool, optional
        SOP class; by default whether there is more than one frame.
    regions : sequence of Dataset, optional
        Items of `region`; by default one B-mode region over the whole image. Empty for none.
    pixels : ndarray, optional
        (frames, rows, columns[, 3]) stored values in the stated colour model; speckle by default.
    study, series, instance : int
        Last components of the UIDs, and the numbers.
    attributes : dict
        Set last; None removes one.
    """
    multi_frame = frames > 1 if multi_frame is None else multi_frame
    colour = photometric.startswith(("RGB", "YBR"))
    if pixels is None:
        grey = speckle(frames, rows, columns, seed)
        pixels = _stored(grey, photometric)
    frames, rows, columns = pixels.shape[:3]
    ds = _header(multi_frame, patient, study, series, instance)
    if multi_frame or frames > 1:
        ds.NumberOfFrames = frames
        ds.FrameTime = "33.3"
        ds.FrameIncrementPointer = 0x00181063
    ds.Rows, ds.Columns = rows, columns
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.PhotometricInterpretation = photometric
    ds.SamplesPerPixel = 3 if colour else 1
    if colour:
        ds.PlanarConfiguration = planar
    if photometric == "PALETTE COLOR":
        add_palette(ds)
    if regions is None:
        regions = [region(0, 0, columns - 1, rows - 1)]
    if regions:
        ds.SequenceOfUltrasoundRegions = list(regions)
    set_pixels(ds, pixels, transfer_syntax)
    for keyword, value in attributes.items():
        if value is None:
            del ds[keyword]
        else:
            setattr(ds, keyword, value)
    return ds


def write_us_instance(path: Path, **options: Any) -> Path:
    """`make_us_instance` as a file; returns the path."""
    return save(make_us_instance(**options), path)


def save(ds: FileDataset, path: Any) -> Any:
    """Write a data set in the encoding of its own transfer syntax."""
    syntax = uid.UID(ds.file_meta.TransferSyntaxUID)
    for keyword in ("SOPClassUID", "SOPInstanceUID"):
        if keyword in ds:
            setattr(ds.file_meta, f"MediaStorage{keyword}", ds[keyword].value)
    for tag in list(ds.keys()):
        ds[tag]  # parse: raw elements would keep the byte order that they were read in
    dcmwrite(
        path,
        ds,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
        enforce_file_format=True,
    )
    return path


def as_bytes(ds: FileDataset) -> bytes:
    """The file that `save` would write."""
    buffer = BytesIO()
    save(ds, buffer)
    return buffer.getvalue()


def add_palette(ds: Dataset, *, coloured: int | None = None) -> None:
    """A 256-entry, 16-bit palette: a grey ramp, with one entry red if asked."""
    ramp = np.arange(256, dtype="<u2") * 257
    for index, colour in enumerate(("Red", "Green", "Blue")):
        table = ramp.copy()
        if coloured is not None:
            table[coloured] = 0xFFFF if index == 0 else 0
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(ds, f"{colour}PaletteColorLookupTableData", table.tobytes())


def set_pixels(ds: FileDataset, pixels: Pixels, transfer_syntax: str) -> None:
    """Put stored values into a data set, encoded for a transfer syntax.

    Parameters
    ----------
    pixels : ndarray, (frames, rows, columns[, 3]), uint8
    """
    syntax = uid.UID(transfer_syntax)
    ds.file_meta.TransferSyntaxUID = syntax
    if syntax.is_encapsulated:
        coded = [encode_frame(frame, str(syntax)) for frame in pixels]
        ds.PixelData = encapsulate(coded)
        ds["PixelData"].VR = "OB"
        return
    if ds.PhotometricInterpretation == "YBR_FULL_422":
        first, second = pixels[:, :, 0::2], pixels[:, :, 1::2]
        quads = np.stack([first[..., 0], second[..., 0], first[..., 1], first[..., 2]], axis=-1)
        data = quads.tobytes()
    elif ds.get("PlanarConfiguration") == 1:
        data = np.moveaxis(pixels, -1, 1).tobytes()
    else:
        data = pixels.tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB"


def encode_frame(frame: Pixels, syntax: str) -> bytes:
    """One compressed frame; samples are coded as they come, whatever they mean."""
    if syntax in {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit}:
        return jpeg(frame)
    plugin = {
        uid.RLELossless: "pydicom",
        uid.JPEGLSLossless: "pyjpegls",
        uid.JPEGLSNearLossless: "pyjpegls",
        uid.JPEG2000Lossless: "pylibjpeg",
    }[uid.UID(syntax)]
    options: dict[str, Any] = {
        "rows": frame.shape[0],
        "columns": frame.shape[1],
        "samples_per_pixel": 1 if frame.ndim == 2 else 3,
        "number_of_frames": 1,
        "bits_allocated": 8,
        "bits_stored": 8,
        "pixel_representation": 0,
        "photometric_interpretation": "RGB" if frame.ndim == 3 else "MONOCHROME2",
        "planar_configuration": 0,
    }
    if syntax == uid.JPEGLSNearLossless:
        options["jls_error"] = 0
    return bytes(
        get_encoder(uid.UID(syntax)).encode(frame.tobytes(), encoding_plugin=plugin, **options)
    )


def jpeg(frame: Pixels, mode: str | None = None, **options: Any) -> bytes:
    """A baseline JPEG by Pillow: grey, or YCbCr with a JFIF marker from RGB input.

    ``mode="raw"`` codes three samples as they are, as RGB with an Adobe marker.
    """
    buffer = BytesIO()
    image = Image.fromarray(frame)
    if mode == "raw":
        options["keep_rgb"] = True
    image.save(buffer, "JPEG", quality=95, **{"subsampling": 0, **options})
    return buffer.getvalue()


class MedianDespeckler:
    """A stand-in for the student: a 3 x 3 median, and one frame of look-ahead.

    Attributes
    ----------
    seen : list of ndarray
        The luminances that came in.
    """

    bundle = BundleInfo(
        name="median",
        version="1.0",
        device_uid=f"{ROOT}.99.1",
        weights_sha256="0123456789abcdef" * 4,
        runtime="numpy cpu",
    )

    def __init__(self) -> None:
        self.seen: list[Pixels] = []

    def fingerprint(self, strength: float) -> str:
        return f"median|{strength}"

    def frames(
        self,
        luminances: Iterable[Pixels],
        strength: float,
        tissue: Any = None,  # noqa: ARG002
    ) -> Iterator[Pixels]:
        waiting: list[Pixels] = []
        for frame in luminances:
            self.seen.append(frame.copy())
            waiting.append(frame)
            if len(waiting) > 1:
                yield self._filtered(waiting.pop(0), strength)
        for frame in waiting:
            yield self._filtered(frame, strength)

    @staticmethod
    def _filtered(frame: Pixels, strength: float) -> Pixels:
        padded = np.pad(frame, 1, mode="edge")
        rows, columns = frame.shape
        windows = [padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
        median = np.median(windows, axis=0)
        return np.rint(frame + strength * (median - frame)).astype(np.uint8)


def _stored(grey: Pixels, photometric: str) -> Pixels:
    """Grey frames as stored values of a photometric interpretation."""
    if photometric == "MONOCHROME1":
        return ~grey
    if photometric == "RGB":
        return np.repeat(grey[..., None], 3, axis=-1)
    if photometric.startswith("YBR"):
        chroma = np.full_like(grey, 128)
        return np.stack([grey, chroma, chroma], axis=-1)
    return grey


def _header(multi_frame: bool, patient: str, study: int, series: int, instance: int) -> FileDataset:
    """All modules but the pixels."""
    meta = FileMetaDataset()
    ds = FileDataset("", Dataset(), file_meta=meta, preamble=b"\0" * 128)
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "ABDOMINAL", "0001"]
    ds.SOPClassUID = US_MULTI_FRAME if multi_frame else US_IMAGE
    ds.SOPInstanceUID = f"{ROOT}.{study}.{series}.{instance}"
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = ds.AcquisitionDate = "20240102"
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = ds.AcquisitionTime = "030405"
    ds.AccessionNumber = "A1"
    ds.Modality = "US"
    ds.Manufacturer = "Scanner Makers"
    ds.ManufacturerModelName = "Scanner 9"
    ds.SoftwareVersions = "3.1"
    ds.DeviceSerialNumber = "SN1"
    ds.StationName = "ROOM1"
    ds.ReferringPhysicianName = ""
    ds.StudyDescription = "Abdomen"
    ds.SeriesDescription = "Liver"
    ds.PatientName = patient
    ds.PatientID = "P1"
    ds.PatientBirthDate = "19700101"
    ds.PatientSex = "O"
    ds.StudyInstanceUID = f"{ROOT}.{study}"
    ds.SeriesInstanceUID = f"{ROOT}.{study}.{series}"
    ds.StudyID = str(study)
    ds.SeriesNumber = series
    ds.InstanceNumber = instance
    ds.PatientOrientation = ""
    ds.Laterality = ""
    ds.LossyImageCompression = "00"
    return ds


def write_series(folder: Path, count: int, **options: Any) -> list[Path]:
    """Files of one series, instances 1 to `count`; see `write_us_instance`."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        write_us_instance(folder / f"{number}.dcm", instance=number, seed=number, **options)
        for number in range(1, count + 1)
    ]


def uid_of(path: Path) -> str:
    """(0008,0018) *SOP Instance UID* of a file."""
    return str(dcmread(path, stop_before_pixels=True).SOPInstanceUID)

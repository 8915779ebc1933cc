"""File -> frames, one at a time, in bounded memory, as a viewer would show them.

PS3.3 C.7.6.3 (Image Pixel), PS3.5 8 and A. Photometric interpretations, transfer syntaxes
and frame counts are repaired where the data leave no doubt, and refused with a reason else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom import FileDataset, uid

from dicom_node.attributes.intake import check_kind, inflate, read_header, readable
from dicom_node.errors import Permanent
from dicom_node.pixels import codecs, pixelfile
from dicom_node.pixels.colour import Frame, Palette, expand_422, read_palette, ybr_to_rgb
from dicom_node.pixels.layout import (
    COLOUR,
    bits_unsupported,
    coded_extents,
    frame_size,
    native_extents,
    read_layout,
)


@dataclass(frozen=True)
class Geometry:
    """Shape and colour of the frames that a `Decoder` yields."""

    frames: int
    rows: int
    columns: int
    colour: bool
    """Frames are (rows, columns, 3) RGB; else (rows, columns) grey. Always uint8."""
    inverted: bool = False
    """MONOCHROME1: grey frames whose largest value is black."""


class Decoder:
    """An opened object. Yields its frames in order, as often as asked.

    Attributes
    ----------
    dataset : pydicom.FileDataset
        Everything before (7FE0,0010) *Pixel Data*, as read, `file_meta` included.
    geometry : Geometry
    """

    def __init__(
        self,
        path: Path,
        dataset: FileDataset,
        unpacked: BinaryIO | None,
        element: pixelfile.PixelElement,
    ) -> None:
        self.dataset = dataset
        self.transfer_syntax = str(dataset.file_meta.TransferSyntaxUID)
        self._path = path
        self._unpacked = unpacked
        self._element = element
        rows, columns = frame_size(dataset)
        self._layout = read_layout(dataset, element, rows * columns)
        with self._opened() as file:
            if element.length is None:
                self._extents = coded_extents(file, dataset, element)
            else:
                self._extents = native_extents(dataset, element, self._layout)
            first = self._stored(file, 0)
        self._check_size(first)
        stream = codecs.read_stream(self.transfer_syntax, first)
        self._precision = stream.precision if stream else 8
        self._repair(stream)
        mixed = codecs.comes_out_as_rgb(self.transfer_syntax, first)
        if mixed and self._layout.photometric in COLOUR:
            self._layout = replace(self._layout, photometric="RGB")
        self._record_lossy(codecs.lossy_method(self.transfer_syntax, first))
        photometric = self._layout.photometric
        self.geometry = Geometry(
            frames=len(self._extents),
            rows=rows,
            columns=columns,
            colour=photometric in COLOUR,
            inverted=photometric == "MONOCHROME1",
        )
        self._palette: Palette | None = None
        if photometric == "PALETTE COLOR":
            self._palette = read_palette(
                dataset, self._layout.bits_allocated, little_endian=self._layout.little_endian
            )
            colour = self._shows_colour(self._palette)
            self.geometry = Geometry(len(self._extents), rows, columns, colour=colour)

    def frames(self) -> Iterator[Frame]:
        """All frames in order, decoded one at a time.

        Yields
        ------
        ndarray, (rows, columns) or (rows, columns, 3), uint8
            Never shared with the decoder: the caller may write to it.

        Raises
        ------
        Permanent
            ``frame-undecodable`` or ``bits-unsupported``.
        """
        with self._opened() as file:
            for index in range(self.geometry.frames):
                yield self._displayed(self._samples(file, index))

    def frame(self, index: int) -> Frame:
        """One frame; see `frames`."""
        with self._opened() as file:
            return self._displayed(self._samples(file, index))

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        if self._unpacked is not None:
            yield self._unpacked
        else:
            with self._path.open("rb") as file:
                yield file

    def _check_size(self, stored: bytes) -> None:
        """Hold a code stream to the size of the image before it is decoded."""
        rows, columns = frame_size(self.dataset)
        stated = codecs.stated_size(self.transfer_syntax, stored)
        if stated and stated != (rows, columns):
            raise Permanent(
                "frame-size-differs",
                f"(0028,0010) Rows and (0028,0011) Columns are {rows} x {columns}, the JPEG stream "
                f"is {stated[0]} x {stated[1]}; correct the one or send the object again",
            )

    def _check_samples(self, samples: NDArray[Any]) -> None:
        """Hold a decoded frame to the samples per pixel of the first one."""
        found = samples.shape[2] if samples.ndim == 3 else 1  # noqa: PLR2004
        if found != self._layout.samples:
            raise Permanent(
                "frame-samples-differ",
                f"a frame of (7FE0,0010) Pixel Data has {found} samples per pixel, the first one "
                f"{self._layout.samples}; send grey and coloured frames as objects of their own",
            )

    def _repair(self, stream: codecs.Stream | None) -> None:
        """Let a JPEG stream correct what the data set says of colours and samples."""
        if stream is None:
            return
        if stream.precision > 8 and self._layout.photometric != "PALETTE COLOR":  # noqa: PLR2004
            raise bits_unsupported(f"the JPEG stream has {stream.precision}-bit samples")
        self._layout = replace(
            self._layout,
            photometric=stream.colour_model(self._layout.photometric),
            samples=len(stream.components),
        )

    def _record_lossy(self, method: str | None) -> None:
        """Supply the lossy history where the pixels themselves prove it, PS3.3 C.7.6.1.1.5."""
        if method is None or self.dataset.get("LossyImageCompression") == "01":
            return
        geometry_bytes = self._layout.samples * self._layout.bits_allocated // 8
        rows, columns = frame_size(self.dataset)
        compressed = sum(length for frame in self._extents for _, length in frame)
        ratio = rows * columns * geometry_bytes * len(self._extents) / max(compressed, 1)
        self.dataset.LossyImageCompression = "01"
        self.dataset.LossyImageCompressionRatio = f"{ratio:.2f}"
        self.dataset.LossyImageCompressionMethod = method

    def _stored(self, file: BinaryIO, index: int) -> bytes:
        """The bytes of one frame as stored."""
        parts = []
        for offset, length in self._extents[index]:
            lead = (offset - self._element.offset) % 2 if self._layout.swap_pairs else 0
            file.seek(offset - lead)
            data = file.read(length + lead)
            if self._layout.swap_pairs:
                data += file.read(len(data) % 2) or b"\0" * (len(data) % 2)
                data = np.frombuffer(data, np.uint16).byteswap().tobytes()[lead : lead + length]
            if len(data) < length:
                raise pixelfile.truncated(self._element.available, None)
            parts.append(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _samples(self, file: BinaryIO, index: int) -> NDArray[Any]:
        """One frame in the colour model of the layout, DCT JPEG in RGB already."""
        layout, geometry = self._layout, self.geometry
        stored = self._stored(file, index)
        rows, columns = geometry.rows, geometry.columns
        if self.transfer_syntax in codecs.ENCAPSULATED:
            return self._decoded(stored)
        if layout.bits_allocated == 16:  # noqa: PLR2004
            kind = "<u2" if layout.little_endian else ">u2"
            return np.frombuffer(stored, kind).astype(np.uint16).reshape(rows, columns)
        flat = np.frombuffer(stored, np.uint8)
        if layout.photometric == "YBR_FULL_422":
            return ybr_to_rgb(expand_422(flat, rows, columns))
        if layout.samples == 1:
            return flat.reshape(rows, columns)
        if layout.planar == 1:
            pixels = np.moveaxis(flat.reshape(3, rows, columns), 0, -1)
        else:
            pixels = flat.reshape(rows, columns, 3)
        return ybr_to_rgb(pixels) if layout.photometric == "YBR_FULL" else pixels

    def _decoded(self, stored: bytes) -> NDArray[Any]:
        """One frame of a code stream; see `_samples`."""
        syntax, layout, geometry = self.transfer_syntax, self._layout, self.geometry
        self._check_size(stored)
        libjpeg = codecs.uses_libjpeg(syntax, self._precision)
        if libjpeg:
            samples = codecs.decode_jpeg(
                syntax, stored, geometry.rows, geometry.columns, layout.photometric
            )
        else:
            samples = codecs.decode_frame(
                syntax,
                stored,
                (geometry.rows, geometry.columns),
                samples=layout.samples,
                bits=layout.bits_allocated,
                precision=self._precision,
            )
        self._check_samples(samples)
        if libjpeg and not codecs.comes_out_as_stored(syntax):
            return samples
        return ybr_to_rgb(samples) if layout.photometric.startswith("YBR_FULL") else samples

    def _displayed(self, samples: NDArray[Any]) -> Frame:
        """Stored values to grey or RGB."""
        wide = samples.dtype != np.uint8
        if wide and samples.max(initial=0) >> self._layout.bits_stored:
            raise bits_unsupported(
                f"(7FE0,0010) Pixel Data uses more than the {self._layout.bits_stored} bits of "
                "(0028,0101) Bits Stored, as overlays in unused bits do (retired)"
            )
        if self._palette is not None:
            colours = self._palette.colours
            frame: Frame = colours[samples] if self.geometry.colour else colours[samples, 0]
            return frame
        return samples.astype(np.uint8) if wide else samples.copy(order="C")

    def _shows_colour(self, palette: Palette) -> bool:
        """Whether any pixel of any frame uses a coloured palette entry."""
        coloured: NDArray[np.bool_] = palette.coloured
        if not coloured.any():
            return False
        with self._opened() as file:
            return any(
                bool(coloured[self._samples(file, index)].any())
                for index in range(self.geometry.frames)
            )


def open_instance(path: Path, work_directory: Path | None = None) -> Decoder:
    """Open an ultrasound object and check everything that can be checked before decoding.

    Parameters
    ----------
    path : Path
    work_directory : Path, optional
        Holds what a deflated object inflates to, by default the system's temporary folder.

    Raises
    ------
    Refused
        Not DICOM, not an ultrasound image, the node's own output, no frames, an
        unsupported transfer syntax, photometric interpretation or bit depth.
    Permanent
        Missing UIDs, truncated, contradictory or undecodable pixel data.
    """
    with path.open("rb") as file, readable():
        unpacked: BinaryIO | None = None
        source: BinaryIO = file
        dataset = read_header(source)
        if dataset.file_meta.TransferSyntaxUID == uid.DeflatedExplicitVRLittleEndian:
            unpacked = inflate(path, work_directory)
            source = unpacked
            dataset = read_header(source)
        syntax = dataset.file_meta.TransferSyntaxUID
        codecs.require_supported(str(syntax))
        position = source.tell()
        check_kind(dataset)
        source.seek(position)  # deferred elements may have moved it
        element = pixelfile.read_header(
            source, implicit=syntax.is_implicit_VR, little_endian=syntax.is_little_endian
        )
        return Decoder(path, dataset, unpacked, element)

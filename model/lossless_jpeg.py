"""Lossless JPEG of 8 bits for pydicom, by the libjpeg-turbo of Pillow.

Of the libraries that pydicom knows only GDCM decodes it, which ends the process at some damaged
streams. A plug-in as pydicom asks for it: `is_available`, `DECODER_DEPENDENCIES`, a function.
"""

from __future__ import annotations

from io import BytesIO

from PIL import Image, features
from pydicom import uid
from pydicom.pixels.decoders.base import (
    DecodeRunner,
    JPEGLosslessDecoder,
    JPEGLosslessSV1Decoder,
)

PLUGIN = "libjpeg"
"""As `pydicom.pixels.utils.pixel_array` takes it, once this module is imported."""
DECODER_DEPENDENCIES = {
    uid.JPEGLossless: ("pillow with libjpeg-turbo>=3.0",),
    uid.JPEGLosslessSV1: ("pillow with libjpeg-turbo>=3.0",),
}
_LEAST_MAJOR = 3


def is_available(syntax: str) -> bool:
    """Whether Pillow's libjpeg knows lossless JPEG, as that of its wheels does."""
    version = features.version("libjpeg_turbo") or "0"
    return syntax in DECODER_DEPENDENCIES and int(version.split(".")[0]) >= _LEAST_MAJOR


def decode(stream: bytes, runner: DecodeRunner) -> bytes:
    """Samples of one frame as they are stored, colour by pixel.

    Raises
    ------
    OSError, SyntaxError, ValueError
        The stream is damaged, of more than 8 bits or of another size than its object.
    """
    with Image.open(BytesIO(stream), formats=("JPEG",)) as image:
        if image.size != (runner.columns, runner.rows):
            raise ValueError("the stream has another frame size")
        if image.mode == "RGB":  # or else libjpeg takes three components for YCbCr
            image.tile = [tile._replace(args=("RGB", "RGB")) for tile in image.tile]
        elif image.mode != "L":
            raise ValueError(f"colour mode {image.mode}")
        return image.tobytes()


for _decoder in (JPEGLosslessDecoder, JPEGLosslessSV1Decoder):
    _decoder.add_plugin(PLUGIN, (__name__, decode.__name__))

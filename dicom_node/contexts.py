"""Which SOP classes and transfer syntaxes the receiver accepts, and in which order.

PS3.4 B.5 (SOP classes), PS3.5 annex A (transfer syntaxes), PS3.8 9.3.3 (the acceptor picks one
of the transfer syntaxes proposed in a presentation context).
"""

from __future__ import annotations

from typing import Final

from pydicom import uid
from pynetdicom.presentation import AllStoragePresentationContexts

US_IMAGE: Final = uid.UltrasoundImageStorage
US_MULTIFRAME: Final = uid.UltrasoundMultiFrameImageStorage
US_IMAGE_RETIRED: Final = uid.UID("1.2.840.10008.5.1.4.1.1.6")
US_MULTIFRAME_RETIRED: Final = uid.UID("1.2.840.10008.5.1.4.1.1.3")
ULTRASOUND: Final = frozenset({US_IMAGE, US_MULTIFRAME, US_IMAGE_RETIRED, US_MULTIFRAME_RETIRED})
"""SOP classes that the node processes."""

TRANSFER_SYNTAXES: Final = (
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEGLSNearLossless,
    uid.JPEG2000Lossless,
    uid.JPEG2000,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.HTJ2K,
    uid.RLELossless,
    uid.MPEG2MPML,
    uid.MPEG2MPMLF,
    uid.MPEG2MPHL,
    uid.MPEG2MPHLF,
    uid.MPEG4HP41,
    uid.MPEG4HP41F,
    uid.MPEG4HP41BD,
    uid.MPEG4HP41BDF,
    uid.MPEG4HP422D,
    uid.MPEG4HP422DF,
    uid.MPEG4HP423D,
    uid.MPEG4HP423DF,
    uid.HEVCMP51,
    uid.HEVCM10P51,
    uid.ExplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
)
"""In the order of preference. The acceptor's order wins: were the uncompressed ones first, a
scanner would inflate a JPEG cine that it holds."""


def storage_classes(*, others: bool) -> list[str]:
    """The storage SOP Class UIDs to accept.

    Parameters
    ----------
    others : bool
        Also every other storage SOP class: they are acknowledged and skipped, so that a
        sender that pushes whole studies sees no failure.
    """
    classes = sorted(map(str, ULTRASOUND))
    if others:
        known = {str(context.abstract_syntax) for context in AllStoragePresentationContexts}
        classes += sorted(known.difference(classes))
    return classes

"""Which SOP classes and transfer syntaxes the receiver accepts, and in which order.

PS3.4 B.5 (SOP classes), PS3.5 annex A (transfer syntaxes), PS3.8 9.3.3 (the acceptor picks one
of the transfer syntaxes proposed in a presentation context).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from typing import Final

from pydicom import uid
from pynetdicom import DEFAULT_TRANSFER_SYNTAXES
from pynetdicom.pdu_primitives import SOPClassCommonExtendedNegotiation
from pynetdicom.presentation import AllStoragePresentationContexts, PresentationContext
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    Verification,
)

US_IMAGE: Final = uid.UltrasoundImageStorage
US_MULTIFRAME: Final = uid.UltrasoundMultiFrameImageStorage
US_IMAGE_RETIRED: Final = uid.UID("1.2.840.10008.5.1.4.1.1.6")
US_MULTIFRAME_RETIRED: Final = uid.UID("1.2.840.10008.5.1.4.1.1.3")
ULTRASOUND: Final = frozenset({US_IMAGE, US_MULTIFRAME, US_IMAGE_RETIRED, US_MULTIFRAME_RETIRED})
"""SOP classes that the node processes."""

_STORAGE_SERVICE: Final = uid.UID("1.2.840.10008.4.2")
_STORAGE_ROOT: Final = "1.2.840.10008.5.1.4.1.1."
"""What the UIDs of all composite storage classes start with, retired ones too."""
_KNOWN: Final = frozenset(
    str(context.abstract_syntax) for context in AllStoragePresentationContexts
)
"""Storage classes that pynetdicom knows."""

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


class _AcceptedContext(PresentationContext):
    """A context that copies fast: pynetdicom copies every one of them for every association."""

    def __deepcopy__(self, memo: dict[int, object]) -> PresentationContext:
        twin = copy(self)
        twin._transfer_syntax = list(self._transfer_syntax)  # noqa: SLF001 - UIDs are immutable
        return twin


def accepted_contexts(*, other_storage: bool) -> list[PresentationContext]:
    """Every presentation context that the receiver accepts.

    Parameters
    ----------
    other_storage : bool
        Also every storage SOP class of today that is not ultrasound: they are acknowledged and
        skipped, so that a sender that pushes whole studies sees no failure.
    """
    classes = sorted(map(str, ULTRASOUND))
    if other_storage:
        classes += sorted(_KNOWN.difference(classes))
    return [*(_context(each, TRANSFER_SYNTAXES) for each in classes), *contexts_but_storage()]


def contexts_but_storage() -> list[PresentationContext]:
    """What a caller that may not store is served with."""
    commitment = _context(StorageCommitmentPushModel, DEFAULT_TRANSFER_SYNTAXES)
    # The archive is the SCP of the service that opens an association to report to us, its SCU.
    commitment.scu_role = commitment.scp_role = True
    return [_context(Verification, DEFAULT_TRANSFER_SYNTAXES), commitment]


def unlisted_contexts(proposed: Iterable[PresentationContext]) -> list[PresentationContext]:
    """Contexts for proposed storage classes that no list has: retired and private ones.

    A private class may be of another service than storage; then its first request ends the
    association, as it would at any acceptor of unknown classes.
    """
    classes = {str(each.abstract_syntax) for each in proposed}.difference(_KNOWN, ULTRASOUND)
    return [_context(each, TRANSFER_SYNTAXES) for each in sorted(classes) if _may_be_storage(each)]


def served_as_storage(
    proposed: Iterable[PresentationContext],
) -> dict[uid.UID, SOPClassCommonExtendedNegotiation]:
    """Storage classes that pynetdicom does not know, by the service that it is to treat them as.

    Without that it accepts their contexts and ends the association at the first C-STORE.
    """
    classes = {str(each.abstract_syntax) for each in proposed}.difference(_KNOWN)
    return {uid.UID(each): _of_storage(each) for each in classes if _may_be_storage(each)}


def _may_be_storage(sop_class: str) -> bool:
    return sop_class.startswith(_STORAGE_ROOT) or uid.UID(sop_class).is_private


def _of_storage(sop_class: str) -> SOPClassCommonExtendedNegotiation:
    item = SOPClassCommonExtendedNegotiation()
    item.sop_class_uid = uid.UID(sop_class)
    item.service_class_uid = _STORAGE_SERVICE
    return item


def _context(abstract_syntax: str, transfer_syntaxes: Sequence[str]) -> PresentationContext:
    context = _AcceptedContext()
    context.abstract_syntax = uid.UID(abstract_syntax)
    context.transfer_syntax = [uid.UID(each) for each in transfer_syntaxes]
    return context

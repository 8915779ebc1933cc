"""DIMSE statuses that the node answers with or judges, by name; no other module spells one.

PS3.4 B.2.3 (C-STORE), PS3.4 J.3 (Storage Commitment) and PS3.7 annex C (general statuses).
"""

from __future__ import annotations

from enum import IntEnum, StrEnum


class StoreStatus(IntEnum):
    """(0000,0900) *Status* of C-STORE, C-ECHO, N-ACTION and N-EVENT-REPORT responses."""

    SUCCESS = 0x0000
    """PS3.7 C.1.1."""
    ATTRIBUTE_LIST_ERROR = 0x0107
    """Warning, PS3.7 C.4.3."""
    PROCESSING_FAILURE = 0x0110
    """PS3.7 C.5.21."""
    DUPLICATE_INSTANCE = 0x0111
    """The peer holds an instance of this UID already, PS3.7 C.5.8."""
    NO_SUCH_INSTANCE = 0x0112
    """PS3.7 C.5.19; as a failure reason: the archive does not hold it, PS3.3 C.14.1.1."""
    NO_SUCH_EVENT_TYPE = 0x0113
    """PS3.7 C.5.18."""
    ATTRIBUTE_VALUE_OUT_OF_RANGE = 0x0116
    """Warning, PS3.7 C.4.2."""
    CLASS_INSTANCE_CONFLICT = 0x0119
    """PS3.7 C.5.7."""
    MISSING_ATTRIBUTE = 0x0120
    """PS3.7 C.5.13."""
    CLASS_NOT_SUPPORTED = 0x0122
    """PS3.7 C.5.6."""
    NOT_AUTHORISED = 0x0124
    """PS3.7 C.5.20."""
    DUPLICATE_TRANSACTION = 0x0131
    """The commitment Transaction UID is in use, PS3.3 C.14.1.1."""
    RESOURCE_LIMITATION = 0x0213
    """PS3.7 C.5.26."""
    OUT_OF_RESOURCES = 0xA700
    """Refused: out of resources, PS3.4 table B.2-1 (A7xx)."""
    CLASS_MISMATCH = 0xA900
    """Error: data set does not match SOP class, PS3.4 table B.2-1 (A9xx)."""
    COERCED = 0xB000
    """Warning: coercion of data elements, PS3.4 table B.2-1."""
    ELEMENTS_DISCARDED = 0xB006
    """Warning: elements discarded, PS3.4 table B.2-1."""
    CLASS_MISMATCH_WARNING = 0xB007
    """Warning: data set does not match SOP class, PS3.4 table B.2-1."""
    CANNOT_UNDERSTAND = 0xC000
    """Error: cannot understand, PS3.4 table B.2-1 (Cxxx)."""
    CANCELLED = 0xFE00
    """PS3.7 C.2."""
    PENDING = 0xFF00
    """C-FIND: a match follows, PS3.4 table C.4-1."""


class CommitmentEvent(IntEnum):
    """(0000,1002) *Event Type ID* of a Storage Commitment report, PS3.4 J.3.3.1."""

    ALL_SAFE = 1
    FAILURES_EXIST = 2


COMMITMENT_ACTION = 1
"""(0000,1008) *Action Type ID* of a Storage Commitment request, PS3.4 J.3.2.1."""


class Verdict(StrEnum):
    """What the sender of a request makes of the status that it got."""

    SUCCESS = "success"
    WARNING = "warning"
    """Stored, with a remark worth logging."""
    RETRY = "retry"
    """Not stored for a reason that may pass."""
    PARK = "park"
    """Not stored, and a repetition will not help."""


_WARNINGS = frozenset(
    {
        0x0001,  # PS3.7 C.4.1
        StoreStatus.ATTRIBUTE_LIST_ERROR,
        StoreStatus.ATTRIBUTE_VALUE_OUT_OF_RANGE,
        # Our UIDs name pixels uniquely, so a peer that holds the UID holds the object.
        StoreStatus.DUPLICATE_INSTANCE,
    }
)
_RETRIES = frozenset(
    {
        StoreStatus.PROCESSING_FAILURE,
        StoreStatus.NO_SUCH_INSTANCE,
        StoreStatus.DUPLICATE_TRANSACTION,
        StoreStatus.RESOURCE_LIMITATION,
        StoreStatus.CANCELLED,
    }
)


def verdict(status: int) -> Verdict:
    """Judge any status, also of the private ranges that peers use.

    Parameters
    ----------
    status : int
        (0000,0900) *Status* of a response, or (0008,1197) *Failure Reason* of a
        commitment report.
    """
    if status == StoreStatus.SUCCESS:
        return Verdict.SUCCESS
    if status in _WARNINGS or status & 0xF000 == StoreStatus.COERCED:
        return Verdict.WARNING
    if status in _RETRIES or status & 0xFF00 == StoreStatus.OUT_OF_RESOURCES:
        return Verdict.RETRY
    return Verdict.PARK


def describe(status: int) -> str:
    """A status as people look it up: its name where there is one, and its number."""
    try:
        name = StoreStatus(status).name.lower().replace("_", "-")
    except ValueError:
        name = "status"
    return f"{name} (0x{status:04X})"

"""Append-only audit events: who did what to which object, when, and with what outcome.

Event codes follow DICOM PS3.15 A.5.3 where it has one; the outcomes are those of A.5.2. Every
field is a UID, an AE title, a code of ours or a time. There is no field for patient data.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum, StrEnum


class EventName(StrEnum):
    """What happened."""

    APPLICATION_START = "application-start"
    APPLICATION_STOP = "application-stop"
    INSTANCE_RECEIVED = "instance-received"
    INSTANCE_DIFFERS = "instance-differs"
    """The same SOP Instance UID came with other bytes; the first are kept."""
    INSTANCE_SKIPPED = "instance-skipped"
    INSTANCE_DERIVED = "instance-derived"
    SERIES_RELEASED = "series-released"
    INSTANCE_SENT = "instance-sent"
    INSTANCE_SENT_WITH_WARNING = "instance-sent-with-warning"
    """The destination stored it with a Bxxx status (PS3.4 B.2.3)."""
    INSTANCE_ALREADY_HELD = "instance-already-held"
    """After a crash the destination said by C-FIND that it has it."""
    INSTANCE_CONFIRMED = "instance-confirmed"
    COMMITMENT_FAILED = "commitment-failed"
    COMMITMENT_UNAVAILABLE = "commitment-unavailable"
    """Neither Storage Commitment nor C-FIND is offered; the C-STORE status has to do."""
    INSTANCE_PARKED = "instance-parked"
    INSTANCE_COMPLETED = "instance-completed"
    OPERATOR_RETRY = "operator-retry"
    OPERATOR_REDERIVE = "operator-rederive"


class Outcome(IntEnum):
    """Event outcome indicator, PS3.15 A.5.2."""

    SUCCESS = 0
    MINOR_FAILURE = 4
    SERIOUS_FAILURE = 8
    MAJOR_FAILURE = 12


@dataclass(frozen=True, slots=True)
class EventCode:
    """A code of PS3.16 CID 400, scheme DCM."""

    value: str
    meaning: str


APPLICATION_ACTIVITY = EventCode("110100", "Application Activity")
INSTANCES_ACCESSED = EventCode("110103", "DICOM Instances Accessed")
INSTANCES_TRANSFERRED = EventCode("110104", "DICOM Instances Transferred")

_CODES: dict[EventName, EventCode] = {
    EventName.APPLICATION_START: APPLICATION_ACTIVITY,
    EventName.APPLICATION_STOP: APPLICATION_ACTIVITY,
    EventName.OPERATOR_RETRY: APPLICATION_ACTIVITY,
    EventName.OPERATOR_REDERIVE: APPLICATION_ACTIVITY,
    EventName.INSTANCE_DERIVED: INSTANCES_ACCESSED,
    EventName.SERIES_RELEASED: INSTANCES_ACCESSED,
}


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the audit trail. Times are aware, UTC."""

    name: EventName
    at: datetime
    outcome: Outcome = Outcome.SUCCESS
    actor: str = ""
    """AE title or process that acted."""
    destination: str = ""
    """Name of the peer that it went to."""
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    sop_instance_uid: str = ""
    """The source object."""
    derived_instance_uid: str = ""
    detail: str = ""
    """A short code: an error's code, a status, how it was confirmed."""

    @property
    def code(self) -> EventCode:
        """Event identifier of PS3.15 A.5.3."""
        return _CODES.get(self.name, INSTANCES_TRANSFERRED)


def event(name: EventName, **fields: str | Outcome) -> Event:
    """An event of this moment."""
    return Event(name=name, at=datetime.now(UTC), **fields)  # type: ignore[arg-type]

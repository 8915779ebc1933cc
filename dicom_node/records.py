"""Frozen values that pass between the stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Final


class Stage(StrEnum):
    """Where an instance stands; a working stage is named after the module that does it."""

    DERIVE = "derive"
    """Acknowledged and waiting for decode, despeckle and derive, which run as one stream."""
    SEND = "send"
    """The derived file lies in the spool and waits for its series and its destinations."""
    COMMIT = "commit"
    """Every destination has accepted it; confirmation is pending."""
    AUDIT = "audit"
    """Confirmed everywhere; the closing audit event is to be written."""
    DONE = "done"
    """Nothing left to do; the spool may purge the files."""
    SKIPPED = "skipped"
    """Acknowledged and deliberately not processed, with a reason."""
    PARKED = "parked"
    """Given up until an operator retries, with a reason."""


DERIVED_FILE_UNREADABLE: Final = "derived-file-unreadable"
"""Code of the error for a derived file that is gone: a retry derives it anew."""

SOURCE_DAMAGED: Final = "source-damaged"
"""Code of the error for a received file that has changed in the spool: the same bytes mend it."""


class DeliveryState(StrEnum):
    """One derived instance on its way to one destination."""

    PENDING = "pending"
    SENDING = "sending"
    """C-STORE may have been issued; after a crash ask the destination before sending again."""
    SENT = "sent"
    CONFIRMED = "confirmed"
    PARKED = "parked"


@dataclass(frozen=True, slots=True)
class Identity:
    """Identifying attributes of a received object; no patient data."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    transfer_syntax_uid: str


@dataclass(frozen=True, slots=True)
class Arrival:
    """One acknowledged C-STORE, as the receiver hands it to the ledger."""

    identity: Identity
    path: Path
    size: int
    sha256: str
    association: str
    calling_ae: str
    received_at: datetime


@dataclass(frozen=True, slots=True)
class Instance:
    """One row of the ledger."""

    id: int
    identity: Identity
    stage: Stage
    source_path: Path
    size: int
    sha256: str
    calling_ae: str
    received_at: datetime
    attempts: int = 0
    derived_path: Path | None = None
    derived_instance_uid: str | None = None
    derived_series_uid: str | None = None
    error_code: str | None = None
    error: str | None = None
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds spent, by stage name."""
    failing_since: datetime | None = None
    """Of the first failure since the last success; None while nothing failed. Aware, UTC."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One derived instance for one destination."""

    id: int
    instance_id: int
    destination: str
    state: DeliveryState
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    path: Path
    attempts: int = 0
    transaction_uid: str | None = None
    study_instance_uid: str = ""
    source_instance_uid: str = ""
    failing_since: datetime | None = None
    """Of the first failure since the last success; None while nothing failed. Aware, UTC."""


@dataclass(frozen=True, slots=True)
class LastError:
    """A failure as the operator sees it; no patient data."""

    at: datetime
    sop_instance_uid: str
    where: str
    """The stage, or the name of the destination."""
    parked: bool
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Overview:
    """The ledger at a glance."""

    stages: dict[Stage, int]
    reasons: dict[Stage, dict[str, int]]
    """Why instances were skipped, or are parked: counts by error code, the most frequent first."""
    deliveries: dict[str, dict[DeliveryState, int]]
    """Counts by destination, then by state."""
    oldest_waiting: datetime | None
    """Arrival of the oldest instance that is neither done, skipped nor parked. Aware, UTC."""
    open_associations: int
    """Associations that have delivered and are still open."""
    last_errors: tuple[LastError, ...]
    """Newest first."""


@dataclass(frozen=True, slots=True)
class SeriesArrivals:
    """What `assemble` needs to know of one source series. Times are aware, UTC."""

    series_instance_uid: str
    first_arrival: datetime
    last_arrival: datetime
    open_associations: int
    """Associations that delivered into this series and are still open."""
    unsent: int
    """Instances that are not yet released for sending."""


@dataclass(frozen=True, slots=True)
class BundleInfo:
    """The model bundle that changed the pixels, for provenance and identity."""

    name: str
    version: str
    device_uid: str
    weights_sha256: str
    runtime: str
    """Inference runtime, device and precision, such as ``"torch 2.13.0 cpu bfloat16"``."""


@dataclass(frozen=True, slots=True)
class DerivedIdentity:
    """Deterministic identifiers of a derived object."""

    sop_instance_uid: str
    series_instance_uid: str


@dataclass(frozen=True, slots=True)
class PixelReport:
    """What happened to the pixels of one object, over all its frames."""

    frames: int
    changed_share: float
    """Share of all pixels whose value changed, 0 to 1."""
    tissue_share: float
    """Share of all pixels that were allowed to change, 0 to 1."""
    mean_shift: float
    """Mean of (derived - source) over the tissue pixels, in grey levels."""
    region_source: str
    """How the tissue area was found: ``"ultrasound-regions"``, ``"estimated"`` or ``"none"``."""

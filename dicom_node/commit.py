"""Have a destination confirm that it keeps what it was sent, by the best means that it offers.

Storage Commitment Push Model as SCU, PS3.4 J.3: N-ACTION with a Transaction UID, and the answer
by N-EVENT-REPORT, on the same association or on a new one to `receive`. A peer without it is
asked by C-FIND; one without that either is taken at its C-STORE status, and the log says so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, generate_uid
from pynetdicom import evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from dicom_node.config import Settings
from dicom_node.errors import NodeError, Permanent, Transient
from dicom_node.network import query
from dicom_node.network.associate import Context, ContextsRejected, accepts, associate, lost
from dicom_node.network.status import COMMITMENT_ACTION, StoreStatus, Verdict, describe, verdict
from dicom_node.records import Delivery
from dicom_node.service import log

_log = log.get(__name__)
_PUSH_MODEL = Context(str(StorageCommitmentPushModel), str(ImplicitVRLittleEndian))
SAME_ASSOCIATION_WAIT_SECONDS: Final = 2.0
"""How long the association is kept open for a report on it; later ones go to the receiver."""

Means = Literal["commitment", "query", "status"]


class CommitmentUnsupported(Permanent):
    """The peer is no Storage Commitment SCP, or not for this node."""


@dataclass(frozen=True, slots=True)
class Report:
    """Event information of a Storage Commitment report, PS3.4 table J.3-2."""

    transaction_uid: str
    confirmed: frozenset[str]
    """SOP Instance UIDs that the archive has taken responsibility for."""
    failed: Mapping[str, int] = field(default_factory=dict)
    """SOP Instance UID -> (0008,1197) *Failure Reason*."""


TakeReport = Callable[[Report], object]


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What is known of a set of deliveries after asking."""

    means: Means
    transaction_uid: str
    report: Report | None
    """None where the report is still to come."""


def confirm(
    settings: Settings,
    deliveries: Sequence[Delivery],
    asking: Callable[[str], None],
    *,
    wait_here: float = SAME_ASSOCIATION_WAIT_SECONDS,
    unanswered: bool = False,
    other: TakeReport = lambda _report: None,
) -> Confirmation:
    """Ask a destination to confirm deliveries of one derived series.

    Parameters
    ----------
    settings : Settings
        The peer's ``confirm`` says where to begin.
    deliveries : sequence of Delivery
        Accepted by C-STORE; one destination, one derived series.
    asking : callable
        Called with a new Transaction UID, and to be durable when it returns, before the
        peer is asked: its report may reach the receiver before this function returns.
    wait_here : float
        How long to keep the association open for a report on it, in seconds.
    unanswered : bool
        The peer took earlier commitment requests and never reported: ask by C-FIND first.
    other : callable
        Given a report on an earlier transaction that comes meanwhile.

    Raises
    ------
    Transient
        The peer cannot be asked now.
    """
    name = deliveries[0].destination
    peer = settings.peers.get(name)
    means: str = peer.confirm if peer else "commitment"
    transaction_uid = str(generate_uid(prefix=None))
    asking(transaction_uid)
    if means == "commitment" and not unanswered:
        try:
            report = request(settings, name, deliveries, transaction_uid, wait_here, other=other)
            return Confirmation("commitment", transaction_uid, report)
        except (CommitmentUnsupported, ContextsRejected) as error:
            _log.warning("commitment-unavailable", destination=name, code=error.code)
    if means != "none":
        try:
            report = _by_query(settings, deliveries, transaction_uid)
            return Confirmation("query", transaction_uid, report)
        except (query.QueryUnsupported, ContextsRejected) as error:
            _log.warning("query-unavailable", destination=name, code=error.code)
    if unanswered:  # it does offer commitment, so its C-STORE status alone will not do
        try:
            report = request(settings, name, deliveries, transaction_uid, wait_here, other=other)
            return Confirmation("commitment", transaction_uid, report)
        except ContextsRejected as error:  # not any longer
            _log.warning("commitment-unavailable", destination=name, code=error.code)
    everything = frozenset(delivery.sop_instance_uid for delivery in deliveries)
    return Confirmation("status", transaction_uid, Report(transaction_uid, everything))


def request(
    settings: Settings,
    name: str,
    deliveries: Sequence[Delivery],
    transaction_uid: str,
    wait_here: float = SAME_ASSOCIATION_WAIT_SECONDS,
    *,
    other: TakeReport = lambda _report: None,
) -> Report | None:
    """Send N-ACTION, and wait briefly for the report on the same association.

    Returns
    -------
    Report or None
        None where the report is to come on another association, or never.

    Raises
    ------
    Transient
        Not reachable, lost, or a status that may pass.
    CommitmentUnsupported
        The presentation context is rejected, or the request refused for good.
    """
    arrived = threading.Event()
    reports: list[Report] = []

    def on_report(event: evt.Event) -> tuple[int, Dataset | None]:
        report = read_report(event.event_information)
        if report.transaction_uid == transaction_uid:
            reports.append(report)
            arrived.set()
            return int(StoreStatus.SUCCESS), None
        try:
            other(report)
        except NodeError as error:
            _log.error("commitment-report-not-taken", code=error.code, message=error.message)
            return int(StoreStatus.PROCESSING_FAILURE), None
        return int(StoreStatus.SUCCESS), None

    handlers = [(evt.EVT_N_EVENT_REPORT, on_report)]
    with associate(settings, name, (_PUSH_MODEL,), handlers) as association:
        if not accepts(association, _PUSH_MODEL):
            raise CommitmentUnsupported(
                "commitment-not-supported",
                f"peer {name!r} does not accept Storage Commitment; allow it there, or set "
                f'peers.{name}.confirm = "query"',
            )
        answer, _ = association.send_n_action(
            _action(deliveries, transaction_uid),
            COMMITMENT_ACTION,
            StorageCommitmentPushModel,
            StorageCommitmentPushModelInstance,
        )
        if "Status" not in answer:
            raise lost(name)
        _judge(name, answer.Status)
        arrived.wait(wait_here)
    return reports[0] if reports else None


def read_report(information: Dataset) -> Report:
    """Event information -> report; unknown or malformed items are left out.

    An instance named in both sequences counts as failed, also where no reason is given.
    """
    failed = {
        str(item.get("ReferencedSOPInstanceUID", "")): _reason(item)
        for item in information.get("FailedSOPSequence") or ()
    }
    confirmed = {
        str(item.get("ReferencedSOPInstanceUID", ""))
        for item in information.get("ReferencedSOPSequence") or ()
    }
    return Report(
        transaction_uid=str(information.get("TransactionUID", "")),
        confirmed=frozenset(confirmed - failed.keys() - {""}),
        failed={uid: reason for uid, reason in failed.items() if uid},
    )


def _reason(item: Dataset) -> int:
    """(0008,1197) *Failure Reason*; absent, empty or no number, it may as well pass."""
    value = item.get("FailureReason")
    return value if isinstance(value, int) else int(StoreStatus.PROCESSING_FAILURE)


def _action(deliveries: Sequence[Delivery], transaction_uid: str) -> Dataset:
    """Action information of a commitment request, PS3.4 table J.3-1."""
    action = Dataset()
    action.TransactionUID = transaction_uid
    action.ReferencedSOPSequence = [_reference(delivery) for delivery in deliveries]
    return action


def _reference(delivery: Delivery) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = delivery.sop_class_uid
    item.ReferencedSOPInstanceUID = delivery.sop_instance_uid
    return item


def _judge(name: str, status: int) -> None:
    """Raise what the status of the N-ACTION calls for."""
    match verdict(status):
        case Verdict.RETRY:
            raise Transient("commitment-refused", f"peer {name!r} answered {describe(status)}")
        case Verdict.PARK:
            raise CommitmentUnsupported(
                "commitment-not-supported",
                f"peer {name!r} answered the commitment request with {describe(status)}",
            )
        case _:
            return


def _by_query(settings: Settings, deliveries: Sequence[Delivery], transaction_uid: str) -> Report:
    """Confirm by C-FIND; what the peer does not know counts as not held once it had time for it.

    Archives index what they take only after they have answered to it.
    """
    first = deliveries[0]
    found = query.held(
        settings, first.destination, first.study_instance_uid, first.series_instance_uid
    )
    sent = {delivery.sop_instance_uid for delivery in deliveries}
    asked = {each.sop_instance_uid for each in deliveries if each.transaction_uid is not None}
    return Report(
        transaction_uid,
        frozenset(sent & found),
        {uid: int(StoreStatus.NO_SUCH_INSTANCE) for uid in asked - found},
    )

"""The Storage SCP: association policy, C-STORE -> spool -> ledger -> status, C-ECHO, reports.

PS3.4 B (Storage), A (Verification) and J (Storage Commitment, N-EVENT-REPORT); association
rejection by PS3.8 9.3.4. 0x0000 is answered only after the object's bytes and its ledger row
are on the disk; decoding comes later, in another process.
"""

from __future__ import annotations

import ssl
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, Self

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import EventHandlerType
from pynetdicom.pdu_primitives import SOPClassCommonExtendedNegotiation
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]
from pynetdicom.transport import ThreadedAssociationServer

from dicom_node.attributes.header import identity_of, read_header
from dicom_node.attributes.identity import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    is_own_output,
)
from dicom_node.commit import read_report
from dicom_node.config import Settings
from dicom_node.errors import NodeError, Refused, Transient
from dicom_node.ledger import Ledger
from dicom_node.network import reactor, tls
from dicom_node.network.admission import LOCAL_LIMIT, judge, may_send
from dicom_node.network.contexts import (
    ULTRASOUND,
    accepted_contexts,
    contexts_but_storage,
    served_as_storage,
    unlisted_contexts,
)
from dicom_node.network.incoming import IncomingObject, Intake
from dicom_node.network.status import StoreStatus
from dicom_node.records import Arrival
from dicom_node.service import log
from dicom_node.service.listen import cannot_listen
from dicom_node.service.presence import Presence
from dicom_node.spool import Spool

_log = log.get(__name__)
_config.LOG_HANDLER_LEVEL = "none"  # it would format every PDU

_LONGEST_COMMENT: Final = 64
"""(0000,0902) *Error Comment* is LO."""
_SPARE_CONNECTIONS: Final = 256
"""Connections beyond the association limit that may be open without an association."""
_BACKLOG: Final = 128
"""Connections that may wait to be accepted."""
_POLL_SECONDS: Final = 0.05
_LAST_SECONDS: Final = 2.0
"""How long aborted associations may take to end."""


class Receiver:
    """The node's Storage SCP, in threads of this process.

    Parameters
    ----------
    settings : Settings
        ``receive``, ``peers`` and ``node``.
    ledger, spool : Ledger, Spool
        Where arrivals go. The receiver closes neither.
    """

    def __init__(self, settings: Settings, ledger: Ledger, spool: Spool) -> None:
        self._settings = settings
        self._ledger = ledger
        self._spool = spool
        self._presence = Presence(spool, "receivers")
        self._connected: set[Association] = set()
        self._open: set[Association] = set()
        self._lock = threading.Lock()
        self._servers: list[ThreadedAssociationServer] = []
        self._entity = self._application_entity()

    def _application_entity(self) -> AE:
        section = self._settings.receive
        entity = AE(self._settings.node.ae_title)
        entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        entity.maximum_pdu_size = section.max_pdu_bytes
        entity.acse_timeout = section.acse_timeout_seconds
        entity.dimse_timeout = section.dimse_timeout_seconds
        entity.network_timeout = section.network_timeout_seconds
        # pynetdicom counts connections that never ask for an association; `_admit` does not.
        entity.maximum_associations = section.max_associations + _SPARE_CONNECTIONS
        return entity

    def start(self) -> None:
        """Listen; returns when connections are accepted.

        Raises
        ------
        Permanent
            An address cannot be listened on.
        ConfigError
            The certificates for TLS are not usable.
        Transient
            The ledger does not answer.
        """
        section = self._settings.receive
        self._presence.begin()
        for name in self._presence.dead():
            self._ledger.forget_associations(f"{name}/")
            self._presence.bury(name)
        handlers: list[EventHandlerType] = [
            (evt.EVT_CONN_OPEN, self._on_connected),
            (evt.EVT_REQUESTED, self._on_requested),
            (evt.EVT_SOP_COMMON, _on_sop_classes),
            (evt.EVT_ABORTED, _on_aborted),
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_C_ECHO, self._on_echo),
            (evt.EVT_N_EVENT_REPORT, self._on_report),
        ]
        context = tls.serving(self._settings.tls) if section.tls_port else None
        if section.plain:
            self._listen(section.port, "receive.port", handlers)
        if context is not None:
            self._listen(section.tls_port, "receive.tls_port", handlers, context)

    def _listen(
        self,
        port: int,
        key: str,
        handlers: list[EventHandlerType],
        context: ssl.SSLContext | None = None,
    ) -> None:
        section = self._settings.receive
        try:
            server = self._entity.start_server(
                (section.host, port),
                block=False,
                ssl_context=context,
                evt_handlers=handlers,
                contexts=accepted_contexts(other_storage=section.other_sop_classes == "skip"),
            )
        except OSError as error:
            self.stop()
            raise cannot_listen(f"receive.host, {key}", section.host, port, error) from error
        if server is not None and server.socket is not None:
            # pynetdicom lets five connections wait, and a sixth try again after a second.
            server.socket.listen(_BACKLOG)
            self._servers.append(server)
        _log.info("receive-started", host=section.host, port=port, tls=context is not None)

    def stop(self, grace_seconds: float = 5.0) -> None:
        """Accept no more connections, let open associations finish, then abort them."""
        servers, self._servers = self._servers, []
        if not servers:
            return
        for server in servers:
            server.shutdown()
        _wait_until(lambda: not self._open, grace_seconds)
        for association in list(self._connected):
            if association in self._open:
                association.abort(block=False)
            else:
                reactor.hang_up(association)
        _wait_until(lambda: not self._connected, _LAST_SECONDS)
        self._ledger.forget_associations(f"{self._presence.name}/")
        self._presence.end()
        _log.info("receive-stopped")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _on_connected(self, event: evt.Event) -> None:
        """Let the association stream its objects into the spool."""
        association = event.assoc
        name = f"{self._presence.name}/{uuid.uuid4().hex}"
        intake = Intake(association, self._spool, self._check_room, name)
        self._connected.add(association)
        reactor.install(association, intake, lambda: self._on_ended(association, intake))

    def _on_requested(self, event: evt.Event) -> None:
        """Accept or reject an association, PS3.8 9.3.4."""
        association = event.assoc
        request = association.requestor.primitive
        calling = str(request.calling_ae_title if request else "").strip()
        called = str(request.called_ae_title if request else "").strip()
        address = association.requestor.address or ""
        try:
            refused = judge(self._settings, calling, called, address)
            if refused is None and not _may_report(association):
                self._check_room()  # what a PACS confirms makes room
        except Transient as error:
            _log.error("receive-unable", code=error.code, message=error.message)
            refused = LOCAL_LIMIT
        with self._lock:
            if refused is None and len(self._open) >= self._settings.receive.max_associations:
                refused = LOCAL_LIMIT
            if refused is None:
                self._open.add(association)
        if refused is None:
            _log.info("receive-association", calling_ae=calling, address=address)
            if not may_send(self._settings, calling, address):
                association.acceptor.supported_contexts = contexts_but_storage()
            elif self._settings.receive.other_sop_classes == "skip":
                _accept_unlisted(association)
            return
        _log.warning(
            "receive-rejected",
            calling_ae=calling,
            called_ae=called,
            address=address,
            result=refused.result,
            source=refused.source,
            reason=refused.reason,
        )
        association.acse.send_reject(*refused)
        association.kill()  # waits until the rejection has gone out

    def _check_room(self) -> None:
        """Raise where the disk is below the watermark; asked before each object."""
        least = self._settings.receive.min_free_mb
        if self._spool.free_mb() < least:
            raise Transient("disk-full", f"less than {least} MB free in the spool")

    def _on_ended(self, association: Association, intake: Intake) -> None:
        """Tidy up after a connection, however it ended."""
        with suppress(OSError):
            intake.discard()
        with self._lock:
            was_open = association in self._open
            self._open.discard(association)
        if was_open:
            self._close_in_ledger(intake.name)
        self._connected.discard(association)

    def _close_in_ledger(self, name: str) -> None:
        try:
            self._ledger.close_association(name)
        except NodeError as error:
            # Its series wait for their hard limit instead; nothing is lost.
            _log.error("receive-unable", code=error.code, message=error.message)

    def _on_echo(self, event: evt.Event) -> int:
        """Answer C-ECHO, PS3.4 A.4; needs neither disk nor ledger."""
        del event
        return int(StoreStatus.SUCCESS)

    def _on_store(self, event: evt.Event) -> Dataset:
        """Answer one C-STORE, PS3.4 B.2.3."""
        intake, request = event.assoc.dimse, event.request
        calling_ae = event.assoc.requestor.ae_title.strip()
        if not isinstance(intake, Intake) or not isinstance(request, C_STORE):
            return _answer(StoreStatus.PROCESSING_FAILURE)
        received = intake.take(request.MessageID)
        if received is None:
            return _answer(StoreStatus.CANNOT_UNDERSTAND, "the request has no data set")
        try:
            self._keep(received, request, intake.name, calling_ae)
        except NodeError as error:
            status = _status_of(error)
            _log.warning(
                "receive-refused",
                calling_ae=calling_ae,
                status=status.name,
                code=error.code,
                message=error.message,
            )
            return _answer(status, error.message)
        except Exception as error:  # noqa: BLE001 - the edge of the receiving process
            _log.error("receive-failed", exception=type(error).__name__, place=log.place(error))
            return _answer(StoreStatus.PROCESSING_FAILURE, "unexpected error; see the node's log")
        finally:
            received.discard()
        if event.assoc not in self._open:  # it ended meanwhile; the ledger takes it for open
            self._close_in_ledger(intake.name)
        return _answer(StoreStatus.SUCCESS)

    def _keep(
        self, received: IncomingObject, request: C_STORE, association: str, calling_ae: str
    ) -> None:
        """Make one received object durable: file, then ledger row."""
        if received.error is not None:
            raise received.error
        header = read_header(received.path, received.transfer_syntax_uid)
        identity = identity_of(header, received.transfer_syntax_uid)
        if identity.sop_class_uid != request.AffectedSOPClassUID:
            raise _Mismatch("class-mismatch", "SOP Class UID differs from the request's")
        if identity.sop_instance_uid != request.AffectedSOPInstanceUID:
            raise _Mismatch("instance-mismatch", "SOP Instance UID differs from the request's")
        arrival = Arrival(
            identity=identity,
            path=self._spool.take(received.path, identity.sop_instance_uid),
            size=received.size,
            sha256=received.sha256,
            association=association,
            calling_ae=calling_ae,
            received_at=datetime.now(UTC),
        )
        try:
            taken = self._ledger.record_arrival(
                arrival, skip=_reason_to_skip(header, identity.sop_class_uid)
            )
        except NodeError:
            self._remove_unless_recorded(arrival)
            raise
        if not taken:
            self._spool.remove(arrival.path)

    def _remove_unless_recorded(self, arrival: Arrival) -> None:
        """After a failed transaction: it may yet have been committed.

        Where the ledger cannot say, the file stays, and the sweep asks again.
        """
        with suppress(NodeError):
            held = self._ledger.instance(arrival.identity.sop_instance_uid)
            if held is None or held.source_path != arrival.path:
                self._spool.remove(arrival.path)

    def _on_report(self, event: evt.Event) -> tuple[int, Dataset | None]:
        """Take a Storage Commitment report, PS3.4 J.3.3."""
        report = read_report(event.event_information)
        try:
            changed = self._ledger.commit_report(
                report.transaction_uid,
                report.confirmed,
                report.failed,
                actor=self._settings.node.ae_title,
            )
        except NodeError as error:
            _log.error("receive-unable", code=error.code, message=error.message)
            return int(StoreStatus.PROCESSING_FAILURE), None
        _log.info(
            "receive-commitment-report",
            transaction_uid=report.transaction_uid,
            confirmed=len(report.confirmed),
            failed=len(report.failed),
            changed=changed,
        )
        return int(StoreStatus.SUCCESS), None


def _proposed(association: Association) -> list[PresentationContext]:
    request = association.requestor.primitive
    return list(request.presentation_context_definition_list) if request else []


def _may_report(association: Association) -> bool:
    """Whether a PACS may be about to say what it keeps; PS3.4 J.3.3."""
    return any(
        each.abstract_syntax == StorageCommitmentPushModel for each in _proposed(association)
    )


def _accept_unlisted(association: Association) -> None:
    """Before the negotiation: also accept storage classes that are retired or private."""
    unlisted = unlisted_contexts(_proposed(association))
    if unlisted:
        acceptor = association.acceptor
        acceptor.supported_contexts = [*acceptor.supported_contexts, *unlisted]


def _on_sop_classes(event: evt.Event) -> dict[UID, SOPClassCommonExtendedNegotiation]:
    """Say which proposed SOP classes are served as storage, PS3.7 D.3.3.6."""
    return served_as_storage(_proposed(event.assoc))


def _on_aborted(event: evt.Event) -> None:
    """Note an association that did not end as it should; what was acknowledged stays."""
    requestor = event.assoc.requestor
    _log.warning(
        "receive-aborted",
        calling_ae=requestor.ae_title.strip(),
        address=requestor.address or "",
    )


class _Mismatch(Refused):
    """The data set is not the one that the request announced."""


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _status_of(error: NodeError) -> StoreStatus:
    """The status that tells the sender what to make of an error."""
    if isinstance(error, _Mismatch):
        return StoreStatus.CLASS_MISMATCH
    if isinstance(error, Refused):
        return StoreStatus.CANNOT_UNDERSTAND
    return StoreStatus.OUT_OF_RESOURCES


def _reason_to_skip(header: Dataset, sop_class_uid: str) -> Refused | None:
    """Why an object is acknowledged and not processed; None where it is."""
    if sop_class_uid not in ULTRASOUND:
        return Refused("not-ultrasound", "not an ultrasound image; nothing to do")
    if is_own_output(header):
        return Refused("own-output", "a node of this kind derived the object; nothing to do")
    return None


def _answer(status: StoreStatus, comment: str = "") -> Dataset:
    """The status part of a response, with (0000,0902) *Error Comment* where it failed."""
    answer = Dataset()
    answer.Status = int(status)
    if comment:
        answer.ErrorComment = comment[:_LONGEST_COMMENT]
    return answer

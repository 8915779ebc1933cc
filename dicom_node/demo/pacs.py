"""A small PACS in this process, for the demonstration and for tests; not an archive.

Verification (PS3.4 A), Storage to disk (B), Study Root C-FIND at IMAGE level (C) and Storage
Commitment (J) whose report comes on the same or on a new association, or never. Like archives,
it keeps the first object of a UID and answers Success to a repeated one.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal, Self

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, AllTransferSyntaxes
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import EventHandlerType
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    Verification,
)
from pynetdicom.transport import ThreadedAssociationServer

from dicom_node.attributes.identity import is_valid_uid
from dicom_node.network.status import CommitmentEvent, StoreStatus, Verdict, verdict
from dicom_node.service import log

_log = log.get(__name__)
LOOPBACK: Final = "127.0.0.1"
Reporting = Literal["same-association", "new-association", "never"]
StorageClasses: Final = (UltrasoundImageStorage, UltrasoundMultiFrameImageStorage)


class EmbeddedPacs:
    """A PACS that listens on loopback while the block runs.

    Parameters
    ----------
    folder : Path
        Objects are written here, ``<SOP Instance UID>.dcm``.
    ae_title : str
        What it is called.
    reporting : str
        Where its commitment reports go.
    report_to : tuple of (str, str, int), optional
        AE title, host and port of the node, for reports on a new association.
    commitment, find : bool
        Whether it offers the service at all.
    answer : callable, optional
        SOP Instance UID -> status to answer to its C-STORE, for tests of failures; an object
        that is not answered with success or warning is not kept.
    """

    def __init__(
        self,
        folder: Path,
        ae_title: str = "PACS",
        *,
        reporting: Reporting = "new-association",
        report_to: tuple[str, str, int] | None = None,
        commitment: bool = True,
        find: bool = True,
        answer: Callable[[str], int] | None = None,
    ) -> None:
        self.folder = folder
        self.ae_title = ae_title
        self.report_to = report_to
        self.held: dict[str, Path] = {}
        """SOP Instance UID -> file."""
        self.received: Counter[str] = Counter()
        """How often each SOP Instance UID came by C-STORE."""
        self.committed: set[str] = set()
        """SOP Instance UIDs reported as safe, with the node's acknowledgement."""
        self._reporting = reporting
        self._answer = answer or (lambda _uid: int(StoreStatus.SUCCESS))
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._server: ThreadedAssociationServer | None = None
        self._ae = AE(ae_title=ae_title)
        self._ae.maximum_pdu_size = 131072
        self._ae.add_supported_context(Verification)
        for storage_class in StorageClasses:
            self._ae.add_supported_context(storage_class, AllTransferSyntaxes)
        if commitment:
            self._ae.add_supported_context(StorageCommitmentPushModel)
        if find:
            self._ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """Where it listens."""
        if self._server is None:
            raise RuntimeError("the embedded PACS has not been started")
        return int(self._server.server_address[1])

    def start(self, port: int = 0) -> None:
        """Listen, on a free port unless told otherwise."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handlers: list[EventHandlerType] = [
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_C_FIND, self._on_find),
            (evt.EVT_N_ACTION, self._on_action),
        ]
        server = self._ae.start_server((LOOPBACK, port), block=False, evt_handlers=handlers)
        assert server is not None  # noqa: S101 - only a blocking server returns None
        self._server = server

    def stop(self) -> None:
        """Close the port and wait for the reports that are under way."""
        if self._server is not None:
            self._server.shutdown()
            self._server = None
        for thread in self._threads:
            thread.join()

    def _on_store(self, event: evt.Event) -> int:
        """Keep an object as it came."""
        request = event.request
        uid = str(request.AffectedSOPInstanceUID) if isinstance(request, C_STORE) else ""
        status = self._answer(uid)
        with self._lock:
            self.received[uid] += 1
            if not is_valid_uid(uid):
                return int(StoreStatus.CANNOT_UNDERSTAND)
            stored = verdict(status) in {Verdict.SUCCESS, Verdict.WARNING}
            if not stored or uid in self.held:
                return status
            path = self.folder / f"{uid}.dcm"
            path.write_bytes(event.encoded_dataset())
            self.held[uid] = path
        return status

    def _on_find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        """Answer with every held instance of the series that is asked for."""
        question = event.identifier
        with self._lock:
            held = dict(self.held)
        for uid, path in held.items():
            header = dcmread(path, stop_before_pixels=True)
            if header.SeriesInstanceUID != question.get("SeriesInstanceUID"):
                continue
            answer = Dataset()
            answer.QueryRetrieveLevel = "IMAGE"
            answer.StudyInstanceUID = header.StudyInstanceUID
            answer.SeriesInstanceUID = header.SeriesInstanceUID
            answer.SOPInstanceUID = uid
            yield int(StoreStatus.PENDING), answer
        yield int(StoreStatus.SUCCESS), None

    def _on_action(self, event: evt.Event) -> tuple[int, Dataset | None]:
        """Take a commitment request, and report on it from another thread."""
        request = event.action_information
        if self._reporting != "never":
            thread = threading.Thread(
                target=self._report, args=(request, event.assoc), name="commitment-report"
            )
            with self._lock:
                self._threads.append(thread)
            thread.start()
        return int(StoreStatus.SUCCESS), None

    def _report(self, request: Dataset, association: Association) -> None:
        kind, report, safe = self._judge(request)
        if self._reporting == "same-association":
            acknowledged = _send_report(association, kind, report)
        else:
            acknowledged = self._report_on_new_association(kind, report)
        if acknowledged:
            with self._lock:
                self.committed |= safe
        else:
            _log.warning("commitment-report-not-taken")

    def _judge(self, request: Dataset) -> tuple[CommitmentEvent, Dataset, set[str]]:
        """Which of the referenced instances are held, as PS3.4 table J.3-2 reports it."""
        safe: list[Dataset] = []
        missing: list[Dataset] = []
        with self._lock:
            for reference in request.ReferencedSOPSequence:
                item = Dataset()
                item.ReferencedSOPClassUID = reference.ReferencedSOPClassUID
                item.ReferencedSOPInstanceUID = reference.ReferencedSOPInstanceUID
                if str(reference.ReferencedSOPInstanceUID) in self.held:
                    safe.append(item)
                else:
                    item.FailureReason = int(StoreStatus.NO_SUCH_INSTANCE)
                    missing.append(item)
        report = Dataset()
        report.TransactionUID = request.TransactionUID
        report.ReferencedSOPSequence = safe
        if missing:
            report.FailedSOPSequence = missing
        kind = CommitmentEvent.FAILURES_EXIST if missing else CommitmentEvent.ALL_SAFE
        return kind, report, {str(item.ReferencedSOPInstanceUID) for item in safe}

    def _report_on_new_association(self, kind: CommitmentEvent, report: Dataset) -> bool:
        if self.report_to is None:
            return False
        title, host, port = self.report_to
        association = self._ae.associate(
            host,
            port,
            ae_title=title,
            contexts=[build_context(StorageCommitmentPushModel)],
            ext_neg=[build_role(StorageCommitmentPushModel, scp_role=True)],
        )
        if not association.is_established:
            return False
        acknowledged = _send_report(association, kind, report)
        association.release()
        return acknowledged


def _send_report(association: Association, kind: CommitmentEvent, report: Dataset) -> bool:
    """N-EVENT-REPORT; whether the node acknowledged it."""
    if not association.is_established:
        return False
    status, _ = association.send_n_event_report(
        report, int(kind), UID(StorageCommitmentPushModel), UID(StorageCommitmentPushModelInstance)
    )
    return "Status" in status and status.Status == StoreStatus.SUCCESS

"""C-STORE data sets from the socket into the spool, fragment by fragment.

pynetdicom can stream a data set to a file, but ends the association without a status when the
disk is full, and leaves the file behind when the sender dies. `Intake` takes the place of an
association's DIMSE service provider and hands every data fragment (PS3.8 annex E.2) of a
C-STORE request to an `IncomingObject` of its own; everything else stays pynetdicom's.
"""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Final

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID, ImplicitVRLittleEndian
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA

from dicom_node.attributes.identity import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    is_valid_uid,
)
from dicom_node.errors import NodeError, Refused, Transient
from dicom_node.network.status import StoreStatus
from dicom_node.spool import Spool, disk_errors

_COMMAND: Final = 0b01
"""Message control header: the fragment belongs to the command set, PS3.8 E.2."""
_LAST: Final = 0b10
"""Message control header: the last fragment of its kind."""


class IncomingObject:
    """One data set on its way into the spool: its file, size, digest and first error.

    Parameters
    ----------
    spool : Spool
        Where the temporary file goes.
    meta : FileMetaDataset
        (0002,eeee) elements, written before the data set (PS3.10 7.1).
    refusal : NodeError, optional
        Why the object is refused already: nothing is written and its bytes are dropped.
    """

    def __init__(
        self, spool: Spool, meta: FileMetaDataset, refusal: NodeError | None = None
    ) -> None:
        self.path: Path = spool.incoming / f"object-{uuid.uuid4().hex}.part"
        self.transfer_syntax_uid = str(meta.TransferSyntaxUID)
        self.size = 0
        """Bytes of the data set, without preamble and file meta."""
        self.error = refusal
        self._digest = hashlib.sha256()
        self._file: BinaryIO | None = None
        if refusal is None:
            self._attempt(lambda: self._open(meta))

    def _open(self, meta: FileMetaDataset) -> None:
        header = BytesIO(b"\0" * 128 + b"DICM")
        header.seek(0, 2)
        write_file_meta_info(DicomIO(header), meta, enforce_standard=True)
        self._file = self.path.open("xb", buffering=0)
        self._write_all(memoryview(header.getvalue()))

    def write(self, fragment: memoryview) -> None:
        """Add a fragment of the data set; after an error it is dropped."""
        if self.error is None:
            self._attempt(lambda: self._write_all(fragment))
        if self.error is None:
            self._digest.update(fragment)
            self.size += len(fragment)

    def _write_all(self, data: memoryview) -> None:
        """Write unbuffered; a raw file may take less than it is given."""
        while data and self._file is not None:
            data = data[self._file.write(data) :]

    def _attempt(self, step: Callable[[], None]) -> None:
        """Do a step of the disk's; its failure becomes the object's error."""
        try:
            with disk_errors():
                step()
        except Transient as error:
            self.error = error
            self.discard()

    @property
    def sha256(self) -> str:
        """Digest of the data set as it was received, without preamble and file meta."""
        return self._digest.hexdigest()

    def complete(self) -> None:
        """The data set is complete; a disk that fails only now becomes the object's error."""
        self._attempt(self.close)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """Delete the temporary file; harmless where it has been taken or deleted."""
        with suppress(OSError):  # a disk that fails; the sweep removes what is left
            self.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


class Intake(DIMSEServiceProvider):
    """An association's DIMSE provider that streams C-STORE data sets into the spool.

    Parameters
    ----------
    association : Association
        Not started yet.
    spool : Spool
        Where data sets go.
    admit : callable
        Asked before each data set; raises the `NodeError` that refuses it.
    name : str
        What the ledger calls the association; unlike any other's.
    """

    def __init__(
        self, association: Association, spool: Spool, admit: Callable[[], None], name: str
    ) -> None:
        super().__init__(association)
        self.name = name
        self._spool = spool
        self._admit = admit
        self._current: IncomingObject | None = None
        self._complete: deque[tuple[int | None, IncomingObject]] = deque()
        self._lock = threading.Lock()

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take one P-DATA primitive; called by the association's reactor thread."""
        for context_id, value in primitive.presentation_data_value_list:
            message: object = self.message
            if value[0] & _COMMAND or not isinstance(message, C_STORE_RQ):
                super().receive_primitive(_fragment(context_id, value))
                continue
            if self._current is None:
                self._current = self._begin(context_id, message.command_set)
            self._current.write(memoryview(value)[1:])
            if value[0] & _LAST:
                received, self._current = self._current, None
                received.complete()
                self._pass_on(context_id, message.command_set, received)

    def _pass_on(self, context_id: int, command: Dataset, received: IncomingObject) -> None:
        """Let pynetdicom serve the request, with an empty data set in place of the real one.

        It ignores a request without valid UIDs, and the sender would wait in vain; so that
        one is answered here.
        """
        if isinstance(received.error, Refused):
            self.message = None
            self._refuse(context_id, command.get("MessageID"), received.error.message)
            return
        with self._lock:
            self._complete.append((command.get("MessageID"), received))
        super().receive_primitive(_fragment(context_id, bytes([_LAST])))

    def get_msg(self, block: bool = False) -> tuple[Any, Any]:
        """The next message to serve; (None, None) where there is none, or it was no request."""
        context_id, message = super().get_msg(block)
        if isinstance(message, C_STORE) and message.DataSet is None:
            self._refuse(context_id, message.MessageID, "the request has no data set")
            return None, None
        return context_id, message

    def _refuse(self, context_id: int | None, message_id: int | None, comment: str) -> None:
        """Answer a request that pynetdicom would leave without an answer."""
        if context_id is None or message_id is None:
            return
        response = C_STORE()
        response.MessageIDBeingRespondedTo = message_id
        response.Status = int(StoreStatus.CANNOT_UNDERSTAND)
        response.ErrorComment = comment  # type: ignore[assignment]
        self.send_msg(response, context_id)

    def _begin(self, context_id: int, command: Dataset) -> IncomingObject:
        sop_class = str(command.get("AffectedSOPClassUID") or "")
        sop_instance = str(command.get("AffectedSOPInstanceUID") or "")
        context = self.assoc._accepted_cx.get(context_id)  # noqa: SLF001 - no public map by ID
        meta = FileMetaDataset()
        meta.FileMetaInformationVersion = b"\x00\x01"
        meta.MediaStorageSOPClassUID = UID(sop_class)
        meta.MediaStorageSOPInstanceUID = UID(sop_instance)
        # pynetdicom ends the association over a context that was not accepted.
        meta.TransferSyntaxUID = context.transfer_syntax[0] if context else ImplicitVRLittleEndian
        meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
        meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
        meta.SourceApplicationEntityTitle = self.assoc.requestor.ae_title.strip()
        try:
            if not is_valid_uid(sop_class):
                raise Refused(
                    "uid-invalid", "Affected SOP Class UID (0000,0002) missing or invalid"
                )
            if not is_valid_uid(sop_instance):
                raise Refused("uid-invalid", "Affected SOP Instance UID (0000,1000) missing or bad")
            self._admit()
        except NodeError as refusal:
            return IncomingObject(self._spool, meta, refusal)
        return IncomingObject(self._spool, meta)

    def take(self, message_id: int | None) -> IncomingObject | None:
        """The data set of the C-STORE request that is being served; None if it had none."""
        with self._lock:
            for position, (number, received) in enumerate(self._complete):
                if number == message_id:
                    del self._complete[position]
                    return received
        return None

    def discard(self) -> None:
        """The association has ended: delete what was not taken."""
        with self._lock:
            unfinished = [received for _, received in self._complete]
            self._complete.clear()
        if self._current is not None:
            unfinished.append(self._current)
            self._current = None
        for received in unfinished:
            received.discard()


def _fragment(context_id: int, value: bytes) -> P_DATA:
    primitive = P_DATA()
    primitive.presentation_data_value_list.append((context_id, value))
    return primitive

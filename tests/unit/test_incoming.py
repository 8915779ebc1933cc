"""Streaming into the spool, and what it takes for granted of pynetdicom."""

from __future__ import annotations

import errno
import hashlib
import inspect
import io
import queue
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.presentation import build_context

from dicom_node.attributes.identity import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.errors import Transient
from dicom_node.network.incoming import IncomingObject, Intake
from dicom_node.spool import Spool
from tests.receiving import small_object


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool")


def association() -> SimpleNamespace:
    """What the intake uses of an association."""
    return SimpleNamespace(
        _accepted_cx={1: build_context(UltrasoundImageStorage, ExplicitVRLittleEndian)},
        requestor=SimpleNamespace(ae_title="US1 ", maximum_length=16384),
        is_requestor=False,
        dimse_timeout=1,
        dul=SimpleNamespace(event_queue=queue.Queue(), send_pdu=None),
        get_handlers=lambda _event: [],
    )


def intake(spool: Spool, admit=lambda: None) -> Intake:
    return Intake(association(), spool, admit, "host/1")


def encoded(dataset) -> bytes:
    return encode(dataset, is_implicit_vr=False, is_little_endian=True)


def request(data: bytes, message_id: int = 7, uid: str = "1.2.3") -> C_STORE_RQ:
    primitive = C_STORE()
    primitive.MessageID = message_id
    primitive.AffectedSOPClassUID = UltrasoundImageStorage
    primitive.AffectedSOPInstanceUID = uid
    primitive.Priority = 2
    primitive.DataSet = io.BytesIO(data)
    message = C_STORE_RQ()
    message.primitive_to_message(primitive)
    return message


def deliver(target: Intake, message: C_STORE_RQ, max_pdu: int = 64) -> None:
    for primitive in message.encode_msg(1, max_pdu):
        target.receive_primitive(primitive)


def test_data_set_lies_in_the_spool_with_the_nodes_own_file_meta(spool):
    target = intake(spool)
    data = encoded(small_object())
    deliver(target, request(data))
    received = target.take(7)
    content = received.path.read_bytes()
    assert received.path.parent == spool.incoming
    assert content[128:132] == b"DICM"
    assert content.endswith(data)
    assert received.size == len(data)
    assert received.sha256 == hashlib.sha256(data).hexdigest()
    meta = dcmread(received.path).file_meta
    assert 144 + meta.FileMetaInformationGroupLength == len(content) - len(data)
    assert meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert meta.ImplementationVersionName == IMPLEMENTATION_VERSION_NAME
    assert meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert meta.MediaStorageSOPInstanceUID == "1.2.3"
    assert meta.SourceApplicationEntityTitle == "US1"


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None
)
@given(
    objects=st.lists(st.binary(max_size=400), min_size=1, max_size=3), max_pdu=st.integers(8, 200)
)
def test_fragments_of_any_size_give_the_bytes_that_were_sent(spool, objects, max_pdu):
    target = intake(spool)
    for number, data in enumerate(objects):
        deliver(target, request(data or b"\0", number), max_pdu)
    for number, data in enumerate(objects):
        received = target.take(number)
        assert received.path.read_bytes().endswith(data or b"\0")
        assert received.size == len(data or b"\0")
        received.discard()
    assert list(spool.incoming.iterdir()) == []


def test_request_goes_on_to_pynetdicom_without_its_data_set(spool):
    target = intake(spool)
    deliver(target, request(b"x" * 1000))
    context_id, primitive = target.get_msg()
    assert context_id == 1
    assert primitive.is_valid_request
    assert primitive.AffectedSOPInstanceUID == "1.2.3"
    assert primitive.DataSet.getvalue() == b""


def test_requests_are_matched_to_their_data_sets_by_message_id(spool):
    target = intake(spool)
    deliver(target, request(b"one", 1))
    deliver(target, request(b"two", 2))
    assert target.take(2).size == 3
    assert target.take(3) is None
    assert target.take(1).path.read_bytes().endswith(b"one")


def test_full_disk_drops_the_bytes_and_keeps_the_association(spool, monkeypatch):
    target = intake(spool)
    message = request(b"x" * 1000)
    real = type(spool.root).open

    class Full:
        def __init__(self, file):
            self._file = file

        def write(self, _data):
            raise OSError(errno.ENOSPC, "full")

        def close(self):
            self._file.close()

    monkeypatch.setattr(type(spool.root), "open", lambda self, *a, **k: Full(real(self, *a, **k)))
    deliver(target, message)
    received = target.take(7)
    assert isinstance(received.error, Transient)
    assert received.error.code == "disk-full"
    assert list(spool.incoming.iterdir()) == []


def test_disk_that_turns_read_only_is_an_error_of_the_object_alone(spool, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EROFS, "read-only")

    target = intake(spool)
    monkeypatch.setattr(IncomingObject, "_write_all", fail)
    monkeypatch.setattr(type(spool.root), "unlink", fail)
    deliver(target, request(b"x" * 1000))
    assert target.take(7).error.code == "spool-unusable"
    target.discard()


def test_disk_that_fails_as_the_file_is_closed_is_an_error_of_the_object(spool, monkeypatch):
    def fail(_self):
        raise OSError(errno.EIO, "input/output error")

    target = intake(spool)
    monkeypatch.setattr(IncomingObject, "close", fail)
    deliver(target, request(b"x" * 1000))
    assert target.take(7).error.code == "spool-unusable"


def test_object_that_is_not_admitted_is_never_written(spool):
    def admit():
        raise Transient("disk-full", "no room")

    target = intake(spool, admit)
    deliver(target, request(b"x" * 1000))
    assert target.take(7).error.code == "disk-full"
    assert list(spool.incoming.iterdir()) == []


def test_dead_sender_leaves_nothing_behind(spool):
    target = intake(spool)
    deliver(target, request(b"complete", 1))
    *parts, _last = list(request(b"x" * 1000, 2).encode_msg(1, 64))
    for part in parts:
        target.receive_primitive(part)
    assert len(list(spool.incoming.iterdir())) == 2
    target.discard()
    assert list(spool.incoming.iterdir()) == []
    assert target.take(1) is None


@pytest.mark.parametrize("uid", ["", "1.2/3", "../etc", "1..2"])
def test_request_without_valid_uid_is_answered_and_not_written(spool, uid):
    target = intake(spool)
    sent = []
    target.assoc.dul.send_pdu = sent.append
    message = request(b"x" * 1000)
    message.command_set.AffectedSOPInstanceUID = uid
    deliver(target, message)
    assert target.get_msg() == (None, None)
    assert len(sent) == 1
    assert list(spool.incoming.iterdir()) == []
    deliver(target, request(b"the next one", 8))
    assert target.take(8).size == 12


def test_pynetdicom_still_works_as_this_module_takes_for_granted():
    provider = inspect.signature(DIMSEServiceProvider.__init__)
    assert list(provider.parameters) == ["self", "assoc"]
    receive = inspect.signature(DIMSEServiceProvider.receive_primitive)
    assert list(receive.parameters) == ["self", "primitive"]
    reader = inspect.getsource(DIMSEServiceProvider.receive_primitive)
    assert "self.message.decode_msg(primitive, self.assoc)" in reader
    assert "_accepted_cx" in inspect.getsource(Association.__init__)

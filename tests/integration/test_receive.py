"""The receiver against pynetdicom senders in this process."""

from __future__ import annotations

import errno
import hashlib
import io
import socket
import sqlite3
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
import structlog
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
)
from pynetdicom import AE, _config, build_role
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import (
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    Verification,
)
from pynetdicom.transport import AssociationSocket

from dicom_node.attributes.identity import IMPLEMENTATION_CLASS_UID, MODEL_NAME
from dicom_node.errors import Transient
from dicom_node.ledger import Ledger
from dicom_node.network.contexts import TRANSFER_SYNTAXES, ULTRASOUND
from dicom_node.network.incoming import IncomingObject
from dicom_node.network.status import StoreStatus
from dicom_node.receive import Receiver
from dicom_node.records import Stage
from dicom_node.spool import Spool
from tests.ledgers import derive, much_later, send, soon
from tests.peers import LOOPBACK, wait_until
from tests.receiving import receive_settings, scanner, small_object

RETIRED_NM_IMAGE = UID("1.2.840.10008.5.1.4.1.1.5")
PRIVATE_CLASS = UID("1.3.46.670589.2.4.1.1")


class Node:
    """A running receiver with its ledger and its spool."""

    def __init__(self, tmp_path, ledger_url="", **options):
        self.settings = receive_settings(tmp_path, **options)
        self.spool = Spool(self.settings.spool_directory)
        self.ledger = Ledger(ledger_url or self.settings.ledger_url)
        self.receiver = Receiver(self.settings, self.ledger, self.spool)

    def __enter__(self):
        self.receiver.start()
        return self

    def __exit__(self, *_):
        self.receiver.stop(grace_seconds=1)
        self.ledger.close()

    @property
    def port(self):
        return self.settings.receive.port

    @property
    def received(self):
        return sorted(self.spool.received.iterdir())

    def is_untouched(self):
        return (
            self.ledger.overview().stages == {}
            and self.received == []
            and list(self.spool.incoming.iterdir()) == []
        )


@pytest.fixture
def node(tmp_path):
    with Node(tmp_path) as running:
        yield running


def store(node, dataset, **options):
    """Status of one C-STORE on an association of its own."""
    contexts = options.pop("contexts", None) or [
        (dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
    ]
    with scanner(node.port, contexts, **options) as association:
        assert association.is_established
        return association.send_c_store(dataset)


def rejection(node, **options):
    """(result, source, reason) of a rejected association."""
    with scanner(node.port, [(Verification, ImplicitVRLittleEndian)], **options) as association:
        assert association.is_rejected
        answer = association.acceptor.primitive
        return answer.result, answer.result_source, answer.diagnostic


def raw_store(association, data, uid="1.2.3", sop_class=UltrasoundImageStorage):
    """Status of a C-STORE of any bytes."""
    request = C_STORE()
    request.MessageID = 9
    request.AffectedSOPClassUID = sop_class
    request.AffectedSOPInstanceUID = uid
    request.Priority = 2
    request.DataSet = io.BytesIO(data)
    (context,) = association.accepted_contexts
    association._reactor_checkpoint.clear()
    association.dimse.send_msg(request, context.context_id)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    return response


# --- what is kept --------------------------------------------------------------------------------


def test_context_that_was_not_accepted_ends_the_association(node):
    with scanner(node.port) as association:
        (context,) = association.accepted_contexts
        context.context_id = 77
        association._accepted_cx = {77: context}
        assert "Status" not in association.send_c_store(small_object())
    wait_until(node.is_untouched, "the receiver keeps something of an object that it refused")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_object_is_kept_as_received_and_recorded(node, syntax):
    dataset = small_object()
    dataset.file_meta.TransferSyntaxUID = syntax
    assert store(node, dataset).Status == StoreStatus.SUCCESS
    (path,) = node.received
    data = encode(dataset, syntax.is_implicit_VR, is_little_endian=True)
    assert path.read_bytes().endswith(data)
    assert dcmread(path).file_meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    held = node.ledger.instance(dataset.SOPInstanceUID)
    assert (held.stage, held.source_path) == (Stage.DERIVE, path)
    assert (held.size, held.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert (held.calling_ae, held.identity.transfer_syntax_uid) == ("US1", syntax)
    assert list(node.spool.incoming.iterdir()) == []


def test_bytes_are_on_disk_and_the_row_is_committed_before_the_answer(node, monkeypatch):
    steps = []
    real_take, real_record = Spool.take, Ledger.record_arrival

    def take(self, *arguments):
        path = real_take(self, *arguments)
        steps.append("file")
        return path

    def record(self, *arguments, **options):
        taken = real_record(self, *arguments, **options)
        database = node.settings.node.state_directory / "ledger.sqlite3"
        with sqlite3.connect(database) as other_process:
            steps.append(other_process.execute("SELECT count(*) FROM instances").fetchone()[0])
        return taken

    monkeypatch.setattr(Spool, "take", take)
    monkeypatch.setattr(Ledger, "record_arrival", record)
    assert store(node, small_object()).Status == StoreStatus.SUCCESS
    assert steps == ["file", 1]


def test_instance_that_is_sent_again_is_kept_once(node):
    dataset = small_object()
    assert store(node, dataset).Status == StoreStatus.SUCCESS
    assert store(node, dataset).Status == StoreStatus.SUCCESS
    assert len(node.received) == 1
    assert node.ledger.overview().stages == {Stage.DERIVE: 1}


def test_first_of_two_different_objects_of_one_uid_is_kept(node):
    dataset = small_object()
    store(node, dataset)
    before = node.received[0].read_bytes()
    dataset.PixelData = bytes(64)
    assert store(node, dataset).Status == StoreStatus.SUCCESS
    assert [path.read_bytes() for path in node.received] == [before]
    assert [str(line.name) for _, line in node.ledger.events()][-1] == "instance-differs"


def test_same_instance_on_several_associations_at_once_is_kept_once(node):
    dataset = small_object(PixelData=bytes(64))
    together = threading.Barrier(4)
    statuses = []

    def deliver():
        with scanner(node.port) as association:
            together.wait()
            statuses.append(association.send_c_store(dataset).Status)

    threads = [threading.Thread(target=deliver) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [StoreStatus.SUCCESS] * 4
    assert len(node.received) == 1
    assert node.ledger.overview().stages == {Stage.DERIVE: 1}


def test_many_associations_at_once_lose_nothing(node):
    sent = [small_object() for _ in range(24)]

    def deliver(share):
        with scanner(node.port) as association:
            for dataset in share:
                assert association.send_c_store(dataset).Status == StoreStatus.SUCCESS

    threads = [threading.Thread(target=deliver, args=(sent[n::6],)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(node.received) == len(sent)
    for dataset in sent:
        assert node.ledger.instance(dataset.SOPInstanceUID).source_path in node.received


def test_association_counts_as_open_until_it_is_released(node):
    with scanner(node.port) as association:
        association.send_c_store(small_object())
        assert node.ledger.series_arrivals(soon())[0].open_associations == 1
    wait_until(
        lambda: node.ledger.series_arrivals(soon())[0].open_associations == 0,
        "the released association is still open",
    )


def test_association_that_ends_while_its_object_is_stored_is_not_left_open(node, monkeypatch):
    real = Spool.take

    def take(self, *arguments):
        path = real(self, *arguments)
        sender.dul.socket.socket.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: not node.receiver._connected, "the dead association stays")
        return path

    monkeypatch.setattr(Spool, "take", take)
    with scanner(node.port) as sender:
        sender.send_c_store(small_object())
    wait_until(lambda: node.ledger.overview().stages == {Stage.DERIVE: 1}, "not recorded")
    wait_until(
        lambda: node.ledger.series_arrivals(soon())[0].open_associations == 0, "it stays open"
    )


def test_restarted_receiver_takes_no_association_for_open(tmp_path):
    with Node(tmp_path) as node, scanner(node.port) as association:
        association.send_c_store(small_object())
        node.receiver.stop(grace_seconds=0)
        restarted = Receiver(node.settings, node.ledger, node.spool)
        restarted.start()
        assert node.ledger.series_arrivals(soon())[0].open_associations == 0
        restarted.stop()


# --- what is processed -----------------------------------------------------------------------


@pytest.mark.parametrize("other", ["skip", "refuse"])
@pytest.mark.parametrize("sop_class", sorted(ULTRASOUND))
def test_every_ultrasound_class_is_taken_retired_ones_too(tmp_path, sop_class, other):
    with Node(tmp_path, other_sop_classes=other) as node:
        assert store(node, small_object(SOPClassUID=sop_class)).Status == StoreStatus.SUCCESS
        assert node.ledger.overview().stages == {Stage.DERIVE: 1}


# --- what is not processed -------------------------------------------------------------------


def test_report_among_the_images_is_acknowledged_and_skipped(node):
    assert store(node, small_object(SOPClassUID=BasicTextSRStorage)).Status == StoreStatus.SUCCESS
    assert node.ledger.overview().stages == {Stage.SKIPPED: 1}


@pytest.mark.parametrize("sop_class", [RETIRED_NM_IMAGE, PRIVATE_CLASS])
def test_classes_that_no_list_has_are_acknowledged_and_skipped_beside_ultrasound(node, sop_class):
    other, image = small_object(SOPClassUID=sop_class), small_object()
    contexts = [(each.SOPClassUID, ExplicitVRLittleEndian) for each in (other, image)]
    with scanner(node.port, contexts) as association:
        answers = [association.send_c_store(each).Status for each in (other, image)]
    assert answers == [StoreStatus.SUCCESS] * 2
    assert node.ledger.overview().stages == {Stage.SKIPPED: 1, Stage.DERIVE: 1}


def test_other_sop_classes_are_not_negotiated_where_so_configured(tmp_path):
    with Node(tmp_path, other_sop_classes="refuse") as node:
        contexts = [
            (BasicTextSRStorage, ExplicitVRLittleEndian),
            (PRIVATE_CLASS, ExplicitVRLittleEndian),
            (UltrasoundImageStorage, ExplicitVRLittleEndian),
        ]
        with scanner(node.port, contexts) as association:
            accepted = [context.abstract_syntax for context in association.accepted_contexts]
        assert accepted == [UltrasoundImageStorage]


def test_own_output_that_is_routed_back_is_skipped_saying_so(node):
    purpose, item = Dataset(), Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "109102", "DCM"
    purpose.CodeMeaning = "Processing Equipment"
    item.ManufacturerModelName = MODEL_NAME
    item.PurposeOfReferenceCodeSequence = Sequence([purpose])
    dataset = small_object(ContributingEquipmentSequence=Sequence([item]))
    assert store(node, dataset).Status == StoreStatus.SUCCESS
    held = node.ledger.instance(dataset.SOPInstanceUID)
    assert (held.stage, held.error_code) == (Stage.SKIPPED, "own-output")


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_object_without_uid_is_refused_naming_the_tag(node, keyword):
    dataset = small_object()
    uid = dataset.SOPInstanceUID
    delattr(dataset, keyword)
    with scanner(node.port) as association:
        response = raw_store(association, encode(dataset, False, True), uid)
        assert response.Status == StoreStatus.CANNOT_UNDERSTAND
        assert keyword in response.ErrorComment
        assert "Marked" not in response.ErrorComment
        assert association.send_c_store(small_object()).Status == StoreStatus.SUCCESS


def test_data_set_of_another_instance_or_class_than_announced_is_a_mismatch(node):
    data = encode(small_object(), False, True)
    with scanner(node.port) as association:
        response = raw_store(association, data, uid="1.2.3")
        assert response.Status == StoreStatus.CLASS_MISMATCH
    dataset = small_object()
    dataset_class = dataset.SOPClassUID
    dataset.SOPClassUID = UltrasoundMultiFrameImageStorage
    with scanner(node.port) as association:
        response = raw_store(
            association, encode(dataset, False, True), dataset.SOPInstanceUID, dataset_class
        )
        assert response.Status == StoreStatus.CLASS_MISMATCH
    assert node.is_untouched()


@pytest.mark.parametrize("data", [b"\0", b"this is no data set at all", bytes(1000), b"\xff" * 99])
def test_bytes_that_are_no_data_set_are_refused(node, data):
    with scanner(node.port) as association:
        response = raw_store(association, data)
        assert response.Status == StoreStatus.CANNOT_UNDERSTAND
        assert association.send_c_store(small_object()).Status == StoreStatus.SUCCESS
    assert len(node.received) == 1


def test_request_without_data_set_is_refused(node):
    dataset = small_object()
    with scanner(node.port) as association:
        request = C_STORE()
        request.MessageID = 4
        request.AffectedSOPClassUID = dataset.SOPClassUID
        request.AffectedSOPInstanceUID = dataset.SOPInstanceUID
        request.Priority = 2
        message = C_STORE_RQ()
        message.primitive_to_message(request)
        message.command_set.CommandDataSetType = 0x0101
        association._reactor_checkpoint.clear()
        for fragment in message.encode_msg(1, 16384):
            association.dul.send_pdu(fragment)
        _, response = association.dimse.get_msg(block=True)
        association._reactor_checkpoint.set()
        assert response.Status == StoreStatus.CANNOT_UNDERSTAND
    assert node.is_untouched()


def test_fault_in_the_receiver_is_answered_and_logged_without_the_object(node, monkeypatch, capfd):
    def fail(*_arguments, **_options):
        raise RuntimeError("Marked^Patient")

    monkeypatch.setattr("dicom_node.receive.read_header", fail)
    with scanner(node.port) as association:
        answer = association.send_c_store(small_object())
        assert answer.Status == StoreStatus.PROCESSING_FAILURE
        monkeypatch.undo()
        assert association.send_c_store(small_object()).Status == StoreStatus.SUCCESS
    assert list(node.spool.incoming.iterdir()) == []
    written = "".join(capfd.readouterr())
    assert "RuntimeError" in written
    assert "Marked" not in written


# --- full disk, locked ledger ------------------------------------------------------------------


def full(*_arguments, **_options):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("place", ["write", "fsync", "rename"])
def test_full_disk_at_any_point_is_out_of_resources_and_leaves_nothing(node, monkeypatch, place):
    with scanner(node.port) as association:
        if place == "write":
            monkeypatch.setattr("dicom_node.network.incoming.IncomingObject._write_all", full)
        elif place == "fsync":
            monkeypatch.setattr("dicom_node.spool.os.fsync", full)
        else:
            monkeypatch.setattr("pathlib.Path.rename", full)
        answer = association.send_c_store(small_object())
        assert answer.Status == StoreStatus.OUT_OF_RESOURCES
        assert "disk" in answer.ErrorComment
        assert node.is_untouched()
        monkeypatch.undo()
        assert association.send_c_store(small_object()).Status == StoreStatus.SUCCESS


def test_ledger_that_does_not_answer_is_out_of_resources_and_leaves_nothing(node, monkeypatch):
    def locked(*_arguments, **_options):
        raise Transient("ledger-unavailable", "the ledger is locked")

    with scanner(node.port) as association:
        monkeypatch.setattr(node.ledger, "record_arrival", locked)
        answer = association.send_c_store(small_object())
        assert answer.Status == StoreStatus.OUT_OF_RESOURCES
        assert node.is_untouched()


def test_file_of_a_row_that_was_committed_after_all_is_kept(node, monkeypatch):
    real = node.ledger.record_arrival

    def commit_then_fail(*arguments, **options):
        real(*arguments, **options)
        raise Transient("ledger-unavailable", "the connection broke after the commit")

    dataset = small_object()
    monkeypatch.setattr(node.ledger, "record_arrival", commit_then_fail)
    assert store(node, dataset).Status == StoreStatus.OUT_OF_RESOURCES
    assert node.received == [node.ledger.instance(dataset.SOPInstanceUID).source_path]
    monkeypatch.undo()
    assert store(node, dataset).Status == StoreStatus.SUCCESS
    assert len(node.received) == 1


def test_disk_below_the_watermark_refuses_associations_and_objects(node, monkeypatch):
    with scanner(node.port) as association:
        monkeypatch.setattr(Spool, "free_mb", lambda _spool: -1.0)
        answer = association.send_c_store(small_object())
        assert answer.Status == StoreStatus.OUT_OF_RESOURCES
    assert rejection(node) == (2, 3, 2)
    with scanner(node.port, [(StorageCommitmentPushModel, ImplicitVRLittleEndian)]) as association:
        assert association.is_established, "what a PACS confirms makes room"
    assert node.is_untouched()
    monkeypatch.undo()
    assert store(node, small_object()).Status == StoreStatus.SUCCESS


def test_disk_that_fails_in_mid_transfer_is_out_of_resources_and_costs_no_association(
    tmp_path, monkeypatch
):
    def fail(*_, **__):
        raise OSError(errno.EROFS, "read-only")

    with Node(tmp_path, max_associations=2) as node:
        with monkeypatch.context() as patched:
            patched.setattr(IncomingObject, "_write_all", fail)
            patched.setattr(Path, "unlink", fail)
            for _ in range(3):
                answer = store(node, small_object())
                assert answer.Status == StoreStatus.OUT_OF_RESOURCES
        wait_until(lambda: not node.receiver._open, "ended associations")
        assert store(node, small_object()).Status == StoreStatus.SUCCESS


# --- associations ----------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [b"\x01\x00\x00\x00\x10\x00", b"\x01\x00\x00\x00\x10\x00half"])
def test_caller_that_vanishes_within_a_pdu_does_not_keep_its_place(tmp_path, begun):
    with (
        Node(tmp_path, network_timeout_seconds=0.5, acse_timeout_seconds=0.5) as node,
        socket.create_connection((LOOPBACK, node.port), timeout=30) as connection,
    ):
        connection.sendall(begun)
        while connection.recv(100):  # until the node closes it
            pass
        wait_until(lambda: not node.receiver._connected, "its end")


def test_scanner_that_vanishes_within_an_object_does_not_keep_its_place(tmp_path):
    with Node(tmp_path, network_timeout_seconds=3, max_associations=1) as node:
        with scanner(node.port) as association:
            association.dul.socket.socket.sendall(b"\x04\x00\x00\x00\x40\x00half")
            wait_until(lambda: not node.receiver._open, "its end")
        assert store(node, small_object()).Status == StoreStatus.SUCCESS


def rewritten_titles(monkeypatch, rewrite):
    """Have every requestor write its AE titles in another way, 16 bytes to 16 bytes."""
    sent = AssociationSocket.send

    def send(self, data):
        if data[:1] == b"\x01":  # A-ASSOCIATE-RQ
            data = data[:10] + rewrite(data[10:26]) + rewrite(data[26:42]) + data[42:]
        return sent(self, data)

    monkeypatch.setattr(AssociationSocket, "send", send)


def test_titles_that_end_with_nul_are_understood_as_other_peers_do(node, monkeypatch):
    rewritten_titles(monkeypatch, lambda title: title.rstrip().ljust(14, b"\0") + b"xx")
    with structlog.testing.capture_logs() as logged:
        assert store(node, small_object()).Status == StoreStatus.SUCCESS
    (entry,) = [line for line in logged if line["event"] == "receive-association"]
    assert entry["calling_ae"] == "US1"


@pytest.mark.parametrize(("title", "told"), [(b"\xc4S1", "\\xc4S1"), (b"", "")])
def test_caller_whose_titles_cannot_be_read_is_named_in_the_log(node, monkeypatch, title, told):
    rewritten_titles(monkeypatch, lambda _: title.ljust(16))
    contexts = [(Verification, ImplicitVRLittleEndian)]
    with (
        structlog.testing.capture_logs() as logged,
        scanner(node.port, contexts) as association,
    ):
        assert association.is_aborted
    (entry,) = [line for line in logged if line["event"] == "receive-not-understood"]
    assert (entry["calling_ae"], entry["address"]) == (told, LOOPBACK)


def is_abort(line):
    return line["event"] == "receive-aborted"


def test_an_association_that_is_aborted_is_logged_by_its_sender(node):
    with structlog.testing.capture_logs() as logged:
        with scanner(node.port, [(Verification, ImplicitVRLittleEndian)]) as association:
            association.abort()
        wait_until(lambda: any(is_abort(each) for each in logged), "line about the abort")
    (entry,) = filter(is_abort, logged)
    assert (entry["calling_ae"], entry["address"]) == (association.requestor.ae_title, LOOPBACK)


@pytest.mark.parametrize("syntax", TRANSFER_SYNTAXES)
def test_every_transfer_syntax_is_accepted(node, syntax):
    contexts = [(sop_class, syntax) for sop_class in sorted(ULTRASOUND)]
    with scanner(node.port, contexts) as association:
        assert len(association.accepted_contexts) == 4


def test_compressed_transfer_syntaxes_are_preferred_whatever_the_senders_order(node):
    proposed = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless, JPEGBaseline8Bit]
    with scanner(node.port, [(UltrasoundImageStorage, proposed)]) as association:
        assert association.accepted_contexts[0].transfer_syntax == [JPEGBaseline8Bit]
    with scanner(node.port, [(UltrasoundImageStorage, proposed[:2])]) as association:
        assert association.accepted_contexts[0].transfer_syntax == [ExplicitVRLittleEndian]


def test_wrong_called_ae_title_is_rejected(node):
    assert rejection(node, called="OTHER") == (1, 1, 7)


def test_called_ae_title_may_be_anything_where_so_configured(tmp_path):
    with (
        Node(tmp_path, require_called_ae_title=False) as node,
        scanner(node.port, called="OTHER") as association,
    ):
        assert association.is_established


def test_unknown_caller_is_rejected_where_so_configured(tmp_path):
    peers = {"scanner": {"ae_title": "US1"}, "viewer": {"ae_title": "VIEW", "sends": False}}
    with Node(tmp_path, peers=peers, require_known_caller=True) as node:
        assert rejection(node, calling="US2") == (1, 1, 3)
        assert rejection(node, calling="VIEW") == (1, 1, 3)
        with scanner(node.port, calling="US1") as association:
            assert association.is_established
    echo = [(Verification, ImplicitVRLittleEndian)]
    with (
        Node(tmp_path, peers=peers) as node,
        scanner(node.port, echo, calling="VIEW") as association,
    ):
        assert association.is_established


@pytest.mark.parametrize("known_alone", [True, False])
def test_peer_that_may_not_send_is_served_reports_and_echo_alone(tmp_path, known_alone):
    pacs = {"ae_title": "PACS", "sends": False, "receives": True, "host": LOOPBACK, "port": 9}
    proposed = [
        *(UltrasoundImageStorage, "1.2.826.0.1.3680043.9"),
        *(StorageCommitmentPushModel, Verification),
    ]
    contexts = [(each, ImplicitVRLittleEndian) for each in proposed]
    with (
        Node(tmp_path, peers={"pacs": pacs}, require_known_caller=known_alone) as node,
        scanner(node.port, contexts, calling="PACS") as association,
    ):
        accepted = {context.abstract_syntax for context in association.accepted_contexts}
        assert accepted == {StorageCommitmentPushModel, Verification}
        assert association.send_c_echo().Status == StoreStatus.SUCCESS


def test_caller_from_an_address_that_is_not_its_own_is_rejected(tmp_path):
    peers = {
        "far": {"ae_title": "FAR", "addresses": ["192.0.2.0/24"]},
        "near": {"ae_title": "NEAR", "addresses": ["127.0.0.0/8"]},
    }
    with Node(tmp_path, peers=peers) as node:
        assert rejection(node, calling="FAR") == (1, 1, 3)
        with scanner(node.port, calling="NEAR") as association:
            assert association.is_established


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_ipv4_caller_of_a_receiver_on_every_address_is_known_by_its_own(tmp_path):
    peers = {"near": {"ae_title": "NEAR", "addresses": ["127.0.0.0/8"]}}
    with (
        Node(tmp_path, peers=peers, host="::") as node,
        scanner(node.port, calling="NEAR") as association,
    ):
        assert association.is_established


def test_association_beyond_the_limit_is_rejected_as_transient(tmp_path):
    with Node(tmp_path, max_associations=2) as node:
        with scanner(node.port), scanner(node.port):
            assert rejection(node) == (2, 3, 2)
        wait_until(lambda: not node.receiver._open, "released associations still count")
        with scanner(node.port) as association:
            assert association.is_established


def test_idle_connections_do_not_block_an_echo(tmp_path):
    with Node(tmp_path, max_associations=4) as node, ExitStack() as idle:
        for _ in range(40):
            idle.enter_context(socket.create_connection((LOOPBACK, node.port)))
        with scanner(node.port, [(Verification, ImplicitVRLittleEndian)]) as association:
            assert association.send_c_echo().Status == StoreStatus.SUCCESS


def test_idle_connection_is_closed_after_the_acse_timeout(tmp_path):
    with (
        Node(tmp_path, acse_timeout_seconds=0.2) as node,
        socket.create_connection((LOOPBACK, node.port), timeout=20) as idle,
    ):
        assert idle.recv(1) == b""


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x01\x00\xff\xff\xff\xff",
        b"\x04\x00\x00\x00\x00\x01\x00",
        b"\x00",
    ],
)
def test_noise_on_the_port_is_survived(node, noise):
    with socket.create_connection((LOOPBACK, node.port)) as connection:
        connection.sendall(noise)
        connection.shutdown(socket.SHUT_WR)
    assert store(node, small_object()).Status == StoreStatus.SUCCESS


def test_sender_that_dies_half_way_leaves_nothing(node):
    with scanner(node.port) as association:
        request = C_STORE()
        request.MessageID = 5
        request.AffectedSOPClassUID = UltrasoundImageStorage
        request.AffectedSOPInstanceUID = "1.2.3"
        request.Priority = 2
        request.DataSet = io.BytesIO(bytes(100_000))
        message = C_STORE_RQ()
        message.primitive_to_message(request)
        *fragments, _last = list(message.encode_msg(1, 16384))
        for fragment in fragments:
            association.dul.send_pdu(fragment)
        wait_until(lambda: list(node.spool.incoming.iterdir()), "nothing has arrived")
        association.dul.socket.socket.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: not list(node.spool.incoming.iterdir()), "a temporary file stays")
    assert node.is_untouched()
    assert store(node, small_object()).Status == StoreStatus.SUCCESS


def test_stop_lets_an_association_finish(tmp_path):
    with Node(tmp_path) as node:
        sent = [small_object() for _ in range(5)]
        statuses = []
        with scanner(node.port) as association:
            stopping = threading.Thread(target=lambda: node.receiver.stop(grace_seconds=30))
            stopping.start()
            statuses = [association.send_c_store(dataset).Status for dataset in sent]
        stopping.join()
        assert statuses == [StoreStatus.SUCCESS] * 5
        assert len(node.received) == 5


def test_stop_aborts_an_association_that_does_not_end(tmp_path):
    with Node(tmp_path) as node, scanner(node.port) as association:
        association.network_timeout = None  # it does not end of itself
        node.receiver.stop(grace_seconds=0)
        wait_until(lambda: association.is_aborted, "the association was not aborted")
        wait_until(lambda: not node.receiver._connected, "it is held on to")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((LOOPBACK, node.port)).close()


# --- storage commitment ------------------------------------------------------------------------


def report(node, transaction, event_type, **sequences):
    """Send an N-EVENT-REPORT as an archive does, on an association of its own."""
    information = Dataset()
    information.TransactionUID = transaction
    for keyword, items in sequences.items():
        rows = []
        for uid, reason in items:
            row = Dataset()
            row.ReferencedSOPClassUID = UltrasoundImageStorage
            row.ReferencedSOPInstanceUID = uid
            if reason is not None:
                row.FailureReason = reason
            rows.append(row)
        setattr(information, keyword, Sequence(rows))
    entity = AE("PACS")
    entity.add_requested_context(StorageCommitmentPushModel)
    role = build_role(StorageCommitmentPushModel, scp_role=True)
    association = entity.associate(LOOPBACK, node.port, ae_title="NODE", ext_neg=[role])
    assert association.is_established
    status, _ = association.send_n_event_report(
        information, event_type, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
    )
    association.release()
    return status.Status


def test_commitment_report_on_a_new_association_confirms(node):
    dataset = small_object(SOPInstanceUID="1.2.3")
    store(node, dataset)
    node.ledger.release_series(dataset.SeriesInstanceUID, "quiet", soon())
    derive(node.ledger)
    send(node.ledger)
    asked = node.ledger.claim_commit("w", soon())
    node.ledger.start_commit([each.id for each in asked], "w", "2.25.9", much_later())
    assert report(node, "2.25.8", 1, ReferencedSOPSequence=[("2.25.1.2.3", None)]) == 0
    assert node.ledger.instance("1.2.3").stage is Stage.COMMIT
    assert report(node, "2.25.9", 1, ReferencedSOPSequence=[("2.25.1.2.3", None)]) == 0
    assert node.ledger.instance("1.2.3").stage is Stage.AUDIT
    line = node.ledger.events()[-1][1]
    assert (line.name, line.actor, line.destination) == ("instance-confirmed", "NODE", "pacs")


def test_commitment_report_that_cannot_be_recorded_is_answered_as_failed(node, monkeypatch):
    def locked(*_arguments, **_options):
        raise Transient("ledger-unavailable", "the ledger is locked")

    monkeypatch.setattr(node.ledger, "commit_report", locked)
    status = report(node, "2.25.9", 1, ReferencedSOPSequence=[("2.25.1", None)])
    assert status == StoreStatus.PROCESSING_FAILURE


# --- the process -----------------------------------------------------------------------------


def test_receiver_loads_neither_torch_nor_the_model():
    code = (
        "import sys, dicom_node.receive; "
        "print(sorted({'torch', 'model', 'highdicom'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_port_in_use_is_named(node):
    twin = Receiver(node.settings, node.ledger, node.spool)
    with pytest.raises(Exception, match=r"receive\.port"):
        twin.start()


def test_receiver_that_was_killed_has_no_open_association_once_another_one_starts(tmp_path):
    """Under whatever port and host name; those of one that lives stay."""

    def still_open():
        return living.ledger.overview().open_associations

    with Node(tmp_path) as living, ExitStack() as stack:
        killed = Node(tmp_path)
        killed.receiver.start()
        for node in (living, killed):
            association = stack.enter_context(scanner(node.port))
            dataset = small_object(SeriesInstanceUID=f"1.2.{node.port}")
            assert association.send_c_store(dataset).Status == StoreStatus.SUCCESS
        with Node(tmp_path):
            assert still_open() == 2
        killed.receiver._presence._file.close()  # as the kernel does
        with Node(tmp_path / "elsewhere", ledger_url=living.settings.ledger_url):
            assert still_open() == 2
        with Node(tmp_path):
            assert still_open() == 1
        killed.receiver.stop(grace_seconds=0)
        killed.ledger.close()
    with Node(tmp_path) as last:
        assert last.ledger.overview().open_associations == 0


def test_log_holds_no_patient(node, capfd):
    dataset = small_object()
    store(node, dataset)
    store(node, dataset, calling="US2")
    delattr(dataset, "StudyInstanceUID")
    store(node, dataset)
    written = "".join(capfd.readouterr())
    assert dataset.SOPInstanceUID in written
    assert "Marked" not in written
    assert "MARKED" not in written


def test_pynetdicom_formats_no_pdu_for_its_log():
    assert _config.LOG_HANDLER_LEVEL == "none"

"""Storage commitment and its fallbacks, against Orthanc and the embedded PACS."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.sop_class import (
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
)
from structlog.testing import capture_logs

from dicom_node.commit import CommitmentUnsupported, confirm, read_report, request
from dicom_node.demo.pacs import EmbeddedPacs
from dicom_node.errors import NodeError, Transient
from dicom_node.ledger import Ledger
from dicom_node.network.query import QueryUnsupported, held
from dicom_node.network.status import StoreStatus
from dicom_node.receive import Receiver
from dicom_node.records import Arrival, DerivedIdentity, Identity, Stage
from dicom_node.send import send
from dicom_node.spool import Spool
from tests.deliveries import delivery_of, example, series_of, settings_for
from tests.peers import answering, free_port, orthanc, storage_alone, storescp, wait_until


def store(settings, deliveries) -> None:
    assert all(o.error is None for o in send(settings, deliveries, lambda _delivery: None))


def test_report_on_the_same_association_is_returned(tmp_path):
    deliveries = series_of(example(), tmp_path, 2)
    asked = []
    with EmbeddedPacs(tmp_path / "pacs", reporting="same-association") as pacs:
        settings = settings_for(pacs.port)
        store(settings, deliveries)
        confirmation = confirm(settings, deliveries, asked.append)
    assert confirmation.means == "commitment"
    assert confirmation.report is not None
    assert confirmation.report.confirmed == {d.sop_instance_uid for d in deliveries}
    assert confirmation.report.transaction_uid == asked[0] == confirmation.transaction_uid


def test_instance_that_the_archive_lacks_is_reported_with_its_reason(tmp_path):
    kept, lacking = series_of(example(), tmp_path, 2)
    with EmbeddedPacs(tmp_path / "pacs", reporting="same-association") as pacs:
        settings = settings_for(pacs.port)
        store(settings, [kept])
        report = request(settings, "pacs", [kept, lacking], "2.25.1")
    assert report is not None
    assert report.confirmed == {kept.sop_instance_uid}
    assert report.failed == {lacking.sop_instance_uid: StoreStatus.NO_SUCH_INSTANCE}


def test_transaction_is_persisted_before_the_peer_is_asked(tmp_path):
    """The report of a quick archive may reach the receiver before N-ACTION returns."""
    delivery = delivery_of(example())

    def die(_transaction_uid: str) -> None:
        raise KeyboardInterrupt

    with EmbeddedPacs(tmp_path / "pacs", reporting="same-association") as pacs:
        settings = settings_for(pacs.port)
        store(settings, [delivery])
        with pytest.raises(KeyboardInterrupt):
            confirm(settings, [delivery], die)
        assert not pacs.committed


class _Late(EmbeddedPacs):
    """One that reports on an earlier transaction first."""

    def _report(self, request, association):
        earlier = Dataset()
        earlier.update(request)
        earlier.TransactionUID = "2.25.9"
        super()._report(earlier, association)
        super()._report(request, association)


@pytest.mark.parametrize("ledger_answers", [True, False])
def test_report_on_an_earlier_transaction_is_taken_on_the_association_as_well(
    tmp_path, ledger_answers
):
    delivery = delivery_of(example())
    others = []

    def other(report):
        others.append(report)
        if not ledger_answers:
            raise Transient("ledger-unavailable", "no")

    with _Late(tmp_path / "pacs", reporting="same-association") as pacs:
        settings = settings_for(pacs.port)
        store(settings, [delivery])
        with capture_logs() as lines:
            confirmation = confirm(settings, [delivery], lambda _uid: None, other=other)
    refused = [line for line in lines if line["event"] == "commitment-report-not-taken"]
    assert bool(refused) is not ledger_answers
    assert [report.transaction_uid for report in others] == ["2.25.9"]
    assert others[0].confirmed == {delivery.sop_instance_uid}
    assert confirmation.report.transaction_uid == confirmation.transaction_uid


def test_no_report_on_the_association_leaves_the_question_open(tmp_path):
    delivery = delivery_of(example())
    with EmbeddedPacs(tmp_path / "pacs", reporting="never") as pacs:
        settings = settings_for(pacs.port, commitment_wait_seconds=0.1)
        store(settings, [delivery])
        assert confirm(settings, [delivery], lambda _uid: None).report is None


def test_peer_that_never_reports_is_asked_by_query_in_the_end(tmp_path):
    delivery = delivery_of(example())
    with EmbeddedPacs(tmp_path / "pacs", reporting="never") as pacs:
        settings = settings_for(pacs.port, commitment_wait_seconds=0.1)
        store(settings, [delivery])
        confirmation = confirm(settings, [delivery], lambda _uid: None, unanswered=True)
    assert confirmation.means == "query"
    assert confirmation.report.confirmed == {delivery.sop_instance_uid}


def test_peer_that_never_reports_and_cannot_be_queried_is_asked_again(tmp_path):
    delivery = delivery_of(example())
    with EmbeddedPacs(tmp_path / "pacs", reporting="never", find=False) as pacs:
        settings = settings_for(pacs.port, commitment_wait_seconds=0.1)
        store(settings, [delivery])
        confirmation = confirm(settings, [delivery], lambda _uid: None, unanswered=True)
    assert confirmation.means == "commitment"
    assert confirmation.report is None


def test_peer_without_commitment_is_asked_by_query(tmp_path):
    kept, lacking = series_of(example(), tmp_path, 2)
    with EmbeddedPacs(tmp_path / "pacs", commitment=False) as pacs:
        settings = settings_for(pacs.port)
        with pytest.raises(CommitmentUnsupported):
            request(settings, "pacs", [kept], "2.25.1")
        store(settings, [kept])
        confirmation = confirm(settings, [kept, lacking], lambda _uid: None)
        asked_before = [kept, replace(lacking, transaction_uid="2.25.1")]
        second = confirm(settings, asked_before, lambda _uid: None)
    assert confirmation.means == second.means == "query"
    assert confirmation.report.confirmed == second.report.confirmed == {kept.sop_instance_uid}
    assert confirmation.report.failed == {}
    assert second.report.failed == {lacking.sop_instance_uid: StoreStatus.NO_SUCH_INSTANCE}


@pytest.mark.peer
def test_peer_with_neither_is_taken_at_its_status(tmp_path):
    delivery = delivery_of(example())
    with storescp(tmp_path / "scp") as peer:
        settings = settings_for(peer.port)
        store(settings, [delivery])
        with pytest.raises(QueryUnsupported):
            held(settings, "pacs", delivery.study_instance_uid, delivery.series_instance_uid)
        confirmation = confirm(settings, [delivery], lambda _uid: None)
    assert confirmation.means == "status"
    assert confirmation.report.confirmed == {delivery.sop_instance_uid}


@pytest.mark.parametrize("unanswered", [False, True])
def test_peer_that_takes_storage_alone_is_taken_at_its_status(unanswered):
    delivery = delivery_of(example())
    with storage_alone(delivery.sop_class_uid) as port:
        settings = settings_for(port)
        store(settings, [delivery])
        confirmation = confirm(settings, [delivery], lambda _uid: None, unanswered=unanswered)
    assert confirmation.means == "status"
    assert confirmation.report.confirmed == {delivery.sop_instance_uid}


def test_configured_for_none_the_peer_is_not_asked():
    delivery = delivery_of(example())
    confirmation = confirm(settings_for(free_port(), confirm="none"), [delivery], lambda _uid: None)
    assert confirmation.means == "status"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (StoreStatus.OUT_OF_RESOURCES, Transient),
        (StoreStatus.PROCESSING_FAILURE, Transient),
        (StoreStatus.NOT_AUTHORISED, CommitmentUnsupported),
    ],
)
def test_status_of_the_commitment_request_says_whether_to_ask_again(status, error):
    handler = (evt.EVT_N_ACTION, lambda _event: (int(status), None))
    with (
        answering(handler, classes=[StorageCommitmentPushModel]) as port,
        pytest.raises(NodeError, match=f"0x{int(status):04X}") as caught,
    ):
        request(settings_for(port), "pacs", [delivery_of(example())], "2.25.1")
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (StoreStatus.OUT_OF_RESOURCES, Transient),
        (0xA900, QueryUnsupported),
        (0xC001, QueryUnsupported),
    ],
)
def test_query_that_fails_half_way_is_no_answer(status, error):
    """What it had named until then may not be all, and the rest is not lacking."""

    def find(_event):
        found = Dataset()
        found.SOPInstanceUID = "1.2.3"
        yield 0xFF00, found
        yield int(status), None

    model = StudyRootQueryRetrieveInformationModelFind
    with (
        answering((evt.EVT_C_FIND, find), classes=[model]) as port,
        pytest.raises(NodeError, match=f"0x{int(status):04X}") as caught,
    ):
        held(settings_for(port), "pacs", "1.1", "1.2")
    assert type(caught.value) is error


def test_query_whose_association_is_lost_is_asked_again():
    def find(event):
        found = Dataset()
        found.SOPInstanceUID = "1.2.3"
        yield 0xFF00, found
        event.assoc.abort()

    model = StudyRootQueryRetrieveInformationModelFind
    with (
        answering((evt.EVT_C_FIND, find), classes=[model]) as port,
        pytest.raises(Transient, match="association"),
    ):
        held(settings_for(port), "pacs", "1.1", "1.2")


def test_peer_that_is_down_is_transient():
    with pytest.raises(Transient):
        confirm(settings_for(free_port()), [delivery_of(example())], lambda _uid: None)


@pytest.mark.peer
def test_orthanc_answers_queries_at_image_level(tmp_path):
    deliveries = series_of(example(), tmp_path, 2)
    with orthanc(tmp_path / "orthanc") as pacs:
        settings = settings_for(pacs.port)
        store(settings, deliveries[:1])
        first = deliveries[0]
        assert held(settings, "pacs", first.study_instance_uid, first.series_instance_uid) == {
            first.sop_instance_uid
        }
        assert held(settings, "pacs", first.study_instance_uid, "1.2.3") == frozenset()


@pytest.mark.peer
def test_orthanc_commits_by_a_report_to_the_receiver(tmp_path):
    """N-ACTION from here, N-EVENT-REPORT from Orthanc to the node's own AE, ledger done."""
    source = delivery_of(example())
    with (
        Ledger(f"sqlite:///{tmp_path}/ledger.sqlite3") as ledger,
        orthanc(tmp_path / "orthanc", node_port=(port := free_port())) as pacs,
    ):
        settings = settings_for(
            pacs.port, receive={"port": port, "host": "127.0.0.1", "min_free_mb": 0}
        )
        claimed = _sent(ledger, source)
        with Receiver(settings, ledger, Spool(tmp_path / "spool")):
            store(settings, [source])
            confirm(
                settings,
                [source],
                lambda uid: ledger.start_commit([claimed.id], "me", uid),
            )
            stage = lambda: ledger.instance(source.sop_instance_uid + ".1").stage  # noqa: E731
            wait_until(lambda: stage() is Stage.AUDIT, "Orthanc's report arrives")


def _sent(ledger: Ledger, source):
    """Bring one delivery of the derived object `source` to the state SENT."""
    now = datetime.now(UTC)
    identity = Identity(
        source.sop_class_uid, source.sop_instance_uid + ".1", "1.2.3", "1.2", "1.2.840.10008.1.2"
    )
    ledger.record_arrival(Arrival(identity, source.path, 1, "0" * 64, "a", "US1", now))
    ledger.release_series("1.2.3", "test", now)
    instance = ledger.claim_derive("me", now)
    ledger.finish_derive(
        instance.id,
        "me",
        DerivedIdentity(source.sop_instance_uid, source.series_instance_uid),
        source.path,
        destinations=["pacs"],
        sop_class_uid=source.sop_class_uid,
        timings={},
    )
    (claimed,) = ledger.claim_send("me", datetime.now(UTC))
    ledger.mark_sending(claimed.id, "me")
    ledger.mark_sent(claimed.id, "me")
    (claimed,) = ledger.claim_commit("me", datetime.now(UTC))
    return claimed


def test_malformed_report_confirms_nothing_that_it_does_not_name():
    report = Dataset()
    good, nameless, failed = Dataset(), Dataset(), Dataset()
    good.ReferencedSOPInstanceUID = "1.2.3"
    failed.ReferencedSOPInstanceUID = "1.2.4"
    both = Dataset()
    both.ReferencedSOPInstanceUID = "1.2.4"
    report.ReferencedSOPSequence = [good, nameless, both]
    report.FailedSOPSequence = [failed]
    read = read_report(report)
    assert read.transaction_uid == ""
    assert read.confirmed == {"1.2.3"}
    assert read.failed == {"1.2.4": StoreStatus.PROCESSING_FAILURE}


@pytest.mark.parametrize("reason", [None, [0x0112, 0x0110]])
def test_failure_without_a_usable_reason_leaves_the_rest_of_the_report(reason):
    report, good, failed = Dataset(), Dataset(), Dataset()
    good.ReferencedSOPInstanceUID = "1.2.3"
    failed.ReferencedSOPInstanceUID = "1.2.4"
    failed.FailureReason = reason
    report.ReferencedSOPSequence, report.FailedSOPSequence = [good], [failed]
    read = read_report(report)
    assert read.confirmed == {"1.2.3"}
    assert read.failed == {"1.2.4": StoreStatus.PROCESSING_FAILURE}

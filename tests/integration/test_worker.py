"""The worker in this process: what each kind of error does, and that one object cannot stop it."""

from __future__ import annotations

import hashlib
import itertools
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apscheduler.executors.base
import apscheduler.schedulers.base
import pytest
from pydicom import dcmread
from pydicom.uid import UltrasoundImageStorage
from structlog.testing import capture_logs

from dicom_node import commit, schedule, send, worker
from dicom_node.audit import EventName
from dicom_node.config import Settings, SpoolSection, parse
from dicom_node.deliver import Deliverer
from dicom_node.demo.pacs import EmbeddedPacs
from dicom_node.errors import Permanent, Refused, Transient
from dicom_node.ledger import Ledger, confirmations
from dicom_node.records import Arrival, DeliveryState, Identity, Stage
from dicom_node.spool import Spool
from dicom_node.verify import recompute
from tests.builders import MedianDespeckler, write_us_instance
from tests.ledgers import derive, much_later
from tests.ledgers import send as ledger_send
from tests.peers import LOOPBACK, free_port, wait_until

MARK = "Zyxwv^Marked"


@pytest.fixture
def pacs(tmp_path):
    with EmbeddedPacs(tmp_path / "pacs", reporting="same-association") as one:
        yield one


@pytest.fixture
def settings(tmp_path, pacs) -> Settings:
    return settings_with(tmp_path, pacs.port)


def settings_with(tmp_path: Path, port: int, **sections) -> Settings:
    peer = {"ae_title": "PACS", "host": LOOPBACK, "port": port, "receives": True}
    document = {
        "node": {"state_directory": str(tmp_path)},
        "assemble": {"quiet_seconds": 0.1},
        "retry": {"first_seconds": 0.05, "longest_seconds": 0.2, "lease_seconds": 5},
        "peers": {"pacs": peer | sections.pop("peer", {})},
    }
    for name, values in sections.items():
        document[name] = document.get(name, {}) | values
    return parse(document)


@pytest.fixture
def ledger(settings):
    with Ledger(settings.ledger_url, 5) as one:
        yield one


@pytest.fixture
def spool(settings) -> Spool:
    return Spool(settings.spool_directory)


_numbers = itertools.count(1)


def arrive(
    ledger: Ledger,
    spool: Spool,
    calling_ae: str = "US1",
    clock_ahead: timedelta = timedelta(),
    **options,
) -> str:
    """Record one object as the receiver would; return its SOP Instance UID."""
    number = next(_numbers)
    temporary = write_us_instance(spool.incoming / f"{number}", instance=number, **options)
    header = dcmread(temporary, stop_before_pixels=True)
    uid = str(header.SOPInstanceUID)
    content = temporary.read_bytes()
    identity = Identity(
        str(header.SOPClassUID),
        uid,
        str(header.SeriesInstanceUID),
        str(header.StudyInstanceUID),
        str(header.file_meta.TransferSyntaxUID),
    )
    ledger.record_arrival(
        Arrival(
            identity,
            spool.take(temporary, uid),
            len(content),
            hashlib.sha256(content).hexdigest(),
            "association",
            calling_ae,
            datetime.now(UTC) + clock_ahead,
        )
    )
    ledger.close_association("association")
    return uid


@contextmanager
def working(settings, ledger, spool, despeckler=None, others=None):
    despecklers = {settings.despeckle.bundle: despeckler or MedianDespeckler()} | (others or {})
    with worker.Worker(settings, ledger, spool, despecklers) as one:
        yield one


def wait_stage(ledger: Ledger, uid: str, stage: Stage):
    return wait_until(
        lambda: (row := ledger.instance(uid)) and row.stage is stage and row, f"{uid} is {stage}"
    )


def test_instance_goes_all_the_way(settings, ledger, spool, pacs):
    uid = arrive(ledger, spool)
    with working(settings, ledger, spool):
        row = wait_stage(ledger, uid, Stage.DONE)
    assert list(pacs.held) == [row.derived_instance_uid]
    assert pacs.committed == set(pacs.held)
    names = [event.name for _, event in ledger.events()]
    assert names.index(EventName.SERIES_RELEASED) < names.index(EventName.INSTANCE_SENT)
    assert names[-1] == EventName.INSTANCE_COMPLETED
    assert names.index(EventName.INSTANCE_DERIVED) < names.index(EventName.INSTANCE_SENT)
    for name in (EventName.INSTANCE_DERIVED, EventName.INSTANCE_CONFIRMED):
        assert names.count(name) == 1


def test_instance_that_came_before_the_clock_was_set_back_goes_all_the_way(
    settings, ledger, spool, pacs
):
    uid = arrive(ledger, spool, clock_ahead=timedelta(hours=2))
    with working(settings, ledger, spool):
        wait_stage(ledger, uid, Stage.DONE)
    assert len(pacs.held) == 1


def test_bundle_is_the_one_for_the_sender(tmp_path, ledger, spool):
    document = {
        "node": {"state_directory": str(tmp_path)},
        "peers": {
            "breast": {"ae_title": "BREAST", "bundle": "other"},
            "plain": {"ae_title": "US1"},
        },
    }
    default, other = MedianDespeckler(), MedianDespeckler()
    uids = [arrive(ledger, spool, ae) for ae in ("US1", "BREAST", "UNKNOWN")]
    with working(parse(document), ledger, spool, default, {"other": other}):
        for uid in uids:
            wait_stage(ledger, uid, Stage.DONE)
    assert len(default.seen) == 2 * len(other.seen) > 0


def test_strength_is_the_one_for_the_sender(tmp_path, ledger, spool):
    document = {
        "node": {"state_directory": str(tmp_path)},
        "despeckle": {"strength": 0.9},
        "peers": {
            "breast": {"ae_title": "BREAST", "strength": 0.25},
            "raw": {"ae_title": "RAW", "strength": 0.0},
            "plain": {"ae_title": "US1"},
        },
    }
    settings = parse(document)
    uids = {ae: arrive(ledger, spool, ae) for ae in ("US1", "BREAST", "RAW", "UNKNOWN")}
    with working(settings, ledger, spool):
        rows = {ae: wait_stage(ledger, uid, Stage.DONE) for ae, uid in uids.items()}
    for ae, strength in {"US1": 0.9, "BREAST": 0.25, "RAW": 0.0, "UNKNOWN": 0.9}.items():
        derived = dcmread(rows[ae].derived_path)
        assert f"strength {strength:.2f}" in derived.DerivationDescription
        again = recompute(rows[ae].source_path, rows[ae].derived_path, MedianDespeckler(), settings)
        assert again.agrees


def test_without_destinations_an_instance_ends_in_the_spool(tmp_path, ledger, spool):
    settings = parse({"node": {"state_directory": str(tmp_path)}})
    uid = arrive(ledger, spool)
    with working(settings, ledger, spool):
        row = wait_stage(ledger, uid, Stage.DONE)
    assert row.derived_path.exists()


@pytest.mark.parametrize(
    ("error", "stage", "name"),
    [
        (Refused("no-tissue", "nothing to do"), Stage.SKIPPED, EventName.INSTANCE_SKIPPED),
        (Permanent("damaged", "no"), Stage.PARKED, EventName.INSTANCE_PARKED),
    ],
)
def test_error_alone_decides_the_stage(  # noqa: PLR0917
    settings, ledger, spool, monkeypatch, error, stage, name
):
    monkeypatch.setattr(worker, "derive_instance", raising(error))
    uid = arrive(ledger, spool)
    with working(settings, ledger, spool):
        row = wait_stage(ledger, uid, stage)
    assert row.error_code == error.code
    (line,) = [line for _, line in ledger.events() if line.name is name]
    assert (line.sop_instance_uid, line.detail) == (uid, error.code)


@pytest.mark.parametrize("lost", ["prefix", "class"])
def test_acknowledged_object_that_the_disk_damaged_is_parked_and_its_file_kept(
    settings, ledger, spool, lost
):
    uid = arrive(ledger, spool)
    source = ledger.instance(uid).source_path
    whole = source.read_bytes()
    known = str(UltrasoundImageStorage).encode()
    damaged = {"prefix": bytes(len(whole)), "class": whole.replace(known, b"9" * len(known))}[lost]
    source.write_bytes(damaged)
    with working(settings, ledger, spool):
        row = wait_stage(ledger, uid, Stage.PARKED)
        assert row.error_code == "source-damaged"
        source.write_bytes(whole)
        ledger.retry(sop_instance_uid=uid)
        wait_stage(ledger, uid, Stage.DONE)


def test_unexpected_exception_parks_its_object_by_name_and_the_rest_goes_on(
    settings, ledger, spool, monkeypatch
):
    bad = arrive(ledger, spool)
    good = arrive(ledger, spool)
    original = worker.derive_instance

    def derive_or_fail(source, *args, **kwargs):
        if bad in source.name:
            raise ZeroDivisionError(MARK)
        return original(source, *args, **kwargs)

    monkeypatch.setattr(worker, "derive_instance", derive_or_fail)
    with working(settings, ledger, spool):
        row = wait_stage(ledger, bad, Stage.PARKED)
        wait_stage(ledger, good, Stage.DONE)
    assert row.error_code == "unexpected"
    assert "ZeroDivisionError" in row.error
    assert "test_worker.py" in row.error
    assert "Zyxwv" not in row.error


def test_unexpected_exception_over_a_delivery_parks_that_one_and_the_rest_is_sent(
    settings, ledger, spool, monkeypatch
):
    bad, good = arrive(ledger, spool), arrive(ledger, spool)
    original = send._store

    def store(association, delivery, name):
        if delivery.source_instance_uid == bad:
            raise ZeroDivisionError(MARK)
        return original(association, delivery, name)

    monkeypatch.setattr(send, "_store", store)
    with working(settings, ledger, spool):
        row = wait_stage(ledger, bad, Stage.PARKED)
        wait_stage(ledger, good, Stage.DONE)
    assert row.error_code == "unexpected"
    assert "Zyxwv" not in row.error


def test_work_that_fails_at_the_ledger_is_given_back_and_the_error_known(ledger, spool):
    uid = arrive(ledger, spool)
    leases = worker.Leases(ledger)

    def claim_and_fail():
        with leases.owner() as owner:
            assert ledger.claim_derive(owner, much_later()) is not None
            raise Transient("ledger-unavailable", "the ledger is locked")

    with pytest.raises(Transient, match="locked"):
        claim_and_fail()
    again = ledger.claim_derive("another", much_later())
    assert again is not None
    assert again.identity.sop_instance_uid == uid


def test_passing_error_is_repeated_until_it_passes(settings, ledger, spool, monkeypatch):
    original = worker.derive_instance
    failures = iter([Transient("disk-full", "full")] * 3)

    def derive(*args, **kwargs):
        for error in failures:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(worker, "derive_instance", derive)
    uid = arrive(ledger, spool)
    with working(settings, ledger, spool):
        row = wait_stage(ledger, uid, Stage.DONE)
    assert row.error_code is None
    assert next(failures, None) is None


def test_lack_of_memory_is_repeated_and_then_parked(settings, ledger, spool, monkeypatch):
    tries = []

    def derive(*_args, **_kwargs):
        tries.append(1)
        raise MemoryError

    monkeypatch.setattr(worker, "derive_instance", derive)
    uid = arrive(ledger, spool)
    with working(settings, ledger, spool):
        row = wait_stage(ledger, uid, Stage.PARKED)
    assert row.error_code == "out-of-memory"
    assert len(tries) == 3


def test_passing_error_that_lasts_too_long_is_parked_and_retry_revives_it(
    tmp_path, ledger, spool, pacs, monkeypatch
):
    settings = settings_with(tmp_path, pacs.port, retry={"give_up_hours": 1e-5})
    with monkeypatch.context() as patched:
        patched.setattr(worker, "derive_instance", raising(Transient("disk-full", "full")))
        uid = arrive(ledger, spool)
        with working(settings, ledger, spool):
            row = wait_stage(ledger, uid, Stage.PARKED)
    assert row.error_code == "disk-full"
    assert ledger.retry(sop_instance_uid=uid) == 1
    with working(settings, ledger, spool):
        wait_stage(ledger, uid, Stage.DONE)


def test_refusing_pacs_parks_the_delivery_with_its_status(ledger, spool, settings, pacs):
    pacs._answer = lambda _uid: 0xC123
    uid = arrive(ledger, spool)
    with working(settings, ledger, spool):
        row = wait_stage(ledger, uid, Stage.PARKED)
    assert row.error_code == "store-failed"
    assert [event.name for _, event in ledger.events()].count(EventName.INSTANCE_PARKED) == 1
    assert "0xC123" in row.error


def test_pacs_out_of_resources_gets_it_again(ledger, spool, settings, pacs):
    answers = iter([0xA700, 0xA700])
    pacs._answer = lambda _uid: next(answers, 0)
    uid = arrive(ledger, spool)
    with working(settings, ledger, spool):
        row = wait_stage(ledger, uid, Stage.DONE)
    assert pacs.received[row.derived_instance_uid] == 3


def test_warning_counts_as_stored_and_is_audited(ledger, spool, settings, pacs):
    pacs._answer = lambda _uid: 0xB006
    uid = arrive(ledger, spool)
    with working(settings, ledger, spool):
        wait_stage(ledger, uid, Stage.DONE)
    (event,) = [e for _, e in ledger.events() if e.name == EventName.INSTANCE_SENT_WITH_WARNING]
    assert "0xB006" in event.detail


def test_instance_that_the_archive_lost_is_sent_again(ledger, spool, settings, pacs, monkeypatch):
    monkeypatch.setattr(confirmations, "_FIRST_PAUSE", timedelta(seconds=0.05))
    lost = []
    judge = pacs._judge

    def lose_and_judge(request):
        if not lost:
            lost.extend(pacs.held)
            pacs.held.clear()
        return judge(request)

    pacs._judge = lose_and_judge
    uid = arrive(ledger, spool)
    with working(settings, ledger, spool):
        row = wait_stage(ledger, uid, Stage.DONE)
    assert lost == [row.derived_instance_uid]
    assert pacs.received[row.derived_instance_uid] == 2
    assert list(pacs.held) == lost


def test_interrupted_delivery_stays_in_doubt_while_the_pacs_is_down(tmp_path, ledger, spool):
    settings = settings_with(tmp_path, free_port())
    uid = arrive(ledger, spool)
    with working(settings, ledger, spool):
        row = wait_stage(ledger, uid, Stage.SEND)
    ledger.release_series(row.identity.series_instance_uid, "quiet", datetime.now(UTC))
    (delivery,) = ledger.claim_send("dead", much_later())
    ledger.mark_sending(delivery.id, "dead")
    ledger.release("dead")
    Deliverer(settings, ledger, spool, "pacs").step("next", lambda: False)
    (again,) = ledger.claim_send("last", much_later())
    assert again.state is DeliveryState.SENDING


def test_pacs_that_is_down_is_one_line_for_a_series(tmp_path, ledger, spool):
    settings = settings_with(tmp_path, free_port())
    rows = [arrive(ledger, spool) for _ in range(3)]
    with working(settings, ledger, spool):
        for uid in rows:
            held = wait_stage(ledger, uid, Stage.SEND)
    ledger.release_series(held.identity.series_instance_uid, "quiet", datetime.now(UTC))
    time.sleep(0.3)  # whatever the worker has failed at is due again
    with capture_logs() as lines:
        Deliverer(settings, ledger, spool, "pacs").step("next", lambda: False)
    told = [one["log_level"] for one in lines if one["event"] == "delivery-postponed"]
    assert told == ["warning", "debug", "debug"]


def test_where_disk_is_scarce_nothing_is_derived_ahead_of_a_pacs_that_is_down(
    tmp_path, ledger, spool, monkeypatch
):
    settings = settings_with(tmp_path, free_port(), receive={"min_free_mb": 1000})
    arrive(ledger, spool)
    with working(settings, ledger, spool):
        wait_until(ledger.is_failing_to_send, "a failure")
        monkeypatch.setattr(spool, "free_mb", lambda: 1500.0)
        waiting = arrive(ledger, spool)
        time.sleep(1)
        assert ledger.instance(waiting).stage is Stage.DERIVE
        monkeypatch.setattr(spool, "free_mb", lambda: 2500.0)
        wait_stage(ledger, waiting, Stage.SEND)


def test_where_disk_is_scarce_a_late_instance_does_not_keep_its_series_from_a_pacs_that_is_back(
    tmp_path, ledger, spool, monkeypatch
):
    settings = settings_with(tmp_path, free_port(), receive={"min_free_mb": 1000})
    early = arrive(ledger, spool)
    with working(settings, ledger, spool):
        wait_until(ledger.is_failing_to_send, "a failure")
    monkeypatch.setattr(spool, "free_mb", lambda: 1500.0)
    late = arrive(ledger, spool)
    with EmbeddedPacs(tmp_path / "pacs", reporting="same-association") as pacs:
        back = settings_with(tmp_path, pacs.port, receive={"min_free_mb": 1000})
        with working(back, ledger, spool):
            wait_stage(ledger, early, Stage.DONE)
            wait_stage(ledger, late, Stage.DONE)


def test_objects_of_a_state_directory_that_has_moved_are_derived_and_sent(
    tmp_path, ledger, spool, settings, pacs
):
    uid = arrive(ledger, spool)
    spool.root.rename(tmp_path / "moved")
    with working(settings, ledger, Spool(tmp_path / "moved")):
        wait_stage(ledger, uid, Stage.DONE)
    assert len(pacs.held) == 1


def test_first_wait_for_a_report_is_no_failure_and_the_second_one_is(tmp_path, ledger, spool):
    arrive(ledger, spool)
    row = derive(ledger)
    ledger.release_series(row.identity.series_instance_uid, "quiet", datetime.now(UTC))
    ledger_send(ledger)
    with EmbeddedPacs(tmp_path / "mute", reporting="never", find=False) as pacs:
        settings = settings_with(tmp_path, pacs.port, peer={"commitment_wait_seconds": 0.2})
        one = Deliverer(settings, ledger, spool, "pacs")
        assert one.step("first", lambda: False)
        assert ledger.overview().last_errors == ()
        wait_until(lambda: one.step("second", lambda: False), "it is asked again")
    (error,) = ledger.overview().last_errors
    assert error.code == "commitment-unanswered"


def confirmed_by(settings, ledger, spool):
    """By what means one instance is confirmed in the end, an item for each confirmation."""
    uid = arrive(ledger, spool)
    with working(settings, ledger, spool):
        wait_stage(ledger, uid, Stage.DONE)
    return [e.detail for _, e in ledger.events() if e.name == EventName.INSTANCE_CONFIRMED]


def test_pacs_that_never_reports_is_asked_by_query_in_the_end(tmp_path, ledger, spool):
    with EmbeddedPacs(tmp_path / "mute", reporting="never") as pacs:
        settings = settings_with(tmp_path, pacs.port, peer={"commitment_wait_seconds": 0.2})
        assert confirmed_by(settings, ledger, spool) == ["query"]


def test_pacs_that_indexes_late_gets_nothing_twice(tmp_path, ledger, spool, monkeypatch):
    held, asked = commit.query.held, []

    def late(*question):
        asked.append(question)
        return held(*question) if len(asked) > 1 else frozenset()

    monkeypatch.setattr(commit.query, "held", late)
    with EmbeddedPacs(tmp_path / "late", commitment=False) as pacs:
        settings = settings_with(tmp_path, pacs.port, peer={"commitment_wait_seconds": 0.2})
        assert confirmed_by(settings, ledger, spool) == ["query"]
    assert list(pacs.received.values()) == [1]


def test_pacs_that_indexes_late_has_time_for_what_is_sent_again_too(
    tmp_path, ledger, spool, monkeypatch
):
    monkeypatch.setattr(confirmations, "_FIRST_PAUSE", timedelta(seconds=0.05))
    held, asked = commit.query.held, []
    with EmbeddedPacs(tmp_path / "late", commitment=False) as pacs:

        def late(*question):
            """The first copy is lost; the others are found by the second question on."""
            copies = sum(pacs.received.values())
            asked.append(copies)
            found = copies > 1 and asked.count(copies) > 1
            return held(*question) if found else frozenset()

        monkeypatch.setattr(commit.query, "held", late)
        settings = settings_with(tmp_path, pacs.port, peer={"commitment_wait_seconds": 0.2})
        assert confirmed_by(settings, ledger, spool) == ["query"]
    assert list(pacs.received.values()) == [2]


def test_instance_that_every_report_leaves_out_is_asked_for_by_query_in_the_end(
    tmp_path, ledger, spool, pacs, monkeypatch
):
    monkeypatch.setattr(
        commit, "request", lambda *asked, **_: commit.Report(asked[3], frozenset({"1.2.3"}))
    )
    settings = settings_with(tmp_path, pacs.port, peer={"commitment_wait_seconds": 0.2})
    assert confirmed_by(settings, ledger, spool) == ["query"]


def test_pacs_that_never_reports_and_cannot_be_queried_is_parked_with_the_remedy(
    tmp_path, ledger, spool
):
    with EmbeddedPacs(tmp_path / "mute", reporting="never", find=False) as pacs:
        settings = settings_with(
            tmp_path,
            pacs.port,
            peer={"commitment_wait_seconds": 0.2},
            retry={"give_up_hours": 2e-4},
        )
        uid = arrive(ledger, spool)
        with working(settings, ledger, spool):
            row = wait_stage(ledger, uid, Stage.PARKED)
    assert row.error_code == "commitment-unanswered"
    assert "can reach" in row.error
    assert EventName.INSTANCE_PARKED in {line.name for _, line in ledger.events()}
    details = [e.detail for _, e in ledger.events() if e.name == EventName.COMMITMENT_FAILED]
    assert details == ["commitment-unanswered"]
    assert ledger.retry(everything=True) == 1
    assert ledger.overview().deliveries["pacs"] == {DeliveryState.SENT: 1}


def test_slow_pacs_does_not_keep_another_one_waiting(tmp_path, ledger, spool, pacs):
    """One destination does not answer at all; the other has everything meanwhile."""
    dead = {"ae_title": "DEAD", "host": LOOPBACK, "port": free_port(), "receives": True}
    settings = settings_with(tmp_path, pacs.port)
    settings = parse(
        settings.model_dump(mode="json", exclude={"peers"})
        | {"peers": {"pacs": settings.peers["pacs"].model_dump(), "dead": dead}}
    )
    uid = arrive(ledger, spool)
    with working(settings, ledger, spool):
        states = lambda name: ledger.overview().deliveries.get(name, {})  # noqa: E731
        wait_until(lambda: states("pacs").get(DeliveryState.CONFIRMED), "the living one has it")
        wait_until(lambda: ledger.overview().last_errors, "the dead one is noticed")
    assert ledger.instance(uid).stage is Stage.SEND
    assert states("dead") == {DeliveryState.PENDING: 1}


def derived(tmp_path, ledger, spool):
    """An instance that waits for a PACS that is down; its UID."""
    uid = arrive(ledger, spool)
    with working(settings_with(tmp_path, free_port()), ledger, spool):
        wait_until(lambda: ledger.overview().deliveries, "a delivery is there")
    return uid


def test_destination_that_was_removed_from_the_configuration_is_parked(tmp_path, ledger, spool):
    uid = derived(tmp_path, ledger, spool)
    without = parse(
        {"node": {"state_directory": str(tmp_path)}, "assemble": {"quiet_seconds": 0.1}}
    )
    with working(without, ledger, spool):
        row = wait_stage(ledger, uid, Stage.PARKED)
    assert row.error_code == "peer-unknown"
    assert "[peers.pacs]" in row.error


def test_peer_that_is_to_receive_no_longer_is_sent_nothing(tmp_path, ledger, spool, pacs):
    uid = derived(tmp_path, ledger, spool)
    taking = settings_with(tmp_path, pacs.port)
    peer = taking.peers["pacs"].model_copy(update={"receives": False})
    with working(taking.model_copy(update={"peers": {"pacs": peer}}), ledger, spool):
        row = wait_stage(ledger, uid, Stage.PARKED)
    assert row.error_code == "peer-does-not-receive"
    assert not list(pacs.folder.glob("*.dcm"))
    assert ledger.retry(everything=True) == 1
    with working(taking, ledger, spool):
        wait_stage(ledger, uid, Stage.DONE)


def purging(settings: Settings) -> Settings:
    """The settings of one who keeps no files of what has ended."""
    return settings.model_copy(update={"spool": SpoolSection(keep_hours=0)})


def test_ended_files_are_purged_after_their_time_and_rows_stay(tmp_path, ledger, spool, pacs):
    settings = settings_with(tmp_path, pacs.port)  # the worker purges as well
    uid = arrive(ledger, spool)
    with working(settings, ledger, spool):
        row = wait_stage(ledger, uid, Stage.DONE)
    schedule.purge_files(purging(settings), ledger, spool)
    assert not row.source_path.exists()
    assert not row.derived_path.exists()
    assert ledger.instance(uid).stage is Stage.DONE
    assert ledger.expired(datetime.now(UTC) + timedelta(hours=1)) == []


def test_purge_does_not_take_the_files_of_what_comes_again_meanwhile(
    tmp_path, ledger, spool, pacs, monkeypatch
):
    settings = settings_with(tmp_path, pacs.port)
    uids = [arrive(ledger, spool), arrive(ledger, spool)]
    with working(settings, ledger, spool):
        rows = [wait_stage(ledger, uid, Stage.DONE) for uid in uids]
    remove = Spool.remove

    def derived_anew(self, path):
        """While the files of the first one go, the second one comes again and is derived."""
        if path == rows[0].source_path:
            again = self.take(write_us_instance(self.incoming / "again"), uids[1])
            arrival = Arrival(
                rows[1].identity, again, 1, rows[1].sha256, "x", "US1", datetime.now(UTC)
            )
            if ledger.record_arrival(arrival):
                derive(ledger)
                rows[1].derived_path.write_bytes(b"derived anew")
        remove(self, path)

    monkeypatch.setattr(Spool, "remove", derived_anew)
    schedule.purge_files(purging(settings), ledger, spool)
    assert ledger.instance(uids[1]).stage is Stage.DONE or rows[1].derived_path.exists()


def test_what_an_interrupted_purge_leaves_is_swept_away(tmp_path, ledger, spool, pacs, monkeypatch):
    settings = settings_with(tmp_path, pacs.port)  # the worker purges as well
    uid = arrive(ledger, spool)
    with working(settings, ledger, spool):
        row = wait_stage(ledger, uid, Stage.DONE)
    monkeypatch.setattr(schedule, "_ORPHAN_SECONDS", -1.0)
    with monkeypatch.context() as killed:
        killed.setattr(Spool, "remove", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            schedule.purge_files(purging(settings), ledger, spool)
    assert row.source_path.exists()
    another = spool.take(write_us_instance(spool.incoming / "x"), uid)
    schedule.sweep_orphans(ledger, spool)
    assert not row.source_path.exists()
    assert not row.derived_path.exists()
    assert [path.name for path in (spool.root / "quarantine").iterdir()] == [another.name]


def test_files_of_what_has_just_ended_are_kept(tmp_path, ledger, spool, pacs):
    settings = settings_with(tmp_path, pacs.port, spool={"keep_hours": 0.01})
    uid = arrive(ledger, spool)
    with working(settings, ledger, spool):
        row = wait_stage(ledger, uid, Stage.DONE)
        schedule.purge_files(settings, ledger, spool)
    assert row.source_path.exists()
    assert row.derived_path.exists()


def test_sweep_that_fails_is_logged_without_values_and_runs_again():
    runs = []

    def sweep():
        runs.append(1)
        raise ZeroDivisionError(MARK)

    one = schedule.Schedule({"purge": (0.05, sweep)})
    with capture_logs() as lines:
        one.start()
        wait_until(lambda: len(runs) > 1, "it runs again")
        one.stop()
    assert {(line["event"], line["sweep"], line["exception"]) for line in lines} == {
        ("sweep-failed", "purge", "ZeroDivisionError")
    }
    assert MARK not in str(lines)


@pytest.mark.parametrize("step", [timedelta(hours=-1), timedelta(days=-9000), timedelta(days=9000)])
def test_sweeps_go_on_when_the_clock_is_set(step, monkeypatch):
    runs = []
    one = schedule.Schedule({"completeness": (0.05, lambda: runs.append(1))})
    one.start()
    try:
        wait_until(lambda: runs, "it runs")

        class Moved(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.now(tz) + step

        for module in (apscheduler.schedulers.base, apscheduler.executors.base):
            monkeypatch.setattr(module, "datetime", Moved)
        count = len(runs)
        wait_until(lambda: len(runs) > count + 5, "it runs by the new time")
    finally:
        one.stop()


def test_parked_files_are_never_purged_nor_swept(tmp_path, ledger, spool, pacs, monkeypatch):
    settings = settings_with(tmp_path, pacs.port, spool={"keep_hours": 0})
    monkeypatch.setattr(worker, "derive_instance", raising(Permanent("damaged", "no")))
    monkeypatch.setattr(schedule, "_ORPHAN_SECONDS", -1.0)
    uid = arrive(ledger, spool)
    orphan = write_us_instance(spool.received / "orphan.dcm", instance=999)
    with working(settings, ledger, spool):
        row = wait_stage(ledger, uid, Stage.PARKED)
        schedule.purge_files(settings, ledger, spool)
        schedule.sweep_orphans(ledger, spool)
    assert row.source_path.exists()
    assert not orphan.exists()


def raising(error: BaseException):
    def derive(*_args, **_kwargs):
        raise error

    return derive

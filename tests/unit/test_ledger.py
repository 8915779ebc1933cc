from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FuturesTimeout
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
import structlog

from dicom_node.audit import Event, EventName, Outcome, event
from dicom_node.errors import ConfigError, Permanent, Refused, Transient
from dicom_node.ledger import LeaseLost, Ledger
from dicom_node.ledger import schema as ledger_schema
from dicom_node.ledger.schema import DELIVERY_TRANSITIONS, STAGE_TRANSITIONS, deliveries
from dicom_node.records import (
    DERIVED_FILE_UNREADABLE,
    SOURCE_DAMAGED,
    DeliveryState,
    DerivedIdentity,
    Stage,
)
from tests.ledgers import (
    DATABASES,
    derive,
    derived_of,
    empty_ledger_url,
    much_later,
    send,
    soon,
    stage_of,
)
from tests.postgres import Relay
from tests.receiving import START, after, arrival

BAD = Permanent("pixel-data-truncated", "(7FE0,0010) is too short; send it again")
DOWN = Transient("peer-unreachable", "pacs: connection refused")
SKIP = Refused("not-ultrasound", "an SR")
NO_TISSUE = Refused("no-tissue", "nothing to change")


@pytest.fixture(params=DATABASES)
def url(request, tmp_path):
    return empty_ledger_url(request.param, tmp_path)


@pytest.fixture
def ledger(url):
    with Ledger(url) as opened:
        yield opened


def released(ledger: Ledger, *instances: str, destinations=("pacs",)) -> None:
    """Instances that are derived and whose series may be sent."""
    for each in instances:
        ledger.record_arrival(arrival(each))
        derive(ledger, destinations=destinations)
    ledger.release_series("1.2", "quiet", soon())


def complete(ledger: Ledger, transaction: str = "2.25.7") -> None:
    """The one instance is derived, sent, confirmed and closed."""
    committing(ledger, "1.2.3", transaction=transaction)
    ledger.commit_report(transaction, ["2.25.1.2.3"], {})
    ledger.finish_audit(ledger.claim_audit("w", soon()).id, "w")


def names(ledger: Ledger) -> list[str]:
    return [str(line.name) for _, line in ledger.events()]


# --- arrivals ------------------------------------------------------------------------------


def test_arrival_waits_for_derive(ledger):
    came = arrival()
    assert ledger.record_arrival(came)
    held = ledger.instance("1.2.3")
    assert held is not None
    assert held.stage is Stage.DERIVE
    assert held.identity == came.identity
    assert (held.source_path, held.size, held.sha256) == (came.path, came.size, came.sha256)
    assert (held.received_at, held.calling_ae) == (START, "US1")
    assert names(ledger) == ["instance-received"]


def test_same_bytes_again_are_no_second_row(ledger):
    first = arrival()
    assert ledger.record_arrival(first)
    assert not ledger.record_arrival(arrival())
    assert ledger.overview().stages == {Stage.DERIVE: 1}
    assert ledger.known_files() == {first.path}
    assert names(ledger) == ["instance-received"]


def test_other_bytes_of_a_held_instance_keep_the_first_and_are_audited(ledger):
    first = arrival()
    ledger.record_arrival(first)
    assert not ledger.record_arrival(arrival(sha256="1" * 64))
    assert ledger.known_files() == {first.path}
    assert names(ledger) == ["instance-received", "instance-differs"]


@pytest.mark.parametrize("stage", [Stage.SEND, Stage.COMMIT, Stage.DONE])
def test_other_bytes_never_replace_what_was_derived(ledger, stage):
    released(ledger, "1.2.3", destinations=() if stage is Stage.DONE else ("pacs",))
    if stage is Stage.COMMIT:
        send(ledger)
    if stage is Stage.DONE:
        audited = ledger.claim_audit("w", soon())
        ledger.finish_audit(audited.id, "w")
    assert stage_of(ledger) is stage
    assert not ledger.record_arrival(arrival(sha256="1" * 64))
    assert stage_of(ledger) is stage


def test_repaired_copy_of_an_instance_parked_in_derive_replaces_it(ledger):
    ledger.record_arrival(arrival())
    ledger.park(ledger.claim_derive("w", soon()).id, "w", BAD)
    repaired = arrival(sha256="1" * 64)
    assert ledger.record_arrival(repaired)
    claimed = ledger.claim_derive("w", soon())
    assert claimed.source_path == repaired.path
    assert (claimed.attempts, claimed.error_code) == (1, None)


def test_same_bytes_of_an_instance_parked_in_derive_stay_parked(ledger):
    ledger.record_arrival(arrival())
    ledger.park(ledger.claim_derive("w", soon()).id, "w", BAD)
    assert not ledger.record_arrival(arrival())
    assert stage_of(ledger) is Stage.PARKED


def test_same_bytes_of_an_instance_whose_file_was_damaged_here_replace_it(ledger):
    ledger.record_arrival(arrival())
    damaged = Permanent(SOURCE_DAMAGED, "the disk lost it")
    ledger.park(ledger.claim_derive("w", soon()).id, "w", damaged)
    assert ledger.record_arrival(arrival())
    assert stage_of(ledger) is Stage.DERIVE


def test_other_bytes_of_an_instance_parked_in_audit_do_not_replace_it(ledger):
    released(ledger, "1.2.3", destinations=())
    ledger.park(ledger.claim_audit("w", soon()).id, "w", BAD)
    assert not ledger.record_arrival(arrival(sha256="1" * 64))


def test_skipped_arrival_is_recorded_with_its_reason_and_never_claimed(ledger):
    assert ledger.record_arrival(arrival(), skip=SKIP)
    held = ledger.instance("1.2.3")
    assert (held.stage, held.error_code) == (Stage.SKIPPED, "not-ultrasound")
    assert ledger.claim_derive("w", much_later()) is None
    assert ledger.series_arrivals(soon()) == []
    assert names(ledger) == ["instance-skipped"]


def test_same_bytes_of_an_instance_that_the_worker_skipped_are_taken_again(ledger):
    ledger.record_arrival(arrival())
    ledger.skip(ledger.claim_derive("w", soon()).id, "w", NO_TISSUE)
    other = arrival("1.2.4", received_at=after(1))
    ledger.record_arrival(other)
    again = arrival()
    assert ledger.record_arrival(again)
    assert ledger.known_files() == {again.path, other.path}
    claimed = ledger.claim_derive("w", soon())
    assert (claimed.source_path, claimed.error_code) == (again.path, None)


def test_same_bytes_of_an_instance_that_the_receiver_skipped_stay_skipped(ledger):
    ledger.record_arrival(arrival(), skip=SKIP)
    assert not ledger.record_arrival(arrival(), skip=SKIP)
    assert stage_of(ledger) is Stage.SKIPPED


def test_same_bytes_of_an_instance_that_is_done_are_taken_again_once_its_files_are_gone(ledger):
    complete(ledger)
    assert not ledger.record_arrival(arrival())
    ledger.forget_files([1])
    assert not ledger.record_arrival(arrival(sha256="1" * 64)), "not what was derived"
    assert ledger.record_arrival(arrival())
    assert stage_of(ledger) is Stage.DERIVE
    assert len(ledger.series_arrivals(soon())) == 1, "its series is released anew"


def test_own_derived_object_that_comes_back_is_skipped_whatever_its_content(ledger):
    released(ledger, "1.2.3")
    assert ledger.record_arrival(arrival("2.25.1.2.3", "2.25.1.2"))
    held = ledger.instance("2.25.1.2.3")
    assert (held.stage, held.error_code) == (Stage.SKIPPED, "own-output")


def test_batch_is_recorded_as_a_whole_or_not_at_all(ledger):
    good = arrival("1.2.3")
    bad = arrival("1.2.4", received_at="not a time")
    with pytest.raises((sa.exc.StatementError, AttributeError)):
        ledger.record_arrivals([(good, None), (bad, None)])
    assert ledger.overview().stages == {}


def test_two_associations_that_deliver_one_instance_at_once_make_one_row(ledger):
    together = threading.Barrier(4)
    outcomes = []

    def deliver(number: int) -> None:
        together.wait()
        outcomes.append(ledger.record_arrival(arrival(association=f"host/{number}")))

    threads = [threading.Thread(target=deliver, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False, False, False, True]
    assert ledger.overview().stages == {Stage.DERIVE: 1}


# --- series ----------------------------------------------------------------------------------


def test_series_knows_its_arrivals_and_its_open_associations(ledger):
    ledger.record_arrival(arrival("1.2.3", association="host/1"))
    ledger.record_arrival(arrival("1.2.4", association="host/2", received_at=after(5)))
    (waiting,) = ledger.series_arrivals(soon())
    assert (waiting.first_arrival, waiting.last_arrival) == (START, after(5))
    assert (waiting.open_associations, waiting.unsent) == (2, 2)
    ledger.close_association("host/1")
    (waiting,) = ledger.series_arrivals(soon())
    assert waiting.open_associations == 1


def test_series_counts_its_own_instances_and_associations_alone(ledger):
    ledger.record_arrival(arrival("1.2.3", association="a"))
    for uid in ("1.9.3", "1.9.4"):
        ledger.record_arrival(arrival(uid, series="1.9", association=uid))
    counts = {
        each.series_instance_uid: (each.unsent, each.open_associations)
        for each in ledger.series_arrivals(soon())
    }
    assert counts == {"1.2": (1, 1), "1.9": (2, 2)}


def test_arrivals_recorded_out_of_order_keep_the_latest_time(ledger):
    ledger.record_arrival(arrival("1.2.3", received_at=after(9)))
    ledger.record_arrival(arrival("1.2.4", received_at=after(4)))
    assert ledger.series_arrivals(soon())[0].last_arrival == after(9)


def test_repeated_instance_keeps_the_series_of_its_association_open(ledger):
    ledger.record_arrival(arrival("1.2.3", association="host/1"))
    ledger.close_association("host/1")
    ledger.record_arrival(arrival("1.2.3", association="host/2"))
    assert ledger.series_arrivals(soon())[0].open_associations == 1


def test_restarted_receiver_forgets_its_own_associations_only(ledger):
    ledger.record_arrival(arrival("1.2.3", association="a_b/1"))
    ledger.record_arrival(arrival("1.2.4", association="axb/1"))
    ledger.forget_associations("a_b/")
    assert ledger.series_arrivals(soon())[0].open_associations == 1
    ledger.forget_associations()
    assert ledger.series_arrivals(soon())[0].open_associations == 0


def test_series_is_sent_only_after_its_release(ledger):
    ledger.record_arrival(arrival())
    derive(ledger)
    assert ledger.claim_send("w", soon()) == []
    ledger.release_series("1.2", "quiet", soon())
    assert ledger.series_arrivals(soon()) == []
    assert len(ledger.claim_send("w", soon())) == 1


def test_series_that_two_workers_release_is_released_once(ledger):
    ledger.record_arrival(arrival())
    assert [ledger.release_series("1.2", "quiet", soon()) for _ in range(2)] == [True, False]
    names = [line.name for _, line in ledger.events()]
    assert names.count(EventName.SERIES_RELEASED) == 1


def test_release_is_of_one_series(ledger):
    ledger.record_arrival(arrival())
    ledger.record_arrival(arrival("1.9.3", series="1.9"))
    ledger.release_series("1.2", "quiet", soon())
    assert [each.series_instance_uid for each in ledger.series_arrivals(soon())] == ["1.9"]


def test_released_series_waits_for_instances_that_are_still_being_derived(ledger):
    released(ledger, "1.2.3")
    ledger.record_arrival(arrival("1.2.4"))
    ledger.release_series("1.2", "waited-long-enough", soon())
    assert ledger.claim_send("w", soon()) == []
    derive(ledger)
    assert len(ledger.claim_send("w", soon())) == 2


def test_series_is_neither_sent_with_another_ones_release_nor_held_up_by_its_derive(ledger):
    released(ledger, "1.2.3")
    ledger.record_arrival(arrival("1.9.3", series="1.9"))
    derive(ledger)
    ledger.record_arrival(arrival("1.9.4", series="1.9"))
    assert [each.source_instance_uid for each in send(ledger)] == ["1.2.3"]
    assert ledger.claim_send("w", soon()) == []
    derive(ledger)
    assert ledger.claim_send("w", soon()) == []


def test_released_series_does_not_wait_for_an_instance_that_fails(ledger):
    released(ledger, "1.2.3")
    ledger.record_arrival(arrival("1.2.4"))
    ledger.release_series("1.2", "waited-long-enough", soon())
    ledger.retry_later(ledger.claim_derive("w", soon()).id, "w", DOWN, much_later())
    assert len(ledger.claim_send("w", soon())) == 1


def test_late_instance_makes_its_series_wait_again_and_joins_it(ledger):
    released(ledger, "1.2.3")
    send(ledger)
    late = after(3600)
    ledger.record_arrival(arrival("1.2.4", received_at=late))
    (waiting,) = ledger.series_arrivals(soon())
    assert (waiting.first_arrival, waiting.last_arrival, waiting.unsent) == (late, late, 1)
    derive(ledger)
    assert ledger.claim_send("w", soon()) == []
    ledger.release_series("1.2", "quiet", soon())
    (delivery,) = ledger.claim_send("w", soon())
    assert delivery.series_instance_uid == "2.25.1.2"


# --- claims and leases ----------------------------------------------------------------------


def test_claims_go_by_order_of_arrival(ledger):
    ledger.record_arrival(arrival("1.2.9", received_at=after(2)))
    ledger.record_arrival(arrival("1.2.8", received_at=after(1)))
    claimed = [ledger.claim_derive("w", soon()).identity.sop_instance_uid for _ in range(2)]
    assert claimed == ["1.2.8", "1.2.9"]


def test_claimed_work_is_nobody_elses_until_its_lease_has_run_out(ledger):
    ledger.record_arrival(arrival())
    now = soon()
    assert ledger.claim_derive("dead", now) is not None
    assert ledger.claim_derive("other", now) is None
    assert ledger.reclaim_expired(now + timedelta(seconds=59)) == 0
    assert ledger.reclaim_expired(now + timedelta(seconds=61)) == 1
    again = ledger.claim_derive("other", now)
    assert again.attempts == 2
    assert again.failing_since is not None


def test_heartbeat_keeps_the_leases_of_its_owner_only(ledger):
    ledger.record_arrival(arrival("1.2.3"))
    ledger.record_arrival(arrival("1.2.4"))
    now = soon()
    alive, dead = ledger.claim_derive("alive", now), ledger.claim_derive("dead", now)
    ledger.heartbeat("alive", now + timedelta(seconds=50))
    assert ledger.reclaim_expired(now + timedelta(seconds=61)) == 1
    assert ledger.claim_derive("other", now).id == dead.id
    ledger.skip(alive.id, "alive", SKIP)


def test_worker_that_lost_its_lease_changes_nothing(ledger):
    ledger.record_arrival(arrival())
    now = soon()
    instance = ledger.claim_derive("slow", now)
    ledger.reclaim_expired(now + timedelta(seconds=61))
    ledger.claim_derive("fast", now)
    for attempt in (
        lambda: ledger.park(instance.id, "slow", BAD),
        lambda: ledger.skip(instance.id, "slow", SKIP),
        lambda: ledger.retry_later(instance.id, "slow", DOWN, now),
        lambda: ledger.finish_derive(
            instance.id,
            "slow",
            derived_of(instance),
            Path("x"),
            destinations=["pacs"],
            sop_class_uid="1.2",
            timings={},
        ),
    ):
        with pytest.raises(LeaseLost):
            attempt()
    assert stage_of(ledger) is Stage.DERIVE


def test_owner_of_two_instances_finishes_the_one_that_it_names(ledger):
    for uid in ("1.2.3", "1.2.4"):
        ledger.record_arrival(arrival(uid))
    first, second = (ledger.claim_derive("w", soon()) for _ in range(2))
    ledger.skip(second.id, "w", NO_TISSUE)
    ledger.park(first.id, "w", BAD)
    assert (stage_of(ledger, "1.2.3"), stage_of(ledger, "1.2.4")) == (Stage.PARKED, Stage.SKIPPED)


def test_clean_stop_gives_work_back_at_once_and_counts_no_failure(ledger):
    ledger.record_arrival(arrival())
    ledger.claim_derive("w", soon())
    assert ledger.release("w") == 1
    assert ledger.claim_derive("other", soon()).failing_since is None


def test_object_that_kills_its_workers_is_parked(ledger):
    ledger.record_arrival(arrival())
    now = soon()
    for _ in range(5):
        assert ledger.claim_derive("w", now) is not None
        now += timedelta(seconds=61)
        ledger.reclaim_expired(now)
    held = ledger.instance("1.2.3")
    assert (held.stage, held.error_code) == (Stage.PARKED, "worker-died")
    assert ledger.retry(everything=True) == 1
    assert ledger.claim_derive("w", much_later()) is not None


HOUR = timedelta(hours=1)


def test_what_came_before_the_clock_was_set_back_does_not_wait_for_its_time(ledger):
    now = soon()
    ledger.record_arrival(arrival("1.2.3", received_at=now + HOUR))
    assert ledger.claim_derive("w", now) is None
    assert ledger.pull_in(now, HOUR / 2) == 2  # the instance and its series
    assert ledger.claim_derive("w", now)
    (series,) = ledger.series_arrivals(now)
    assert series.last_arrival == series.first_arrival == now


def test_work_of_a_worker_that_died_before_the_clock_was_set_back_is_reclaimed(ledger):
    now = soon()
    ledger.record_arrival(arrival("1.2.3"))
    ledger.claim_derive("dead", now + HOUR)
    assert ledger.reclaim_expired(now + timedelta(seconds=61)) == 0
    assert ledger.pull_in(now, HOUR / 2) == 1
    assert ledger.reclaim_expired(now + timedelta(seconds=61)) == 1


def test_what_was_postponed_as_it_should_be_waits_though_the_clock_is_looked_at(ledger):
    committing(ledger, "1.2.3")
    for number in range(9, 20):
        ledger.commit_report(f"2.25.{number}", [], {"2.25.1.2.3": 0x0112})
        send(ledger, now=much_later())
        (again,) = ledger.claim_commit("w", soon())
        ledger.start_commit([again.id], "w", f"2.25.{number + 1}", soon() + HOUR / 4)
    assert ledger.pull_in(datetime.now(UTC), HOUR / 2) == 0
    ledger.commit_report("2.25.20", [], {"2.25.1.2.3": 0x0112})
    assert ledger.pull_in(datetime.now(UTC), HOUR / 2) == 0


def test_what_an_archive_did_not_keep_waits_no_longer_than_it_ever_does(ledger):
    committing(ledger, "1.2.3")
    ledger.commit_report("2.25.9", [], {"2.25.1.2.3": 0x0112})
    a_year_back = datetime.now(UTC) - timedelta(days=365)
    assert ledger.claim_send("w", a_year_back) == []
    ledger.pull_in(a_year_back, HOUR / 2)
    assert ledger.claim_send("w", a_year_back)


def test_files_of_what_ended_before_the_clock_was_set_back_expire(ledger):
    complete(ledger)
    ledger.record_arrival(arrival("1.2.4", received_at=datetime.now(UTC)), skip=SKIP)
    a_year_back = datetime.now(UTC) - timedelta(days=365)
    assert ledger.expired(a_year_back + HOUR) == []
    ledger.pull_in(a_year_back, HOUR / 2)
    assert len(ledger.expired(a_year_back + HOUR)) == 2


def test_failed_work_waits_until_it_is_due_and_remembers_since_when_it_fails(ledger):
    ledger.record_arrival(arrival())
    now = soon()
    due = now + timedelta(seconds=30)
    first = ledger.claim_derive("w", now)
    ledger.retry_later(first.id, "w", DOWN, due)
    assert ledger.claim_derive("w", due - timedelta(seconds=1)) is None
    second = ledger.claim_derive("w", due)
    assert (second.attempts, second.error_code) == (2, "peer-unreachable")
    ledger.retry_later(second.id, "w", DOWN, due)
    assert ledger.claim_derive("w", due).failing_since == second.failing_since


def test_failure_of_one_instance_leaves_the_others_as_they_are(ledger):
    for uid in ("1.2.3", "1.2.4", "1.2.5"):
        ledger.record_arrival(arrival(uid))
    failing = ledger.claim_derive("w", soon())
    ledger.claim_derive("another", soon())
    ledger.retry_later(failing.id, "w", DOWN, much_later())
    waiting = ledger.claim_derive("third", soon())
    assert waiting.identity.sop_instance_uid == "1.2.5"
    assert (waiting.error_code, waiting.failing_since) == (None, None)
    assert ledger.claim_derive("fourth", soon()) is None, "the other's lease holds"


def test_finished_derive_starts_one_delivery_for_each_destination(ledger):
    released(ledger, "1.2.3", destinations=("pacs", "archive"))
    first, second = ledger.claim_send("w", soon()), ledger.claim_send("w", soon())
    assert {first[0].destination, second[0].destination} == {"pacs", "archive"}
    held = ledger.instance("1.2.3")
    assert held.derived_instance_uid == "2.25.1.2.3"
    assert held.derived_path == Path("/spool/derived/2.25.1.2.3.dcm")
    assert held.timings == {"derive": 1.0}
    assert first[0].source_instance_uid == "1.2.3"
    assert first[0].study_instance_uid == "1.1"


def test_instance_without_destination_goes_to_its_audit(ledger):
    ledger.record_arrival(arrival())
    derive(ledger, destinations=())
    closing = event(EventName.INSTANCE_COMPLETED, sop_instance_uid="1.2.3")
    ledger.finish_audit(ledger.claim_audit("w", soon()).id, "w", closing)
    assert stage_of(ledger) is Stage.DONE
    assert names(ledger)[-1] == "instance-completed"


def test_stage_out_of_turn_is_a_fault(ledger):
    ledger.record_arrival(arrival())
    instance = ledger.claim_derive("w", soon())
    with pytest.raises(Permanent, match="cannot go from derive to done"):
        ledger.finish_audit(instance.id, "w")
    assert stage_of(ledger) is Stage.DERIVE


def test_delivery_out_of_turn_is_a_fault(ledger):
    released(ledger, "1.2.3")
    (delivery,) = ledger.claim_send("w", soon())
    with pytest.raises(Permanent, match="cannot go from pending to sent"):
        ledger.mark_sent(delivery.id, "w")
    assert ledger.overview().deliveries == {"pacs": {DeliveryState.PENDING: 1}}


# --- deliveries --------------------------------------------------------------------------------


def test_claimed_send_is_one_series_for_one_destination(ledger):
    for series in ("1.2", "1.3"):
        for number in (1, 2):
            ledger.record_arrival(arrival(f"{series}.{number}", series))
            derive(ledger, destinations=("pacs", "archive"))
        ledger.release_series(series, "quiet", soon())
    groups = []
    while claimed := ledger.claim_send("w", soon()):
        groups.append({(each.series_instance_uid, each.destination) for each in claimed})
        assert len(claimed) == 2
    assert len(groups) == 4
    assert all(len(group) == 1 for group in groups)


def test_interrupted_send_stays_in_doubt_so_that_the_next_sender_asks(ledger):
    released(ledger, "1.2.3", "1.2.4")
    now = soon()
    first, second = ledger.claim_send("dead", now)
    ledger.mark_sending(first.id, "dead")
    ledger.reclaim_expired(now + timedelta(seconds=61))
    states = {each.id: each.state for each in ledger.claim_send("next", now)}
    assert states == {first.id: DeliveryState.SENDING, second.id: DeliveryState.PENDING}


def test_instance_is_committed_when_every_destination_has_it(ledger):
    released(ledger, "1.2.3", destinations=("pacs", "archive"))
    send(ledger)
    assert stage_of(ledger) is Stage.SEND
    send(ledger)
    assert stage_of(ledger) is Stage.COMMIT


def committing(ledger: Ledger, *instances: str, transaction: str = "2.25.9") -> None:
    released(ledger, *instances)
    send(ledger)
    asked = ledger.claim_commit("w", soon())
    ledger.start_commit([each.id for each in asked], "w", transaction, much_later())


def test_report_that_comes_twice_does_not_speak_of_what_was_sent_again_meanwhile(ledger):
    committing(ledger, "1.2.3")
    assert ledger.commit_report("2.25.9", [], {"2.25.1.2.3": 0x0112}) == 1
    send(ledger, now=much_later())
    assert ledger.commit_report("2.25.9", [], {"2.25.1.2.3": 0x0112}) == 0
    (again,) = ledger.claim_commit("w", soon())
    assert again.transaction_uid is None, "nothing was asked about it yet"
    ledger.release("w")
    assert ledger.commit_report("2.25.9", ["2.25.1.2.3"], {}) == 1


def test_commitment_report_confirms_and_is_idempotent(ledger):
    committing(ledger, "1.2.3", "1.2.4")
    safe = ["2.25.1.2.3", "2.25.1.2.4"]
    assert ledger.commit_report("2.25.9", safe, {}) == 2
    assert ledger.commit_report("2.25.9", safe, {}) == 0
    assert ledger.overview().deliveries == {"pacs": {DeliveryState.CONFIRMED: 2}}
    assert stage_of(ledger) is Stage.AUDIT


def test_report_of_an_unknown_transaction_changes_nothing(ledger):
    committing(ledger, "1.2.3")
    assert ledger.commit_report("2.25.666", ["2.25.1.2.3"], {}) == 0
    assert stage_of(ledger) is Stage.COMMIT


def test_report_of_an_earlier_question_still_confirms(ledger):
    committing(ledger, "1.2.3")
    asked = ledger.claim_commit("w", much_later())
    ledger.start_commit([each.id for each in asked], "w", "2.25.10", much_later())
    assert ledger.commit_report("2.25.9", ["2.25.1.2.3"], {}) == 1


def test_failure_of_an_earlier_question_does_not_count(ledger):
    committing(ledger, "1.2.3")
    asked = ledger.claim_commit("w", much_later())
    ledger.start_commit([each.id for each in asked], "w", "2.25.10", much_later())
    assert ledger.commit_report("2.25.9", [], {"2.25.1.2.3": 0x0112}) == 0
    assert stage_of(ledger) is Stage.COMMIT


def test_object_that_the_archive_lost_is_sent_again_after_a_pause(ledger):
    committing(ledger, "1.2.3", "1.2.4")
    assert ledger.commit_report("2.25.9", ["2.25.1.2.4"], {"2.25.1.2.3": 0x0112}) == 2
    assert stage_of(ledger, "1.2.3") is Stage.SEND
    assert stage_of(ledger, "1.2.4") is Stage.AUDIT
    assert ledger.claim_send("w", datetime.now(UTC)) == []
    (again,) = ledger.claim_send("w", much_later())
    assert (again.sop_instance_uid, again.state) == ("2.25.1.2.3", DeliveryState.PENDING)
    assert again.failing_since is not None


def test_archive_that_renames_what_it_takes_gets_few_copies(ledger):
    committing(ledger, "1.2.3")
    hours, copies = 0.0, 1
    while hours < 72:
        asked = datetime.now(UTC)
        ledger.commit_report(f"2.25.{8 + copies}", [], {"2.25.1.2.3": 0x0112})
        with ledger._database.read() as connection:
            due = connection.scalar(sa.select(deliveries.c.due_at))
        hours += (due - asked).total_seconds() / 3600
        send(ledger, now=due)
        copies += 1
        (again,) = ledger.claim_commit("w", soon())
        ledger.start_commit([again.id], "w", f"2.25.{8 + copies}", much_later())
    assert copies < 24
    with ledger._database.read() as connection:
        assert "under the UID that it came with" in connection.scalar(sa.select(deliveries.c.error))


def test_object_that_the_archive_will_never_commit_to_is_parked_with_the_reason(ledger):
    committing(ledger, "1.2.3")
    ledger.commit_report("2.25.9", [], {"2.25.1.2.3": 0x0122})
    held = ledger.instance("1.2.3")
    assert (held.stage, held.error_code) == (Stage.PARKED, "commitment-refused")
    assert "0x0122" in held.error
    assert ledger.retry(sop_instance_uid="1.2.3") == 1
    assert len(send(ledger)) == 1


def test_commitment_that_fails_for_too_long_is_parked(url):
    with Ledger(url, give_up_hours=0) as ledger:
        committing(ledger, "1.2.3")
        ledger.commit_report("2.25.9", [], {"2.25.1.2.3": 0x0110})
        assert stage_of(ledger) is Stage.SEND
        send(ledger, now=much_later())
        asked = ledger.claim_commit("w", much_later())
        ledger.start_commit([each.id for each in asked], "w", "2.25.11", much_later())
        ledger.commit_report("2.25.11", [], {"2.25.1.2.3": 0x0110})
        assert stage_of(ledger) is Stage.PARKED


def test_unanswered_question_is_asked_again_when_its_wait_is_over(ledger):
    committing(ledger, "1.2.3")
    assert ledger.claim_commit("w", soon()) == []
    assert len(ledger.claim_commit("w", much_later())) == 1


def test_any_worker_may_conclude_a_delivery_that_waits_for_its_report(ledger):
    committing(ledger, "1.2.3")
    ledger.confirm([1], "another")
    assert stage_of(ledger) is Stage.AUDIT


def test_confirmed_delivery_cannot_be_changed(ledger):
    committing(ledger, "1.2.3")
    ledger.confirm([1], "w")
    with pytest.raises(LeaseLost):
        ledger.resend_delivery(1, "w", DOWN, soon())


def test_parked_delivery_does_not_hold_up_the_other_destination(ledger):
    released(ledger, "1.2.3", destinations=("pacs", "archive"))
    (refused,) = ledger.claim_send("w", soon())
    ledger.mark_sending(refused.id, "w")
    ledger.park_delivery(refused.id, "w", BAD)
    assert stage_of(ledger) is Stage.SEND
    (other,) = send(ledger)
    ledger.confirm([other.id], "w")
    held = ledger.instance("1.2.3")
    assert (held.stage, held.error_code) == (Stage.PARKED, BAD.code)


def test_failed_send_is_repeated_when_due(ledger):
    released(ledger, "1.2.3")
    now = soon()
    (delivery,) = ledger.claim_send("w", now)
    due = now + timedelta(seconds=30)
    ledger.retry_delivery(delivery.id, "w", DOWN, due)
    assert ledger.claim_send("w", due - timedelta(seconds=1)) == []
    (again,) = ledger.claim_send("w", due)
    assert (again.attempts, again.state) == (2, DeliveryState.PENDING)


def test_what_failed_before_an_object_was_sent_is_over_once_it_is(ledger):
    released(ledger, "1.2.3")
    ledger.retry_delivery(ledger.claim_send("w", soon())[0].id, "w", DOWN, START)
    send(ledger)
    (delivery,) = ledger.claim_commit("w", soon())
    assert (delivery.failing_since, delivery.attempts) == (None, 1)
    assert ledger.overview().last_errors == ()


def test_sender_that_lost_its_lease_changes_nothing(ledger):
    released(ledger, "1.2.3")
    now = soon()
    (delivery,) = ledger.claim_send("slow", now)
    ledger.reclaim_expired(now + timedelta(seconds=61))
    ledger.claim_send("fast", now)
    for attempt in (
        lambda: ledger.mark_sending(delivery.id, "slow"),
        lambda: ledger.mark_sent(delivery.id, "slow"),
        lambda: ledger.park_delivery(delivery.id, "slow", BAD),
        lambda: ledger.retry_delivery(delivery.id, "slow", DOWN, now),
        lambda: ledger.confirm([delivery.id], "slow"),
    ):
        with pytest.raises(LeaseLost):
            attempt()


# --- the operator --------------------------------------------------------------------------------


def test_retry_returns_parked_work_to_the_stage_it_failed_in(ledger):
    ledger.record_arrival(arrival("1.2.3"))
    ledger.park(ledger.claim_derive("w", soon()).id, "w", BAD)
    assert ledger.retry(sop_instance_uid="1.2.999") == 0
    assert ledger.retry(sop_instance_uid="1.2.3") == 1
    assert stage_of(ledger) is Stage.DERIVE
    assert ledger.instance("1.2.3").error is None


def test_retry_finds_an_instance_by_its_derived_uid(ledger):
    released(ledger, "1.2.3")
    ledger.park_delivery(ledger.claim_send("w", soon())[0].id, "w", BAD)
    assert ledger.retry(sop_instance_uid="2.25.1.2.3") == 1
    assert stage_of(ledger) is Stage.SEND


def test_retry_derives_anew_what_has_lost_its_derived_file(ledger):
    released(ledger, "1.2.3", destinations=("pacs", "archive"))
    gone = Permanent(DERIVED_FILE_UNREADABLE, "it is gone")
    for _ in range(2):
        ledger.park_delivery(ledger.claim_send("w", soon())[0].id, "w", gone)
    assert stage_of(ledger) is Stage.PARKED
    assert ledger.retry(sop_instance_uid="1.2.3") == 1
    assert stage_of(ledger) is Stage.DERIVE
    derive(ledger, destinations=("pacs", "archive"))
    assert [len(send(ledger)) for _ in range(2)] == [1, 1]
    assert stage_of(ledger) is Stage.COMMIT


def test_retry_of_one_instance_leaves_the_others_parked(ledger):
    gone = Permanent(DERIVED_FILE_UNREADABLE, "it is gone")
    for series, error in (("1.2", gone), ("1.3", BAD)):
        for uid in (f"{series}.3", f"{series}.4"):
            ledger.record_arrival(arrival(uid, series))
            derive(ledger)
        ledger.release_series(series, "quiet", soon())
        for delivery in ledger.claim_send("w", soon()):
            ledger.park_delivery(delivery.id, "w", error)
    for uid in ("1.4.3", "1.4.4"):
        ledger.record_arrival(arrival(uid, "1.4"))
        ledger.park(ledger.claim_derive("w", soon()).id, "w", BAD)
    for uid, stage in (("1.2.3", Stage.DERIVE), ("1.3.3", Stage.SEND), ("1.4.3", Stage.DERIVE)):
        assert ledger.retry(sop_instance_uid=uid) == 1
        assert stage_of(ledger, uid) is stage
    assert ledger.overview().stages[Stage.PARKED] == 3


def test_retry_of_everything_leaves_nothing_parked(ledger):
    released(ledger, "1.2.3")
    ledger.park_delivery(ledger.claim_send("w", soon())[0].id, "w", BAD)
    ledger.record_arrival(arrival("1.3.4", "1.3"))
    ledger.park(ledger.claim_derive("w", soon()).id, "w", BAD)
    assert ledger.retry(everything=True) == 2
    assert Stage.PARKED not in ledger.overview().stages


@pytest.mark.parametrize("uid", ["1.1", "1.2", "1.2.3", "2.25.1.2", "2.25.1.2.3"])
def test_what_is_done_is_derived_anew_under_every_uid_of_it(ledger, uid):
    complete(ledger)
    assert ledger.rederive(uid) == (1, 0)
    assert stage_of(ledger) is Stage.DERIVE
    assert ledger.rederive(uid) == (0, 0), "it has not ended any more"


def test_derived_anew_it_is_sent_anew_and_the_answer_to_an_earlier_question_does_not_count(ledger):
    complete(ledger)
    ledger.rederive("1.2.3")
    instance = ledger.claim_derive("w", soon())
    anew = DerivedIdentity("2.25.99", "2.25.98")
    ledger.finish_derive(
        instance.id,
        "w",
        anew,
        Path("/spool/derived/99.dcm"),
        destinations=["pacs"],
        sop_class_uid=instance.identity.sop_class_uid,
        timings={},
    )
    assert ledger.commit_report("2.25.7", ["2.25.1.2.3"], {}) == 0
    (delivery,) = send(ledger)
    assert (delivery.sop_instance_uid, delivery.series_instance_uid) == ("2.25.99", "2.25.98")
    assert delivery.transaction_uid is None
    assert stage_of(ledger) is Stage.COMMIT


def test_series_that_is_derived_anew_is_sent_anew_as_a_whole(ledger):
    safe = ["2.25.1.2.3", "2.25.1.2.4"]
    committing(ledger, "1.2.3", "1.2.4")
    ledger.commit_report("2.25.9", safe, {})
    for _ in safe:
        ledger.finish_audit(ledger.claim_audit("w", soon()).id, "w")
    assert ledger.rederive("1.2") == (2, 0)
    for _ in safe:
        derive(ledger)
    assert [each.sop_instance_uid for each in send(ledger)] == safe
    assert ledger.commit_report("2.25.9", safe, {}) == 0, "the answer to an earlier question"


def test_what_waits_is_parked_or_is_not_for_the_node_is_not_derived_anew(ledger):
    ledger.record_arrival(arrival("1.2.3"))
    ledger.park(ledger.claim_derive("w", soon()).id, "w", BAD)
    ledger.record_arrival(arrival("1.2.4"))
    ledger.record_arrival(arrival("1.2.5"), skip=SKIP)
    assert ledger.rederive("1.2") == (0, 0)


def test_what_is_purged_cannot_be_derived_anew_and_is_counted(ledger):
    complete(ledger)
    ledger.forget_files([1])
    assert ledger.rederive("1.2") == (0, 1)
    assert stage_of(ledger) is Stage.DONE


def test_overview_counts_and_shows_the_newest_errors_first(ledger):
    released(ledger, "1.2.3")
    (delivery,) = ledger.claim_send("w", soon())
    ledger.retry_delivery(delivery.id, "w", DOWN, much_later())
    ledger.record_arrival(arrival("1.3.4", "1.3", received_at=after(7)))
    ledger.park(ledger.claim_derive("w", soon()).id, "w", BAD)
    ledger.record_arrival(arrival("1.3.5", "1.3"), skip=SKIP)
    seen = ledger.overview()
    assert seen.stages == {Stage.SEND: 1, Stage.PARKED: 1, Stage.SKIPPED: 1}
    assert seen.deliveries == {"pacs": {DeliveryState.PENDING: 1}}
    assert seen.oldest_waiting == START
    assert seen.open_associations == 1
    assert [(one.where, one.parked, one.code) for one in seen.last_errors] == [
        ("derive", True, BAD.code),
        ("pacs", False, DOWN.code),
    ]


def test_overview_shows_a_parked_delivery_once(ledger):
    released(ledger, "1.2.3")
    ledger.park_delivery(ledger.claim_send("w", soon())[0].id, "w", BAD)
    assert stage_of(ledger) is Stage.PARKED
    assert [(one.where, one.code) for one in ledger.overview().last_errors] == [("pacs", BAD.code)]


def test_overview_shows_why_what_had_been_sent_is_not_derived_anew(ledger):
    complete(ledger)
    ledger.rederive("1.2.3")
    ledger.park(ledger.claim_derive("w", soon()).id, "w", BAD)
    assert [(one.where, one.code) for one in ledger.overview().last_errors] == [
        ("derive", BAD.code)
    ]


def test_derived_objects_that_go_nowhere_do_not_expire(ledger):
    released(ledger, "1.2.3", destinations=())
    ledger.finish_audit(ledger.claim_audit("w", soon()).id, "w")
    assert stage_of(ledger) is Stage.DONE
    assert ledger.expired(much_later()) == []


def test_files_of_ended_instances_expire_and_are_forgotten(ledger):
    complete(ledger)
    ledger.record_arrival(arrival("1.2.4"))
    assert ledger.expired(START) == []
    (ended,) = ledger.expired(much_later())
    assert ended.identity.sop_instance_uid == "1.2.3"
    assert len(ledger.known_files()) == 3
    assert ledger.forget_files([ended.id]) == {ended.id}
    assert ledger.expired(much_later()) == []
    assert len(ledger.known_files()) == 1


def test_files_of_what_the_receiver_skips_expire_as_well(ledger):
    ledger.record_arrival(arrival(), skip=SKIP)
    assert ledger.expired(START) == []
    (skipped,) = ledger.expired(after(1))
    assert skipped.identity.sop_instance_uid == "1.2.3"


def test_files_of_work_in_progress_cannot_be_forgotten(ledger):
    ledger.record_arrival(arrival())
    assert ledger.forget_files([1]) == set()
    assert len(ledger.known_files()) == 1


def test_files_of_more_instances_than_a_statement_takes_are_forgotten(ledger, url):
    more = 260_000 if url.startswith("sqlite") else 70_000  # the most: 250,000 and 65,535
    for number in range(2):
        ledger.record_arrival(arrival(f"1.2.3.{number}"), skip=SKIP)
    assert ledger.forget_files([1, *range(1_000_000, 1_000_000 + more), 2]) == {1, 2}
    assert ledger.known_files() == set()


def test_what_runs_all_the_time_looks_at_no_row_that_has_ended(tmp_path):
    statements = []
    with Ledger(empty_ledger_url("sqlite", tmp_path)) as ledger:
        complete(ledger)
        sa.event.listen(
            ledger._database._engine,
            "before_cursor_execute",
            lambda *said: statements.append((said[2], said[3])),
        )
        now = soon()
        ledger.claim_derive("w", now)
        ledger.claim_audit("w", now)
        ledger.claim_send("w", now, "pacs")
        ledger.claim_commit("w", now, "pacs")
        ledger.heartbeat("w", now)
        ledger.release("w")
        ledger.reclaim_expired(now)
        ledger.series_arrivals(now)
        ledger.pull_in(now, HOUR)
        with ledger._database.read() as connection:
            for text, values in [one for one in statements if "BEGIN" not in one[0]]:
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values).all()
                assert not [line for *_, line in plan if "SCAN" in line], text


def test_lines_of_the_audit_trail_are_found_by_any_uid(ledger):
    complete(ledger)
    ledger.record_arrival(arrival("9.9.9", series="9.9"))
    for uid in ("1.2", "1.2.3", "2.25.1.2.3"):
        found = [line for _, line in ledger.events(uid=uid)]
        assert found
        assert "9.9.9" not in {line.sop_instance_uid for line in found}
    last = len(names(ledger))
    assert [number for number, _ in ledger.events(uid="9.9")] == [last]
    assert ledger.events(uid="1.1", after=last - 1)[0][0] == last


def test_audit_trail_keeps_what_was_written(ledger):
    line = event(EventName.SERIES_RELEASED, series_instance_uid="1.2", detail="quiet")
    ledger.append_event(line)
    ((number, read),) = ledger.events()
    assert read == line
    assert ledger.events(after=number) == []


def lines(ledger: Ledger, *wanted: EventName) -> list[Event]:
    return [line for _, line in ledger.events() if line.name in wanted]


def test_arrival_is_in_the_audit_trail_with_its_sender(ledger):
    ledger.record_arrival(arrival())
    ledger.record_arrival(arrival("1.2.4"), skip=SKIP)
    received, skipped = (line for _, line in ledger.events())
    assert (received.actor, received.at, received.detail) == ("US1", START, "")
    assert (received.study_instance_uid, received.series_instance_uid) == ("1.1", "1.2")
    assert (skipped.actor, skipped.detail) == ("US1", SKIP.code)


def test_derivation_is_in_the_audit_trail(ledger):
    ledger.record_arrival(arrival())
    derive(ledger)
    (line,) = lines(ledger, EventName.INSTANCE_DERIVED)
    assert (line.study_instance_uid, line.series_instance_uid) == ("1.1", "1.2")
    assert (line.sop_instance_uid, line.derived_instance_uid) == ("1.2.3", "2.25.1.2.3")


def test_what_is_skipped_or_parked_is_in_the_audit_trail(ledger):
    for uid, give_up in (("1.2.3", ledger.park), ("1.2.4", ledger.skip)):
        ledger.record_arrival(arrival(uid))
        give_up(ledger.claim_derive("w", soon()).id, "w", BAD)
        with pytest.raises(LeaseLost):
            give_up(ledger.instance(uid).id, "another", BAD)
    (parked,) = lines(ledger, EventName.INSTANCE_PARKED)
    (skipped,) = lines(ledger, EventName.INSTANCE_SKIPPED)
    assert (parked.sop_instance_uid, parked.detail) == ("1.2.3", BAD.code)
    assert parked.outcome is Outcome.SERIOUS_FAILURE
    assert (skipped.sop_instance_uid, skipped.detail) == ("1.2.4", BAD.code)


@pytest.mark.parametrize(
    ("means", "name"),
    [
        ("commitment", EventName.INSTANCE_CONFIRMED),
        ("query", EventName.INSTANCE_CONFIRMED),
        ("status", EventName.COMMITMENT_UNAVAILABLE),
    ],
)
def test_confirmation_is_in_the_audit_trail_once(ledger, means, name):
    committing(ledger, "1.2.3", "1.2.4")
    for _ in range(2):
        ledger.commit_report("2.25.9", ["2.25.1.2.4"], {}, actor="NODE", means=means)
    (line,) = lines(ledger, EventName.INSTANCE_CONFIRMED, EventName.COMMITMENT_UNAVAILABLE)
    assert (line.name, line.actor, line.destination, line.detail) == (name, "NODE", "pacs", means)
    assert (line.sop_instance_uid, line.derived_instance_uid) == ("1.2.4", "2.25.1.2.4")


@pytest.mark.parametrize(
    ("reason", "outcome", "parked"),
    [(0x0112, Outcome.MINOR_FAILURE, []), (0x0122, Outcome.SERIOUS_FAILURE, ["1.2.3"])],
)
def test_refused_commitment_is_in_the_audit_trail(ledger, reason, outcome, parked):
    committing(ledger, "1.2.3")
    ledger.commit_report("2.25.9", [], {"2.25.1.2.3": reason}, actor="NODE")
    (line,) = lines(ledger, EventName.COMMITMENT_FAILED)
    assert (line.sop_instance_uid, line.outcome, line.actor) == ("1.2.3", outcome, "NODE")
    assert f"0x{reason:04X}" in line.detail
    found = lines(ledger, EventName.INSTANCE_PARKED)
    assert [line.sop_instance_uid for line in found] == parked


def test_confirmation_that_is_given_up_is_in_the_audit_trail(ledger):
    committing(ledger, "1.2.3")
    ledger.park_delivery(1, "w", BAD, actor="NODE")
    given_up = lines(ledger, EventName.COMMITMENT_FAILED, EventName.INSTANCE_PARKED)
    assert [line.name for line in given_up] == [
        EventName.COMMITMENT_FAILED,
        EventName.INSTANCE_PARKED,
    ]
    for line in given_up:
        assert (line.sop_instance_uid, line.destination, line.detail) == ("1.2.3", "pacs", BAD.code)
        assert (line.actor, line.outcome) == ("NODE", Outcome.SERIOUS_FAILURE)


def test_what_the_operator_sets_going_is_in_the_audit_trail(ledger):
    assert ledger.retry(everything=True) == 0
    assert ledger.rederive("1.1") == (0, 0)
    assert ledger.events() == []
    ledger.record_arrival(arrival())
    ledger.park(ledger.claim_derive("w", soon()).id, "w", BAD)
    ledger.retry(sop_instance_uid="1.2.3")
    ledger.skip(ledger.claim_derive("w", soon()).id, "w", BAD)
    ledger.rederive("1.1")
    ledger.park(ledger.claim_derive("w", soon()).id, "w", BAD)
    ledger.retry(everything=True)
    found = lines(ledger, EventName.OPERATOR_RETRY, EventName.OPERATOR_REDERIVE)
    assert [(line.name, line.sop_instance_uid, line.detail) for line in found] == [
        (EventName.OPERATOR_RETRY, "1.2.3", ""),
        (EventName.OPERATOR_REDERIVE, "", "1.1"),
        (EventName.OPERATOR_RETRY, "", "all"),
    ]


def test_object_that_kills_its_workers_is_in_the_audit_trail_and_in_the_log(ledger):
    ledger.record_arrival(arrival())
    now = soon()
    with structlog.testing.capture_logs() as logged:
        for _ in range(5):
            ledger.claim_derive("w", now)
            now += timedelta(seconds=61)
            ledger.reclaim_expired(now)
    (line,) = lines(ledger, EventName.INSTANCE_PARKED)
    assert (line.sop_instance_uid, line.detail) == ("1.2.3", "worker-died")
    assert line.outcome is Outcome.SERIOUS_FAILURE
    (entry,) = logged
    assert (entry["event"], entry["code"]) == ("derive-parked", "worker-died")
    assert entry["sop_instance_uid"] == "1.2.3"


# --- the database ---------------------------------------------------------------------------------


def test_rows_outlive_the_process(url):
    with Ledger(url) as first:
        first.record_arrival(arrival())
    with Ledger(url) as second:
        assert stage_of(second) is Stage.DERIVE


def test_ledger_of_another_schema_is_not_touched(tmp_path):
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    Ledger(url).close()
    with sqlite3.connect(tmp_path / "ledger.sqlite3") as raw:
        raw.execute("UPDATE ledger_schema SET version = 999")
    with pytest.raises(ConfigError, match="schema 999"):
        Ledger(url)


@pytest.mark.parametrize("url", ["", "nonsense", "oracle9://x", "sqlserver:///x"])
def test_unusable_url_names_the_key(url):
    with pytest.raises(ConfigError, match=r"ledger\.url"):
        Ledger(url)


def test_missing_driver_is_named_with_the_remedy():
    with pytest.raises(ConfigError, match=r"'pymysql' is not installed.*pg8000.*\.\[postgres\]"):
        Ledger("mysql+pymysql://node@host/ledger")


def test_ledger_that_cannot_be_opened_is_transient(tmp_path):
    with pytest.raises(Transient) as caught:
        Ledger(f"sqlite:///{tmp_path / 'absent' / 'ledger.sqlite3'}")
    assert caught.value.code == "ledger-unavailable"


def test_damaged_ledger_is_permanent(tmp_path):
    (tmp_path / "ledger.sqlite3").write_bytes(b"this is no database" * 100)
    with pytest.raises(Permanent) as caught:
        Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    assert caught.value.code == "ledger-damaged"


@pytest.fixture
def postgres(tmp_path):
    with Ledger(empty_ledger_url("postgresql", tmp_path)) as opened:
        yield opened


def fail_with(ledger: Ledger, state: str) -> None:
    """Let PostgreSQL report an error."""
    with ledger._database.write() as connection:
        connection.exec_driver_sql(
            f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{state}'; END $$"
        )


@pytest.mark.parametrize(
    "state",
    [
        *("08006", "25006", "25P03", "40001", "40P01", "53100", "53200", "53300"),
        *("55P03", "57014", "57P01", "57P03", "58030"),
    ],
)
def test_what_passes_in_postgresql_is_transient(postgres, state):
    with pytest.raises(Transient, match=state) as caught:
        fail_with(postgres, state)
    assert caught.value.code == "ledger-unavailable"


@pytest.mark.parametrize("state", ["28000", "28P01", "3D000", "42501"])
def test_what_postgresql_refuses_is_no_damage(postgres, state):
    with pytest.raises(Transient, match=rf"ledger-refused.*{state}.*correct ledger\.url"):
        fail_with(postgres, state)


def test_database_that_does_not_exist_is_named(tmp_path):
    url = sa.make_url(empty_ledger_url("postgresql", tmp_path)).set(database="absent")
    with pytest.raises(Transient, match="no such database"):
        Ledger(url.render_as_string(hide_password=False))


@pytest.mark.parametrize("state", ["23505", "25001", "42P01", "XX001"])
def test_what_does_not_pass_in_postgresql_is_permanent(postgres, state):
    with pytest.raises(Permanent) as caught:
        fail_with(postgres, state)
    assert caught.value.code == "ledger-damaged"


def test_postgresql_that_falls_silent_is_transient(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_schema, "_SILENCE_SECONDS", 5)
    with Relay(empty_ledger_url("postgresql", tmp_path)) as relay, Ledger(relay.url) as ledger:
        relay.is_silent = True
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ledger.overview)
            with suppress(FuturesTimeout):
                asked.exception(timeout=30)
            relay.is_silent = False
            relay.reset()
        with pytest.raises(Transient, match="TimeoutError"):
            asked.result()
        assert ledger.overview().stages == {}


def test_connection_that_is_reset_is_transient(tmp_path):
    with Relay(empty_ledger_url("postgresql", tmp_path)) as relay, Ledger(relay.url) as ledger:
        relay.reset()
        with pytest.raises(Transient, match=r"ConnectionResetError|InterfaceError"):
            ledger.overview()
        assert ledger.overview().stages == {}


def test_host_that_dies_within_a_claim_does_not_keep_others_from_theirs(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_schema, "_IDLE_SECONDS", 3)
    url = empty_ledger_url("postgresql", tmp_path)
    claimed = []

    def die(dead: Ledger, other: Ledger) -> None:
        with dead._database.write() as connection:
            dead._database.exclude_other_claims(connection)
            with other._database.write() as theirs:
                theirs.execute(sa.text("SET LOCAL lock_timeout = '30s'"))
                other._database.exclude_other_claims(theirs)
                claimed.append(other)

    with Ledger(url) as dead, Ledger(url) as other, pytest.raises(Transient):
        die(dead, other)
    assert claimed


def test_connection_that_postgresql_ends_is_transient_and_the_next_one_serves(postgres):
    def cut_off() -> None:
        with postgres._database.write() as connection:
            own = connection.scalar(sa.select(sa.func.pg_backend_pid()))
            with postgres._database.write() as other:
                other.execute(sa.select(sa.func.pg_terminate_backend(own)))
            connection.execute(sa.select(1))

    with pytest.raises(Transient):
        cut_off()
    assert postgres.overview().stages == {}


def test_sqlite_is_durable_at_every_commit(tmp_path):
    with Ledger(f"sqlite:///{tmp_path / 'l.sqlite3'}") as ledger, ledger._database.write() as c:
        assert c.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert c.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert c.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert c.exec_driver_sql("PRAGMA busy_timeout").scalar() >= 30_000


@pytest.mark.parametrize("statement", ["UPDATE events SET name = 'x'", "DELETE FROM events"])
def test_audit_trail_cannot_be_changed(tmp_path, statement):
    with Ledger(f"sqlite:///{tmp_path / 'l.sqlite3'}") as ledger:
        ledger.record_arrival(arrival())
    with (
        sqlite3.connect(tmp_path / "l.sqlite3") as raw,
        pytest.raises(sqlite3.IntegrityError, match="append-only"),
    ):
        raw.execute(statement)


def test_reader_sees_the_state_before_a_transaction_that_is_under_way(tmp_path):
    with Ledger(f"sqlite:///{tmp_path / 'l.sqlite3'}") as ledger:
        ledger.record_arrival(arrival())
        with ledger._database.write():
            assert ledger.overview().stages == {Stage.DERIVE: 1}


def test_transition_tables_cover_every_stage_and_state():
    assert set(STAGE_TRANSITIONS) == set(Stage)
    assert set(DELIVERY_TRANSITIONS) == set(DeliveryState)
    assert STAGE_TRANSITIONS[Stage.DONE] == frozenset({Stage.DERIVE})
    assert DELIVERY_TRANSITIONS[DeliveryState.CONFIRMED] == frozenset({DeliveryState.PENDING})


def test_identity_of_the_derived_object_is_kept_when_derive_is_repeated(ledger):
    ledger.record_arrival(arrival())
    now = soon()
    first = ledger.claim_derive("dead", now)
    ledger.reclaim_expired(now + timedelta(seconds=61))
    second = derive(ledger)
    assert first.id == second.id
    assert derived_of(first) == derived_of(second) == DerivedIdentity("2.25.1.2.3", "2.25.1.2")
    assert ledger.overview().deliveries == {"pacs": {DeliveryState.PENDING: 1}}

"""Workers, receivers and archives that die between any two transactions."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dicom_node.errors import Permanent, Transient
from dicom_node.ledger import LeaseLost, Ledger
from dicom_node.ledger.schema import DELIVERY_TRANSITIONS, STAGE_TRANSITIONS, deliveries, instances
from dicom_node.records import DeliveryState, Stage
from tests.ledgers import derived_of
from tests.receiving import arrival

DESTINATIONS = ("pacs", "archive")
DOWN = Transient("peer-unreachable", "no answer")
BAD = Permanent("refused", "no")


class Crashes(RuleBasedStateMachine):
    """One node, whose worker may be killed and started again between any two steps."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.now = datetime.now(UTC) + timedelta(seconds=1)
        self.generation = 0
        self.archives = {name: Counter() for name in DESTINATIONS}
        self.came = set()
        self.stages = {}
        self.states = {}
        self.transactions = 0
        self.reports = []
        self.ledger = Ledger(self.url)
        self.forget()

    @property
    def url(self):
        return f"sqlite:///{self.folder / 'ledger.sqlite3'}"

    @property
    def owner(self):
        return f"worker-{self.generation}"

    def forget(self):
        """What a process holds in its memory."""
        self.instance = None
        self.sending = []
        self.asking = []

    def teardown(self):
        self.settle()
        self.ledger.close()
        shutil.rmtree(self.folder)

    @initialize()
    def begin(self):
        self.arrive(0)

    @rule(number=st.integers(0, 3))
    def arrive(self, number):
        uid = f"1.2.{number}"
        taken = self.ledger.record_arrival(arrival(uid, received_at=self.now))
        assert taken == (uid not in self.came)
        self.came.add(uid)
        self.ledger.close_association("host/1")

    @rule()
    def release(self):
        self.ledger.release_series("1.2", "quiet", self.now)

    @rule()
    def worker_is_killed_and_started_again(self):
        self.ledger.close()
        self.forget()
        self.generation += 1
        self.ledger = Ledger(self.url)

    @rule()
    def time_passes(self):
        self.now += timedelta(seconds=3600)
        self.ledger.reclaim_expired(self.now)

    @precondition(lambda self: self.instance is None)
    @rule()
    def claim_derive(self):
        self.instance = self.ledger.claim_derive(self.owner, self.now)

    @precondition(lambda self: self.instance is not None)
    @rule(outcome=st.sampled_from(["finish", "finish", "retry", "park"]))
    def end_derive(self, outcome):
        instance, self.instance = self.instance, None
        try:
            if outcome == "retry":
                self.ledger.retry_later(instance.id, self.owner, DOWN, self.now)
            elif outcome == "park":
                self.ledger.park(instance.id, self.owner, BAD)
            else:
                identity = derived_of(instance)
                self.ledger.finish_derive(
                    instance.id,
                    self.owner,
                    identity,
                    Path(f"/spool/{identity.sop_instance_uid}"),
                    destinations=DESTINATIONS,
                    sop_class_uid="1.2",
                    timings={},
                )
        except LeaseLost:
            pass

    @precondition(lambda self: not self.sending)
    @rule()
    def claim_send(self):
        self.sending = self.ledger.claim_send(self.owner, self.now)

    @precondition(lambda self: self.sending)
    @rule(outcome=st.sampled_from(["sent", "sent", "killed-after-store", "retry", "park"]))
    def send_one(self, outcome):
        delivery = self.sending.pop(0)
        archive = self.archives[delivery.destination]
        try:
            in_doubt = delivery.state is DeliveryState.SENDING
            held = in_doubt and archive[delivery.sop_instance_uid] > 0
            if not held:
                self.ledger.mark_sending(delivery.id, self.owner)
                if outcome not in {"retry", "park"}:
                    archive[delivery.sop_instance_uid] += 1
            if outcome == "killed-after-store":
                self.worker_is_killed_and_started_again()
            elif outcome == "retry":
                self.ledger.retry_delivery(delivery.id, self.owner, DOWN, self.now)
            elif outcome == "park":
                self.ledger.park_delivery(delivery.id, self.owner, BAD)
            else:
                self.ledger.mark_sent(delivery.id, self.owner)
        except LeaseLost:
            pass

    @precondition(lambda self: not self.asking)
    @rule()
    def claim_commit(self):
        self.asking = self.ledger.claim_commit(self.owner, self.now)

    @precondition(lambda self: self.asking)
    @rule()
    def ask(self):
        asked, self.asking = self.asking, []
        self.transactions += 1
        transaction = f"2.25.{self.transactions}"
        later = self.now + timedelta(seconds=60)
        try:
            self.ledger.start_commit([each.id for each in asked], self.owner, transaction, later)
        except LeaseLost:
            return
        self.reports.append((transaction, [each.sop_instance_uid for each in asked]))

    @precondition(lambda self: self.reports)
    @rule(data=st.data(), lost=st.booleans())
    def report(self, data, lost):
        transaction, uids = data.draw(st.sampled_from(self.reports))
        confirmed, failed = ([], dict.fromkeys(uids, 0x0110)) if lost else (uids, {})
        self.ledger.commit_report(transaction, confirmed, failed)

    @precondition(lambda self: Stage.AUDIT in self.stages.values())
    @rule()
    def audit(self):
        instance = self.ledger.claim_audit(self.owner, self.now)
        if instance is not None:
            self.ledger.finish_audit(instance.id, self.owner)

    @rule()
    def operator_retries(self):
        self.ledger.retry(everything=True)

    @invariant()
    def every_change_is_in_the_tables_and_nothing_is_lost(self):
        with self.ledger._database.read() as connection:
            rows = connection.execute(instances.select()).all()
            sends = connection.execute(deliveries.select()).all()
        stages = {row.sop_instance_uid: Stage(row.stage) for row in rows}
        states = {row.id: DeliveryState(row.state) for row in sends}
        assert set(stages) == self.came
        for uid, stage in stages.items():
            before = self.stages.get(uid, stage)
            assert stage in reachable(STAGE_TRANSITIONS, before)
        for number, state in states.items():
            before = self.states.get(number, state)
            assert state in reachable(DELIVERY_TRANSITIONS, before)
        of_instance = {}
        for row in sends:
            of_instance.setdefault(row.instance_id, set()).add(row.state)
        for row in rows:
            if row.stage in {Stage.AUDIT, Stage.DONE}:
                assert of_instance[row.id] == {DeliveryState.CONFIRMED}
            if row.stage == Stage.COMMIT:
                assert DeliveryState.SENT in of_instance[row.id]
                assert not of_instance[row.id] & {"pending", "sending"}
        self.stages, self.states = stages, states

    def settle(self):
        """Left alone, with archives that answer, everything ends well."""
        self.forget()
        self.generation += 1
        for _ in range(12):
            self.now += timedelta(seconds=3600)
            self.ledger.retry(everything=True)
            self.ledger.reclaim_expired(self.now)
            self.ledger.release_series("1.2", "quiet", self.now)
            while (instance := self.ledger.claim_derive(self.owner, self.now)) is not None:
                self.instance = instance
                self.end_derive("finish")
            while True:
                self.claim_send()
                if not self.sending:
                    break
                while self.sending:
                    self.send_one("sent")
            while True:
                self.claim_commit()
                if not self.asking:
                    break
                self.ask()
                transaction, uids = self.reports[-1]
                self.ledger.commit_report(transaction, uids, {})
            while (instance := self.ledger.claim_audit(self.owner, self.now)) is not None:
                self.ledger.finish_audit(instance.id, self.owner)
        assert self.ledger.overview().stages == ({Stage.DONE: len(self.came)} if self.came else {})
        for archive in self.archives.values():
            assert set(archive) == {f"2.25.{uid}" for uid in self.came}


def reachable(table, before):
    """What one step of this machine may lead to; a step is at most a few transitions."""
    found = {before}
    for _ in range(3):
        found |= {after for each in found for after in table[each]}
    return found


TestCrashes = Crashes.TestCase
TestCrashes.settings = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

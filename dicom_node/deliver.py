"""What a worker does for one destination: send what is due, have confirmed what was sent.

`send` and `commit` speak DICOM and know no ledger; here their outcomes are recorded.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from dicom_node import commit, send
from dicom_node.audit import EventName, event
from dicom_node.config import Peer, Settings
from dicom_node.errors import NodeError, Permanent, Transient
from dicom_node.ledger import LeaseLost, Ledger
from dicom_node.records import Delivery, DeliveryState
from dicom_node.service import log, retry
from dicom_node.service.edge import guarded
from dicom_node.spool import Spool

_log = log.get(__name__)
_SHORT_WAIT_SECONDS: Final = 0.2
"""Once a peer has not reported on the same association, it gets little time for it."""
_UNANSWERED_WAITS: Final = 3
"""After this many waits for a commitment report in vain the destination is asked by C-FIND."""


class Deliverer:
    """Sends to one destination and has storage confirmed there.

    Parameters
    ----------
    settings : Settings
    ledger, spool : Ledger, Spool
    destination : str
        The peer's name.
    """

    def __init__(self, settings: Settings, ledger: Ledger, spool: Spool, destination: str) -> None:
        self._settings = settings
        self._ledger = ledger
        self._spool = spool
        self._name = destination
        self._log = _log.bind(destination=destination)
        self._wait_here = commit.SAME_ASSOCIATION_WAIT_SECONDS
        self._last_error: NodeError | None = None

    def step(self, owner: str, stopping: Callable[[], bool]) -> bool:
        """Send a group of deliveries and have another confirmed; whether there was one."""
        sent = self._send_step(owner, stopping)
        return (not stopping() and self._confirm_step(owner)) or sent

    def _send_step(self, owner: str, stopping: Callable[[], bool]) -> bool:
        claimed = self._ledger.claim_send(owner, datetime.now(UTC), self._name)
        if not claimed:
            return False
        deliveries = [replace(each, path=self._spool.located(each.path)) for each in claimed]
        peer = self._settings.peers.get(self._name)
        if peer is not None and not peer.receives:
            for delivery in deliveries:
                self._failed(delivery, owner, _receives_no_longer(self._name))
        else:
            self._send(deliveries, owner, stopping)
        return True

    def _send(
        self, deliveries: Sequence[Delivery], owner: str, stopping: Callable[[], bool]
    ) -> None:
        """Send a group and write down what became of each."""
        waiting = {delivery.id: delivery for delivery in deliveries}
        begun: set[int] = set()

        def starting(delivery: Delivery) -> None:
            self._ledger.mark_sending(delivery.id, owner)
            begun.add(delivery.id)

        def sending() -> None:
            with closing(send.send(self._settings, deliveries, starting)) as outcomes:
                for outcome in outcomes:
                    self._record(outcome, owner)
                    del waiting[outcome.delivery.id]
                    if stopping():
                        return

        failed = guarded(sending)
        if isinstance(failed, NodeError):
            # The object in hand takes the blame; the others had nothing to do with it.
            for delivery in waiting.values():
                blamed = delivery.id in begun or isinstance(failed, Transient)
                error = failed if blamed else Transient(failed.code, "another object failed")
                self._failed(delivery, owner, error)
        elif waiting:
            self._ledger.release(owner)

    def _record(self, outcome: send.Outcome, owner: str) -> None:
        """Write down what became of one delivery."""
        delivery = outcome.delivery
        if outcome.error is not None:
            self._failed(delivery, owner, outcome.error, said=True)
            return
        name = EventName.INSTANCE_SENT
        if outcome.already_held:
            name = EventName.INSTANCE_ALREADY_HELD
        elif outcome.warning:
            name = EventName.INSTANCE_SENT_WITH_WARNING
        line = event(
            name,
            actor=self._settings.node.ae_title,
            destination=self._name,
            study_instance_uid=delivery.study_instance_uid,
            sop_instance_uid=delivery.source_instance_uid,
            derived_instance_uid=delivery.sop_instance_uid,
            detail=outcome.warning,
        )
        self._ledger.mark_sent(delivery.id, owner, line)
        self._log.info(
            str(name),
            sop_instance_uid=delivery.sop_instance_uid,
            seconds=round(outcome.seconds, 3),
            warning=outcome.warning or None,
        )

    def _failed(
        self, delivery: Delivery, owner: str, error: NodeError, *, said: bool = False
    ) -> None:
        """Repeat later or park; `said` where the destination itself answered so."""
        now = datetime.now(UTC)
        error = retry.judged(
            error,
            self._settings.retry,
            attempts=delivery.attempts,
            failing_since=delivery.failing_since,
            now=now,
        )
        facts = {
            "sop_instance_uid": delivery.sop_instance_uid,
            "code": error.code,
            "message": error.message,
        }
        try:
            if isinstance(error, LeaseLost):
                self._log.info("delivery-superseded", **facts)
            elif isinstance(error, Transient):
                pause = self._pause(delivery)
                known_missing = said and error.code == send.STORE_REFUSED
                if known_missing and delivery.state is not DeliveryState.SENT:
                    self._ledger.resend_delivery(delivery.id, owner, error, now + pause)
                else:
                    self._ledger.retry_delivery(delivery.id, owner, error, now + pause)
                # A PACS that is down is a line for each series and attempt, not for each instance.
                said_already = error is self._last_error
                tell = self._log.debug if said_already else self._log.warning
                tell("delivery-postponed", seconds=round(pause.total_seconds(), 1), **facts)
                self._last_error = error
            else:
                self._park(delivery, owner, error)
        except LeaseLost:
            self._log.info("delivery-superseded", **facts)

    def _park(self, delivery: Delivery, owner: str, error: NodeError) -> None:
        """Give a delivery up until the operator retries it, and say so."""
        who = self._settings.node.ae_title
        self._ledger.park_delivery(delivery.id, owner, error, actor=who)
        self._log.error(
            "delivery-parked",
            sop_instance_uid=delivery.sop_instance_uid,
            code=error.code,
            message=error.message,
        )

    def _confirm_step(self, owner: str) -> bool:
        deliveries = self._ledger.claim_commit(owner, datetime.now(UTC), self._name)
        if not deliveries:
            return False
        wait = self._commitment_wait()

        def asking(transaction_uid: str) -> None:
            again = datetime.now(UTC) + wait
            ids = [delivery.id for delivery in deliveries]
            self._ledger.start_commit(ids, owner, transaction_uid, again)

        def other(report: commit.Report) -> None:
            who = self._settings.node.ae_title
            self._ledger.commit_report(
                report.transaction_uid, report.confirmed, report.failed, actor=who
            )

        unanswered = any(
            delivery.transaction_uid is not None
            and delivery.failing_since is not None
            and datetime.now(UTC) - delivery.failing_since > _UNANSWERED_WAITS * wait
            for delivery in deliveries
        )
        result = guarded(
            lambda: commit.confirm(
                self._settings,
                deliveries,
                asking,
                wait_here=self._wait_here,
                unanswered=unanswered,
                other=other,
            )
        )
        if isinstance(result, NodeError):
            for delivery in deliveries:
                self._failed(delivery, owner, result)
        elif result.report is None:
            self._wait_here = _SHORT_WAIT_SECONDS
            self._not_yet(deliveries, owner, wait)
        else:
            self._apply(result, result.report)
            named = result.report.confirmed | result.report.failed.keys()
            left_out = [one for one in deliveries if one.sop_instance_uid not in named]
            if left_out:
                self._not_yet(left_out, owner, wait)
        return True

    def _not_yet(self, deliveries: Sequence[Delivery], owner: str, wait: timedelta) -> None:
        """The report is to come; one that was awaited in vain before counts as a failure."""
        self._log.info("commitment-requested", instances=len(deliveries))
        node = self._settings
        ports = " or ".join(str(port) for port in node.receive.ports)
        error = Transient(
            "commitment-unanswered",
            f"peer {self._name!r} took the request but sent no report of it; see that it can reach "
            f"{node.node.ae_title} at port {ports} and is allowed to report there",
        )
        now = datetime.now(UTC)
        for delivery in deliveries:
            if delivery.transaction_uid is None:
                continue
            verdict = retry.judged(
                error,
                node.retry,
                attempts=delivery.attempts,
                failing_since=delivery.failing_since,
                now=now,
            )
            try:
                if isinstance(verdict, Permanent):
                    self._park(delivery, owner, verdict)
                else:
                    self._ledger.retry_delivery(delivery.id, owner, error, now + wait)
            except LeaseLost:  # the report has come after all
                continue

    def _apply(self, confirmation: commit.Confirmation, report: commit.Report) -> None:
        """Write down what the destination confirmed and what it lacks."""
        self._ledger.commit_report(
            confirmation.transaction_uid,
            sorted(report.confirmed),
            dict(report.failed),
            actor=self._settings.node.ae_title,
            means=confirmation.means,
        )
        self._log.info(
            "storage-confirmed",
            means=confirmation.means,
            confirmed=len(report.confirmed),
            failed=len(report.failed),
        )

    def _pause(self, delivery: Delivery) -> timedelta:
        return retry.delay(self._settings.retry, delivery.attempts, random.random())  # noqa: S311

    def _commitment_wait(self) -> timedelta:
        peer: Peer | None = self._settings.peers.get(self._name)
        return timedelta(seconds=peer.commitment_wait_seconds if peer else 60.0)


def _receives_no_longer(name: str) -> Permanent:
    return Permanent(
        "peer-does-not-receive",
        f"peers.{name}.receives = false, and this was derived before; set it to true and retry",
    )

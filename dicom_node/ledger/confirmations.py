"""The ledger's confirming side: what destinations say that they keep.

Storage Commitment: PS3.4 J.3. A destination without it confirms by query or by its C-STORE
status; the ledger does not mind which.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from dicom_node.audit import EventName, Outcome
from dicom_node.errors import NodeError, Permanent, Transient
from dicom_node.ledger.deliveries import (
    COMMITMENT_FAILED,
    DeliveryLedger,
    bound_for,
    due_to_be_claimed,
    unleased,
)
from dicom_node.ledger.schema import Row, commitments, deliveries
from dicom_node.ledger.work import failure
from dicom_node.network.status import Verdict, describe, verdict
from dicom_node.records import Delivery, DeliveryState

_FIRST_PAUSE: Final = timedelta(seconds=5)
LONGEST_PAUSE: Final = timedelta(hours=6)
"""An archive that renames what it takes holds another copy after each repetition."""
_DOUBLINGS: Final = 13
"""Enough for the longest pause."""


class ConfirmationLedger(DeliveryLedger):
    """Deliveries from accepted to confirmed; see `Ledger`."""

    _give_up: timedelta

    def claim_commit(
        self, owner: str, now: datetime, destination: str | None = None
    ) -> list[Delivery]:
        """Lease the sent deliveries of one series and destination whose turn to ask it is."""
        claimable = [
            deliveries.c.state == DeliveryState.SENT,
            *due_to_be_claimed(now),
            *bound_for(destination),
        ]
        return self._claim_group(claimable, owner, now)

    def start_commit(
        self,
        delivery_ids: Sequence[int],
        owner: str,
        transaction_uid: str,
        ask_again: datetime | None = None,
    ) -> None:
        """Persist a commitment transaction before its N-ACTION is sent.

        The leases end here: the report may reach any process. Until `ask_again` (default: a
        lease from now) no worker claims the deliveries; any worker may conclude them.
        """
        due = ask_again or datetime.now(UTC) + self._lease
        with self._database.write() as connection:
            for delivery_id in delivery_ids:
                row = self._leased(connection, delivery_id, owner)
                self._set_state(
                    connection,
                    row,
                    DeliveryState.SENT,
                    transaction_uid=transaction_uid,
                    **unleased(due),
                )
                asked = {"transaction_uid": transaction_uid, "delivery_id": delivery_id}
                connection.execute(self._database.insert_or_ignore(commitments, asked))

    def commit_report(
        self,
        transaction_uid: str,
        confirmed: Collection[str],
        failed: Mapping[str, int],
        *,
        actor: str = "",
        means: str = "commitment",
    ) -> int:
        """Apply a Storage Commitment report; return how many deliveries it changed.

        Idempotent. A confirmation counts whenever it comes; a failure counts only for the
        latest question about a delivery. What failed is sent again after a growing pause, or
        parked where the reason will not pass or the time to give up has come.

        Parameters
        ----------
        transaction_uid : str
            (0008,1195) *Transaction UID*; an unknown one changes nothing.
        confirmed : collection of str
            Derived SOP Instance UIDs that the archive has taken responsibility for.
        failed : mapping of str to int
            Derived SOP Instance UID to (0008,1197) *Failure Reason*.
        actor : str
            AE title that took the report, for the audit trail.
        means : str
            How it was confirmed, for the audit trail: "commitment", "query", or "status" where
            nothing but the answer to the C-STORE says so.
        """
        now = datetime.now(UTC)
        asked = sa.select(commitments.c.delivery_id).where(
            commitments.c.transaction_uid == transaction_uid
        )
        known = EventName.INSTANCE_CONFIRMED
        name = EventName.COMMITMENT_UNAVAILABLE if means == "status" else known
        changed = []
        with self._database.write() as connection:
            rows = connection.execute(
                sa.select(deliveries)
                .where(deliveries.c.id.in_(asked), deliveries.c.state == DeliveryState.SENT)
                .order_by(deliveries.c.id)
                .with_for_update()
            ).all()
            for row in rows:
                latest = row.transaction_uid == transaction_uid
                if row.sop_instance_uid in confirmed:
                    self._confirm(connection, row)
                    self._note(connection, name, row, actor=actor, detail=means)
                elif latest and row.sop_instance_uid in failed:
                    reason = failed[row.sop_instance_uid]
                    self._commit_failed(connection, row, reason, now, actor)
                else:
                    continue
                changed.append(row.instance_id)
            self._follow(connection, changed)
        return len(changed)

    def _commit_failed(
        self, connection: sa.Connection, row: Row, reason: int, now: datetime, actor: str
    ) -> None:
        message = (
            f"{row.destination} did not commit to the object: {describe(reason)}; see that it "
            'keeps what it takes, under the UID that it came with, or set confirm = "none"'
        )
        since = row.failing_since or now
        final = verdict(reason) is Verdict.PARK or now - since > self._give_up
        outcome = Outcome.SERIOUS_FAILURE if final else Outcome.MINOR_FAILURE
        said: dict[str, Any] = {"outcome": outcome, "actor": actor}
        self._note(connection, EventName.COMMITMENT_FAILED, row, detail=describe(reason), **said)
        if final:
            error = Permanent("commitment-refused", message)
            self._park_row(connection, row, error, now, failed_state=DeliveryState.PENDING)
            self._note(connection, EventName.INSTANCE_PARKED, row, detail=error.code, **said)
            return
        pause = min(_FIRST_PAUSE * 2 ** min(row.attempts, _DOUBLINGS), LONGEST_PAUSE)
        self._set_state(
            connection,
            row,
            DeliveryState.PENDING,
            **failure(row, Transient(COMMITMENT_FAILED, message), now),
            **unleased(now + pause),
        )

    def confirm(self, delivery_ids: Iterable[int], owner: str) -> None:
        """Note that the destination holds the instances, by query or by status alone."""
        with self._database.write() as connection:
            rows = [self._leased(connection, each, owner) for each in sorted(delivery_ids)]
            for row in rows:
                self._confirm(connection, row)
            self._follow(connection, [row.instance_id for row in rows])

    def resend_delivery(
        self, delivery_id: int, owner: str, error: NodeError, due: datetime
    ) -> None:
        """Send a delivery anew from `due` on: the destination says that it lacks it."""
        with self._database.write() as connection:
            row = self._leased(connection, delivery_id, owner)
            cause = failure(row, error, datetime.now(UTC))
            self._set_state(connection, row, DeliveryState.PENDING, **cause, **unleased(due))
            self._follow(connection, [row.instance_id])

    def _confirm(self, connection: sa.Connection, row: Row) -> None:
        self._set_state(
            connection,
            row,
            DeliveryState.CONFIRMED,
            failing_since=None,
            error_code=None,
            error=None,
            error_at=None,
            **unleased(datetime.now(UTC)),
        )

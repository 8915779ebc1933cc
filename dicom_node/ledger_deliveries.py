"""The ledger's sending side: one delivery for each derived instance and destination.

A delivery goes from pending over sending and sent to confirmed (`DELIVERY_TRANSITIONS`); the
stage of its instance follows from its deliveries. Storage Commitment: PS3.4 J.3.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from dicom_node.audit import Event
from dicom_node.errors import NodeError, Permanent, Transient
from dicom_node.ledger_arrivals import event_row
from dicom_node.ledger_schema import (
    Database,
    Row,
    check_stage,
    check_state,
    commitments,
    deliveries,
    events,
    instances,
    series,
)
from dicom_node.ledger_work import LeaseLost, failure
from dicom_node.records import Delivery, DeliveryState, Stage
from dicom_node.status import Verdict, describe, verdict

_UNSENT: Final = (DeliveryState.PENDING, DeliveryState.SENDING)
_FIRST_PAUSE: Final = timedelta(seconds=5)
_LONGEST_PAUSE: Final = timedelta(minutes=10)

_WITH_SOURCE: Final = (
    sa.select(deliveries, instances.c.sop_instance_uid.label("source_instance_uid"))
    .join(instances, instances.c.id == deliveries.c.instance_id)
    .order_by(deliveries.c.id)
)


class DeliveryLedger:
    """Deliveries and their confirmation; see `Ledger`."""

    _database: Database
    _lease: timedelta
    _give_up: timedelta

    def claim_send(
        self, owner: str, now: datetime, destination: str | None = None
    ) -> list[Delivery]:
        """Lease all due deliveries of one derived series to one destination, in one order.

        Only series that are released (`release_series`), and of which no instance is still
        on its first way through `derive`. A delivery in state SENDING was interrupted: ask
        the destination before sending it again. None takes any destination.
        """
        deriving = (
            sa.select(instances.c.id)
            .where(
                instances.c.series_uid == deliveries.c.source_series_uid,
                instances.c.stage == Stage.DERIVE,
                instances.c.failing_since.is_(None),
            )
            .exists()
        )
        released = (
            sa.select(series.c.series_uid)
            .where(
                series.c.series_uid == deliveries.c.source_series_uid,
                series.c.released_at.is_not(None),
            )
            .exists()
        )
        claimable = [
            deliveries.c.state.in_(_UNSENT),
            *_due(now),
            *_to(destination),
            released,
            ~deriving,
        ]
        return self._claim_group(claimable, owner, now)

    def claim_commit(
        self, owner: str, now: datetime, destination: str | None = None
    ) -> list[Delivery]:
        """Lease the sent deliveries of one series and destination whose turn to ask it is."""
        claimable = [deliveries.c.state == DeliveryState.SENT, *_due(now), *_to(destination)]
        return self._claim_group(claimable, owner, now)

    def _claim_group(
        self, claimable: list[sa.ColumnElement[bool]], owner: str, now: datetime
    ) -> list[Delivery]:
        """Lease what is claimable of the series and destination that waits longest."""
        first = (
            sa.select(deliveries.c.series_uid, deliveries.c.destination)
            .where(*claimable)
            .order_by(deliveries.c.due_at, deliveries.c.id)
            .limit(1)
        )
        with self._database.read() as connection:
            if connection.execute(first).first() is None:
                return []
        with self._database.write() as connection:
            self._database.exclude_other_claims(connection)
            group = connection.execute(first).first()
            if group is None:
                return []
            mine = connection.scalars(
                sa.update(deliveries)
                .where(
                    *claimable,
                    deliveries.c.series_uid == group.series_uid,
                    deliveries.c.destination == group.destination,
                )
                .values(
                    lease_owner=owner,
                    lease_until=now + self._lease,
                    attempts=deliveries.c.attempts + 1,
                )
                .returning(deliveries.c.id)
            ).all()
            rows = connection.execute(_WITH_SOURCE.where(deliveries.c.id.in_(mine))).all()
        return [_delivery_of(row) for row in rows]

    def mark_sending(self, delivery_id: int, owner: str) -> None:
        """Note, before the C-STORE, that the destination may receive the instance."""
        with self._database.write() as connection:
            row = self._leased(connection, delivery_id, owner)
            self._set_state(connection, row, DeliveryState.SENDING)

    def mark_sent(self, delivery_id: int, owner: str, event: Event | None = None) -> None:
        """Note that the destination accepted the instance, or held it already.

        The audit event is added in the same transaction.
        """
        with self._database.write() as connection:
            row = self._leased(connection, delivery_id, owner)
            self._set_state(connection, row, DeliveryState.SENT, **_unleased(datetime.now(UTC)))
            self._follow(connection, [row.instance_id])
            if event is not None:
                connection.execute(sa.insert(events).values(**event_row(event)))

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
                if row.state != DeliveryState.SENT:
                    continue
                self._set_state(
                    connection,
                    row,
                    DeliveryState.SENT,
                    transaction_uid=transaction_uid,
                    **_unleased(due),
                )
                asked = {"transaction_uid": transaction_uid, "delivery_id": delivery_id}
                connection.execute(self._database.insert_or_ignore(commitments, asked))

    def commit_report(
        self,
        transaction_uid: str,
        confirmed: Collection[str],
        failed: Mapping[str, int],
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
        """
        now = datetime.now(UTC)
        asked = sa.select(commitments.c.delivery_id).where(
            commitments.c.transaction_uid == transaction_uid
        )
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
                elif latest and row.sop_instance_uid in failed:
                    self._commit_failed(connection, row, failed[row.sop_instance_uid], now)
                else:
                    continue
                changed.append(row.instance_id)
            self._follow(connection, changed)
        return len(changed)

    def _commit_failed(
        self, connection: sa.Connection, row: Row, reason: int, now: datetime
    ) -> None:
        message = f"{row.destination} did not commit to the object: {describe(reason)}"
        since = row.failing_since or now
        if verdict(reason) is Verdict.PARK or now - since > self._give_up:
            error: NodeError = Permanent("commitment-refused", message)
            self._park_row(connection, row, error, now, failed_state=DeliveryState.PENDING)
            return
        pause = min(_FIRST_PAUSE * 2 ** min(row.attempts, 10), _LONGEST_PAUSE)
        self._set_state(
            connection,
            row,
            DeliveryState.PENDING,
            **failure(row, Transient("commitment-failed", message), now),
            **_unleased(now + pause),
        )

    def confirm(self, delivery_ids: Iterable[int], owner: str) -> None:
        """Note that the destination holds the instances, by query or by status alone."""
        with self._database.write() as connection:
            rows = [self._leased(connection, each, owner) for each in sorted(delivery_ids)]
            for row in rows:
                self._confirm(connection, row)
            self._follow(connection, [row.instance_id for row in rows])

    def retry_delivery(self, delivery_id: int, owner: str, error: NodeError, due: datetime) -> None:
        """Give a delivery back after a failure, in the state it is in, until `due`."""
        with self._database.write() as connection:
            row = self._leased(connection, delivery_id, owner)
            cause = failure(row, error, datetime.now(UTC))
            state = DeliveryState(row.state)
            self._set_state(connection, row, state, **cause, **_unleased(due))

    def resend_delivery(
        self, delivery_id: int, owner: str, error: NodeError, due: datetime
    ) -> None:
        """Send a delivery anew from `due` on: the destination says that it lacks it."""
        with self._database.write() as connection:
            row = self._leased(connection, delivery_id, owner)
            cause = failure(row, error, datetime.now(UTC))
            self._set_state(connection, row, DeliveryState.PENDING, **cause, **_unleased(due))
            self._follow(connection, [row.instance_id])

    def park_delivery(self, delivery_id: int, owner: str, error: NodeError) -> None:
        """Give a delivery up until the operator retries it; the other destinations go on."""
        with self._database.write() as connection:
            row = self._leased(connection, delivery_id, owner)
            self._park_row(connection, row, error, datetime.now(UTC), failed_state=row.state)
            self._follow(connection, [row.instance_id])

    def _park_row(
        self,
        connection: sa.Connection,
        row: Row,
        error: NodeError,
        now: datetime,
        failed_state: str,
    ) -> None:
        cause = failure(row, error, now)
        self._set_state(
            connection,
            row,
            DeliveryState.PARKED,
            failed_state=failed_state,
            **cause,
            **_unleased(now),
        )

    def _confirm(self, connection: sa.Connection, row: Row) -> None:
        self._set_state(
            connection,
            row,
            DeliveryState.CONFIRMED,
            failing_since=None,
            error_code=None,
            error=None,
            error_at=None,
            **_unleased(datetime.now(UTC)),
        )

    def _leased(self, connection: sa.Connection, delivery_id: int, owner: str) -> Row:
        """Lock a delivery's row, if `owner` may change it.

        A sent delivery that waits for its report is nobody's, and any worker may conclude it.
        """
        row = connection.execute(
            sa.select(deliveries).where(deliveries.c.id == delivery_id).with_for_update()
        ).one_or_none()
        free = row is not None and row.lease_owner is None and row.state == DeliveryState.SENT
        if row is None or (row.lease_owner != owner and not free):
            raise LeaseLost
        return row

    def _set_state(
        self, connection: sa.Connection, row: Row, after: DeliveryState, **values: object
    ) -> None:
        """Change a delivery's state, if the table of transitions allows it."""
        check_state(DeliveryState(row.state), after)
        connection.execute(
            sa.update(deliveries)
            .where(deliveries.c.id == row.id)
            .values(**({"state": after} | values))
        )

    def _follow(self, connection: sa.Connection, instance_ids: Iterable[int]) -> None:
        """Bring the stages of instances in line with their deliveries."""
        for instance_id in sorted(set(instance_ids)):
            instance = connection.execute(
                sa.select(instances).where(instances.c.id == instance_id).with_for_update()
            ).one()
            rows = connection.execute(
                sa.select(deliveries).where(deliveries.c.instance_id == instance_id)
            ).all()
            after = _stage_of({DeliveryState(row.state) for row in rows})
            if after == instance.stage:
                continue
            check_stage(Stage(instance.stage), after)
            values = dict.fromkeys(("error_code", "error", "error_at", "failed_stage"))
            values |= {"stage": after, "due_at": datetime.now(UTC)}
            if after is Stage.PARKED:
                cause = next(row for row in rows if row.state == DeliveryState.PARKED)
                values |= {"failed_stage": Stage.SEND, "error_at": cause.error_at}
                values |= {"error_code": cause.error_code, "error": cause.error}
            connection.execute(
                sa.update(instances).where(instances.c.id == instance_id).values(**values)
            )

    def _retry_deliveries(
        self, connection: sa.Connection, chosen: sa.ColumnElement[bool]
    ) -> set[int]:
        """Set parked deliveries going again; return the instances that they belong to."""
        rows = connection.execute(
            sa.select(deliveries)
            .join(instances, instances.c.id == deliveries.c.instance_id)
            .where(chosen, deliveries.c.state == DeliveryState.PARKED)
            .order_by(deliveries.c.id)
        ).all()
        now = datetime.now(UTC)
        for row in rows:
            sent = row.failed_state == DeliveryState.SENT
            after = DeliveryState.SENT if sent else DeliveryState.PENDING
            fresh = {"attempts": 0, "lost_leases": 0, "failing_since": None, "failed_state": None}
            self._set_state(connection, row, after, **fresh, **_unleased(now))
        touched = {row.instance_id for row in rows}
        self._follow(connection, touched)
        return touched


def _due(now: datetime) -> list[sa.ColumnElement[bool]]:
    return [deliveries.c.due_at <= now, deliveries.c.lease_owner.is_(None)]


def _to(destination: str | None) -> list[sa.ColumnElement[bool]]:
    return [] if destination is None else [deliveries.c.destination == destination]


def _unleased(due: datetime) -> dict[str, object]:
    return {"lease_owner": None, "lease_until": None, "due_at": due}


def _stage_of(states: set[DeliveryState]) -> Stage:
    """The stage of an instance whose deliveries are in these states."""
    if states & set(_UNSENT):
        return Stage.SEND
    if DeliveryState.SENT in states:
        return Stage.COMMIT
    return Stage.PARKED if DeliveryState.PARKED in states else Stage.AUDIT


def _delivery_of(row: Row) -> Delivery:
    return Delivery(
        id=row.id,
        instance_id=row.instance_id,
        destination=row.destination,
        state=DeliveryState(row.state),
        sop_class_uid=row.sop_class_uid,
        sop_instance_uid=row.sop_instance_uid,
        series_instance_uid=row.series_uid,
        path=Path(row.path),
        attempts=row.attempts,
        transaction_uid=row.transaction_uid,
        study_instance_uid=row.study_uid,
        source_instance_uid=row.source_instance_uid,
        failing_since=row.failing_since,
    )

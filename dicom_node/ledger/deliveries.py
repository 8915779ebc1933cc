"""The ledger's sending side: one delivery for each derived instance and destination.

A delivery goes from pending over sending and sent to confirmed (`DELIVERY_TRANSITIONS`); the
stage of its instance follows from its deliveries. `confirmations` has the last step.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from dicom_node.audit import Event, EventName, Outcome, event
from dicom_node.errors import NodeError
from dicom_node.ledger.arrivals import add_event
from dicom_node.ledger.schema import (
    Database,
    Row,
    check_stage,
    check_state,
    deliveries,
    instances,
    series,
)
from dicom_node.ledger.work import LeaseLost, failure
from dicom_node.records import Delivery, DeliveryState, Stage

COMMITMENT_FAILED: Final = "commitment-failed"
"""Code of the error for an object that its destination accepted and did not keep."""
_UNSENT: Final = (DeliveryState.PENDING, DeliveryState.SENDING)

_WITH_SOURCE: Final = (
    sa.select(deliveries, instances.c.sop_instance_uid.label("source_instance_uid"))
    .join(instances, instances.c.id == deliveries.c.instance_id)
    .order_by(deliveries.c.id)
)


class DeliveryLedger:
    """Deliveries until the destination has accepted them; see `Ledger`."""

    _database: Database
    _lease: timedelta

    def claim_send(
        self, owner: str, now: datetime, destination: str | None = None
    ) -> list[Delivery]:
        """Lease all due deliveries of one derived series to one destination, in one order.

        Only series that are released (`release_series`), and of which no instance is still
        on its first way through `derive`; what failed before does not wait for that, since
        nothing may be derived until it is sent. A delivery in state SENDING was interrupted: ask
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
            *due_to_be_claimed(now),
            *bound_for(destination),
            released,
            sa.or_(deliveries.c.failing_since.is_not(None), ~deriving),
        ]
        return self._claim_group(claimable, owner, now)

    def is_failing_to_send(self) -> bool:
        """Whether something waits for a destination that has failed to take it."""
        failing = sa.select(deliveries.c.id).where(
            deliveries.c.state.in_(_UNSENT), deliveries.c.failing_since.is_not(None)
        )
        with self._database.read() as connection:
            return connection.execute(failing.limit(1)).first() is not None

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

    def mark_sent(self, delivery_id: int, owner: str, line: Event | None = None) -> None:
        """Note that the destination accepted the instance, or held it already.

        The audit event is added in the same transaction.
        """
        with self._database.write() as connection:
            row = self._leased(connection, delivery_id, owner)
            fresh: dict[str, object] = {}
            if row.error_code != COMMITMENT_FAILED:  # or else an archive that loses it has no end
                fresh = dict.fromkeys(("failing_since", "error_code", "error", "error_at"))
                fresh |= {"attempts": 0, "lost_leases": 0}
            fresh["transaction_uid"] = None  # whatever was asked before is of an earlier sending
            now = datetime.now(UTC)
            self._set_state(connection, row, DeliveryState.SENT, **fresh, **unleased(now))
            self._follow(connection, [row.instance_id])
            if line is not None:
                add_event(connection, line)

    def retry_delivery(self, delivery_id: int, owner: str, error: NodeError, due: datetime) -> None:
        """Give a delivery back after a failure, in the state it is in, until `due`."""
        with self._database.write() as connection:
            row = self._leased(connection, delivery_id, owner)
            cause = failure(row, error, datetime.now(UTC))
            state = DeliveryState(row.state)
            self._set_state(connection, row, state, **cause, **unleased(due))

    def park_delivery(
        self, delivery_id: int, owner: str, error: NodeError, *, actor: str = ""
    ) -> None:
        """Give a delivery up until the operator retries it; the other destinations go on.

        The audit trail says so, and, where it was sent already, that its confirmation failed.
        """
        with self._database.write() as connection:
            row = self._leased(connection, delivery_id, owner)
            names = [EventName.INSTANCE_PARKED]
            if row.state == DeliveryState.SENT:
                names.insert(0, EventName.COMMITMENT_FAILED)
            for name in names:
                self._note(
                    connection,
                    name,
                    row,
                    outcome=Outcome.SERIOUS_FAILURE,
                    actor=actor,
                    detail=error.code,
                )
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
            **unleased(now),
        )

    def _note(
        self,
        connection: sa.Connection,
        name: EventName,
        row: Row,
        *,
        outcome: Outcome = Outcome.SUCCESS,
        actor: str = "",
        detail: str = "",
    ) -> None:
        """Add a line about a delivery to the audit trail."""
        source = connection.execute(
            sa.select(instances.c.sop_instance_uid).where(instances.c.id == row.instance_id)
        ).scalar_one()
        line = event(
            name,
            outcome=outcome,
            actor=actor,
            destination=row.destination,
            study_instance_uid=row.study_uid,
            series_instance_uid=row.source_series_uid,
            sop_instance_uid=source,
            derived_instance_uid=row.sop_instance_uid,
            detail=detail,
        )
        add_event(connection, line)

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
            .where(
                chosen,
                deliveries.c.state == DeliveryState.PARKED,
                instances.c.stage != Stage.DERIVE,
            )
            .order_by(deliveries.c.id)
        ).all()
        now = datetime.now(UTC)
        for row in rows:
            sent = row.failed_state == DeliveryState.SENT
            after = DeliveryState.SENT if sent else DeliveryState.PENDING
            fresh = {"attempts": 0, "lost_leases": 0, "failing_since": None, "failed_state": None}
            self._set_state(connection, row, after, **fresh, **unleased(now))
        touched = {row.instance_id for row in rows}
        self._follow(connection, touched)
        return touched


def due_to_be_claimed(now: datetime) -> list[sa.ColumnElement[bool]]:
    """Deliveries whose turn it is and that nobody works on."""
    return [deliveries.c.due_at <= now, deliveries.c.lease_owner.is_(None)]


def bound_for(destination: str | None) -> list[sa.ColumnElement[bool]]:
    """Deliveries to one destination, or to any."""
    return [] if destination is None else [deliveries.c.destination == destination]


def unleased(due: datetime) -> dict[str, object]:
    """The columns of a delivery that is given back until `due`."""
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

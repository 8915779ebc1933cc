"""The ledger's working side: claims with leases, and the stages of an instance.

Every claim hands out a lease; every finish or failure is one transaction that checks who holds
the lease and whether `STAGE_TRANSITIONS` allows the change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
import structlog

from dicom_node.audit import Event, EventName, Outcome, event
from dicom_node.errors import NodeError, Permanent, Transient
from dicom_node.ledger.arrivals import add_event
from dicom_node.ledger.schema import (
    Database,
    Row,
    UtcTime,
    check_stage,
    check_state,
    commitments,
    deliveries,
    instances,
)
from dicom_node.records import DeliveryState, DerivedIdentity, Identity, Instance, Stage

_log = structlog.get_logger(__name__)

_LOST_LEASES_LIMIT: Final = 5
"""A worker that died this often over one instance was killed by it."""
_WORKER_DIED: Final = Permanent(
    "worker-died",
    f"workers died {_LOST_LEASES_LIMIT} times over this object; look at its file, then retry",
)


class LeaseLost(Transient):
    """Another worker has the work now, or it is finished; drop it without a trace."""

    def __init__(self) -> None:
        super().__init__("lease-lost", "the lease has run out; another worker has the work")


class WorkLedger:
    """Stages of an instance; see `Ledger`."""

    _database: Database
    _lease: timedelta

    def claim_derive(self, owner: str, now: datetime) -> Instance | None:
        """Lease the oldest instance that waits for `derive`."""
        return self._claim(Stage.DERIVE, owner, now)

    def claim_audit(self, owner: str, now: datetime) -> Instance | None:
        """Lease the oldest instance that is confirmed everywhere."""
        return self._claim(Stage.AUDIT, owner, now)

    def _claim(self, stage: Stage, owner: str, now: datetime) -> Instance | None:
        due = (
            sa.select(instances.c.id)
            .where(
                instances.c.stage == stage,
                instances.c.due_at <= now,
                instances.c.lease_owner.is_(None),
            )
            .order_by(instances.c.due_at, instances.c.id)
            .limit(1)
        )
        with self._database.read() as connection:
            if connection.scalar(due) is None:
                return None
        with self._database.write() as connection:
            found = connection.scalar(due.with_for_update(skip_locked=True))
            if found is None:
                return None
            row = connection.execute(
                sa.update(instances)
                .where(instances.c.id == found)
                .values(
                    lease_owner=owner,
                    lease_until=now + self._lease,
                    attempts=instances.c.attempts + 1,
                )
                .returning(*instances.c)
            ).one()
        return instance_of(row)

    def finish_derive(
        self,
        instance_id: int,
        owner: str,
        identity: DerivedIdentity,
        path: Path,
        *,
        destinations: Sequence[str],
        sop_class_uid: str,
        timings: Mapping[str, float],
    ) -> None:
        """Record the derived file and one pending delivery for each destination.

        Of an instance that is derived anew the old deliveries become pending, for the new object.

        Raises
        ------
        LeaseLost
            Another worker has taken over; its result is the same file.
        """
        with self._database.write() as connection:
            row = self._held(connection, instance_id, owner)
            after = Stage.SEND if destinations else Stage.AUDIT
            self._move(
                connection,
                row,
                after,
                derived_path=str(path),
                derived_instance_uid=identity.sop_instance_uid,
                derived_series_uid=identity.series_instance_uid,
                timings={**row.timings, **timings},
            )
            for destination in destinations:
                delivery = {
                    "instance_id": row.id,
                    "destination": destination,
                    "state": DeliveryState.PENDING,
                    "sop_class_uid": sop_class_uid,
                    "sop_instance_uid": identity.sop_instance_uid,
                    "series_uid": identity.series_instance_uid,
                    "source_series_uid": row.series_uid,
                    "study_uid": row.study_uid,
                    "path": str(path),
                    "attempts": 0,
                    "lost_leases": 0,
                    "due_at": datetime.now(UTC),
                }
                self._deliver(connection, delivery)
            _note(
                connection,
                EventName.INSTANCE_DERIVED,
                row,
                derived_instance_uid=identity.sop_instance_uid,
            )

    def _deliver(self, connection: sa.Connection, delivery: Mapping[str, Any]) -> None:
        """Begin a delivery; one to the same destination begins anew."""
        begun = connection.execute(self._database.insert_or_ignore(deliveries, delivery))
        if begun.rowcount:
            return
        earlier = connection.execute(
            sa.select(deliveries)
            .where(
                deliveries.c.instance_id == delivery["instance_id"],
                deliveries.c.destination == delivery["destination"],
            )
            .with_for_update()
        ).one()
        check_state(DeliveryState(earlier.state), DeliveryState.PENDING)
        connection.execute(
            sa.delete(commitments).where(commitments.c.delivery_id == earlier.id)
        )  # what the archive may yet answer is of the object before
        over = ("transaction_uid", "failed_state", "failing_since", "lease_owner", "lease_until")
        fresh = dict.fromkeys((*over, "error_code", "error", "error_at"))
        connection.execute(
            sa.update(deliveries).where(deliveries.c.id == earlier.id).values(**fresh, **delivery)
        )

    def finish_audit(self, instance_id: int, owner: str, line: Event | None = None) -> None:
        """Close an instance, with its closing audit event in the same transaction."""
        with self._database.write() as connection:
            row = self._held(connection, instance_id, owner)
            self._move(connection, row, Stage.DONE, ended_at=datetime.now(UTC))
            if line is not None:
                add_event(connection, line)

    def retry_later(self, instance_id: int, owner: str, error: NodeError, due: datetime) -> None:
        """Give an instance back after a failure; it becomes claimable at `due`."""
        now = datetime.now(UTC)
        with self._database.write() as connection:
            row = self._held(connection, instance_id, owner)
            connection.execute(
                sa.update(instances)
                .where(instances.c.id == row.id)
                .values(
                    due_at=due,
                    lease_owner=None,
                    lease_until=None,
                    **failure(row, error, now),
                )
            )

    def park(self, instance_id: int, owner: str, error: NodeError) -> None:
        """Give an instance up until the operator retries it; the audit trail says so."""
        with self._database.write() as connection:
            self._park(connection, self._held(connection, instance_id, owner), error)

    def skip(self, instance_id: int, owner: str, error: NodeError) -> None:
        """Close an instance that the node does not process, with the reason, in the audit trail."""
        now = datetime.now(UTC)
        with self._database.write() as connection:
            row = self._held(connection, instance_id, owner)
            self._move(connection, row, Stage.SKIPPED, ended_at=now, **failure(row, error, now))
            _note(connection, EventName.INSTANCE_SKIPPED, row, detail=error.code)

    def heartbeat(self, owner: str, now: datetime) -> None:
        """Extend every lease of `owner`."""
        with self._database.write() as connection:
            for table in (instances, deliveries):
                connection.execute(
                    sa.update(table)
                    .where(table.c.lease_owner == owner)
                    .values(lease_until=now + self._lease)
                )

    def release(self, owner: str) -> int:
        """Give up every lease of `owner`, as at its clean stop; return how many."""
        freed = 0
        with self._database.write() as connection:
            for table in (instances, deliveries):
                freed += connection.execute(
                    sa.update(table)
                    .where(table.c.lease_owner == owner)
                    .values(lease_owner=None, lease_until=None)
                ).rowcount
        return freed

    def reclaim_expired(self, now: datetime) -> int:
        """Make work whose worker has died claimable again; return how much.

        A delivery that was being sent stays so, and its next sender asks first. An instance
        over which workers die again and again is parked.
        """
        freed = 0
        parked: list[Row] = []
        moment = sa.literal(now, UtcTime)
        with self._database.write() as connection:
            for table in (instances, deliveries):
                # By the index of owners: "is not null" would look at all that has ever ended.
                freed += connection.execute(
                    sa.update(table)
                    .where(table.c.lease_owner > "", table.c.lease_until < now)
                    .values(
                        lease_owner=None,
                        lease_until=None,
                        lost_leases=table.c.lost_leases + 1,
                        failing_since=sa.func.coalesce(table.c.failing_since, moment),
                    )
                ).rowcount
            if freed:
                parked = self._park_killers(connection)
        for row in parked:
            _log.error(
                "derive-parked",
                sop_instance_uid=row.sop_instance_uid,
                code=_WORKER_DIED.code,
                message=_WORKER_DIED.message,
            )
        return freed

    def _park_killers(self, connection: sa.Connection) -> list[Row]:
        """Park the instances over which too many workers died, and return them."""
        killers = connection.execute(
            sa.select(instances).where(
                instances.c.stage == Stage.DERIVE,
                instances.c.lost_leases >= _LOST_LEASES_LIMIT,
                instances.c.lease_owner.is_(None),
            )
        ).all()
        for row in killers:
            self._park(connection, row, _WORKER_DIED)
        return list(killers)

    def _park(self, connection: sa.Connection, row: Row, error: NodeError) -> None:
        """Give a row's instance up, with its line of the audit trail."""
        cause = failure(row, error, datetime.now(UTC))
        self._move(connection, row, Stage.PARKED, failed_stage=row.stage, **cause)
        _note(
            connection,
            EventName.INSTANCE_PARKED,
            row,
            outcome=Outcome.SERIOUS_FAILURE,
            detail=error.code,
        )

    def _held(self, connection: sa.Connection, instance_id: int, owner: str) -> Row:
        """Lock an instance's row, if `owner` holds its lease."""
        row = connection.execute(
            sa.select(instances)
            .where(instances.c.id == instance_id, instances.c.lease_owner == owner)
            .with_for_update()
        ).one_or_none()
        if row is None:
            raise LeaseLost
        return row

    def _move(self, connection: sa.Connection, row: Row, after: Stage, **values: object) -> None:
        """Change an instance's stage, if the table of transitions allows it."""
        check_stage(Stage(row.stage), after)
        fresh: dict[str, object] = {
            "stage": after,
            "attempts": 0,
            "lost_leases": 0,
            "failing_since": None,
            "lease_owner": None,
            "lease_until": None,
            "due_at": datetime.now(UTC),
        }
        if after not in {Stage.PARKED, Stage.SKIPPED}:
            fresh |= {"error_code": None, "error": None, "error_at": None, "failed_stage": None}
        connection.execute(
            sa.update(instances).where(instances.c.id == row.id).values(**(fresh | values))
        )


def _note(
    connection: sa.Connection,
    name: EventName,
    row: Row,
    *,
    outcome: Outcome = Outcome.SUCCESS,
    derived_instance_uid: str = "",
    detail: str = "",
) -> None:
    """Add a line about an instance to the audit trail."""
    line = event(
        name,
        outcome=outcome,
        study_instance_uid=row.study_uid,
        series_instance_uid=row.series_uid,
        sop_instance_uid=row.sop_instance_uid,
        derived_instance_uid=derived_instance_uid,
        detail=detail,
    )
    add_event(connection, line)


def failure(row: Row, error: NodeError, now: datetime) -> dict[str, Any]:
    """The columns that say why work on a row failed, and since when."""
    return {
        "error_code": error.code[:64],
        "error": error.message,
        "error_at": now,
        "failing_since": row.failing_since or now,
    }


def instance_of(row: Row) -> Instance:
    """The record of an instance's row."""
    return Instance(
        id=row.id,
        identity=Identity(
            sop_class_uid=row.sop_class_uid,
            sop_instance_uid=row.sop_instance_uid,
            series_instance_uid=row.series_uid,
            study_instance_uid=row.study_uid,
            transfer_syntax_uid=row.transfer_syntax_uid,
        ),
        stage=Stage(row.stage),
        source_path=Path(row.source_path),
        size=row.size,
        sha256=row.sha256,
        calling_ae=row.calling_ae,
        received_at=row.received_at,
        attempts=row.attempts,
        derived_path=Path(row.derived_path) if row.derived_path else None,
        derived_instance_uid=row.derived_instance_uid,
        derived_series_uid=row.derived_series_uid,
        error_code=row.error_code,
        error=row.error,
        timings=dict(row.timings),
        failing_since=row.failing_since,
    )

"""The ledger's receiving side: arrivals, duplicates, open associations, released series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
import structlog

from dicom_node.audit import Event, EventName, Outcome
from dicom_node.errors import NodeError, Refused
from dicom_node.ledger.schema import (
    Database,
    Row,
    UtcTime,
    events,
    instances,
    open_series,
    series,
)
from dicom_node.records import SOURCE_DAMAGED, Arrival, SeriesArrivals, Stage

_log = structlog.get_logger(__name__)

_UNSENT = (Stage.DERIVE, Stage.SEND)

NEVER_DERIVED: Final = ("not-ultrasound", "own-output")
"""Codes of what the receiver skips: no configuration makes the node derive it."""


class ArrivalLedger:
    """What the receiver records and what `assemble` reads; see `Ledger`."""

    _database: Database

    def record_arrival(self, arrival: Arrival, *, skip: Refused | None = None) -> bool:
        """Record one acknowledged object; see `record_arrivals`."""
        return self.record_arrivals([(arrival, skip)])[0]

    def record_arrivals(self, batch: Sequence[tuple[Arrival, Refused | None]]) -> list[bool]:
        """Record objects that lie in the spool; one transaction, all of them or none.

        Parameters
        ----------
        batch : sequence of (Arrival, Refused or None)
            An arrival with a reason is recorded as skipped.

        Returns
        -------
        list of bool
            For each arrival whether its file is now the instance's. False: the instance is
            held already, and the caller deletes the new file. The first object of a UID is
            kept, as archives do, also if the bytes differ (audit event ``instance-differs``),
            with three exceptions. An instance that was skipped is taken again, since
            configuration or object may have changed; different bytes replace one that was parked
            in ``derive``, since their sender has repaired it, and the same bytes where its file was
            damaged here; and the same bytes of one that is done are derived anew where its files
            have been purged.

        Raises
        ------
        Transient
            Nothing of the batch is recorded.
        """
        with self._database.write() as connection:
            outcomes = [self._record(connection, arrival, skip) for arrival, skip in batch]
        for (arrival, skip), (taken, remark) in zip(batch, outcomes, strict=True):
            _log.info(
                "receive-recorded" if taken else "receive-duplicate",
                sop_instance_uid=arrival.identity.sop_instance_uid,
                series_instance_uid=arrival.identity.series_instance_uid,
                calling_ae=arrival.calling_ae,
                size=arrival.size,
                remark=remark,
                skipped=skip.code if skip else None,
            )
        return [taken for taken, _ in outcomes]

    def _record(
        self, connection: sa.Connection, arrival: Arrival, skip: Refused | None
    ) -> tuple[bool, str]:
        """Record one arrival; return whether its file was taken, and the event's name."""
        uid = arrival.identity.sop_instance_uid
        derived_here = connection.scalar(
            sa.select(instances.c.id).where(instances.c.derived_instance_uid == uid).limit(1)
        )
        if derived_here is not None:
            skip = Refused("own-output", "this node derived the object itself; nothing to do")
        row = _row(arrival, skip)
        insert = self._database.insert_or_ignore(instances, row).returning(instances.c.id)
        taken = connection.scalar(insert) is not None
        remark = EventName.INSTANCE_SKIPPED if skip else EventName.INSTANCE_RECEIVED
        if not taken:
            held = connection.execute(
                sa.select(
                    instances.c.id,
                    instances.c.sha256,
                    instances.c.stage,
                    instances.c.failed_stage,
                    instances.c.files_purged,
                    instances.c.error_code,
                )
                .where(instances.c.sop_instance_uid == uid)
                .with_for_update()
            ).one()
            same = held.sha256 == arrival.sha256
            taken = skip is None and _is_replaceable(held, same=same)
            if taken:
                connection.execute(
                    sa.update(instances).where(instances.c.id == held.id).values(**row)
                )
            else:
                remark = EventName.INSTANCE_RECEIVED if same else EventName.INSTANCE_DIFFERS
        if skip is None:
            self._note_series(connection, arrival, pending=taken)
        if taken or remark is EventName.INSTANCE_DIFFERS:
            add_event(connection, _event(remark, arrival, skip))
        return taken, str(remark)

    def _note_series(self, connection: sa.Connection, arrival: Arrival, *, pending: bool) -> None:
        """Note that the association delivers into the series, and make it pending."""
        uid, at = arrival.identity.series_instance_uid, arrival.received_at
        opened = {"association": arrival.association, "series_uid": uid}
        connection.execute(self._database.insert_or_ignore(open_series, opened))
        if not pending:
            return
        first = {"series_uid": uid, "first_arrival": at, "last_arrival": at}
        fresh = connection.execute(self._database.insert_or_ignore(series, first)).rowcount
        if fresh:
            return
        released = series.c.released_at.is_not(None)
        moment = sa.literal(at, UtcTime)
        connection.execute(
            sa.update(series)
            .where(series.c.series_uid == uid)
            .values(
                first_arrival=sa.case((released, moment), else_=series.c.first_arrival),
                last_arrival=sa.case(
                    (series.c.last_arrival > moment, series.c.last_arrival), else_=moment
                ),
                released_at=None,
                release_reason=None,
            )
        )

    def close_association(self, association: str) -> None:
        """Note that an association was released, aborted or lost."""
        with self._database.write() as connection:
            connection.execute(
                sa.delete(open_series).where(open_series.c.association == association)
            )

    def forget_associations(self, receiver: str = "") -> None:
        """At the start of a receiver: none of its associations is open.

        Parameters
        ----------
        receiver : str
            What the names of this receiver's associations start with; empty means all.
        """
        with self._database.write() as connection:
            connection.execute(
                sa.delete(open_series).where(
                    open_series.c.association.startswith(receiver, autoescape=True)
                )
            )

    def series_arrivals(self, now: datetime) -> list[SeriesArrivals]:
        """Series that wait for their release, the oldest first; `now` is the caller's."""
        del now
        still_open = (
            sa.select(sa.func.count())
            .where(open_series.c.series_uid == series.c.series_uid)
            .scalar_subquery()
        )
        unsent = (
            sa.select(sa.func.count())
            .where(instances.c.series_uid == series.c.series_uid, instances.c.stage.in_(_UNSENT))
            .scalar_subquery()
        )
        query = (
            sa.select(series, still_open.label("still_open"), unsent.label("unsent"))
            .where(series.c.released_at.is_(None))
            .order_by(series.c.first_arrival)
        )
        with self._database.read() as connection:
            return [
                SeriesArrivals(
                    series_instance_uid=row.series_uid,
                    first_arrival=row.first_arrival,
                    last_arrival=row.last_arrival,
                    open_associations=row.still_open,
                    unsent=row.unsent,
                )
                for row in connection.execute(query)
            ]

    def release_series(self, series_uid: str, reason: str, now: datetime) -> bool:
        """Let the derived instances of a source series be sent, with an audit event.

        A later arrival makes the series pending again, until it is released anew.

        Returns
        -------
        bool
            Whether this call released it; False where another worker has done so already.
        """
        with self._database.write() as connection:
            released = connection.execute(
                sa.update(series)
                .where(series.c.series_uid == series_uid, series.c.released_at.is_(None))
                .values(released_at=now, release_reason=reason[:64])
            ).rowcount
            if released:
                line = Event(
                    name=EventName.SERIES_RELEASED,
                    at=now,
                    series_instance_uid=series_uid,
                    detail=reason,
                )
                add_event(connection, line)
        return bool(released)


def _is_replaceable(held: Row, *, same: bool) -> bool:
    """Whether an instance that is known is processed once more; see `record_arrivals`."""
    if held.stage == Stage.SKIPPED:
        return True
    if held.stage == Stage.DONE:
        return same and bool(held.files_purged)
    mended = not same or held.error_code == SOURCE_DAMAGED
    return mended and (held.stage, held.failed_stage) == (Stage.PARKED, Stage.DERIVE)


def _row(arrival: Arrival, skip: NodeError | None) -> dict[str, Any]:
    """Every column of an instance that has just arrived."""
    identity = arrival.identity
    return {
        "stage": Stage.SKIPPED if skip else Stage.DERIVE,
        "failed_stage": None,
        "sop_class_uid": identity.sop_class_uid,
        "sop_instance_uid": identity.sop_instance_uid,
        "series_uid": identity.series_instance_uid,
        "study_uid": identity.study_instance_uid,
        "transfer_syntax_uid": identity.transfer_syntax_uid,
        "source_path": str(arrival.path),
        "size": arrival.size,
        "sha256": arrival.sha256,
        "association": arrival.association,
        "calling_ae": arrival.calling_ae,
        "received_at": arrival.received_at,
        "ended_at": arrival.received_at if skip else None,
        "files_purged": False,
        "timings": {},
        "attempts": 0,
        "lost_leases": 0,
        "due_at": arrival.received_at,
        "failing_since": None,
        "lease_owner": None,
        "lease_until": None,
        "error_code": skip.code if skip else None,
        "error": skip.message if skip else None,
        "error_at": datetime.now(UTC) if skip else None,
    }


def _event(name: EventName, arrival: Arrival, skip: NodeError | None) -> Event:
    return Event(
        name=name,
        at=arrival.received_at,
        actor=arrival.calling_ae,
        study_instance_uid=arrival.identity.study_instance_uid,
        series_instance_uid=arrival.identity.series_instance_uid,
        sop_instance_uid=arrival.identity.sop_instance_uid,
        detail=skip.code if skip else "",
    )


def add_event(connection: sa.Connection, line: Event) -> None:
    """Add a line to the audit trail, in the transaction of what it tells of."""
    names = [column.name for column in events.columns if column.name != "id"]
    row = {name: getattr(line, name) for name in names}
    connection.execute(sa.insert(events).values(**row))


def event_of(row: Row) -> Event:
    """The audit event of a row."""
    fields = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's documented name
    del fields["id"]
    return replace(Event(**fields), name=EventName(row.name), outcome=Outcome(row.outcome))

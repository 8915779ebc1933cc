"""The queue and the record: every stage of every instance, in one database.

The only SQL of the node, with `schema` (tables, transitions, connections), `arrivals` (receiver),
`work` (stages and leases), `deliveries` and `confirmations` (destinations). SQLite in WAL mode with
``synchronous=FULL`` by default; PostgreSQL, where ``FOR UPDATE SKIP LOCKED`` keeps workers on
several hosts apart. Safe to use from several threads and processes; every method is one
transaction, durable when it returns.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Self

import sqlalchemy as sa

from dicom_node.audit import Event, EventName, event
from dicom_node.ledger.arrivals import NEVER_DERIVED, ArrivalLedger, add_event, event_of
from dicom_node.ledger.confirmations import LONGEST_PAUSE, ConfirmationLedger
from dicom_node.ledger.deliveries import COMMITMENT_FAILED
from dicom_node.ledger.schema import (
    Database,
    Row,
    UtcTime,
    deliveries,
    events,
    instances,
    open_series,
    series,
)
from dicom_node.ledger.work import LeaseLost, WorkLedger, instance_of
from dicom_node.records import (
    DERIVED_FILE_UNREADABLE,
    DeliveryState,
    Instance,
    LastError,
    Overview,
    Stage,
)

__all__ = ["LeaseLost", "Ledger"]

_ENDED = (Stage.DONE, Stage.SKIPPED)
_ON_THEIR_WAY = (DeliveryState.PENDING, DeliveryState.SENDING, DeliveryState.SENT)
_WAITING = (Stage.DERIVE, Stage.SEND, Stage.COMMIT, Stage.AUDIT)
_IDS_AT_ONCE = 500
"""In one statement; SQLite takes 32,766 values."""


class Ledger(ArrivalLedger, WorkLedger, ConfirmationLedger):
    """The node's ledger.

    Parameters
    ----------
    url : str
        SQLAlchemy URL, such as ``sqlite:////var/lib/dicom-node/ledger.sqlite3``. The schema
        is created if absent.
    lease_seconds : float
        How long a claim is safe without a heartbeat.
    give_up_hours : float
        A delivery whose commitment has failed for this long is parked.

    Raises
    ------
    ConfigError
        The URL is unusable, or the schema is another release's.
    Transient
        The database does not answer.
    """

    def __init__(self, url: str, lease_seconds: float = 60, give_up_hours: float = 72) -> None:
        self._database = Database(url)
        self._lease = timedelta(seconds=lease_seconds)
        self._give_up = timedelta(hours=give_up_hours)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._database.close()

    def instance(self, sop_instance_uid: str) -> Instance | None:
        """The row of a received instance."""
        query = sa.select(instances).where(instances.c.sop_instance_uid == sop_instance_uid)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else instance_of(row)

    def overview(self, errors: int = 10) -> Overview:
        """Counts, the oldest waiting instance and the last `errors` failures; skipping is none."""
        with self._database.read() as connection:
            stages = connection.execute(
                sa.select(instances.c.stage, sa.func.count()).group_by(instances.c.stage)
            ).all()
            reasons = connection.execute(
                sa.select(instances.c.stage, instances.c.error_code, sa.func.count().label("count"))
                .where(instances.c.stage.in_([Stage.SKIPPED, Stage.PARKED]))
                .group_by(instances.c.stage, instances.c.error_code)
                .order_by(sa.desc("count"), instances.c.error_code)
            ).all()
            states = connection.execute(
                sa.select(deliveries.c.destination, deliveries.c.state, sa.func.count()).group_by(
                    deliveries.c.destination, deliveries.c.state
                )
            ).all()
            oldest = connection.scalar(
                sa.select(instances.c.received_at)
                .where(instances.c.stage.in_(_WAITING))
                .order_by(instances.c.received_at)
                .limit(1)
            )
            still_open = connection.scalar(
                sa.select(sa.func.count(sa.distinct(open_series.c.association)))
            )
            last_errors = _last_errors(connection, errors)
        by_reason: dict[Stage, dict[str, int]] = {}
        for stage, code, count in reasons:
            by_reason.setdefault(Stage(stage), {})[code or ""] = count
        by_destination: dict[str, dict[DeliveryState, int]] = {}
        for destination, state, count in states:
            by_destination.setdefault(destination, {})[DeliveryState(state)] = count
        return Overview(
            stages={Stage(stage): count for stage, count in stages},
            reasons=by_reason,
            deliveries=by_destination,
            oldest_waiting=oldest,
            open_associations=still_open or 0,
            last_errors=last_errors,
        )

    def retry(self, *, sop_instance_uid: str | None = None, everything: bool = False) -> int:
        """Set parked work going again in the stage it failed in; return the instances.

        One whose derived file is gone is derived anew. The audit trail says so.

        Parameters
        ----------
        sop_instance_uid : str, optional
            Of a source or of a derived object.
        everything : bool
            All that is parked.
        """
        if everything:
            chosen: sa.ColumnElement[bool] = sa.true()
        else:
            chosen = sa.or_(
                instances.c.sop_instance_uid == sop_instance_uid,
                instances.c.derived_instance_uid == sop_instance_uid,
            )
        with self._database.write() as connection:
            lost = connection.execute(
                sa.select(instances).where(
                    chosen,
                    instances.c.stage == Stage.PARKED,
                    instances.c.failed_stage == Stage.SEND,
                    instances.c.error_code == DERIVED_FILE_UNREADABLE,
                )
            ).all()
            for row in lost:
                self._move(connection, row, Stage.DERIVE)
            touched = self._retry_deliveries(connection, chosen) | {row.id for row in lost}
            parked = connection.execute(
                sa.select(instances).where(
                    chosen,
                    instances.c.stage == Stage.PARKED,
                    instances.c.failed_stage.in_([Stage.DERIVE, Stage.AUDIT]),
                )
            ).all()
            for row in parked:
                self._move(connection, row, Stage(row.failed_stage))
                touched.add(row.id)
            if touched:
                scope = "all" if everything else ""
                line = event(
                    EventName.OPERATOR_RETRY, sop_instance_uid=sop_instance_uid or "", detail=scope
                )
                add_event(connection, line)
        return len(touched)

    def rederive(self, uid: str) -> tuple[int, int]:
        """Let instances that have ended be derived anew, by the configuration of today.

        The audit trail says so.

        Parameters
        ----------
        uid : str
            Of a source instance, a derived one, the series of either, or a study.

        Returns
        -------
        set_going, purged : int
            Instances that wait for `derive` now, and those whose files are no longer held: they
            are derived anew when their sender sends them again.
        """
        named = (
            instances.c.sop_instance_uid,
            instances.c.derived_instance_uid,
            instances.c.series_uid,
            instances.c.derived_series_uid,
            instances.c.study_uid,
        )
        with self._database.write() as connection:
            ended = connection.execute(
                sa.select(instances)
                .where(
                    sa.or_(*(column == uid for column in named)),
                    instances.c.stage.in_(_ENDED),
                    sa.func.coalesce(instances.c.error_code, "").not_in(NEVER_DERIVED),
                )
                .order_by(instances.c.id)
                .with_for_update()
            ).all()
            held = [row for row in ended if not row.files_purged]
            for row in held:
                self._move(connection, row, Stage.DERIVE, ended_at=None)
            if held:
                line = event(EventName.OPERATOR_REDERIVE, detail=uid)
                add_event(connection, line)
        return len(held), len(ended) - len(held)

    def pull_in(self, now: datetime, longest: timedelta) -> int:
        """After a clock was set back: wait for no time that is out of reach; return how much did.

        Parameters
        ----------
        now : datetime
            Aware, UTC.
        longest : timedelta
            Nothing is postponed for longer, but for what an archive did not keep: for six hours.
        """
        limit = sa.literal(now + longest, UtcTime)
        limit_kept = sa.literal(now + max(longest, LONGEST_PAUSE), UtcTime)
        soonest, lease_end = sa.literal(now, UtcTime), sa.literal(now + self._lease, UtcTime)
        kept = sa.func.coalesce(deliveries.c.error_code, "") == COMMITMENT_FAILED
        late = (
            sa.update(instances)
            .where(instances.c.stage.in_(_WAITING), instances.c.due_at > limit)
            .values(due_at=soonest),
            sa.update(instances)  # what has ended is due since then
            .where(instances.c.stage.in_(_ENDED), instances.c.due_at > limit)
            .values(due_at=soonest, ended_at=soonest),
            sa.update(deliveries)
            .where(
                deliveries.c.state.in_(_ON_THEIR_WAY),
                deliveries.c.due_at > sa.case((kept, limit_kept), else_=limit),
                deliveries.c.due_at > limit,  # by the index
            )
            .values(due_at=soonest),
            sa.update(series)
            .where(series.c.released_at.is_(None), series.c.last_arrival > limit)
            .values(first_arrival=soonest, last_arrival=soonest),
            *(
                sa.update(table)
                .where(table.c.lease_owner > "", table.c.lease_until > limit)
                .values(lease_until=lease_end)
                for table in (instances, deliveries)
            ),
        )
        with self._database.write() as connection:
            return sum(connection.execute(statement).rowcount for statement in late)

    def expired(self, before: datetime) -> list[Instance]:
        """Instances that ended before a time and whose files the spool still holds.

        Where no destination was configured the spool is where derived objects stay.
        """
        was_sent = sa.select(deliveries.c.id).where(deliveries.c.instance_id == instances.c.id)
        query = (
            sa.select(instances)
            .where(
                instances.c.stage.in_(_ENDED),
                instances.c.ended_at < before,
                instances.c.files_purged.is_(False),
                sa.or_(instances.c.stage == Stage.SKIPPED, was_sent.exists()),
            )
            .order_by(instances.c.id)
        )
        with self._database.read() as connection:
            return [instance_of(row) for row in connection.execute(query)]

    def forget_files(self, instance_ids: Iterable[int]) -> set[int]:
        """Note that the files of ended instances are about to go; rows stay.

        Returns
        -------
        set of int
            Those that have ended indeed: nobody needs their files any more.
        """
        wanted = iter(instance_ids)
        forgotten: set[int] = set()
        with self._database.write() as connection:
            while some := list(islice(wanted, _IDS_AT_ONCE)):
                forgotten |= set(
                    connection.scalars(
                        sa.update(instances)
                        .where(instances.c.id.in_(some), instances.c.stage.in_(_ENDED))
                        .values(files_purged=True)
                        .returning(instances.c.id)
                    )
                )
        return forgotten

    def known_files(self) -> set[Path]:
        """Every file that a row still needs, for `Spool.sweep`."""
        query = sa.select(instances.c.source_path, instances.c.derived_path).where(
            instances.c.files_purged.is_(False)
        )
        with self._database.read() as connection:
            return {Path(path) for row in connection.execute(query) for path in row if path}

    def has_forgotten(self, sop_instance_uid: str, file_name: str) -> bool:
        """Whether a source file is one that `forget_files` let go, but that is there still."""
        query = sa.select(instances.c.source_path).where(
            instances.c.sop_instance_uid == sop_instance_uid, instances.c.files_purged.is_(True)
        )
        with self._database.read() as connection:
            return any(Path(path).name == file_name for path in connection.scalars(query))

    def append_event(self, line: Event) -> None:
        """Add a line to the audit trail."""
        with self._database.write() as connection:
            add_event(connection, line)

    def events(
        self, after: int = 0, limit: int = 1000, uid: str | None = None
    ) -> list[tuple[int, Event]]:
        """Lines of the audit trail with their numbers, from the one after number `after`.

        Parameters
        ----------
        uid : str, optional
            Of a study, a series, a source or a derived object that the lines have to name.
        """
        named = (
            events.c.study_instance_uid,
            events.c.series_instance_uid,
            events.c.sop_instance_uid,
            events.c.derived_instance_uid,
        )
        query = sa.select(events).where(events.c.id > after).order_by(events.c.id).limit(limit)
        if uid is not None:
            query = query.where(sa.or_(*(column == uid for column in named)))
        with self._database.read() as connection:
            return [(row.id, event_of(row)) for row in connection.execute(query)]


def _last_errors(connection: sa.Connection, limit: int) -> tuple[LastError, ...]:
    """The newest failures of instances and deliveries that are not over."""
    of_instances = sa.select(
        instances.c.error_at,
        instances.c.sop_instance_uid,
        sa.func.coalesce(instances.c.failed_stage, instances.c.stage).label("place"),
        (instances.c.stage == Stage.PARKED).label("parked"),
        instances.c.error_code,
        instances.c.error,
    ).where(
        instances.c.error_at.is_not(None),
        instances.c.stage != Stage.SKIPPED,
        # What is parked in `send` has the error of a delivery, which is below.
        sa.func.coalesce(instances.c.failed_stage, "") != Stage.SEND,
    )
    of_deliveries = sa.select(
        deliveries.c.error_at,
        deliveries.c.sop_instance_uid,
        deliveries.c.destination.label("place"),
        (deliveries.c.state == DeliveryState.PARKED).label("parked"),
        deliveries.c.error_code,
        deliveries.c.error,
    ).where(deliveries.c.error_at.is_not(None))
    rows: list[Row] = []
    for query in (of_instances, of_deliveries):
        newest = query.order_by(sa.desc("error_at")).limit(limit)
        rows += connection.execute(newest).all()
    rows.sort(key=lambda row: row.error_at, reverse=True)
    return tuple(
        LastError(
            at=row.error_at,
            sop_instance_uid=row.sop_instance_uid,
            where=row.place,
            parked=bool(row.parked),
            code=row.error_code,
            message=row.error,
        )
        for row in rows[:limit]
    )

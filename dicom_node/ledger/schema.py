"""Tables, allowed transitions and connection set-up of the ledger; `ledger` holds the statements.

Times are seconds since 1970 UTC, so that they compare alike on SQLite and PostgreSQL.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from dicom_node.errors import ConfigError, Permanent, Transient
from dicom_node.records import DeliveryState, Stage

SCHEMA_VERSION: Final = 1
_BUSY_TIMEOUT_SECONDS: Final = 60
_SILENCE_SECONDS: Final = 60
"""How long PostgreSQL may take over a statement."""
_IDLE_SECONDS: Final = 30
"""How long PostgreSQL waits for the next statement of a transaction; others wait for its locks."""
_POOL_SIZE: Final = 96
_SCHEMA_LOCK: Final = 0x0DE5_0001
_CLAIM_LOCK: Final = 0x0DE5_0002
_PASSING: Final = (
    sa.exc.OperationalError,
    sa.exc.InterfaceError,
    sa.exc.InternalError,
    sa.exc.TimeoutError,
)
_PASSING_STATES: Final = ("08", "25006", "25P03", "40", "53", "55", "57", "58")
"""How the SQLSTATE of what may pass begins: PostgreSQL stops, is full, locked or a standby."""
_UNSERVED: Final = {
    "28": "it does not take this user or password",
    "3D": "it has no such database",
    "42501": "the user may not create or use the tables",
}
"""How the SQLSTATE begins where PostgreSQL does not serve this node, and why."""


Row = sa.Row[Any, *tuple[Any, ...]]
"""A row of any query; the columns are typed by the tables, not by Python."""


class UtcTime(sa.types.TypeDecorator[datetime]):
    """An aware datetime, stored as seconds since 1970 UTC."""

    impl = sa.Double
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> float | None:
        """Aware datetime -> seconds."""
        del dialect
        return None if value is None else value.timestamp()

    def process_result_value(self, value: float | None, dialect: sa.Dialect) -> datetime | None:
        """Seconds -> aware datetime."""
        del dialect
        return None if value is None else datetime.fromtimestamp(value, UTC)


def _work_columns() -> list[sa.Column[Any]]:
    """Columns of everything that a worker claims, fails at and repeats."""
    return [
        sa.Column("attempts", sa.Integer, nullable=False, default=0),
        sa.Column("lost_leases", sa.Integer, nullable=False, default=0),
        sa.Column("due_at", UtcTime, nullable=False),
        sa.Column("failing_since", UtcTime),
        sa.Column("lease_owner", sa.String(128), index=True),
        sa.Column("lease_until", UtcTime),
        sa.Column("error_code", sa.String(64)),
        sa.Column("error", sa.Text),
        sa.Column("error_at", UtcTime),
    ]


metadata = sa.MetaData()

schema = sa.Table("ledger_schema", metadata, sa.Column("version", sa.Integer, primary_key=True))

series = sa.Table(
    "series",
    metadata,
    sa.Column("series_uid", sa.String(64), primary_key=True),
    sa.Column("first_arrival", UtcTime, nullable=False),
    sa.Column("last_arrival", UtcTime, nullable=False),
    sa.Column("released_at", UtcTime, index=True),
    sa.Column("release_reason", sa.String(64)),
)
"""Source series; `first_arrival` is that of the first instance since the last release."""

open_series = sa.Table(
    "open_series",
    metadata,
    sa.Column("association", sa.String(128), primary_key=True),
    sa.Column("series_uid", sa.String(64), primary_key=True, index=True),
)
"""Which open association has delivered into which series."""

instances = sa.Table(
    "instances",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("stage", sa.String(16), nullable=False),
    sa.Column("failed_stage", sa.String(16)),
    sa.Column("sop_class_uid", sa.String(64), nullable=False),
    sa.Column("sop_instance_uid", sa.String(64), nullable=False, unique=True),
    sa.Column("series_uid", sa.String(64), nullable=False, index=True),
    sa.Column("study_uid", sa.String(64), nullable=False),
    sa.Column("transfer_syntax_uid", sa.String(64), nullable=False),
    sa.Column("source_path", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("association", sa.String(128), nullable=False),
    sa.Column("calling_ae", sa.String(16), nullable=False),
    sa.Column("received_at", UtcTime, nullable=False),
    sa.Column("derived_path", sa.Text),
    sa.Column("derived_instance_uid", sa.String(64), index=True),
    sa.Column("derived_series_uid", sa.String(64)),
    sa.Column("timings", sa.JSON, nullable=False, default=dict),
    sa.Column("ended_at", UtcTime),
    sa.Column("files_purged", sa.Boolean, nullable=False, default=False),
    *_work_columns(),
    sa.Index("instances_due", "stage", "due_at"),
)

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("instance_id", sa.ForeignKey("instances.id"), nullable=False),
    sa.Column("destination", sa.String(128), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("failed_state", sa.String(16)),
    sa.Column("sop_class_uid", sa.String(64), nullable=False),
    sa.Column("sop_instance_uid", sa.String(64), nullable=False, index=True),
    sa.Column("series_uid", sa.String(64), nullable=False),
    sa.Column("source_series_uid", sa.String(64), nullable=False),
    sa.Column("study_uid", sa.String(64), nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("transaction_uid", sa.String(64)),
    *_work_columns(),
    sa.UniqueConstraint("instance_id", "destination"),
    sa.Index("deliveries_due", "state", "due_at"),
)

commitments = sa.Table(
    "commitments",
    metadata,
    sa.Column("transaction_uid", sa.String(64), primary_key=True),
    sa.Column("delivery_id", sa.ForeignKey("deliveries.id"), primary_key=True),
)
"""Every question asked; an archive may answer an old one after a new one was asked."""

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("outcome", sa.Integer, nullable=False),
    sa.Column("actor", sa.String(64), nullable=False),
    sa.Column("destination", sa.String(128), nullable=False),
    sa.Column("study_instance_uid", sa.String(64), nullable=False),
    sa.Column("series_instance_uid", sa.String(64), nullable=False),
    sa.Column("sop_instance_uid", sa.String(64), nullable=False, index=True),
    sa.Column("derived_instance_uid", sa.String(64), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
)
"""The audit trail, a column a field of `audit.Event`. Rows are added, never changed: triggers."""


@sa.event.listens_for(events, "after_create")
def _forbid_changes(target: sa.Table, connection: sa.Connection, **_: object) -> None:
    """Let SQLite refuse changes to the audit trail; on PostgreSQL rights are the means."""
    if connection.dialect.name != "sqlite":
        return
    for action in ("UPDATE", "DELETE"):
        connection.exec_driver_sql(
            f"CREATE TRIGGER {target.name}_no_{action.lower()} BEFORE {action} ON {target.name} "
            "BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END"
        )


STAGE_TRANSITIONS: Final[Mapping[Stage, frozenset[Stage]]] = {
    Stage.DERIVE: frozenset({Stage.SEND, Stage.AUDIT, Stage.SKIPPED, Stage.PARKED}),
    Stage.SEND: frozenset({Stage.COMMIT, Stage.AUDIT, Stage.PARKED}),
    Stage.COMMIT: frozenset({Stage.SEND, Stage.AUDIT, Stage.PARKED}),
    Stage.AUDIT: frozenset({Stage.DONE, Stage.PARKED}),
    # What has ended is derived anew where the operator asks for it, or where it comes once more
    # and was skipped or is not held any longer.
    Stage.DONE: frozenset({Stage.DERIVE}),
    Stage.SKIPPED: frozenset({Stage.DERIVE}),
    Stage.PARKED: frozenset({Stage.DERIVE, Stage.SEND, Stage.COMMIT, Stage.AUDIT}),
}
"""Every change of an instance's stage that the ledger performs."""

DELIVERY_TRANSITIONS: Final[Mapping[DeliveryState, frozenset[DeliveryState]]] = {
    DeliveryState.PENDING: frozenset(
        {DeliveryState.SENDING, DeliveryState.CONFIRMED, DeliveryState.PARKED}
    ),
    DeliveryState.SENDING: frozenset(
        {
            DeliveryState.PENDING,
            DeliveryState.SENT,
            DeliveryState.CONFIRMED,
            DeliveryState.PARKED,
        }
    ),
    DeliveryState.SENT: frozenset(
        {DeliveryState.PENDING, DeliveryState.CONFIRMED, DeliveryState.PARKED}
    ),
    DeliveryState.CONFIRMED: frozenset({DeliveryState.PENDING}),  # its source was derived anew
    DeliveryState.PARKED: frozenset({DeliveryState.PENDING, DeliveryState.SENT}),
}
"""Every change of a delivery's state that the ledger performs."""


def check_stage(before: Stage, after: Stage) -> None:
    """Raise unless the table allows the change; staying is always allowed.

    Raises
    ------
    Permanent
        A stage was finished out of turn: a fault of this program.
    """
    if before != after and after not in STAGE_TRANSITIONS[before]:
        raise Permanent("illegal-transition", f"an instance cannot go from {before} to {after}")


def check_state(before: DeliveryState, after: DeliveryState) -> None:
    """Raise unless the table allows the change; staying is always allowed."""
    if before != after and after not in DELIVERY_TRANSITIONS[before]:
        raise Permanent("illegal-transition", f"a delivery cannot go from {before} to {after}")


class Database:
    """Connections and transactions; its errors become the node's errors.

    Parameters
    ----------
    url : str
        SQLAlchemy URL of an SQLite file or of a PostgreSQL database.

    Raises
    ------
    ConfigError
        The URL cannot be used, or another schema version made the database.
    Transient
        The database does not answer.
    """

    def __init__(self, url: str) -> None:
        try:
            self._engine = sa.create_engine(url, **_engine_options(url))
        except ImportError as error:
            raise ConfigError(
                "ledger-driver",
                f"ledger.url: its driver {error.name!r} is not installed; for PostgreSQL begin the "
                "URL with postgresql+pg8000:// and install the node with its extra, '.[postgres]'",
            ) from error
        except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError) as error:
            raise ConfigError(
                "ledger-url", "ledger.url: not a usable SQLAlchemy URL; see config/node.toml"
            ) from error
        self.dialect = self._engine.dialect.name
        # SQLite has one writer; queueing for it here is fair, its own busy wait is not.
        self._writer: AbstractContextManager[Any] = (
            threading.Lock() if self.dialect == "sqlite" else nullcontext()
        )
        if self.dialect == "sqlite":
            sa.event.listen(self._engine, "connect", _on_sqlite_connect)
            sa.event.listen(self._engine, "begin", _on_sqlite_begin)
        elif self.dialect == "postgresql":
            sa.event.listen(self._engine, "connect", _on_postgresql_connect)
        self._create()

    def _create(self) -> None:
        with self.write() as connection:
            if self.dialect == "postgresql":
                # Two processes that start together must not both create the tables.
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
            metadata.create_all(connection)
            found = connection.scalar(sa.select(schema.c.version))
            if found is None:
                connection.execute(sa.insert(schema).values(version=SCHEMA_VERSION))
            elif found != SCHEMA_VERSION:
                raise ConfigError(
                    "ledger-schema",
                    f"ledger.url: the ledger has schema {found}, this release needs "
                    f"{SCHEMA_VERSION}; install the matching release or start a new ledger",
                )

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction that may change rows; committed and durable when the block ends."""
        with _translated(), self._writer, self._engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One consistent view that changes nothing and waits for no writer."""
        with _translated(), self._engine.connect() as connection:
            reader = connection.execution_options(despeckle_read_only=True)
            with reader.begin():
                yield reader

    def insert_or_ignore(self, table: sa.Table, values: Mapping[str, Any]) -> sa.Insert:
        """An INSERT that does nothing where a unique key is taken already."""
        insert = postgresql.insert if self.dialect == "postgresql" else sqlite.insert
        return insert(table).values(**values).on_conflict_do_nothing()

    def exclude_other_claims(self, connection: sa.Connection) -> None:
        """Until the transaction ends, let no other one claim a group of deliveries."""
        if self.dialect == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CLAIM_LOCK)))

    def close(self) -> None:
        """Close the pooled connections."""
        self._engine.dispose()


def _engine_options(url: str) -> dict[str, Any]:
    options: dict[str, Any] = {"pool_size": _POOL_SIZE, "max_overflow": 0, "pool_timeout": 60}
    if url.startswith("sqlite"):
        options["connect_args"] = {"timeout": _BUSY_TIMEOUT_SECONDS, "check_same_thread": False}
    else:
        options["pool_pre_ping"] = True
        if "+pg8000" in url:  # else a server that loses its power is waited for for hours
            options["connect_args"] = {"timeout": _SILENCE_SECONDS}
    return options


def _on_postgresql_connect(connection: Any, record: object) -> None:
    """Let PostgreSQL end the transaction of a host that has died, and with it its locks."""
    del record
    cursor = connection.cursor()
    cursor.execute(f"SET idle_in_transaction_session_timeout = '{_IDLE_SECONDS}s'")
    cursor.close()
    connection.commit()


def _on_sqlite_connect(connection: sqlite3.Connection, record: object) -> None:
    """Set SQLite up for several processes and for power cuts."""
    del record
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _on_sqlite_begin(connection: sa.Connection) -> None:
    """Take the write lock at once, so that no transaction fails half way for want of it."""
    read_only = connection.get_execution_options().get("despeckle_read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what the database reports into the node's errors; never quote its parameters."""
    try:
        yield
    except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
        cause = getattr(error, "orig", None) or error
        state = _sqlstate(cause)
        if unserved := [why for begin, why in _UNSERVED.items() if state.startswith(begin)]:
            raise Transient(
                "ledger-refused",
                f"PostgreSQL refuses: {unserved[0]} (SQLSTATE {state}); correct ledger.url or the "
                "database",
            ) from error
        if isinstance(error, _PASSING) or state.startswith(_PASSING_STATES):
            raise _unavailable(f"SQLSTATE {state}" if state else type(cause).__name__) from error
        raise Permanent(
            "ledger-damaged",
            f"the ledger answers {type(cause).__name__}; check its integrity, restore a copy",
        ) from error
    except OSError as error:  # pg8000 passes on what a connection ends with
        raise _unavailable(type(error).__name__) from error


def _unavailable(cause: str) -> Transient:
    return Transient(
        "ledger-unavailable",
        f"the ledger cannot be used ({cause}); check its disk, its rights and ledger.url",
    )


def _sqlstate(error: BaseException | None) -> str:
    """What PostgreSQL calls an error, as pg8000 passes it on; empty for any other's."""
    said = error.args[0] if error is not None and error.args else None
    return str(said.get("C", "")) if isinstance(said, dict) else ""

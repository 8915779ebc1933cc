"""Empty ledgers for tests, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from dicom_node.ledger import Ledger
from dicom_node.ledger.schema import metadata
from dicom_node.records import Delivery, DerivedIdentity, Instance, Stage
from tests.postgres import postgresql_url

DATABASES = ("sqlite", "postgresql")


def empty_ledger_url(database: str, tmp_path: Path) -> str:
    """URL of a ledger without rows."""
    if database == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    url = postgresql_url()
    engine = sa.create_engine(url)
    metadata.drop_all(engine)
    engine.dispose()
    return url


def soon() -> datetime:
    """A moment at which everything that was given back without a pause is due."""
    return datetime.now(UTC) + timedelta(seconds=1)


def much_later() -> datetime:
    return datetime.now(UTC) + timedelta(days=1)


def derived_of(instance: Instance) -> DerivedIdentity:
    uid = instance.identity.sop_instance_uid
    return DerivedIdentity(f"2.25.{uid}", f"2.25.{instance.identity.series_instance_uid}")


def derive(
    ledger: Ledger, owner: str = "w", destinations: Sequence[str] = ("pacs",)
) -> Instance | None:
    """Do the next instance's `derive`."""
    instance = ledger.claim_derive(owner, soon())
    if instance is None:
        return None
    identity = derived_of(instance)
    ledger.finish_derive(
        instance.id,
        owner,
        identity,
        Path(f"/spool/derived/{identity.sop_instance_uid}.dcm"),
        destinations=destinations,
        sop_class_uid=instance.identity.sop_class_uid,
        timings={"derive": 1.0},
    )
    return instance


def send(ledger: Ledger, owner: str = "w", now: datetime | None = None) -> list[Delivery]:
    """Do the next send of a series."""
    claimed = ledger.claim_send(owner, now or soon())
    for delivery in claimed:
        ledger.mark_sending(delivery.id, owner)
        ledger.mark_sent(delivery.id, owner)
    return claimed


def stage_of(ledger: Ledger, instance: str = "1.2.3") -> Stage:
    found = ledger.instance(instance)
    assert found is not None
    return found.stage

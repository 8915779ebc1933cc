"""Timers of the worker: each calls one named sweep, and none holds durable state.

APScheduler 3 with `job_defaults` that run a late sweep once instead of skipping it, and with a
trigger, a job store and a wait of our own: its wall clock may be set back, or leap ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from apscheduler.events import EVENT_JOB_ERROR, JobExecutionEvent
from apscheduler.job import Job
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger

from dicom_node.assemble import complete
from dicom_node.config import Settings
from dicom_node.ledger import Ledger
from dicom_node.service import log
from dicom_node.spool import Spool

_log = log.get(__name__)
_ORPHAN_SECONDS: Final = 3600.0
"""A file that no row names may belong to a row about to be committed; not after an hour."""
_LONGEST_WAIT_SECONDS: Final = 1.0
_JOB_DEFAULTS: Final = {"misfire_grace_time": 3600, "coalesce": True, "max_instances": 1}


def release_complete_series(settings: Settings, ledger: Ledger) -> None:
    """Let the derived series of every complete source series be sent."""
    now = datetime.now(UTC)
    for completion in complete(ledger.series_arrivals(now), now, settings.assemble):
        uid, reason = completion.series_uid, str(completion.reason)
        if ledger.release_series(uid, reason, now):
            _log.info("series-released", series_instance_uid=uid, reason=reason)


def reclaim_expired_leases(ledger: Ledger) -> None:
    """Make the work of dead workers claimable again."""
    count = ledger.reclaim_expired(datetime.now(UTC))
    if count:
        _log.warning("leases-reclaimed", count=count)


def follow_clock(settings: Settings, ledger: Ledger) -> None:
    """Let what was postponed by a clock that was wrong, as at boot, go on once it is set back."""
    waits = [peer.commitment_wait_seconds for peer in settings.destinations.values()]
    longest = max(settings.retry.longest_seconds, settings.retry.lease_seconds, *waits)
    count = ledger.pull_in(datetime.now(UTC), timedelta(seconds=longest))
    if count:
        _log.warning("clock-was-set-back", count=count)


def purge_files(settings: Settings, ledger: Ledger, spool: Spool) -> None:
    """Remove the files of instances that ended long enough ago; their rows stay."""
    before = datetime.now(UTC) - timedelta(hours=settings.spool.keep_hours)
    count = 0
    for instance in ledger.expired(before):
        # The ledger first, one by one: what is derived anew meanwhile keeps its files, of the same
        # names perhaps, and what a crash leaves behind is swept.
        if not ledger.forget_files([instance.id]):
            continue
        count += 1
        for path in (instance.source_path, instance.derived_path):
            if path is not None:
                spool.remove(path)
    if count:
        _log.info("files-purged", instances=count)


def sweep_orphans(ledger: Ledger, spool: Spool) -> None:
    """Remove, or put aside, files that a crash left behind and no row names."""
    removed, put_aside = spool.sweep(ledger.known_files(), _ORPHAN_SECONDS, ledger.has_forgotten)
    if removed:
        _log.info("orphans-removed", count=removed)
    if put_aside:
        _log.warning("orphans-in-quarantine", count=put_aside)


def sweeps(
    settings: Settings, ledger: Ledger, spool: Spool
) -> Mapping[str, tuple[float, Callable[[], None]]]:
    """Every sweep of a worker by name, with its period in seconds."""
    completeness = max(0.1, min(1.0, settings.assemble.quiet_seconds / 4))
    return {
        "completeness": (completeness, partial(release_complete_series, settings, ledger)),
        "leases": (settings.retry.lease_seconds / 3, partial(reclaim_expired_leases, ledger)),
        "clock": (settings.retry.lease_seconds / 3, partial(follow_clock, settings, ledger)),
        "purge": (60.0, partial(purge_files, settings, ledger, spool)),
        "orphans": (600.0, partial(sweep_orphans, ledger, spool)),
    }


class Schedule:
    """Runs sweeps until it is stopped.

    Parameters
    ----------
    jobs : mapping of str to (float, callable)
        Name -> period in seconds and sweep.
    """

    def __init__(self, jobs: Mapping[str, tuple[float, Callable[[], None]]]) -> None:
        self._scheduler = _Scheduler(
            jobstores={"default": _Jobs()}, job_defaults=_JOB_DEFAULTS, timezone=UTC
        )
        self._scheduler.add_listener(_failed, EVENT_JOB_ERROR)
        now = datetime.now(UTC)
        for name, (seconds, sweep) in jobs.items():
            self._scheduler.add_job(sweep, _Every(seconds), id=name, name=name, next_run_time=now)

    def start(self) -> None:
        """Run every sweep now and then in its period."""
        self._scheduler.start()

    def stop(self) -> None:
        """Wait for the sweeps that run, and start no more."""
        self._scheduler.shutdown(wait=True)


class _Scheduler(BackgroundScheduler):  # type: ignore[misc]
    """Looks at its jobs every second at least, since its clock may be set back before it waits."""

    def _process_jobs(self) -> float:
        """Run what is due; return how long to wait."""
        wait = super()._process_jobs()
        return _LONGEST_WAIT_SECONDS if wait is None else min(wait, _LONGEST_WAIT_SECONDS)


class _Every(BaseTrigger):  # type: ignore[misc]
    """So long after the last run began, counted from now.

    APScheduler's own counts every run that a clock has leapt over: after a start in the year 2000
    they fill the memory.
    """

    def __init__(self, seconds: float) -> None:
        self.period = timedelta(seconds=seconds)

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        """The time of the next run."""
        return now if previous_fire_time is None else now + self.period


class _Jobs(MemoryJobStore):  # type: ignore[misc]
    """Lets a job run now where the clock was set back, instead of at a time that is far again."""

    def get_due_jobs(self, now: datetime) -> list[Job]:
        """The jobs whose turn it is."""
        for job in self.get_all_jobs():
            if job.next_run_time > now + job.trigger.period:
                job._modify(next_run_time=now)  # noqa: SLF001 - what the scheduler does after a run
                self.update_job(job)
        return list(super().get_due_jobs(now))


def _failed(failure: JobExecutionEvent) -> None:
    """A sweep that failed runs again in its period; say which, without values."""
    error = failure.exception
    _log.warning(
        "sweep-failed",
        sweep=failure.job_id,
        code=getattr(error, "code", ""),
        exception=type(error).__name__,
        place=log.place(error),
    )

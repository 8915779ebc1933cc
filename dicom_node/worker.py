"""The worker: claim -> one stage -> finish, retry or park, with leases and a clean stop.

One thread derives, one closes, and one for each destination sends and has storage confirmed,
so that a slow PACS stops neither the network nor another PACS. What a stage raises decides
alone what happens: Refused skips, Transient repeats with backoff, Permanent parks. Anything
else is a fault of this program over one object, and parks that object.
"""

from __future__ import annotations

import os
import random
import secrets
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final, Self

from dicom_node.audit import EventName, event
from dicom_node.config import Settings
from dicom_node.deliver import Deliverer
from dicom_node.errors import NodeError, Permanent, Refused, Transient
from dicom_node.ledger import LeaseLost, Ledger
from dicom_node.pipeline import Despeckler, Luminance, derive_instance
from dicom_node.pixels.morphology import Mask
from dicom_node.records import SOURCE_DAMAGED, Instance
from dicom_node.schedule import Schedule, sweeps
from dicom_node.service import log, retry
from dicom_node.service.edge import guarded
from dicom_node.spool import Spool

_log = log.get(__name__)
_IDLE_SECONDS: Final = 0.25
_ROOM_TO_DERIVE: Final = 2
"""Times `receive.min_free_mb` that derived objects leave free while they cannot be sent."""
_RULED_OUT: Final = frozenset({"not-dicom", "not-ultrasound"})
"""Refusals of what the receiver has seen to be an ultrasound object: its file was damaged since."""


class Leases:
    """Owner names of the work in progress; only these are kept alive by the heartbeat.

    Each claim has an owner of its own, so that work whose outcome could not be recorded is
    not kept from other workers for ever by this one's heartbeat.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._name = f"{socket.gethostname()[:60]}:{os.getpid()}"
        self._active: set[str] = set()
        self._lock = threading.Lock()

    @contextmanager
    def owner(self) -> Iterator[str]:
        """A fresh owner name for one claim; what is still leased at the end is given back."""
        name = f"{self._name}:{secrets.token_hex(4)}"
        with self._lock:
            self._active.add(name)
        try:
            yield name
        except BaseException:
            self._ledger.release(name)
            raise
        finally:
            with self._lock:
                self._active.discard(name)

    def beat(self) -> None:
        """Extend the leases of all work in progress."""
        with self._lock:
            owners = sorted(self._active)
        for owner in owners:
            self._ledger.heartbeat(owner, datetime.now(UTC))


class Worker:
    """Works off the ledger until it is stopped.

    Parameters
    ----------
    settings : Settings
    ledger, spool
        Shared with the receiver.
    despecklers : mapping of str to Despeckler
        Loaded students of all of `Settings.bundles`, by what the configuration calls the bundle.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        spool: Spool,
        despecklers: Mapping[str, Despeckler],
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._spool = spool
        self._stop = threading.Event()
        self._despecklers = {
            bundle: _Interruptible(despeckler, self._stop)
            for bundle, despeckler in despecklers.items()
        }
        self._leases = Leases(ledger)
        self._schedule = Schedule(sweeps(settings, ledger, spool))
        # Destinations that were removed from the configuration still have deliveries to park.
        destinations = {*settings.destinations, *ledger.overview().deliveries}
        self._deliverers = {name: Deliverer(settings, ledger, spool, name) for name in destinations}
        self._threads = [self._thread("derive", self._derive_step)]
        self._threads += [self._thread("audit", self._audit_step)]
        self._threads += [
            self._thread(f"deliver-{name}", self._deliver_step(deliverer))
            for name, deliverer in sorted(self._deliverers.items())
        ]
        self._heart = threading.Thread(target=self._keep_alive, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def is_well(self) -> bool:
        """Whether every thread is at work."""
        return self._heart.is_alive() and all(thread.is_alive() for thread in self._threads)

    def start(self) -> None:
        """Reclaim what dead workers left, and begin."""
        self._ledger.reclaim_expired(datetime.now(UTC))
        for thread in self._threads:
            thread.start()
        self._heart.start()
        self._schedule.start()
        _log.info("worker-started", destinations=sorted(self._deliverers))

    def stop(self) -> None:
        """Finish or give back what is in hand, and end every thread."""
        self._stop.set()
        self._schedule.stop()
        for thread in self._threads:
            thread.join()
        self._heart.join()
        _log.info("worker-stopped")

    def _thread(self, name: str, step: Callable[[str], bool]) -> threading.Thread:
        return threading.Thread(target=self._loop, args=(step,), name=name, daemon=True)

    def _loop(self, step: Callable[[str], bool]) -> None:
        """Repeat a step; rest where there is nothing to do or the ledger cannot be used."""
        while not self._stop.is_set():
            busy = guarded(lambda: self._with_lease(step))
            if isinstance(busy, NodeError):
                level = _log.info if isinstance(busy, LeaseLost | _Stopped) else _log.error
                level("step-failed", code=busy.code, message=busy.message)
            if busy is not True:
                self._stop.wait(_IDLE_SECONDS)

    def _with_lease(self, step: Callable[[str], bool]) -> bool:
        with self._leases.owner() as owner:
            return step(owner)

    def _derive_step(self, owner: str) -> bool:
        if self._is_ahead():
            return False
        instance = self._ledger.claim_derive(owner, datetime.now(UTC))
        if instance is None:
            return False
        outcome = guarded(lambda: self._derive(instance, owner))
        if isinstance(outcome, Refused) and outcome.code in _RULED_OUT:
            outcome = _damaged(outcome)
        if isinstance(outcome, _Stopped):
            self._ledger.release(owner)
        elif isinstance(outcome, NodeError):
            self._derive_failed(instance, owner, outcome)
        return True

    def _is_ahead(self) -> bool:
        """Whether to leave what is free of the disk to arrivals, which are smaller.

        A destination takes nothing, and what is derived meanwhile fills the spool.
        """
        enough = _ROOM_TO_DERIVE * self._settings.receive.min_free_mb
        return self._spool.free_mb() < enough and self._ledger.is_failing_to_send()

    def _derive(self, instance: Instance, owner: str) -> None:
        uids = {
            "sop_instance_uid": instance.identity.sop_instance_uid,
            "series_instance_uid": instance.identity.series_instance_uid,
        }
        _log.info("derive-started", attempt=instance.attempts, size=instance.size, **uids)
        settings = self._settings.for_sender(instance.calling_ae)
        derived = derive_instance(
            self._spool.located(instance.source_path),
            self._despecklers[settings.despeckle.bundle],
            settings,
            lambda relative, chunks: self._spool.write(chunks, relative),
            work_directory=self._spool.incoming,
        )
        self._ledger.finish_derive(
            instance.id,
            owner,
            derived.identity,
            derived.path,
            destinations=list(self._settings.destinations),
            sop_class_uid=derived.sop_class_uid,
            timings=derived.timings,
        )
        _log.info(
            "derive-finished",
            derived_instance_uid=derived.identity.sop_instance_uid,
            frames=derived.report.frames,
            changed_share=round(derived.report.changed_share, 4),
            regions=derived.report.region_source,
            seconds={name: round(value, 3) for name, value in derived.timings.items()},
            **uids,
        )

    def _derive_failed(self, instance: Instance, owner: str, error: NodeError) -> None:
        now = datetime.now(UTC)
        error = retry.judged(
            error,
            self._settings.retry,
            attempts=instance.attempts,
            failing_since=instance.failing_since,
            now=now,
        )
        uid = instance.identity.sop_instance_uid
        facts = {"sop_instance_uid": uid, "code": error.code, "message": error.message}
        if isinstance(error, LeaseLost):
            _log.info("derive-superseded", **facts)
        elif isinstance(error, Refused):
            self._ledger.skip(instance.id, owner, error)
            _log.info("derive-skipped", **facts)
        elif isinstance(error, Transient):
            pause = retry.delay(self._settings.retry, instance.attempts, random.random())  # noqa: S311
            self._ledger.retry_later(instance.id, owner, error, now + pause)
            _log.warning("derive-postponed", seconds=round(pause.total_seconds(), 1), **facts)
        else:
            self._ledger.park(instance.id, owner, error)
            _log.error("derive-parked", **facts)

    def _deliver_step(self, deliverer: Deliverer) -> Callable[[str], bool]:
        def step(owner: str) -> bool:
            return deliverer.step(owner, self._stop.is_set)

        return step

    def _audit_step(self, owner: str) -> bool:
        """Close one instance with its last audit event."""
        instance = self._ledger.claim_audit(owner, datetime.now(UTC))
        if instance is None:
            return False
        closing = event(
            EventName.INSTANCE_COMPLETED,
            study_instance_uid=instance.identity.study_instance_uid,
            series_instance_uid=instance.identity.series_instance_uid,
            sop_instance_uid=instance.identity.sop_instance_uid,
            derived_instance_uid=instance.derived_instance_uid or "",
        )
        self._ledger.finish_audit(instance.id, owner, closing)
        _log.info(
            "instance-completed",
            sop_instance_uid=instance.identity.sop_instance_uid,
            derived_instance_uid=instance.derived_instance_uid,
        )
        return True

    def _keep_alive(self) -> None:
        """Extend the leases of work in progress, also while the worker is stopping."""
        period = self._settings.retry.lease_seconds / 3
        while alive := [thread for thread in self._threads if thread.is_alive()]:
            failed = guarded(self._leases.beat)
            if isinstance(failed, NodeError):
                _log.error("heartbeat-failed", code=failed.code, message=failed.message)
            if self._stop.wait(period):
                alive[0].join(1.0)


def _damaged(refusal: Refused) -> Permanent:
    """An acknowledged object is not dropped because the disk lost it."""
    return Permanent(
        SOURCE_DAMAGED,
        f"the source's file in the spool is no ultrasound object any more ({refusal.code}); check "
        "the disk and send the object again, or restore the file and retry",
    )


class _Interruptible:
    """A despeckler that gives up between two frames once the worker is to stop."""

    def __init__(self, despeckler: Despeckler, stop: threading.Event) -> None:
        self._despeckler = despeckler
        self._stop = stop
        self.bundle = despeckler.bundle

    def fingerprint(self, strength: float) -> str:
        """See `Despeckler`."""
        return self._despeckler.fingerprint(strength)

    def frames(
        self, luminances: Iterable[Luminance], strength: float, tissue: Mask | None = None
    ) -> Iterator[Luminance]:
        """See `Despeckler`.

        Raises
        ------
        _Stopped
            The worker is stopping.
        """
        for frame in self._despeckler.frames(luminances, strength, tissue):
            if self._stop.is_set():
                raise _Stopped
            yield frame


class _Stopped(Transient):
    """The worker was asked to stop while it derived; the lease is given back."""

    def __init__(self) -> None:
        super().__init__("worker-stopped", "the worker was stopped; another start continues")

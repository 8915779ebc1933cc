"""Run one service as a process: signals, readiness, watchdog and clean stop.

SIGTERM and SIGINT stop it cleanly; whatever else ends it loses nothing, since the ledger holds
all state. See systemd.service(5), ``Type=notify``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any, Final

from dicom_node.config import Settings
from dicom_node.service import log, notify

_log = log.get(__name__)
_PULSE_SECONDS: Final = 1.0
_PR_SET_PDEATHSIG: Final = 1
SUPERVISED: Final = "DICOM_NODE_SUPERVISOR"
"""Names, in a child's environment, the process that it must not outlive."""


def run(
    name: str,
    settings: Settings,
    service: AbstractContextManager[Any],
    is_well: Callable[[], bool] = lambda: True,
) -> int:
    """Run a service until a signal comes; return the exit status.

    Parameters
    ----------
    name : str
        For the logs.
    settings : Settings
        For the logs.
    service : context manager
        Started on entry, stopped on exit.
    is_well : callable
        Whether it does its work; where not, the process ends, to be started again.

    Returns
    -------
    int
        0 after a signal, 1 where the service failed by itself.
    """
    stop = threading.Event()
    catch_signals(stop)
    _follow_supervisor(stop)
    with service:
        notify.ready(f"{name} as {settings.node.ae_title}")
        _log.info("process-ready", ae_title=settings.node.ae_title)
        watchdog = notify.watchdog_seconds()
        pulse = min(_PULSE_SECONDS, watchdog / 3) if watchdog else _PULSE_SECONDS
        while not stop.wait(pulse) and is_well():
            notify.alive()
        notify.stopping()
        _log.info("process-stopping", asked=stop.is_set())
    return 0 if stop.is_set() else 1


def catch_signals(stop: threading.Event) -> None:
    """Let SIGTERM and SIGINT set an event."""

    def caught(number: int, frame: FrameType | None) -> None:
        del number, frame
        stop.set()

    signal.signal(signal.SIGTERM, caught)
    signal.signal(signal.SIGINT, caught)


def _follow_supervisor(stop: threading.Event) -> None:
    """Stop when the supervisor dies, by the kernel's parent-death signal of prctl(2)."""
    supervisor = os.environ.get(SUPERVISED, "")
    if not supervisor:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if str(os.getppid()) != supervisor:  # it died before the call
        stop.set()

"""``serve``: receiver and worker as two processes, started again when they end by themselves.

Under systemd the two units do this; here it is for a container, a demonstration or a test. The
receiver is its own process so that decoding and inference cannot slow it down or take it along.
"""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from dicom_node.service import log, notify
from dicom_node.service.process import SUPERVISED, catch_signals

_log = log.get(__name__)
_TICK_SECONDS: Final = 0.1
_PULSE_SECONDS: Final = 1.0
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 30.0
_STABLE_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 60.0
EXIT_CONFIG: Final = 78
"""sysexits.h: the configuration is wrong, so that starting again is of no use."""


@dataclass
class _Child:
    """One supervised process."""

    name: str
    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    is_ready: bool = False
    started: float = 0.0
    start_at: float = 0.0
    pause: float = _FIRST_PAUSE_SECONDS


class Supervisor:
    """Keeps the receiver and the worker running.

    Parameters
    ----------
    config : Path or None
        Handed to both; None means the defaults.
    """

    def __init__(self, config: Path | None) -> None:
        options = [] if config is None else ["--config", str(config)]
        self._children = [
            _Child(name, [sys.executable, "-m", "dicom_node", name, *options])
            for name in ("receive", "work")
        ]
        self._stop = threading.Event()

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; return the exit status.

        Returns
        -------
        int
            0 after a signal; a child's status where it says at the start that its configuration is
            wrong. Later on a wrong file ends that child alone, until it is corrected.
        """
        catch_signals(self._stop)
        with tempfile.TemporaryDirectory(prefix="dicom-node-") as folder:
            with Listener(Path(folder)) as listener:
                status = self._watch(listener)
            notify.stopping()
            self._end()
        return status

    def _watch(self, listener: Listener) -> int:
        announced = False
        next_pulse = 0.0
        while not self._stop.is_set():
            for child in self._children:
                if child.process is None and time.monotonic() >= child.start_at:
                    self._start(child, listener)
                status = child.process.poll() if child.process else None
                if status == EXIT_CONFIG and not announced:
                    return EXIT_CONFIG
                if status is not None:
                    self._ended(child, status)
            for name in listener.ready(_TICK_SECONDS):
                next(child for child in self._children if child.name == name).is_ready = True
            if not announced and all(child.is_ready for child in self._children):
                announced = True
                notify.ready("receiver and worker")
                _log.info("serve-ready")
            if all(child.process for child in self._children) and time.monotonic() > next_pulse:
                notify.alive()
                next_pulse = time.monotonic() + _PULSE_SECONDS
        return 0

    def _start(self, child: _Child, listener: Listener) -> None:
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(listener.address(child.name)),
            SUPERVISED: str(os.getpid()),
        }
        environment.pop("WATCHDOG_PID", None)
        child.process = subprocess.Popen(child.command, env=environment)
        child.started = time.monotonic()
        _log.info("child-started", child=child.name, pid=child.process.pid)

    def _ended(self, child: _Child, status: int) -> None:
        """Start it again after a pause that grows while it keeps ending early."""
        lasted = time.monotonic() - child.started
        child.pause = (
            _FIRST_PAUSE_SECONDS
            if lasted > _STABLE_SECONDS
            else min(child.pause * 2, _LONGEST_PAUSE_SECONDS)
        )
        child.process = None
        child.start_at = time.monotonic() + child.pause
        _log.error("child-ended", child=child.name, status=status, seconds=child.pause)

    def _end(self) -> None:
        """Stop the children cleanly, the receiver first so that nothing new comes in."""
        running = [child.process for child in self._children if child.process]
        for process in running:
            process.terminate()
        limit = time.monotonic() + _STOP_SECONDS
        for process in running:
            try:
                process.wait(max(0.1, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                _log.error("child-killed", pid=process.pid)
                process.kill()
                process.wait()


class Listener:
    """Sockets on which the children say that they are ready, see `notify`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._selector = selectors.DefaultSelector()
        self._sockets: dict[str, socket.socket] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self._selector.close()
        for channel in self._sockets.values():
            channel.close()

    def address(self, name: str) -> Path:
        """Where a child sends its messages."""
        path = self._folder / f"{name}.notify"
        if name not in self._sockets:
            channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            channel.bind(str(path))
            self._sockets[name] = channel
            self._selector.register(channel, selectors.EVENT_READ, name)
        return path

    def ready(self, seconds: float) -> list[str]:
        """Names of the children that said so within the time."""
        names = []
        for key, _ in self._selector.select(seconds):
            message = self._sockets[str(key.data)].recv(4096).decode(errors="replace")
            if "READY=1" in message.splitlines():
                names.append(str(key.data))
        return names

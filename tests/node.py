"""The node as its real commands in processes of their own, for acceptance tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import pytest

from dicom_node.commands.supervise import Listener
from dicom_node.config import Settings, load
from dicom_node.ledger import Ledger
from dicom_node.records import Instance, Stage
from tests.peers import LOOPBACK, free_port, wait_until

AE_TITLE = "DESPECKLE"


class Node:
    """A node's folder, configuration and processes.

    Parameters
    ----------
    folder : Path
        State, configuration and logs.
    pacs_port : int
        Of the destination.
    sections : dict
        Changes to the configuration, section -> key -> value; `peer` changes the destination.
    """

    def __init__(
        self, folder: Path, pacs_port: int, pacs_ae: str = "PACS", **sections: dict[str, Any]
    ) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._starts = 0
        peer: dict[str, Any] = {
            "ae_title": pacs_ae,
            "host": LOOPBACK,
            "port": pacs_port,
            "receives": True,
        }
        peer["commitment_wait_seconds"] = 3.0
        document: dict[str, dict[str, Any]] = {
            "node": {"state_directory": str(folder / "state")},
            "receive": {"host": LOOPBACK, "port": self.port, "min_free_mb": 1},
            "assemble": {"quiet_seconds": 0.5},
            "retry": {"first_seconds": 0.2, "longest_seconds": 1.0, "lease_seconds": 2.0},
            "despeckle": {"threads": 1},
        }
        for name, values in sections.items():
            if name == "peer":
                peer |= values
            else:
                document.setdefault(name, {}).update(values)
        self.config = folder / "node.toml"
        self.config.write_text(_toml(document | {"peers.pacs": peer}))
        self.settings: Settings = load(self.config)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()

    @property
    def logs(self) -> str:
        """Everything that its processes have written."""
        return "\n".join(
            path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log"))
        )

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start ``serve``, ``receive`` or ``work`` and wait until it says that it is ready."""
        self._starts += 1
        notify = self.folder / f"notify-{self._starts}"
        notify.mkdir()
        # A pytest folder may be too long a path for a socket.
        with Listener(Path(os.path.relpath(notify))) as listener:
            address = Path(listener.address(name)).absolute()
            environment = {**os.environ, "NOTIFY_SOCKET": str(address)}
            if len(str(address)) > 100:
                environment["NOTIFY_SOCKET"] = os.path.relpath(address)
            with (self.folder / f"{self._starts}-{name}.log").open("wb") as sink:
                process = subprocess.Popen(
                    [sys.executable, "-m", "dicom_node", name, "--config", str(self.config)],
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    env=environment,
                )
            self.processes[name] = process
            limit = time.monotonic() + 90
            while name not in listener.ready(0.1):
                if process.poll() is not None or time.monotonic() > limit:
                    pytest.fail(f"{name} did not get ready:\n{self.logs[-3000:]}")
        return process

    def kill(self, name: str) -> None:
        """End a process at once, as a power cut would."""
        process = self.processes[name]
        process.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self, name: str) -> int:
        """End a process cleanly, and return its exit status."""
        process = self.processes[name]
        process.send_signal(signal.SIGTERM)
        return process.wait(60)

    def ledger(self) -> Ledger:
        """The node's ledger."""
        return Ledger(self.settings.ledger_url)

    def wait_done(self, uids: Iterable[str], seconds: float = 90) -> list[Instance]:
        """Wait until every source instance is done, and return their rows."""
        wanted = list(uids)
        with self.ledger() as ledger:

            def rows() -> list[Instance] | None:
                found = [ledger.instance(uid) for uid in wanted]
                parked = [row for row in found if row and row.stage is Stage.PARKED]
                assert not parked, [(row.error_code, row.error) for row in parked]
                done = [row for row in found if row and row.stage is Stage.DONE]
                return done if len(done) == len(wanted) else None

            try:
                return list(wait_until(rows, "every instance is done", seconds))
            except pytest.fail.Exception:
                print(self.logs[-6000:])
                raise


def _toml(document: dict[str, dict[str, Any]]) -> str:
    lines = []
    for section, values in document.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {_value(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)

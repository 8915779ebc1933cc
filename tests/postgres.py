"""A PostgreSQL server of the tests' own, on a free loopback port, started once and stopped at exit.

PostgreSQL refuses to run as root; then it runs as the user that Debian's package made.
"""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Self

import pytest
import sqlalchemy as sa

from tests.peers import LOOPBACK, free_port


def _programs() -> Path:
    """Folder with initdb and pg_ctl, the newest version's."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).parent
    if os.environ.get("CI"):
        pytest.fail("PostgreSQL is not installed, and CI needs every peer")
    pytest.skip("PostgreSQL is not installed")


@lru_cache(maxsize=1)
def postgresql_url() -> str:
    """SQLAlchemy URL of an empty database; skips, or fails in CI, where there is no PostgreSQL."""
    programs = _programs()
    folder = Path(tempfile.mkdtemp(prefix="despeckle-postgres-"))
    port = free_port()
    as_user: dict[str, int] = {}
    if os.getuid() == 0:
        owner = pwd.getpwnam("postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        as_user = {"user": owner.pw_uid, "group": owner.pw_gid}

    def call(program: str, *arguments: str) -> None:
        subprocess.run(
            [str(programs / program), *arguments],
            check=True,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            timeout=60,
            **as_user,
        )

    data = str(folder / "data")
    call("initdb", "-D", data, "-A", "trust", "-U", "despeckle", "-E", "UTF8", "--no-sync")
    options = f"-h {LOOPBACK} -p {port} -k {folder} -F"
    log = str(folder / "log")
    call("pg_ctl", "start", "-w", "-D", data, "-l", log, "-o", options)

    def stop() -> None:
        call("pg_ctl", "stop", "-m", "immediate", "-D", data)
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    return f"postgresql+pg8000://despeckle@{LOOPBACK}:{port}/postgres"


class Relay:
    """Stands between the node and PostgreSQL, and does what a network or a power cut does to both.

    Parameters
    ----------
    url : str
        The server's.
    """

    def __init__(self, url: str) -> None:
        self._server = sa.make_url(url)
        self._listener = socket.create_server((LOOPBACK, 0))
        self.url = self._server.set(port=self._listener.getsockname()[1]).render_as_string(
            hide_password=False
        )
        self.is_silent = False
        self._callers: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.reset()

    def reset(self) -> None:
        """End every connection of the node, as a server does that was started anew."""
        callers, self._callers = self._callers, []
        for caller in callers:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            caller.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                caller, _ = self._listener.accept()
                server = socket.create_connection((LOOPBACK, int(self._server.port or 0)))
                self._callers.append(caller)
                for pair in ((caller, server), (server, caller)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):  # closed
            while data := source.recv(65536):
                if not self.is_silent:
                    target.sendall(data)

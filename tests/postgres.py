"""A PostgreSQL server of the tests' own, on a free loopback port, started once and stopped at exit.

PostgreSQL refuses to run as root; then it runs as the user that Debian's package made.
"""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import pytest

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

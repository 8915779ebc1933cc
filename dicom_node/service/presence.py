"""Who is there: each holds the lock of a file of its own, which is free again when it has died.

A name made of host and port would not do: a container comes back under another one, and several
hosts may share a spool.
"""

from __future__ import annotations

import fcntl
import uuid
from pathlib import Path
from typing import BinaryIO

from dicom_node.spool import Spool, disk_errors


class Presence:
    """One of those that share a spool, under a name that no other one ever had.

    Parameters
    ----------
    spool : Spool
        On a file system with locks.
    kind : str
        Folder of the spool that holds a file for each of them.
    """

    def __init__(self, spool: Spool, kind: str) -> None:
        self.name = uuid.uuid4().hex
        self._incoming = spool.incoming
        self._folder = spool.root / kind
        self._file: BinaryIO | None = None

    def begin(self) -> None:
        """Be there, until `end` or the end of the process.

        Raises
        ------
        Transient
            The disk is full or fails.
        """
        temporary = self._incoming / f"{self.name}.part"
        with disk_errors():
            self._folder.mkdir(exist_ok=True)
            self._file = temporary.open("xb")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.rename(self._folder / self.name)  # nobody sees it without its lock

    def dead(self) -> list[str]:
        """Names of those that did not `end`."""
        with disk_errors():
            return sorted(path.name for path in self._folder.iterdir() if not _is_locked(path))

    def bury(self, name: str) -> None:
        """Do not name a dead one again."""
        with disk_errors():
            (self._folder / name).unlink(missing_ok=True)

    def end(self) -> None:
        """Be there no longer."""
        if self._file is not None:
            self.bury(self.name)
            self._file.close()
            self._file = None


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:  # it has just ended
        return True
    except BlockingIOError:
        return True
    return False

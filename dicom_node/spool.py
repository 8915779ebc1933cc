"""The only writer of files: temporary -> fsync -> rename -> fsync of the folder.

Files in ``incoming/`` are worth nothing: whatever a crash leaves there is swept away. A file
in ``received/`` or ``derived/`` is complete and on the disk, and belongs to a ledger row. One
that belongs to none, after a while: a derived one is swept away, and so is a received one where
the instance has another file by now, or a purge was to remove it; of whatever else was received
nobody knows that it was not acknowledged (a ledger may have been lost), and it goes to
``quarantine/``.
File format: PS3.10 7.
"""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Final

from dicom_node.attributes.identity import is_valid_uid
from dicom_node.errors import Permanent, Transient

_BYTES_PER_MB: Final = 1_000_000
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Spool:
    """The node's folder of object files.

    Parameters
    ----------
    root : Path
        Created if absent. All four folders must lie on one file system, since files are
        renamed between them.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.incoming = root / "incoming"
        self.received = root / "received"
        self.derived = root / "derived"
        self._quarantine = root / "quarantine"
        with disk_errors():
            root.mkdir(mode=0o750, parents=True, exist_ok=True)  # objects name patients
            for folder in (self.incoming, self.received, self.derived, self._quarantine):
                folder.mkdir(exist_ok=True)

    def located(self, path: Path) -> Path:
        """Where a file of this spool lies now: rows keep the path of their day, and it may move."""
        if path.is_relative_to(self.root):
            return path
        for folder in (self.received, self.derived):
            if folder.name in path.parts:
                last = len(path.parts) - 1 - path.parts[::-1].index(folder.name)
                return folder.joinpath(*path.parts[last + 1 :])
        return path

    def free_mb(self) -> float:
        """Free disk for this process, in MB of 10^6 bytes."""
        with disk_errors():
            figures = os.statvfs(self.root)
        return figures.f_bavail * figures.f_frsize / _BYTES_PER_MB

    def take(self, temporary: Path, name_hint: str) -> Path:
        """Make a received temporary file permanent and durable.

        Parameters
        ----------
        temporary : Path
            A complete file on the spool's file system, normally in ``incoming/``.
        name_hint : str
            (0008,0018) *SOP Instance UID*. The name is unique even if two associations
            deliver the same instance at the same moment.

        Raises
        ------
        Transient
            The disk is full or fails; the temporary file is gone or will be swept.
        """
        stem = name_hint if is_valid_uid(name_hint) else "unnamed"
        target = self.received / f"{stem}-{uuid.uuid4().hex[:12]}.dcm"
        with disk_errors():
            _fsync(temporary)
            temporary.rename(target)
            _fsync(self.received)
        return target

    def write(self, chunks: Iterable[bytes], relative: str | PurePosixPath) -> Path:
        """Write a derived file atomically: it appears whole and durable, or not at all.

        Parameters
        ----------
        chunks : iterable of bytes
            The file's content, in order.
        relative : str
            Path below ``derived/``, such as ``<series>/<instance>.dcm``. A file that is
            there already is replaced.

        Raises
        ------
        Transient
            The disk is full or fails. Nothing remains.
        Permanent
            `relative` would leave the folder.
        """
        parts = PurePosixPath(relative).parts
        if not parts or parts[0] == "/" or ".." in parts:
            raise Permanent("spool-path", "a derived file may not lie outside the spool")
        target = self.derived.joinpath(*parts)
        temporary = self.incoming / f"derived-{uuid.uuid4().hex}.part"
        try:
            with disk_errors():
                with temporary.open("xb") as file:
                    file.writelines(chunks)
                    file.flush()
                    os.fsync(file.fileno())
                new_folders = [p for p in target.parents if not p.exists()]
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary.rename(target)
                for folder in [target.parent, *(p.parent for p in new_folders)]:
                    _fsync(folder)
        finally:
            temporary.unlink(missing_ok=True)
        return target

    def sweep(
        self,
        known: Collection[Path],
        older_than_s: float,
        forgotten: Callable[[str, str], bool] = lambda _instance, _name: False,
    ) -> tuple[int, int]:
        """Remove what crashes left behind; return the numbers of files removed and put aside.

        What was received and cannot be told to be superfluous is moved to ``quarantine/``, which
        no sweep reaches, for a person to look at. Several workers may sweep one spool at a time.

        Parameters
        ----------
        known : collection of Path
            Every file that the ledger knows, read *before* the call.
        older_than_s : float
            Only files unchanged (and not renamed) for this many seconds are touched, so that
            a file whose row is about to be committed is safe.
        forgotten : callable
            SOP Instance UID and name of a received file -> whether a purge was to remove it.
        """
        # By name: the rows hold absolute paths, and a state directory may have moved.
        kept = {path.name for path in known}
        held = {_instance_of(name) for name in kept} - {""}
        horizon = time.time() - older_than_s
        removed = put_aside = 0
        with disk_errors():
            for folder in (self.incoming, self.received, self.derived):
                for path in _files(folder):
                    if path.name in kept or _last_touched(path) > horizon:
                        continue
                    instance = _instance_of(path.name)
                    theirs = instance in held or folder != self.received
                    aside = not theirs and not forgotten(instance, path.name)
                    # A file that is gone was another worker's to sweep, or a purge's.
                    with suppress(FileNotFoundError):
                        if aside:
                            path.rename(self._quarantine / path.name)
                            put_aside += 1
                        else:
                            path.unlink()
                            removed += 1
            if put_aside:
                _fsync(self._quarantine)
            for folder in self.derived.iterdir():
                if folder.is_dir() and _last_touched(folder) <= horizon:
                    _remove_if_empty(folder)
        return removed, put_aside

    def remove(self, path: Path) -> None:
        """Delete a file of the spool; one that is gone already is no error."""
        with disk_errors():
            self.located(path).unlink(missing_ok=True)

    def check_writable(self) -> None:
        """Write a file and take it away again.

        Raises
        ------
        Transient
            The disk is full, read-only or fails.
        """
        probe = self.incoming / f"probe-{uuid.uuid4().hex}.part"
        with disk_errors():
            probe.write_bytes(b"")
            probe.unlink()


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn what the file system reports into the node's errors, naming the remedy."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        if error.errno in _FULL:
            raise Transient(
                "disk-full", f"the spool's disk is full ({reason}); free some"
            ) from error
        raise Transient(
            "spool-unusable", f"the spool cannot be used ({reason}); check the disk and its rights"
        ) from error


def _fsync(path: Path) -> None:
    """Force a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _instance_of(name: str) -> str:
    """SOP Instance UID in the name of a received file; see `Spool.take`."""
    return name.rpartition("-")[0]


def _files(folder: Path) -> list[Path]:
    """Every file below a folder; a folder that vanishes meanwhile has none."""
    walk = os.walk(folder, onerror=_unless_gone)
    return [Path(place) / name for place, _, names in walk for name in names]


def _unless_gone(error: OSError) -> None:
    if error.errno != errno.ENOENT:
        raise error


def _last_touched(path: Path) -> float:
    """Time of the last change or rename; a file that just vanished counts as new."""
    try:
        figures = path.stat()
    except FileNotFoundError:
        return float("inf")
    return max(figures.st_mtime, figures.st_ctime)


def _remove_if_empty(folder: Path) -> None:
    """Remove a folder that a writer may be about to fill, or another sweep to remove."""
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.ENOENT}:
            raise

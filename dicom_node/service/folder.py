"""Files and folders for offline use: which to read, and how to write a derived one whole.

Not the spool: nothing here survives or needs a ledger. File format: PS3.10 7.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from dicom_node.errors import NodeError, Permanent
from dicom_node.records import PixelReport


class FileStatus(StrEnum):
    """What became of one file."""

    DERIVED = "derived"
    SKIPPED = "skipped"
    """Not an object that the node processes; the error says why."""
    FAILED = "failed"
    """Should have been processed and could not be; the error says why."""


@dataclass(frozen=True, slots=True)
class FileOutcome:
    """What became of one file."""

    source: Path
    status: FileStatus
    path: Path | None = None
    """Where the derived object lies."""
    report: PixelReport | None = None
    error: NodeError | None = None


def find_files(sources: Sequence[Path], output: Path | None = None) -> list[Path]:
    """The files to process: each once, folders searched to any depth, by name.

    Parameters
    ----------
    output : Path, optional
        Left out of the search, so that a second run does not read the first one's results.
    """
    excluded = output.resolve() if output is not None else None
    found: dict[Path, None] = {}
    for source in sources:
        inside = sorted(source.rglob("*")) if source.is_dir() else [source]
        for path in inside:
            resolved = path.resolve()
            skipped = excluded is not None and resolved.is_relative_to(excluded)
            if path.is_dir() or (source.is_dir() and skipped):
                continue
            found.setdefault(resolved)
    return list(found)


def make_output(output: Path) -> None:
    """Create the folder for results.

    Raises
    ------
    Permanent
        ``output-unusable``.
    """
    reason = "this user may not write there"
    try:
        output.mkdir(parents=True, exist_ok=True)
        if os.access(output, os.W_OK | os.X_OK):
            return
    except OSError as error:
        reason = error.strerror or reason
    raise Permanent(
        "output-unusable", f"--output '{output}': {reason}; name a folder that can be written"
    )


@contextmanager
def file_errors() -> Iterator[None]:
    """Turn what the file system reports offline, where there is no spool, into the node's error.

    Raises
    ------
    Permanent
        ``file-unusable``.
    """
    try:
        yield
    except OSError as error:
        named = f"'{error.filename}'" if error.filename else "a result or temporary file"
        reason = error.strerror or type(error).__name__
        raise Permanent(
            "file-unusable",
            f"{named} cannot be used ({reason}); check that it is there, the disk and the rights",
        ) from error


def write_into(output: Path) -> Callable[[str, Iterable[bytes]], Path]:
    """A function that writes a file below `output`, whole or not at all, and durably."""

    def write(relative: str, chunks: Iterable[bytes]) -> Path:
        target = output / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{uuid.uuid4().hex}.part")
        try:
            with temporary.open("xb") as file:
                file.writelines(chunks)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        return target

    return write

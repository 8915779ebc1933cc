"""Structured logs on standard error: one event name a line with fields, never a patient.

What others log (pydicom, pynetdicom, SQLAlchemy) and what they warn of can hold values of the
data set, so nothing of it is passed on but the name of the library and of the warning's class
(PS3.15 annex E calls such values identifying information).
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
import warnings
from collections.abc import MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, cast

import structlog

from dicom_node.config import LogSection

_LEVELS = {"debug": logging.DEBUG, "info": 20, "warning": 30, "error": 40}
_FOREIGN_LOGGERS = ("pydicom", "pynetdicom", "apscheduler", "highdicom", "PIL", "asyncio")


def configure(section: LogSection, process: str = "") -> None:
    """Set up the logs of this process.

    Parameters
    ----------
    section : LogSection
        Level and format.
    process : str
        Name of the process, such as ``"receive"``, as a field of each line.
    """
    renderer = (
        structlog.processors.JSONRenderer()
        if section.format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=_no_traceback
        )
    )
    structlog.configure(
        processors=[
            _of_process(process),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            plain_values,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[section.level]),
        # A line is one write, so that processes with one log do not cut each other's.
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Undisturbed(sys.stderr))),
        cache_logger_on_first_use=False,
    )
    if process:
        threading.excepthook = _thread_died
        sys.excepthook = _process_died
    silence_libraries()


class _Undisturbed:
    """Loses lines where nobody takes them, as on a full disk: work is worth more than its log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write a line."""
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        """Hand the line on."""
        with suppress(OSError):
            self._stream.flush()


def get(name: str) -> Any:
    """A logger whose lines carry the module that wrote them."""
    # Initial values keep it lazy: `bind` would fix today's configuration at import.
    return structlog.get_logger(module=name.removeprefix("dicom_node."))


def _of_process(process: str) -> structlog.typing.Processor:
    """Name the process in each line, whatever thread writes it."""

    def add(
        _logger: object, _method: str, line: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        return {**line, "process": process} if process else line

    return add


def plain_values(
    _logger: object, _method: str, line: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Replace every value that could carry a data set by the name of its type."""
    return {key: _plain(value) for key, value in line.items()}


def _plain(value: Any) -> Any:
    """Names, numbers, paths, times and containers of them; of all else only the type."""
    if value is None or isinstance(value, bool | int | float | str | Path):
        # str() of a StrEnum or a UID is its value; pydicom's person names are no str
        return str(value) if isinstance(value, str | Path) else value
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if type(value) is dict:
        return {str(key): _plain(item) for key, item in value.items()}
    if type(value) in {list, tuple, set, frozenset}:
        return [_plain(item) for item in value]
    return type(value).__name__


def silence_libraries() -> None:
    """Keep the libraries' own words, which quote values, out of every output."""
    for name in _FOREIGN_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [logging.NullHandler()]
        logger.propagate = False
        logger.setLevel(logging.CRITICAL + 1)
    if not any(isinstance(handler, _Foreign) for handler in logging.root.handlers):
        logging.root.addHandler(_Foreign(logging.WARNING))
    warnings.showwarning = _warned
    warnings.simplefilter("default")


class _Foreign(logging.Handler):
    """Names any other library that logs; without a handler its words went to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log a library's line without its text."""
        get(__name__).debug("library-logged", library=record.name, severity=record.levelname)


def _warned(  # noqa: PLR0917 - the signature of warnings.showwarning
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Log a library's warning without its text."""
    del message, file, line
    get(__name__).debug(
        "library-warning", category=category.__name__, file=Path(filename).name, number=lineno
    )


def place(error: BaseException) -> str:
    """Where an exception was raised, ``file:line``; no values."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown"


def _thread_died(arguments: threading.ExceptHookArgs) -> None:
    error = arguments.exc_value
    thread = arguments.thread.name if arguments.thread else "unknown"
    get(__name__).error(
        "thread-died",
        thread=thread,
        exception=arguments.exc_type.__name__,
        place=place(error) if error else "unknown",
    )


def _process_died(
    kind: type[BaseException], error: BaseException, _traceback: TracebackType | None
) -> None:
    get(__name__).error("process-died", exception=kind.__name__, place=place(error))


def _no_traceback(_stream: TextIO, _exception: Any) -> None:
    """Exceptions are logged by their class and place alone."""

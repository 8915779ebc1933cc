"""Tell systemd, or whoever started the process, that it is ready, alive or stopping.

The protocol of sd_notify(3): datagrams to the socket that ``NOTIFY_SOCKET`` names. Without
that variable every call does nothing.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def _tell(message: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # the abstract name space of unix(7)
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        # Nobody may be reading any more, and the service matters more than the message.
        channel.setblocking(False)
        channel.connect(address)
        channel.send(message.encode())


def ready(status: str = "") -> None:
    """The process serves now."""
    _tell(f"READY=1\nSTATUS={status}")


def stopping() -> None:
    """The process has begun its clean stop."""
    _tell("STOPPING=1")


def alive() -> None:
    """The process is well; to be repeated within `watchdog_seconds`."""
    _tell("WATCHDOG=1")


def watchdog_seconds() -> float | None:
    """How often `alive` is expected, in seconds; None where nobody watches."""
    value = os.environ.get("WATCHDOG_USEC", "")
    mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(value) / 1e6 if value.isdigit() and mine else None

"""Event-driven threads for accepted associations, in place of pynetdicom's polling ones.

pynetdicom asks each association's socket and queues a thousand times a second, in two threads:
48 idle associations cost more than one core, and a C-ECHO then takes 0.2 s instead of 0.03 s.
Here the threads sleep until there is something to do. PS3.8 9.2 (the state machine itself)
stays pynetdicom's; with `incoming`, this is the only module that builds on its inner workings,
and `tests/unit/test_reactor.py` notices when they change.
"""

from __future__ import annotations

import queue
import select
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dul import DULServiceProvider
from pynetdicom.transport import AssociationSocket

from dicom_node.service import log

_log = log.get(__name__)

_LONGEST_SLEEP_SECONDS: Final = 0.1
"""Timers (ARTIM, network) are looked at this often."""
_LARGEST_PDU: Final = 1 << 24
"""A longer PDU, in bytes, is taken for garbage; senders are told a far smaller limit."""
_ASSOCIATE_RQ: Final = b"\x01"
_TITLES: Final = (slice(10, 26), slice(26, 42))
"""Where such a PDU has the called and the calling AE title, PS3.8 table 9-11."""
_SHORT: Final = 4096
"""Reads up to this many bytes (PDU headers, commands) are acknowledged at once."""


def install(
    association: Association, dimse: DIMSEServiceProvider, ended: Callable[[], None]
) -> None:
    """Make an accepted association event-driven.

    To be called when the connection is opened (``EVT_CONN_OPEN``), before the association
    is started.

    Parameters
    ----------
    association : Association
        Of the connection.
    dimse : DIMSEServiceProvider
        Takes the place of the association's own.
    ended : callable
        Called once when the connection is over, however it ended; ``EVT_CONN_CLOSE`` does
        not come after every fault.
    """
    polled = association.dul.socket
    connection = polled.socket if polled is not None else None
    provider = EventDrivenProvider(association, ended)
    association.dul = provider
    # The setters hand the time-outs on to the provider's timers.
    association.acse_timeout = association.acse_timeout
    association.network_timeout = association.network_timeout
    provider.socket = WideSocket(association, connection, provider.bell)
    dimse.msg_queue = _RingingQueue(provider.work.set)
    association.dimse = dimse
    association._reactor_checkpoint = _Checkpoint(  # noqa: SLF001 - where its loop can wait
        provider.work, lambda: not (dimse.msg_queue.empty() and provider.to_user_queue.empty())
    )


def hang_up(association: Association) -> None:
    """End the connection of an association that was not established, without a word."""
    connection = association.dul.socket.socket if association.dul.socket else None
    if connection is not None:
        with suppress(OSError):  # the peer was faster
            connection.shutdown(socket.SHUT_RDWR)


class EventDrivenProvider(DULServiceProvider):
    """The upper layer of one association: wakes for the peer, for our answers and for timers."""

    def __init__(self, association: Association, ended: Callable[[], None]) -> None:
        super().__init__(association)
        self._ended = ended
        self.work = threading.Event()
        """Set when the association's own thread has something to do."""
        self.bell, self._rope = socket.socketpair()
        self.bell.setblocking(False)
        self._rope.setblocking(False)
        self.to_provider_queue = _RingingQueue(self._ring)
        self.to_user_queue = _RingingQueue(self.work.set)

    def _ring(self) -> None:
        with suppress(OSError):  # rung often enough already, or the association has ended
            self._rope.send(b"\0")

    def _is_transport_event(self) -> bool:
        """Wait for the peer; an answer of ours that interrupted the wait goes out at once."""
        if not self.event_queue.empty():
            return False  # first things first
        return super()._is_transport_event() or self._process_recv_primitive()

    def _decode_pdu(self, bytestream: bytearray) -> tuple[Any, str]:
        """Decode a PDU; say so where the request for an association cannot be understood."""
        if bytestream[:1] != _ASSOCIATE_RQ:
            return super()._decode_pdu(bytestream)
        for title in _TITLES:
            bytestream[title] = without_nul(bytes(bytestream[title]))
        try:
            pdu, event = super()._decode_pdu(bytestream)
            pdu.to_primitive()  # what the state machine does next, without a word where it fails
        except Exception as error:
            called, calling = (bytes(bytestream[title]) for title in _TITLES)
            _log.warning(
                "receive-not-understood",
                called_ae=called.decode("ascii", "backslashreplace").strip(),
                calling_ae=calling.decode("ascii", "backslashreplace").strip(),
                address=self.assoc.requestor.address or "",
                exception=type(error).__name__,
            )
            raise
        return pdu, event

    def run_reactor(self) -> None:
        """Serve the association's connection until it ends."""
        try:
            super().run_reactor()
        finally:
            self.bell.close()
            self._rope.close()
            self.work.set()
            self._ended()


def without_nul(title: bytes) -> bytes:
    """An AE title that some devices end with NUL, filled up with spaces as PS3.8 9.3.2 has it."""
    return title.partition(b"\0")[0].ljust(len(title))


class WideSocket(AssociationSocket):
    """An accepted connection that is waited for, read a PDU at once, and acknowledged at once.

    Parameters
    ----------
    association : Association
        Whose provider is in place already.
    connection : socket.socket or None
        The connected socket.
    bell : socket.socket
        Readable when the wait is to be interrupted.
    """

    def __init__(
        self, association: Association, connection: socket.socket | None, bell: socket.socket
    ) -> None:
        super().__init__(association, client_socket=connection)
        self._bell = bell
        self._poll = select.poll()  # unlike select(), for any number of open files
        self._poll.register(bell, select.POLLIN)
        if connection is not None:
            self._poll.register(connection, select.POLLIN)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Readable may mean half a PDU, record or handshake; the wait for the rest has an end.
            connection.settimeout(association.network_timeout)

    @property
    def ready(self) -> bool:
        """Wait until the peer has sent something; False where the bell or time ended the wait."""
        connection = self.socket
        if connection is None or not self._is_connected:
            return False
        if isinstance(connection, ssl.SSLSocket) and connection.pending():
            return True
        try:
            found = {number for number, _ in self._poll.poll(_LONGEST_SLEEP_SECONDS * 1000)}
            if self._bell.fileno() in found:
                self._bell.recv(_SHORT)
                found.remove(self._bell.fileno())
        except (OSError, ValueError):
            self.event_queue.put("Evt17")  # transport connection closed
            return False
        return bool(found)

    def recv(self, nr_bytes: int) -> bytearray:
        """Read `nr_bytes`, or less where the peer closes the connection.

        Raises
        ------
        OSError
            The connection broke or timed out.
        """
        connection = self.socket
        if connection is None or nr_bytes > _LARGEST_PDU:  # the length is the peer's claim
            return bytearray()
        data = bytearray(nr_bytes)
        filled = 0
        with memoryview(data) as view:
            while filled < nr_bytes:
                count = self._read(connection, view[filled:])
                if count == 0:
                    break
                filled += count
        del data[filled:]
        if nr_bytes <= _SHORT:
            _acknowledge(connection)
        return data

    def _read(self, connection: socket.socket, room: memoryview) -> int:
        """Bytes read into `room`; TLS shakes hands with the first."""
        try:
            return connection.recv_into(room)
        except ssl.SSLError as error:
            address = self.assoc.requestor.address or ""
            _log.warning("receive-tls-failed", reason=error.reason or "", address=address)
            raise


def _acknowledge(connection: socket.socket) -> None:
    """Let TCP acknowledge without delay.

    Senders write a request in two segments, and Nagle's algorithm holds the second back until
    the first is acknowledged; the kernel would take 40 ms over that.
    """
    if hasattr(socket, "TCP_QUICKACK"):
        with suppress(OSError):  # closed at this moment; the next read says so
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


class _RingingQueue(queue.Queue[Any]):
    """A queue that says when something was put in."""

    def __init__(self, ring: Callable[[], None]) -> None:
        super().__init__()
        self._ring = ring

    def _put(self, item: Any) -> None:
        super()._put(item)
        self._ring()


class _Checkpoint(threading.Event):
    """The point that an association's loop passes on each turn; here it waits for work."""

    def __init__(self, work: threading.Event, pending: Callable[[], bool]) -> None:
        super().__init__()
        self._work = work
        self._pending = pending
        self.set()

    def set(self) -> None:
        """Let the loop pass, and wake it."""
        super().set()
        self._work.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for work, or until it is time to look at the timers; then until let pass."""
        self._work.clear()
        if not self._pending():
            self._work.wait(_LONGEST_SLEEP_SECONDS)
        return super().wait(timeout)

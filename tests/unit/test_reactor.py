"""Event-driven associations, and what they take for granted of pynetdicom."""

from __future__ import annotations

import inspect
import queue
import socket
import threading
from types import SimpleNamespace

import pytest
from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.transport import AssociationSocket, RequestHandler

from dicom_node.network.reactor import EventDrivenProvider, WideSocket, _Checkpoint


@pytest.fixture
def connected():
    """(wide socket, the peer's end, the rope of its bell, its event queue)."""
    here, there = socket.socketpair()
    bell, rope = socket.socketpair()
    bell.setblocking(False)
    events = queue.Queue()
    association = SimpleNamespace(dul=SimpleNamespace(event_queue=events), network_timeout=30.0)
    wide = WideSocket(association, Quiet(here), bell)
    yield wide, there, rope, events
    for each in (here, there, bell, rope):
        each.close()


class Quiet:
    """A local socket pair that lets itself be asked for TCP options."""

    def __init__(self, real):
        self._real = real

    def setsockopt(self, *_):
        return None

    def __getattr__(self, name):
        return getattr(self._real, name)


def test_socket_reads_exactly_what_was_asked_for(connected):
    wide, there, _, _ = connected
    data = bytes(range(256)) * 4096
    writer = threading.Thread(target=lambda: (there.sendall(data), there.close()))
    writer.start()
    assert wide.recv(6) == data[:6]
    assert wide.recv(len(data) - 7) == data[6:-1]
    assert wide.recv(100) == data[-1:], "the peer closed: what there is"
    writer.join()


def test_peer_that_falls_silent_within_a_pdu_is_not_waited_for_without_end(connected):
    wide, there, _, _ = connected
    assert wide.socket.gettimeout() == 30
    wide.socket.settimeout(0.1)
    there.sendall(b"half")
    with pytest.raises(TimeoutError):
        wide.recv(100)


def test_length_that_no_pdu_has_is_not_allocated(connected):
    wide, _, _, _ = connected
    assert wide.recv(1 << 31) == b""


def test_connection_is_announced_to_the_state_machine_once(connected):
    _, _, _, events = connected
    assert list(events.queue) == ["Evt5"]


def test_socket_is_ready_when_the_peer_has_sent_or_closed(connected):
    wide, there, _, _ = connected
    assert not wide.ready
    there.sendall(b"x")
    assert wide.ready
    wide.recv(1)
    there.close()
    assert wide.ready


def test_bell_ends_the_wait_without_data_and_is_silent_afterwards(connected):
    wide, there, rope, _ = connected
    rope.send(b"\0\0\0")
    assert not wide.ready
    with pytest.raises(BlockingIOError):
        wide._bell.recv(1)
    rope.send(b"\0")
    there.sendall(b"x")
    assert wide.ready


def test_checkpoint_never_misses_work_that_came_before_the_wait():
    work = threading.Event()
    todo = ["one", "two"]
    checkpoint = _Checkpoint(work, lambda: bool(todo))
    passed = []
    while todo:
        checkpoint.wait()
        passed.append(todo.pop())
    assert passed == ["two", "one"]


def test_checkpoint_that_is_cleared_holds_until_it_is_set():
    checkpoint = _Checkpoint(threading.Event(), lambda: True)
    checkpoint.clear()
    assert not checkpoint.wait(0.01)
    checkpoint.set()
    assert checkpoint.wait(0.01)


def test_pynetdicom_still_works_as_this_module_takes_for_granted():
    recv = inspect.signature(AssociationSocket.recv)
    assert list(recv.parameters) == ["self", "nr_bytes"]
    assert isinstance(AssociationSocket.ready, property)
    loop = inspect.getsource(DULServiceProvider.run_reactor)
    assert "if self._process_recv_primitive():" in loop
    assert "elif self._is_transport_event():" in loop
    assert "self.event_queue.get(block=False)" in loop
    turn = inspect.getsource(Association._run_reactor)
    assert "self._reactor_checkpoint.wait()" in turn
    handle = inspect.getsource(RequestHandler.handle)
    assert handle.index("EVT_CONN_OPEN") < handle.index("assoc.start()")
    assert "make_target(self.run_reactor)" in inspect.getsource(DULServiceProvider.__init__)
    assert issubclass(EventDrivenProvider, DULServiceProvider)

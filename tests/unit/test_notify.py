from __future__ import annotations

import socket

from dicom_node.commands.supervise import Listener
from dicom_node.service import notify


def test_messages_reach_the_socket_that_the_environment_names(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "s"))
        channel.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "s"))
        notify.ready("receiver")
        notify.alive()
        notify.stopping()
        assert channel.recv(100) == b"READY=1\nSTATUS=receiver"
        assert channel.recv(100) == b"WATCHDOG=1"
        assert channel.recv(100) == b"STOPPING=1"


def test_reader_that_has_stopped_reading_stops_nobody(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "s"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "s"))
        for _ in range(1000):
            notify.alive()


def test_without_a_socket_nothing_happens(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify.ready()
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
    notify.ready()


def test_watchdog_period_is_read_only_where_it_is_ours(monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert notify.watchdog_seconds() == 30
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert notify.watchdog_seconds() is None
    monkeypatch.delenv("WATCHDOG_USEC")
    assert notify.watchdog_seconds() is None


def test_listener_hears_who_is_ready(tmp_path, monkeypatch):
    with Listener(tmp_path) as listener:
        monkeypatch.setenv("NOTIFY_SOCKET", str(listener.address("work")))
        listener.address("receive")
        notify.alive()
        notify.ready()
        heard = []
        while not heard:
            heard = listener.ready(5)
        assert heard == ["work"]

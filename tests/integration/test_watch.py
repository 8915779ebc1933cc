"""Figures over HTTP: what a monitoring system reads, and what a balancer is told."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from functools import partial

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from dicom_node import watch
from dicom_node.config import parse
from dicom_node.errors import Permanent, Refused, Transient
from dicom_node.ledger import Ledger
from dicom_node.spool import Spool
from dicom_node.watch import Watch
from tests.peers import LOOPBACK, free_port, listens, wait_until
from tests.receiving import arrival


@pytest.fixture
def watched(tmp_path):
    """A running watch: a function that asks it, its ledger and its settings."""
    settings = parse(
        {
            "node": {"state_directory": str(tmp_path)},
            "receive": {"min_free_mb": 0},
            "watch": {"port": free_port()},
        }
    )
    spool = Spool(settings.spool_directory)
    with Ledger(settings.ledger_url) as ledger, Watch(settings, ledger, spool):
        get = partial(ask, settings.watch.port)
        get.port = settings.watch.port
        yield get, ledger, spool


def ask(port, path):
    """(status, text) of a GET."""
    try:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def figures(text):
    """(name, labels) to value."""
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_caller_that_hangs_up_or_says_nothing_leaves_no_traceback(watched, capfd, monkeypatch):
    get, _, _ = watched
    with capture_logs() as lines:
        # Abruptly, as balancers do that look whether a port is open.
        with socket.create_connection((LOOPBACK, get.port)) as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_until(lambda: lines, "it is noticed")
        monkeypatch.setattr(watch._Handler, "timeout", 0.1)
        with socket.create_connection((LOOPBACK, get.port)):
            wait_until(lambda: len(lines) > 1, "it is noticed")
    assert [line["exception"] for line in lines] == ["ConnectionResetError", "TimeoutError"]
    assert "Traceback" not in capfd.readouterr().err


def test_figures_are_those_of_the_ledger(watched):
    get, ledger, _ = watched
    for number in range(3):
        ledger.record_arrival(arrival(f"1.2.3.{number}"))
    ledger.record_arrival(arrival("1.2.3.9"), skip=Refused("not-ultrasound", "no ultrasound"))
    status, text = get("/metrics")
    assert status == 200
    found = figures(text)
    assert found["dicom_node_instances", "derive"] == 3
    assert found["dicom_node_instances", "parked"] == 0
    assert found["dicom_node_reasons", "not-ultrasound", "skipped"] == 1
    assert found["dicom_node_oldest_waiting_seconds",] > 0
    assert found["dicom_node_free_bytes",] > 0
    assert "1.2.3" not in text


def test_a_node_that_can_take_objects_is_well(watched):
    get, _, _ = watched
    assert get("/healthz") == (200, "well\n")
    assert get("/nothing")[0] == 404


def test_a_full_disk_and_a_dead_ledger_are_told(watched, monkeypatch):
    get, ledger, spool = watched

    def read_only():
        raise Transient("spool-unusable", "the spool cannot be used")

    with monkeypatch.context() as patched:
        patched.setattr(spool, "check_writable", read_only)
        assert get("/healthz") == (503, "spool-unusable\n")
    monkeypatch.setattr(spool, "free_mb", lambda: -1.0)
    assert get("/healthz") == (503, "disk-full\n")

    def gone(**_):
        raise Transient("ledger-unavailable", "the ledger cannot be used")

    monkeypatch.setattr(ledger, "overview", gone)
    assert get("/healthz") == (503, "ledger-unavailable\n")
    assert get("/metrics") == (503, "ledger-unavailable\n")


def test_a_port_in_use_is_named(watched):
    _, ledger, spool = watched
    port = free_port()
    settings = parse({"watch": {"port": port}})
    with Watch(settings, ledger, spool):
        with pytest.raises(Permanent, match=r"watch\.port"), Watch(settings, ledger, spool):
            pass
        assert listens(port)
    assert not listens(port)


def test_the_receiving_process_answers(tmp_path):
    port = free_port()
    path = tmp_path / "node.toml"
    path.write_text(
        f'[node]\nstate_directory = "{tmp_path}/state"\n[watch]\nport = {port}\n'
        f'[receive]\nhost = "{LOOPBACK}"\nport = {free_port()}\nmin_free_mb = 0\n'
    )
    command = [sys.executable, "-m", "dicom_node", "receive", "--config", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=dict(os.environ))
    try:
        wait_until(lambda: listens(port), "nobody answers")
        assert ask(port, "/healthz") == (200, "well\n")
    finally:
        process.terminate()
        assert process.wait(30) == 0

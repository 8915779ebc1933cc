"""kill -9 between and within stages: nothing acknowledged is lost, nothing comes twice."""

from __future__ import annotations

import random
import re
import subprocess
import threading
from functools import partial

import pytest

from dicom_node.demo.pacs import EmbeddedPacs
from dicom_node.records import DeliveryState, Stage
from tests.builders import uid_of, write_series
from tests.node import Node
from tests.peers import LOOPBACK, dcmsend, require_program, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.peer]


def assert_all_arrived_once(pacs: EmbeddedPacs, rows) -> None:
    expected = {row.derived_instance_uid for row in rows}
    assert len(expected) == len(rows)
    assert set(pacs.held) == expected
    assert set(pacs.received.values()) == {1}, pacs.received
    assert pacs.committed == expected


def test_worker_killed_while_it_derives(tmp_path, node, pacs):
    sources = write_series(tmp_path / "in", 2, frames=60, rows=240, columns=320)
    node.start("receive")
    dcmsend(node.port, sources)
    node.start("work")
    wait_until(lambda: '"derive-started"' in node.logs, "it derives")
    node.kill("work")
    assert '"derive-finished"' not in node.logs, "the kill came too late to test anything"
    node.start("work")
    rows = node.wait_done(uid_of(path) for path in sources)
    assert_all_arrived_once(pacs, rows)


def test_worker_killed_after_the_pacs_has_stored_and_before_it_knows(tmp_path, node, pacs):
    """The delivery is in SENDING; the PACS is asked by C-FIND and gets nothing twice."""
    sources = write_series(tmp_path / "in", 3)
    killed = threading.Event()

    def store_and_kill(_uid: str) -> int:
        if len(pacs.held) == 1 and not killed.is_set():
            node.kill("work")
            killed.set()
        return 0

    pacs._answer = store_and_kill
    node.start("receive")
    node.start("work")
    dcmsend(node.port, sources)
    assert killed.wait(60)
    with node.ledger() as ledger:
        assert ledger.overview().deliveries["pacs"][DeliveryState.SENDING] == 1
    wait_until(lambda: len(pacs.held) == 2, "the PACS has kept the second one")
    node.start("work")
    rows = node.wait_done(uid_of(path) for path in sources)
    assert_all_arrived_once(pacs, rows)
    assert '"instance-already-held"' in node.logs


def test_worker_killed_between_commitment_request_and_report(tmp_path, node, pacs):
    sources = write_series(tmp_path / "in", 2)
    killed = threading.Event()
    judge = pacs._judge

    def kill_and_judge(request):
        if not killed.is_set():
            node.kill("work")
            killed.set()
        return judge(request)

    pacs._judge = kill_and_judge
    node.start("receive")
    node.start("work")
    dcmsend(node.port, sources)
    assert killed.wait(60)
    with node.ledger() as ledger:
        wait_until(
            lambda: ledger.overview().deliveries["pacs"].get(DeliveryState.CONFIRMED) == 2,
            "the receiver takes the report although the worker is dead",
        )
    node.start("work")
    rows = node.wait_done(uid_of(path) for path in sources)
    assert_all_arrived_once(pacs, rows)


def test_receiver_dead_when_the_report_comes(tmp_path, node, pacs):
    """The report is lost; the worker asks again with a new transaction."""
    (source,) = write_series(tmp_path / "in", 1)
    killed = threading.Event()
    judge = pacs._judge

    def kill_and_judge(request):
        if not killed.is_set():
            node.kill("receive")
            killed.set()
        return judge(request)

    pacs._judge = kill_and_judge
    node.start("receive")
    node.start("work")
    dcmsend(node.port, [source])
    assert killed.wait(60)
    node.start("receive")
    rows = node.wait_done([uid_of(source)])
    assert_all_arrived_once(pacs, rows)


def test_receiver_killed_again_and_again_while_scanners_send(tmp_path, node, pacs):
    """What was answered with 0x0000 arrives; the scanner repeats only the rest."""
    require_program("dcmsend")
    sources = write_series(tmp_path / "in", 40, rows=200, columns=200)
    left = {uid_of(path): path for path in sources}
    acknowledged: set[str] = set()
    random_ = random.Random(1)
    node.start("receive")
    node.start("work")
    for _ in range(3):
        sender = subprocess.Popen(
            [require_program("dcmsend"), "-d", "-aec", "DESPECKLE", LOOPBACK, str(node.port)]
            + [str(path) for path in left.values()],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        enough = len(acknowledged) + random_.randint(2, 8)
        wait_until(partial(recorded_or_over, node, enough, sender), "some objects are recorded")
        node.kill("receive")
        output, _ = sender.communicate(timeout=60)
        acknowledged |= acknowledged_in(output)
        left = {uid: path for uid, path in left.items() if uid not in acknowledged}
        node.start("receive")
    assert acknowledged, "dcmsend's report names what was stored"
    with node.ledger() as ledger:
        lost = [uid for uid in acknowledged if ledger.instance(uid) is None]
    assert not lost
    if left:
        assert dcmsend(node.port, left.values()).returncode == 0
    rows = node.wait_done((uid_of(path) for path in sources), seconds=150)
    assert_all_arrived_once(pacs, rows)


def recorded_or_over(node: Node, enough: int, sender: subprocess.Popen[str]) -> bool:
    with node.ledger() as ledger:
        return sum(ledger.overview().stages.values()) >= enough or sender.poll() is not None


def acknowledged_in(output: str) -> set[str]:
    """SOP Instance UIDs that dcmsend got a response of Success for."""
    uids = set()
    for message in output.split("INCOMING DIMSE MESSAGE")[1:]:
        uid = re.search(r"Affected SOP Instance UID\s+: ([0-9.]+)", message)
        if uid and re.search(r"DIMSE Status\s+: 0x0000", message):
            uids.add(uid.group(1))
    return uids


def test_worker_killed_at_random_moments(tmp_path, node, pacs):
    sources = write_series(tmp_path / "in", 10, frames=4, rows=160, columns=200)
    uids = [uid_of(path) for path in sources]
    random_ = random.Random(2)
    node.start("receive")
    dcmsend(node.port, sources)

    def done() -> int:
        with node.ledger() as ledger:
            return sum(ledger.instance(uid).stage is Stage.DONE for uid in uids)

    for _ in range(5):
        worker = node.start("work")
        with pytest.raises(subprocess.TimeoutExpired):
            worker.wait(random_.uniform(0.05, 1.5))
        node.kill("work")
        if done() == len(uids):
            break
    node.start("work")
    rows = node.wait_done(uids, seconds=120)
    assert_all_arrived_once(pacs, rows)


def test_worker_stopped_in_the_middle_gives_its_work_back_at_once(tmp_path, node, pacs):
    sources = write_series(tmp_path / "in", 2, frames=200, rows=300, columns=400)
    node.start("receive")
    dcmsend(node.port, sources)
    node.start("work")
    wait_until(lambda: '"derive-started"' in node.logs, "it derives")
    assert node.stop("work") == 0
    assert '"derive-finished"' not in node.logs, "the stop came too late to test anything"
    with node.ledger() as ledger:
        overview = ledger.overview()
        assert overview.stages == {Stage.DERIVE: 2}
        assert not overview.last_errors, "a clean stop is no failure"
        assert ledger.claim_derive("test", ledger.instance(uid_of(sources[0])).received_at)
        ledger.release("test")
    node.start("work")
    rows = node.wait_done((uid_of(path) for path in sources), seconds=120)
    assert_all_arrived_once(pacs, rows)


def test_nothing_is_left_behind_in_the_spool_of_a_killed_worker(tmp_path, node, pacs):
    (source,) = write_series(tmp_path / "in", 1, frames=60, rows=240, columns=320)
    node.start("receive")
    dcmsend(node.port, [source])
    node.start("work")
    wait_until(lambda: '"derive-started"' in node.logs, "it derives")
    node.kill("work")
    node.start("work")
    (row,) = node.wait_done([uid_of(source)])
    spool = node.settings.spool_directory
    files = {path for path in spool.rglob("*.*") if path.is_file()}  # not the receiver's own
    incoming = {path for path in files if path.parent.name == "incoming"}
    assert files - incoming == {row.source_path, row.derived_path}

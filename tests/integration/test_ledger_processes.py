"""Claims between real processes, some of which are killed at any moment."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from dicom_node.ledger import Ledger
from dicom_node.records import DeliveryState, Stage
from tests.ledgers import DATABASES, empty_ledger_url, send, soon
from tests.peers import wait_until
from tests.receiving import arrival

INSTANCES = 60

WORKER = """
import sys
from tests.ledgers import derive
from dicom_node.ledger import Ledger
with Ledger(sys.argv[1]) as ledger:
    print("ready", flush=True)
    sys.stdin.readline()
    while instance := derive(ledger, owner=sys.argv[2]):
        print(instance.identity.sop_instance_uid, flush=True)
"""

CLAIMER = """
import sys
from datetime import UTC, datetime, timedelta
from dicom_node.ledger import Ledger
with Ledger(sys.argv[1]) as ledger:
    instance = ledger.claim_derive(sys.argv[2], datetime.now(UTC) + timedelta(seconds=1))
    print(instance.identity.sop_instance_uid, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(params=DATABASES)
def url(request, tmp_path):
    return empty_ledger_url(request.param, tmp_path)


def start(code, url, owner):
    return subprocess.Popen(
        [sys.executable, "-c", code, url, owner],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_no_instance_is_claimed_by_two_processes(url):
    with Ledger(url) as ledger:
        ledger.record_arrivals([(arrival(f"1.2.{n}"), None) for n in range(INSTANCES)])
        workers = [start(WORKER, url, f"worker-{n}") for n in range(3)]
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        done = Counter(
            line.strip() for worker in workers for line in worker.communicate()[0].split()
        )
        assert [worker.returncode for worker in workers] == [0, 0, 0]
        assert done == Counter(f"1.2.{n}" for n in range(INSTANCES))
        assert ledger.overview().deliveries == {"pacs": {DeliveryState.PENDING: INSTANCES}}


def test_work_of_a_killed_process_is_done_by_another(url):
    with Ledger(url) as ledger:
        ledger.record_arrival(arrival("1.2.3"))
        claimer = start(CLAIMER, url, "dead")
        assert claimer.stdout.readline().strip() == "1.2.3"
        claimer.send_signal(signal.SIGKILL)
        claimer.wait()
        claimer.stdin.close()
        claimer.stdout.close()
        assert ledger.claim_derive("other", soon()) is None
        assert ledger.reclaim_expired(datetime.now(UTC) + timedelta(seconds=62)) == 1
        assert ledger.claim_derive("other", soon()) is not None


@pytest.mark.parametrize("after", [1, 7, 20])
def test_killed_workers_neither_lose_nor_repeat_anything(url, after):
    with Ledger(url) as ledger:
        ledger.record_arrivals([(arrival(f"1.2.{n}"), None) for n in range(INSTANCES)])
        victim = start(WORKER, url, "victim")
        assert victim.stdout.readline() == "ready\n"
        victim.stdin.write("go\n")
        victim.stdin.flush()
        for _ in range(after):
            victim.stdout.readline()
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        victim.stdin.close()
        victim.stdout.close()
        ledger.reclaim_expired(datetime.now(UTC) + timedelta(seconds=62))
        survivor = start(WORKER, url, "survivor")
        survivor.communicate("go\n")
        assert survivor.returncode == 0
        assert ledger.overview().stages == {Stage.SEND: INSTANCES}
        ledger.release_series("1.2", "quiet", soon())
        assert len(send(ledger)) == INSTANCES


def test_ledger_that_another_process_writes_to_is_waited_for(url):
    if not url.startswith("sqlite"):
        pytest.skip("PostgreSQL locks rows, not the database")
    code = (
        "import sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('BEGIN IMMEDIATE'); print('locked', flush=True)\n"
        "sys.stdin.readline(); c.execute('COMMIT')\n"
    )
    with Ledger(url) as ledger:
        holder = start(code, url.removeprefix("sqlite:///"), "holder")
        assert holder.stdout.readline() == "locked\n"
        import threading

        done = threading.Event()
        writer = threading.Thread(target=lambda: (ledger.record_arrival(arrival()), done.set()))
        writer.start()
        assert not done.is_set()
        assert ledger.overview().stages == {}, "readers are not held up"
        holder.communicate("go\n")
        wait_until(done.is_set, "the ledger stays locked")
        writer.join()
        assert ledger.overview().stages == {Stage.DERIVE: 1}

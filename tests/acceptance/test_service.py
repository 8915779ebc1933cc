"""The real commands, scanners and PACS from end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pydicom import dcmread

from dicom_node.audit import EventName
from dicom_node.records import DeliveryState, Stage
from tests.builders import uid_of, write_series, write_us_instance
from tests.node import Node
from tests.peers import (
    LOOPBACK,
    dcentvfy,
    dciodvfy,
    dcmsend,
    free_port,
    listens,
    orthanc,
    require_program,
    storescu,
    wait_until,
)

pytestmark = pytest.mark.slow

ROUTE = Path(__file__).parents[2] / "config" / "orthanc.lua"


@pytest.mark.peer
def test_scanner_to_orthanc_and_back(tmp_path, examples):
    """DCMTK sends real ultrasound; Orthanc holds the derived series, finds it and commits."""
    sources = [examples[name] for name in ("ybr_color", "rgb_color", "palette_color")]
    require_program("dciodvfy")
    archive_port = free_port()
    with (
        Node(tmp_path / "node", archive_port, "ORTHANC") as node,
        orthanc(tmp_path / "orthanc", node_port=node.port, port=archive_port) as archive,
    ):
        process = node.start("serve")
        storescu(node.port, sources[:1], "-xy")
        dcmsend(node.port, sources[1:])
        rows = node.wait_done(uid_of(path) for path in sources)
        held = archive.files(tmp_path / "back")
        by_uid = {uid_of(path): path for path in held}
        assert sorted(by_uid) == sorted(row.derived_instance_uid for row in rows)
        for source, row in zip(sources, rows, strict=True):
            derived = by_uid[row.derived_instance_uid]
            found = archive.qido(
                "series",
                StudyInstanceUID=row.identity.study_instance_uid,
                SeriesInstanceUID=row.derived_series_uid,
            )
            assert len(found) == 1
            assert set(dciodvfy(derived).errors) <= set(dciodvfy(source).errors)
            # storescu itself trims values; the node's source is what it received
            assert not dcentvfy(row.source_path, derived)
        with node.ledger() as ledger:
            means = {event.detail for _, event in ledger.events() if "confirmed" in event.name}
        assert "query" not in means, "Orthanc confirms by commitment"
        assert node.stop("serve") == 0
        assert process.returncode == 0
        assert not listens(node.port)


@pytest.mark.peer
def test_orthanc_routes_what_arrives_by_itself_and_not_what_comes_back(tmp_path, examples):
    """A scanner sends to the PACS alone; the PACS's rule, as we ship it, sends to the node."""
    archive_port = free_port()
    source = examples["ybr_color"]
    with Node(tmp_path / "node", archive_port, "ORTHANC") as node:
        ours = {"AET": "DESPECKLE", "Host": LOOPBACK, "Port": node.port}
        with orthanc(
            tmp_path / "orthanc",
            port=archive_port,
            StableAge=1,
            DicomModalities={"despeckle": ours | {"AllowStorageCommitment": True}},
            LuaScripts=[str(ROUTE)],
        ) as archive:
            node.start("serve")
            storescu(archive_port, [source], "-xy", called="ORTHANC")
            (row,) = node.wait_done([uid_of(source)])
            assert archive.instances() == sorted([uid_of(source), row.derived_instance_uid])

            def both_stable() -> bool:
                return all(
                    archive.get(f"/series/{key}")["IsStable"] for key in archive.get("/series")
                )

            wait_until(both_stable, "the derived series is stable as well")
            jobs = [(job["Type"], job["State"]) for job in archive.get("/jobs?expand")]
            assert [job for job in jobs if "Store" in job[0]] == [("DicomModalityStore", "Success")]
            with node.ledger() as ledger:
                assert ledger.overview().stages == {Stage.DONE: 1}


def test_late_instance_joins_the_same_derived_series(tmp_path, node, pacs):
    first, second, late = write_series(tmp_path / "in", 3)
    node.start("receive")
    node.start("work")
    dcmsend(node.port, [first, second])
    rows = node.wait_done([uid_of(first), uid_of(second)])
    dcmsend(node.port, [late])
    (row,) = node.wait_done([uid_of(late)])
    assert {one.derived_series_uid for one in rows} == {row.derived_series_uid}
    assert len(pacs.held) == 3
    assert pacs.committed == set(pacs.held)


def test_derived_series_that_the_pacs_routes_back_is_left_alone(tmp_path, node, pacs):
    (source,) = write_series(tmp_path / "in", 1)
    node.start("receive")
    node.start("work")
    dcmsend(node.port, [source])
    (row,) = node.wait_done([uid_of(source)])
    returned = pacs.held[row.derived_instance_uid]
    assert dcmsend(node.port, [returned]).returncode == 0
    with node.ledger() as ledger:
        back = wait_until(lambda: ledger.instance(row.derived_instance_uid), "it is recorded")
        assert back.stage is Stage.SKIPPED
        assert back.error_code == "own-output"
    assert len(pacs.held) == 1


def test_pacs_that_is_down_gets_everything_when_it_is_back(tmp_path, node, pacs):
    sources = write_series(tmp_path / "in", 2)
    port = pacs.port
    pacs.stop()
    node.start("receive")
    node.start("work")
    dcmsend(node.port, sources)
    with node.ledger() as ledger:
        wait_until(lambda: ledger.overview().last_errors, "the sender notices")
        assert ledger.overview().last_errors[0].code == "peer-unreachable"
    pacs.start(port)
    node.wait_done(uid_of(path) for path in sources)
    assert sorted(pacs.received.values()) == [1, 1]


def test_bad_objects_are_answered_or_parked_and_the_service_goes_on(tmp_path, node, pacs):
    good, damaged = write_series(tmp_path / "in", 2)
    dataset = dcmread(damaged)
    dataset.PixelData = dataset.PixelData[: len(dataset.PixelData) // 2 // 2 * 2]
    dataset.save_as(damaged)
    node.start("receive")
    node.start("work")
    dcmsend(node.port, [damaged, good])
    node.wait_done([uid_of(good)])
    with node.ledger() as ledger:
        row = wait_until(
            lambda: (one := ledger.instance(uid_of(damaged))) and one.stage is Stage.PARKED and one,
            "the damaged one is parked",
        )
    assert row.error_code
    shown = _command("status", "--config", str(node.config))
    assert shown.returncode == 1
    assert row.error_code in shown.stdout
    retried = _command("retry", uid_of(damaged), "--config", str(node.config))
    assert retried.returncode == 0
    assert "1 instance" in retried.stdout


def test_no_patient_in_anything_that_the_node_writes(tmp_path, node, pacs):
    """A marked patient goes through good and bad; logs, ledger and commands stay clean."""
    mark = "Qzx7vw"
    patient = f"{mark}^{mark}"
    fields = {"PatientID": mark, "AccessionNumber": mark, "InstitutionName": mark}
    malformed = {"PatientWeight": "987654", "PatientBirthDate": "19700101", "ImageComments": mark}
    good, damaged, odd = (
        write_us_instance(tmp_path / f"{n}.dcm", instance=n, patient=patient, **fields, **malformed)
        for n in (1, 2, 3)
    )
    dataset = dcmread(damaged)
    dataset.PixelData = dataset.PixelData[:10]
    dataset.save_as(damaged)
    for path in (damaged, odd):  # values that pydicom complains about when it meets them
        content = path.read_bytes().replace(b"987654", mark.encode())
        content = content.replace(b"19700101", mark.encode() + b"^^")
        path.write_bytes(content)
    node.start("receive")
    node.start("work")
    dcmsend(node.port, [good, damaged, odd])
    node.wait_done([uid_of(good)])
    with node.ledger() as ledger:
        ended = {Stage.PARKED, Stage.SKIPPED, Stage.DONE}
        wait_until(
            lambda: all(ledger.instance(uid_of(p)).stage in ended for p in (damaged, odd)), "ended"
        )
        events = str(ledger.events())
    shown = _command("status", "--config", str(node.config))
    node.stop("work")
    node.stop("receive")
    state = node.settings.node.state_directory
    ledger_bytes = b"".join(path.read_bytes() for path in state.glob("ledger.sqlite3*"))
    for name, text in (
        ("logs", node.logs),
        ("events", events),
        ("status", shown.stdout + shown.stderr),
        ("ledger", ledger_bytes.decode("latin-1")),
    ):
        assert mark.lower() not in text.lower(), name
    assert all(_is_json(line) for line in node.logs.splitlines() if line.strip())


def test_second_signal_is_not_needed_and_logs_say_why_it_ended(node):
    process = node.start("receive")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert '"process-stopping"' in node.logs


def test_supervisor_starts_a_dead_child_again(tmp_path, node, pacs):
    (source,) = write_series(tmp_path / "in", 1)
    node.start("serve")
    first = _child_pid(node, "receive")
    subprocess.run(["kill", "-9", str(first)], check=True)
    wait_until(lambda: _child_pid(node, "receive") != first and listens(node.port), "a new one")
    dcmsend(node.port, [source])
    node.wait_done([uid_of(source)])
    assert node.stop("serve") == 0


def test_wrong_file_under_a_running_node_ends_the_child_that_reads_it_alone(tmp_path, node, pacs):
    (source,) = write_series(tmp_path / "in", 1)
    node.start("serve")
    right = node.config.read_text()
    node.config.write_text("[receive\n")
    subprocess.run(["kill", "-9", str(_child_pid(node, "work"))], check=True)
    wait_until(lambda: '"status": 78' in node.logs, "a start in vain")
    dcmsend(node.port, [source])
    node.config.write_text(right)
    node.wait_done([uid_of(source)])
    assert node.stop("serve") == 0


def test_children_do_not_outlive_their_supervisor(node):
    node.start("serve")
    children = [_child_pid(node, name) for name in ("receive", "work")]
    node.kill("serve")
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "they end")


def test_every_delivery_is_confirmed_in_the_ledger(tmp_path, node, pacs):
    sources = write_series(tmp_path / "in", 2)
    node.start("receive")
    node.start("work")
    dcmsend(node.port, sources)
    node.wait_done(uid_of(path) for path in sources)
    with node.ledger() as ledger:
        assert ledger.overview().deliveries == {"pacs": {DeliveryState.CONFIRMED: 2}}


def test_start_and_stop_are_in_the_audit_trail(node):
    for name in ("receive", "work"):
        node.start(name)
        node.stop(name)
    node.start("receive")
    node.kill("receive")
    with node.ledger() as ledger:
        found = [(line.name, line.actor, line.detail) for _, line in ledger.events()]
    start, stop = EventName.APPLICATION_START, EventName.APPLICATION_STOP
    assert found == [
        (start, "DESPECKLE", "receiver"),
        (stop, "DESPECKLE", "receiver"),
        (start, "DESPECKLE", "worker"),
        (stop, "DESPECKLE", "worker"),
        (start, "DESPECKLE", "receiver"),
    ]


def _child_pid(node: Node, name: str) -> int:
    started = [
        json.loads(line)
        for line in node.logs.splitlines()
        if '"child-started"' in line and f'"{name}"' in line
    ]
    return int(started[-1]["pid"])


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dicom_node", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "COLUMNS": "300"},
    )
